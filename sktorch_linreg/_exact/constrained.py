"""Quadratic objectives with an L1 term or a sign constraint."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from .._data.scaling import reciprocal
from .._runtime.aliases import FloatArray


def _active_set_solution(
    H: FloatArray, q: FloatArray, l1: FloatArray, x: FloatArray, positive: bool
) -> FloatArray | None:
    """The minimiser if `x` has its signs already, else None."""
    sign = np.sign(x)
    active = sign != 0
    exact = np.zeros_like(x)
    if active.any():
        right = q[active] - (l1 * sign)[active]
        exact[active] = np.linalg.lstsq(H[np.ix_(active, active)], right, rcond=None)[0]
    gradient = H @ exact - q
    # rounding of each entry of the gradient, generously
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
        Whether x has to be non-negative.
    max_iter : int, default=20000
        Proximal steps at the most; a ConvergenceWarning says when they did not suffice.

    Returns
    -------
    ndarray of shape (n_features,)
        The minimiser, with exact zeros.
    """
    # in units in which H has ones on its diagonal, columns of any scale converge alike
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
        f"The L1-penalised least squares did not converge in {max_iter} steps. Raise alpha, lower "
        "l1_ratio, or remove collinear columns.",
        ConvergenceWarning,
        stacklevel=2,
    )
    return x
