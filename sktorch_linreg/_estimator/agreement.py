"""What the processes of a shared fit have to agree on before it begins."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from .._data.rows import TrainingData
from .._runtime.aliases import Layers
from .._runtime.identity import Identity, IncomparableError, describe, fingerprint
from .._runtime.processes import ProcessGroup
from .._runtime.python_numbers import as_python
from .._spec import FitResult, FitSpec, RunContext
from .make_spec import with_batch_size

# what may differ without a difference to the fit
FREE = {"copy_X", "device", "n_jobs", "verbose"}


@dataclass(frozen=True)
class Local:
    """Validated rows, the dimensions of y, and the spec, as one process has them."""

    data: TrainingData
    n_dim: int
    spec: FitSpec


def _comparable(name: str, value: Any) -> Any:
    """A parameter as something that is equal on all processes where it was given alike."""
    value = as_python(value)
    if name == "callbacks":
        # each process may have some of its own, of the same kinds
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
    estimator: Any, local: Local, start: Layers | None, incremental: bool, *, listens: bool
) -> dict[str, Any]:
    """What has to be the same on all processes."""
    spec, data, digest = local.spec, local.data, None
    names = vars(estimator).get("feature_names_in_")
    if start is not None:
        parts = (np.ascontiguousarray(a).tobytes() for pair in start for a in pair if a is not None)
        digest = hashlib.sha256(b"".join(parts)).hexdigest()[:12]
    return {
        "the kind of estimator": type(estimator).__qualname__,
        "the method called": "partial_fit" if incremental else "fit",
        "the number of columns of X": data.n_features,
        "the names of the columns of X": None if names is None else tuple(map(str, names)),
        "the number of targets": data.n_targets,
        "the number of dimensions of y": local.n_dim,
        "the dtype of X": str(data.X.dtype),
        "the dtype of the computation": str(spec.dtype),
        "whether X is sparse": bool(sp.issparse(data.X)),
        "whether there are callbacks of scikit-learn": listens,
        "the checksum of the model being resumed": digest,
        **{k: _comparable(k, v) for k, v in estimator.get_params().items() if k not in FREE},
    }


def agree(
    context: RunContext,
    estimator: Any,
    prepare: Callable[[], Local],
    start: Callable[[], Layers | None],
    *,
    listens: bool,
) -> Local:
    """Validate on each process, and see that all are about to fit the same model.

    Returns what this process has, with the seed of the first, and with batches of the rows of all.
    """
    group = context.group
    if group.size == 1:
        return prepare()
    layers = start()
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
        return {
            "facts": _facts(estimator, local, layers, context.incremental, listens=listens),
            "seed": local.spec.training.seed,
            "n_samples": local.data.n_samples,
            "weighted": local.data.weight is not None,
        }

    found = group.gather(work)
    _compare([part["facts"] for part in found])
    local = kept[0]
    data = local.data
    if data.weight is None and any(part["weighted"] for part in found):
        data = replace(data, weight=data.weights)
    spec = local.spec.with_training(seed=found[0]["seed"])
    n_samples = sum(part["n_samples"] for part in found)
    return Local(data, local.n_dim, with_batch_size(spec, estimator.batch_size, n_samples))


def _compare(facts: list[dict[str, Any]]) -> None:
    """Raise ValueError, on all processes alike, for the first fact that differs."""
    first = facts[0]
    for rank, other in enumerate(facts[1:], start=1):
        for name in {**first, **other}:
            mine, theirs = first.get(name), other.get(name)
            # NaN is not equal to itself
            if mine != theirs and not (mine != mine and theirs != theirs):
                raise ValueError(
                    f"The processes of data_parallel() are fitting different models: {name} is "
                    f"{mine!r} on process 0 and {theirs!r} on process {rank}. Give all of them an "
                    "estimator with the same parameters, and rows with the same columns."
                )


def result_of_first(group: ProcessGroup, result: FitResult) -> FitResult:
    """The result with what the first process has found, whose rounding may differ from others'.

    The net, the state of the optimizer, the statistics and what callbacks have noted stay those of
    each process.
    """
    if group.size == 1:
        return result
    own = ("net", "state", "statistics", "history", "warnings")
    found = {f.name: getattr(result, f.name) for f in fields(result) if f.name not in own}
    return replace(result, **group.broadcast(found))
