"""The objective over the batches of an epoch, for one model and for many."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from .._objective.losses import Loss
from .._objective.penalty import PenaltySum, longer
from .._objective.projection import Projection
from .._runtime.processes import ONE_PROCESS, ProcessGroup
from .model_numbers import Numbers


class TrainingObjective(ABC):
    """Loss and penalty of one model or of many, as an optimizer sees them.

    Attributes
    ----------
    loss : Loss
        The requested loss.
    numbers : Numbers
        `ONE` for one model, `MANY` for a stack.
    projections : sequence of Projection
        Projections that enforce L1 terms and sign constraints exactly.
    penalties : PenaltySum
        The penalties before the updates of an epoch.
    group : ProcessGroup
        The processes that share the rows of each batch.
    """

    loss: Loss
    numbers: Numbers
    projections: Sequence[Projection] = ()
    penalties: PenaltySum
    group: ProcessGroup = ONE_PROCESS

    @abstractmethod
    def gradient_(self, batch: Any) -> None:
        """Write outputs into the batch, and compute the gradient of the minimised function.

        It is the pseudo-gradient where weights are projected.
        """

    @abstractmethod
    def outputs_(self, batch: Any) -> None:
        """Write outputs into the batch, without dropout."""

    @abstractmethod
    def n_rows_of(self, batch: Any) -> Any:
        """Number of rows by which the penalty before an update is weighted."""

    def add_loss(self, mean: MeanLoss, block: Any) -> None:
        """Add the loss of a block, as it was before each update."""
        mean.add(block)

    def project_(self) -> None:
        """After an update: apply the projections to the weights."""
        for projection in self.projections:
            projection.project_()

    def epoch(self, batches: Any, update: Callable[[], None]) -> Any:
        """Make one `update` per batch; returns the mean objective, measured before each update."""
        mean, penalties = MeanLoss(self.loss), self.penalties
        penalised, projected = bool(penalties.terms), bool(self.projections)
        for block in batches.blocks():
            for batch in block.batches:
                self.gradient_(batch)
                if penalised:
                    penalties.add(self.n_rows_of(batch))
                update()
                if projected:
                    self.project_()
            self.add_loss(mean, block)
        loss = mean.value(self.numbers, self.group)
        if penalised:
            loss = loss + self.numbers.read(penalties.take()) / batches.n_all
        return loss

    def loss_of(self, batches: Any) -> Any:
        """The mean loss over all rows at the current parameters, without penalty."""
        mean = MeanLoss(self.loss)
        # an error on one process is raised on all
        self.group.run(lambda: self.add_losses(mean, batches))
        return mean.value(self.numbers, self.group)

    def add_losses(self, mean: MeanLoss, batches: Any) -> None:
        """Add the losses of all rows at the current parameters."""
        for block in batches.blocks():
            for batch in block.batches:
                self.outputs_(batch)
            mean.add(block)


class MeanLoss:
    """The mean loss of the outputs in some blocks; waits for the device only once, at the end."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.total: Any = 0.0
        self.n_entries: Any = 0

    def add(self, block: Any) -> None:
        if len(block.y):
            self.add_sum(*block.loss_sum(self.loss))

    def add_sum(self, total: Any, n_entries: Any) -> None:
        self.total = longer(self.total, total)
        self.n_entries = self.n_entries + n_entries

    def value(self, numbers: Numbers, group: ProcessGroup) -> Any:
        total, n_entries = numbers.read(self.total), self.n_entries
        if group.size > 1:
            total, n_entries = group.sum([total, float(n_entries)])
        return total / n_entries
