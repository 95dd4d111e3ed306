"""Errors that say what was wrong, what is possible and what to do next."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import BuiltinFunctionType, FunctionType
from typing import Any

from ._runtime.processes import RaisedAlike
from ._runtime.sklearn_private import InvalidParameterError

NOTE = "sktorch_linreg: raised by "

_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)


@contextmanager
def came_from(parameter: str, owner: Any) -> Iterator[None]:
    """Pass on errors of the user's own code, with a note on the parameter they came from.

    `owner` is the class or object that was given, or its name.
    """
    try:
        yield
    except InvalidParameterError:
        # says by itself which parameter is wrong
        raise
    except Exception as error:
        # an error passed on by a nested object already has its note
        if not any(note.startswith(NOTE) for note in getattr(error, "__notes__", ())):
            cls = owner if isinstance(owner, type | str) else type(owner)
            name = cls if isinstance(cls, str) else cls.__qualname__
            error.add_note(f"{NOTE}{name}, which was given as the parameter {parameter!r}.")
        raise


@contextmanager
def collect_convergence_warnings() -> Iterator[list[str]]:
    """Collect the ConvergenceWarnings of fits in a list, to report many of them at once."""
    messages: list[str] = []
    token = _collected.set(messages)
    try:
        yield messages
    finally:
        _collected.reset(token)


def collected_warnings() -> list[str] | None:
    """The list that collects ConvergenceWarnings, None if they are to be shown."""
    return _collected.get()


# names in scikit-learn, torch and elsewhere, and the names here
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
    "mse_loss": "squared_error",
    "l1_loss": "absolute_error",
    "huber_loss": "huber",
    "poisson_nll_loss": "poisson",
    "mae": "absolute_error",
    "mean_absolute_error": "absolute_error",
    "l1": "absolute_error",
    "sigmoid": "logistic",
    "swish": "silu",
    "linear": "identity",
}


def nearest(name: Any, known: Iterable[str]) -> str:
    """A sentence that suggests the closest known name, empty if none is close."""
    known, alias = list(known), ALIASES.get(str(name).lower())
    if alias is not None and (alias in known or alias.partition("__")[0] in known):
        return f" Did you mean {alias!r}?"
    match = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""


def public_name(cls: type) -> str:
    """The shortest dotted name from which a class can be imported."""
    module: list[str] = []
    for part in cls.__module__.split("."):
        module.append(part)
        if getattr(sys.modules.get(".".join(module)), cls.__name__, None) is cls:
            break
    return ".".join([*module, cls.__qualname__])


def _in_words(value: Any) -> str:
    """A value that was passed instead of a name, described in one line."""
    if isinstance(value, type):
        return f"the class {public_name(value)}"
    if isinstance(value, FunctionType | BuiltinFunctionType):
        return f"the function {value.__qualname__}"
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"a {public_name(type(value))} object"


def unknown_name(
    kind: str, name: Any, known: Iterable[str], base: type | None = None
) -> ValueError:
    """The error for a parameter `kind` that is neither a known name nor a subclass of `base`."""
    known = list(known)
    listed = ", ".join(repr(k) for k in known)
    others = "" if base is None else f" or a subclass of {public_name(base)}"
    if base is not None and isinstance(name, base):
        cls = public_name(type(name))
        rate = ", with the learning rate as lr" if kind == "optimizer" else ""
        message = (
            f"{kind} was given an instance of {cls}. Pass the class, {kind}={cls}, and its options "
            f"as {kind}__*{rate}."
        )
    elif isinstance(name, str):
        message = f"Unknown {kind} {name!r}. Supported: {listed}{others}.{nearest(name, known)}"
    else:
        # the name of a class, function or module may be close to a supported one
        called = getattr(name, "__name__", type(name).__name__)
        meant = (
            "" if type(name).__module__ == "builtins" and called == type(name).__name__ else called
        )
        message = (
            f"{kind} must be one of {listed}{others}; got {_in_words(name)}."
            f"{nearest(meant, known) if meant else ''}"
        )
    error: ValueError = InvalidParameterError(message)
    return error


def check_options(
    kind: str,
    owner: str,
    options: Mapping[str, Any],
    known: Iterable[str],
    owners_of: Callable[[str], Iterable[str]],
    chosen: str = "",
) -> None:
    """Raise ValueError for the first of `options` that `owner` does not have.

    `owners_of` lists the owners that have an option; `chosen` says what chose `owner`, if anything.
    """
    known = list(known)
    for option in options:
        if option in known:
            continue
        listed = ", ".join(f"{kind}__{k}" for k in known) or "none"
        remedy = nearest(option, known)
        if option == "lr" and kind == "optimizer":
            remedy = " The learning rate is the parameter 'lr'."
        elif not remedy and (others := list(owners_of(option))):
            *first, last = map(repr, others)
            named = f"{', '.join(first)} or {last}" if first else last
            remedy = f" To use it, set {kind} to {named}."
        raise InvalidParameterError(
            f"The {kind} {owner!r}{chosen} has no option {kind}__{option}. Its options are: "
            f"{listed}.{remedy} To remove the option: del estimator.{kind}__{option}"
        )


class CheckpointMismatchError(ValueError):
    """Raised when the checkpoint in `checkpoint_dir` belongs to a different fit.

    Parameters, data or starting weights differ from those the checkpoint was written with. The
    checkpoint is left unchanged: pass another `checkpoint_dir`, or delete the file to start over.

    Examples
    --------
    >>> from sktorch_linreg import CheckpointMismatchError
    >>> issubclass(CheckpointMismatchError, ValueError)
    True
    """


class TrainingDivergedError(ValueError):
    """Raised when the training loss becomes NaN or infinite.

    It is a ``ValueError``, so that ``GridSearchCV`` scores the candidate as its ``error_score``
    and continues with the next one.

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
        # a custom optimizer may store its learning rate elsewhere
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
    """The squares of a column overflow or underflow, so it must be rescaled first."""
