"""The objective of many models of one shape."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .._objective.losses import Loss
from .._objective.penalty import PenaltySum
from .._objective.projection import Projection
from .._runtime.aliases import Array, FloatArray
from .._spec import FitSpec
from .model_numbers import MANY
from .stacked_batches import StackedBatch, StackedBatches, StackedBlock
from .stacked_parameters import StackedParameters
from .training_objective import MeanLoss, TrainingObjective


class StackedGradients(Protocol):
    """Computes outputs and gradients of all models of a stack.

    With `keeps_losses`, `gradient_` appends the loss of each model to `batch_losses`, and `losses`
    returns those of the outputs in a batch: losses of the user's are only called on one model.
    """

    keeps_losses: bool
    batch_losses: list[Tensor]

    def losses(self, batch: StackedBatch) -> Tensor:
        """The loss of each model for the outputs in a batch, of shape (n_groups, n_each)."""

    def gradient_(self, batch: StackedBatch, loss: Loss) -> None:
        """Write outputs into the batch, and the gradient of the loss into the parameters'."""

    def outputs_(self, batch: StackedBatch) -> Any:
        """Write outputs into the batch, in evaluation mode."""


class StackedObjective(TrainingObjective):
    """Loss and penalties of a stack of models.

    Parameters
    ----------
    parameters : StackedParameters
        The parameters to train.
    spec : FitSpec
        Loss, constraint and activation, shared by all models.
    l1, l2 : ndarray of shape (n_groups, n_each)
        Weights of the penalties.
    gradients : StackedGradients
        Computes outputs and gradients.
    """

    numbers = MANY

    def __init__(
        self,
        parameters: StackedParameters,
        spec: FitSpec,
        l1: FloatArray,
        l2: FloatArray,
        gradients: StackedGradients,
    ) -> None:
        self.parameters, self.loss = parameters, spec.objective.loss
        self.gradients = gradients
        self.l1, self.l2 = self._per_parameter(l1), self._per_parameter(l2)
        self.penalties = PenaltySum(parameters.values, self.l1, self.l2, parameters.per_model)
        positive = spec.objective.positive
        if positive or isinstance(self.l1, Tensor):
            values, gradient = parameters.values, parameters.gradient
            penalised = parameters.penalised(values.new_ones(l1.shape)) > 0
            self.projections = [Projection(values, gradient, self.l1, positive, penalised)]
        self._n_rows: dict[tuple[int, ...], Tensor] = {}

    def _per_parameter(self, weight: FloatArray) -> float | Tensor:
        """The penalty weight of each parameter, or 0.0 if no model has this penalty."""
        if not weight.any():
            return 0.0
        device = self.parameters.values.device
        return self.parameters.penalised(torch.from_numpy(weight).to(device))

    def gradient_(self, batch: StackedBatch) -> None:
        """Write outputs into the batch, and the objective's gradient into `parameters.gradient`."""
        self.gradients.gradient_(batch, self.loss)
        if isinstance(self.l2, Tensor):
            self.parameters.gradient.addcmul_(self.parameters.values, self.l2)
        for projection in self.projections:
            projection.pseudo_()

    def outputs_(self, batch: StackedBatch) -> None:
        """Write outputs into the batch, without dropout."""
        self.gradients.outputs_(batch)

    def add_loss(self, mean: MeanLoss, block: StackedBlock) -> None:
        """Add the loss of a block, as it was before each update."""
        if not self.gradients.keeps_losses:
            mean.add(block)
            return
        for batch, values in zip(block.batches, self.gradients.batch_losses, strict=True):
            mean.add_sum(values * batch.n_rows, _counts(batch))
        self.gradients.batch_losses.clear()

    def add_losses(self, mean: MeanLoss, batches: StackedBatches) -> None:
        """Add the losses of all rows at the current parameters."""
        if not self.gradients.keeps_losses:
            super().add_losses(mean, batches)
            return
        for block in batches.blocks():
            for batch in block.batches:
                self.outputs_(batch)
                mean.add_sum(self.gradients.losses(batch) * batch.n_rows, _counts(batch))

    def n_rows_of(self, batch: StackedBatch) -> float | Tensor:
        """Rows that weight the penalty before an update, per parameter if groups differ."""
        counts = tuple(batch.counts)
        if len(set(counts)) == 1:
            return counts[0]
        if counts not in self._n_rows:
            values = self.parameters.values
            own = torch.tensor(counts, dtype=torch.float64, device=values.device)
            per_model = own[:, None].expand(-1, self.parameters.n_each)
            self._n_rows[counts] = self.parameters.expand(per_model)
        return self._n_rows[counts]


def _counts(batch: StackedBatch) -> Array:
    """Rows of each group in a batch, of shape (n_groups, 1)."""
    return np.array(batch.counts)[:, None]
