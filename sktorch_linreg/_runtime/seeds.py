"""Seeds of a fit, and the generators made from them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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


# modules of the user's draw from torch's global generators, one fit at a time
_global_generators = threading.RLock()


def _after_fork() -> None:
    """A lock held by another thread of the parent would never be released in the child."""
    global _global_generators
    _global_generators = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def device_generator(device: torch.device) -> torch.Generator | None:
    """Torch's global generator of a device other than the CPU."""
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    return None


def _generators_of(device: torch.device) -> list[torch.Generator]:
    on_device = device_generator(device)
    return [torch.default_generator, *([] if on_device is None else [on_device])]


def random_state_of(device: torch.device) -> list[torch.Tensor]:
    """The states of torch's global generators of the CPU and of a device."""
    return [generator.get_state() for generator in _generators_of(device)]


def set_random_state(device: torch.device, states: list[torch.Tensor]) -> None:
    """Restore what `random_state_of` returned."""
    for generator, state in zip(_generators_of(device), states, strict=True):
        generator.set_state(state)


@contextmanager
def seeded_torch(seed: int | torch.Generator, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators inside this context, and restore them afterwards.

    A CPU generator lends its state instead of a seed, and gets it back as it is at the end. Other
    contexts of this kind wait until this one has ended, except in the same thread.
    """
    with _global_generators:
        generators, before = _generators_of(device), random_state_of(device)
        try:
            if isinstance(seed, torch.Generator):
                torch.default_generator.set_state(seed.get_state())
            else:
                for generator in generators:
                    generator.manual_seed(seed)
            yield
            if isinstance(seed, torch.Generator):
                seed.set_state(torch.default_generator.get_state())
        finally:
            set_random_state(device, before)
