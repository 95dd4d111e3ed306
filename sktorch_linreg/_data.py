"""From the user's X, y, sample_weight to validated rows, statistics, dtype, device and seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from sklearn import get_config
from sklearn.base import BaseEstimator
from sklearn.utils import assert_all_finite
from sklearn.utils.validation import validate_data

from ._dates import refuse_dates
from ._runtime.aliases import Array, FloatArray, Layers
from ._runtime.processes import current_processes
from ._runtime.sklearn_private import check_sample_weight
from ._types import FitSpec, Moments, Scaling, TrainingData

# rows of float64 work space at a time, in bytes
CHUNK_BYTES = 8 * 2**20

# beyond this many entries sorting the rows would cost more than it is worth
DISTINCT_ENTRIES = 2_000_000

# largest weights that leave columns of any size room for their squares ...
LEAST_WEIGHT, MOST_WEIGHT = 1e-10, 1e10

# ... and what is let pass where several processes would have to agree on other units
LEAST_SHARED_WEIGHT, MOST_SHARED_WEIGHT = 1e-100, 1e100

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
    weight, exponent = _in_moderate_units(weight)
    least = weight.min()
    if least == 0:
        if verify is not None:
            verify()
        keep = weight > 0
        X, y, weight, verify = X[keep], y[keep], weight[keep], None
    elif least == 1 and weight.max() == 1:
        weight = None
    return TrainingData(X, y, weight, verify, exponent), n_dim


def _in_moderate_units(weight: FloatArray) -> tuple[FloatArray, int]:
    """Weights in units of a power of two, whose exponent is even, where they are extreme."""
    most = float(weight.max())
    if LEAST_WEIGHT <= most <= MOST_WEIGHT or most == 0:
        return weight, 0
    if current_processes() is not None:
        if LEAST_SHARED_WEIGHT <= most <= MOST_SHARED_WEIGHT:
            return weight, 0
        raise ValueError(
            f"The largest sample_weight is {most:.3g}; within data_parallel() it has to lie "
            f"between {LEAST_SHARED_WEIGHT:g} and {MOST_SHARED_WEIGHT:g}. Only the ratios of "
            "weights matter: multiply those of all processes by the same power of ten."
        )
    # powers of two round nothing, and neither do their roots if the exponent is even
    exponent = 2 * (math.frexp(most)[1] // 2)
    return np.ldexp(weight, -exponent), exponent


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
