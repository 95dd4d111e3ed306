"""Seeds of a fit, and the generators made from them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state


def resolve_seed(random_state: Any) -> int:
    """The seed of one fit; without a random_state, fresh entropy; no global state is touched."""
    if random_state is None:
        return int.from_bytes(os.urandom(6), "little")
    if isinstance(random_state, np.random.RandomState):
        return int(check_random_state(random_state).randint(2**31 - 1))
    return int(random_state)


def make_generator(seed: int, stream: int = 0, device: Any = "cpu") -> torch.Generator:
    """A new generator; stream 0 draws the same numbers as after `torch.manual_seed(seed)`."""
    return torch.Generator(device).manual_seed(seed + (stream << 48))


def main_generator(seed: int, rank: int = 0) -> torch.Generator:
    """Generator of the initial weights and then the order of rows, in the process `rank`."""
    return make_generator(seed, stream=3 * rank)


def dropout_generator(seed: int, device: Any, rank: int = 0) -> torch.Generator:
    """Generator of the dropout masks."""
    return make_generator(seed, stream=3 * rank + 2, device=device)
