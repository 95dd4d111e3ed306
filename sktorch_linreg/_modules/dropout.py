"""Dropout that draws its masks from a generator of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .._runtime.aliases import Array


def draw_mask_(mask: Tensor, keep: float, generator: torch.Generator | None) -> Tensor:
    """Fill in a mask: 0, or what keeps the mean of the units, which are kept with this share."""
    return mask.bernoulli_(keep, generator=generator).div_(keep)


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
        """Fill in a mask of shape (n_units, n_rows)."""
        keep = 1.0 - self.p
        if self.groups is None or len(self.groups) != mask.shape[-1]:
            return draw_mask_(mask, keep, self.generator)
        room = mask.new_empty(*mask.shape[:-1], self.n_groups)
        drawn = draw_mask_(room, keep, self.generator)
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


class StackedMasks:
    """Seeded masks: models with the same seed, rows and rate have the same ones.

    Parameters
    ----------
    generators : list of torch.Generator
        One for each different sequence of masks.
    keep : list of float
        The share of units kept under each.
    groups : list of int
        A group of models that has it, whose rows are counted.
    owner : torch.Tensor of shape (n_models,)
        The mask of each model.
    """

    def __init__(
        self,
        generators: list[torch.Generator],
        keep: list[float],
        groups: list[int],
        owner: Tensor,
    ) -> None:
        self.generators, self.keep, self.groups = generators, keep, groups
        self.owner = owner
        self._room: dict[tuple[int, int], Tensor] = {}

    def draw(self, layer: int, h: Tensor, counts: Sequence[int]) -> Tensor:
        """Masks, divided by the share kept, for hidden units of shape (n_models, n_units, n_rows).

        `counts` are the rows that each group has.
        They broadcast over the models where all of them have the same.
        """
        n_units, n_rows = h.shape[1:]
        drawn = self._room.get((layer, n_rows))
        if drawn is None:
            drawn = self._room[layer, n_rows] = h.new_ones(len(self.keep), n_units, n_rows)
        for i, (generator, keep) in enumerate(zip(self.generators, self.keep, strict=True)):
            if keep == 1.0:
                continue
            count = counts[self.groups[i]]
            if count == n_rows:
                draw_mask_(drawn[i], keep, generator)
            else:
                drawn[i, :, :count] = draw_mask_(h.new_empty(n_units, count), keep, generator)
        return drawn if len(self.keep) == 1 else drawn[self.owner]
