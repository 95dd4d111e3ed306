"""Dropout that draws its masks from its own generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .._runtime.aliases import Array


def draw_mask_(mask: Tensor, keep: float, generator: torch.Generator | None) -> Tensor:
    """Fill in a mask: 1 / keep with probability `keep`, otherwise 0."""
    return mask.bernoulli_(keep, generator=generator).div_(keep)


@dataclass
class Masks:
    """Dropout probability and generator for all layers of a module.

    Rows of one group share a mask; `groups`, if set, is of shape (n_rows,).
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
    """Inverted dropout that draws its masks from its own generator."""

    def __init__(self, masks: Masks) -> None:
        super().__init__()
        self.masks = masks

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.masks.p == 0:
            return x
        # unit by unit, in the same order as the written-out gradients
        mask = self.masks.draw_(x.new_empty(x.shape[::-1]))
        return x * mask.permute(*reversed(range(x.ndim)))

    def extra_repr(self) -> str:
        return f"p={self.masks.p}"


class StackedMasks:
    """Seeded dropout masks, shared by models with the same seed, rows and rate.

    Parameters
    ----------
    generators : list of torch.Generator
        One for each distinct sequence of masks.
    keep : list of float
        Probability of keeping a unit, for each sequence.
    groups : list of int
        For each sequence, a group of models that uses it; its row count is used.
    owner : torch.Tensor of shape (n_models,)
        Index of the mask sequence of each model.
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
        """Masks, divided by `keep`, for hidden units of shape (n_models, n_units, n_rows).

        `counts` are the row counts of the groups. A mask shared by all models is left to broadcast.
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
