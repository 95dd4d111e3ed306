"""Errors for numbers out of the range of a dtype, raised before or after a fit.

Where float64 can be used instead, nothing is raised: `Scaling.fits_single` and
`StackResult.representable` tell whether float32 suffices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._runtime.aliases import Array, FloatArray
from .magnitudes import largest_size
from .rows import TrainingData

# relative error above which a float32 coefficient has lost digits
LOST_DIGITS = 1e-4
# share of the largest target above which a term of a prediction matters
COUNTING_SHARE = 1e-6


def check_target_range(y: Array, dtype: Any) -> None:
    """Raise if predictions, which have the dtype of X, are float32 and cannot reach the targets."""
    if not (dtype == np.float32 and y.dtype == np.float64):
        return
    # one per target
    sizes = np.maximum(y.max(axis=0), -y.min(axis=0))
    single = np.finfo(np.float32)
    large = sizes[(sizes > single.max) & (sizes < np.inf)]
    small = sizes[(sizes > 0) & (sizes < single.tiny)]
    if large.size or small.size:
        beyond = large if large.size else small
        raise ValueError(
            f"Targets of up to {beyond[0]:.3g} are out of range for float32 "
            f"({single.tiny:.3g} to {single.max:.3g}), and predictions are float32 because X "
            "is. Pass X as float64, or multiply y by a power of ten."
        )


def check_validation_range(
    held_out: TrainingData,
    x_units: tuple[FloatArray, FloatArray],
    y_units: tuple[FloatArray, FloatArray],
    dtype: torch.dtype,
) -> None:
    """Raise if squares of a validation set overflow in the units of training.

    Units are an offset and a factor for each column.
    """
    largest = 1e-3 * float(torch.finfo(dtype).max) ** 0.5
    for name, values, units in (("X_val", held_out.X, x_units), ("y_val", held_out.y, y_units)):
        edges = [edge(axis=0) for edge in (values.min, values.max)]
        offset, factor = units
        with np.errstate(over="ignore"):
            sizes = [
                np.abs(np.ravel(e.toarray() if hasattr(e, "toarray") else e) - offset) * factor
                for e in edges
            ]
        size = float(np.max(sizes, initial=0.0))
        if size > largest:
            raise ValueError(
                f"{name} reaches {size:.3g} in the units of the training rows, and its square "
                f"overflows {str(dtype).removeprefix('torch.')}. Check that {name} is in the same "
                "units as in training, or remove such rows."
            )


def check_penalty(alpha: float, dtype: torch.dtype) -> None:
    """Raise if the penalty overflows the compute dtype."""
    largest = torch.finfo(dtype).max
    if alpha > largest:
        raise ValueError(
            f"alpha={alpha:g} overflows {str(dtype).removeprefix('torch.')}, whose largest "
            f"number is {largest:.3g}. Choose a smaller alpha, or dtype='float64'."
        )


def check_coefficients(coef: Array, intercept: Any, exact: FloatArray, data: TrainingData) -> None:
    """Raise if float32 coefficients differ from `exact` in a way that affects predictions."""
    lost = np.abs(np.atleast_2d(coef) - exact) > LOST_DIGITS * np.abs(exact)
    gone = False
    if lost.any():
        size = largest_size(data.X, np.arange(data.n_features))
        counts = COUNTING_SHARE * np.abs(data.y).max(axis=0)[:, None]
        gone = bool((lost & (np.abs(exact) * size > counts)).any())
    if gone or not (np.isfinite(coef).all() and np.isfinite(intercept).all()):
        raise ValueError(
            "The coefficients overflow or underflow float32. Pass X as float64, or multiply its "
            "columns by a power of ten."
        )
