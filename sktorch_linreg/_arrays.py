"""Arrays as tensors, whatever memory they lie in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch


def as_tensor(a: Any) -> torch.Tensor:
    """A tensor over the memory of an array that is only read, or over a copy of it.

    torch warns of read-only memory, and has neither negative strides nor fractions of numbers.
    """
    a = np.asarray(a)
    if any(stride < 0 or stride % a.itemsize for stride in a.strides):
        a = a.copy()
    elif not a.flags.writeable:
        address = a.__array_interface__["data"][0]
        view = {**a.__array_interface__, "data": (address, False)}
        a = np.asarray(SimpleNamespace(__array_interface__=view, owner=a))
    return torch.from_numpy(a)
