"""Many models of one shape, trained together as one stack.

Up to rounding, each model ends up as if trained individually by `train.train`: with the same
initial weights, row order, dropout masks, updates and stopping epoch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._data.rows import TrainingData
from .._errors import TrainingDivergedError
from .._optim.optimizers import StackedOptions, option_values
from .._optim.schedules import Schedules
from .._optim.updates import RuleUpdates
from .._runtime.aliases import FloatArray, Mask
from .._runtime.threads import threads_for
from .._spec import FitSpec, RunContext
from .batches import OUTPUT_ROWS, TabularDataset, n_batches
from .loop import TrainingLoop
from .prepare import Prepared, prepare
from .stacked_batches import Order, StackedBatches, StackedRows
from .stacked_objective import StackedGradients, StackedObjective
from .stacked_parameters import StackedParameters
from .stacked_result import StackResult
from .stopping import Monitor

# specifications of the models, by group
Specs = Sequence[Sequence[FitSpec]]
# the stack is compacted once the remaining models need at most this share of its slots
SPARSE = 0.75


class ManyModels(TrainingLoop):
    """Training of a stack of models.

    Parameters
    ----------
    data : sequence of TrainingData
        Dense data sets with the same columns.
    owner : sequence of int
        Index of the data set of each group of models.
    specs : sequence of sequences of FitSpec
        Models of each group. They differ only in numbers: learning rate, penalty, optimizer
        options, dropout rate and tolerance; models of a group share a seed.
    curves : bool, default=False
        Whether to keep the losses of all epochs.
    tell : callable, optional
        Called after each epoch with the number of completed epochs.
    """

    def __init__(
        self,
        data: Sequence[TrainingData],
        owner: Sequence[int],
        specs: Specs,
        curves: bool = False,
        tell: Callable[[int], None] | None = None,
    ) -> None:
        self.spec, self.specs, self.curves = specs[0][0], specs, curves
        self.owner = list(owner)
        prepared = self._prepare(data)
        self.packed, self.held_out = self._pack(prepared)
        counts = [self.packed.counts[i] for i in self.owner]
        pairs = zip(counts, specs, strict=True)
        if len({n_batches(n, row[0].training.batch_size) for n, row in pairs}) > 1:
            raise ValueError("Models of a stack must have the same number of updates per epoch.")
        self.scalings = [prepared[i].scaling for i in self.owner]
        n_groups, n_each = len(specs), len(specs[0])
        self.parameters = self.make_parameters(n_groups, n_each)
        self.options = StackedOptions(specs)
        self.schedules = Schedules.of_many(specs)
        if self.schedules is not None:
            # a schedule's constructor sets the rate of the first epoch
            self.schedules.apply(self.options)
        self.monitor = Monitor.of_many(specs, self.held_out is not None)
        self.orders: list[Order] = []
        self.draw_start()
        self.l1 = np.array([[s.objective.l1 for s in row] for row in specs])
        self.l2 = np.array([[s.objective.l2 for s in row] for row in specs])
        self.result = self.parameters.like(n_groups, n_each)
        # original positions of the remaining models
        self.origin = np.indices((n_groups, n_each))
        # the final learning rate of each model
        self.last_rate = np.zeros((n_groups, n_each))
        shape = n_groups, n_each
        self.out = self.result_class(
            self.result,
            self.scalings,
            np.zeros(shape, dtype=np.int64),
            np.full(shape, np.nan),
            np.full(shape, np.nan),
            np.zeros(shape, dtype=bool),
        )
        self.tell = tell
        self._set_up()

    # -- what networks and modules of the user's do in their own way ------------------------------

    # whether a column of ones follows the features
    has_ones = False
    # constant factor left out of the derivative of the loss
    slope_factor = 1.0
    result_class: type[StackResult]

    @abstractmethod
    def make_parameters(self, n_groups: int, n_each: int) -> StackedParameters:
        """The parameters of all models, not yet initialised."""

    @abstractmethod
    def draw_start(self) -> None:
        """Set the initial state of all models, and the order of rows of each group."""

    @abstractmethod
    def make_gradients(self) -> StackedGradients:
        """What computes outputs and gradients of the remaining models."""

    # -- set-up ---------------------------------------------------------------------------------

    def _prepare(self, data: Sequence[TrainingData]) -> list[Prepared]:
        """Prepare each data set once, or once per seed if the seed selects held-out rows."""
        out: list[Prepared] = []
        known: dict[tuple[int, int | None], int] = {}
        for g, row in enumerate(self.specs):
            spec = row[0]
            i = self.owner[g]
            key = i, None if spec.training.validation_fraction is None else spec.training.seed
            if key not in known:
                known[key] = len(out)
                out.append(prepare(data[i], spec, RunContext()))
            self.owner[g] = known[key]
        return out

    def _pack(self, prepared: list[Prepared]) -> tuple[StackedRows, StackedRows | None]:
        pairs = [p.datasets(self.spec, RunContext(), TabularDataset) for p in prepared]
        training = StackedRows([rows for rows, _ in pairs], self.has_ones)
        held_out = [rows for _, rows in pairs if rows is not None]
        return training, StackedRows(held_out, self.has_ones) if held_out else None

    def _set_up(self) -> None:
        """Build everything that depends on which models remain in the stack."""
        spec, parameters = self.spec, self.parameters
        gradients = self.make_gradients()
        self.objective = StackedObjective(parameters, spec, self.l1, self.l2, gradients)
        groups_left = self.origin[0][:, 0]
        owner_left = [self.owner[g] for g in groups_left]
        orders = [self.orders[g] for g in groups_left] if spec.training.shuffle else None
        factor, n_each = self.slope_factor, parameters.n_each
        counts = [self.packed.counts[i] for i in self.owner]
        whole = all(r[0].training.batch_size >= n for r, n in zip(self.specs, counts, strict=True))
        size = max(counts) if whole else spec.training.batch_size
        joins = spec.behaviour.joins_last_row
        self.batches = StackedBatches(
            self.packed, owner_left, n_each, size, orders, factor, joins_last=joins
        )
        self.checks = None
        if self.held_out is not None:
            self.checks = StackedBatches(self.held_out, owner_left, n_each, OUTPUT_ROWS)
        self.updates = self._make_updates()

    def _make_updates(self) -> RuleUpdates:
        group, expand = self._group()
        return RuleUpdates(self.parameters, self.spec.training.optimizer_class, group, [], expand)

    def _group(self) -> tuple[dict[str, Any], Callable[[Tensor], Tensor] | None]:
        """The current options, and the function that expands those that differ between models."""
        group = self.options.group(self.parameters.values.device)
        varied = any(isinstance(v, Tensor) for v in option_values(group))
        return group, self.parameters.expand if varied else None

    # -- training -------------------------------------------------------------------------------

    @property
    def max_epochs(self) -> int:
        """Maximum number of epochs."""
        return self.spec.training.max_epochs

    @property
    def weights(self) -> StackedParameters:
        """The parameters of the remaining models."""
        return self.parameters

    def train(self) -> StackResult:
        """Train until all models have stopped."""
        out = self.out
        with self._quietly():
            active = self.run()
        if active.any():
            self.finish(active, self.learning_rate())
            out.unfinished[tuple(self.origin[:, self.monitor.has_tol & active])] = True
        finite = self.result.finite()
        for g, c in zip(*np.nonzero(~finite), strict=True):
            # the last update can diverge after the last loss was computed
            if (g, c) not in out.errors:
                lr = float(self.last_rate[g, c])
                out.errors[int(g), int(c)] = TrainingDivergedError(int(out.n_iter[g, c]), lr)
        return out

    def begin_epoch(self) -> None:
        """Do nothing: a stack has no callbacks."""

    def end_epoch(self) -> None:
        """Count the epoch, and drop finished models where that saves work."""
        self.n_epochs += 1
        if self.tell is not None:
            self.tell(self.n_epochs)
        if not self.monitor.active.any():
            return
        if self.schedules is not None:
            self.schedules.apply(self.options)
            updates = self.updates
            updates.group, updates.expand = self._group()
            updates.set_count(updates.n_steps, updates.mu_product)
        self._move_together()

    def _quietly(self) -> AbstractContextManager[Any]:
        rows = self.batches.batch_size * self.parameters.n_groups * self.parameters.n_each
        return threads_for(rows * self.parameters.n_parameters)

    def train_epoch(self) -> FloatArray:
        """Update over all batches; returns the mean objectives, measured before each update."""
        mean: FloatArray = self.objective.epoch(self.batches, self.updates.step)
        return mean

    def validation_loss(self) -> FloatArray | None:
        """The mean losses over held-out rows."""
        return None if self.checks is None else self.objective.loss_of(self.checks)

    def learning_rate(self) -> FloatArray:
        """The learning rate of each model."""
        shape = self.monitor.active.shape
        rate = self.options.varied.get("lr", self.options.same.get("lr", 0.0))
        return np.broadcast_to(np.asarray(rate, dtype=np.float64), shape)

    def refuse(self, diverged: Mask, rate: FloatArray) -> None:
        """Record the errors of models that diverged."""
        for g, c in zip(*np.nonzero(diverged), strict=True):
            at = int(self.origin[0][g, c]), int(self.origin[1][g, c])
            self.out.errors[at] = TrainingDivergedError(self.n_epochs + 1, float(rate[g, c]))

    def record(self, loss: FloatArray, validation: FloatArray | None, rate: FloatArray) -> None:
        """Record the losses of the models still training."""
        out, active = self.out, self.monitor.active
        monitored = loss if validation is None else validation
        at = tuple(self.origin[:, active])
        out.n_iter[at], out.loss[at] = self.n_epochs + 1, loss[active]
        out.best_loss[at] = np.fmin(out.best_loss[at], monitored[active])
        if not self.curves:
            return
        for curves, values in ((out.loss_curves, loss), (out.validation_curves, validation)):
            if values is not None:
                curves.append(np.full(out.loss.shape, np.nan))
                curves[-1][at] = values[active]

    def finish(self, done: Mask, rate: FloatArray) -> None:
        """Save the parameters of finished models."""
        self.last_rate[tuple(self.origin[:, done])] = rate[done]
        group, place = map(torch.from_numpy, np.nonzero(done))
        here = group, place
        at = torch.from_numpy(self.origin[0][done]), torch.from_numpy(self.origin[1][done])
        self.result.adopt(at, self.parameters, self.monitor.best_weights, here)

    def _move_together(self) -> None:
        """Drop finished models where that saves work."""
        active = self.monitor.active
        groups = np.flatnonzero(active.any(axis=1))
        n_each = int(active.sum(axis=1).max())
        if len(groups) * n_each > SPARSE * active.size:
            return
        # active models come first in each group; finished ones fill the rest
        place = np.argsort(~active[groups], axis=1, kind="stable")[:, :n_each]
        group = np.broadcast_to(groups[:, None], place.shape)
        at = torch.from_numpy(group.copy()), torch.from_numpy(place)
        parameters, updates = self.parameters, self.updates
        smaller = parameters.reduced(at)
        slots = {k: parameters.take(v, at, smaller) for k, v in updates.slots.items()}
        if self.monitor.best_weights is not None:
            self.monitor.best_weights = parameters.take_kept(self.monitor.best_weights, at, smaller)
        n_steps, product = updates.n_steps, updates.mu_product
        self.parameters = smaller
        self.origin = self.origin[:, group, place]
        for part in (self.options, self.monitor, self.schedules):
            if part is not None:
                part.select(group, place)
        self.l1, self.l2 = self.l1[group, place], self.l2[group, place]
        self._set_up()
        new = self.updates
        new.slots = slots
        new.set_count(n_steps, product[at] if isinstance(product, Tensor) else product)
