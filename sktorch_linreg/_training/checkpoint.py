"""Resumable training: the state of a run, saved to a file every few epochs."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from .._data.rows import TrainingData
from .._errors import CheckpointMismatchError
from .._optim.state import load_schedule_state, schedule_state, to_arrays
from .._runtime import files
from .._runtime.aliases import Array
from .._runtime.identity import describe, identify
from .._runtime.python_numbers import as_python
from .flat_parameters import FlatParameters, Snapshot
from .history import pack_history, unpack_history

KIND = "checkpoint"
REMEDY = "Nothing was overwritten. Pass another checkpoint_dir, or delete that file to start over."
FILE = "checkpoint.safetensors"
# entries hashed at a time
HASHED_ENTRIES = 2**20
# parameters that do not affect the trained model; the seed is compared separately
OF_NO_EFFECT = {
    "callbacks", "checkpoint_dir", "checkpoint_every", "copy_X", "n_jobs", "random_state",
    "verbose", "warm_start",
}  # fmt: skip
# saved attributes of a run, under the names that checkpoint files have always used
CURVES = ("loss_curve", "validation_curve")
OF_MONITOR = ("reference", "no_improvement", "stopped")
OF_LBFGS = ("minimised", "settled", "lowest", "latest")


def _fingerprint(data: TrainingData, start: Sequence[Array]) -> str:
    """SHA-256 of the rows, whatever their memory layout, and of the initial parameters."""
    total = hashlib.sha256()

    def add(a: Any) -> None:
        total.update(f"{a.dtype.str}{a.shape}".encode())
        step = max(1, HASHED_ENTRIES // max(1, a[:1].size))
        for i in range(0, len(a), step):
            total.update(np.ascontiguousarray(a[i : i + step]).data)

    for rows in (data, data.held_out):
        if rows is None:
            continue
        X = rows.X
        parts: tuple[Any, ...] = (X,)
        if sp.issparse(X):
            parts = X.data, X.indices.astype(np.int64), X.indptr.astype(np.int64)
        for a in (*parts, rows.y, *(() if rows.weight is None else (rows.weight,))):
            add(a)
    for extra in start:
        # buffers may be single numbers
        add(np.atleast_1d(extra))
    return total.hexdigest()


def _known_again(name: str, value: Any) -> list[str]:
    """Description of a parameter value, and a digest that identifies it across processes."""
    value = as_python(value)
    # 1 and 1.0 are the same value
    plain = float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(value, torch.device | torch.dtype):
        plain = str(value).removeprefix("torch.")
    found = identify(plain, name, "no later fit can resume from this checkpoint")
    return [describe(value), found.digest]


def _whole(training: Mapping[str, Any], max_epochs: int) -> Mapping[str, Any]:
    """Return the state of a run; raise if it is invalid."""
    curves = [training["monitor"][name] for name in CURVES]
    rows = unpack_history(training["history"])
    if not all(type(loss) is float for curve in curves for loss in curve):
        raise ValueError("its losses are not numeric")
    if not len(rows) == len(curves[0]) <= max_epochs or len(training["generators"]) < 2:
        raise ValueError("its history and its losses do not match")
    return training


class Checkpoint:
    """The checkpoint of one fit, in a folder.

    Parameters
    ----------
    folder : path-like
        Created if it does not exist.
    every : int
        Number of epochs between checkpoints.
    params : Mapping
        The estimator's parameters.
    data : TrainingData
        The rows.
    start : sequence of ndarray
        The parameters of a warm start; empty without one.
    seed : int
        The seed of a new run; a resumed run reads its seed from the file.

    Raises
    ------
    CheckpointMismatchError
        If the folder holds a checkpoint of different parameters or data.
    ValueError
        If it holds a damaged checkpoint.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        every: int,
        params: Mapping[str, Any],
        data: TrainingData,
        start: Sequence[Array],
        seed: int,
    ) -> None:
        files.require_safetensors()
        self.path, self.every = Path(folder) / FILE, every
        about = {k: _known_again(k, v) for k, v in params.items() if k not in OF_NO_EFFECT}
        if isinstance(params["random_state"], np.random.RandomState):
            about["random_state"] = [f"a RandomState that drew seed {seed}", str(seed)]
        elif params["random_state"] is not None:
            about["random_state"] = _known_again("random_state", params["random_state"])
        self.about: dict[str, Any] = {"params": about, "data": _fingerprint(data, start)}
        self.seed = seed
        self.state: Mapping[str, Any] | None = None
        if self.path.exists():
            content = files.read(self.path, KIND, REMEDY)
            with self._named():
                about, self.seed = content["about"], int(content["seed"])
                self._check(about)
                self.state = _whole(content["training"], int(params["max_epochs"]))
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def _check(self, found: Mapping[str, Any]) -> None:
        theirs, mine = found["params"], self.about["params"]
        not_set = ["not set", ""]
        pairs = {k: (theirs.get(k, not_set), mine.get(k, not_set)) for k in {*theirs, *mine}}
        # different objects can have the same description
        differ = {k: (a[0], b[0]) for k, (a, b) in sorted(pairs.items()) if a[1] != b[1]}
        if differ:
            what = "; ".join(
                f"{k} was {a}, now {b if a != b else 'a different object of the same name'}"
                for k, (a, b) in differ.items()
            )
        elif found["data"] != self.about["data"]:
            what = "the rows, weights or starting coefficients differ"
        else:
            return
        raise CheckpointMismatchError(
            f"{str(self.path)!r} is a checkpoint of a different fit: {what}. {REMEDY}"
        )

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Re-raise errors caused by a damaged file as a ValueError that names it."""
        try:
            yield
        except CheckpointMismatchError:
            raise
        except (*files.DAMAGE, RuntimeError) as error:
            raise ValueError(
                f"{str(self.path)!r} is incomplete or damaged ({error!r}). {REMEDY}"
            ) from error

    # -- state of a run -------------------------------------------------------------------------

    def save(self, loop: Any) -> None:
        """Save the state of a loop at the end of an epoch."""
        run, monitor, objective = loop.state, loop.monitor, loop.objective
        best: Snapshot | None = monitor.best_weights
        training = {
            "values": to_arrays(objective.flat.values),
            "updates": loop.stepper.updates.state(),
            "schedule": schedule_state(loop.stepper.schedule),
            "generators": [g and to_arrays(g.get_state()) for g in run.generators],
            "monitor": _kept(loop),
            "buffers": to_arrays(objective.flat.buffers()),
            "best_values": to_arrays(best and best.values),
            "best_buffers": to_arrays(best and best.buffers),
            "ended": not monitor.active,
            "minimised": run.minimised,
            "n_without_gain": 0 if run.convergence is None else run.convergence.n_without_gain,
            "width": objective.width,
            "path": to_arrays(run.path),
            "history": pack_history(to_arrays(loop.plain_history())),
        }
        content = {"about": self.about, "seed": self.seed, "training": training}
        files.write(self.path, KIND, content)

    def resume(self, loop: Any) -> None:
        """Restore a loop that is about to start from the checkpoint, if there is one."""
        if self.state is not None:
            with self._named():
                self._resume(loop, self.state)

    def _resume(self, loop: Any, state: Mapping[str, Any]) -> None:
        run, objective, monitor = loop.state, loop.objective, loop.monitor
        flat: FlatParameters = objective.flat
        flat.restore(_snapshot(flat, state["values"], state.get("buffers")))
        flat.set_frozen_(torch.from_numpy(state["values"]))
        loop.stepper.load(state["updates"])
        load_schedule_state(loop.stepper.schedule, state["schedule"])
        # files of earlier versions hold two, which may be None
        for generator, its in zip(run.generators, state["generators"], strict=False):
            if generator is not None and its is not None:
                generator.set_state(torch.from_numpy(its.copy()))
        _load(loop, state["monitor"])
        if state["best_values"] is not None:
            best = state["best_values"], state.get("best_buffers")
            monitor.best_weights = _snapshot(flat, *best)
        run.minimised = state["minimised"]
        if run.convergence is not None:
            run.convergence.n_without_gain = state.get("n_without_gain", 0)
        if state["width"] is not None:
            objective.smooth_at(state["width"])
        if run.path is not None:
            run.path[:] = [torch.from_numpy(values.copy()) for values in state["path"]]
        # batch records are not saved
        loop.listener.history.extend(
            {**row, "batches": []} for row in unpack_history(state["history"])
        )
        loop.n_epochs, monitor.active = len(run.loss_curve), not state["ended"]


def _snapshot(flat: FlatParameters, values: Array, buffers: Mapping[str, Array] | None) -> Snapshot:
    """Arrays from a file on the device of the parameters."""
    vector = flat.fitted(torch.from_numpy(values).to(flat.values))
    found = {k: torch.from_numpy(v.copy()).to(vector.device) for k, v in (buffers or {}).items()}
    return Snapshot(vector, found)


def _kept(loop: Any) -> dict[str, Any]:
    """Losses, and the state of the stopping and convergence checks."""
    run, monitor, convergence = loop.state, loop.monitor, loop.state.convergence
    validated = monitor.best if monitor.validates else math.inf
    out = {name: getattr(run, name) for name in CURVES}
    out |= {"best_train": run.best_train, "best_validation": validated}
    out |= {name: getattr(monitor, name) for name in OF_MONITOR}
    if convergence is not None:
        out |= {name: getattr(convergence, name) for name in OF_LBFGS}
    return out


def _load(loop: Any, kept: Mapping[str, Any]) -> None:
    """Restore what `_kept` returned; files of earlier versions may have fewer or more names."""
    run, monitor = loop.state, loop.monitor
    parts: list[tuple[Any, tuple[str, ...]]] = [(run, CURVES), (monitor, OF_MONITOR)]
    if run.convergence is not None:
        parts.append((run.convergence, OF_LBFGS))
    for part, names in parts:
        for name in names:
            setattr(part, name, kept.get(name, getattr(part, name)))
    run.best_train = kept["best_train"]
    monitor.best = kept["best_validation"] if monitor.validates else run.best_train
