"""Errors from code of the user's own, and warnings that somebody collects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

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
