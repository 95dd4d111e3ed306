"""Weighted means and squared deviations of columns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import scipy.sparse as sp

from .._runtime.aliases import FloatArray
from .blocks import over_blocks


@dataclass(frozen=True)
class Moments:
    """Weighted count, mean and sum of squared deviations of each column; batches merge exactly.

    Weights, and so the count and the deviations, are in units of ``2**exponent``.
    """

    weight: float
    mean: FloatArray
    deviation: FloatArray
    exponent: int = 0

    def in_units_of(self, exponent: int) -> Moments:
        """The same moments with weights in units of ``2**exponent``."""
        by = self.exponent - exponent
        if by == 0:
            return self
        deviation = np.ldexp(self.deviation, by)
        return Moments(math.ldexp(self.weight, by), self.mean, deviation, exponent)

    def merge(self, other: Moments) -> Moments:
        """Moments of both batches together (Chan, Golub and LeVeque, 1983)."""
        exponent = max(self.exponent, other.exponent)
        a, b = self.in_units_of(exponent), other.in_units_of(exponent)
        total = a.weight + b.weight
        delta = b.mean - a.mean
        mean = a.mean + delta * (b.weight / total)
        between = delta**2 * (a.weight * b.weight / total)
        return Moments(total, mean, a.deviation + b.deviation + between, exponent)


def _sparse_moments(X: Any, weight: FloatArray, total: float) -> Moments:
    entries = X.astype(np.float64).tocoo()
    n_rows, n_features = X.shape
    column, w = entries.col, weight[entries.row]

    def per_column(values: FloatArray) -> FloatArray:
        return np.bincount(column, values, minlength=n_features).astype(np.float64)

    stored = np.bincount(column, minlength=n_features)
    # weight of the zeros that are not stored; exactly 0 for a full column, despite rounding
    absent = np.where(stored == n_rows, 0.0, np.maximum(total - per_column(w), 0.0))
    mean = per_column(w * entries.data) / total
    centred = entries.data - mean[column]
    rest = (per_column(w * centred) - absent * mean) / total
    deviation = per_column(w * centred**2) + absent * mean**2
    return Moments(total, mean + rest, np.maximum(deviation - total * rest**2, 0.0))


def moments(X: Any, weight: FloatArray | None) -> Moments:
    """Weighted mean and squared deviations of each column, in one pass over float64 blocks.

    If squares overflow, the results are not finite, which the callers check.
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
        # corrects for the rounding of the mean
        rest = average(room)
        np.multiply(room, room, out=room)
        deviation = total * np.maximum(average(room) - rest**2, 0.0)
        return Moments(total, mean + rest, deviation)

    blocks: list[Moments] = over_blocks(X, of_block)
    with np.errstate(over="ignore", invalid="ignore"):
        return reduce(Moments.merge, blocks)
