"""When to stop, which weights were best, and the loss curves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._spec import FitSpec
from .flat_parameters import FlatParameters

# losses that differ by less, in units of the precision, may differ by the rounding of sums alone,
# which neither stops training nor changes the weights that are kept
ROUNDING = 16


class Monitor:
    """Plateau stop, best weights and the curves of one training run."""

    def __init__(self, spec: FitSpec, validates: bool) -> None:
        self.spec = spec
        self.validates = validates
        self.is_lbfgs = spec.training.is_lbfgs
        self.loss_curve: list[float] = []
        self.validation_curve: list[float] = []
        self.best_train = self.best_validation = math.inf
        self.best_values: Tensor | None = None
        # the monitored loss of the last epoch that was better by more than rounding
        self.reference = math.inf
        self.rounding = ROUNDING * torch.finfo(spec.dtype).eps
        self.minimised = math.inf
        # the objective where L-BFGS began and has ended its epochs: the lowest and the last value
        self.lowest = self.latest = math.inf
        self.no_improvement = 0
        self.stopped = False
        self.settled = False

    def update(
        self,
        loss: float,
        validation: float | None,
        minimised: float,
        flat: FlatParameters,
        settled: bool | None = None,
    ) -> None:
        """Take in one epoch: its losses, and the value of what the optimizer works on.

        `settled` tells of an optimizer that ran until it gained nothing more.
        """
        gain, self.minimised = self.minimised - minimised, minimised
        best = self.best
        self.best_train = min(self.best_train, loss)
        if validation is not None:
            self.best_validation = min(self.best_validation, validation)
            self.validation_curve.append(validation)
        # from here on the epoch counts
        self.loss_curve.append(loss)
        monitored = loss if validation is None else validation
        tol, first = self.spec.tol, math.isinf(best)
        # by more than rounding since the last epoch that was better
        improved = first or monitored < self.reference - self.rounding * abs(self.reference)
        if improved:
            self.reference = monitored
        if tol is not None:
            least = 0.0 if first else max(tol, self.rounding * abs(best))
            gained = monitored < best and monitored <= best - least
            self.no_improvement = 0 if gained else self.no_improvement + 1
        elif self.validates:
            self.no_improvement = 0 if improved else self.no_improvement + 1
        if self.validates and improved:
            self.best_values = flat.keep(self.best_values)
        self.stopped = self.no_improvement > self.spec.training.n_iter_no_change
        if self.is_lbfgs:
            # iterations that gain nothing in this precision; a rise is no convergence
            level = abs(gain) <= self.rounding * abs(minimised)
            self.settled = level if settled is None else settled

    def keep_lowest(self, value: float, flat: FlatParameters) -> None:
        """Keep the weights at which the objective is lower than ever by more than rounding."""
        self.latest = value
        if math.isinf(self.lowest) or value < self.lowest - self.rounding * abs(self.lowest):
            self.lowest = value
            self.best_values = flat.keep(self.best_values)

    def wait_for_rate(self, lowered: bool, pending: bool) -> None:
        """Take no plateau for the end that lowers the learning rate, or is about to."""
        if lowered:
            self.no_improvement = 0
        self.stopped = self.stopped and not lowered and not pending

    @property
    def best(self) -> float:
        """The best of the monitored losses."""
        return self.best_validation if self.validates else self.best_train

    @property
    def must_stop(self) -> bool:
        """Whether the user asked for training until convergence."""
        return self.spec.tol is not None or self.is_lbfgs
