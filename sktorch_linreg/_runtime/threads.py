"""Work distributed over threads by spans of rows."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, TypeVar

import torch
from threadpoolctl import ThreadpoolController

Result = TypeVar("Result")

# fewer multiplications are finished before other threads have woken up
THREADED_WORK = 20_000_000
# multiplications in the forward pass of a batch from which threads pay off in training
THREADED_STEP = 30_000_000
# decompositions of more columns gain more from threads than they lose
QUIET_COLUMNS = 512


class _SerialBlas(AbstractContextManager[None]):
    """BLAS on one thread while any fit uses threads of its own; the last to leave restores it."""

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """Reset the users, which in a forked process are threads that do not exist there."""
        self._lock = threading.Lock()
        self._users = 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._limit = _controller().limit(limits=1, user_api="blas")
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._limit.restore_original_limits()


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


_serial_blas = _SerialBlas()


def _after_fork() -> None:
    """Use one thread in a forked process.

    torch's OpenMP would wait forever for threads that only exist in the parent.
    """
    torch.set_num_threads(1)
    _serial_blas.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def quiet_blas(n_rows: int, n_columns: int) -> AbstractContextManager[None]:
    """Keep BLAS on one thread during a fit whose spans use the others.

    Its threads would keep a core busy, waiting for more work, long after each small decomposition.
    """
    worth_it = n_rows * n_columns**2 >= THREADED_WORK and n_columns <= QUIET_COLUMNS
    return _serial_blas if worth_it and torch.get_num_threads() > 1 else nullcontext()


@contextmanager
def _one_thread() -> Iterator[None]:
    # a thread that the user starts in the meantime also gets this number
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


def threads_for(work_per_step: int) -> AbstractContextManager[None]:
    """Keep torch on one thread if a training step has too few multiplications for more.

    On small products two threads lose more by waiting for each other than they gain, and many times
    more if another process uses a core.
    """
    serial = work_per_step < THREADED_STEP and torch.get_num_threads() > 1
    return _one_thread() if serial else nullcontext()


def n_spans(n_rows: int, work_per_row: int, min_rows: int) -> int:
    """Number of threads worth using: at most torch's, each with at least `min_rows` rows."""
    if n_rows * work_per_row < THREADED_WORK:
        return 1
    return max(1, min(torch.get_num_threads(), n_rows // max(1, min_rows)))


def over_spans(work: Callable[[int, int], Result], n_rows: int, spans: int) -> list[Result]:
    """``work(start, stop)`` over equal spans of the rows, each in a thread; results in order.

    The spans only depend on their number, so results are bit-identical for equal thread counts.
    """
    if spans == 1:
        return [work(0, n_rows)]
    bounds = [n_rows * i // spans for i in range(spans + 1)]
    results: list[Any] = [None] * spans
    errors: list[BaseException] = []

    def run(i: int) -> None:
        try:
            # the first call in a thread sets torch's number of threads, so make it before the limit
            torch.get_num_threads()
            with _controller().limit(limits=1, user_api="openmp"):
                results[i] = work(bounds[i], bounds[i + 1])
        except BaseException as error:
            errors.append(error)

    with _serial_blas:
        threads = [threading.Thread(target=run, args=(i,)) for i in range(1, spans)]
        for thread in threads:
            thread.start()
        run(0)
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return results


def in_threads(works: Sequence[Callable[[], Result]], n_threads: int) -> Iterator[Result]:
    """Results of the calls in order, computed ahead in threads, within which torch runs serially.

    With one thread, each call is made when its result is requested.
    """
    n_threads = min(n_threads, len(works))
    if n_threads <= 1:
        yield from (work() for work in works)
        return
    with _one_thread():
        pool = ThreadPoolExecutor(n_threads)
        try:
            yield from pool.map(lambda work: work(), works)
        finally:
            pool.shutdown(cancel_futures=True)
