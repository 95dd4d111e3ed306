"""Dropout that draws its masks from a generator of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .._runtime.aliases import Array


@dataclass
class Masks:
    """Share of units that dropout leaves out, and what draws them, for all layers of a module.

    Rows of one group have the same mask where `groups`, of shape (n_rows,), says so.
    """

    p: float = 0.0
    generator: torch.Generator | None = None
    groups: Tensor | None = None
    n_groups: int = 0

    def begin(self, generator: torch.Generator, groups: Array | None) -> None:
        """Draw from this generator, for these groups of rows."""
        self.generator, self.groups = generator, None
        if groups is not None:
            self.groups = torch.from_numpy(groups.astype(np.int64))
            self.n_groups = int(groups.max()) + 1

    def draw_(self, mask: Tensor) -> Tensor:
        """Fill in a mask of shape (n_units, n_rows): 0, or what keeps the mean of the units."""
        keep = 1.0 - self.p
        if self.groups is None or len(self.groups) != mask.shape[-1]:
            return mask.bernoulli_(keep, generator=self.generator).div_(keep)
        drawn = mask.new_empty(*mask.shape[:-1], self.n_groups)
        drawn.bernoulli_(keep, generator=self.generator).div_(keep)
        return torch.index_select(drawn, -1, self.groups.to(mask.device), out=mask)


class Dropout(nn.Module):
    """Inverted dropout that draws its masks from a generator of its own."""

    def __init__(self, masks: Masks) -> None:
        super().__init__()
        self.masks = masks

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.masks.p == 0:
            return x
        # unit by unit, in the order of the written-out gradients
        mask = self.masks.draw_(x.new_empty(x.shape[::-1]))
        return x * mask.permute(*reversed(range(x.ndim)))

    def extra_repr(self) -> str:
        return f"p={self.masks.p}"
