"""The fitted estimator in a search or a pipeline, and the rows that it sees."""

from __future__ import annotations

from typing import Any


def fitted_step(estimator: Any) -> Any:
    """The estimator of this package in a search or a pipeline, or the one given."""
    found = getattr(estimator, "best_estimator_", estimator)
    steps = getattr(found, "steps", None)
    return found if steps is None else steps[-1][1]


def before_last_step(estimator: Any, X: Any) -> Any:
    """The rows as seen by the last step of a pipeline, or of the best pipeline of a search."""
    found = getattr(estimator, "best_estimator_", estimator)
    return found[:-1].transform(X) if len(getattr(found, "steps", ())) > 1 else X
