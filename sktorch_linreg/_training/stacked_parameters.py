"""Parameters of many models of one shape as one vector."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from .._runtime.aliases import Layers, Mask

# position of models: group and place within the group, both integer tensors
Index = tuple[Tensor, Tensor]


class StackedParameters(ABC):
    """Parameters of ``n_groups * n_each`` models as one vector, parameter by parameter.

    Parameters
    ----------
    shapes : sequence of tuple of int
        Shapes of the parameters of one model.
    n_groups, n_each : int
        Number of groups, and of models per group.
    dtype, device
        Data type and device of the parameters.

    Attributes
    ----------
    values, gradient : torch.Tensor of shape (n_models * n_parameters,)
        Parameters and gradient.
    views, gradients : list of torch.Tensor
        Views of both, of shape ``(n_groups, n_each, *shape)``.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        n_groups: int,
        n_each: int,
        dtype: torch.dtype,
        device: Any,
    ) -> None:
        self.shapes = list(shapes)
        self.n_groups, self.n_each = n_groups, n_each
        self.values = torch.zeros(n_groups * n_each * self.n_parameters, dtype=dtype, device=device)
        self.gradient = torch.zeros_like(self.values)
        self.views, self.gradients = self.split(self.values), self.split(self.gradient)

    @property
    def n_parameters(self) -> int:
        """Number of parameters of one model."""
        return sum(math.prod(shape) for shape in self.shapes)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of a vector as long as `values`, in the shapes of `views`."""
        shape = (self.n_groups, self.n_each)
        sizes = [shape[0] * shape[1] * math.prod(own) for own in self.shapes]
        parts = flat.split_with_sizes(sizes)
        return [part.view(*shape, *own) for part, own in zip(parts, self.shapes, strict=True)]

    def expand(self, per_model: Tensor) -> Tensor:
        """Repeat a number per model, of shape (n_groups, n_each), for each of its parameters."""
        out = torch.empty_like(self.values)
        for view in self.split(out):
            view.copy_(per_model.view(*per_model.shape, *[1] * (view.ndim - 2)))
        return out

    @abstractmethod
    def penalised(self, per_model: Tensor) -> Tensor:
        """Like `expand`, but 0 where there is no penalty."""

    def per_model(self, flat: Tensor) -> Tensor:
        """Sums over the entries of each model, of shape (n_groups, n_each)."""
        parts = [view.flatten(2).sum(-1) for view in self.split(flat)]
        return torch.stack(parts).sum(0)

    @abstractmethod
    def like(self, n_groups: int, n_each: int) -> Self:
        """Parameters of zeros for a different number of models."""

    def finite(self) -> Mask:
        """Which models have only finite parameters, of shape (n_groups, n_each)."""
        parts = [torch.isfinite(view.flatten(2)).all(-1) for view in self.views]
        out: Mask = torch.stack(parts).all(0).cpu().numpy()
        return out

    # -- some of the models ---------------------------------------------------------------------

    def take(self, flat: Tensor, models: Index, into: StackedParameters) -> Tensor:
        """The entries of some models in `flat`, in the layout of `into`."""
        group, place = models
        return torch.cat([view[group, place].reshape(-1) for view in self.split(flat)]).view_as(
            into.values
        )

    def keep(self, kept: Any, which: Any = True) -> Any:
        """`kept` with the current parameters of some models, or a copy of all if None."""
        which = np.asarray(which)
        if kept is None or which.all():
            return self.values.clone() if kept is None else kept.copy_(self.values)
        mask = torch.from_numpy(which).to(self.values.device, torch.float64)
        return torch.where(self.expand(mask) > 0, self.values, kept)

    def take_kept(self, kept: Any, models: Index, into: StackedParameters) -> Any:
        """Some of the models in what `keep` returned, in the layout of `into`."""
        return self.take(kept, models, into)

    def reduced(self, models: Index) -> Self:
        """The parameters of some models; the index tensors have the new shape."""
        smaller = self.like(*models[0].shape)
        smaller.values.copy_(self.take(self.values, models, smaller))
        return smaller

    def adopt(self, models: Index, other: Self, kept: Any, of_other: Index) -> None:
        """Set some models to those of another stack, as in `kept` or, if None, as they are."""
        views = other.split(other.values if kept is None else kept)
        for mine, its in zip(self.views, views, strict=True):
            mine[models] = its[of_other]


class StackedLayers(StackedParameters):
    """Parameters of networks, layer by layer.

    The intercepts of the first layer are stored as an extra last column of its weights: `views` are
    of shape ``(n_groups, n_each, n_out, n_in)`` for weights and ``(n_groups, n_each, n_out)`` for
    intercepts, the weights of the first layer, then the weights and intercepts of each later layer.

    Parameters
    ----------
    sizes : sequence of int
        Units of each layer, the features first and the targets last.
    bias : bool
        Whether the layers have intercepts.
    n_groups, n_each : int
        Number of groups, and of models per group.
    dtype, device
        Data type and device of the parameters.
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
        shapes: list[tuple[int, ...]] = []
        for i, (n_in, n_out) in enumerate(pairwise(self.sizes)):
            shapes.append((n_out, n_in + (bias and i == 0)))
            if bias and i:
                shapes.append((n_out,))
        super().__init__(shapes, n_groups, n_each, dtype, device)

    def penalised(self, per_model: Tensor) -> Tensor:
        """Like `expand`, but 0 at the intercepts."""
        out = self.expand(per_model)
        for i, view in enumerate(self.split(out)):
            if view.ndim == 3:
                view.zero_()
            elif i == 0 and self.bias:
                view[..., -1] = 0.0
        return out

    def like(self, n_groups: int, n_each: int) -> Self:
        """Parameters of zeros for a different number of models."""
        values = self.values
        return type(self)(self.sizes, self.bias, n_groups, n_each, values.dtype, values.device)

    def set_layers(self, models: Index, layers: Layers) -> None:
        """Set the parameters of some models to the same layers."""
        (weight, bias), *others = layers
        first = weight if bias is None else np.concatenate([weight, bias[:, None]], axis=1)
        arrays = [first]
        for weight, bias in others:
            arrays += [weight] if bias is None else [weight, bias]
        for view, array in zip(self.views, arrays, strict=True):
            view[models] = torch.from_numpy(np.array(array)).to(view)

    def layers(self, group: int, place: int) -> Layers:
        """Weights and intercepts of one model."""
        arrays = [view[group, place].cpu().numpy() for view in self.views]
        if not self.bias:
            return [(weight, None) for weight in arrays]
        first, *others = arrays
        pairs = zip(others[::2], others[1::2], strict=True)
        return [(first[:, :-1].copy(), first[:, -1].copy()), *pairs]
