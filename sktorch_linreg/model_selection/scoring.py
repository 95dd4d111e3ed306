"""Scores of the fits of a stack: all at once for known metrics, otherwise by the scorer."""

from __future__ import annotations

import copy
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn import get_config, metrics

from .._data.arrays import to_host
from .._runtime.aliases import Array, FloatArray
from .._runtime.sklearn_private import (
    MultimetricScorer,
    PassthroughScorer,
    PredictScorer,
    num_samples,
    score_estimator,
)
from .._spec import FitSpec
from .._training.stacked_result import StackResult
from .candidates import Fold, Side, fitted
from .stacks import Stack

# (y_true of shape (n_targets, n_rows), y_pred of shape (n_models, n_targets, n_rows), weights or
# None) -> scores of shape (n_models,); larger is better
Score = Callable[[FloatArray, FloatArray, FloatArray | None], FloatArray]


def _mean(values: FloatArray, weight: FloatArray | None) -> FloatArray:
    out: FloatArray = np.average(values, axis=-1, weights=weight)
    return out


def _explained(left: FloatArray, there: FloatArray) -> FloatArray:
    """1 - left / there, averaged over targets; 1 or 0 for targets without variance."""
    share = np.where(left > 0, 0.0, 1.0)
    np.divide(left, there, out=share, where=there > 0)
    out: FloatArray = np.where(there > 0, 1.0 - share, share).mean(-1)
    return out


def r2(true: FloatArray, predicted: FloatArray, weight: FloatArray | None) -> FloatArray:
    """Coefficient of determination of each model."""
    spread = true - _mean(true, weight)[:, None]
    left = _mean((true - predicted) ** 2, weight)
    return _explained(left, np.broadcast_to(_mean(spread**2, weight), left.shape))


def explained_variance(
    true: FloatArray, predicted: FloatArray, weight: FloatArray | None
) -> FloatArray:
    """Share of the variance that each model explains."""
    error = true - predicted
    left = _mean((error - _mean(error, weight)[..., None]) ** 2, weight)
    spread = true - _mean(true, weight)[:, None]
    return _explained(left, np.broadcast_to(_mean(spread**2, weight), left.shape))


def mean_squared_error(
    true: FloatArray, predicted: FloatArray, weight: FloatArray | None
) -> FloatArray:
    """Negative mean squared error of each model."""
    out: FloatArray = -_mean((true - predicted) ** 2, weight).mean(-1)
    return out


def root_mean_squared_error(
    true: FloatArray, predicted: FloatArray, weight: FloatArray | None
) -> FloatArray:
    """Negative root mean squared error of each model."""
    out: FloatArray = -np.sqrt(_mean((true - predicted) ** 2, weight)).mean(-1)
    return out


def mean_absolute_error(
    true: FloatArray, predicted: FloatArray, weight: FloatArray | None
) -> FloatArray:
    """Negative mean absolute error of each model."""
    out: FloatArray = -_mean(np.abs(true - predicted), weight).mean(-1)
    return out


# scikit-learn's metric, and the function that computes the score of its scorer
SCORES: dict[Any, Score] = {
    metrics.r2_score: r2,
    metrics.explained_variance_score: explained_variance,
    metrics.mean_squared_error: mean_squared_error,
    metrics.root_mean_squared_error: root_mean_squared_error,
    metrics.mean_absolute_error: mean_absolute_error,
}
# fewer rows have no variance, which scikit-learn warns about
LEAST_ROWS = 2
# number of predictions to score at once
SCORED_ENTRIES = 2**20

Outcome = dict[str, Any]


def known_scores(scorer: Any) -> dict[str, Score] | None:
    """The score functions that replace a scikit-learn scorer, None if it must be called itself.

    The score of a single scorer is called "score".
    """
    if isinstance(scorer, MultimetricScorer):
        out: dict[str, Score] = {}
        for name, one in scorer._scorers.items():
            found = known_scores(one)
            if found is None:
                return None
            out[name] = found["score"]
        return out
    if isinstance(scorer, PassthroughScorer):
        return {"score": r2}
    if type(scorer) is not PredictScorer or scorer._kwargs or scorer._response_method != "predict":
        return None
    score = SCORES.get(scorer._score_func)
    # greater_is_better must be the same as in scikit-learn's own scorers
    better = scorer._score_func in (metrics.r2_score, metrics.explained_variance_score)
    return {"score": score} if score is not None and better == (scorer._sign > 0) else None


def score_all(
    scores: dict[str, Score], true: Array, predicted: Array, weight: Array | None
) -> dict[str, FloatArray]:
    """Each score of each model.

    Parameters
    ----------
    scores : dict of str to callable
        From `known_scores`.
    true : ndarray of shape (n_rows, n_targets)
        Targets.
    predicted : ndarray of shape (n_models, n_targets, n_rows)
        Predictions.
    weight : ndarray of shape (n_rows,), optional
        Sample weights.

    Returns
    -------
    dict of str to ndarray of shape (n_models,)
        The scores.
    """
    columns = np.ascontiguousarray(true.T, dtype=np.float64)
    values = np.asarray(predicted, dtype=np.float64)
    return {name: score(columns, values, weight) for name, score in scores.items()}


@dataclass(frozen=True)
class Scoring:
    """How fits are scored."""

    scorer: Any
    error_score: Any
    return_train_score: bool


def failed(error: Exception, s: Scoring) -> Outcome:
    """The outcome of a failed fit, in the form that scikit-learn uses."""
    if s.error_score == "raise":
        raise error
    score: Any = s.error_score
    if isinstance(s.scorer, MultimetricScorer):
        score = dict.fromkeys(s.scorer._scorers, s.error_score)
    out: Outcome = {
        "fit_error": "".join(traceback.format_exception(error)),
        "test_scores": score,
    }
    if s.return_train_score:
        out["train_scores"] = dict(score) if isinstance(score, dict) else score
    return out


def score_stack(stack: Stack, trained: StackResult, seconds: float, s: Scoring) -> list[Outcome]:
    """Outcomes of all fits of a stack, group by group.

    Raises
    ------
    TrainingDivergedError
        If a model diverged, with ``error_score="raise"``.
    """
    known = known_scores(s.scorer)
    out: list[Outcome] = []
    for g in range(len(stack.folds)):
        out += _score_group(stack, g, trained, s, known)
    for outcome in out:
        outcome["fit_time"] = seconds / stack.n_fits
    return out


def _score_group(
    stack: Stack, g: int, trained: StackResult, s: Scoring, known: dict[str, Score] | None
) -> list[Outcome]:
    """Scores of the models of a group, all at once if the scorer is known."""
    fold, row = stack.folds[g], stack.candidates[g]
    begin = time.perf_counter()
    test = _scores(stack, g, trained, s, known, train=False)
    score_time = (time.perf_counter() - begin) / len(row)
    train = _scores(stack, g, trained, s, known, train=True) if s.return_train_score else test
    out = []
    for c in range(len(row)):
        error = trained.errors.get((g, c))
        if error is not None:
            outcome = failed(error, s)
        else:
            outcome = {"fit_error": None, "test_scores": test[c]}
            if s.return_train_score:
                outcome["train_scores"] = train[c]
        outcome["n_test_samples"] = num_samples(fold.test_side.y)
        outcome["score_time"] = 0.0 if error is not None else score_time
        out.append(outcome)
    return out


def _routing() -> bool:
    return bool(get_config()["enable_metadata_routing"])


def _scores(
    stack: Stack,
    g: int,
    trained: StackResult,
    s: Scoring,
    known: dict[str, Score] | None,
    *,
    train: bool,
) -> list[Any]:
    """The scores of each model of a group on one side of its split."""
    fold, row = stack.folds[g], stack.candidates[g]
    side = fold.train_side if train else fold.test_side
    params = side.params
    table: dict[str, Any] = {}
    good = np.zeros(len(row), dtype=bool)
    # with metadata routing, each scorer decides whether it gets the weights
    routes = len(params) > 0 and _routing() and not isinstance(s.scorer, PredictScorer)
    if known is not None and params.keys() <= {"sample_weight"} and not routes:
        found = _all_at_once(stack, g, trained, known, side)
        if found is not None:
            table, good = found
    multiple = isinstance(s.scorer, MultimetricScorer)
    out: list[Any] = []
    for c in range(len(row)):
        if (g, c) in trained.errors:
            out.append(None)
        elif good[c]:
            scores = {name: float(values[c]) for name, values in table.items()}
            out.append(scores if multiple else scores["score"])
        else:
            try:
                model = fitted(row[c], fold, trained, (g, c), stack.specs[g][c])
            except Exception as error:
                trained.errors[g, c] = error
                out.append(None)
            else:
                out.append(asked(model, side, s))
    return out


def asked(model: Any, side: Side, s: Scoring) -> Any:
    """The scores of a model, computed by the scorer."""
    X, y, params = side.for_one_model()
    return score_estimator(model, X, y, s.scorer, params, s.error_score)


def _scored_rows(
    fold: Fold, side: Side, spec: FitSpec
) -> tuple[Array, FloatArray, FloatArray | None] | None:
    """Rows, targets and weights as numeric arrays; None if scikit-learn must handle them."""
    template = fold.template
    if spec.shape.module is not None:
        # checks rows against those of the fit
        template = copy.copy(template)
        template._made_from = dict(vars(spec.shape.module))
    try:
        rows, verify = template._validate_predict_rows(side.inner)
        if verify is not None:
            verify()
        y = np.asarray(to_host(side.y))
        weight = to_host(side.params.get("sample_weight"))
        weight = None if weight is None else np.asarray(weight, dtype=np.float64)
    except Exception:
        # the error is raised again, and reported, when the scorer is called
        return None
    if len(y) < LEAST_ROWS or y.dtype.kind not in "fiu" or not np.isfinite(y).all():
        return None
    if weight is not None and (
        weight.shape != (len(y),) or not (np.isfinite(weight).all() and weight.sum() > 0)
    ):
        return None
    return rows, y, weight


def _all_at_once(
    stack: Stack, g: int, trained: StackResult, known: dict[str, Score], side: Side
) -> tuple[dict[str, Any], Array] | None:
    """Scores of all models, and which of them are valid; None if the scorer must be called."""
    found = _scored_rows(stack.folds[g], side, stack.specs[g][0])
    if found is None:
        return None
    rows, y, weight = found
    y = y.reshape(len(y), -1)
    tables, good = [], []
    at_once = max(1, SCORED_ENTRIES // y.size)
    with np.errstate(all="ignore"):
        for first in range(0, len(stack.candidates[g]), at_once):
            places = slice(first, first + at_once)
            predicted = trained.predict(g, rows, stack.specs[g][0], places)
            tables.append(score_all(known, y, predicted, weight))
            finite = np.isfinite(predicted).all(axis=(1, 2))
            good.append(finite & trained.representable(g, rows.dtype, places))
    table = {name: np.concatenate([t[name] for t in tables]) for name in known}
    finite = np.all([np.isfinite(v) for v in table.values()], axis=0)
    return table, np.concatenate(good) & finite
