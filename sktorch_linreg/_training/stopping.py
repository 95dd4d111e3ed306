"""When to stop, which weights were best, and the loss curves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .._runtime.aliases import Array, FloatArray, Mask
from .._spec import FitSpec
from .flat_parameters import FlatParameters
from .stacked_parameters import LaneParameters

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

    def best_weights(self, flat: FlatParameters) -> Tensor:
        """The weights that are kept, or those there are."""
        return flat.values if self.best_values is None else self.best_values

    def restore_best_weights(self, flat: FlatParameters) -> None:
        """Put the weights that are kept in the place of the last ones."""
        if self.best_values is not None:
            flat.values.copy_(self.best_values)
            self.best_values = None

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


class LaneMonitor:
    """Plateau stops and best losses of the lanes, as `Monitor` does for one."""

    def __init__(self, specs: Sequence[Sequence[FitSpec]], validates: bool) -> None:
        shape = len(specs), len(specs[0])
        self.validates = validates
        tols = [[np.nan if s.tol is None else s.tol for s in row] for row in specs]
        self.tol = np.array(tols, dtype=np.float64)
        self.patience = np.array([[s.training.n_iter_no_change for s in row] for row in specs])
        self.rounding = ROUNDING * torch.finfo(specs[0][0].dtype).eps
        self.best, self.reference = np.full(shape, np.inf), np.full(shape, np.inf)
        self.no_improvement = np.zeros(shape, dtype=np.int64)
        self.active = np.ones(shape, dtype=bool)
        self.best_values: Tensor | None = None

    def update(self, monitored: FloatArray) -> tuple[Mask, Mask]:
        """Take in an epoch; which lanes are better than ever, and which stop."""
        first = np.isinf(self.reference)
        reference, best = (np.where(first, 0.0, a) for a in (self.reference, self.best))
        improved = first | (monitored < reference - self.rounding * np.abs(reference))
        self.reference = np.where(improved, monitored, self.reference)
        asked = ~np.isnan(self.tol)
        least = np.fmax(np.where(asked, self.tol, 0.0), self.rounding * np.abs(best))
        gained = (monitored < self.best) & (monitored <= best - least)
        worse = ~first & np.where(asked, ~gained, ~improved)
        counts = asked | self.validates
        self.no_improvement = np.where(counts & worse, self.no_improvement + 1, 0)
        self.best = np.fmin(self.best, monitored)
        return improved, self.active & (self.no_improvement > self.patience)

    def keep_best_weights(self, improved: Mask, lanes: LaneParameters) -> None:
        """Keep the weights of the lanes that are better than ever."""
        values = lanes.values
        if self.best_values is None or improved.all():
            best = self.best_values
            self.best_values = values.clone() if best is None else best.copy_(values)
        elif improved.any():
            mask = torch.from_numpy(improved).to(values.device, torch.float64)
            self.best_values = torch.where(lanes.expand(mask) > 0, values, self.best_values)

    def best_weights(self, lanes: LaneParameters) -> Tensor:
        """The weights that are kept, or those there are."""
        return lanes.values if self.best_values is None else self.best_values

    def wait_for_rate(self, stopped: Mask, lowered: Mask, pending: Mask) -> Mask:
        """Of lanes that would stop, those whose learning rate is not about to be lowered."""
        self.no_improvement[lowered] = 0
        return stopped & ~lowered & ~pending

    def select(self, group: Array, place: Array) -> None:
        """Keep some lanes."""
        for name in ("tol", "patience", "best", "reference", "no_improvement", "active"):
            setattr(self, name, getattr(self, name)[group, place])
