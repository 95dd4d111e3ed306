"""The rows of a fit: equal ones grouped and merged, some split off and held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from .._runtime.aliases import Array, FloatArray
from .._runtime.seeds import make_generator
from .arrays import CHUNK_BYTES


@dataclass(frozen=True)
class TrainingData:
    """Validated rows: `X` dense or CSR, `y` of shape (n_samples, n_targets), no zero weights.

    The weights given are `weight` times two to the power of `exponent`, which is even. `verify`
    raises if X or y are not finite; it is None where that was looked at already.
    """

    X: Any
    y: Array
    weight: FloatArray | None
    verify: Callable[[], object] | None = None
    exponent: int = 0

    @property
    def n_samples(self) -> int:
        return int(self.X.shape[0])

    @property
    def n_features(self) -> int:
        return int(self.X.shape[1])

    @property
    def n_targets(self) -> int:
        return int(self.y.shape[1])

    @property
    def weights(self) -> FloatArray:
        """The weights, ones where none were given."""
        return np.ones(self.n_samples) if self.weight is None else self.weight

    @property
    def total_weight(self) -> float:
        """The sum of the weights."""
        return float(self.n_samples if self.weight is None else self.weight.sum())

    def rows(self, index: Any) -> TrainingData:
        """The rows that `index` (a slice or an integer array) names."""
        weight = None if self.weight is None else self.weight[index]
        return TrainingData(self.X[index], self.y[index], weight, exponent=self.exponent)


# up to this many rows, whole weights counted, held-out rows do not depend on repetition
COUNTED_ROWS = 1000
FEW_UNITS = 50


def _dense_columns(X: Any, y: Array) -> Iterator[Array]:
    """The columns of X and y in their order, some at a time and dense; the first comes alone."""
    columns = X.tocsc() if sp.issparse(X) else X
    n_columns = X.shape[1]
    step = max(1, CHUNK_BYTES // (8 * len(y)))
    for start, stop in pairwise(sorted({0, 1, *range(1, n_columns, step), n_columns})):
        part = columns[:, start:stop]
        yield part.toarray() if sp.issparse(part) else part
    yield y


def group_rows(X: Any, y: Array) -> tuple[Array, Array]:
    """Index of the first row of each group of equal rows, and the group of each row.

    Groups are ordered by value, column after column, which neither scaling nor shifting a column
    changes, nor whether X is sparse.
    """
    n_rows = len(y)
    group = np.zeros(n_rows, dtype=np.intp)
    first = np.zeros(1, dtype=np.intp)
    for columns in _dense_columns(X, y):
        if len(first) == n_rows:
            # most often the first column tells all rows apart
            break
        if columns.shape[1] == 1 and len(first) == 1:
            _, first, group = np.unique(columns[:, 0], return_index=True, return_inverse=True)
            continue
        rows = np.column_stack([group.astype(columns.dtype), columns])
        _, first, group = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        group = group.ravel()
    return first, group


def distinct_rows(data: TrainingData) -> TrainingData:
    """Merge equal rows into one that carries their weight.

    They come in an order that is theirs alone, so that rows in any order, and repeated rows as
    well as integer weights, give the same bits. A full-batch objective does not change by this.
    """
    first, group = group_rows(data.X, data.y)
    weight: FloatArray = np.bincount(group, data.weights).astype(np.float64)
    kept = None if (weight == 1).all() else weight
    return TrainingData(data.X[first], data.y[first], kept, exponent=data.exponent)


def n_held_out(n_rows: int, fraction: float) -> int:
    """Rows that are held out for validation."""
    return math.ceil(fraction * n_rows)


def split_rows(
    data: TrainingData, fraction: float, seed: int, *, counted: bool
) -> tuple[TrainingData, TrainingData]:
    """Training and validation rows for early stopping; raises ValueError where one is empty.

    With `counted`, a small set of rows is split in a way that depends on neither their order nor
    on whether they are repeated or carry whole weights; see `_held_out_shares`.
    """
    share = _held_out_shares(data, fraction, seed) if counted else None
    if share is None:
        n_valid = n_held_out(data.n_samples, fraction)
        order = torch.randperm(data.n_samples, generator=make_generator(seed, stream=1)).numpy()
        share = np.zeros(data.n_samples)
        share[order[:n_valid]] = 1.0
    if not (share < 1).any():
        raise ValueError(
            f"early_stopping=True with validation_fraction={fraction} leaves no row to train on: "
            f"there are n_samples={data.n_samples} rows with non-zero weight. Give more rows, a "
            "smaller validation_fraction, or early_stopping=False."
        )
    return _weighted_rows(data, 1.0 - share), _weighted_rows(data, share)


def _held_out_shares(data: TrainingData, fraction: float, seed: int) -> FloatArray | None:
    """The share of each row that is held out, or None for too many rows to count.

    Whole weights count as that many rows. Each distinct row is cut into units, as many as it
    counts for, but no more of them in all than there are distinct rows (or a few tens): so large
    weights do not put every row on both sides, and few distinct rows stay on both.
    """
    whole = bool((data.weights % 1 == 0).all())
    total = data.weights.sum() if whole else data.n_samples
    if total > COUNTED_ROWS:
        return None
    _, group = group_rows(data.X, data.y)
    count = np.bincount(group, data.weights if whole else None)
    scale = min(1.0, max(FEW_UNITS, len(count)) / total)
    units = np.maximum(1, np.rint(scale * count)).astype(np.int64)
    n_valid = n_held_out(int(units.sum()), fraction)
    held = np.random.default_rng([1, seed]).multivariate_hypergeometric(units, n_valid)
    # the first of several equal rows are held out whole, and at most one of them in part
    weight = data.weights if whole else np.ones(data.n_samples)
    order = np.argsort(group, kind="stable")
    before = np.empty(len(group))
    before[order] = np.cumsum(weight[order]) - weight[order]
    first = np.cumsum(count) - count
    out: FloatArray = ((held * count / units + first)[group] - before) / weight
    return out.clip(0.0, 1.0)


def _weighted_rows(data: TrainingData, share: FloatArray) -> TrainingData:
    keep = share > 0
    weight = (data.weights * share)[keep]
    # thirds of a weight and the like are to give back whole numbers
    nearest = np.rint(weight)
    weight = np.where(np.abs(weight - nearest) < 1e-9 * np.abs(weight), nearest, weight)
    kept = None if (weight == 1).all() else weight
    return TrainingData(data.X[keep], data.y[keep], kept, exponent=data.exponent)
