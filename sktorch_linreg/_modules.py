"""The modules that are trained, their activations, and initialisation from a generator."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._types import Layers, Scaling


def _aten(name: str, overload: str) -> Any:
    """One of torch's kernels, or None where this torch does not have it under that name."""
    return getattr(getattr(torch.ops.aten, name, None), overload, None)


@dataclass(frozen=True)
class Activation:
    """An activation, and how to apply it and its derivative without autograd.

    `apply_(z, out)` writes the activation of `z` into `out`, which is `z` itself unless
    `needs_input` is set; `backward_(d, saved)` multiplies `d` by the derivative, given the result
    or, with `needs_input`, the input. Both need the `kernels`, which are not a public part of
    torch; `apply_` is None where there is nothing to do.
    """

    function: Callable[[Tensor], Tensor]
    apply_: Callable[[Tensor, Tensor], object] | None = None
    backward_: Callable[[Tensor, Tensor], object] | None = None
    needs_input: bool = False
    kernels: tuple[Any, ...] = ()

    @property
    def by_hand(self) -> bool:
        """Whether this torch has what it takes to do without autograd."""
        return None not in self.kernels


_threshold = _aten("threshold_backward", "grad_input")
_tanh = _aten("tanh_backward", "grad_input")
_sigmoid = _aten("sigmoid_backward", "grad_input")
_gelu, _gelu_backward = _aten("gelu", "out"), _aten("gelu_backward", "grad_input")
_silu, _silu_backward = _aten("silu", "out"), _aten("silu_backward", "grad_input")
_leaky_relu = _aten("leaky_relu_backward", "grad_input")
_elu = _aten("elu_backward", "grad_input")

ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(
        F.relu,
        lambda z, out: z.relu_(),
        lambda d, a: _threshold(d, a, 0, grad_input=d),
        kernels=(_threshold,),
    ),
    "tanh": Activation(
        torch.tanh,
        lambda z, out: z.tanh_(),
        lambda d, a: _tanh(d, a, grad_input=d),
        kernels=(_tanh,),
    ),
    "logistic": Activation(
        torch.sigmoid,
        lambda z, out: z.sigmoid_(),
        lambda d, a: _sigmoid(d, a, grad_input=d),
        kernels=(_sigmoid,),
    ),
    "identity": Activation(lambda x: x),
    "gelu": Activation(
        F.gelu,
        lambda z, out: _gelu(z, out=out),
        lambda d, z: _gelu_backward(d, z, grad_input=d),
        needs_input=True,
        kernels=(_gelu, _gelu_backward),
    ),
    "silu": Activation(
        F.silu,
        lambda z, out: _silu(z, out=out),
        lambda d, z: _silu_backward(d, z, grad_input=d),
        needs_input=True,
        kernels=(_silu, _silu_backward),
    ),
    "leaky_relu": Activation(
        F.leaky_relu,
        lambda z, out: F.leaky_relu(z, inplace=True),
        lambda d, a: _leaky_relu(d, a, 0.01, True, grad_input=d),
        kernels=(_leaky_relu,),
    ),
    "elu": Activation(
        F.elu,
        lambda z, out: F.elu(z, inplace=True),
        lambda d, a: _elu(d, 1.0, 1.0, 1.0, True, a, grad_input=d),
        kernels=(_elu,),
    ),
}


class Dropout(nn.Module):
    """Inverted dropout that draws its mask from a generator of its own."""

    def __init__(self, p: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.p = p
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        # unit by unit, in the order of the written-out gradients
        keep = x.new_empty(x.shape[::-1]).bernoulli_(1.0 - self.p, generator=self.generator)
        return x * keep.div_(1.0 - self.p).permute(*reversed(range(x.ndim)))


class MLPModule(nn.Module):
    """Fully connected layers with the scaling between the user's units and the trained space.

    Parameters
    ----------
    sizes : sequence of int
        Number of units of each layer, the features first and the targets last.
    activation : str
        A key of `ACTIVATIONS`, applied after each hidden layer.
    dropout : float
        Share of hidden units that are left out in training.
    bias : bool
        Whether the layers have intercepts.
    log_link : bool
        Whether predictions are the exponential of the last layer's output.

    Notes
    -----
    In training, dense rows come in standardised already and outputs stay in that space
    (`scale_input` and `scale_output` are False); a fitted module has both set and takes raw
    features. Sparse rows are never centred: the first layer takes the shift into its intercept.
    """

    x_offset: Tensor
    x_factor: Tensor
    x_scale: Tensor
    y_offset: Tensor
    y_scale: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str = "relu",
        dropout: float = 0.0,
        *,
        bias: bool = True,
        log_link: bool = False,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.log_link = log_link
        self.layers = nn.ModuleList(
            nn.utils.skip_init(nn.Linear, n_in, n_out, bias=bias)  # type: ignore[no-untyped-call]
            for n_in, n_out in itertools.pairwise(sizes)
        )
        self.dropout = Dropout(dropout)
        self.scale_input = self.scale_output = False
        for name, size, value in (
            ("x_offset", sizes[0], 0.0),
            ("x_factor", sizes[0], 1.0),
            ("y_offset", sizes[-1], 0.0),
            ("y_scale", sizes[-1], 1.0),
        ):
            self.register_buffer(name, torch.full((size,), value, dtype=torch.float32))
        # the reciprocal of x_factor, of no use to a fitted module
        self.register_buffer("x_scale", torch.ones(sizes[0]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of shape (n_samples, n_targets) for rows of shape (n_samples, n_features)."""
        act = ACTIVATIONS[self.activation].function
        h: Tensor = self._first(x)
        for layer in self.linears[1:]:
            h = layer(self.dropout(act(h)))
        return self.to_predictions(h) if self.scale_output else h

    def to_user_units(self, y: Tensor) -> Tensor:
        """Targets out of the trained space."""
        if self.log_link:
            return y * self.y_offset.exp()
        return torch.addcmul(self.y_offset, y, self.y_scale)

    def to_predictions(self, output: Tensor) -> Tensor:
        """Outputs of the last layer as predictions in the user's units."""
        out = torch.addcmul(self.y_offset, output, self.y_scale)
        return out.exp() if self.log_link else out

    def to_user_rows(self, x: Tensor) -> Tensor:
        """Features out of the trained space; sparse ones were never scaled."""
        return x if x.layout != torch.strided else torch.addcmul(self.x_offset, x, self.x_scale)

    @contextmanager
    def raw(self) -> Iterator[None]:
        """Take raw features and give predictions inside this context."""
        before = self.scale_input, self.scale_output
        self.scale_input = self.scale_output = True
        try:
            yield
        finally:
            self.scale_input, self.scale_output = before

    def _first(self, x: Tensor) -> Tensor:
        layer = self.linears[0]
        if x.layout != torch.strided:
            weight = layer.weight * self.x_factor if self.scale_input else layer.weight
            h: Tensor = torch.sparse.mm(x, weight.T)
            shift = -(weight @ self.x_offset) if self.scale_input else None
            if layer.bias is not None:
                h = h + layer.bias
            return h if shift is None else h + shift
        if self.scale_input:
            x = (x - self.x_offset) * self.x_factor
        out: Tensor = layer(x)
        return out

    @property
    def linears(self) -> list[nn.Linear]:
        """The layers, typed."""
        return list(self.layers)  # type: ignore[arg-type]

    @property
    def weights(self) -> list[Tensor]:
        """The penalised parameters: the weight matrix of each layer."""
        return [layer.weight for layer in self.linears]

    @torch.no_grad()
    def initialize_(self, generator: torch.Generator) -> None:
        """Draw what `nn.Linear` would: weight, then bias, uniform within 1 / sqrt(fan_in).

        Numbers are drawn in float32 on the CPU, so that they are the same for any dtype and device.
        """
        for layer in self.linears:
            bound = 1.0 / math.sqrt(layer.in_features)
            for parameter in layer.parameters():
                drawn = torch.empty(parameter.shape, dtype=torch.float32)
                parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))

    @torch.no_grad()
    def load_(self, layers: Layers) -> None:
        """Set weights and intercepts from arrays."""
        for layer, (weight, bias) in zip(self.linears, layers, strict=True):
            layer.weight.copy_(torch.from_numpy(np.array(weight)))
            if bias is not None:
                layer.bias.copy_(torch.from_numpy(np.array(bias)))

    def set_scaling_(self, scaling: Scaling) -> None:
        """Fill in the scaling buffers; `scale_input` and `scale_output` say when they are used."""
        for name in ("x_offset", "x_factor", "x_scale", "y_offset", "y_scale"):
            buffer = getattr(self, name)
            buffer.copy_(torch.from_numpy(np.array(getattr(scaling, name))))


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
    """A module on its device, not yet initialised; linear where there is no hidden layer."""
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
    """A fitted module over raw features from layers in the trained space."""
    sizes = [layers[0][0].shape[1], *(w.shape[0] for w, _ in layers)]
    bias = layers[0][1] is not None
    module = make_module(
        sizes, activation, 0.0, bias=bias, log_link=log_link, dtype=dtype, device=device
    )
    module.load_(layers)
    module.set_scaling_(scaling)
    module.scale_input = module.scale_output = True
    return module.eval()
