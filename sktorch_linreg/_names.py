"""Errors for unknown names and options that say what is known and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from ._runtime.sklearn_private import InvalidParameterError

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
        f"The {kind} {name!r} is not known. Known are {listed}{' ' if or_else else ''}{or_else}."
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
