"""Singular values and standard errors from the statistics of an exact fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from scipy.linalg import lapack

from .._data.arrays import chunks
from .._data.statistics import Statistics, unit_columns
from .._runtime.aliases import FloatArray


def singular_values(stats: Statistics) -> FloatArray:
    """Singular values of the weighted rows, centred if there is an intercept."""
    out = np.zeros(min(stats.n_samples, stats.n_features))
    found = scipy.linalg.svdvals(stats.factor[:, : stats.n_features])[: len(out)]
    out[: len(found)] = np.ldexp(found, stats.exponent // 2)
    return out


def why_undefined(stats: Statistics, rank: int) -> str | None:
    """Why least squares on these rows has no standard errors, or None if it does."""
    n_parameters = stats.n_features + stats.intercept
    if rank < stats.n_features:
        return (
            f"the columns of X are dependent or constant (rank {rank} of {stats.n_features}). "
            "Drop redundant columns"
        )
    if stats.n_samples <= n_parameters:
        return (
            f"there are no residual degrees of freedom ({stats.n_samples} rows with non-zero "
            f"weight, {n_parameters} parameters). Use more rows"
        )
    return None


@dataclass(frozen=True)
class StandardErrors:
    """Standard errors of unpenalised full-rank least squares.

    `inverse` is the inverse of the triangular factor of the unit columns, `norms` are the column
    norms, and `variance` is the residual variance of each target.
    """

    stats: Statistics
    inverse: FloatArray
    norms: FloatArray
    variance: FloatArray

    @classmethod
    def of(cls, stats: Statistics) -> StandardErrors:
        """From the statistics of the rows; weights are inverse variances."""
        unit, norms = unit_columns(stats.factor[:, : stats.n_features])
        inverse = lapack.dtrtri(unit, lower=0)[0]
        degrees = stats.n_samples - stats.n_features - stats.intercept
        return cls(stats, inverse, norms, stats.residual_ss / degrees)

    def of_coefficients(self) -> FloatArray:
        """Standard errors of the coefficients, of shape (n_targets, n_features)."""
        leverage = np.sqrt(np.einsum("ij,ij->i", self.inverse, self.inverse)) / self.norms
        out: FloatArray = np.sqrt(self.variance)[:, None] * leverage
        return out

    def of_intercepts(self) -> FloatArray:
        """Standard errors of the intercepts, of shape (n_targets,)."""
        stats = self.stats
        mean = (stats.mean[: stats.n_features] / self.norms) @ self.inverse
        out: FloatArray = np.sqrt(self.variance * (1.0 / stats.weight + mean @ mean))
        return out

    def of_means(self, X: Any) -> FloatArray:
        """Standard errors of the predicted mean at each row, of shape (n_rows, n_targets)."""
        stats, d = self.stats, self.stats.n_features
        leverage = np.empty(X.shape[0])
        for part in chunks(X.shape[0], d):
            rows = X[part].toarray() if sp.issparse(X) else X[part]
            whitened = ((rows - stats.shift[:d] - stats.offset[:d]) / self.norms) @ self.inverse
            leverage[part] = np.einsum("ij,ij->i", whitened, whitened)
        if stats.intercept:
            leverage += 1.0 / stats.weight
        out: FloatArray = np.sqrt(leverage[:, None] * self.variance)
        return out
