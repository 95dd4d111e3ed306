"""Numbers per model: scalars for one model, arrays for many, with the same functions.

The decisions at the end of an epoch are thus written once for both. For one small model, NumPy
calls on scalars would take longer than an epoch.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor


def _choose(condition: Any, a: Any, b: Any) -> Any:
    return a if condition else b


def _to_numpy(tensor: Tensor) -> Any:
    return tensor.cpu().numpy()


@dataclass(frozen=True)
class Numbers:
    """Functions of numbers per model; minimum and maximum ignore a second argument that is NaN.

    `read` reads them from a tensor, which waits for its device.
    """

    where: Callable[[Any, Any, Any], Any]
    minimum: Callable[[Any, Any], Any]
    maximum: Callable[[Any, Any], Any]
    is_finite: Callable[[Any], Any]
    is_infinite: Callable[[Any], Any]
    invert: Callable[[Any], Any]
    any: Callable[[Any], Any]
    all: Callable[[Any], Any]
    read: Callable[[Any], Any]


ONE = Numbers(_choose, min, max, math.isfinite, math.isinf, operator.not_, bool, bool, float)
MANY = Numbers(
    np.where, np.fmin, np.fmax, np.isfinite, np.isinf, np.logical_not, np.any, np.all, _to_numpy
)
