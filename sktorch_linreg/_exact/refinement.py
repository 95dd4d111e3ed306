"""Iterative refinement of least squares: Newton steps from the remaining gradient.

The gradient at the solution is computed from the rows themselves, so it is free of the rounding
errors of the statistics. In float64 one step recovers what a Cholesky decomposition of the Gram
matrix lost; in twice the precision (Björck, 1967) steps are repeated until every coefficient has
converged, which they do unless the columns are collinear to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
import scipy.sparse as sp
from scipy.linalg import lapack

from .._data.blocks import blocks
from .._data.rows import TrainingData
from .._data.scaling import reciprocal
from .._data.statistics import EPS, Statistics
from .._runtime.aliases import FloatArray, Mask
from .._runtime.double_double import Pair, add, halves, total, two_product, two_sum
from .._runtime.threads import n_spans, over_spans

# entries per block of a residual in twice the precision, which takes a dozen copies of them
EXTENDED_ENTRIES = 2**14
MAX_PASSES = 12
# changes this small count as rounding, even if they no longer shrink
SETTLED = 1e-9
# relative change below which no digit of a float64 number changes
SETTLING = EPS / 16


def residual_gradient(
    X: FloatArray, y: FloatArray, weight: FloatArray | None, coef: Pair, intercept: Pair
) -> tuple[Pair, float]:
    """Sums ``(w * r) @ [X, 1]`` of the residuals r of one target, and of their weighted squares.

    `coef` is a pair of arrays of shape (n_features,), `intercept` a pair of scalars.
    """
    X_halves = halves(X)
    terms = np.empty((X.shape[1] + 2, len(X)))
    # features first, so that sums run over contiguous rows
    product, error = two_product(X, coef[0], X_halves)
    np.negative(product.T, out=terms[2:])
    terms[0], terms[1] = y, -intercept[0]
    r = total(terms, -(np.add.reduce(error, axis=1) + X @ coef[1] + intercept[1]))
    v = r
    if weight is not None:
        product, error = two_product(r[0], weight)
        v = two_sum(product, error + r[1] * weight)
    terms = np.empty((len(X), X.shape[1] + 1))
    product, error = two_product(X, v[0][:, None], X_halves)
    terms[:, :-1], terms[:, -1] = product, v[0]
    low = np.empty(X.shape[1] + 1)
    np.add(np.add.reduce(error), v[1] @ X, out=low[:-1])
    low[-1] = np.add.reduce(v[1])
    return total(terms, low), float(r[0] @ v[0])


def affine(base: FloatArray, a: FloatArray, b: FloatArray) -> FloatArray:
    """``base.sum(axis=0) - a @ b``, rounded once; `b` has one column per target."""
    product, error = two_product(a[:, None], b)
    high, low = total(np.concatenate([base, -product]), -np.add.reduce(error))
    out: FloatArray = high + low
    return out


@dataclass(frozen=True)
class Preconditioner:
    """``triangle.T @ triangle`` is the Hessian of the `varying` columns times `factor`."""

    triangle: FloatArray
    factor: FloatArray
    varying: Mask
    condition: float

    def step(self, gradient: FloatArray) -> FloatArray:
        """Newton step for a gradient of shape (n_features, n_targets)."""
        factor = self.factor[:, None]
        half = lapack.dtrtrs(self.triangle, factor * gradient[self.varying], lower=0, trans=1)[0]
        return self.scatter(factor * lapack.dtrtrs(self.triangle, half, lower=0)[0])

    def scatter(self, rows: FloatArray) -> FloatArray:
        """One row per varying column, with rows of 0 for the others."""
        if len(rows) == len(self.varying):
            return rows
        out = np.zeros((len(self.varying), rows.shape[1]))
        out[self.varying] = rows
        return out


@dataclass(frozen=True)
class Refined:
    """Coefficients (n_features, n_targets), intercepts, and weighted residual sums of squares.

    `squares` is from before the last step, which changes it only to second order.
    """

    coef: FloatArray
    intercept: FloatArray
    squares: FloatArray


def _span_gradient(
    data: TrainingData,
    shift: FloatArray,
    coef: FloatArray,
    constant: FloatArray,
    start: int,
    stop: int,
) -> FloatArray:
    """Rows [X' v, sum of v, squares] of the weighted residuals v, one column per target."""
    d, k = coef.shape
    out = np.zeros((d + 2, k))
    product = np.empty((d, k))
    for part, x in blocks(data, shift, start, stop, rooted=False):
        r = data.y[part] - (shift[d:] + constant)
        r -= np.dot(x, coef)
        v = r if data.weight is None else r * data.weight[part][:, None]
        out[:d] += np.dot(x.T, v, out=product)
        out[d] += v.sum(axis=0)
        out[d + 1] += np.einsum("ij,ij->j", r, v)
    return out


def _gradient(
    data: TrainingData, shift: FloatArray, coef: FloatArray, constant: FloatArray
) -> FloatArray:
    d = len(coef)
    if sp.issparse(data.X) and not shift[:d].any():
        r = data.y - (shift[d:] + constant) - data.X @ coef
        v = r if data.weight is None else r * data.weight[:, None]
        return np.vstack([data.X.T @ v, v.sum(axis=0), np.einsum("ij,ij->j", r, v)])

    def work(start: int, stop: int) -> FloatArray:
        return _span_gradient(data, shift, coef, constant, start, stop)

    # both products are limited by memory, so rows cost more than their multiplications
    return reduce(np.add, over_spans(work, data.n_samples, n_spans(data.n_samples, 16 * d, d)))


def _long_gradient(
    data: TrainingData, shift: FloatArray, coef: FloatArray, constant: FloatArray
) -> FloatArray:
    """As `_gradient`, for a few dense rows, in long double."""
    d = len(coef)
    x = data.X.astype(np.longdouble) - shift[:d]
    r = data.y - shift[d:].astype(np.longdouble)
    r -= constant
    r -= x @ coef
    v = r if data.weight is None else r * data.weight[:, None]
    out: FloatArray = np.concatenate([x.T @ v, [v.sum(axis=0), (r * v).sum(axis=0)]])
    return out.astype(np.float64)


def residual_squares(data: TrainingData, stats: Statistics, coef: FloatArray) -> FloatArray:
    """Weighted residual sum of squares of each target, from the rows themselves."""
    d = stats.n_features
    constant = np.zeros(coef.shape[1])
    if stats.intercept:
        constant = stats.offset[d:] - stats.offset[:d] @ coef
    out: FloatArray = _gradient(data, stats.shift, coef, constant)[-1]
    return out


def refine_once(
    data: TrainingData,
    stats: Statistics,
    precondition: Preconditioner,
    penalty: FloatArray,
    coef: FloatArray,
    *,
    few: bool = False,
) -> Refined:
    """One step from `coef`, with the gradient in float64, or in long double for a few rows."""
    d = stats.n_features
    shift, x_mean, y_mean = stats.shift, stats.offset[:d], stats.offset[d:]
    constant = y_mean - x_mean @ coef if stats.intercept else np.zeros(len(y_mean))
    out = (_long_gradient if few else _gradient)(data, shift, coef, constant)
    g, g0, squares = out[:d], out[d], out[d + 1]
    change = np.zeros_like(constant)
    if stats.intercept:
        g = g - x_mean[:, None] * g0
        change = g0 / stats.weight
    step = precondition.step(g - penalty[:, None] * coef)
    if stats.intercept:
        change = change - x_mean @ step
    coef = coef + step
    if few:
        # for a single step this is as accurate as the pairs of affine
        intercept = shift[d:].astype(np.longdouble) - shift[:d].astype(np.longdouble) @ coef
        return Refined(coef, (intercept + constant + change).astype(np.float64), squares)
    base = np.stack([shift[d:], constant, change])
    return Refined(coef, affine(base, shift[:d], coef), squares)


# -- twice the precision ------------------------------------------------------------------------


def _both(a: tuple[Pair, FloatArray], b: tuple[Pair, FloatArray]) -> tuple[Pair, FloatArray]:
    return add(a[0], b[0]), a[1] + b[1]


def _extended_gradient(
    data: TrainingData, coef: Pair, intercept: Pair
) -> tuple[Pair, Pair, FloatArray]:
    """Gradient (n_features, n_targets), sums of the residuals, and sums of their squares."""
    d, k = coef[0].shape
    step = max(1, EXTENDED_ENTRIES // d)

    def work(start: int, stop: int) -> tuple[Pair, FloatArray]:
        high, low, squares = np.zeros((d + 1, k)), np.zeros((d + 1, k)), np.zeros(k)
        for i in range(start, stop, step):
            part = slice(i, min(i + step, stop))
            rows = data.X[part]
            x = np.asarray(rows.toarray() if sp.issparse(rows) else rows, dtype=np.float64)
            y = np.asarray(data.y[part], dtype=np.float64)
            weight = None if data.weight is None else data.weight[part]
            for t in range(k):
                one, its = (coef[0][:, t], coef[1][:, t]), (intercept[0][t], intercept[1][t])
                more, square = residual_gradient(x, y[:, t], weight, one, its)
                high[:, t], low[:, t] = more if i == start else add((high[:, t], low[:, t]), more)
                squares[t] += square
        return (high, low), squares

    parts = over_spans(work, data.n_samples, n_spans(data.n_samples, 64 * d * k, step))
    sums, squares = reduce(_both, parts)
    return (sums[0][:d], sums[1][:d]), (sums[0][d], sums[1][d]), squares


def _natural_sizes(stats: Statistics, coef: FloatArray) -> FloatArray:
    """Natural size of each coefficient, and last the intercept, for values near zero."""
    x, y = stats.moments()
    slopes = np.sqrt(y.deviation) * np.sqrt(reciprocal(x.deviation))[:, None]
    terms = np.abs(y.mean) + np.abs(x.mean) @ np.abs(coef)
    return np.vstack([slopes, np.maximum(terms, np.sqrt(y.deviation / y.weight))])


def _largest(moved: FloatArray, against: FloatArray) -> float:
    """Largest change relative to its reference size."""
    return float((moved * reciprocal(against)).max())


def refine_fully(
    data: TrainingData,
    stats: Statistics,
    precondition: Preconditioner,
    penalty: FloatArray,
    coef: FloatArray,
) -> Refined | None:
    """Steps from `coef` until no digit changes; None if they do not converge."""
    d, k = coef.shape
    mean = stats.mean
    both: Pair = (coef, np.zeros((d, k)))
    constant: Pair = (np.zeros(k), np.zeros(k))
    if stats.intercept:
        constant = (mean[d:] - mean[:d] @ coef, constant[1])
    natural = _natural_sizes(stats, coef)
    before, rate = np.inf, 4 * EPS * precondition.condition
    for _ in range(MAX_PASSES):
        g, g0, squares = _extended_gradient(data, both, constant)
        change = np.zeros(k)
        if stats.intercept:
            high, low = two_product(mean[:d, None], g0[0][None])
            g = add(g, (-high, -low - mean[:d, None] * g0[1]))
            change = g0[0] / stats.weight
        step = precondition.step(g[0] - penalty[:, None] * both[0])
        if stats.intercept:
            change = change - mean[:d] @ step
        moved = np.abs(np.concatenate([step, change[None]]))
        value = np.abs(np.concatenate([both[0], constant[0][None]]))
        # progress is relative to natural sizes, since a value that should be 0 changes by 100 %
        size = _largest(moved, np.maximum(value, natural))
        if not np.isfinite(size + squares.sum()):
            return None
        if size > 0.5 * before:
            # at the limit of the precision, or too collinear to converge
            return None if size > SETTLED else Refined(both[0], constant[0], squares)
        both = add(both, (step, np.zeros((d, k))))
        constant = add(constant, (change, np.zeros(k)))
        # the expected size of the next step, if it shrinks by the same factor
        shrinking = max(size if before == np.inf else size / before, rate)
        if _largest(moved, np.maximum(value, EPS * natural)) * shrinking <= SETTLING:
            break
        before = size
    return Refined(both[0], constant[0], squares)
