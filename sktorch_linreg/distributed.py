"""Train one model in several processes, on one machine or many."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ._runtime.processes import ONE_PROCESS, DistributedGroup, shared_by

__all__ = ["ProcessInfo", "data_parallel"]


@dataclass(frozen=True)
class ProcessInfo:
    """Rank of this process, and the number of processes.

    Attributes
    ----------
    rank : int
        Rank of this process, from 0.
    size : int
        Number of processes.

    Examples
    --------
    >>> from sktorch_linreg.distributed import data_parallel
    >>> with data_parallel() as processes:  # started without torchrun
    ...     processes.rank, processes.size
    (0, 1)
    """

    rank: int
    size: int


def _join() -> None:
    """Join the other processes started by torchrun."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend)
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _own_gpu() -> Any:
    """A context in which the current GPU is the one that torchrun assigned to this process."""
    number = os.environ.get("LOCAL_RANK")
    if number is None or not torch.cuda.is_available():
        return nullcontext()
    return torch.cuda.device(int(number) % torch.cuda.device_count())


@contextmanager
def data_parallel(group: Any = None) -> Iterator[ProcessInfo]:
    """Distribute every `fit` and `partial_fit` in the block over processes with their own rows.

    Start a script in several processes with ``torchrun --nproc-per-node 2 script.py``. Each process
    passes its own rows, and all of them end up with the same model. Started with ``python``, the
    same script runs as one process.

    Exact solvers sum the sufficient statistics of the processes. Optimizers sum gradients in each
    update: `batch_size` is the number of rows per update over all processes, each of which takes
    its share from its own rows, in its own order. Full-batch training of a linear model with
    squared error also sums statistics, once, and then needs no further communication. If the order
    of rows does not matter, results equal those of one process up to rounding errors, which L-BFGS
    on a network amplifies from epoch to epoch.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, default=None
        The participating processes; None is all of them. If `torch.distributed` has not been
        initialised, this initialises it, with gloo for the CPU and nccl for GPUs.

    Yields
    ------
    ProcessInfo
        Rank of this process and number of processes, for choosing its rows.

    Raises
    ------
    RuntimeError
        If this build of PyTorch has no `torch.distributed`.
    ValueError
        If this process is not in the group, or the group cannot exchange tensors on the CPU. Within
        `fit`, on all processes: if their parameters, columns or data types differ, or one has
        invalid rows.

    See Also
    --------
    sktorch_linreg.TorchLinearRegressor.partial_fit : Batch by batch, in one process.

    Notes
    -----
    All processes must make the same calls in the same order. `predict` and `score` use local rows
    only, without communication. Other steps of a `Pipeline` are fitted to local rows only, as are
    fits that `n_jobs` sends to other processes; no scaling step is needed, since `standardize` uses
    the rows of all processes. Searches raise an error, since their scores would differ.
    `early_stopping` holds out rows in each process and monitors their joint loss. Callbacks run in
    each process; if one of them stops training at the end of an epoch, all processes stop.
    Callbacks that change training must depend only on values that all processes share, such as
    ``train_loss``.
    With ``device="cuda"`` each process uses the GPU of its ``LOCAL_RANK``.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sktorch_linreg import TorchLinearRegressor
    >>> from sktorch_linreg.distributed import data_parallel
    >>> X, y = load_diabetes(return_X_y=True)
    >>> with data_parallel() as processes:
    ...     mine = slice(processes.rank, None, processes.size)
    ...     model = TorchLinearRegressor().fit(X[mine], y[mine])
    >>> round(model.score(X, y), 3)
    0.518
    """
    if not dist.is_available():
        raise RuntimeError(
            "This build of PyTorch has no torch.distributed. Install a build that includes it, or "
            "fit in one process."
        )
    if not dist.is_initialized() and group is None:
        if "RANK" not in os.environ:
            yield ProcessInfo(0, 1)
            return
        _join()
    processes = DistributedGroup(group)
    if processes.rank < 0:
        raise ValueError(
            "This process is not in the group. Call data_parallel only on its members."
        )
    backends = dist.get_backend_config(group)
    if "cpu:" not in backends:
        raise ValueError(
            f"The group only supports {backends}, but fits also exchange tensors on the CPU. "
            "Create it with backend='cpu:gloo,cuda:nccl', or let data_parallel create it."
        )
    try:
        with _own_gpu(), shared_by(processes if processes.size > 1 else ONE_PROCESS):
            yield ProcessInfo(processes.rank, processes.size)
    finally:
        processes.leave()
