"""Passes over the rows: moments of the columns, and the columns in standard units."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import scipy.sparse as sp

from ._runtime.aliases import Array, FloatArray
from ._runtime.threads import n_spans, over_spans
from ._types import Moments

# float64 numbers of a block, which stays in the cache
BLOCK = 2**16
# what a number costs, in multiplications, to see whether threads pay
WORK = 8


def _in_blocks(X: Array, work: Callable[[slice, FloatArray], Any]) -> list[Any]:
    """``work(rows, room)`` for blocks of rows, in order, over threads where that pays.

    `room` is float64 work space of the shape of the block.
    """
    n_rows, n_columns = X.shape
    step = max(1, BLOCK // max(1, n_columns))

    def span(start: int, stop: int) -> list[Any]:
        room = np.empty((min(step, stop - start), n_columns))
        parts = [slice(i, min(i + step, stop)) for i in range(start, stop, step)]
        # threads do not inherit this from their caller
        with np.errstate(over="ignore", invalid="ignore"):
            return [work(part, room[: part.stop - part.start]) for part in parts]

    spans = n_spans(n_rows, WORK * n_columns, step)
    return [result for part in over_spans(span, n_rows, spans) for result in part]


def _sparse_moments(X: Any, weight: FloatArray, total: float) -> Moments:
    entries = X.astype(np.float64).tocoo()
    n_rows, n_features = X.shape
    column, w = entries.col, weight[entries.row]

    def per_column(values: FloatArray) -> FloatArray:
        return np.bincount(column, values, minlength=n_features).astype(np.float64)

    stored = np.bincount(column, minlength=n_features)
    # zeros that are not stored; exactly none of them in a full column, whatever the rounding
    absent = np.where(stored == n_rows, 0.0, np.maximum(total - per_column(w), 0.0))
    mean = per_column(w * entries.data) / total
    centred = entries.data - mean[column]
    rest = (per_column(w * centred) - absent * mean) / total
    deviation = per_column(w * centred**2) + absent * mean**2
    return Moments(total, mean + rest, np.maximum(deviation - total * rest**2, 0.0))


def moments(X: Any, weight: FloatArray | None) -> Moments:
    """Weighted mean and squared deviations of each column, in one pass of float64 blocks.

    Where squares overflow they are not finite, which the callers look at.
    """
    if sp.issparse(X):
        weight = np.ones(X.shape[0]) if weight is None else weight
        with np.errstate(over="ignore", invalid="ignore"):
            return _sparse_moments(X, weight, float(weight.sum()))

    def of_block(rows: slice, room: FloatArray) -> Moments:
        w = None if weight is None else weight[rows, None]
        total = float(len(room)) if w is None else float(w.sum())

        def average(values: FloatArray) -> FloatArray:
            summed: FloatArray = np.add.reduce(values if w is None else values * w, axis=0)
            return summed / total

        np.copyto(room, X[rows])
        mean = average(room)
        np.subtract(room, mean, out=room)
        # what the rounding of the mean left
        rest = average(room)
        np.multiply(room, room, out=room)
        deviation = total * np.maximum(average(room) - rest**2, 0.0)
        return Moments(total, mean + rest, deviation)

    blocks: list[Moments] = _in_blocks(X, of_block)
    with np.errstate(over="ignore", invalid="ignore"):
        return reduce(Moments.merge, blocks)


def scaled(X: Array, offset: FloatArray, factor: FloatArray, dtype: Any) -> Array:
    """(X - offset) * factor in float64, then cast.

    Rows are contiguous. Where there is nothing to do, it is the memory of `X` itself.
    """
    if not offset.any() and (factor == 1.0).all():
        return np.ascontiguousarray(X, dtype=dtype)
    out = np.empty(X.shape, dtype=dtype)

    def of_block(rows: slice, room: FloatArray) -> None:
        np.subtract(X[rows], offset, out=room)
        np.multiply(room, factor, out=out[rows], casting="same_kind")

    _in_blocks(X, of_block)
    return out
