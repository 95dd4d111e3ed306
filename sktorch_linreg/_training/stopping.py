"""When training stops, and which weights were best, for one model and for many.

The best weights are restored at the end of training: `OneModel.train` restores them in place, and
`ManyModels.finish` copies them out model by model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .._runtime.aliases import Array
from .._spec import FitSpec
from .model_numbers import MANY, ONE, Numbers

# smaller loss differences, in units of machine epsilon, count as rounding and are ignored
ROUNDING = 16


class Weights(Protocol):
    """Parameters of one model or of many."""

    values: Tensor

    def keep(self, kept: Any, which: Any = True) -> Any:
        """`kept` with the current parameters of some models, or a copy of all if None."""

    def finite(self) -> Any:
        """Which models have only finite parameters."""


class Monitor:
    """Plateau stopping, best losses and best weights of models that are trained together.

    Parameters
    ----------
    tol, patience : number per model
        Smallest loss decrease that counts as a gain (NaN disables plateau stopping), and the
        number of epochs without one to wait before stopping.
    validates : bool
        Whether the loss of held-out rows is monitored; the best weights are then kept.
    dtype : torch.dtype
        The precision of the losses.
    numbers : Numbers
        `ONE` for scalars of one model, `MANY` for arrays.

    Attributes
    ----------
    active, stopped : bool per model
        Whether it is still training, and whether it has reached a plateau.
    best : number per model
        The lowest monitored loss.
    best_weights : object or None
        The best weights, if kept, in the form that `Weights.keep` returns.
    """

    def __init__(
        self, tol: Any, patience: Any, validates: bool, dtype: torch.dtype, numbers: Numbers
    ) -> None:
        self.tol, self.patience, self.validates, self.numbers = tol, patience, validates, numbers
        self.rounding = ROUNDING * torch.finfo(dtype).eps
        # one zero per model
        zero = numbers.where(patience > 0, 0, 0)
        self.best = self.reference = zero + math.inf
        self.no_improvement = zero
        self.active = zero == 0
        self.stopped = zero != 0
        self.best_weights: Any = None

    @classmethod
    def of_one(cls, spec: FitSpec, validates: bool) -> Monitor:
        """The monitor of a single model."""
        tol = math.nan if spec.tol is None else spec.tol
        return cls(tol, spec.training.n_iter_no_change, validates, spec.dtype, ONE)

    @classmethod
    def of_many(cls, specs: Sequence[Sequence[FitSpec]], validates: bool) -> Monitor:
        """The monitor of groups of models; its arrays are of shape (n_groups, n_each)."""
        tol = np.array([[math.nan if s.tol is None else s.tol for s in row] for row in specs])
        patience = np.array([[s.training.n_iter_no_change for s in row] for row in specs])
        return cls(tol, patience, validates, specs[0][0].dtype, MANY)

    @property
    def has_tol(self) -> Any:
        """Whether plateau stopping is enabled, per model."""
        return self.tol == self.tol

    def update(self, monitored: Any, weights: Weights) -> None:
        """Process the monitored losses of an epoch."""
        f, has_tol = self.numbers, self.has_tol
        if not (self.validates or f.any(has_tol)):
            self.best = f.minimum(self.best, monitored)
            return
        first = f.is_infinite(self.reference)
        reference, best = f.where(first, 0.0, self.reference), f.where(first, 0.0, self.best)
        # by more than rounding since the last improved epoch, so that small gains add up
        improved = first | (monitored < reference - self.rounding * abs(reference))
        least = f.maximum(self.tol, self.rounding * abs(best))
        gained = first | ((monitored < self.best) & (monitored <= best - least))
        waits = f.invert(f.where(has_tol, gained, improved)) & (has_tol | self.validates)
        self.no_improvement = f.where(waits, self.no_improvement + 1, 0)
        self.reference = f.where(improved, monitored, self.reference)
        self.best = f.minimum(self.best, monitored)
        if self.validates and f.any(improved):
            self.best_weights = weights.keep(self.best_weights, improved)
        self.stopped = self.active & (self.no_improvement > self.patience)

    def wait_for_rate(self, lowered: Any, pending: Any) -> None:
        """Do not stop at a plateau that lowers the learning rate or is about to."""
        f = self.numbers
        self.no_improvement = f.where(lowered, 0, self.no_improvement)
        self.stopped = self.stopped & f.invert(lowered | pending)

    def restore_best_weights(self, weights: Any) -> None:
        """Replace the current weights of one model with the best ones, if kept."""
        if self.best_weights is not None:
            weights.restore(self.best_weights)
            self.best_weights = None

    def select(self, group: Array, place: Array) -> None:
        """Keep only these models."""
        names = ("tol", "patience", "best", "reference", "no_improvement", "active", "stopped")
        for name in names:
            setattr(self, name, getattr(self, name)[group, place])
