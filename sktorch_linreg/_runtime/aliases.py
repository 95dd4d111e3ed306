"""Type aliases for arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
FloatArray = NDArray[np.float64]
Mask = NDArray[np.bool_]
# (weight of shape (n_out, n_in), bias of shape (n_out,) or None), layer by layer
Layers = list[tuple[Array, Array | None]]
