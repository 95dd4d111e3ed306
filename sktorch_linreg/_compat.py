"""scikit-learn's private helpers, kept in one place so that a new release is checked here alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import sklearn.utils.metaestimators
from sklearn.base import _fit_context
from sklearn.utils._param_validation import (
    Interval,
    InvalidParameterError,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.validation import _check_sample_weight as check_sample_weight

__all__ = [
    "Interval",
    "InvalidParameterError",
    "StrOptions",
    "available_if",
    "check_sample_weight",
    "fit_context",
    "validate_parameter_constraints",
]

Method = TypeVar("Method", bound=Callable[..., Any])


def fit_context(method: Method) -> Method:
    """Validate parameters before a fit method, under scikit-learn's own settings."""
    wrapped: Method = _fit_context(prefer_skip_nested_validation=True)(method)
    return wrapped


def available_if(check: Callable[[Any], bool]) -> Callable[[Method], Method]:
    """Make a method there only where `check(estimator)` says so; typed."""
    decorator: Callable[[Method], Method] = sklearn.utils.metaestimators.available_if(check)
    return decorator
