"""From the user's X, y, sample_weight to validated rows, statistics, dtype, device and seed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from sklearn import get_config
from sklearn.base import BaseEstimator
from sklearn.utils import assert_all_finite, check_random_state
from sklearn.utils.validation import validate_data

from ._compat import check_sample_weight
from ._dates import refuse_dates
from ._processes import current_processes
from ._types import (
    Array,
    FitSpec,
    FloatArray,
    Layers,
    Moments,
    Scaling,
    TrainingData,
    reciprocal,
)

# rows of float64 work space at a time, in bytes
CHUNK_BYTES = 8 * 2**20
# beyond this many entries sorting the rows would cost more than it is worth
DISTINCT_ENTRIES = 2_000_000
# up to this many rows, whole weights counted, held-out rows do not depend on repetition
COUNTED_ROWS = 1000
FEW_UNITS = 50
# largest weights whose sums neither overflow nor vanish
LEAST_WEIGHT, MOST_WEIGHT = 1e-100, 1e100
SPARSE_FORMATS = ["csr", "csc", "coo"]


def to_host(a: Any) -> Any:
    """A tensor, on any device, as an array; anything else as it is."""
    if not isinstance(a, torch.Tensor):
        return a
    if a.device.type == "meta":
        raise ValueError("A tensor on the device 'meta' has no values. Pass one that has.")
    try:
        a = a.detach().cpu()
        a = a.dequantize() if a.is_quantized else a.resolve_conj().resolve_neg()
        return (a.float() if a.dtype == torch.bfloat16 else a).numpy()
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"A tensor of layout {a.layout} and dtype {a.dtype} cannot be read as an array: "
            f"{error}. Pass a dense tensor of numbers, or a NumPy array."
        ) from error


def like_input(out: Array, X: Any) -> Any:
    """Results as a tensor beside `X`, where scikit-learn is set to work on what it is given."""
    if isinstance(X, torch.Tensor) and get_config()["array_api_dispatch"]:
        return torch.from_numpy(out).to(X.device)
    return out


def as_float(estimator: BaseEstimator, X: Any) -> Any:
    """Validated numbers as float32, where they are that, or float64; sparse ones as CSR.

    Validation keeps the dtype (a list of dtypes would cast every polars frame to its first).
    """
    if sp.issparse(X):
        X = X.tocsr()
        if not X.has_canonical_format:
            X = X.copy()
            X.sum_duplicates()
    if X.dtype in (np.float32, np.float64):
        return X
    out = X.astype(np.float64)
    if X.dtype.kind not in "fiub":
        # what is None in an array of objects is no number before
        verify_finite(estimator, X=out)
    return out


def verify_finite(estimator: BaseEstimator, **arrays: Array) -> None:
    """Raise scikit-learn's error for the first of the named arrays that is not finite."""
    # sums of large numbers that overflow are looked into there
    with np.errstate(over="ignore", invalid="ignore"):
        for name, a in arrays.items():
            assert_all_finite(a, input_name=name, estimator_name=type(estimator).__name__)


@contextmanager
def patient_validation(**given: Any) -> Iterator[None]:
    """Round scikit-learn's checks: sums may overflow, and of strings it says what to do.

    Of what is `given`, by name, dates and durations are refused, which NumPy would take as numbers
    of whatever unit they have.
    """
    for name, rows in given.items():
        refuse_dates(rows, name)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            yield
    except (TypeError, ValueError) as error:
        if "could not convert string" not in str(error):
            raise
        raise ValueError(
            f"{error}. Columns of strings have to be made numbers first, for example by "
            "sklearn.preprocessing.OneHotEncoder in a ColumnTransformer."
        ) from error


def is_plain(a: Any, dimensions: tuple[int, ...]) -> bool:
    """Whether an array is what scikit-learn's checks would return unchanged, if it is finite."""
    return (
        type(a) in (np.ndarray, np.memmap)
        and a.ndim in dimensions
        and a.size > 0
        and a.dtype in (np.float32, np.float64)
    )


def adopt_names(estimator: BaseEstimator, X: Array, reset: bool) -> None:
    """What `validate_data` does about feature names and counts, quickly for plain arrays."""
    state = vars(estimator)
    if reset:
        state.pop("feature_names_in_", None)
        estimator.n_features_in_ = X.shape[1]
    elif "feature_names_in_" in state or state.get("n_features_in_") != X.shape[1]:
        validate_data(estimator, X, reset=False, skip_check_array=True)


def validate_rows(
    estimator: BaseEstimator, X: Any, y: Any, sample_weight: Any, *, reset: bool
) -> tuple[TrainingData, int]:
    """Check a training set with scikit-learn's own errors; return it with the dimensions of y.

    Whether plain float arrays are finite is not checked, since that takes a pass over them: who
    uses the rows has to look at their sums, or to call `verify`.
    """
    X, y, sample_weight = to_host(X), to_host(y), to_host(sample_weight)
    verify: Callable[[], object] | None = None
    if is_plain(X, (2,)) and is_plain(y, (1, 2)) and len(X) == len(y):
        adopt_names(estimator, X, reset)
        X, y = np.asarray(X), np.asarray(y)
        verify = partial(verify_finite, estimator, X=X, y=y)
    else:
        with patient_validation(X=X, y=y):
            X, y = validate_data(
                estimator,
                X,
                y,
                reset=reset,
                accept_sparse=SPARSE_FORMATS,
                multi_output=True,
                y_numeric=True,
            )
            X = as_float(estimator, X)
        if sp.issparse(y):
            raise TypeError("y is sparse, but dense targets are required. Pass y.toarray().")
        y = np.asarray(y)
        if y.dtype.kind not in "fiub":
            y = y.astype(np.float64)
        verify_finite(estimator, y=y)
    if y.dtype != X.dtype:
        # float32 is kept only where it loses nothing of what was given
        y = y.astype(np.float64)
    n_dim = y.ndim
    y = y.reshape(len(y), -1)
    if sample_weight is None:
        return TrainingData(X, y, None, verify), n_dim
    weight, least = sample_weight, -1.0
    if is_plain(weight, (1,)) and len(weight) == X.shape[0] and np.isfinite(weight).all():
        weight = np.asarray(weight, dtype=np.float64)
        least = weight.min()
    if least <= 0:
        weight = check_sample_weight(weight, X, dtype=np.float64, ensure_non_negative=True)
        least = weight.min()
    if not LEAST_WEIGHT <= weight.max() <= MOST_WEIGHT and weight.max() > 0:
        if current_processes() is not None:
            raise ValueError(
                f"The largest sample_weight is {weight.max():.3g}; within data_parallel() weights "
                f"have to lie between {LEAST_WEIGHT:g} and {MOST_WEIGHT:g}. Only their ratios "
                "matter: multiply those of all processes by a power of ten."
            )
        # only their ratios matter, and powers of two round nothing
        weight = np.ldexp(weight, -int(np.frexp(weight.max())[1]))
        least = weight.min()
    if least == 0:
        if verify is not None:
            verify()
        keep = weight > 0
        X, y, weight, verify = X[keep], y[keep], weight[keep], None
    elif least == 1 and weight.max() == 1:
        weight = None
    return TrainingData(X, y, weight, verify), n_dim


def chunks(n_rows: int, n_columns: int, budget: int = CHUNK_BYTES) -> Iterator[slice]:
    """Slices of rows whose float64 copy stays within the byte budget."""
    step = max(1, budget // (8 * max(1, n_columns)))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def column_scale(m: Moments, centred: bool) -> FloatArray:
    """Standard deviation of each column (its root mean square if not centred), 0 if constant."""
    deviation: FloatArray = np.sqrt(m.deviation / m.weight)
    if not centred:
        return np.hypot(deviation, m.mean)
    deviation[deviation <= 4 * np.finfo(np.float64).eps * np.abs(m.mean)] = 0.0
    return deviation


def identity_scaling(n_features: int, n_targets: int) -> Scaling:
    """Units left as they are."""
    return Scaling(
        np.zeros(n_features), np.ones(n_features), np.zeros(n_targets), np.ones(n_targets)
    )


def make_scaling(x: Moments, y: Moments, spec: FitSpec) -> Scaling:
    """Scaling from the moments of features and targets.

    Without an intercept nothing may be shifted, so columns are divided by their root mean square.
    """
    scaling, centred = identity_scaling(len(x.mean), len(y.mean)), spec.fit_intercept
    if not spec.standardize:
        return scaling
    x_offset = x.mean if centred else scaling.x_offset
    x_scale = column_scale(x, centred)
    if spec.loss.log_link and centred:
        mean = np.where(y.mean > 0, y.mean, 1.0)
        return Scaling(x_offset, x_scale, np.log(mean), scaling.y_scale)
    if not spec.loss.scales_target:
        return Scaling(x_offset, x_scale, scaling.y_offset, scaling.y_scale)
    y_scale = column_scale(y, centred)
    if spec.optimizer_class is None:
        # exact solvers divide by it, and find coefficients of 0 by themselves
        y_scale[y_scale == 0] = 1.0
    return Scaling(x_offset, x_scale, y.mean if centred else scaling.y_offset, y_scale)


def to_user_units(layers: Layers, scaling: Scaling) -> Layers:
    """Fold the scaling into the first and the last layer; float64 throughout."""
    out = [(w.astype(np.float64), None if b is None else b.astype(np.float64)) for w, b in layers]
    weight, bias = out[0]
    weight = weight * scaling.x_factor
    out[0] = weight, None if bias is None else bias - weight @ scaling.x_offset
    weight, bias = out[-1]
    weight = weight * scaling.y_scale[:, None]
    out[-1] = weight, None if bias is None else bias * scaling.y_scale + scaling.y_offset
    return out


def from_user_units(layers: Layers, scaling: Scaling) -> Layers:
    """Inverse of `to_user_units`, for a constant column up to its lost coefficient."""
    out = [(w.astype(np.float64), None if b is None else b.astype(np.float64)) for w, b in layers]
    weight, bias = out[-1]
    y_factor = reciprocal(scaling.y_scale)
    weight = weight * y_factor[:, None]
    out[-1] = weight, None if bias is None else (bias - scaling.y_offset) * y_factor
    weight, bias = out[0]
    shift = weight @ scaling.x_offset
    out[0] = weight * scaling.x_scale, None if bias is None else bias + shift
    return out


def _group_rows(X: Any, y: Array) -> tuple[Array, Array]:
    """Index of the first row of each group of equal rows, and the group of each row."""
    if not sp.issparse(X):
        # ordered by value, which neither scaling nor shifting a column changes
        order = np.argsort(X[:, 0], kind="stable")
        first_column = X[order, 0]
        if (first_column[1:] != first_column[:-1]).all():
            # most often that column tells all rows apart, and the others need not be looked at
            group = np.empty(len(order), dtype=np.intp)
            group[order] = np.arange(len(order))
            return order, group
        rows = np.hstack([X, y])
        _, first, group = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        return first, group.ravel()
    X = X.copy()
    X.eliminate_zeros()
    keys = [
        X.indices[i:j].tobytes() + X.data[i:j].tobytes() + target.tobytes()
        for i, j, target in zip(X.indptr[:-1], X.indptr[1:], y, strict=True)
    ]
    as_objects = np.empty(len(keys), dtype=object)
    as_objects[:] = keys
    _, first, group = np.unique(as_objects, return_index=True, return_inverse=True)
    return first, group.ravel()


def distinct_rows(data: TrainingData) -> TrainingData:
    """Merge equal rows into one that carries their weight.

    They come in an order that is theirs alone, so that rows in any order, and repeated rows as
    well as integer weights, give the same bits. A full-batch objective does not change by this.
    """
    first, group = _group_rows(data.X, data.y)
    weight: FloatArray = np.bincount(group, data.weights).astype(np.float64)
    kept = None if (weight == 1).all() else weight
    return TrainingData(data.X[first], data.y[first], kept)


def split_rows(
    data: TrainingData, fraction: float, seed: int, *, counted: bool
) -> tuple[TrainingData, TrainingData]:
    """Training and validation rows for early stopping; raises ValueError where one is empty.

    With `counted`, a small set of rows is split in a way that depends on neither their order nor
    on whether they are repeated or carry whole weights; see `_held_out_shares`.
    """
    share = _held_out_shares(data, fraction, seed) if counted else None
    if share is None:
        n_valid = int(np.ceil(fraction * data.n_samples))
        order = torch.randperm(data.n_samples, generator=make_generator(seed, stream=1)).numpy()
        share = np.zeros(data.n_samples)
        share[order[:n_valid]] = 1.0
    if not (share < 1).any():
        raise ValueError(
            f"early_stopping=True with validation_fraction={fraction} leaves no row to train on: "
            f"there are n_samples={data.n_samples} rows with non-zero weight. Give more rows, a "
            "smaller validation_fraction, or early_stopping=False."
        )
    return _weighted_rows(data, 1.0 - share), _weighted_rows(data, share)


def _held_out_shares(data: TrainingData, fraction: float, seed: int) -> FloatArray | None:
    """The share of each row that is held out, or None for too many rows to count.

    Whole weights count as that many rows. Each distinct row is cut into units, as many as it
    counts for, but no more of them in all than there are distinct rows (or a few tens): so large
    weights do not put every row on both sides, and few distinct rows stay on both.
    """
    whole = bool((data.weights % 1 == 0).all())
    total = data.weights.sum() if whole else data.n_samples
    if total > COUNTED_ROWS:
        return None
    _, group = _group_rows(data.X, data.y)
    count = np.bincount(group, data.weights if whole else None)
    scale = min(1.0, max(FEW_UNITS, len(count)) / total)
    units = np.maximum(1, np.rint(scale * count)).astype(np.int64)
    n_valid = int(np.ceil(fraction * units.sum()))
    held = np.random.default_rng([1, seed]).multivariate_hypergeometric(units, n_valid)
    # the first of several equal rows are held out whole, and at most one of them in part
    order = np.argsort(group, kind="stable")
    size = np.bincount(group)
    rank = np.empty(len(group))
    rank[order] = np.arange(len(group)) - np.repeat(np.cumsum(size) - size, size)
    out: FloatArray = np.clip((held * size / units)[group] - rank, 0.0, 1.0)
    return out


def _weighted_rows(data: TrainingData, share: FloatArray) -> TrainingData:
    keep = share > 0
    weight = (data.weights * share)[keep]
    # thirds of a weight and the like are to give back whole numbers
    nearest = np.rint(weight)
    weight = np.where(np.abs(weight - nearest) < 1e-9 * np.abs(weight), nearest, weight)
    return TrainingData(data.X[keep], data.y[keep], None if (weight == 1).all() else weight)


def resolve_seed(random_state: Any) -> int:
    """The seed of one fit; without a random_state, fresh entropy, so no global state is touched."""
    if random_state is None:
        return int.from_bytes(os.urandom(6), "little")
    if isinstance(random_state, np.random.RandomState):
        return int(check_random_state(random_state).randint(2**31 - 1))
    return int(random_state)


@contextmanager
def own_torch_settings(device: torch.device, *, grad: bool = True) -> Iterator[None]:
    """Shut out torch modes of the caller: inference, autocast and a default device."""
    # small fits and predictions take microseconds, so what is right already is left alone
    odd_mode = torch.is_inference_mode_enabled() or torch.is_grad_enabled() != grad
    autocast = torch.is_autocast_enabled(device.type)
    # a device context costs time in every call, so it is only entered where it is needed
    elsewhere = torch.get_default_device().type != "cpu"
    if not (odd_mode or autocast or elsewhere):
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(grad))
        if autocast:
            stack.enter_context(torch.autocast(device.type, enabled=False))
        if elsewhere:
            stack.enter_context(torch.device("cpu"))
        yield


def make_generator(seed: int, stream: int = 0, device: Any = "cpu") -> torch.Generator:
    """A generator of its own; stream 0 draws what `torch.manual_seed(seed)` would give."""
    return torch.Generator(device).manual_seed(seed + (stream << 48))


def available_devices() -> list[str]:
    """Names of the devices that this machine has."""
    names = ["cpu"]
    if torch.cuda.is_available():
        names += ["cuda"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def resolve_device(device: Any) -> torch.device:
    """The `torch.device` meant; raises ValueError naming those that are there."""
    if device == "cpu":
        return torch.device("cpu")
    known = available_devices()
    if device == "auto":
        return torch.device("cuda" if "cuda" in known else "mps" if "mps" in known else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        resolved = None
    if resolved is None or (resolved.type != "cpu" and str(resolved) not in known):
        raise ValueError(
            f"The device {str(device)!r} is not there. Available here: {', '.join(known)}. "
            "device='auto' takes the first of cuda, mps and cpu that is there."
        )
    return resolved


def resolve_dtype(dtype: Any, X: Any, device: torch.device) -> torch.dtype:
    """The compute dtype; raises ValueError for float64 on a device that has none."""
    if dtype == "auto":
        dtype = "float32" if device.type == "mps" or X.dtype == np.float32 else "float64"
    resolved: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if resolved not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64; got {dtype}.")
    if device.type == "mps" and resolved == torch.float64:
        raise ValueError("The device 'mps' has no float64. Set dtype='float32', or device='cpu'.")
    return resolved
