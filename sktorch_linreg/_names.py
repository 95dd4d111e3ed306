"""Errors for unknown names and options that say what is known and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from ._compat import InvalidParameterError


def nearest(name: Any, known: Iterable[str]) -> str:
    """A sentence that names the closest known name, empty where none is close."""
    match = difflib.get_close_matches(str(name).lower(), list(known), n=1, cutoff=0.5)
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
            raise InvalidParameterError(
                f"The {kind} {owner!r} has no option {kind}__{option}. Its options are: {listed}."
                f"{nearest(option, known)} To take one back: del estimator.{kind}__{option}"
            )
