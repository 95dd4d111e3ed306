"""Detection of columns whose squares overflow or underflow float64, from their sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from .._errors import ExtremeScales
from .._runtime.aliases import Array, FloatArray
from .moments import Moments
from .rows import TrainingData

# sums of squares are accurate in this range ...
SMALLEST_SQUARES, LARGEST_SQUARES = 1e-280, 1e300
# ... and squares of numbers above this
SMALLEST = 1e-140


def largest_size(X: Any, columns: Array, weight: FloatArray | None = None) -> FloatArray:
    """Largest absolute value, times the root of its weight, in each of the given columns."""
    root = None if weight is None else np.sqrt(weight)
    if sp.issparse(X):
        csc = X.tocsc()
        parts = [slice(csc.indptr[j], csc.indptr[j + 1]) for j in columns]
        found = [np.abs(csc.data[part]).astype(np.float64) for part in parts]
        if root is not None:
            found = [a * root[csc.indices[part]] for a, part in zip(found, parts, strict=True)]
        return np.array([float(a.max(initial=0.0)) for a in found])
    if root is not None:
        return np.array([float((np.abs(X[:, j]) * root).max()) for j in columns])
    return np.array([max(float(X[:, j].max()), -float(X[:, j].min())) for j in columns])


def _is_extreme(X: Any, weight: FloatArray | None, squares: FloatArray) -> bool:
    if not (squares <= LARGEST_SQUARES).all():
        return True
    small = np.flatnonzero(squares < SMALLEST_SQUARES)
    if not len(small):
        return False
    # zero and constant columns have no squared deviations either
    size = largest_size(X, small, weight)
    return bool(((size > 0) & (size < SMALLEST)).any())


def check_squares(data: TrainingData, x_squares: FloatArray, y_squares: FloatArray | None) -> None:
    """Raise ExtremeScales if the squares of a column overflow or underflow.

    `y_squares` is None if nothing is scaled by the targets.
    """
    if _is_extreme(data.X, data.weight, x_squares):
        raise ExtremeScales
    if y_squares is not None and _is_extreme(data.y, data.weight, y_squares):
        raise ExtremeScales


def check_moments(data: TrainingData, x: Moments, y: Moments | None) -> None:
    """As `check_squares`, from the moments of the columns."""
    check_squares(data, x.deviation, None if y is None else y.deviation)


def column_exponents(X: Any, weight: FloatArray | None) -> Array:
    """Exponents of two that scale each column to about one; a common one if that suffices."""
    size = largest_size(X, np.arange(X.shape[1]), weight)
    exponent = np.frexp(size)[1]
    varying = size > 0
    if not varying.any():
        return np.zeros(len(size), dtype=np.int64)
    out = np.full(len(size), exponent[varying].max(), dtype=np.int64)
    if (exponent[varying].min() - out[0]) < np.frexp(SMALLEST)[1]:
        out = np.where(varying, exponent, 0).astype(np.int64)
    return out
