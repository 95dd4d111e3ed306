"""Initial weights: those that a seed draws, zeros, or layers that are there already."""

from __future__ import annotations

import math

import torch

from .._runtime.aliases import Layers
from .network import MLPModule


@torch.no_grad()
def start_weights_(
    module: MLPModule,
    generator: torch.Generator,
    layers: Layers | None = None,
    *,
    zero: bool = False,
    positive: bool = False,
) -> None:
    """Set the weights that training starts from: `layers`, zeros, or what the generator draws.

    The generator then is where the constructor of the layers would have left it. Under `positive`
    negative weights become 0.
    """
    if layers is not None:
        module.load_(layers)
    elif zero:
        for parameter in module.parameters():
            parameter.zero_()
    else:
        draw_weights_(module, generator)
    if positive:
        for weight in module.weights:
            weight.clamp_(min=0.0)


@torch.no_grad()
def draw_weights_(module: MLPModule, generator: torch.Generator) -> None:
    """Draw what `nn.Linear` would: weight, then bias, uniform within 1 / sqrt(fan_in).

    Numbers are drawn in float32 on the CPU, so that they are the same for any dtype and device.
    """
    for layer in module.linears:
        bound = 1.0 / math.sqrt(layer.in_features)
        for parameter in layer.parameters():
            drawn = torch.empty(parameter.shape, dtype=torch.float32)
            parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))
