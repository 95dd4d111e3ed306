"""Options and construction of optimizers and schedules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from .._errors import came_from


@cache
def signature_of(cls: Any) -> tuple[Mapping[str, Any], bool]:
    """Options of `cls` with their defaults, and whether it also accepts arbitrary others."""
    parameters = list(inspect.signature(cls).parameters.values())[1:]
    named = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}
    return named, len(named) < len(parameters)


@cache
def defaults_of(cls: Any) -> Mapping[str, Any]:
    """The options of an optimizer's constructor that have defaults."""
    named, _ = signature_of(cls)
    return {k: v for k, v in named.items() if v is not inspect.Parameter.empty}


def is_torch_or_ours(cls: Any) -> bool:
    """Whether a class is from torch, whose errors concern its options, or from this package."""
    owner = getattr(cls, "func", cls)
    return str(owner.__module__).partition(".")[0] in ("torch", __package__.partition(".")[0])


def construct(kind: str, cls: Callable[..., Any], target: Any, options: Mapping[str, Any]) -> Any:
    """Make an optimizer or a schedule.

    Raises
    ------
    ValueError
        If a torch class rejects the options. Errors of other classes are passed through.
    """
    if not is_torch_or_ours(cls):
        with came_from(kind, cls):
            return cls(target, **options)
    try:
        return cls(target, **options)
    except Exception as error:
        # constructors may raise any exception for invalid options
        given = ", ".join(f"{k}={v!r}" for k, v in options.items())
        raise ValueError(
            f"The {kind} rejected the options {given}: {error!r}. Check {kind}__*."
        ) from error
