"""Whether L-BFGS has converged, and the best of the weights that it has come by."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from .._optim.orthant_lbfgs import OrthantLBFGS

# iterations that have to gain nothing, where an epoch has fewer of them
SETTLED_ITERATIONS = 20
# halvings of a step down the gradient that is tried before a minimum is believed
HALVINGS = 40
# the most steps of L-BFGS, of twenty iterations each, for one width of an envelope, and the share
# of that width, by which an envelope is off anyway, that the last of them gains
ENVELOPE_STEPS, SETTLED_WIDTH = 200, 1e-4


class LbfgsConvergence:
    """Whether the iterations of L-BFGS gain nothing more, and how low the objective has been.

    Attributes
    ----------
    minimised : float
        What the optimizer minimises, after the last epoch.
    settled : bool
        Whether the last epoch gained nothing in this precision.
    lowest, latest : float
        The objective where L-BFGS began and has ended its epochs: the lowest and the last value.
    n_without_gain : int
        Iterations since it last gained something.
    """

    def __init__(self, rounding: float) -> None:
        self.rounding = rounding
        self.minimised = self.lowest = self.latest = math.inf
        self.settled = False
        self.n_without_gain = 0

    def update(self, minimised: float, settled: bool | None) -> None:
        """Take in an epoch; `settled` tells of one that went on until nothing was gained."""
        gain, self.minimised = self.minimised - minimised, minimised
        # a rise is no convergence
        level = abs(gain) <= self.rounding * abs(minimised)
        self.settled = level if settled is None else settled
        if not self.settled:
            self.n_without_gain = 0

    def is_lowest(self, value: float) -> bool:
        """Take in the objective; whether it is lower than ever by more than rounding."""
        self.latest = value
        lower = math.isinf(self.lowest) or value < self.lowest - self.rounding * abs(self.lowest)
        if lower:
            self.lowest = value
        return lower


def forget(optimizer: Any) -> None:
    """Let L-BFGS begin anew from where it is."""
    if isinstance(optimizer, OrthantLBFGS):
        optimizer.forget()
    else:
        optimizer.state.clear()


def keep_lowest(loop: Any, batches: Any) -> None:
    """Look at the weights that L-BFGS has come to, which may be worse than earlier ones."""
    convergence, monitor = loop.state.convergence, loop.monitor
    if convergence is None or monitor.validates:
        return
    if convergence.is_lowest(_objective_of(loop, batches)):
        monitor.best_values = loop.objective.flat.keep(monitor.best_values)


def _objective_of(loop: Any, batches: Any) -> float:
    """The objective as the weights are, without dropout."""
    loop.listener._set_training(False)
    with torch.no_grad():
        value = float(loop.objective.loss_of(batches) + loop.objective.penalty_value())
    loop.listener._set_training(True)
    return value


def goes_on(loop: Any) -> bool:
    """Whether L-BFGS, after an epoch that gained nothing, is to make another.

    Where an epoch has few iterations, a step along an old direction may have failed, so that the
    first such epoch makes it forget these.
    """
    convergence = loop.state.convergence
    optimizer = loop.stepper.updates.optimizer
    known = getattr(optimizer, "max_iter", None)
    n_iterations = known or optimizer.param_groups[0]["max_iter"]
    if n_iterations >= SETTLED_ITERATIONS:
        return False
    if convergence.n_without_gain == 0:
        forget(optimizer)
    convergence.n_without_gain += n_iterations
    if convergence.n_without_gain < SETTLED_ITERATIONS:
        return True
    convergence.n_without_gain = 0
    if loop.objective.width is None and _still_falls(loop):
        message = (
            "L-BFGS stopped gaining anything although the objective still falls along its "
            "gradient: its line search runs out of evaluations. Raise optimizer__max_eval or "
            "optimizer__max_iter."
        )
        loop.state.warnings.append((message, ConvergenceWarning))
    return False


def _still_falls(loop: Any) -> bool:
    """Whether a step down the gradient makes the objective lower by more than `tol`."""
    flat = loop.objective.flat
    batches = loop.training_batches()
    with torch.no_grad():
        for block in batches.blocks():
            # all rows at once
            loop.objective.gradient_(*block.batches)
    start, gradient = flat.values.clone(), flat.gradient.clone()
    value = _objective_of(loop, batches)
    least = max(loop.spec.tol or 0.0, loop.state.convergence.rounding * abs(value))
    falls = False
    for k in range(HALVINGS):
        flat.values.copy_(start - 0.5**k * gradient)
        falls = _objective_of(loop, batches) < value - least
        if falls:
            break
    flat.values.copy_(start)
    return falls


def why_not_converged(loop: Any) -> list[tuple[str, type[Warning]]]:
    """What there is to say where L-BFGS stopped on a plateau without having converged."""
    convergence, spec = loop.state.convergence, loop.spec
    if spec.shape.dropout:
        reason, remedy = "its dropout changes the objective from step to step", "dropout=0"
    elif convergence.latest > convergence.lowest + (spec.tol or 0.0):
        reason = f"its objective rose from {convergence.lowest:.4g} to {convergence.latest:.4g}"
        remedy = "optimizer__line_search_fn='strong_wolfe', a smaller lr"
    else:
        return []
    n_epochs = len(loop.state.loss_curve)
    message = (
        f"L-BFGS stopped after {n_epochs} epochs without having converged, since {reason}. The "
        f"best weights are kept. Set {remedy}, or choose another optimizer, such as 'adam'."
    )
    return [(message, ConvergenceWarning)]


def step_until_settled(loop: Any, closure: Callable[[], Tensor]) -> None:
    """Make steps of L-BFGS until one gains next to nothing of the width of the envelope."""
    slack = SETTLED_WIDTH * (loop.objective.width or 0.0)
    before, loop.state.settled = math.inf, False
    for _ in range(ENVELOPE_STEPS):
        # the value before the step
        value = float(loop.stepper.updates.step(closure))
        if not math.isfinite(value) or abs(before - value) <= slack:
            loop.state.settled = math.isfinite(value)
            return
        before = value
