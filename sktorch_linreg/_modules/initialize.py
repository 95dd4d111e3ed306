"""Initial weights: those that a seed draws, zeros, and what a constraint makes of them."""

from __future__ import annotations

import math

import torch

from .network import MLPModule


@torch.no_grad()
def draw_weights_(module: MLPModule, generator: torch.Generator) -> None:
    """Draw what `nn.Linear` would: weight, then bias, uniform within 1 / sqrt(fan_in).

    Numbers are drawn in float32 on the CPU, so that they are the same for any dtype and device.
    The generator then is where the constructor of the layers would have left it.
    """
    for layer in module.linears:
        bound = 1.0 / math.sqrt(layer.in_features)
        for parameter in layer.parameters():
            drawn = torch.empty(parameter.shape, dtype=torch.float32)
            parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))


@torch.no_grad()
def zero_weights_(module: MLPModule) -> None:
    """Set all weights and intercepts to 0."""
    for parameter in module.parameters():
        parameter.zero_()


@torch.no_grad()
def clip_weights_(module: MLPModule) -> None:
    """Set negative weights to 0, where a constraint forbids them."""
    for weight in module.weights:
        weight.clamp_(min=0.0)
