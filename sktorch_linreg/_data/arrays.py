"""Conversion of array-likes to NumPy arrays and tensors of floating-point numbers."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from sklearn import get_config
from sklearn.base import BaseEstimator
from sklearn.utils import assert_all_finite

from .._runtime.aliases import Array

# size of the float64 work space in bytes
CHUNK_BYTES = 8 * 2**20


def chunks(n_rows: int, n_columns: int, budget: int = CHUNK_BYTES) -> Iterator[slice]:
    """Slices of rows whose float64 copies fit the byte budget."""
    step = max(1, budget // (8 * max(1, n_columns)))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def as_tensor(a: Any) -> torch.Tensor:
    """A tensor for reading an array, sharing its memory where torch can.

    torch warns about read-only memory, and strides must be non-negative multiples of the item size.
    """
    a = np.asarray(a)
    if any(stride < 0 or stride % a.itemsize for stride in a.strides):
        a = a.copy()
    elif not a.flags.writeable:
        address = a.__array_interface__["data"][0]
        view = {**a.__array_interface__, "data": (address, False)}
        a = np.asarray(SimpleNamespace(__array_interface__=view, owner=a))
    return torch.from_numpy(a)


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The NumPy dtype of a torch dtype."""
    return torch.empty(0, dtype=dtype, device="cpu").numpy().dtype


def to_host(a: Any) -> Any:
    """A tensor on any device as an array; anything else is returned unchanged."""
    if not isinstance(a, torch.Tensor):
        return a
    if a.device.type == "meta":
        raise ValueError("Tensors on device 'meta' hold no data. Pass a tensor on another device.")
    try:
        a = a.detach().cpu()
        a = a.dequantize() if a.is_quantized else a.resolve_conj().resolve_neg()
        return (a.float() if a.dtype == torch.bfloat16 else a).numpy()
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"A tensor of layout {a.layout} and dtype {a.dtype} cannot be read as an array: "
            f"{error}. Pass a dense numeric tensor or a NumPy array."
        ) from error


def like_input(out: Array, X: Any) -> Any:
    """Results as a tensor on the device of the tensor `X`, if array API dispatch is enabled."""
    if isinstance(X, torch.Tensor) and get_config()["array_api_dispatch"]:
        return torch.from_numpy(out).to(X.device)
    return out


def as_float(estimator: BaseEstimator, X: Any) -> Any:
    """Validated numbers as float32 if they are float32, else as float64; sparse ones as CSR.

    Validation keeps the dtype (a list of dtypes would cast every polars frame to the first one).
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
        # None in an array of objects becomes NaN only in this cast
        verify_finite(estimator, X=out)
    return out


def verify_finite(estimator: BaseEstimator, **arrays: Array) -> None:
    """Raise scikit-learn's error for the first of the named arrays that is not finite."""
    # assert_all_finite looks more closely if its sums overflow
    with np.errstate(over="ignore", invalid="ignore"):
        for name, a in arrays.items():
            assert_all_finite(a, input_name=name, estimator_name=type(estimator).__name__)
