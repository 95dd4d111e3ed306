"""Least squares and ridge in closed form from their statistics, of full rank or not.

The rows are represented by a matrix A with at most as many rows as columns, square and triangular
if there were enough rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

from .._data.conditioning import (
    INDEPENDENT_ROWS,
    TWICE_REFINABLE,
    condition_number,
    surely_independent,
)
from .._data.scaling import Scaling, column_scale
from .._data.statistics import Statistics, unit_columns
from .._runtime.aliases import Array, FloatArray, Mask
from .._spec import FitSpec
from .refinement import Preconditioner

# rows whose sizes differ by less than this factor need no sorting in a QR decomposition
EVEN_SIZES = 100.0
# relative coefficient below which a column takes no part in a linear dependency
NO_PART = 1e-11
# up to this many columns a basis of their null space is computed
MANY_COLUMNS = 1000


@dataclass(frozen=True)
class Problem:
    """Centred least squares ``|A b - c|**2 + residual_ss`` in the user's units, and its scaling."""

    A: FloatArray  # min(n, n_features), n_features
    c: FloatArray  # min(n, n_features), n_targets
    residual_ss: FloatArray  # n_targets
    scaling: Scaling
    weight: float


def make_problem(stats: Statistics, spec: FitSpec) -> Problem:
    d = stats.n_features
    x, y = stats.moments()
    A, varying = stats.factor[:, :d], column_scale(x, stats.intercept) > 0
    if not varying.all():
        A = np.where(varying, A, 0.0)
    scaling = spec.scaling(x, y)
    return Problem(A, stats.factor[:, d:], stats.residual_ss, scaling, stats.weight)


@dataclass(frozen=True)
class Solution:
    """Coefficients of shape (n_features, n_targets) in the user's units, and the rank of X.

    `precondition` is set if the non-constant columns are independent, `squares` if the residual
    sums of squares are already known, and `path` if it differs from that of the statistics.
    """

    coef: FloatArray
    rank: int | None = None
    precondition: Preconditioner | None = None
    squares: FloatArray | None = None
    path: str | None = None


def is_of_full_rank(p: Problem, tol: float) -> bool:
    """Whether the columns, or the rows if fewer, are independent at a relative cut-off.

    Constant columns are ignored.
    """
    unit, norms = unit_columns(p.A)
    varying = norms > 0
    if not varying.any():
        return True
    unit, _ = _triangular(unit, p.c, varying)
    return bool(_rank(unit, tol)[0] == min(unit.shape))


def ridge_path(p: Problem, dampings: FloatArray) -> FloatArray:
    """Ridge for several positive penalties, from one decomposition.

    Parameters
    ----------
    p : Problem
        Centred least squares.
    dampings : ndarray of shape (n_penalties,)
        Weights of the squared coefficients relative to the residual sum of squares.

    Returns
    -------
    ndarray of shape (n_penalties, n_features, n_targets)
        Coefficients in the user's units.
    """
    factor = p.scaling.x_factor
    U, S, Vh = scipy.linalg.svd(p.A * factor, full_matrices=False)
    # n_penalties, rank, n_targets
    shrunk = (S / (S**2 + dampings[:, None]))[:, :, None] * (U.T @ p.c)
    out: FloatArray = np.einsum("rd,arc->adc", Vh * factor, shrunk, optimize=True)
    return out


def _triangular(A: FloatArray, c: FloatArray, varying: Mask) -> tuple[FloatArray, FloatArray]:
    """The varying columns of A, square and triangular if A has enough rows, and c to match."""
    if varying.all():
        return A, c
    constant = ~varying
    if len(A) == len(varying) and not A[constant].any():
        # a factor from the Gram matrix has zero rows there
        return A[np.ix_(varying, varying)], c[varying]
    Q, R = np.linalg.qr(A[:, varying])
    return R, Q.T @ c


def of_full_rank(p: Preconditioner, qt_y: FloatArray) -> Solution:
    """Least squares from the triangle of independent columns and the rotated targets."""
    coef = p.factor[:, None] * lapack.dtrtrs(p.triangle, qt_y, lower=0)[0]
    return Solution(p.scatter(coef), len(coef), p)


def closed_form(p: Problem, spec: FitSpec, tol: float) -> Solution:
    """Least squares or ridge; the minimum-norm solution if the columns are dependent.

    The solution lies in the row space, in the penalised units if there is a penalty and in the
    user's if not. If the columns are dependent, the problem is solved in a basis of the row space,
    which yields the least-squares solution of minimum norm.
    """
    scaled, norms = unit_columns(p.A)
    varying = norms > 0
    b = np.zeros((p.A.shape[1], p.c.shape[1]))
    if not varying.any() or not p.A.size:
        return Solution(b, 0, path="svd")
    scaled, c = _triangular(scaled, p.c, varying)
    norms = norms[varying]
    damping = spec.objective.damping(p.weight, p.c.shape[1])
    factor = p.scaling.x_factor[varying] if damping > 0 else np.ones(len(norms))
    if len(scaled) < len(norms):
        short = _of_few_rows(scaled, norms * factor, c, damping, tol)
        if short is not None:
            b[varying] = short * factor[:, None]
            return Solution(b, len(scaled), path="cholesky of the rows")
    rank, span, size = _rank(scaled, tol)
    if rank < len(norms):
        if damping == 0 and _uneven(norms) and len(norms) <= MANY_COLUMNS:
            b[varying] = _least_norm(scaled, norms, c, rank)
        else:
            basis = _orthonormal((norms * factor)[:, None] * span, norms * factor)
            z, _ = _least_squares((scaled * (norms * factor)) @ basis, c, damping)
            b[varying] = basis @ z * factor[:, None]
        return Solution(b, rank, path="svd")
    if damping == 0:
        straight = Preconditioner(np.ascontiguousarray(scaled), 1.0 / norms, varying, size)
        return of_full_rank(straight, c)
    z, triangle = _least_squares(scaled * (norms * factor), c, damping)
    b[varying] = z * factor[:, None]
    return Solution(b, rank, Preconditioner(triangle, factor, varying, condition_number(triangle)))


def _uneven(sizes: FloatArray) -> bool:
    return bool(sizes.max() >= EVEN_SIZES * sizes.min())


def _least_norm(unit: FloatArray, norms: FloatArray, c: FloatArray, rank: int) -> FloatArray:
    """Minimum-norm solution for columns ``unit * norms`` of very different sizes and this rank.

    A least-squares solution in unit columns, minus its projection onto the null space in the user's
    units. Predictions do not depend on the accuracy of that projection, which is exactly 0 for
    columns that take no part in a dependency.
    """
    Q, R, pivots = scipy.linalg.qr(unit, mode="economic", pivoting=True)
    solved = lapack.dtrtrs(R[:rank, :rank], np.column_stack([Q.T[:rank] @ c, R[:rank, rank:]]))[0]
    t = np.zeros((len(norms), c.shape[1]))
    t[pivots[:rank]] = solved[:, : c.shape[1]]
    # each dependent column as a combination of the others, with rounding errors set to 0
    parts = solved[:, c.shape[1] :]
    parts[np.abs(parts) < NO_PART * np.abs(parts).max(axis=0, initial=0.0)] = 0.0
    null = np.zeros((len(norms), len(norms) - rank))
    null[pivots[:rank]] = -parts
    null[pivots[rank:]] = np.eye(len(norms) - rank)
    exponent = -np.frexp(norms)[1]
    # scaling by a power of two keeps the largest factor near one
    factor = np.ldexp(1.0 / norms, -int(exponent.max()))
    Q, R, pivots = _sorted_qr(factor[:, None] * null, factor)
    for _ in range(2):
        right = Q.T @ (factor[:, None] * t)
        t = t - null[:, pivots] @ lapack.dtrtrs(R, right, lower=0)[0]
    out: FloatArray = t / norms[:, None]
    return out


def _of_few_rows(
    unit: FloatArray, sizes: FloatArray, c: FloatArray, damping: float, tol: float
) -> FloatArray | None:
    """Minimum-norm or ridge solution for independent rows ``unit * sizes``, from their Gram matrix.

    None if the rows are too close to dependent for that. Rows and targets are scaled by powers of
    two, so that squares of the rows, and targets over squares, are about one.
    """
    at = np.frexp(max(float(sizes.max()), np.sqrt(damping)))[1]
    at_right = np.frexp(np.abs(c).max(axis=0))[1]
    sizes, c = np.ldexp(sizes, -at), np.ldexp(c, -at_right)
    damping = float(np.ldexp(damping, -2 * at))
    R, info = lapack.dpotrf(unit @ unit.T, lower=0)
    size = condition_number(R)
    if info != 0 or size > INDEPENDENT_ROWS or not surely_independent(size, tol):
        return None
    rows = unit * sizes
    K = rows @ rows.T
    K[np.diag_indices(len(K))] += damping
    if not np.diagonal(K).all():
        return None
    scale = 1.0 / np.sqrt(np.diagonal(K))[:, None]
    R, info = lapack.dpotrf(K * scale * scale.T, lower=0)
    if info != 0 or condition_number(R) ** 2 > TWICE_REFINABLE:
        return None
    z = scale * lapack.dpotrs(R, scale * c, lower=0)[0]
    for _ in range(2):
        residual = c - rows @ (rows.T @ z) - damping * z
        z += scale * lapack.dpotrs(R, scale * residual, lower=0)[0]
    out: FloatArray = np.ldexp(rows.T @ z, at_right - at)
    return out


def _least_squares(
    rows: FloatArray, right: FloatArray, damping: float
) -> tuple[FloatArray, FloatArray]:
    """Minimiser of ``|rows @ z - right|**2 + damping * |z|**2``, and its triangular factor."""
    rows, right = damped(rows, right, damping)
    unit, norms = unit_columns(rows)
    Q, R = scipy.linalg.qr(unit, mode="economic")
    return scipy.linalg.solve_triangular(R, Q.T @ right) / norms[:, None], R * norms


def _rank(unit: FloatArray, tol: float) -> tuple[int, FloatArray, float]:
    """Rank of unit columns, vectors that span their row space, and their condition number.

    Singular values are only computed if the triangle does not settle the rank.
    """
    wide = len(unit) < unit.shape[1]
    Q, R = np.linalg.qr(unit.T) if wide else (None, unit)
    size = condition_number(R)
    if surely_independent(size, tol):
        return len(R), unit.T, size
    _, S, Vh = scipy.linalg.svd(R.T if wide else R)
    rank = int(np.sum(S > tol * S[0]))
    span = Vh[:rank].T
    return rank, (span if Q is None else Q @ span), size


def _orthonormal(columns: FloatArray, sizes: FloatArray) -> FloatArray:
    """Orthonormal basis of the span of `columns`, whose rows have these sizes."""
    if not _uneven(sizes):
        return np.linalg.qr(columns)[0]
    return _sorted_qr(columns, sizes)[0]


def _sorted_qr(columns: FloatArray, sizes: FloatArray) -> tuple[FloatArray, FloatArray, Array]:
    """Pivoted QR decomposition of columns whose rows have very different sizes.

    With the rows sorted by size it is accurate row by row (Cox and Higham, 1998).
    """
    order = np.argsort(-sizes, kind="stable")
    Q, R, pivots = scipy.linalg.qr(columns[order], mode="economic", pivoting=True)
    out = np.empty_like(Q)
    out[order] = Q
    return out, R, pivots


def damped(rows: FloatArray, right: FloatArray, damping: float) -> tuple[FloatArray, FloatArray]:
    """Rows and right-hand sides, with those of the ridge term appended."""
    if damping == 0:
        return rows, right
    d = rows.shape[1]
    return (
        np.vstack([rows, np.sqrt(damping) * np.eye(d)]),
        np.vstack([right, np.zeros((d, right.shape[1]))]),
    )
