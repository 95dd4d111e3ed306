"""A lock that threads take in turn."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

# seconds in which a waiting thread takes the lock
PAUSE = 1e-3


class Turns:
    """A lock that its holder may take again, and that waiting threads get before it does."""

    def __init__(self) -> None:
        self._lock, self._waiting = threading.RLock(), set[int]()
        _all.add(self)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A context in which this thread holds the lock."""
        me = threading.get_ident()
        self._waiting.add(me)
        try:
            # taken and released by the interpreter itself, so that Ctrl-C never leaves it locked
            with self._lock:
                self._waiting.discard(me)
                yield
        finally:
            self._waiting.discard(me)
        if self._waiting and not self._is_mine():
            time.sleep(PAUSE)

    def _is_mine(self) -> bool:
        # RLock has no public way to ask
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]

    def _after_fork(self) -> None:
        # this thread goes on in the child
        if not self._is_mine():
            self._lock = threading.RLock()
        self._waiting.clear()


_all: weakref.WeakSet[Turns] = weakref.WeakSet()


def _after_fork() -> None:
    """A lock held by another thread of the parent would never be released in the child."""
    for turns in _all:
        turns._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
