"""What the processes of a distributed fit must agree on before it begins."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from .._data.rows import TrainingData
from .._runtime.aliases import Array
from .._runtime.identity import Identity, IncomparableError, describe, fingerprint
from .._runtime.processes import ProcessGroup
from .._runtime.python_numbers import as_python
from .._spec import FitResult, FitSpec, RunContext
from .make_spec import with_batch_size

# parameters that may differ without affecting the fit
FREE = {"copy_X", "device", "n_jobs", "verbose"}


@dataclass(frozen=True)
class Local:
    """Validated rows, the number of dimensions of y, and the spec of one process."""

    data: TrainingData
    n_dim: int
    spec: FitSpec


def _comparable(name: str, value: Any) -> Any:
    """A parameter as a value that is equal on all processes if they were given the same."""
    value = as_python(value)
    if name == "callbacks":
        # each process may have its own callbacks, of the same types
        return value and tuple(_kind(callback) for callback in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    try:
        return Identity(fingerprint(value), describe(value))
    except IncomparableError:
        return _kind(value)


def _kind(value: Any) -> str:
    if isinstance(value, tuple) and len(value) == 2:
        # a callback with its name
        return f"{value[0]}: {_kind(value[1])}"
    return value.__qualname__ if isinstance(value, type) else type(value).__qualname__


def _facts(
    estimator: Any, local: Local, start: list[Array], incremental: bool, *, listens: bool
) -> dict[str, Any]:
    """What must be the same on all processes."""
    spec, data, digest = local.spec, local.data, None
    names = vars(estimator).get("feature_names_in_")
    if start:
        parts = (np.ascontiguousarray(a).tobytes() for a in start)
        digest = hashlib.sha256(b"".join(parts)).hexdigest()[:12]
    return {
        "the kind of estimator": type(estimator).__qualname__,
        "the method called": "partial_fit" if incremental else "fit",
        "the number of columns of X": data.n_features,
        "the shape of a row of X": data.row_shape,
        "the names of the columns of X": None if names is None else tuple(map(str, names)),
        "the number of targets": data.n_targets,
        "the number of dimensions of y": local.n_dim,
        "the dtype of X": str(data.X.dtype),
        "the dtype of the computation": str(spec.dtype),
        "whether X is sparse": bool(sp.issparse(data.X)),
        "whether there is a validation set": data.held_out is not None,
        "whether scikit-learn callbacks are set": listens,
        "the checksum of the model being resumed": digest,
        **{k: _comparable(k, v) for k, v in estimator.get_params().items() if k not in FREE},
    }


def _with_weights(rows: TrainingData) -> TrainingData:
    """The rows with weights of one if none were given, which they need if another process has."""
    return replace(rows, weight=rows.weights)


def agree(
    context: RunContext,
    estimator: Any,
    prepare: Callable[[], Local],
    start: Callable[[], list[Array]],
    *,
    listens: bool,
) -> Local:
    """Validate on each process, and check that all are about to fit the same model.

    Returns this process's data and spec, with the seed of the first process and the batch size for
    the rows of all.
    """
    group = context.group
    if group.size == 1:
        return prepare()
    arrays = start()
    kept: list[Local] = []

    def work() -> dict[str, Any]:
        if estimator.checkpoint_dir is not None:
            raise ValueError(
                "checkpoint_dir cannot be combined with data_parallel(). Set "
                "checkpoint_dir=None, and save the model of the first process between calls of fit "
                "with warm_start=True."
            )
        local = prepare()
        kept.append(local)
        held_out = local.data.held_out
        return {
            "facts": _facts(estimator, local, arrays, context.incremental, listens=listens),
            "seed": local.spec.training.seed,
            "n_samples": local.data.n_samples,
            "weighted": local.data.weight is not None,
            "held out weighted": held_out is not None and held_out.weight is not None,
        }

    found = group.gather(work)
    _compare([part["facts"] for part in found])
    local = kept[0]
    data = local.data
    if any(part["weighted"] for part in found):
        data = _with_weights(data)
    if data.held_out is not None and any(part["held out weighted"] for part in found):
        data = replace(data, held_out=_with_weights(data.held_out))
    spec = local.spec.with_training(seed=found[0]["seed"])
    n_samples = sum(part["n_samples"] for part in found)
    return Local(data, local.n_dim, with_batch_size(spec, estimator.batch_size, n_samples))


def _compare(facts: list[dict[str, Any]]) -> None:
    """Raise the same ValueError on all processes, for the first fact that differs."""
    first = facts[0]
    for rank, other in enumerate(facts[1:], start=1):
        for name in {**first, **other}:
            mine, theirs = first.get(name), other.get(name)
            # NaN is not equal to itself
            if mine != theirs and not (mine != mine and theirs != theirs):
                raise ValueError(
                    f"The processes of data_parallel() are fitting different models: {name} is "
                    f"{mine!r} on process 0 and {theirs!r} on process {rank}. Pass all of them an "
                    "estimator with the same parameters, and rows with the same columns."
                )


def result_of_first(group: ProcessGroup, result: FitResult) -> FitResult:
    """The result with the first process's values, since rounding may differ between processes.

    The net, the optimizer state, the statistics, the history and the warnings remain those of each
    process.
    """
    if group.size == 1:
        return result
    own = ("net", "state", "statistics", "history", "warnings")
    found = {f.name: getattr(result, f.name) for f in fields(result) if f.name not in own}
    return replace(result, **group.broadcast(found))
