"""Outputs and gradients of many models of one shape, as batched matrix products.

Models come in `n_groups` groups of `n_each`. Models of a group see the same rows in the same
order, so that their first layers are a single product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._modules.activations import ACTIVATIONS
from .._modules.dropout import StackedMasks
from .._objective.losses import Loss
from .stacked_batches import StackedBatch
from .stacked_parameters import StackedLayers


class _Hidden(NamedTuple):
    """Workspace of a hidden layer, of shape (n_models, n_units, n_rows) unless noted."""

    z: Tensor  # before the activation; overwritten by `a` unless needed for the gradient
    a: Tensor  # after the activation
    h: Tensor  # after dropout
    d: Tensor  # derivative of the loss with respect to z
    first_z: Tensor  # n_groups, n_each * n_units, n_rows
    first_d: Tensor
    weight_T: Tensor  # of the layer above: n_models, n_units, n_above
    a_T: Tensor


class _Space(NamedTuple):
    """Workspace for one batch size."""

    hidden: list[_Hidden]
    d: Tensor  # n_groups, n_each, n_targets, n_rows
    d_lanes: Tensor  # n_models, n_targets, n_rows
    d_groups: Tensor  # n_groups, n_each * n_targets, n_rows


class StackedBackprop:
    """Outputs and gradients of all models on dense rows, written out.

    Parameters
    ----------
    parameters : StackedLayers
        The parameters to train.
    activation : str
        A key of `ACTIVATIONS`.
    masks : StackedMasks, optional
        Dropout masks of hidden units in training.
    """

    keeps_losses = False

    def __init__(
        self, parameters: StackedLayers, activation: str, masks: StackedMasks | None = None
    ) -> None:
        self.batch_losses: list[Tensor] = []
        self.parameters, self.masks = parameters, masks
        self.activation = ACTIVATIONS[activation]
        n_groups, n = parameters.n_groups, parameters.n_groups * parameters.n_each

        def by_model(views: list[Tensor]) -> list[tuple[Tensor, Tensor | None]]:
            flat = [view.view(n, *view.shape[2:]) for view in views]
            if not parameters.bias:
                return [(weight, None) for weight in flat]
            pairs = zip(flat[1::2], flat[2::2], strict=True)
            return [(flat[0], None), *pairs]

        def by_group(view: Tensor) -> Tensor:
            return view.view(n_groups, -1, view.shape[-1])

        self.layers, self.slopes = by_model(parameters.views), by_model(parameters.gradients)
        self.first, self.first_slope = (
            by_group(parameters.views[0]),
            by_group(parameters.gradients[0]),
        )
        self._spaces: dict[int, _Space] = {}
        # masks of the last batch, layer by layer
        self._drawn: list[Tensor] = []

    def _space(self, n_rows: int) -> _Space:
        parameters, sizes = self.parameters, self.parameters.sizes
        n, like = parameters.n_groups * parameters.n_each, parameters.values
        hidden = []
        for i, units in enumerate(sizes[1:-1]):
            z, d = (like.new_empty(n, units, n_rows) for _ in range(2))
            a = torch.empty_like(z) if self.activation.needs_input else z
            h = torch.empty_like(z) if self.masks is not None else a
            grouped = (parameters.n_groups, parameters.n_each * units, n_rows)
            weight_T = self.layers[i + 1][0].transpose(1, 2)
            hidden.append(
                _Hidden(z, a, h, d, z.view(grouped), d.view(grouped), weight_T, h.transpose(1, 2))
            )
        d = like.new_empty(parameters.n_groups, parameters.n_each, sizes[-1], n_rows)
        space = _Space(hidden, d, d.view(n, sizes[-1], n_rows), d.flatten(1, 2))
        self._spaces[n_rows] = space
        return space

    def outputs_(self, batch: StackedBatch, training: bool = False) -> _Space:
        """Write the outputs of the last layer into `batch.out`."""
        space = self._spaces.get(batch.n_rows) or self._space(batch.n_rows)
        if not space.hidden:
            torch.bmm(self.first, batch.x_T, out=batch.out_groups)
            return space
        apply_, self._drawn = self.activation.apply_, []
        for i, room in enumerate(space.hidden):
            if i == 0:
                torch.bmm(self.first, batch.x_T, out=room.first_z)
            else:
                self._affine(i, space.hidden[i - 1].h, room.z)
            if apply_ is not None:
                apply_(room.z, room.a)
            if self.masks is not None:
                if training:
                    self._drawn.append(self.masks.draw(i, room.a, batch.counts))
                    torch.mul(room.a, self._drawn[-1], out=room.h)
                else:
                    room.h.copy_(room.a)
        self._affine(len(space.hidden), space.hidden[-1].h, batch.out_lanes)
        return space

    def _affine(self, i: int, h: Tensor, out: Tensor) -> None:
        weight, bias = self.layers[i]
        torch.bmm(weight, h, out=out)
        if bias is not None:
            out.add_(bias[:, :, None])

    def losses(self, batch: StackedBatch) -> Tensor:
        """Not needed: losses of the package are computed for all models at once."""
        raise NotImplementedError

    def gradient_(self, batch: StackedBatch, loss: Loss) -> None:
        """Write outputs into `batch.out`, and the loss's gradient into `parameters.gradient`."""
        space = self.outputs_(batch, training=True)
        assert loss.slope is not None
        loss.slope(batch.out, batch.y, space.d)
        space.d.mul_(batch.factor)
        if not space.hidden:
            torch.bmm(space.d_groups, batch.x, out=self.first_slope)
            return
        backward_, saves_input = self.activation.backward_, self.activation.needs_input
        d = space.d_lanes
        for i in range(len(space.hidden), 0, -1):
            room = space.hidden[i - 1]
            weight_slope, bias_slope = self.slopes[i]
            torch.bmm(d, room.a_T, out=weight_slope)
            if bias_slope is not None:
                torch.sum(d, -1, out=bias_slope)
            if d.shape[1] == 1:
                torch.mul(room.weight_T, d, out=room.d)
            else:
                torch.bmm(room.weight_T, d, out=room.d)
            d = room.d
            if self.masks is not None:
                d.mul_(self._drawn[i - 1])
            if backward_ is not None:
                backward_(d, room.z if saves_input else room.a)
        torch.bmm(space.hidden[0].first_d, batch.x, out=self.first_slope)
