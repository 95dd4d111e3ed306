"""scikit-learn's callbacks: a fit is a task, and each epoch a subtask."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from .._spec import FitResult

# set by scikit-learn on the estimator during a fit, and needed to tear down callbacks
TASK_ATTRIBUTES = ("_callback_fit_ctx", "_skl_callbacks_to_teardown")


class FitTask:
    """Reports the progress of a fit to the callbacks set by `set_callbacks`.

    Parameters
    ----------
    estimator : BaseTorchRegressor
        The estimator being fitted; it has `_init_callback_context`.
    X, y, sample_weight : array-like
        As passed to `fit`.
    n_epochs : int
        Maximum number of epochs, 0 for an exact solver.
    adopt : callable
        ``adopt(estimator, result)`` sets fitted attributes of a copy of the estimator.
    """

    def __init__(
        self,
        estimator: Any,
        X: Any,
        y: Any,
        sample_weight: Any,
        n_epochs: int,
        adopt: Callable[[Any, FitResult], None],
    ) -> None:
        self.estimator, self.adopt = estimator, adopt
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        self.given: dict[str, Any] = {
            "estimator": estimator, "X": X, "y": y, "metadata": metadata,
        }  # fmt: skip
        self.context = estimator._init_callback_context(max_subtasks=n_epochs)
        self.context.call_on_fit_task_begin(**self.given)
        self.epoch: Any = None

    def begin_epoch(self, so_far: Callable[[], FitResult]) -> None:
        """Report the start of an epoch."""
        self.epoch = self.context.subcontext(task_name="epoch")
        self.epoch.call_on_fit_task_begin(**self._about(so_far))

    def end_epoch(self, so_far: Callable[[], FitResult]) -> bool:
        """Report the end of an epoch; returns whether a callback requests a stop."""
        return bool(self.epoch.call_on_fit_task_end(**self._about(so_far)))

    def _about(self, so_far: Callable[[], FitResult]) -> dict[str, Any]:
        """Arguments of a hook; fitted attributes are only created if the hook requests them."""

        def attributes() -> dict[str, Any]:
            fitted = copy.copy(self.estimator)
            self.adopt(fitted, so_far())
            return {k: v for k, v in vars(fitted).items() if k not in TASK_ATTRIBUTES}

        return {**self.given, "reconstruction_attributes": attributes}

    def end(self) -> None:
        """Report the end of the fit."""
        self.context.call_on_fit_task_end(**self.given, reconstruction_attributes={})
