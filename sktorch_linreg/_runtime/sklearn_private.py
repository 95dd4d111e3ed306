"""scikit-learn's private helpers, the only file to check against a new release."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import sklearn.utils.metaestimators
from sklearn.base import _fit_context
from sklearn.metrics._scorer import _MultimetricScorer as MultimetricScorer
from sklearn.metrics._scorer import _PassthroughScorer as PassthroughScorer
from sklearn.metrics._scorer import _Scorer as PredictScorer
from sklearn.model_selection._validation import _fit_and_score as fit_and_score
from sklearn.model_selection._validation import _insert_error_scores as insert_error_scores
from sklearn.model_selection._validation import _score as score_estimator
from sklearn.model_selection._validation import (
    _warn_or_raise_about_fit_failures as tell_fit_failures,
)
from sklearn.utils import _safe_indexing as safe_indexing
from sklearn.utils._param_validation import (
    Interval,
    InvalidParameterError,
    Options,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.metaestimators import _safe_split as safe_split
from sklearn.utils.validation import _check_method_params as check_method_params
from sklearn.utils.validation import _check_sample_weight as check_sample_weight
from sklearn.utils.validation import _num_samples as num_samples

__all__ = [
    "Interval",
    "InvalidParameterError",
    "MultimetricScorer",
    "Options",
    "PassthroughScorer",
    "PredictScorer",
    "StrOptions",
    "available_if",
    "check_method_params",
    "check_sample_weight",
    "fit_and_score",
    "fit_context",
    "insert_error_scores",
    "nested_fit_context",
    "num_samples",
    "safe_indexing",
    "safe_split",
    "score_estimator",
    "tell_fit_failures",
    "validate_parameter_constraints",
]

Method = TypeVar("Method", bound=Callable[..., Any])


def fit_context(method: Method) -> Method:
    """Validate parameters before a fit method, under scikit-learn's own settings."""
    wrapped: Method = _fit_context(prefer_skip_nested_validation=True)(method)
    return wrapped


def nested_fit_context(method: Method) -> Method:
    """As `fit_context`, for an estimator whose own estimator is not validated yet."""
    wrapped: Method = _fit_context(prefer_skip_nested_validation=False)(method)
    return wrapped


def available_if(check: Callable[[Any], bool]) -> Callable[[Method], Method]:
    """Typed `available_if`: the method exists only if `check(estimator)` is true."""
    decorator: Callable[[Method], Method] = sklearn.utils.metaestimators.available_if(check)
    return decorator
