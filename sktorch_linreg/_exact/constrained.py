"""Least squares with a sign constraint or an L1 penalty."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.optimize
from scipy.linalg import lapack
from sklearn.exceptions import ConvergenceWarning

from .._data.conditioning import condition_number
from .._data.scaling import reciprocal
from .._data.statistics import EPS, unit_columns
from .._runtime.aliases import FloatArray
from .._spec import Objective
from .least_squares import Problem, damped


def _active_set_solution(
    H: FloatArray, q: FloatArray, l1: FloatArray, x: FloatArray, positive: bool
) -> FloatArray | None:
    """The exact minimiser if `x` already has its signs, else None."""
    sign = np.sign(x)
    active = sign != 0
    exact = np.zeros_like(x)
    if active.any():
        right = q[active] - (l1 * sign)[active]
        exact[active] = np.linalg.lstsq(H[np.ix_(active, active)], right, rcond=None)[0]
    gradient = H @ exact - q
    # a generous bound on the rounding error of each entry of the gradient
    slack = 1e-10 * (np.abs(H) @ np.abs(exact) + np.abs(q) + l1)
    held = np.abs(gradient + l1 * sign) <= slack
    free = (-gradient if positive else np.abs(gradient)) <= l1 + slack
    ok = np.all(exact * sign >= 0) and np.all(np.where(active, held, free))
    return exact if ok else None


def proximal_quadratic(
    H: FloatArray, q: FloatArray, l1: float, positive: bool = False, max_iter: int = 20_000
) -> FloatArray:
    """Minimiser of ``x @ H @ x / 2 - q @ x + l1 * |x|_1``, optionally over x >= 0.

    Accelerated proximal gradient steps (Beck and Teboulle, 2009) with restarts (O'Donoghue and
    Candes, 2015) find which coefficients are zero; a linear system then gives the others exactly.

    Parameters
    ----------
    H : ndarray of shape (n_features, n_features)
        Symmetric, positive semi-definite.
    q : ndarray of shape (n_features,)
        Linear term.
    l1 : float
        Weight of the L1 norm.
    positive : bool, default=False
        Whether to constrain x to be non-negative.
    max_iter : int, default=20000
        Maximum number of proximal steps; if they do not suffice, a ConvergenceWarning is issued.

    Returns
    -------
    ndarray of shape (n_features,)
        The minimiser, with exact zeros.
    """
    # with H scaled to a unit diagonal, columns of any scale converge equally fast
    factor = reciprocal(np.sqrt(np.diag(H)))
    if not factor.any():
        return np.zeros_like(q)
    x = _solve_scaled(H * factor[:, None] * factor, q * factor, l1 * factor, positive, max_iter)
    out: FloatArray = x * factor
    return out


def _solve_scaled(
    H: FloatArray, q: FloatArray, l1: FloatArray, positive: bool, max_iter: int
) -> FloatArray:
    lipschitz = float(np.linalg.eigvalsh(H)[-1])
    x = np.zeros_like(q)
    z, t = x, 1.0
    for k in range(max_iter):
        step = z - (H @ z - q) / lipschitz
        if positive:
            new = np.maximum(step - l1 / lipschitz, 0.0)
        else:
            new = np.sign(step) * np.maximum(np.abs(step) - l1 / lipschitz, 0.0)
        if (z - new) @ (new - x) > 0:  # momentum points uphill
            t, z, x = 1.0, new, new
        else:
            t_next = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * t * t))
            z = new + (t - 1.0) / t_next * (new - x)
            t, x = t_next, new
        if k % 25 == 24:
            exact = _active_set_solution(H, q, l1, x, positive)
            if exact is not None:
                return exact
    warnings.warn(
        f"L1-penalised least squares did not converge in {max_iter} steps. Raise alpha, lower "
        "l1_ratio, or remove collinear columns.",
        ConvergenceWarning,
        stacklevel=2,
    )
    return x


def solve_non_negative(p: Problem, objective: Objective) -> FloatArray:
    """Non-negative least squares (Lawson and Hanson, 1974), target by target."""
    damping = objective.damping(p.weight, p.c.shape[1])
    rows, right = damped(p.A * p.scaling.x_factor, p.c, damping)
    rows, norms = unit_columns(rows)
    out = np.zeros((p.A.shape[1], p.c.shape[1]))
    varying = norms > 0
    if rows.size and varying.any():
        limit = max(1000, 30 * rows.shape[1])
        for t in range(right.shape[1]):
            found = scipy.optimize.nnls(rows[:, varying], right[:, t], maxiter=limit)[0]
            out[varying, t] = found / norms[varying]
    return out * p.scaling.x_factor[:, None]


def solve_elastic_net(p: Problem, objective: Objective) -> FloatArray:
    """Squared error with an L1 term, target by target, in the penalised units."""
    A, c = p.A * p.scaling.x_factor, p.c / p.scaling.y_scale
    share = 2.0 / (p.weight * c.shape[1])
    H = share * (A.T @ A) + objective.l2 * np.eye(A.shape[1])
    q = share * (A.T @ c)
    columns = [proximal_quadratic(H, column, objective.l1, objective.positive) for column in q.T]
    right = np.sqrt(share) * c
    b = np.stack(
        [
            _polished(np.sqrt(share) * A, r, x, objective)
            for r, x in zip(right.T, columns, strict=True)
        ],
        axis=1,
    )
    out: FloatArray = b * p.scaling.x_factor[:, None] * p.scaling.y_scale
    return out


def _polished(A: FloatArray, c: FloatArray, x: FloatArray, objective: Objective) -> FloatArray:
    """The minimiser with the signs of `x`, from the rows `A` instead of their Gram matrix."""
    sign = np.sign(x)
    active = sign != 0
    rows, right = damped(A[:, active], c[:, None], objective.l2)
    if not active.any() or len(rows) < rows.shape[1]:
        return x
    Q, R = np.linalg.qr(rows)
    if condition_number(R) > 1.0 / EPS:
        return x
    pull = lapack.dtrtrs(R, objective.l1 * sign[active], lower=0, trans=1)[0]
    out = np.zeros_like(x)
    out[active] = lapack.dtrtrs(R, Q.T @ right[:, 0] - pull, lower=0)[0]
    return out if (out * sign >= 0).all() else x
