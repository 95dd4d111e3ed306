"""Initial weights: drawn from a seed, zeros, or existing layers."""

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
    """Set the initial weights: `layers`, zeros, or random weights drawn from the generator.

    Drawing leaves the generator in the state in which constructing the layers would have left it.
    With `positive`, negative weights become 0.
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
    """Draw weights as `nn.Linear` does: weight, then bias, uniform within 1 / sqrt(fan_in).

    Numbers are drawn in float32 on the CPU, so that they are the same for any dtype and device.
    """
    for layer in module.linears:
        bound = 1.0 / math.sqrt(layer.in_features)
        for parameter in layer.parameters():
            drawn = torch.empty(parameter.shape, dtype=torch.float32)
            parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))
