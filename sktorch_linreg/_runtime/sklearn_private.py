"""scikit-learn's private helpers, and its versions: the only file to check against a release."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import sklearn
import sklearn.utils.metaestimators
from sklearn.base import _fit_context
from sklearn.metrics._scorer import _MultimetricScorer as MultimetricScorer
from sklearn.metrics._scorer import _PassthroughScorer as PassthroughScorer
from sklearn.metrics._scorer import _Scorer as PredictScorer
from sklearn.model_selection._validation import _fit_and_score
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
from sklearn.utils.validation import _check_sample_weight
from sklearn.utils.validation import _num_samples as num_samples

__all__ = [
    "HAS_CALLBACKS",
    "CallbackSupportMixin",
    "Interval",
    "InvalidParameterError",
    "MultimetricScorer",
    "NoCallbackContext",
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
    "keep_splitter",
    "nested_fit_context",
    "num_samples",
    "safe_indexing",
    "safe_split",
    "score_estimator",
    "tell_fit_failures",
    "validate_parameter_constraints",
]

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:
    # scikit-learn 1.7 and 1.8
    HAS_CALLBACKS = False

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands in for scikit-learn's mixin, in versions without callbacks."""

        def set_callbacks(self, *callbacks: Any) -> Any:
            """Raise NotImplementedError: this version of scikit-learn has no callbacks."""
            raise NotImplementedError(
                f"set_callbacks requires scikit-learn 1.9 or newer; {sklearn.__version__} is "
                "installed. Upgrade scikit-learn, or pass skorch callbacks as callbacks=[...]."
            )

        def _init_callback_context(self, **about: Any) -> NoCallbackContext:
            return NoCallbackContext()

        def _check_input_parameters(self, **about: Any) -> None:
            """Check nothing; searches call this hook from scikit-learn 1.9 on."""

else:
    HAS_CALLBACKS = True

Method = TypeVar("Method", bound=Callable[..., Any])


class NoCallbackContext:
    """Replaces a callback context where scikit-learn, or a user's own search, passes none."""

    _callbacks: tuple[Any, ...] = ()
    task_id = 0

    def subcontext(self, task_id: int = 0, **about: Any) -> NoCallbackContext:
        out = NoCallbackContext()
        out.task_id = task_id
        return out

    def call_on_fit_task_begin(self, **about: Any) -> NoCallbackContext:
        return self

    def call_on_fit_task_end(self, **about: Any) -> NoCallbackContext:
        return self

    def propagate_callback_context(self, estimator: Any) -> AbstractContextManager[None]:
        return nullcontext()


def keep_splitter(search: Any, splitter: Any) -> None:
    """Keep the splitter of a search where scikit-learn keeps it, which is from 1.9 on."""
    if HAS_CALLBACKS:
        search._checked_cv_orig = splitter


def fit_and_score(*args: Any, caller: Any, callback_ctx: Any, **options: Any) -> dict[str, Any]:
    """Fit and score an estimator as a search does, with a callback context if supported."""
    if HAS_CALLBACKS:
        context = None if isinstance(callback_ctx, NoCallbackContext) else callback_ctx
        options |= {"caller": caller, "callback_ctx": context}
    outcome: dict[str, Any] = _fit_and_score(*args, **options)
    return outcome


def check_sample_weight(sample_weight: Any, X: Any, **options: Any) -> Any:
    """Validate sample weights; raises ValueError if all are zero, as scikit-learn 1.9 does."""
    checked = _check_sample_weight(sample_weight, X, **options)
    if not (checked != 0).any():
        raise ValueError("Sample weights must contain at least one non-zero number.")
    return checked


def fit_context(method: Method) -> Method:
    """Validate parameters before a fit method, under scikit-learn's own settings."""
    wrapped: Method = _fit_context(prefer_skip_nested_validation=True)(method)
    return wrapped


def nested_fit_context(method: Method) -> Method:
    """As `fit_context`, for an estimator whose nested estimator is not validated yet."""
    wrapped: Method = _fit_context(prefer_skip_nested_validation=False)(method)
    return wrapped


def available_if(check: Callable[[Any], bool]) -> Callable[[Method], Method]:
    """Typed `available_if`: the method exists only if `check(estimator)` is true."""
    decorator: Callable[[Method], Method] = sklearn.utils.metaestimators.available_if(check)
    return decorator
