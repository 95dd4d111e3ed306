"""Many models of one shape: their parameters as one vector, their gradients as batched products.

A lane is one model. Lanes come in `n_groups` groups of `n_each`: those of a group see the same rows
in the same order, so that the first layers of all of them are one product.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._modules.activations import ACTIVATIONS
from .._modules.dropout import DropoutMasks
from .._objective.losses import Loss
from .._runtime.aliases import Layers, Mask
from .stacked_batches import PackedBatch

# where lanes are kept: group and place in it, both integer arrays
Index = tuple[Tensor, Tensor]


class LaneParameters:
    """Parameters of ``n_groups * n_each`` models as one vector, layer by layer.

    The intercepts of the first layer are the last column of its weights, whose rows all have one
    more number for it.

    Parameters
    ----------
    sizes : sequence of int
        Units of each layer, the features first and the targets last.
    bias : bool
        Whether the layers have intercepts.
    n_groups, n_each : int
        Number of lanes.
    dtype, device
        Of the parameters.

    Attributes
    ----------
    values, gradient : torch.Tensor of shape (n_lanes * n_parameters,)
        Parameters and gradient.
    views, gradients : list of torch.Tensor
        Both in the shapes ``(n_groups, n_each, n_out, n_in)`` of weights and ``(n_groups, n_each,
        n_out)`` of intercepts: the first weights, then weight and intercept of each other layer.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        bias: bool,
        n_groups: int,
        n_each: int,
        dtype: torch.dtype,
        device: Any,
    ) -> None:
        self.sizes, self.bias = tuple(sizes), bias
        self.n_groups, self.n_each = n_groups, n_each
        self._shapes: list[tuple[int, ...]] = []
        for i, (n_in, n_out) in enumerate(pairwise(self.sizes)):
            self._shapes.append((n_out, n_in + (bias and i == 0)))
            if bias and i:
                self._shapes.append((n_out,))
        self.values = torch.zeros(n_groups * n_each * self.n_parameters, dtype=dtype, device=device)
        self.gradient = torch.zeros_like(self.values)
        self.views, self.gradients = self.split(self.values), self.split(self.gradient)

    @property
    def n_parameters(self) -> int:
        """Number of parameters of one lane."""
        return sum(int(np.prod(shape)) for shape in self._shapes)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views, in the shapes of `views`, of a vector as long as `values`."""
        lanes = (self.n_groups, self.n_each)
        sizes = [lanes[0] * lanes[1] * int(np.prod(shape)) for shape in self._shapes]
        parts = flat.split_with_sizes(sizes)
        return [part.view(*lanes, *shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def expand(self, per_lane: Tensor) -> Tensor:
        """A number per lane, of shape (n_groups, n_each), as a vector as long as `values`."""
        out = torch.empty_like(self.values)
        for view in self.split(out):
            view.copy_(per_lane.view(*per_lane.shape, *[1] * (view.ndim - 2)))
        return out

    def penalised(self, per_lane: Tensor) -> Tensor:
        """As `expand`, and 0 at the intercepts."""
        out = self.expand(per_lane)
        for i, view in enumerate(self.split(out)):
            if view.ndim == 3:
                view.zero_()
            elif i == 0 and self.bias:
                view[..., -1] = 0.0
        return out

    def per_lane(self, flat: Tensor) -> Tensor:
        """Sums over the numbers of each lane, of shape (n_groups, n_each)."""
        parts = [view.flatten(2).sum(-1) for view in self.split(flat)]
        return torch.stack(parts).sum(0)

    def like(self, n_groups: int, n_each: int) -> LaneParameters:
        """Room for other numbers of lanes."""
        values = self.values
        return LaneParameters(self.sizes, self.bias, n_groups, n_each, values.dtype, values.device)

    def take(self, flat: Tensor, lanes: Index, into: LaneParameters) -> Tensor:
        """The numbers of some lanes of `flat`, laid out as those of `into`."""
        group, place = lanes
        return torch.cat([view[group, place].reshape(-1) for view in self.split(flat)]).view_as(
            into.values
        )

    def set_layers(self, lanes: Index, layers: Layers) -> None:
        """Set the parameters of some lanes, all to the same."""
        (weight, bias), *others = layers
        first = weight if bias is None else np.concatenate([weight, bias[:, None]], axis=1)
        arrays = [first]
        for weight, bias in others:
            arrays += [weight] if bias is None else [weight, bias]
        for view, array in zip(self.views, arrays, strict=True):
            view[lanes] = torch.from_numpy(np.array(array)).to(view)

    def layers(self, group: int, place: int) -> Layers:
        """Weights and intercepts of one lane."""
        arrays = [view[group, place].cpu().numpy() for view in self.views]
        if not self.bias:
            return [(weight, None) for weight in arrays]
        first, *others = arrays
        pairs = zip(others[::2], others[1::2], strict=True)
        return [(first[:, :-1].copy(), first[:, -1].copy()), *pairs]

    def finite(self) -> Mask:
        """Which lanes have finite parameters only, of shape (n_groups, n_each)."""
        parts = [torch.isfinite(view.flatten(2)).all(-1) for view in self.views]
        out: Mask = torch.stack(parts).all(0).cpu().numpy()
        return out


class _Hidden(NamedTuple):
    """Work space of a hidden layer, of shape (n_lanes, n_units, n_rows) if not said otherwise."""

    z: Tensor  # before the activation, and in its place after it where that is enough
    a: Tensor  # after the activation
    h: Tensor  # after dropout
    d: Tensor  # derivative of the loss with respect to z
    first_z: Tensor  # n_groups, n_each * n_units, n_rows
    first_d: Tensor
    weight_T: Tensor  # of the layer above: n_lanes, n_units, n_above
    a_T: Tensor


class _Space(NamedTuple):
    """Work space for batches of one size."""

    hidden: list[_Hidden]
    d: Tensor  # n_groups, n_each, n_targets, n_rows
    d_lanes: Tensor  # n_lanes, n_targets, n_rows
    d_groups: Tensor  # n_groups, n_each * n_targets, n_rows


class BatchedBackprop:
    """Outputs and gradients of all lanes on dense rows, written out.

    Parameters
    ----------
    lanes : LaneParameters
        What is trained.
    activation : str
        A key of `ACTIVATIONS`.
    masks : DropoutMasks, optional
        Of hidden units, in training.
    """

    def __init__(
        self, lanes: LaneParameters, activation: str, masks: DropoutMasks | None = None
    ) -> None:
        self.lanes, self.masks = lanes, masks
        self.activation = ACTIVATIONS[activation]
        n_groups, n = lanes.n_groups, lanes.n_groups * lanes.n_each

        def by_lane(views: list[Tensor]) -> list[tuple[Tensor, Tensor | None]]:
            flat = [view.view(n, *view.shape[2:]) for view in views]
            if not lanes.bias:
                return [(weight, None) for weight in flat]
            pairs = zip(flat[1::2], flat[2::2], strict=True)
            return [(flat[0], None), *pairs]

        def by_group(view: Tensor) -> Tensor:
            return view.view(n_groups, -1, view.shape[-1])

        self.layers, self.slopes = by_lane(lanes.views), by_lane(lanes.gradients)
        self.first, self.first_slope = by_group(lanes.views[0]), by_group(lanes.gradients[0])
        self._spaces: dict[int, _Space] = {}
        # of the batch that outputs were worked out for last, layer by layer
        self._drawn: list[Tensor] = []

    def _space(self, n_rows: int) -> _Space:
        lanes, sizes = self.lanes, self.lanes.sizes
        n, like = lanes.n_groups * lanes.n_each, lanes.values
        hidden = []
        for i, units in enumerate(sizes[1:-1]):
            z, d = (like.new_empty(n, units, n_rows) for _ in range(2))
            a = torch.empty_like(z) if self.activation.needs_input else z
            h = torch.empty_like(z) if self.masks is not None else a
            grouped = (lanes.n_groups, lanes.n_each * units, n_rows)
            weight_T = self.layers[i + 1][0].transpose(1, 2)
            hidden.append(
                _Hidden(z, a, h, d, z.view(grouped), d.view(grouped), weight_T, h.transpose(1, 2))
            )
        d = like.new_empty(lanes.n_groups, lanes.n_each, sizes[-1], n_rows)
        space = _Space(hidden, d, d.view(n, sizes[-1], n_rows), d.flatten(1, 2))
        self._spaces[n_rows] = space
        return space

    def outputs_(self, batch: PackedBatch, training: bool = False) -> _Space:
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

    def gradient_(self, batch: PackedBatch, loss: Loss) -> None:
        """Write outputs into `batch.out`, the gradient of the loss into the lanes' gradient."""
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
