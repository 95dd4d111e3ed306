"""Errors that say what was wrong, what is possible and what to do next."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ._runtime.processes import RaisedAlike
from ._runtime.sklearn_private import InvalidParameterError

NOTE = "sktorch_linreg: raised by "

_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)


@contextmanager
def came_from(parameter: str, owner: Any) -> Iterator[None]:
    """Let errors of a user's own code through, with a note on the parameter that they came from.

    `owner` is the class or object that was given, or its name.
    """
    try:
        yield
    except Exception as error:
        # what one object calls of another has its note already
        if not any(note.startswith(NOTE) for note in getattr(error, "__notes__", ())):
            cls = owner if isinstance(owner, type | str) else type(owner)
            name = cls if isinstance(cls, str) else cls.__qualname__
            error.add_note(f"{NOTE}{name}, which was given as the parameter {parameter!r}.")
        raise


@contextmanager
def collect_convergence_warnings() -> Iterator[list[str]]:
    """Keep ConvergenceWarnings of fits in a list, for somebody who has many of them to report."""
    messages: list[str] = []
    token = _collected.set(messages)
    try:
        yield messages
    finally:
        _collected.reset(token)


def collected_warnings() -> list[str] | None:
    """Where ConvergenceWarnings are to be kept, None where they are to be shown."""
    return _collected.get()


# what scikit-learn, torch and others call it, and what it is called here
ALIASES = {
    "solver": "optimizer",
    "max_iter": "max_epochs",
    "n_epochs": "max_epochs",
    "epochs": "max_epochs",
    "learning_rate": "lr",
    "learning_rate_init": "lr",
    "eta0": "lr",
    "momentum": "optimizer__momentum",
    "nesterovs_momentum": "optimizer__nesterov",
    "weight_decay": "optimizer__weight_decay",
    "quantile": "loss__quantile",
    "penalty": "alpha",
    "mse": "squared_error",
    "mean_squared_error": "squared_error",
    "l2": "squared_error",
    "mae": "absolute_error",
    "mean_absolute_error": "absolute_error",
    "l1": "absolute_error",
    "sigmoid": "logistic",
    "swish": "silu",
    "linear": "identity",
}


def nearest(name: Any, known: Iterable[str]) -> str:
    """A sentence that names the closest known name, empty where none is close."""
    known, alias = list(known), ALIASES.get(str(name).lower())
    if alias is not None and (alias in known or alias.partition("__")[0] in known):
        return f" Did you mean {alias!r}?"
    match = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""


def unknown_name(kind: str, name: Any, known: Iterable[str], or_else: str = "") -> ValueError:
    """The error for a `kind` that is called `name` and is not known."""
    known = list(known)
    listed = ", ".join(repr(k) for k in known)
    error: ValueError = InvalidParameterError(
        f"Unknown {kind} {name!r}. Supported: {listed}{' ' if or_else else ''}{or_else}."
        f"{nearest(name, known)}"
    )
    return error


def check_options(kind: str, owner: str, options: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise ValueError for the first of `options` that `owner` does not have."""
    known = list(known)
    for option in options:
        if option not in known:
            listed = ", ".join(f"{kind}__{k}" for k in known) or "none"
            meant = nearest(option, known)
            if option == "lr" and kind == "optimizer":
                meant = " The learning rate is the parameter 'lr'."
            raise InvalidParameterError(
                f"The {kind} {owner!r} has no option {kind}__{option}. Its options are: {listed}."
                f"{meant} To take one back: del estimator.{kind}__{option}"
            )


class TrainingDivergedError(ValueError):
    """Raised when the training loss stops being a finite number.

    It is a ``ValueError``, so that ``GridSearchCV`` scores the candidate as its ``error_score``
    and goes on with the next one.

    Parameters
    ----------
    epoch : int
        The epoch in which it happened, counted from 1.
    lr : float
        The learning rate of that epoch.

    Examples
    --------
    >>> from sktorch_linreg import TrainingDivergedError
    >>> TrainingDivergedError(3, 0.5).epoch
    3
    """

    def __init__(self, epoch: int, lr: float) -> None:
        # an optimizer of the user's own may keep its rate elsewhere
        known = math.isfinite(lr)
        at, smaller = (f" at learning rate {lr:g}", f"lr={lr / 10:g}") if known else ("", "lr")
        super().__init__(
            f"The training loss stopped being finite in epoch {epoch}{at}. Try a smaller learning "
            f"rate ({smaller}), standardize=True, gradient clipping through "
            "callbacks=[skorch.callbacks.GradientNormClipping(1.0)], or optimizer='lbfgs'."
        )
        self.epoch = epoch
        self.lr = lr

    def __reduce__(self) -> tuple[type[TrainingDivergedError], tuple[int, float]]:
        return type(self), (self.epoch, self.lr)


class ExtremeScales(RaisedAlike):
    """The squares of a column overflow or vanish, so that it has to be rescaled first."""
