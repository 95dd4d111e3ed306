"""Convergence of L-BFGS, and the best weights it has reached."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from .._optim.orthant_lbfgs import OrthantLBFGS

# iterations without gain that count as convergence, where an epoch has fewer
SETTLED_ITERATIONS = 20
# halvings of a trial gradient step before a point is accepted as the minimum
HALVINGS = 40
# maximum L-BFGS steps per envelope width, and the gain relative to that width that ends them
ENVELOPE_STEPS, SETTLED_WIDTH = 200, 1e-4


class LbfgsConvergence:
    """Whether L-BFGS still makes progress, and the lowest objective so far.

    Attributes
    ----------
    minimised : float
        Value of the function that the optimizer minimises, after the last epoch.
    settled : bool
        Whether the last epoch made no progress beyond rounding.
    lowest, latest : float
        The lowest and the last objective, out of those at the start and after each epoch.
    n_without_gain : int
        Iterations since the last gain.
    """

    def __init__(self, rounding: float) -> None:
        self.rounding = rounding
        self.minimised = self.lowest = self.latest = math.inf
        self.settled = False
        self.n_without_gain = 0

    def update(self, minimised: float, settled: bool | None) -> None:
        """Record an epoch; `settled`, if not None, says whether it ran until nothing was gained."""
        gain, self.minimised = self.minimised - minimised, minimised
        # an increase does not count as convergence
        level = abs(gain) <= self.rounding * abs(minimised)
        self.settled = level if settled is None else settled
        if not self.settled:
            self.n_without_gain = 0

    def is_lowest(self, value: float) -> bool:
        """Record the objective; returns whether it is a new minimum by more than rounding."""
        self.latest = value
        lower = math.isinf(self.lowest) or value < self.lowest - self.rounding * abs(self.lowest)
        if lower:
            self.lowest = value
        return lower


def forget(optimizer: Any) -> None:
    """Reset L-BFGS, so that it restarts from the current point."""
    if isinstance(optimizer, OrthantLBFGS):
        optimizer.forget()
    else:
        optimizer.state.clear()


def keep_lowest(loop: Any, batches: Any) -> None:
    """Keep the current weights of L-BFGS if they are the best so far."""
    convergence, monitor = loop.state.convergence, loop.monitor
    if convergence is None or monitor.validates:
        return
    if convergence.is_lowest(_objective_of(loop, batches)):
        monitor.best_weights = loop.objective.flat.keep(monitor.best_weights)


def _objective_of(loop: Any, batches: Any) -> float:
    """The objective at the current weights, without dropout."""
    loop.listener._set_training(False)
    with torch.no_grad():
        value = float(loop.objective.loss_of(batches) + loop.objective.penalty_value())
    loop.listener._set_training(True)
    return value


def goes_on(loop: Any) -> bool:
    """Whether L-BFGS should run another epoch after one that gained nothing.

    With few iterations per epoch, a step along an outdated direction may have failed, so the first
    such epoch resets the optimizer.
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
            "L-BFGS stopped making progress although the objective still decreases along the "
            "gradient: its line search ran out of evaluations. Raise optimizer__max_eval or "
            "optimizer__max_iter."
        )
        loop.state.warnings.append((message, ConvergenceWarning))
    return False


def _still_falls(loop: Any) -> bool:
    """Whether a gradient step decreases the objective by more than `tol`."""
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
    """A warning if L-BFGS stopped on a plateau without converging."""
    convergence, spec = loop.state.convergence, loop.spec
    if spec.shape.dropout:
        reason, remedy = "dropout changes the objective at every step", "dropout=0"
    elif spec.behaviour.draws:
        reason = "the module draws random numbers, which changes the objective at every step"
        remedy = "the rates of its dropout layers to 0"
    elif convergence.latest > convergence.lowest + (spec.tol or 0.0):
        reason = f"its objective rose from {convergence.lowest:.4g} to {convergence.latest:.4g}"
        remedy = "optimizer__line_search_fn='strong_wolfe' or a smaller lr"
    else:
        return []
    n_epochs = len(loop.state.loss_curve)
    message = (
        f"L-BFGS stopped after {n_epochs} epochs without converging, because {reason}. The "
        f"best weights are kept. Set {remedy}, or choose another optimizer, such as 'adam'."
    )
    return [(message, ConvergenceWarning)]


def step_until_settled(loop: Any, closure: Callable[[], Tensor]) -> None:
    """Run L-BFGS steps until one gains almost nothing relative to the envelope's width."""
    slack = SETTLED_WIDTH * (loop.objective.width or 0.0)
    before, loop.state.settled = math.inf, False
    for _ in range(ENVELOPE_STEPS):
        # the value before the step
        value = float(loop.stepper.updates.step(closure))
        if not math.isfinite(value) or abs(before - value) <= slack:
            loop.state.settled = math.isfinite(value)
            return
        before = value
