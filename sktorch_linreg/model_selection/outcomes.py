"""Training a stack of fits, and their scores."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn import get_config
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from .._data.arrays import to_host
from .._data.scaling import identity_scaling
from .._errors import collect_convergence_warnings
from .._estimator.base import BaseTorchRegressor
from .._exact import solve
from .._runtime.aliases import Array, FloatArray
from .._runtime.sklearn_private import (
    MultimetricScorer,
    PredictScorer,
    num_samples,
    score_estimator,
)
from .._runtime.torch_modes import own_torch_settings
from .._spec import FitSpec
from .._training.many_models import train_models
from .._training.stacked_parameters import StackedParameters
from .._training.stacked_result import StackResult
from .candidates import Candidate, Fold, Side
from .scoring import LEAST_ROWS, Score, known_scores, score_all
from .stacks import Stack

Outcome = dict[str, Any]

# predictions of many models that are scored at once
SCORED_ENTRIES = 2**20


@dataclass(frozen=True)
class Scoring:
    """How fits are scored."""

    scorer: Any
    error_score: Any
    return_train_score: bool


def _failed(error: Exception, s: Scoring) -> Outcome:
    """The outcome of a fit that raised, as scikit-learn keeps it."""
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


def solved(fold: Fold, specs: list[FitSpec]) -> StackResult:
    """Exact solutions for all penalties, as one group of models."""
    data, n = fold.train, len(specs)
    sizes = data.n_features, data.n_targets
    bias = specs[0].shape.fit_intercept
    parameters = StackedParameters(sizes, bias, 1, n, torch.float64, torch.device("cpu"))
    with own_torch_settings(specs[0].device, grad=False):
        for i, layers in enumerate(solve.fit_path(data, specs)):
            parameters.set_layers((torch.tensor(0), torch.tensor(i)), layers)
    nothing = np.full((1, n), np.nan)
    ones, done = np.ones((1, n), dtype=np.int64), np.zeros((1, n), dtype=bool)
    return StackResult(parameters, [identity_scaling(*sizes)], ones, nothing, nothing, done)


def fitted(c: Candidate, fold: Fold, trained: StackResult, at: tuple[int, int], spec: Any) -> Any:
    """The estimator of a candidate, as it would be if it had been fitted alone."""
    last: BaseTorchRegressor = clone(c.last)
    if spec.is_exact:
        # what a scorer may ask of it is more than its coefficients
        return _whole(c, fold, last.fit(fold.inner_train, fold.train_side.y, fold.weight))
    for name in ("n_features_in_", "feature_names_in_"):
        if name in vars(fold.template):
            setattr(last, name, getattr(fold.template, name))
    result = trained.fit_result(*at, spec)
    # the linear model keeps statistics of exact fits only
    last._statistics = None
    last._adopt(result, fold.train, spec, fold.n_dim)
    last._incremental = False
    return _whole(c, fold, last)


def _whole(c: Candidate, fold: Fold, last: BaseTorchRegressor) -> Any:
    """The fitted estimator, with the steps before it if there are any."""
    if type(c.whole) is not Pipeline:
        return last
    whole = clone(c.whole)
    steps = [] if fold.before is None else list(fold.before.steps)
    whole.steps = [*steps, (c.whole.steps[-1][0], last)]
    return whole


def train_stack(
    stack: Stack, known: bool, tell: Callable[[int], None] | None = None
) -> StackResult:
    """Train a stack; losses of all epochs are only kept where the scorer is not known."""
    if stack.exact:
        return solved(stack.folds[0], stack.specs[0])
    # groups that differ in their seed alone see the same rows
    folds = list({id(fold): fold for fold in stack.folds}.values())
    place = {id(fold): i for i, fold in enumerate(folds)}
    owner = [place[id(fold)] for fold in stack.folds]
    data = [fold.train for fold in folds]
    return train_models(data, owner, stack.specs, curves=not known, tell=tell)


def score_stack(stack: Stack, trained: StackResult, seconds: float, s: Scoring) -> list[Outcome]:
    """Outcomes of all fits of a stack, group by group.

    Raises
    ------
    TrainingDivergedError
        With ``error_score="raise"``.
    """
    known = known_scores(s.scorer)
    out: list[Outcome] = []
    for g in range(len(stack.folds)):
        out += _score_group(stack, g, trained, s, known)
    for outcome in out:
        outcome["fit_time"] = seconds / stack.n_fits
    return out


def fit_one_by_one(stack: Stack, s: Scoring) -> tuple[list[Outcome], int]:
    """Outcomes of all fits of a stack, each of which is fitted by itself after all.

    Also returns how many of them have not converged.
    """
    out: list[Outcome] = []
    n_unfinished = 0
    for fold, row in zip(stack.folds, stack.candidates, strict=True):
        for c in row:
            begin = time.perf_counter()
            try:
                last = clone(c.last).set_params(random_state=c.seed)
                with collect_convergence_warnings() as messages:
                    last.fit(fold.inner_train, fold.train_side.y, fold.weight)
                n_unfinished += bool(messages)
            except Exception as error:
                outcome = _failed(error, s)
                outcome["score_time"], scored = 0.0, time.perf_counter()
            else:
                model, scored = _whole(c, fold, last), time.perf_counter()
                outcome = {"fit_error": None, "test_scores": _asked(model, fold.test_side, s)}
                if s.return_train_score:
                    outcome["train_scores"] = _asked(model, fold.train_side, s)
                outcome["score_time"] = time.perf_counter() - scored
            outcome["fit_time"] = scored - begin
            outcome["n_test_samples"] = num_samples(fold.test_side.y)
            out.append(outcome)
    return out, n_unfinished


def _score_group(
    stack: Stack, g: int, trained: StackResult, s: Scoring, known: dict[str, Score] | None
) -> list[Outcome]:
    """Scores of the models of a group, all at once where the scorer is known."""
    fold, row = stack.folds[g], stack.candidates[g]
    begin = time.perf_counter()
    test = _scores(stack, g, trained, s, known, train=False)
    score_time = (time.perf_counter() - begin) / len(row)
    train = _scores(stack, g, trained, s, known, train=True) if s.return_train_score else test
    out = []
    for c in range(len(row)):
        error = trained.errors.get((g, c))
        if error is not None:
            outcome = _failed(error, s)
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
    # who gets the weights, and whether that was asked for, is decided scorer by scorer
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
                out.append(_asked(model, side, s))
    return out


def _asked(model: Any, side: Side, s: Scoring) -> Any:
    """The scores that a scorer gives a model."""
    X, y, params = side.for_one_model()
    return score_estimator(model, X, y, s.scorer, params, s.error_score)


def _scored_rows(fold: Fold, side: Side) -> tuple[Array, FloatArray, FloatArray | None] | None:
    """Rows, targets and weights as numbers; None where scikit-learn has to look at them."""
    try:
        rows, verify = fold.template._validate_predict_rows(side.inner)
        if verify is not None:
            verify()
        y = np.asarray(to_host(side.y))
        weight = to_host(side.params.get("sample_weight"))
        weight = None if weight is None else np.asarray(weight, dtype=np.float64)
    except Exception:
        # it raises again, and is reported, where the scorer is asked
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
    """Scores of all models, and which of them hold; None where scikit-learn has to be asked."""
    found = _scored_rows(stack.folds[g], side)
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
