"""Rows as tensors, and the batches of an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, repeat
from typing import Any, NamedTuple, Self

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .._data.arrays import as_tensor, numpy_dtype
from .._data.rows import TrainingData
from .._data.scaling import Scaling, scaled
from .._objective.losses import Loss
from .._runtime.aliases import Array
from .._runtime.processes import ProcessGroup
from .._spec import FitSpec

# entries of a block, small enough to stay in the cache while its batches are processed
BLOCK_ENTRIES = 2**18
# rows per batch where only outputs are computed
OUTPUT_ROWS = 4096


@dataclass(frozen=True)
class Share:
    """Number of rows in each process, and the total weight over all processes."""

    group: ProcessGroup
    counts: tuple[int, ...]
    weight: float

    @property
    def n_samples(self) -> int:
        """Number of rows over all processes."""
        return sum(self.counts)

    @property
    def mean_weight(self) -> float:
        """Mean sample weight over all processes."""
        return self.weight / self.n_samples

    def batches(self, batch_size: int, *, joins_last: bool = False) -> list[tuple[int, int]]:
        """Number of rows of each batch of an epoch, in this process and over all processes.

        Each process spreads its rows evenly over the batches, so a batch has `batch_size` rows,
        give or take one per process. With `joins_last`, the last batch joins the one before if it
        leaves a single row to a process.
        """
        edges = np.append(np.arange(0, self.n_samples, batch_size), self.n_samples)
        if self.n_samples**2 > np.iinfo(np.int64).max:
            edges = edges.astype(object)
        # n_batches + 1, n_processes
        cuts = edges[:, None] * np.array(self.counts) // self.n_samples
        rows = np.diff(cuts, axis=0)
        if joins_last and len(rows) > 1 and (rows[-1] == 1).any():
            rows = np.vstack([rows[:-2], rows[-2:].sum(axis=0)])
        together = rows.sum(axis=1)
        mine = rows[:, self.group.rank]
        kept = together > 0
        return list(zip(mine[kept].tolist(), together[kept].tolist(), strict=True))


def scaled_rows(X: Array, scaling: Scaling, spec: FitSpec) -> Tensor:
    """Dense rows in training units and in the compute dtype, unless they stay integers."""
    recipe = spec.shape.module
    if recipe is not None and recipe.integers:
        return as_tensor(np.ascontiguousarray(X))
    return as_tensor(scaled(X, scaling.x_offset, scaling.x_factor, numpy_dtype(spec.dtype)))


class TabularDataset(Dataset[Any]):
    """Rows as tensors; sparse rows stay a CSR matrix until they are batched.

    Parameters
    ----------
    X : torch.Tensor or CSR matrix of shape (n_samples, n_features)
        Features.
    y : torch.Tensor of shape (n_samples, n_targets), optional
        Targets.
    weight : torch.Tensor of shape (n_samples,), optional
        Weights relative to their mean over the training set, so that the mean over a batch of
        ``weight * loss`` estimates the weighted mean over all rows without bias.
    ones : torch.Tensor of shape (n_samples,), optional
        Multipliers of the intercepts if not all 1, for condensed rows; these form a single
        batch.
    """

    def __init__(
        self,
        X: Any,
        y: Tensor | None = None,
        weight: Tensor | None = None,
        ones: Tensor | None = None,
    ) -> None:
        self.X, self.weight, self.ones = X, weight, ones
        self.y: Any = y

    @classmethod
    def for_training(
        cls,
        data: TrainingData,
        scaling: Scaling,
        spec: FitSpec,
        mean_weight: float,
    ) -> Self:
        """Scaled rows in the compute dtype, on the device.

        `mean_weight` is the mean sample weight over all processes.
        """
        dtype = numpy_dtype(spec.dtype)
        X: Any
        if sp.issparse(data.X):
            X = data.X.astype(dtype)
        else:
            X = scaled_rows(data.X, scaling, spec).to(spec.device)
        target = as_tensor(scaled(data.y, *spec.objective.loss.target_units(scaling), dtype))
        weight = None
        if data.weight is not None:
            relative = (data.weight / mean_weight).astype(dtype)
            weight = torch.from_numpy(relative).to(spec.device)
        return cls(X, target.to(spec.device), weight)

    @classmethod
    def raw(cls, X: Any, y: Any = None) -> Self:
        """Rows without scaling."""

        def keep(values: Any) -> Any:
            if sp.issparse(values):
                return values.tocsr()
            return values if isinstance(values, Tensor) else as_tensor(values)

        return cls(keep(X), None if y is None else keep(y))

    def __len__(self) -> int:
        return int(self.X.shape[0])

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        x, y, _ = self.batch(index)
        # torch's own loader cannot collate None
        return x, torch.tensor(0) if y is None else y

    def batch(self, index: Any) -> tuple[Any, Any, Any]:
        """Features, targets and weights of the rows at `index`."""
        x = self.X[index] if isinstance(self.X, Tensor) else self.as_tensor(self.X[index])
        return (
            x,
            None if self.y is None else self.y[index],
            None if self.weight is None else self.weight[index],
        )

    def as_tensor(self, rows: Any) -> Tensor:
        """Rows of a CSR matrix as a sparse tensor."""
        row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
        tensor = torch.sparse_coo_tensor(
            torch.from_numpy(np.stack([row, rows.indices.astype(np.int64)])),
            as_tensor(rows.data),
            size=rows.shape,
            is_coalesced=True,
            check_invariants=False,
        )
        return tensor if self.y is None else tensor.to(self.y.device)


class Batch(NamedTuple):
    """Rows of one update, with buffers for their outputs."""

    n_rows: int
    x: Tensor
    x_T: Tensor
    y: Tensor
    weight: Tensor | None  # n_rows, 1
    out: Tensor  # n_rows, n_targets
    out_T: Tensor
    ones: Tensor | None
    n_all: int  # rows of the update over all processes

    @property
    def row_weight(self) -> Tensor | None:
        """The weights, of shape (n_rows,)."""
        return None if self.weight is None else self.weight[:, 0]


class Block(NamedTuple):
    """Consecutive batches as views of one block of memory."""

    x: Any
    y: Tensor
    weight: Tensor | None  # n_rows, 1
    out: Tensor
    batches: list[Batch]

    def loss_sum(self, loss: Loss) -> tuple[Tensor, int]:
        """Sum of the weighted losses of the current outputs, and the number of losses."""
        values = loss.pointwise(self.out, self.y)
        if loss.reduced:
            return values * len(self.y), len(self.y)
        if self.weight is not None:
            values = values.reshape(len(values), -1) * self.weight
        return values.sum(), values.numel()


def n_batches(n_rows: int, batch_size: int) -> int:
    """Number of batches per epoch; the last one may be smaller."""
    return math.ceil(n_rows / max(1, min(batch_size, n_rows)))


def rows_per_block(n_rows: int, batch_size: int, width: int) -> int:
    """Rows per block: as many full batches as fit in the cache, at least one."""
    together = BLOCK_ENTRIES // (batch_size * max(1, width))
    return min(n_rows, batch_size * max(1, together))


def _stops(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Where consecutive parts end, with their sizes."""
    return zip(accumulate(sizes), sizes, strict=True)


def draw_order(generator: torch.Generator, n_rows: int) -> Tensor:
    """The row order of an epoch, drawn by `torch.randperm`."""
    return torch.randperm(n_rows, generator=generator)


class BatchIterator:
    """Batches of a `TabularDataset` in seeded order, gathered block by block.

    A block fits in the cache, so shuffling reads the rows once per epoch and needs no second
    copy of them.

    Parameters
    ----------
    dataset : TabularDataset
        The rows.
    batch_size : int, optional
        Rows per batch; all rows by default.
    generator : torch.Generator, optional
        Draws a new row order for each epoch; without one, rows keep their order.
    one_batch : bool, default=False
        Whether each block holds a single batch.
    joins_last : bool, default=False
        Whether a single row that is left over joins the batch before it.
    """

    def __init__(
        self,
        dataset: TabularDataset,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
        one_batch: bool = False,
        joins_last: bool = False,
    ) -> None:
        self.dataset = dataset
        self.n_all = n_rows = len(dataset)
        self.batch_size = max(1, min(batch_size or n_rows, n_rows))
        # row order within a full batch does not matter
        self.generator = generator if self.batch_size < n_rows else None
        self.block_rows = min(n_rows, self.batch_size)
        if not one_batch:
            self.block_rows = rows_per_block(n_rows, self.batch_size, dataset.X.shape[1])
        self.joins_last = joins_last and self.batch_size > 1
        self._kept: dict[int, Block] = {}

    def __len__(self) -> int:
        n_rows = len(self.dataset)
        return n_batches(n_rows, self.batch_size) - self._joins(n_rows, self.batch_size)

    def _joins(self, n_rows: int, size: int) -> bool:
        """Whether the last of these rows joins the part before it."""
        return self.joins_last and n_rows > size and n_rows % size == 1

    def _sizes(self, n_rows: int, size: int) -> list[int]:
        """Sizes of consecutive parts of some rows; zero rows make one empty part."""
        sizes = [size] * (n_rows // size)
        if self._joins(n_rows, size):
            sizes[-1] += 1
        elif remainder := n_rows % size:
            sizes.append(remainder)
        return sizes or [0]

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for start in range(0, len(self.dataset), self.batch_size):
            x, y, _ = self.dataset.batch(slice(start, start + self.batch_size))
            yield x, y

    def blocks(self) -> Iterator[Block]:
        """The blocks of one epoch; each may be overwritten by the next."""
        n_rows, rows = len(self.dataset), self.dataset
        if self.generator is not None:
            order = draw_order(self.generator, n_rows)
            sizes = self._sizes(n_rows, self.block_rows)
            for index in torch.split(order.to(rows.y.device), sizes):
                yield self._gather(index)
        elif n_rows == self.block_rows:
            if n_rows not in self._kept:
                self._kept[n_rows] = self._cut(rows.X, rows.y, rows.weight)
            yield self._kept[n_rows]
        else:
            for stop, size in _stops(self._sizes(n_rows, self.block_rows)):
                part = slice(stop - size, stop)
                weight = None if rows.weight is None else rows.weight[part]
                yield self._cut(rows.X[part], rows.y[part], weight)

    def _gather(self, index: Tensor) -> Block:
        """A block of the rows at `index`, in reused memory where possible."""
        rows = self.dataset
        if not isinstance(rows.X, Tensor):
            weight = None if rows.weight is None else rows.weight[index]
            return self._cut(rows.X[index.cpu().numpy()], rows.y[index], weight)
        block = self._kept.get(len(index))
        if block is None:
            x, y = (a.new_empty(len(index), a.shape[1]) for a in (rows.X, rows.y))
            weight = None if rows.weight is None else rows.weight.new_empty(len(index))
            block = self._kept[len(index)] = self._cut(x, y, weight)
        torch.index_select(rows.X, 0, index, out=block.x)
        torch.index_select(rows.y, 0, index, out=block.y)
        if rows.weight is not None and block.weight is not None:
            torch.index_select(rows.weight, 0, index, out=block.weight[:, 0])
        return block

    def _cut(self, x: Any, y: Tensor, weight: Tensor | None) -> Block:
        """A block of these rows, cut into batches."""
        out, sizes = torch.empty_like(y), self._sizes(len(y), self.batch_size)
        xs: Any
        if isinstance(x, Tensor):
            xs = torch.split(x, sizes)
        else:
            xs = [self.dataset.as_tensor(x[i - size : i]) for i, size in _stops(sizes)]
        column = None if weight is None else weight[:, None]
        weights = repeat(None) if column is None else torch.split(column, sizes)
        parts = zip(xs, torch.split(y, sizes), weights, torch.split(out, sizes), strict=False)
        ones = self.dataset.ones
        batches = [Batch(len(b), a, a.t(), b, w, o, o.t(), ones, len(b)) for a, b, w, o in parts]
        return Block(x, y, column, out, batches)


class SharedBatchIterator(BatchIterator):
    """Batches whose rows are spread over several processes, one batch per block.

    Parameters
    ----------
    dataset : TabularDataset
        The rows of this process.
    batch_size : int
        Rows per batch over all processes.
    generator : torch.Generator or None
        Draws the row order of this process.
    share : Share
        Number of rows in each process.
    joins_last : bool, default=False
        Whether a last batch with a single row in some process joins the batch before it.
    """

    def __init__(
        self,
        dataset: TabularDataset,
        batch_size: int,
        generator: torch.Generator | None,
        share: Share,
        *,
        joins_last: bool = False,
    ) -> None:
        super().__init__(dataset)
        self.sizes = share.batches(batch_size, joins_last=joins_last)
        self.n_all = share.n_samples
        self.generator = generator if len(self.sizes) > 1 else None

    def __len__(self) -> int:
        return len(self.sizes)

    def blocks(self) -> Iterator[Block]:
        """The blocks of one epoch; a block may have no rows in this process."""
        parts = super().blocks() if len(self.sizes) == 1 else self._parts()
        for block, (_, together) in zip(parts, self.sizes, strict=True):
            (batch,) = block.batches
            yield block._replace(batches=[batch._replace(n_all=together)])

    def _parts(self) -> Iterator[Block]:
        """One block per batch."""
        rows, order, start = self.dataset, None, 0
        if self.generator is not None:
            drawn = draw_order(self.generator, len(rows))
            order = drawn.to(rows.y.device)
        for mine, _ in self.sizes:
            part = slice(start, start + mine)
            start += mine
            # makes _cut return a single batch
            self.batch_size = max(1, mine)
            if order is not None:
                yield self._gather(order[part])
            else:
                weight = None if rows.weight is None else rows.weight[part]
                yield self._cut(rows.X[part], rows.y[part], weight)
