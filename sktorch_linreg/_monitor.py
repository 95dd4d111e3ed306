"""When to stop, which weights were best, and the loss curves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._backprop import FlatParameters
from ._types import FitSpec


class Monitor:
    """Plateau stop, best weights and the curves of one training run."""

    def __init__(self, spec: FitSpec, validates: bool) -> None:
        self.spec = spec
        self.validates = validates
        self.is_lbfgs = spec.is_lbfgs
        self.loss_curve: list[float] = []
        self.validation_curve: list[float] = []
        self.best_train = self.best_validation = math.inf
        self.best_values: Tensor | None = None
        self.minimised = math.inf
        self.no_improvement = 0
        self.stopped = False
        self.settled = False

    def update(
        self,
        loss: float,
        validation: float | None,
        minimised: float,
        flat: FlatParameters,
        slack: float = 0.0,
    ) -> None:
        """Take in one epoch: its losses, and the value of what the optimizer works on.

        `slack` is the gain of an epoch below which L-BFGS has converged well enough.
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
        tol = self.spec.tol
        if tol is not None:
            self.no_improvement = self.no_improvement + 1 if monitored > best - tol else 0
        elif self.validates:
            self.no_improvement = self.no_improvement + 1 if monitored >= best else 0
        if self.validates and monitored < best:
            self.best_values = flat.keep(self.best_values)
        self.stopped = self.no_improvement > self.spec.n_iter_no_change
        if self.is_lbfgs:
            # twenty iterations that gain nothing in this precision have converged
            rounding = 4 * torch.finfo(self.spec.dtype).eps * abs(minimised)
            self.settled = gain <= max(rounding, slack)

    @property
    def best(self) -> float:
        """The best of the monitored losses."""
        return self.best_validation if self.validates else self.best_train

    @property
    def must_stop(self) -> bool:
        """Whether the user asked for training until convergence."""
        return self.spec.tol is not None or self.is_lbfgs
