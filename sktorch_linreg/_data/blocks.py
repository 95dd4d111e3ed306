"""Rows as float64 blocks that fit the cache of a core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from .._runtime.aliases import Array, FloatArray
from .._runtime.threads import n_spans, over_spans
from .arrays import as_tensor
from .rows import TrainingData

# entries of float64 work space per thread
BLOCK_ENTRIES = 2**17
# minimum rows per column of a block that is a view; adding up many small products is slow
VIEWED_COLUMNS = 8
# entries of a float64 block that fits the cache
SMALL_BLOCK_ENTRIES = 2**16
# cost of an entry in multiplications, to decide whether threads pay off
WORK_PER_ENTRY = 8


def blocks(
    data: TrainingData,
    shift: FloatArray,
    start: int,
    stop: int,
    *,
    rooted: bool,
    least: int = 2,
) -> Iterator[tuple[slice, FloatArray]]:
    """Rows minus `shift` as float64 blocks, times the root of their weights if `rooted`.

    A block fits the cache, but has at least `least` times as many rows as columns. It is a view of
    X if nothing has to be computed, and otherwise a buffer that the next block overwrites.
    """
    d = data.n_features
    weight = data.weight if rooted else None
    step = max(BLOCK_ENTRIES // d, least * d)
    by = as_tensor(shift[:d]) if shift[:d].any() else None
    plain = by is None and weight is None and data.X.dtype == np.float64
    dense = not sp.issparse(data.X)
    if dense and plain:
        step = max(step, VIEWED_COLUMNS * d)
        for i in range(start, stop, step):
            part = slice(i, min(i + step, stop))
            yield part, np.asarray(data.X[part])
        return
    buffer = np.empty((min(step, stop - start), d))
    for i in range(start, stop, step):
        part = slice(i, min(i + step, stop))
        rows = data.X[part]
        out = buffer[: part.stop - part.start]
        root = None if weight is None else np.sqrt(weight[part])
        _write(as_tensor(rows if dense else rows.toarray()), by, root, torch.from_numpy(out))
        yield part, out


def _write(
    rows: torch.Tensor, shift: torch.Tensor | None, root: FloatArray | None, out: torch.Tensor
) -> None:
    # torch casts and broadcasts in one loop; numpy's inner loops are only as long as a row
    factor = None if root is None else torch.from_numpy(root)[:, None]
    if rows.dtype != out.dtype or (shift is None and factor is None):
        # a separate cast is faster than one within the arithmetic
        rows = out.copy_(rows)
    if shift is not None:
        rows = torch.sub(rows, shift, out=out)
    if factor is not None:
        torch.mul(rows, factor, out=out)


def beside(data: TrainingData, shift: FloatArray, part: slice) -> FloatArray:
    """The columns [y - shift, 1] of some rows times the root of their weights, transposed."""
    y = data.y[part]
    out = np.empty((y.shape[1] + 1, len(y)))
    np.subtract(y.T, shift[data.n_features :, None], out=out[:-1])
    out[-1] = 1.0
    if data.weight is not None:
        out *= np.sqrt(data.weight[part])
    return out


def over_blocks(X: Array, work: Callable[[slice, FloatArray], Any]) -> list[Any]:
    """Results of ``work(rows, room)`` for blocks of rows, in order; in threads if that pays off.

    `room` is float64 work space of the block's shape.
    """
    n_rows, n_columns = X.shape
    step = max(1, SMALL_BLOCK_ENTRIES // max(1, n_columns))

    def span(start: int, stop: int) -> list[Any]:
        room = np.empty((min(step, stop - start), n_columns))
        parts = [slice(i, min(i + step, stop)) for i in range(start, stop, step)]
        # threads do not inherit the caller's error state
        with np.errstate(over="ignore", invalid="ignore"):
            return [work(part, room[: part.stop - part.start]) for part in parts]

    spans = n_spans(n_rows, WORK_PER_ENTRY * n_columns, step)
    return [result for part in over_spans(span, n_rows, spans) for result in part]
