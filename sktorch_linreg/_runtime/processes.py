"""Several processes that train one model, each on its own rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")


class RaisedAlike(Exception):
    """An exception without arguments that all processes raise if one of them does."""


class ProcessGroup:
    """The processes that share a fit: this one alone, unless a subclass says otherwise.

    Every method is a collective: all processes have to call it, in the same order.

    Attributes
    ----------
    rank : int
        Number of this process, from 0.
    size : int
        Number of processes.
    """

    rank: int = 0
    size: int = 1

    def gather(self, work: Callable[[], Result]) -> list[Result]:
        """Results of `work` on all processes, by rank; an error on one is raised on all."""
        return [work()]

    def run(self, work: Callable[[], Result]) -> Result:
        """Result of `work` on this process, which is not sent; an error on one is raised on all."""
        return work()

    def sum_(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over the processes."""

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Sums of some numbers over the processes."""
        return list(numbers)

    def broadcast_(self, tensor: Tensor) -> None:
        """Replace a tensor by that of the first process."""

    def broadcast(self, value: Result) -> Result:
        """The value of the first process."""
        return value

    def lead(self, step: Callable[[Callable[[], Tensor]], None], evaluate: Any, at: Tensor) -> None:
        """Take a step of an optimizer that decides for itself how often to `evaluate`.

        The first process takes the step, and the others evaluate whenever it does: their own
        decisions might differ by rounding. `at` are the parameters, equal on all at the end.
        """
        step(evaluate)


ONE_PROCESS = ProcessGroup()


class DistributedGroup(ProcessGroup):
    """The processes of a group of `torch.distributed`.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, optional
        The group; None means all processes.
    """

    def __init__(self, group: Any = None) -> None:
        joined: Any = dist.group.WORLD if group is None else group
        self._group = joined
        self.rank = dist.get_rank(joined)
        self.size = dist.get_world_size(joined)
        self._first = dist.get_global_rank(joined, 0) if self.rank >= 0 else -1
        # a forked process inherits this object, but does not belong to the group
        self.pid = os.getpid()

    def leave(self) -> None:
        """Release the group, which could abort the interpreter if released during its shutdown."""
        self._group = None

    def __repr__(self) -> str:
        return f"<process {self.rank} of {self.size}>"

    def gather(self, work: Callable[[], Result]) -> list[Result]:
        error: Exception | None = None
        result = told = None
        try:
            result = work()
        except Exception as caught:
            error, told = caught, _description(caught)
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, (result, told), group=self._group)
        if error is not None:
            raise error
        for rank, (_, failure) in enumerate(found):
            if failure is not None:
                cls, text = failure
                raise cls(f"On process {rank} of {self.size}: {text}")
        return [result for result, _ in found]

    def run(self, work: Callable[[], Result]) -> Result:
        kept: list[Result] = []
        self.gather(lambda: kept.append(work()))
        return kept[0]

    def sum_(self, tensor: Tensor) -> None:
        dist.all_reduce(tensor, group=self._group)

    def sum(self, numbers: Sequence[float]) -> list[float]:
        together = torch.tensor(numbers, dtype=torch.float64)
        self.sum_(together)
        return [float(number) for number in together]

    def broadcast_(self, tensor: Tensor) -> None:
        dist.broadcast(tensor, src=self._first, group=self._group)

    def broadcast(self, value: Result) -> Result:
        found: list[Any] = [value if self.rank == 0 else None]
        dist.broadcast_object_list(found, src=self._first, group=self._group)
        out: Result = found[0]
        return out

    def lead(self, step: Callable[[Callable[[], Tensor]], None], evaluate: Any, at: Tensor) -> None:
        again = torch.ones(1)
        if self.rank == 0:

            def closure() -> Tensor:
                self.broadcast_(again.fill_(1.0))
                self.broadcast_(at)
                value: Tensor = evaluate()
                return value

            step(closure)
            self.broadcast_(again.fill_(0.0))
        else:
            while self._receives(again):
                self.broadcast_(at)
                evaluate()
        self.broadcast_(at)

    def _receives(self, flag: Tensor) -> bool:
        self.broadcast_(flag)
        return bool(flag)


def raise_first(errors: Sequence[Exception]) -> None:
    """Raise the first of some errors, if there is one."""
    for error in errors:
        raise error


def _description(error: Exception) -> tuple[type[Exception], str]:
    """The kind of error that the other processes raise, and its text."""
    if isinstance(error, RaisedAlike):
        return type(error), ""
    kind = ValueError if isinstance(error, ValueError | TypeError) else RuntimeError
    return kind, f"{type(error).__name__}: {error}"


_current: ContextVar[ProcessGroup] = ContextVar("process group", default=ONE_PROCESS)


@contextmanager
def shared_by(group: ProcessGroup) -> Iterator[None]:
    """Share fits among the processes of a group."""
    token = _current.set(group)
    try:
        yield
    finally:
        _current.reset(token)


def current_group() -> ProcessGroup:
    """The processes that share fits."""
    found = _current.get()
    forked = isinstance(found, DistributedGroup) and found.pid != os.getpid()
    return ONE_PROCESS if forked else found
