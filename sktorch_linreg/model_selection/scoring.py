"""Regression scores of many models at once, equal to those of scikit-learn's scorers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn import metrics

from .._runtime.aliases import Array, FloatArray
from .._runtime.sklearn_private import MultimetricScorer, PassthroughScorer, PredictScorer

# (y_true of shape (n_targets, n_rows), y_pred of shape (n_models, n_targets, n_rows), weights or
# None) -> scores of shape (n_models,), larger ones being better
Score = Callable[[FloatArray, FloatArray, FloatArray | None], FloatArray]


def _mean(values: FloatArray, weight: FloatArray | None) -> FloatArray:
    out: FloatArray = np.average(values, axis=-1, weights=weight)
    return out


def _explained(left: FloatArray, there: FloatArray) -> FloatArray:
    """1 - left / there, averaged over targets; where nothing is there to explain, 1 or 0."""
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
    """Mean squared error of each model."""
    out: FloatArray = -_mean((true - predicted) ** 2, weight).mean(-1)
    return out


def root_mean_squared_error(
    true: FloatArray, predicted: FloatArray, weight: FloatArray | None
) -> FloatArray:
    """Root of the mean squared error of each model."""
    out: FloatArray = -np.sqrt(_mean((true - predicted) ** 2, weight)).mean(-1)
    return out


def mean_absolute_error(
    true: FloatArray, predicted: FloatArray, weight: FloatArray | None
) -> FloatArray:
    """Mean absolute error of each model."""
    out: FloatArray = -_mean(np.abs(true - predicted), weight).mean(-1)
    return out


# scikit-learn's function, and what gives the score of its scorer
SCORES: dict[Any, Score] = {
    metrics.r2_score: r2,
    metrics.explained_variance_score: explained_variance,
    metrics.mean_squared_error: mean_squared_error,
    metrics.root_mean_squared_error: root_mean_squared_error,
    metrics.mean_absolute_error: mean_absolute_error,
}
# fewer rows have no variance, which scikit-learn warns of
LEAST_ROWS = 2


def known_scores(scorer: Any) -> dict[str, Score] | None:
    """The scores that a scorer of scikit-learn stands for, None if it has to be called itself.

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
    # greater_is_better has to be what it is in scikit-learn's own scorers
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
        Weights of the rows.

    Returns
    -------
    dict of str to ndarray of shape (n_models,)
        The scores.
    """
    columns = np.ascontiguousarray(true.T, dtype=np.float64)
    values = np.asarray(predicted, dtype=np.float64)
    return {name: score(columns, values, weight) for name, score in scores.items()}
