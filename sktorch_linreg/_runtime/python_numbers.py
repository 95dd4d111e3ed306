"""Conversion of numbers to Python's own types."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np


def as_python(value: Any) -> Any:
    """Convert numbers that scikit-learn accepts to Python's own, also within tuples and lists.

    `torch` may reject numpy's integers, and numpy's booleans are never ``is True``.
    """
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(map(as_python, value))
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value
