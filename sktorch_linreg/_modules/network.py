"""The modules that are trained: layers between input and output scaling."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from .._data.scaling import Scaling
from .._objective.losses import inverse_link
from .._runtime.aliases import Layers
from .activations import ACTIVATIONS
from .dropout import Dropout, Masks


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


class MLPModule(nn.Sequential):
    """Standardize, fully connected layers with their activations, and rescale, in sequence.

    Parameters
    ----------
    sizes : sequence of int
        Number of units of each layer, the features first and the targets last.
    activation : str
        A key of `ACTIVATIONS`; each hidden layer is followed by its own activation module.
    dropout : float
        Dropout probability of hidden units in training.
    bias : bool
        Whether the layers have intercepts.
    log_link : bool
        Whether predictions are the exponential of the last layer's output.

    Notes
    -----
    In training, dense rows are already standardised and outputs stay in training units
    (`scale_input` and `scale_output` are False); a fitted module has both set and takes raw
    features. Sparse rows go through `outputs`: they are never centred, and the first layer absorbs
    the shift into its intercept.
    """

    standardize: Standardize
    layers: nn.Sequential
    rescale: Rescale

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str = "relu",
        dropout: float = 0.0,
        *,
        bias: bool = True,
        log_link: bool = False,
    ) -> None:
        masks, layers = Masks(dropout), nn.Sequential()
        for n_in, n_out in itertools.pairwise(sizes):
            if len(layers):
                layers.append(ACTIVATIONS[activation].make())
                if dropout:
                    layers.append(Dropout(masks))
            linear = nn.utils.skip_init(nn.Linear, n_in, n_out, bias=bias)  # type: ignore[no-untyped-call]
            layers.append(linear)
        parts: dict[str, nn.Module] = {
            "standardize": Standardize(sizes[0]),
            "layers": layers,
            "rescale": Rescale(sizes[-1], log_link),
        }
        super().__init__(OrderedDict(parts))
        self.activation, self.log_link, self.dropout = activation, log_link, masks

    def outputs(self, x: Tensor) -> Tensor:
        """The outputs of the module, for dense and for sparse rows."""
        if x.layout == torch.strided:
            out: Tensor = self(x)
            return out
        return self.rescale(self.layers[1:](self.first(x)))  # type: ignore[no-any-return]

    def first(self, x: Tensor) -> Tensor:
        """Outputs of the first layer, before its activation, for dense and for sparse rows."""
        layer = self.linears[0]
        if x.layout == torch.strided:
            dense: Tensor = layer(self.standardize(x))
            return dense
        weight = layer.weight * self.x_factor if self.scale_input else layer.weight
        h: Tensor = torch.sparse.mm(x, weight.T)
        if layer.bias is not None:
            h = h + layer.bias
        return h - weight @ self.x_offset if self.scale_input else h

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
        if self.log_link:
            return y * inverse_link(offset, self.log_link)
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
        self.dropout.groups = None
        self.eval()

    # -- parameters -----------------------------------------------------------------------------

    @property
    def linears(self) -> list[nn.Linear]:
        """The linear layers."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    @property
    def weights(self) -> list[Tensor]:
        """The penalised parameters: the weight matrix of each layer."""
        return [layer.weight for layer in self.linears]

    @torch.no_grad()
    def load_(self, layers: Layers) -> None:
        """Set weights and intercepts from arrays."""
        for layer, (weight, bias) in zip(self.linears, layers, strict=True):
            layer.weight.copy_(torch.from_numpy(np.array(weight)))
            if bias is not None:
                layer.bias.copy_(torch.from_numpy(np.array(bias)))


class LinearModule(MLPModule):
    """One layer: `x @ weight.T + bias`."""

    def __init__(
        self, n_features: int, n_targets: int, *, bias: bool = True, log_link: bool = False
    ) -> None:
        super().__init__((n_features, n_targets), "identity", bias=bias, log_link=log_link)


def make_module(
    sizes: Sequence[int],
    activation: str,
    dropout: float,
    *,
    bias: bool,
    log_link: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> MLPModule:
    """An uninitialised module on its device; linear if there is no hidden layer."""
    module: MLPModule
    if len(sizes) == 2:
        module = LinearModule(sizes[0], sizes[1], bias=bias, log_link=log_link)
    else:
        module = MLPModule(sizes, activation, dropout, bias=bias, log_link=log_link)
    return module.to(device=device, dtype=dtype)


def build_module(
    layers: Layers,
    scaling: Scaling,
    *,
    activation: str = "identity",
    log_link: bool = False,
    dtype: torch.dtype,
    device: torch.device,
) -> MLPModule:
    """A fitted module that takes raw features, from layers in training units."""
    sizes = [layers[0][0].shape[1], *(w.shape[0] for w, _ in layers)]
    bias = layers[0][1] is not None
    module = make_module(
        sizes, activation, 0.0, bias=bias, log_link=log_link, dtype=dtype, device=device
    )
    module.load_(layers)
    module.set_scaling_(scaling)
    module.finish_()
    return module
