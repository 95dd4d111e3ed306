"""Exact least squares: closed form, ridge, non-negative and L1-penalised.

All of them are solved from the sufficient statistics; least squares is then refined on the rows
as far as their conditioning requires.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import scipy.sparse as sp

from .._data.accumulate import MAX_FACTOR_FEATURES, Accumulated, accumulate
from .._data.conditioning import (
    MERGED,
    NOT_REFINED,
    REFINED_ON_ROWS,
    SMALL_RESIDUAL,
    GramRequirement,
    Refinement,
    is_cheap,
    needed_refinement,
    rank_tolerance,
    residual_share,
    surely_independent,
)
from .._data.magnitudes import check_squares
from .._data.rows import TrainingData
from .._data.scaling import Scaling, rounding_level
from .._data.statistics import Statistics
from .._runtime.aliases import FloatArray, Layers
from .._runtime.processes import ProcessGroup
from .._runtime.threads import quiet_blas
from .._spec import FitResult, FitSpec, Objective, RunContext
from .constrained import solve_elastic_net, solve_non_negative
from .least_squares import (
    Problem,
    Solution,
    closed_form,
    is_of_full_rank,
    make_problem,
    of_full_rank,
    ridge_path,
)
from .lsqr import solve_iteratively
from .refinement import Preconditioner, Refined, refine_fully, refine_once, residual_squares


def _directly(g: Accumulated, spec: FitSpec) -> Solution | None:
    """Least squares from the existing decomposition, unless it may be rank-deficient."""
    u, stats = g.unit, g.stats
    if u is None or spec.objective.l2 or solver_name(spec.objective) != "lstsq":
        return None
    if not surely_independent(u.condition, rank_tolerance(stats, spec.tol)):
        return None
    triangle = Preconditioner(u.triangle, 1.0 / u.norms, u.varying, u.condition)
    return replace(of_full_rank(triangle, u.qt_y), squares=stats.residual_ss)


def solver_name(objective: Objective) -> str:
    """Name of the exact solver of this objective, as `optimizer_` reports it."""
    if objective.l1:
        return "fista"
    return "nnls" if objective.positive else "lstsq"


def handles(data: TrainingData, objective: Objective, context: RunContext) -> bool:
    """Whether there is an exact solver for this objective and size."""
    if objective.loss.name != "squared_error":
        return False
    if sp.issparse(data.X) and data.n_features > MAX_FACTOR_FEATURES:
        # partial_fit would need the dense factor that LSQR avoids
        merges = context.incremental or context.group.size > 1
        return solver_name(objective) == "lstsq" and not merges
    return objective.l1 == 0 or data.n_features <= 2 * MAX_FACTOR_FEATURES


def _minimiser(p: Problem, stats: Statistics, spec: FitSpec) -> Solution:
    name = solver_name(spec.objective)
    if name == "lstsq":
        return closed_form(p, spec, rank_tolerance(stats, spec.tol))
    solve_constrained = solve_non_negative if name == "nnls" else solve_elastic_net
    return Solution(solve_constrained(p, spec.objective))


def _intercept(stats: Statistics, coef: FloatArray) -> FloatArray | None:
    if not stats.intercept:
        return None
    d = stats.n_features
    # subtract large means first, since they cancel
    large: FloatArray = stats.shift[d:] - stats.shift[:d] @ coef
    return large + (stats.offset[d:] - stats.offset[:d] @ coef)


def _refine(
    data: TrainingData, g: Accumulated, s: Solution, penalty: FloatArray
) -> tuple[Refined | None, str]:
    """The solution refined on the rows as far as its conditioning requires, and how."""
    if s.precondition is None:
        return None, ""
    n_entries = data.n_samples * data.n_features
    cheap = is_cheap(n_entries, g.stats, sparse=sp.issparse(data.X))
    needed = needed_refinement(s.precondition.condition, g.cancellation, g.stats, cheap=cheap)
    if needed is Refinement.EXTENDED:
        refined = refine_fully(data, g.stats, s.precondition, penalty, s.coef)
        if refined is not None:
            return refined, Refinement.EXTENDED.value
    if needed is Refinement.NONE:
        return None, ""
    once = refine_once(data, g.stats, s.precondition, penalty, s.coef, few=cheap)
    return once, Refinement.ONCE.value


def _loss(spec: FitSpec, stats: Statistics, squares: FloatArray, coef: FloatArray) -> float:
    """The objective, given the weighted residual sum of squares of each target."""
    if not spec.objective.alpha:
        # the usual case, in which the scales of the features do not matter
        variance: FloatArray | float = 1.0
        if spec.standardize:
            variance = stats.target_squares / stats.weight
            level = rounding_level(stats.mean[stats.n_features :]) * stats.intercept
            variance = np.where(np.sqrt(variance) > level, variance, 1.0)
        return float(np.add.reduce(squares / variance)) / len(squares) / stats.weight
    return objective_value(
        spec.objective, spec.scaling(*stats.moments()), squares, stats.weight, coef
    )


def objective_value(
    objective: Objective, scaling: Scaling, squares: FloatArray, weight: float, coef: FloatArray
) -> float:
    """The objective with its penalty, in the penalised units."""
    w = coef * scaling.x_scale[:, None] / scaling.y_scale
    loss = float(np.mean(squares / weight / scaling.y_scale**2))
    if objective.l1:
        loss += objective.l1 * float(np.abs(w).sum())
    if objective.l2:
        # only computed if penalised, since squares of large coefficients may overflow
        loss += 0.5 * objective.l2 * float(np.sum(w**2))
    return loss


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
        optimizer=solver_name(spec.objective),
        history=[{"epoch": 1, "train_loss": loss}],
        rank=rank,
        path_taken=path,
    )


def _solution(g: Accumulated, spec: FitSpec) -> tuple[Solution, FloatArray]:
    """The minimiser from the statistics alone, and the penalty per squared coefficient."""
    direct = _directly(g, spec)
    if direct is not None:
        return direct, np.zeros(g.stats.n_features)
    p = make_problem(g.stats, spec)
    s = _minimiser(p, g.stats, spec)
    damping = spec.objective.damping(p.weight, p.c.shape[1])
    penalty = damping * p.scaling.x_scale**2 if damping else np.zeros(len(s.coef))
    squares = np.sum((p.A @ s.coef - p.c) ** 2, axis=0) + p.residual_ss
    return replace(s, squares=squares), penalty


def _with_residual(stats: Statistics, squares: FloatArray, coef: FloatArray) -> Statistics:
    """The statistics with `residual_ss` from residual sums of squares taken from the rows."""
    d = stats.n_features
    of_factor = stats.factor[:, d:] - stats.factor[:, :d] @ coef
    rest = np.maximum(squares - np.einsum("ij,ij->j", of_factor, of_factor), 0.0)
    return replace(stats, residual_ss=rest)


def _path(g: Accumulated, s: Solution, spec: FitSpec) -> str:
    """Decompositions that led to the solution."""
    if solver_name(spec.objective) != "lstsq":
        return f"{g.path}, {solver_name(spec.objective)}"
    return s.path or g.path


def _check_scales(data: TrainingData, stats: Statistics) -> None:
    """Raise ExtremeScales if squares of the columns overflow or underflow."""
    R = stats.factor[:, : stats.n_features]
    with np.errstate(over="ignore"):
        check_squares(data, np.einsum("ij,ij->j", R, R), stats.target_squares)


def _solve(g: Accumulated, spec: FitSpec, data: TrainingData | None) -> FitResult:
    """The exact minimiser, refined on the rows of `data` if these are given."""
    stats = g.stats
    if data is not None:
        _check_scales(data, stats)
    s, penalty = _solution(g, spec)
    path, coef, squares = _path(g, s, spec), s.coef, s.squares
    refined, how = (None, "") if data is None else _refine(data, g, s, penalty)
    if refined is None:
        intercept = _intercept(stats, coef)
    else:
        coef, squares = refined.coef, refined.squares
        intercept = refined.intercept if stats.intercept else None
    assert squares is not None
    if refined is not None and not spec.objective.l2 and s.rank == len(stats.factor):
        # at the minimum a factor of full row rank has no residual of its own
        stats = replace(stats, residual_ss=squares)
    elif refined is not None:
        stats = _with_residual(stats, squares, coef)
    elif data is not None and g.unit is not None and residual_share(stats) < SMALL_RESIDUAL:
        # the residual is too small to be accurate from sums
        squares = residual_squares(data, stats, coef)
        stats = _with_residual(stats, squares, coef)
    loss = _loss(spec, stats, squares, coef)
    result = _result(spec, loss, coef, intercept, path + how, s.rank)
    result.statistics = stats
    return result


def _accumulate(data: TrainingData, spec: FitSpec, required: GramRequirement) -> Accumulated:
    """The statistics of the rows, with the intercept and device of `spec`."""
    intercept = spec.shape.fit_intercept
    return accumulate(data, intercept=intercept, device=spec.device, required=required)


def fit(
    data: TrainingData,
    spec: FitSpec,
    context: RunContext,
    previous: Statistics | None = None,
) -> FitResult:
    """The exact minimiser, with the statistics it was computed from, if any.

    `previous` are the statistics of earlier batches.
    """
    if context.incremental or context.group.size > 1:
        # a distributed fit is one batch from each process
        return _fit_merged(data, spec, context.group, previous)
    if sp.issparse(data.X) and data.n_features > MAX_FACTOR_FEATURES:
        i = solve_iteratively(data, spec)
        loss = objective_value(spec.objective, i.scaling, i.squares, i.weight, i.coef)
        intercept = i.intercept if spec.shape.fit_intercept else None
        return _result(spec, loss, i.coef, intercept, "lsqr")
    with quiet_blas(data.n_samples, data.n_features):
        # without refinement on the rows the statistics have to be more accurate
        required = REFINED_ON_ROWS if solver_name(spec.objective) == "lstsq" else NOT_REFINED
        return _solve(_accumulate(data, spec, required), spec, data)


def _fit_merged(
    data: TrainingData, spec: FitSpec, group: ProcessGroup, previous: Statistics | None
) -> FitResult:
    """The exact minimiser over the rows of all batches and processes; memory O(n_features ** 2)."""

    def of_rows() -> Accumulated:
        g = _accumulate(data, spec, MERGED)
        _check_scales(data, g.stats)
        return g

    with quiet_blas(data.n_samples, data.n_features):
        g = group.run(of_rows)
        parts = group.gather(lambda: g.stats)
        if previous is not None:
            parts.insert(0, previous)
        if len(parts) > 1:
            with np.errstate(over="ignore", invalid="ignore"):
                g = Accumulated(reduce(Statistics.merge, parts), "qr of merged statistics")
            _check_scales(data, g.stats)
        return _solve(g, spec, None)


def fit_path(data: TrainingData, specs: Sequence[FitSpec]) -> list[Layers]:
    """Exact minimisers of objectives that differ in their penalty, from one pass over the rows.

    All ridge solutions come from one decomposition if the columns are independent; unpenalised
    least squares is refined on the rows.
    """
    first = specs[0]
    out: list[Any] = [None] * len(specs)
    with quiet_blas(data.n_samples, data.n_features):
        g = _accumulate(data, first, NOT_REFINED)
        _check_scales(data, g.stats)
        objectives = [spec.objective for spec in specs]
        ridge = [i for i, o in enumerate(objectives) if o.l2 and solver_name(o) == "lstsq"]
        p = make_problem(g.stats, first) if ridge else None
        if p is not None and is_of_full_rank(p, rank_tolerance(g.stats, first.tol)):
            dampings = [objectives[i].damping(p.weight, data.n_targets) for i in ridge]
            for i, coef in zip(ridge, ridge_path(p, np.array(dampings)), strict=True):
                out[i] = [(coef.T, _intercept(g.stats, coef))]
        for i, spec in enumerate(specs):
            if out[i] is None:
                rows = data if solver_name(spec.objective) == "lstsq" else None
                out[i] = _solve(g, spec, rows).layers
    return out
