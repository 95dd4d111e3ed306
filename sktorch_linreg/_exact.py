"""Exact least squares: closed form, ridge, non-negative and L1-penalised.

All of them are solved from the sufficient statistics, and least squares then is refined on the
rows, as far as their conditioning asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.sparse as sp
from scipy.linalg import lapack

from ._data import column_scale, make_scaling
from ._gather import Gathered, gather
from ._lsqr import solve_iteratively
from ._quadratic import proximal_quadratic
from ._refinement import Preconditioner, Refined, refine_fully, refine_once
from ._statistics import EPS, Statistics, condition, unit_columns
from ._threads import quiet_blas
from ._types import FitResult, FitSpec, FloatArray, Mask, Scaling, TrainingData

# a sparse X with more columns is solved by iteration, since its factor would be dense
MAX_FACTOR_FEATURES = 2000
# LinearRegression's own cut-off: no column that it keeps is dropped here
COARSEST_TOL = 1e-6
# estimated condition numbers may fall short by a factor of three or so
CERTAINLY = 10.0
# what a Gram matrix may multiply rounding errors by: with the rows at hand for a refinement ...
REFINABLE = 1e10
# ... and without them
MERGEABLE = 1e4
# rounding errors in units of the precision of X: up to here there is nothing to refine ...
NEGLIGIBLE = 10.0
# ... and up to here a gradient in float64 is good enough
MODERATE = 1e6
# up to this many entries a gradient in longer floats costs no more than the checks of a fit,
FEW_ENTRIES = 2**11
# and is good enough up to here
LITTLE = 1e3
# share of the squares of a target below which a residual is not taken from sums
SMALL_RESIDUAL = 1e-8


@dataclass(frozen=True)
class _Problem:
    """Centred least squares ``|A b - c|**2 + rest`` in the user's units, and its scaling."""

    A: FloatArray  # min(n, n_features), n_features
    c: FloatArray  # min(n, n_features), n_targets
    rest: FloatArray  # n_targets
    scaling: Scaling
    scale: FloatArray  # n_features, standard deviations
    weight: float


def _problem(stats: Statistics, spec: FitSpec) -> _Problem:
    d = stats.n_features
    x, y = stats.moments()
    A, scale = stats.factor[:, :d], column_scale(x, stats.intercept)
    if not scale.all():
        A = np.where(scale > 0, A, 0.0)
    scaling = make_scaling(x, y, spec)
    return _Problem(A, stats.factor[:, d:], stats.rest, scaling, scale, stats.weight)


def rank_tolerance(tol: float | None, eps: float, shape: tuple[int, int]) -> float:
    """Relative singular-value cut-off: machine epsilon x max(shape), never coarser than 1e-6."""
    return min(eps * max(shape), COARSEST_TOL) if tol is None else tol


@dataclass(frozen=True)
class _Solution:
    """Coefficients of shape (n_features, n_targets) in the user's units, and the rank of X.

    `precondition` is there where the columns that are not constant are independent, and `squares`
    of the residuals where they are known already.
    """

    coef: FloatArray
    rank: int | None = None
    precondition: Preconditioner | None = None
    squares: FloatArray | None = None


def _triangular(A: FloatArray, c: FloatArray, live: Mask) -> tuple[FloatArray, FloatArray]:
    """The live columns of A, square and triangular if A has as many rows, and c beside them."""
    if live.all():
        return A, c
    dead = ~live
    if len(A) == len(live) and not A[dead].any():
        # a factor from the Gram matrix has nothing there
        return A[np.ix_(live, live)], c[live]
    Q, R = scipy.linalg.qr(A[:, live], mode="economic")
    return R, Q.T @ c


def _directly(g: Gathered, spec: FitSpec) -> _Solution | None:
    """Least squares from the decomposition at hand, unless it may be rank-deficient."""
    u, stats = g.unit, g.stats
    if u is None or spec.l2 or solver_name(spec) != "lstsq":
        return None
    shape = (stats.n_samples, stats.n_features)
    if CERTAINLY * u.condition * rank_tolerance(spec.tol, stats.eps, shape) > 1.0:
        return None
    factor = 1.0 / u.norms
    coef = factor[:, None] * lapack.dtrtrs(u.triangle, u.turned, lower=0)[0]
    if len(coef) < stats.n_features:
        live = coef
        coef = np.zeros((stats.n_features, live.shape[1]))
        coef[u.live] = live
    precondition = Preconditioner(u.triangle, factor, u.live, u.condition)
    return _Solution(coef, len(factor), precondition, stats.rest)


def _closed_form(p: _Problem, spec: FitSpec, tol: float) -> _Solution:
    """Least squares or ridge, of least norm where the columns are dependent.

    The solution lies in the row space, of the penalised units if there is a penalty and of the
    user's if not. If that is not the whole space, a basis of it takes the place of the columns,
    and of all least-squares solutions the one of least norm comes out.
    """
    scaled, norms = unit_columns(p.A)
    live = norms > 0
    b = np.zeros((p.A.shape[1], p.c.shape[1]))
    if not live.any() or not p.A.size:
        return _Solution(b, 0)
    scaled, c = _triangular(scaled, p.c, live)
    norms = norms[live]
    damping = spec.damping(p.weight, p.c.shape[1])
    rank = len(norms)
    size = condition(scaled) if len(scaled) == rank else np.inf
    if CERTAINLY * size * tol > 1.0:
        _, S, Vh = scipy.linalg.svd(scaled, full_matrices=False)
        rank = int(np.sum(S > tol * S[0]))
        if rank < len(norms):
            factor = p.scaling.x_factor[live] if damping > 0 else np.ones(len(norms))
            basis = _row_space(norms * factor, Vh[:rank])
            z, _ = _least_squares((scaled * (norms * factor)) @ basis, c, damping)
            b[live] = basis @ z * factor[:, None]
            return _Solution(b, rank)
    if damping == 0:
        triangle, factor = np.ascontiguousarray(scaled), 1.0 / norms
        z = lapack.dtrtrs(triangle, c, lower=0)[0]
    else:
        factor = p.scaling.x_factor[live]
        z, triangle = _least_squares(scaled * (norms * factor), c, damping)
        size = condition(triangle)
    b[live] = z * factor[:, None]
    return _Solution(b, rank, Preconditioner(triangle, factor, live, size))


def _least_squares(
    rows: FloatArray, right: FloatArray, damping: float
) -> tuple[FloatArray, FloatArray]:
    """Minimiser of ``|rows @ z - right|**2 + damping * |z|**2``, and its triangular factor."""
    rows, right = _damped(rows, right, damping)
    unit, norms = unit_columns(rows)
    Q, R = scipy.linalg.qr(unit, mode="economic")
    return scipy.linalg.solve_triangular(R, Q.T @ right) / norms[:, None], R * norms


def _row_space(norms: FloatArray, Vh: FloatArray) -> FloatArray:
    """Orthonormal basis of the row space of ``U S Vh D``, with D the norms, as columns."""
    # rows sorted by size keep a QR with very different row scales accurate (Cox and Higham, 1998)
    order = np.argsort(-norms, kind="stable")
    Q = scipy.linalg.qr((norms[:, None] * Vh.T)[order], mode="economic", pivoting=True)[0]
    basis: FloatArray = np.empty_like(Q)
    basis[order] = Q
    return basis


def _damped(rows: FloatArray, right: FloatArray, damping: float) -> tuple[FloatArray, FloatArray]:
    """Rows and right-hand sides with those of the ridge term below."""
    if damping == 0:
        return rows, right
    d = rows.shape[1]
    return (
        np.vstack([rows, np.sqrt(damping) * np.eye(d)]),
        np.vstack([right, np.zeros((d, right.shape[1]))]),
    )


def _non_negative(p: _Problem, spec: FitSpec) -> FloatArray:
    """Non-negative least squares (Lawson and Hanson, 1974), target by target."""
    damping = spec.damping(p.weight, p.c.shape[1])
    rows, right = _damped(p.A * p.scaling.x_factor, p.c, damping)
    rows, norms = unit_columns(rows)
    out = np.zeros((p.A.shape[1], p.c.shape[1]))
    live = norms > 0
    if rows.size and live.any():
        limit = max(1000, 30 * rows.shape[1])
        for t in range(right.shape[1]):
            found = scipy.optimize.nnls(rows[:, live], right[:, t], maxiter=limit)[0]
            out[live, t] = found / norms[live]
    return out * p.scaling.x_factor[:, None]


def _elastic_net(p: _Problem, spec: FitSpec) -> FloatArray:
    """Squared error with an L1 term, target by target, in the space that is penalised."""
    A, c = p.A * p.scaling.x_factor, p.c / p.scaling.y_scale
    share = 2.0 / (p.weight * c.shape[1])
    H = share * (A.T @ A) + spec.l2 * np.eye(A.shape[1])
    q = share * (A.T @ c)
    columns = [proximal_quadratic(H, column, spec.l1, spec.positive) for column in q.T]
    b = np.stack(columns, axis=1)
    out: FloatArray = b * p.scaling.x_factor[:, None] * p.scaling.y_scale
    return out


def solver_name(spec: FitSpec) -> str:
    """Name of the exact solver of this objective, as `optimizer_` reports it."""
    if spec.l1:
        return "fista"
    return "nnls" if spec.positive else "lstsq"


def handles(data: TrainingData, spec: FitSpec) -> bool:
    """Whether an exact solver fits this objective and size."""
    if spec.loss.name != "squared_error":
        return False
    if sp.issparse(data.X) and data.n_features > MAX_FACTOR_FEATURES:
        # partial_fit would need the dense factor that LSQR avoids
        return solver_name(spec) == "lstsq" and not spec.incremental
    return spec.l1 == 0 or data.n_features <= 2 * MAX_FACTOR_FEATURES


def _minimiser(p: _Problem, stats: Statistics, spec: FitSpec) -> _Solution:
    name = solver_name(spec)
    if name == "lstsq":
        shape = (stats.n_samples, stats.n_features)
        return _closed_form(p, spec, rank_tolerance(spec.tol, stats.eps, shape))
    return _Solution(_non_negative(p, spec) if name == "nnls" else _elastic_net(p, spec))


def _intercept(stats: Statistics, coef: FloatArray) -> FloatArray | None:
    if not stats.intercept:
        return None
    d = stats.n_features
    # large means cancel among themselves
    large: FloatArray = stats.shift[d:] - stats.shift[:d] @ coef
    return large + (stats.offset[d:] - stats.offset[:d] @ coef)


def _refine(
    data: TrainingData, g: Gathered, s: _Solution, penalty: FloatArray
) -> tuple[Refined | None, str]:
    """The solution refined on the rows as far as its conditioning asks, and how that was done."""
    if s.precondition is None:
        return None, ""
    errors = s.precondition.condition**2 * g.cancellation * EPS / g.stats.eps
    noiseless = bool((g.stats.rest < SMALL_RESIDUAL * g.stats.target_squares).any())
    # a few rows cost so little that no digit is left to chance
    few = data.n_samples * data.n_features <= FEW_ENTRIES and g.stats.eps == EPS
    few = few and not sp.issparse(data.X)
    if errors <= NEGLIGIBLE and not (few or noiseless):
        return None, ""
    if errors > (LITTLE if few else MODERATE):
        refined = refine_fully(data, g.stats, s.precondition, penalty, s.coef)
        if refined is not None:
            return refined, ", refined in extended precision"
    once = refine_once(data, g.stats, g.shifted, s.precondition, penalty, s.coef, few=few)
    return once, ", refined"


def _loss(spec: FitSpec, stats: Statistics, squares: FloatArray, coef: FloatArray) -> float:
    """The objective, given the weighted squares of the residuals of each target."""
    if not spec.alpha:
        # most fits are this one, and the scales of the features then do not matter
        variance: FloatArray | float = 1.0
        if spec.standardize:
            variance = stats.target_squares / stats.weight
            level = 4 * EPS * np.abs(stats.mean[stats.n_features :]) * stats.intercept
            variance = np.where(variance > level**2, variance, 1.0)
        return float(np.add.reduce(squares / variance)) / len(squares) / stats.weight
    return objective(spec, make_scaling(*stats.moments(), spec), squares, stats.weight, coef)


def objective(
    spec: FitSpec, scaling: Scaling, squares: FloatArray, weight: float, coef: FloatArray
) -> float:
    """The objective with its penalty, in the space that is penalised."""
    w = coef * scaling.x_scale[:, None] / scaling.y_scale
    loss = float(np.mean(squares / weight / scaling.y_scale**2))
    return loss + spec.l1 * float(np.abs(w).sum()) + 0.5 * spec.l2 * float(np.sum(w**2))


def _result(
    spec: FitSpec,
    loss: float,
    coef: FloatArray,
    intercept: FloatArray | None,
    path: str,
    rank: int | None = None,
) -> FitResult:
    return FitResult(
        layers=[(np.ascontiguousarray(coef.T), intercept)],
        loss=loss,
        loss_curve=[loss],
        validation_loss_curve=[],
        best_loss=loss,
        n_iter=1,
        optimizer=solver_name(spec),
        history=[{"epoch": 1, "train_loss": loss}],
        rank=rank,
        path_taken=path,
    )


def _solution(g: Gathered, spec: FitSpec) -> tuple[_Solution, FloatArray]:
    """The minimiser from the statistics alone, and what is added per squared coefficient."""
    direct = _directly(g, spec)
    if direct is not None:
        return direct, np.zeros(g.stats.n_features)
    p = _problem(g.stats, spec)
    s = _minimiser(p, g.stats, spec)
    damping = spec.damping(p.weight, p.c.shape[1])
    penalty = damping * p.scaling.x_scale**2 if damping else np.zeros(len(s.coef))
    squares = np.sum((p.A @ s.coef - p.c) ** 2, axis=0) + p.rest
    return replace(s, squares=squares), penalty


def _path(g: Gathered, s: _Solution, spec: FitSpec) -> str:
    """Decompositions that led to the solution."""
    if solver_name(spec) != "lstsq":
        return f"{g.path}, {solver_name(spec)}"
    return g.path if s.precondition is not None else "svd"


def _solve(g: Gathered, spec: FitSpec, data: TrainingData | None) -> tuple[FitResult, Statistics]:
    """The exact minimiser, refined on the rows of `data` where they are at hand."""
    stats = g.stats
    s, penalty = _solution(g, spec)
    path, coef, squares = _path(g, s, spec), s.coef, s.squares
    refined, how = (None, "") if data is None else _refine(data, g, s, penalty)
    if refined is None:
        intercept = _intercept(stats, coef)
    else:
        coef, squares = refined.coef, refined.squares
        intercept = refined.intercept if stats.intercept else None
        if spec.l2 == 0:
            # at the minimum the rows of the factor leave no residual
            stats = replace(stats, rest=squares)
    assert squares is not None
    loss = _loss(spec, stats, squares, coef)
    return _result(spec, loss, coef, intercept, path + how, s.rank), stats


def fit(data: TrainingData, spec: FitSpec) -> tuple[FitResult, Statistics | None]:
    """The exact minimiser, with the statistics it came from where there are any."""
    if sp.issparse(data.X) and data.n_features > MAX_FACTOR_FEATURES:
        i = solve_iteratively(data, spec)
        intercept = i.intercept if spec.fit_intercept else None
        loss = objective(spec, i.scaling, i.squares, i.weight, i.coef)
        return _result(spec, loss, i.coef, intercept, "lsqr"), None
    with quiet_blas(data.n_samples, data.n_features):
        g = gather(data, intercept=spec.fit_intercept, device=spec.device, limit=REFINABLE)
        return _solve(g, spec, data)


def add_batch(
    data: TrainingData, spec: FitSpec, previous: Statistics | None
) -> tuple[FitResult, Statistics]:
    """The exact minimiser over all rows so far; memory O(n_features ** 2)."""
    g = gather(data, intercept=spec.fit_intercept, device=spec.device, limit=MERGEABLE)
    if previous is not None:
        g = Gathered(previous.merge(g.stats), "qr of merged statistics")
    return _solve(g, spec, None)
