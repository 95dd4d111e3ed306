"""Least squares for a wide sparse X by LSQR, which multiplies by X but never factorises it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator, lsqr

from .._data.magnitudes import check_moments
from .._data.moments import moments
from .._data.rows import TrainingData
from .._data.scaling import Scaling, column_scale, reciprocal
from .._runtime.aliases import Array, FloatArray
from .._spec import FitSpec


def _lsqr(operator: LinearOperator, right: FloatArray, damp: float = 0.0) -> FloatArray:
    """LSQR (Paige and Saunders, 1982) to machine precision; one refinement if not damped."""
    limit = max(1000, 10 * min(operator.shape))
    options = {"damp": damp, "atol": 1e-15, "btol": 1e-15, "conlim": 0, "iter_lim": limit}
    x = lsqr(operator, right, **options)[0]
    if damp == 0:
        x = x + lsqr(operator, right - operator.matvec(x), **options)[0]
    return np.asarray(x)


def _centred_operator(
    X: Any, offset: FloatArray, factor: FloatArray, root: FloatArray
) -> LinearOperator:
    """The operator ``sqrt(w) * (X - offset) * factor``, without forming the matrix."""

    def matvec(v: Array) -> Array:
        v = factor * v.ravel()
        out: Array = root * (X @ v - offset @ v)
        return out

    def rmatvec(u: Array) -> Array:
        u = root * u.ravel()
        out: Array = factor * (X.T @ u - offset * u.sum())
        return out

    return LinearOperator(X.shape, matvec=matvec, rmatvec=rmatvec, dtype=np.float64)


@dataclass(frozen=True)
class Iterated:
    """Coefficients (n_features, n_targets), intercepts, and weighted residual sums of squares."""

    coef: FloatArray
    intercept: FloatArray
    squares: FloatArray
    scaling: Scaling
    weight: float


def solve_iteratively(data: TrainingData, spec: FitSpec) -> Iterated:
    """Least squares for a wide sparse X: LSQR on scaled, implicitly centred columns."""
    X, y = data.X.astype(np.float64), data.y.astype(np.float64)
    mx, my = moments(X, data.weight), moments(y, data.weight)
    check_moments(data, mx, my)
    intercept = spec.shape.fit_intercept
    scaling = spec.scaling(mx, my)
    mean = np.concatenate([mx.mean, my.mean]) * intercept
    x_mean, y_mean = mean[: data.n_features], mean[data.n_features :]
    root = np.sqrt(data.weights)
    damping = spec.objective.damping(mx.weight, data.n_targets)
    scale = column_scale(mx, intercept)
    varying = scale > 0
    # without a penalty any column scaling is allowed, and unit columns converge fastest
    factor = reciprocal(scale) if damping == 0 else scaling.x_factor * varying
    operator = _centred_operator(X, x_mean, factor, root)
    right = root[:, None] * (y - y_mean)
    # scaled so that LSQR's own absolute tolerances are below rounding errors
    exponent = np.frexp(np.abs(right).max(axis=0))[1]
    right = np.ldexp(right, -exponent)
    b = np.stack([factor * _lsqr(operator, r, np.sqrt(damping)) for r in right.T], axis=1)
    if damping == 0:
        # project onto the row space: the minimum-norm solution in the user's units
        at = np.frexp(float(scale.max(initial=0.0)))[1]
        unit = np.ldexp(varying.astype(np.float64), -at)
        plain = _centred_operator(X, x_mean, unit, root)
        b = np.ldexp(b, at)
        for t, column in enumerate(b.T):
            least = plain.rmatvec(_lsqr(plain.adjoint(), column))
            change = np.linalg.norm(plain.matvec(least - column))
            if change <= 1e-9 * np.linalg.norm(plain.matvec(column)):
                b[:, t] = least
        b = np.ldexp(b, -at)
    b = np.ldexp(b, exponent)
    intercepts = y_mean - x_mean @ b
    residual = root[:, None] * (X @ b + intercepts - y)
    return Iterated(b, intercepts, np.sum(residual**2, axis=0), scaling, mx.weight)
