"""The rows of a fit: grouping and merging equal rows, and holding out validation rows."""

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

    The user's weights are `weight` times ``2**exponent``; the exponent is even. `verify` raises
    if X or y is not finite; it is None if that has been checked already. `held_out` is the user's
    validation set, if any. `row_shape` is the shape of a row before it was made flat.
    """

    X: Any
    y: Array
    weight: FloatArray | None
    verify: Callable[[], object] | None = None
    exponent: int = 0
    held_out: TrainingData | None = None
    row_shape: tuple[int, ...] = ()

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
        """The weights; ones if none were given."""
        return np.ones(self.n_samples) if self.weight is None else self.weight

    @property
    def total_weight(self) -> float:
        """The sum of the weights."""
        return float(self.n_samples if self.weight is None else self.weight.sum())

    def rows(self, index: Any) -> TrainingData:
        """The rows selected by `index` (a slice or an integer array)."""
        weight = None if self.weight is None else self.weight[index]
        return TrainingData(self.X[index], self.y[index], weight, exponent=self.exponent)


# up to this many rows, counting integer weights, the split does not depend on repeated rows
COUNTED_ROWS = 1000
FEW_UNITS = 50


def _dense_columns(X: Any, y: Array) -> Iterator[Array]:
    """The columns of X and y in order, in dense chunks; the first chunk is a single column."""
    columns = X.tocsc() if sp.issparse(X) else X
    n_columns = X.shape[1]
    step = max(1, CHUNK_BYTES // (8 * len(y)))
    for start, stop in pairwise(sorted({0, 1, *range(1, n_columns, step), n_columns})):
        part = columns[:, start:stop]
        yield part.toarray() if sp.issparse(part) else part
    yield y


def group_rows(X: Any, y: Array) -> tuple[Array, Array]:
    """Index of the first row of each group of equal rows, and the group of each row.

    Groups are ordered by value, column by column. This order does not change if a column is
    scaled or shifted, or if X is sparse.
    """
    n_rows = len(y)
    group = np.zeros(n_rows, dtype=np.intp)
    first = np.zeros(1, dtype=np.intp)
    for columns in _dense_columns(X, y):
        if len(first) == n_rows:
            # usually the first column already distinguishes all rows
            break
        if columns.shape[1] == 1 and len(first) == 1:
            _, first, group = np.unique(columns[:, 0], return_index=True, return_inverse=True)
            continue
        rows = np.column_stack([group.astype(columns.dtype), columns])
        _, first, group = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        group = group.ravel()
    return first, group


def distinct_rows(data: TrainingData) -> TrainingData:
    """Merge equal rows into one with their total weight.

    The result is sorted by value, so fits are bit-identical for any order of the rows, and for
    repeated rows and integer weights. A full-batch objective is unchanged.
    """
    first, group = group_rows(data.X, data.y)
    weight: FloatArray = np.bincount(group, data.weights).astype(np.float64)
    kept = None if (weight == 1).all() else weight
    return TrainingData(data.X[first], data.y[first], kept, exponent=data.exponent)


def n_held_out(n_rows: int, fraction: float) -> int:
    """Number of rows held out for validation."""
    return math.ceil(fraction * n_rows)


def split_rows(
    data: TrainingData, fraction: float, seed: int, *, counted: bool
) -> tuple[TrainingData, TrainingData]:
    """Training and validation rows for early stopping; ValueError if no row is left to train on.

    With `counted`, the split of a small set of rows depends neither on their order nor on whether
    rows are repeated or have integer weights; see `_held_out_shares`.
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
            f"there are n_samples={data.n_samples} rows with non-zero weight. Use more rows, a "
            "smaller validation_fraction, or early_stopping=False."
        )
    return _weighted_rows(data, 1.0 - share), _weighted_rows(data, share)


def _held_out_shares(data: TrainingData, fraction: float, seed: int) -> FloatArray | None:
    """The held-out share of each row, or None if there are too many rows to count.

    A row with an integer weight counts as that many rows. Each distinct row is divided into as
    many units as it counts for, scaled down to about as many units in total as there are distinct
    rows (but at least `FEW_UNITS`): large weights then do not put every row on both sides of the
    split, and a few distinct rows remain on both.
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
    # of equal rows the first are held out entirely, and at most one is held out in part
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
    # shares such as thirds are rounded, so that integer weights stay integers
    nearest = np.rint(weight)
    weight = np.where(np.abs(weight - nearest) < 1e-9 * np.abs(weight), nearest, weight)
    kept = None if (weight == 1).all() else weight
    return TrainingData(data.X[keep], data.y[keep], kept, exponent=data.exponent)
