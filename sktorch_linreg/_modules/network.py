"""The modules that are trained: layers between input and output scaling."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from .._data.scaling import Scaling
from .._runtime.aliases import Array, Layers
from .activations import ACTIVATIONS
from .dropout import Dropout, Masks
from .scaled import Rescale, ScaledModule, Standardize


class MLPModule(ScaledModule, nn.Sequential):
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
    Sparse rows go through `outputs`: they are never centred, and the first layer absorbs the shift
    into its intercept.
    """

    layers: nn.Sequential

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
        self.activation, self.dropout = activation, masks

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

    # -- parameters -----------------------------------------------------------------------------

    @property
    def linears(self) -> list[nn.Linear]:
        """The linear layers."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    @property
    def weights(self) -> list[nn.Parameter]:
        """The weight matrix of each layer."""
        return [cast(nn.Parameter, layer.weight) for layer in self.linears]

    @property
    def others(self) -> list[nn.Parameter]:
        """The intercepts of each layer."""
        return [layer.bias for layer in self.linears if layer.bias is not None]

    @property
    def by_hand(self) -> bool:  # type: ignore[override]
        """Whether the derivative of the activation is written out."""
        return ACTIVATIONS[self.activation].by_hand

    def layers_of(self, arrays: list[Array]) -> Layers:
        """Weights and intercepts layer by layer, from the arrays of `weights` and `others`."""
        n = len(self.linears)
        biases: list[Array | None] = [*arrays[n:]] or [None] * n
        return list(zip(arrays[:n], biases, strict=True))

    def finish_(self) -> None:
        """Take raw features and return predictions from here on."""
        self.dropout.groups = None
        super().finish_()

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
