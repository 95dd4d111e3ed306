"""Least squares from sufficient statistics: closed form, ridge, non-negative and L1-penalised.

All of them start from one triangular factor R of the weighted, shifted, augmented matrix
``sqrt(w) * [1, X, y]``, gathered chunk by chunk in float64. ``R.T @ R`` would be the Gram matrix,
but R has its square-rooted condition number, so no digits are lost, and two factors merge by one
more QR decomposition, which is all that `partial_fit` needs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import LinearOperator, lsqr

from ._data import chunks, column_scale, make_scaling, moments
from ._quadratic import proximal_quadratic
from ._types import (
    Array,
    FitResult,
    FitSpec,
    FloatArray,
    Layers,
    Moments,
    Scaling,
    TrainingData,
    reciprocal,
)

# what is decomposed at a time; it has to stay in the cache of a core
QR_BYTES = 2**20
# a sparse X with more columns is solved by iteration, since its factor would be dense
MAX_FACTOR_FEATURES = 2000
# LinearRegression's own cut-off: no column that it keeps is dropped here
COARSEST_TOL = 1e-6


@dataclass(frozen=True)
class Statistics:
    """Sufficient statistics of least squares.

    `factor` has shape (m, 1 + n_features + n_targets) with an intercept and one column less
    without, m at most its number of columns; `shift`, of shape (n_features + n_targets,), was
    subtracted from X and y, so that large means cost no digits.
    """

    factor: FloatArray
    shift: FloatArray
    n_samples: int
    n_features: int
    weight: float
    intercept: bool
    eps: float

    def to_state(self) -> dict[str, Any]:
        """Plain numbers and arrays, for pickling."""
        return dict(vars(self))


def _dense(block: Any) -> FloatArray:
    out: FloatArray = (block.toarray() if sp.issparse(block) else block).astype(np.float64)
    return out


def _first_shift(data: TrainingData) -> FloatArray:
    head = data.rows(slice(0, 1000))
    mean = np.asarray(head.X.mean(axis=0)).ravel()
    return np.concatenate([mean, head.y.mean(axis=0)]).astype(np.float64)


def accumulate(
    data: TrainingData,
    *,
    intercept: bool,
    device: torch.device,
    previous: Statistics | None = None,
) -> Statistics:
    """Statistics of `data`, merged with those of earlier rows; memory O(n_features ** 2)."""
    n_columns = intercept + data.n_features + data.n_targets
    if previous is not None:
        shift, factor = previous.shift, torch.from_numpy(previous.factor)
    else:
        shift = _first_shift(data)
        if not intercept:
            shift = np.zeros_like(shift)
        factor = torch.zeros((0, n_columns), dtype=torch.float64)
    # without float64 on the device the factor is made on the CPU
    device = torch.device("cpu") if device.type == "mps" else device
    factor = factor.to(device)
    root = np.sqrt(data.weights)[:, None]
    budget = max(QR_BYTES, 32 * n_columns**2)
    for part in chunks(data.n_samples, n_columns, budget):
        block = np.empty((part.stop - part.start, n_columns))
        block[:, :intercept] = 1.0
        block[:, intercept : intercept + data.n_features] = _dense(data.X[part])
        block[:, intercept + data.n_features :] = data.y[part]
        block[:, intercept:] -= shift
        block *= root[part]
        stacked = torch.cat([factor, torch.from_numpy(block).to(device)])
        factor = torch.linalg.qr(stacked, mode="r").R
    new = Statistics(
        factor=factor.cpu().numpy(),
        shift=shift,
        n_samples=data.n_samples,
        n_features=data.n_features,
        weight=float(data.weights.sum()),
        intercept=intercept,
        eps=float(np.finfo(data.X.dtype).eps),
    )
    if previous is None:
        return new
    return replace(
        new,
        n_samples=previous.n_samples + new.n_samples,
        weight=previous.weight + new.weight,
        eps=max(previous.eps, new.eps),
    )


@dataclass(frozen=True)
class _Problem:
    """Centred least squares ``|A b - c|**2 + rest`` in the user's units, and its scaling."""

    A: FloatArray  # min(n, n_features), n_features
    c: FloatArray  # min(n, n_features), n_targets
    rest: FloatArray  # n_targets
    scaling: Scaling
    mean: FloatArray  # n_features + n_targets
    weight: float


def _problem(stats: Statistics, spec: FitSpec) -> _Problem:
    d, body = stats.n_features, stats.factor
    mean = np.zeros(body.shape[1] - stats.intercept)
    if stats.intercept:
        mean = stats.shift + body[0, 1:] / body[0, 0]
        body = body[1:, 1:]
    squares = np.sum(body**2, axis=0)
    x = Moments(stats.weight, mean[:d], squares[:d])
    y = Moments(stats.weight, mean[d:], squares[d:])
    scaling = make_scaling(x, y, spec)
    A, c = body[:d, :d].copy(), body[:d, d:]
    if stats.intercept:
        A[:, column_scale(x, True) == 0] = 0.0
    return _Problem(A, c, np.sum(body[d:, d:] ** 2, axis=0), scaling, mean, stats.weight)


def rank_tolerance(tol: float | None, eps: float, shape: tuple[int, int]) -> float:
    """Relative singular-value cut-off: machine epsilon x max(shape), never coarser than 1e-6."""
    return min(eps * max(shape), COARSEST_TOL) if tol is None else tol


def _unit_columns(A: FloatArray) -> tuple[FloatArray, FloatArray]:
    """A with columns of norm one, and the norms; zero columns are left out by a factor 0."""
    norms = np.linalg.norm(A, axis=0)
    return A * reciprocal(norms), norms


def _row_space(norms: FloatArray, Vh: FloatArray) -> FloatArray:
    """Orthonormal basis of the row space of ``U S Vh D``, with D the norms, as columns."""
    # rows sorted by size keep a QR with very different row scales accurate (Cox and Higham, 1998)
    order = np.argsort(-norms, kind="stable")
    Q = scipy.linalg.qr((norms[:, None] * Vh.T)[order], mode="economic", pivoting=True)[0]
    basis: FloatArray = np.empty_like(Q)
    basis[order] = Q
    return basis


def _closed_form(p: _Problem, spec: FitSpec, tol: float) -> tuple[FloatArray, int]:
    """Coefficients of shape (n_features, n_targets) in the user's units, and the rank.

    The solution lies in the row space, of the penalised units if there is a penalty and of the
    user's if not. If that is not the whole space, a basis of it takes the place of the columns,
    and of all least-squares solutions the one of least norm comes out.
    """
    scaled, norms = _unit_columns(p.A)
    live = norms > 0
    b = np.zeros((p.A.shape[1], p.c.shape[1]))
    if not live.any() or not p.A.size:
        return b, 0
    _, S, Vh = scipy.linalg.svd(scaled[:, live], full_matrices=False)
    rank = int(np.sum(S > tol * S[0]))
    damping = _damping(spec, p.weight, p.c.shape[1])
    factor = p.scaling.x_factor[live] if damping > 0 else np.ones(int(live.sum()))
    rows = p.A[:, live] * factor
    basis = None if rank == live.sum() else _row_space(norms[live] * factor, Vh[:rank])
    z = _least_squares(rows if basis is None else rows @ basis, p.c, damping)
    b[live] = (z if basis is None else basis @ z) * factor[:, None]
    return b, rank


def _least_squares(rows: FloatArray, right: FloatArray, damping: float) -> FloatArray:
    """Minimiser of ``|rows @ z - right|**2 + damping * |z|**2`` for rows of full column rank."""
    rows, right = _damped(rows, right, damping)
    unit, norms = _unit_columns(rows)
    Q, R = scipy.linalg.qr(unit, mode="economic")
    out: FloatArray = scipy.linalg.solve_triangular(R, Q.T @ right) / norms[:, None]
    return out


def _damping(spec: FitSpec, weight: float, n_targets: int) -> float:
    """What is added to the squared residuals per squared coefficient of one target."""
    return 0.5 * spec.l2 * weight * n_targets


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
    damping = _damping(spec, p.weight, p.c.shape[1])
    rows, right = _damped(p.A * p.scaling.x_factor, p.c, damping)
    rows, norms = _unit_columns(rows)
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


def _objective(p: _Problem, spec: FitSpec, b: FloatArray) -> float:
    """The objective at coefficients `b` in the user's units."""
    residual = np.sum((p.A @ b - p.c) ** 2, axis=0) + p.rest
    loss = float(np.mean(residual / p.weight / p.scaling.y_scale**2))
    w = b * p.scaling.x_scale[:, None] / p.scaling.y_scale
    return loss + spec.l1 * float(np.abs(w).sum()) + 0.5 * spec.l2 * float(np.sum(w**2))


def _layers(b: FloatArray, mean: FloatArray, intercept: bool) -> Layers:
    d = len(b)
    bias = mean[d:] - mean[:d] @ b if intercept else None
    return [(np.ascontiguousarray(b.T), bias)]


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


def solve(stats: Statistics, spec: FitSpec) -> FitResult:
    """The exact minimiser from sufficient statistics."""
    p = _problem(stats, spec)
    shape = (stats.n_samples, stats.n_features)
    name = solver_name(spec)
    rank, singular = None, None
    if name == "lstsq":
        b, rank = _closed_form(p, spec, rank_tolerance(spec.tol, stats.eps, shape))
        singular = np.zeros(min(shape))
        if p.A.size:
            values = scipy.linalg.svdvals(p.A)[: min(shape)]
            singular[: len(values)] = values
    else:
        b = _non_negative(p, spec) if name == "nnls" else _elastic_net(p, spec)
    return _result(spec, p, b, name, rank, singular)


def _result(
    spec: FitSpec,
    p: _Problem,
    b: FloatArray,
    name: str,
    rank: int | None = None,
    singular: FloatArray | None = None,
) -> FitResult:
    loss = _objective(p, spec, b)
    return FitResult(
        layers=_layers(b, p.mean, spec.fit_intercept),
        scaling=p.scaling,
        loss=loss,
        loss_curve=[loss],
        validation_loss_curve=[],
        best_loss=loss,
        n_iter=1,
        optimizer=name,
        history=[{"epoch": 1, "train_loss": loss}],
        rank=rank,
        singular=singular,
    )


def _lsqr(operator: LinearOperator, right: FloatArray, damp: float = 0.0) -> FloatArray:
    """LSQR (Paige and Saunders, 1982) to rounding, with one refinement on the residual."""
    limit = max(1000, 10 * min(operator.shape))
    options = {"damp": damp, "atol": 1e-15, "btol": 1e-15, "conlim": 0, "iter_lim": limit}
    x = lsqr(operator, right, **options)[0]
    if damp == 0:
        x = x + lsqr(operator, right - operator.matvec(x), **options)[0]
    return np.asarray(x)


def _centred_operator(
    X: Any, offset: FloatArray, factor: FloatArray, root: FloatArray
) -> LinearOperator:
    """sqrt(w) * (X - offset) * factor without forming it."""

    def matvec(v: Array) -> Array:
        v = factor * v.ravel()
        out: Array = root * (X @ v - offset @ v)
        return out

    def rmatvec(u: Array) -> Array:
        u = root * u.ravel()
        out: Array = factor * (X.T @ u - offset * u.sum())
        return out

    return LinearOperator(X.shape, matvec=matvec, rmatvec=rmatvec, dtype=np.float64)


def solve_iteratively(data: TrainingData, spec: FitSpec) -> FitResult:
    """Least squares of a wide sparse X: LSQR on scaled columns that are never centred in memory."""
    X, y = data.X.astype(np.float64), data.y.astype(np.float64)
    mx, my = moments(X, data.weights), moments(y, data.weights)
    intercept = spec.fit_intercept
    scaling = make_scaling(mx, my, spec)
    mean = np.concatenate([mx.mean, my.mean]) * intercept
    x_mean, y_mean = mean[: data.n_features], mean[data.n_features :]
    root = np.sqrt(data.weights)
    damping = _damping(spec, mx.weight, data.n_targets)
    scale = column_scale(mx, intercept)
    live = scale > 0
    # without a penalty any column scaling is allowed, and unit columns converge fastest
    factor = reciprocal(scale) if damping == 0 else scaling.x_factor * live
    operator = _centred_operator(X, x_mean, factor, root)
    right = root[:, None] * (y - y_mean)
    b = np.stack([factor * _lsqr(operator, r, np.sqrt(damping)) for r in right.T], axis=1)
    if damping == 0:
        # onto the row space: of all solutions the one of least norm in the user's units
        plain = _centred_operator(X, x_mean, live.astype(np.float64), root)
        for t, column in enumerate(b.T):
            least = plain.rmatvec(_lsqr(plain.adjoint(), column))
            change = np.linalg.norm(plain.matvec(least - column))
            if change <= 1e-9 * np.linalg.norm(plain.matvec(column)):
                b[:, t] = least
    fitted = X @ b + (y_mean - x_mean @ b)
    residual = root[:, None] * (fitted - y)
    d, k = data.n_features, data.n_targets
    p = _Problem(
        np.zeros((0, d)), np.zeros((0, k)), np.sum(residual**2, axis=0), scaling, mean, mx.weight
    )
    return _result(spec, p, b, "lstsq")


def fit(data: TrainingData, spec: FitSpec) -> tuple[FitResult, Statistics | None]:
    """The exact minimiser, with the statistics it came from where there are any."""
    if sp.issparse(data.X) and data.n_features > MAX_FACTOR_FEATURES:
        return solve_iteratively(data, spec), None
    stats = accumulate(data, intercept=spec.fit_intercept, device=spec.device)
    return solve(stats, spec), stats
