"""A module between the scaling of its input and that of its output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from .._data.scaling import Scaling
from .._objective.losses import inverse_link
from .._runtime.aliases import Array, Layers


class Standardize(nn.Module):
    """Features minus their offset, times a factor; off in training, where rows are pre-scaled."""

    offset: Tensor
    factor: Tensor
    scale: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.enabled = False
        self.register_buffer("offset", torch.zeros(n_features))
        self.register_buffer("factor", torch.ones(n_features))
        # the reciprocal of the factor, not needed by a fitted module
        self.register_buffer("scale", torch.ones(n_features), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.offset) * self.factor if self.enabled else x


class Rescale(nn.Module):
    """Outputs of the last layer as predictions in the user's units; off in training."""

    offset: Tensor
    scale: Tensor

    def __init__(self, n_targets: int, log_link: bool) -> None:
        super().__init__()
        self.enabled, self.log_link = False, log_link
        self.register_buffer("offset", torch.zeros(n_targets))
        self.register_buffer("scale", torch.ones(n_targets))

    def forward(self, output: Tensor) -> Tensor:
        return self.to_predictions(output) if self.enabled else output

    def to_predictions(self, output: Tensor) -> Tensor:
        """Outputs as predictions, also in training."""
        out = torch.addcmul(self.offset, output, self.scale)
        predictions: Tensor = inverse_link(out, self.log_link)
        return predictions


class ScaledModule(nn.Module):
    """Base of the modules that are trained: input scaling, layers, output scaling.

    In training, rows are already standardised and outputs stay in training units (`scale_input`
    and `scale_output` are False); a fitted module has both set and takes raw features.
    """

    standardize: Standardize
    rescale: Rescale
    # whether its gradients are written out
    by_hand = False
    # the user's own module inside, if any
    user_module: nn.Module | None = None

    @property
    def weights(self) -> list[nn.Parameter]:
        """The trainable parameters that are penalised."""
        raise NotImplementedError

    @property
    def others(self) -> list[nn.Parameter]:
        """The trainable parameters that are not penalised."""
        raise NotImplementedError

    @property
    def frozen(self) -> list[nn.Parameter]:
        """The parameters that are not trained."""
        return []

    def kept_buffers(self) -> Mapping[str, Tensor]:
        """The buffers that training changes, by name."""
        return {}

    def blamed(self) -> AbstractContextManager[None] | None:
        """A context in which errors say that they came from the user's module, if there is one."""
        return None

    def outputs(self, x: Tensor) -> Tensor:
        """The outputs of the module, for dense and for sparse rows."""
        raise NotImplementedError

    def layers_of(self, arrays: list[Array]) -> Layers:
        """Weights and intercepts layer by layer, from the arrays of `weights` and `others`."""
        return []

    # -- units ----------------------------------------------------------------------------------

    @property
    def scale_input(self) -> bool:
        """Whether features are in the user's units."""
        return self.standardize.enabled

    @scale_input.setter
    def scale_input(self, on: bool) -> None:
        self.standardize.enabled = on

    @property
    def scale_output(self) -> bool:
        """Whether outputs are returned as predictions in the user's units."""
        return self.rescale.enabled

    @scale_output.setter
    def scale_output(self, on: bool) -> None:
        self.rescale.enabled = on

    @contextmanager
    def raw(self) -> Iterator[None]:
        """Take raw features and return predictions inside this context."""
        before = self.scale_input, self.scale_output
        self.scale_input = self.scale_output = True
        try:
            yield
        finally:
            self.scale_input, self.scale_output = before

    def as_input(self, x: Tensor) -> Tensor:
        """Rows in the dtype and on the device of the module."""
        return x.to(device=self.x_offset.device, dtype=self.x_offset.dtype)

    @property
    def x_offset(self) -> Tensor:
        """Offset subtracted from features."""
        return self.standardize.offset

    @property
    def x_factor(self) -> Tensor:
        """Factor that the shifted features are multiplied by."""
        return self.standardize.factor

    def to_user_units(self, y: Tensor) -> Tensor:
        """Targets, converted from training units to the user's units."""
        offset, scale = self.rescale.offset, self.rescale.scale
        if self.rescale.log_link:
            return y * inverse_link(offset, self.rescale.log_link)
        return torch.addcmul(offset, y, scale)

    def to_predictions(self, output: Tensor) -> Tensor:
        """Outputs of the last layer as predictions in the user's units."""
        return self.rescale.to_predictions(output)

    def to_user_rows(self, x: Tensor) -> Tensor:
        """Features, converted from training units; sparse ones were never scaled."""
        sparse = x.layout != torch.strided
        return x if sparse else torch.addcmul(self.x_offset, x, self.standardize.scale)

    @torch.no_grad()
    def set_scaling_(self, scaling: Scaling) -> None:
        """Set the scaling; `scale_input` and `scale_output` control when it is used."""
        for buffer, values in (
            (self.standardize.offset, scaling.x_offset),
            (self.standardize.factor, scaling.x_factor),
            (self.standardize.scale, scaling.x_scale),
            (self.rescale.offset, scaling.y_offset),
            (self.rescale.scale, scaling.y_scale),
        ):
            buffer.copy_(torch.from_numpy(np.array(values)))

    def finish_(self) -> None:
        """Take raw features and return predictions from here on."""
        self.scale_input = self.scale_output = True
        self.eval()
