"""scikit-learn's callbacks: a fit as a task, and each epoch as a task below it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from .._spec import FitResult

# what scikit-learn keeps on the estimator while a fit goes on, and needs to tear callbacks down
TASK_ATTRIBUTES = ("_callback_fit_ctx", "_skl_callbacks_to_teardown")


class FitTask:
    """Tells the callbacks that `set_callbacks` gave to an estimator how its fit goes.

    Parameters
    ----------
    estimator : BaseTorchRegressor
        Being fitted; it has `_init_callback_context`.
    X, y, sample_weight : array-like
        As they were given to `fit`.
    n_epochs : int
        The most epochs that there will be, 0 for an exact solver.
    adopt : callable
        ``adopt(estimator, result)`` makes a copy of the estimator one that is fitted with a result.
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
        """Tell of an epoch that begins."""
        self.epoch = self.context.subcontext(task_name="epoch")
        self.epoch.call_on_fit_task_begin(**self._about(so_far))

    def end_epoch(self, so_far: Callable[[], FitResult]) -> bool:
        """Tell of an epoch that is done; returns whether a callback asks to stop."""
        return bool(self.epoch.call_on_fit_task_end(**self._about(so_far)))

    def _about(self, so_far: Callable[[], FitResult]) -> dict[str, Any]:
        """What a hook may ask for; the fitted attributes are only made where one does."""

        def attributes() -> dict[str, Any]:
            fitted = copy.copy(self.estimator)
            self.adopt(fitted, so_far())
            return {k: v for k, v in vars(fitted).items() if k not in TASK_ATTRIBUTES}

        return {**self.given, "reconstruction_attributes": attributes}

    def end(self) -> None:
        """Tell that the estimator is fitted."""
        self.context.call_on_fit_task_end(**self.given, reconstruction_attributes={})
