"""One model trained by several processes, on one machine or many."""

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
    """Which of the processes this one is.

    Attributes
    ----------
    rank : int
        Number of this process, from 0.
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
    """Join the other processes that torchrun has started."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend)
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _own_gpu() -> Any:
    """The GPU that torchrun numbers this process with, as the current one."""
    number = os.environ.get("LOCAL_RANK")
    if number is None or not torch.cuda.is_available():
        return nullcontext()
    return torch.cuda.device(int(number) % torch.cuda.device_count())


@contextmanager
def data_parallel(group: Any = None) -> Iterator[ProcessInfo]:
    """Distribute every `fit` and `partial_fit` in the block over the processes, each with its rows.

    Start a script on several processes with ``torchrun --nproc-per-node 2 script.py``. Each process
    passes rows of its own, and all of them end with one and the same model. Started by ``python``
    the same script is one process.

    Exact solvers add up the sufficient statistics of the processes. Optimizers add up gradients,
    update by update: `batch_size` counts the rows of an update in all processes, each of which
    takes its share of them from its own rows, in an order of its own. Full-batch training of a
    linear model with squared error adds up statistics as well, and needs no exchange after that.
    Where the order of rows plays no part, results equal those of one process to rounding, which
    L-BFGS on a network lets grow from epoch to epoch.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, default=None
        The processes that take part; None is all of them. Where `torch.distributed` has not been
        initialised, it is, with gloo for the CPU and nccl for GPUs.

    Yields
    ------
    ProcessInfo
        Number of this process, and of all, by which to choose its rows.

    Raises
    ------
    ValueError
        If the group cannot exchange tensors on the CPU. Within `fit`: if the processes have
        different parameters, columns or data types, or one of them has wrong rows, on all of them.

    See Also
    --------
    sktorch_linreg.TorchLinearRegressor.partial_fit : Batch by batch, in one process.

    Notes
    -----
    All processes have to make the same calls in the same order. `predict` and `score` work on
    local rows, without the other processes. Other steps of a `Pipeline` are fitted to local rows
    alone, and so are fits that `n_jobs` sends to other processes; scaling needs no step, since
    `standardize` counts the rows of all. Searches are refused, since their scores would differ.
    `early_stopping` holds rows out in each process and looks at their common loss. Callbacks run
    in each process; where one of them stops training, all stop at the end of that epoch. Those that
    change what is trained have to decide by what is common to all, such as ``train_loss``.
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
            f"The group works with {backends} alone, and fits exchange numbers on the CPU as well. "
            "Make it with backend='cpu:gloo,cuda:nccl', or leave its making to data_parallel."
        )
    try:
        with _own_gpu(), shared_by(processes if processes.size > 1 else ONE_PROCESS):
            yield ProcessInfo(processes.rank, processes.size)
    finally:
        processes.leave()
