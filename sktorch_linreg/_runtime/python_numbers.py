"""Numbers of any kind as those of Python."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np


def as_python(value: Any) -> Any:
    """Numbers of any kind that scikit-learn takes as Python's own, within tuples and lists too.

    numpy's integers are none to `torch`, and its booleans are never ``is True``.
    """
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(map(as_python, value))
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value
