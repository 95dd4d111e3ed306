"""Activations, with their derivatives written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _aten(name: str, overload: str) -> Any:
    """A torch kernel, or None if this version of torch does not have it."""
    return getattr(getattr(torch.ops.aten, name, None), overload, None)


@dataclass(frozen=True)
class Activation:
    """The module of an activation, and how to apply it and its derivative without autograd.

    `apply_(z, out)` writes the activation of `z` into `out`, which is `z` itself unless
    `needs_input` is set; `backward_(d, saved)` multiplies `d` by the derivative, given the result
    or, with `needs_input`, the input. Both are None for the identity and for activations that use
    autograd; the `kernels` that they need are not part of torch's public API.
    """

    make: Callable[[], nn.Module]
    apply_: Callable[[Tensor, Tensor], object] | None = None
    backward_: Callable[[Tensor, Tensor], object] | None = None
    needs_input: bool = False
    kernels: tuple[Any, ...] = ()

    @property
    def by_hand(self) -> bool:
        """Whether both are written out, and this version of torch has the kernels they need."""
        written = self.make is nn.Identity or self.apply_ is not None
        return written and None not in self.kernels


_threshold = _aten("threshold_backward", "grad_input")
_tanh = _aten("tanh_backward", "grad_input")
_sigmoid = _aten("sigmoid_backward", "grad_input")
_gelu, _gelu_backward = _aten("gelu", "out"), _aten("gelu_backward", "grad_input")
_silu, _silu_backward = _aten("silu", "out"), _aten("silu_backward", "grad_input")
_leaky_relu = _aten("leaky_relu_backward", "grad_input")
_elu = _aten("elu_backward", "grad_input")

ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(
        nn.ReLU,
        lambda z, out: z.relu_(),
        lambda d, a: _threshold(d, a, 0, grad_input=d),
        kernels=(_threshold,),
    ),
    "tanh": Activation(
        nn.Tanh,
        lambda z, out: z.tanh_(),
        lambda d, a: _tanh(d, a, grad_input=d),
        kernels=(_tanh,),
    ),
    "logistic": Activation(
        nn.Sigmoid,
        lambda z, out: z.sigmoid_(),
        lambda d, a: _sigmoid(d, a, grad_input=d),
        kernels=(_sigmoid,),
    ),
    "identity": Activation(nn.Identity),
    "gelu": Activation(
        nn.GELU,
        lambda z, out: _gelu(z, out=out),
        lambda d, z: _gelu_backward(d, z, grad_input=d),
        needs_input=True,
        kernels=(_gelu, _gelu_backward),
    ),
    "silu": Activation(
        nn.SiLU,
        lambda z, out: _silu(z, out=out),
        lambda d, z: _silu_backward(d, z, grad_input=d),
        needs_input=True,
        kernels=(_silu, _silu_backward),
    ),
    "leaky_relu": Activation(
        nn.LeakyReLU,
        lambda z, out: F.leaky_relu(z, inplace=True),
        lambda d, a: _leaky_relu(d, a, 0.01, True, grad_input=d),
        kernels=(_leaky_relu,),
    ),
    "elu": Activation(
        nn.ELU,
        lambda z, out: F.elu(z, inplace=True),
        lambda d, a: _elu(d, 1.0, 1.0, 1.0, True, a, grad_input=d),
        kernels=(_elu,),
    ),
}
