"""Validation of the user's X, y and sample_weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from .._runtime.aliases import Array, FloatArray
from .._runtime.processes import current_group
from .._runtime.sklearn_private import check_sample_weight
from .arrays import as_float, to_host, verify_finite
from .dates import refuse_dates
from .rows import TrainingData
from .text import explain

# range of the largest weight that needs no other units, whatever the size of the columns ...
LEAST_WEIGHT, MOST_WEIGHT = 1e-10, 1e10
# ... and the range accepted where several processes would have to agree on other units
LEAST_SHARED_WEIGHT, MOST_SHARED_WEIGHT = 1e-100, 1e100
# what errors of scikit-learn and NumPy about text contain
ABOUT_TEXT = ("could not convert", "arrays of bytes/strings")
SPARSE_FORMATS = ["csr", "csc", "coo"]


@dataclass(frozen=True)
class RowRules:
    """What an estimator takes besides a matrix of floating-point numbers.

    `any_shape` says whether rows may have any number of dimensions, and `integers` whether integers
    stay integers.
    """

    any_shape: bool = False
    integers: bool = False


@contextmanager
def patient_validation(**given: Any) -> Iterator[None]:
    """Wrap scikit-learn's checks: let sums overflow, and say where text is and what to do.

    Dates and durations in the `given` arrays are rejected, since NumPy would convert them to
    numbers in whatever unit they have.
    """
    for name, rows in given.items():
        refuse_dates(rows, name)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            yield
    except (TypeError, ValueError, OverflowError) as error:
        about_values = isinstance(error, OverflowError) or any(t in str(error) for t in ABOUT_TEXT)
        message = explain(given) if about_values else None
        if message is None:
            raise
        raise ValueError(message) from error


def is_plain(a: Any, dimensions: tuple[int, ...]) -> bool:
    """Whether scikit-learn's checks would return an array unchanged, provided it is finite."""
    return (
        type(a) in (np.ndarray, np.memmap)
        and a.ndim in dimensions
        and a.size > 0
        and a.dtype in (np.float32, np.float64)
    )


def adopt_names(estimator: BaseEstimator, X: Array, reset: bool) -> None:
    """Handle feature names and counts as `validate_data` does, but fast for plain arrays."""
    state = vars(estimator)
    if reset:
        state.pop("feature_names_in_", None)
        estimator.n_features_in_ = X.shape[1]
    elif "feature_names_in_" in state or state.get("n_features_in_") != X.shape[1]:
        validate_data(estimator, X, reset=False, skip_check_array=True)


def validate_rows(
    estimator: BaseEstimator, X: Any, y: Any, sample_weight: Any, *, reset: bool
) -> tuple[TrainingData, int]:
    """Check a training set with scikit-learn's own errors; return it and the ndim of y.

    Plain float arrays are not checked for finiteness, which would take a pass over them: the
    caller has to check sums of the rows, or to call `verify`.
    """
    X, y, sample_weight = to_host(X), to_host(y), to_host(sample_weight)
    rules: RowRules = estimator._row_rules
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
                allow_nd=rules.any_shape,
                multi_output=True,
                y_numeric=True,
            )
            X = as_numbers(estimator, X, rules)
            if isinstance(y, np.ndarray) and y.dtype.kind not in "fiub":
                y = y.astype(np.float64)
        if sp.issparse(y):
            raise TypeError("y is sparse, but dense targets are required. Pass y.toarray().")
        y = np.asarray(y)
        verify_finite(estimator, y=y)
    if y.dtype != X.dtype:
        # y stays float32 only if X is float32 too
        y = y.astype(np.float64)
    n_dim, row_shape = y.ndim, X.shape[1:]
    if 0 in row_shape:
        raise ValueError(
            f"X has rows of shape {row_shape}, which hold no numbers. Pass at least one per row."
        )
    X, y = _flat(X), y.reshape(len(y), -1)
    if sample_weight is None:
        return TrainingData(X, y, None, verify, row_shape=row_shape), n_dim
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
    return TrainingData(X, y, weight, verify, exponent, row_shape=row_shape), n_dim


def as_numbers(estimator: BaseEstimator, X: Any, rules: RowRules) -> Any:
    """Validated numbers as floats, or as int64 if they are integers and the rules keep these."""
    if rules.integers and not sp.issparse(X) and X.dtype.kind in "iu":
        if X.dtype.kind == "u" and X.max() > np.iinfo(np.int64).max:
            raise ValueError(
                f"X contains {X.max()}, which is out of range for int64. Encode the categories as "
                "0, 1, 2, ..., for example with OrdinalEncoder(dtype='int64') of scikit-learn."
            )
        return X.astype(np.int64)
    return as_float(estimator, X)


def as_codes(X: Any) -> Any:
    """Rows for a module that was trained on integers, dense or sparse, as int64.

    Raises
    ------
    ValueError
        If they hold other numbers.
    """
    if X.dtype.kind == "i":
        return X
    with np.errstate(invalid="ignore"):
        codes = X.astype(np.int64)
    wrong = codes.data != X.data if sp.issparse(X) else codes != X
    if wrong.any():
        raise ValueError(
            "The module was trained on integers, but X holds other numbers. Pass integer codes, "
            "for example X.astype('int64')."
        )
    return codes


def _flat(X: Any) -> Any:
    """Rows of any shape, each flattened to one dimension."""
    return X if X.ndim == 2 else X.reshape(len(X), -1)


def check_row_shape(
    estimator: BaseEstimator, found: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    """Raise ValueError if rows do not have the shape that they had in fit."""
    if tuple(found) != tuple(expected):
        raise ValueError(
            f"X has rows of shape {tuple(found)}, but {type(estimator).__name__} was fitted to "
            f"rows of shape {tuple(expected)}."
        )


# parameters of fit that are a validation set, in the order of `validate_rows`
VALIDATION_SET = ("X_val", "y_val", "sample_weight_val")


@dataclass(frozen=True)
class Unsplit:
    """A parameter of fit that a search must not split along with the rows."""

    value: Any


def validate_held_out(
    estimator: BaseEstimator, data: TrainingData, n_dim: int, given: Sequence[Any]
) -> TrainingData:
    """The rows with a validation set, `given` as X_val, y_val and sample_weight_val.

    Raises
    ------
    ValueError
        If part of it is missing, if it is invalid, or if its columns or targets are not those of
        the rows.
    """
    X, y, weight = (part.value if isinstance(part, Unsplit) else part for part in given)
    if X is None and y is None and weight is None:
        return data
    for name, part in (("X_val", X), ("y_val", y)):
        if part is None:
            raise ValueError(
                f"{name} is missing: a validation set needs both X_val and y_val, and "
                "optionally sample_weight_val."
            )
    try:
        held_out, n_dim_val = validate_rows(estimator, X, y, weight, reset=False)
        if held_out.verify is not None:
            held_out.verify()
        check_row_shape(estimator, held_out.row_shape, data.row_shape)
        if (n_dim_val, held_out.n_targets) != (n_dim, data.n_targets):
            raise ValueError(
                f"y_val has {n_dim_val} dimension(s) and {held_out.n_targets} target(s), but y has "
                f"{n_dim} and {data.n_targets}."
            )
        if not sp.issparse(data.X) and data.X.dtype.kind == "i":
            held_out = replace(held_out, X=as_codes(held_out.X))
    except (TypeError, ValueError) as error:
        hint = ""
        if "features" in str(error):
            hint = " In a Pipeline, transform_input=['X_val'] transforms it like X."
        raise type(error)(f"The validation set (X_val, y_val) is invalid: {error}{hint}") from error
    if sp.issparse(held_out.X) and not sp.issparse(data.X):
        held_out = replace(held_out, X=held_out.X.toarray())
    elif sp.issparse(data.X) and not sp.issparse(held_out.X):
        held_out = replace(held_out, X=sp.csr_array(held_out.X))
    return replace(data, held_out=replace(held_out, verify=None))


def _in_moderate_units(weight: FloatArray) -> tuple[FloatArray, int]:
    """Weights divided by an even power of two if they are extreme, and its exponent."""
    most = float(weight.max())
    if LEAST_WEIGHT <= most <= MOST_WEIGHT or most == 0:
        return weight, 0
    if current_group().size > 1:
        if LEAST_SHARED_WEIGHT <= most <= MOST_SHARED_WEIGHT:
            return weight, 0
        raise ValueError(
            f"The largest sample_weight is {most:.3g}; within data_parallel() it has to lie "
            f"between {LEAST_SHARED_WEIGHT:g} and {MOST_SHARED_WEIGHT:g}. Only the ratios of "
            "weights matter: multiply those of all processes by the same power of ten."
        )
    # scaling by a power of two is exact, and so is its root if the exponent is even
    exponent = 2 * (math.frexp(most)[1] // 2)
    return np.ldexp(weight, -exponent), exponent
