"""Rows of several data sets in one tensor, and their batches, each in its own seeded order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._objective.losses import Loss
from .._runtime.aliases import Array
from .batches import TabularDataset, draw_order, rows_per_block


class StackedRows:
    """Data sets with the same columns, in one tensor.

    Parameters
    ----------
    parts : sequence of TabularDataset
        Dense data sets, which may have different numbers of rows.
    bias : bool
        Whether a column of ones (or of the data set's `ones`) follows the features.

    Attributes
    ----------
    rows : torch.Tensor of shape (n_parts, n_rows, n_columns)
        Features, the column of ones, targets and, if `weighted` is set, weights. If parts differ in
        length, all are padded with rows of zeros, at least one each.
    counts : list of int
        Number of rows of each part.
    """

    def __init__(self, parts: Sequence[TabularDataset], bias: bool) -> None:
        self.counts = [len(part) for part in parts]
        self.n_features, self.n_targets = parts[0].X.shape[1], parts[0].y.shape[1]
        ragged = len(set(self.counts)) > 1
        self.weighted = ragged or any(part.weight is not None for part in parts)
        self.n_inputs = self.n_features + bias
        self.n_columns = self.n_inputs + self.n_targets + self.weighted
        n_rows = max(self.counts) + ragged
        self.rows: Tensor = parts[0].y.new_zeros(len(parts), n_rows, self.n_columns)
        for rows, part, n in zip(self.rows, parts, self.counts, strict=True):
            rows[:n, : self.n_features] = part.X
            if bias:
                rows[:n, self.n_features] = 1.0 if part.ones is None else part.ones
            rows[:n, self.n_inputs : self.n_inputs + self.n_targets] = part.y
            if self.weighted:
                rows[:n, -1] = 1.0 if part.weight is None else part.weight


class Order:
    """The row order, drawn for each epoch as in an individual fit."""

    def __init__(self, generator: torch.Generator, n_rows: int) -> None:
        self.generator, self.n_rows = generator, n_rows

    def draw(self, length: int, pad: int) -> Tensor:
        """The row indices in their order, padded with `pad` to `length`."""
        order = draw_order(self.generator, self.n_rows)
        if length == self.n_rows:
            return order
        return torch.cat([order, order.new_full((length - self.n_rows,), pad)])


class StackedBatch(NamedTuple):
    """Rows of one update of all models, with buffers for their outputs.

    Groups with fewer rows than others end in rows of factor 0.
    """

    n_rows: int
    counts: list[int]  # rows of each group
    x: Tensor  # n_groups, n_rows, n_inputs
    x_T: Tensor  # n_groups, n_inputs, n_rows
    y: Tensor  # n_groups, 1, n_targets, n_rows
    factor: Any  # a number, or n_groups, 1, 1, n_rows
    out: Tensor  # n_groups, n_each, n_targets, n_rows
    out_lanes: Tensor  # n_models, n_targets, n_rows
    out_groups: Tensor  # n_groups, n_each * n_targets, n_rows


class StackedBlock(NamedTuple):
    """Consecutive batches as views of one block of memory.

    `together` holds the outputs, targets and weights of all batches of each size, and `n_entries`
    the number of losses per group, of shape (n_groups, 1).
    """

    rows: Tensor
    y: Tensor
    factors: Tensor | None
    scale: Tensor | None
    batches: list[StackedBatch]
    together: list[tuple[Tensor, Tensor, Tensor | None]]
    n_entries: Array

    def loss_sum(self, loss: Loss) -> tuple[Tensor, Array]:
        """Sum of each model's weighted losses, of shape (n_groups, n_each), and their number."""
        total: Any = 0.0
        for out, y, weight in self.together:
            values = loss.pointwise(out, y.expand_as(out))
            if weight is not None:
                values = values * weight
            total = total + values.sum((0, 3, 4))
        return total, self.n_entries


class StackedBatches:
    """Batches for groups of models, gathered block by block.

    Parameters
    ----------
    packed : StackedRows
        The rows.
    owner : sequence of int
        Index of the part that each group of models uses.
    n_each : int
        Models per group.
    batch_size : int
        Rows per batch.
    orders : sequence of Order, optional
        The row order of each group; without one, rows keep their order.
    slope_factor : float, default=1.0
        Constant factor left out of the loss's derivative.
    joins_last : bool, default=False
        Whether a single row left over joins the batch before it; groups are then of one length.
    """

    def __init__(
        self,
        packed: StackedRows,
        owner: Sequence[int],
        n_each: int,
        batch_size: int,
        orders: Sequence[Order] | None = None,
        slope_factor: float = 1.0,
        *,
        joins_last: bool = False,
    ) -> None:
        self.packed, self.owner, self.n_each = packed, list(owner), n_each
        self.counts = [packed.counts[i] for i in self.owner]
        # rows of each group
        self.n_all = np.array(self.counts)[:, None]
        self.n_rows = max(self.counts)
        self.batch_size = max(1, min(batch_size, self.n_rows))
        # row order within a full batch does not matter
        self.orders = orders if self.batch_size < self.n_rows else None
        self.slope_factor = slope_factor
        n_groups = len(self.owner)
        width = max(n_groups * packed.n_columns, n_groups * n_each * packed.n_targets)
        self.block_rows = rows_per_block(self.n_rows, self.batch_size, width)
        self.joins_last = joins_last and self.batch_size > 1
        self._kept: dict[int, StackedBlock] = {}
        device = packed.rows.device
        self._start: Tensor = (
            torch.tensor(self.owner, device=device)[:, None] * packed.rows.shape[1]
        )
        self._as_it_is = self.owner == list(range(len(packed.counts)))

    def _edges(self) -> list[tuple[int, int]]:
        """The first row of each block, and the one after its last."""
        starts = list(range(0, self.n_rows, self.block_rows))
        if self.joins_last and len(starts) > 1 and starts[-1] == self.n_rows - 1:
            starts.pop()
        return list(pairwise([*starts, self.n_rows]))

    def blocks(self) -> Iterator[StackedBlock]:
        """The blocks of one epoch; each may be overwritten by the next."""
        packed, edges = self.packed, self._edges()
        if self.orders is None and self._as_it_is:
            for start, stop in edges:
                if start not in self._kept:
                    self._kept[start] = self._cut(packed.rows[:, start:stop], start)
                    self._weigh(self._kept[start])
                yield self._kept[start]
            return
        order = self._draw()
        flat = packed.rows.view(-1, packed.n_columns)
        for start, stop in edges:
            index = order[:, start:stop]
            # full blocks in which no group runs out of rows share one layout
            full = stop - start == self.block_rows and stop <= min(self.counts)
            key = 0 if full else start
            if key not in self._kept:
                room = flat.new_empty(*index.shape, packed.n_columns)
                self._kept[key] = self._cut(room, start)
            block = self._kept[key]
            room = block.rows.view(-1, packed.n_columns)
            torch.index_select(flat, 0, index.reshape(-1), out=room)
            self._weigh(block)
            yield block

    def _draw(self) -> Tensor:
        """Row indices in the order of this epoch, of shape (n_groups, n_rows)."""
        if self.orders is None:
            return self._start + torch.arange(self.n_rows, device=self._start.device)
        drawn: dict[int, Tensor] = {}
        for order in self.orders:
            if id(order) not in drawn:
                # the last row is all zeros if any part has missing rows
                pad = self.packed.rows.shape[1] - 1
                drawn[id(order)] = order.draw(self.n_rows, pad).to(self._start.device)
        if len(drawn) == 1:
            return self._start + next(iter(drawn.values()))
        return self._start + torch.stack([drawn[id(order)] for order in self.orders])

    def _weigh(self, block: StackedBlock) -> None:
        if block.factors is not None and block.scale is not None:
            torch.mul(block.rows[..., -1], block.scale, out=block.factors)

    def _cut(self, rows: Tensor, start: int) -> StackedBlock:
        """A block of batches that are views of `rows`, starting at row `start` of the epoch."""
        packed, (n_groups, n_rows, _) = self.packed, rows.shape
        size, n_targets = self.batch_size, packed.n_targets
        factors = scale = None
        if packed.weighted:
            scale = rows.new_ones(n_groups, n_rows)
            factors = torch.empty_like(scale)
        batches, together = [], []
        n_full = n_rows // size
        if self.joins_last and n_full and n_rows % size == 1:
            n_full -= 1
        # all batches of one size are views of one tensor, so that losses take few calls
        runs = [(0, n_full, size), (n_full * size, 1, n_rows - n_full * size)]
        for first, n, width in runs:
            if not n or not width:
                continue
            outs = rows.new_empty(n, n_groups, self.n_each, n_targets, width)
            part = rows[:, first : first + n * width].unfold(1, width, width).mT.transpose(0, 1)
            x = part[..., : packed.n_inputs]
            y = part[..., packed.n_inputs : packed.n_inputs + n_targets].mT[:, :, None]
            weight = part[..., -1][:, :, None, None] if packed.weighted else None
            together.append((outs, y, weight))
            for i, out in enumerate(outs):
                at = first + i * width
                counts = [min(max(c - start - at, 0), width) for c in self.counts]
                factor: Any = self.slope_factor / (width * n_targets)
                if scale is not None and factors is not None:
                    own = rows.new_tensor([max(1, c) * n_targets for c in counts])
                    scale[:, at : at + width] = (self.slope_factor / own)[:, None]
                    factor = factors[:, None, None, at : at + width]
                batches.append(
                    StackedBatch(
                        width,
                        counts,
                        x[i],
                        x[i].mT,
                        y[i],
                        factor,
                        out,
                        out.flatten(0, 1),
                        out.flatten(1, 2),
                    )
                )
        y = rows[..., packed.n_inputs : packed.n_inputs + n_targets]
        n_entries = (self.n_all - start).clip(0, n_rows) * n_targets
        return StackedBlock(rows, y, factors, scale, batches, together, n_entries)
