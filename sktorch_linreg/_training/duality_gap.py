"""Duality gap of a linear model trained on a loss with kinks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.optimize import linprog
from sklearn.exceptions import ConvergenceWarning

from .._data.scaling import Scaling
from .._runtime.aliases import Array, FloatArray, Layers
from .._spec import Objective
from .batches import TabularDataset

# duality gap that triggers a warning, relative to the objective, beyond the envelope's own error
TOLERATED = 1e-3
# rows near the kink, per column, whose slopes are corrected
ROWS_PER_COLUMN = 5
# factor that reduces later corrections of a row whose slope has reached a branch
LESS_ROOM = 1e-4
# relative cutoff of corrections under an L2 penalty, below which a row keeps its slope
FAR_ROWS = 1e-4
# most rows times unknowns, and most entries, for computing the minimum where the bound is loose
SMALL_PROGRAMME, SMALL = 4_000_000, 50_000
# rounding error of a pull, relative to the sum of the absolute weighted slopes
ROUNDING = 1e-12
# correction passes, each of which may push another row or column past its limit
PASSES = 12


@dataclass(frozen=True)
class Problem:
    """A linear model and its rows, in training units and float64."""

    X: Any
    offset: FloatArray
    factor: FloatArray
    y: FloatArray
    weight: FloatArray  # n_rows; sums to 1 / n_targets
    coef: FloatArray  # n_features, n_targets
    intercept: FloatArray | None

    def columns(self, rows: Array, which: Array) -> FloatArray:
        """Some columns of some rows, then a column of ones if there is an intercept."""
        X = self.X[rows][:, which]
        X = (X.toarray() if hasattr(X, "toarray") else X) - self.offset[which]
        X = X * self.factor[which]
        return X if self.intercept is None else np.column_stack([X, np.ones(len(X))])

    def pull(self, u: FloatArray) -> FloatArray:
        """X' u, the pull of weighted slopes u on each column's coefficient."""
        total = self.X.T @ u - np.outer(self.offset, u.sum(axis=0))
        out: FloatArray = total * self.factor[:, None]
        return out

    @property
    def residual(self) -> FloatArray:
        """Targets minus predictions."""
        scaled = self.coef * self.factor[:, None]
        out: FloatArray = self.y - (self.X @ scaled - self.offset @ scaled)
        return out if self.intercept is None else out - self.intercept


def make_problem(rows: TabularDataset, layers: Layers, scaling: Scaling) -> Problem:
    """The problem as it was trained; `rows` holds sparse rows unscaled."""
    (weight, bias), *_ = layers
    X: Any = rows.X
    scales_input = not isinstance(X, torch.Tensor)
    if not scales_input:
        X = X.cpu().numpy()
    d, k = X.shape[1], len(weight)
    relative = np.ones(len(rows)) if rows.weight is None else rows.weight.cpu().numpy()
    w = relative.astype(np.float64)
    return Problem(
        X.astype(np.float64, copy=False),
        scaling.x_offset if scales_input else np.zeros(d),
        scaling.x_factor if scales_input else np.ones(d),
        rows.y.cpu().numpy().astype(np.float64),
        w / (w.sum() * k),
        weight.T.astype(np.float64),
        None if bias is None else bias.astype(np.float64),
    )


def _feasible(
    p: Problem, objective: Objective, r: FloatArray, b: FloatArray, width: float
) -> FloatArray:
    """Slopes of one target whose pull on each column matches its coefficient and the penalty.

    The envelope's slopes do so up to the error left by L-BFGS. That error is corrected at the rows
    nearest the kink, where changing a slope costs least, keeping slopes between the branches.
    """
    low, high = _branches(objective)
    slopes = np.clip(r / width, low, high)
    near = _nearest(np.abs(r), ROWS_PER_COLUMN * (len(b) + 1))
    room = 1.0 / (np.abs(r[near]) + width)
    held = np.full(len(b), not (objective.l1 or objective.l2 or objective.positive)) | (b != 0)
    # an L2 penalty allows any pull, at a cost, so rows far from the kink keep their slopes
    cut = FAR_ROWS if objective.l2 else None
    for i in range(PASSES):
        u = p.weight * slopes
        pull = p.pull(u[:, None])[:, 0]
        least = -np.inf if objective.positive else -objective.l1
        of_signs = objective.l1 * np.sign(b) + objective.l2 * b
        goal = np.where(b != 0, of_signs, np.clip(pull, least, objective.l1))
        scale = ROUNDING * np.abs(u).sum()
        held |= np.abs(pull - goal) > scale
        last = i == PASSES - 1
        if last and objective.l2:
            # the intercept is not penalised, so its constraint must still hold
            held[:], cut = False, None
        wanted = (goal - pull)[held]
        if p.intercept is not None:
            wanted = np.append(wanted, -u.sum())
        if np.abs(wanted).max(initial=0.0) <= scale:
            break
        rows = p.columns(near, np.flatnonzero(held)) * (p.weight[near] * room)[:, None]
        moved = slopes[near] + room * np.linalg.lstsq(rows.T, wanted, rcond=cut)[0]
        slopes = slopes.copy()
        # slopes beyond a branch are clipped to it, and other rows take up the remainder
        slopes[near] = moved if last else np.clip(moved, low, high)
        room[(moved < low) | (moved > high)] *= LESS_ROOM
    return slopes


def _nearest(distance: FloatArray, n: int) -> Array:
    if n >= len(distance):
        return np.arange(len(distance))
    return np.argpartition(distance, n)[:n]


def _branches(objective: Objective) -> tuple[float, float]:
    assert objective.loss.branches is not None
    return objective.loss.branches


def _bound(
    p: Problem, objective: Objective, slopes: FloatArray, r: FloatArray, b: FloatArray
) -> float:
    """A lower bound on the objective of one target, from slopes of the loss at each row."""
    low, high = _branches(objective)
    u = p.weight * slopes
    pull = p.pull(u[:, None])[:, 0]
    left = 0.0 if p.intercept is None else abs(float(u.sum()))
    above = pull if objective.positive else np.abs(pull)
    if not (objective.l1 or objective.l2):
        left = max(left, float(above.max(initial=0.0)))
    if left > 1e3 * ROUNDING * np.abs(u).sum():
        # these slopes are infeasible and yield no bound
        return 0.0
    # shrink the slopes towards 0 until they lie between the branches
    shrink = max(1.0, float((slopes / high).max()), float((slopes / low).max()))
    if objective.l1 and not objective.l2:
        shrink = max(shrink, float(above.max(initial=0.0)) / objective.l1)
    value = (u @ r + pull @ b) / shrink
    if objective.l2:
        value -= float(np.sum(np.maximum(above / shrink - objective.l1, 0.0) ** 2)) / (
            2.0 * objective.l2
        )
    return float(value)


def excess(p: Problem, objective: Objective, width: float) -> tuple[float, float]:
    """The objective, and an upper bound on its distance from the minimum.

    Any slopes of the loss at the rows give a lower bound, provided that their pull on each column
    is within what the penalty allows (Fenchel duality). They come from the last envelope minimised.
    """
    low, high = _branches(objective)
    residual = p.residual
    value = bound = 0.0
    for t in range(p.y.shape[1]):
        r, b = residual[:, t], p.coef[:, t]
        value += float(p.weight @ np.maximum(high * r, low * r))
        value += objective.l1 * float(np.abs(b).sum()) + 0.5 * objective.l2 * float(b @ b)
        tried = np.clip(r / width, low, high), _feasible(p, objective, r, b, width)
        bound += max(0.0, *(_bound(p, objective, slopes, r, b) for slopes in tried))
    return value, value - bound


def _least(p: Problem, objective: Objective) -> float:
    """The minimum of the objective without an L2 penalty, by linear programming."""
    low, high = _branches(objective)
    n, d = p.X.shape
    Z = p.columns(np.arange(n), np.arange(d))
    norms = np.full(2 * d, objective.l1)
    ones = sp.identity(n, format="csc")
    equations = sp.hstack([Z[:, :d], -Z[:, :d], Z[:, d:], -Z[:, d:], ones, -ones], format="csc")
    bounds = [(0, None)] * d + [(0, 0 if objective.positive else None)] * d
    bounds += [(0, None)] * (2 * (Z.shape[1] - d) + 2 * n)
    costs = [norms, np.zeros(2 * (Z.shape[1] - d)), high * p.weight, -low * p.weight]
    total = 0.0
    for y in p.y.T:
        found = linprog(np.concatenate(costs), A_eq=equations, b_eq=y, bounds=bounds)
        total += float(found.fun) if found.status == 0 else 0.0
    return total


def check_minimum(
    rows: TabularDataset, layers: Layers, scaling: Scaling, objective: Objective, width: float
) -> list[tuple[str, type[Warning]]]:
    """A warning if L-BFGS stopped far above the minimum of a loss with kinks."""
    p = make_problem(rows, layers, scaling)
    value, above = excess(p, objective, width)
    tolerated = TOLERATED * value + width
    n, d = p.X.shape
    small = n * d <= SMALL and n * (n + d) <= SMALL_PROGRAMME
    if above > tolerated and not objective.l2 and small:
        # the bound may be loose, and the minimum itself is cheap to compute
        above = value - _least(p, objective)
    if above <= tolerated:
        return []
    least = value - above
    share = f"{above / least:.1%} above" if least > 0 else "far above"
    remedy = "raise alpha" if objective.alpha else "set alpha above 0"
    message = (
        f"L-BFGS did not converge to the minimum of loss={objective.loss.name!r}: the objective, "
        f"{value:.4g}, may be {share} it. Drop nearly collinear columns, or "
        f"{remedy}; sklearn.linear_model.QuantileRegressor solves such problems exactly."
    )
    return [(message, ConvergenceWarning)]
