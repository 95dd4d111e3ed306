"""Seeds of a fit, and the generators made from them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from .turns import Turns

# far from the streams of the other generators of any number of processes
CODE_STREAM = 1 << 12


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


def code_generator(seed: int, device: Any, rank: int = 0) -> torch.Generator:
    """Generator of what code of the user's draws beside networks of the package."""
    return make_generator(seed, stream=CODE_STREAM + rank, device=device)


def dropout_generator(seed: int, device: Any, rank: int = 0) -> torch.Generator:
    """Generator of the dropout masks."""
    return make_generator(seed, stream=3 * rank + 2, device=device)


# code of the user's draws from torch's global generators, one thread at a time
_global_generators = Turns()


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


def copy_generators(device: torch.device) -> list[torch.Generator]:
    """Copies of torch's global generators of the CPU and of a device."""
    copies = []
    for generator in _generators_of(device):
        copies.append(torch.Generator(generator.device))
        copies[-1].set_state(generator.get_state())
    return copies


def random_state_of(device: torch.device) -> list[torch.Tensor]:
    """The states of torch's global generators of the CPU and of a device."""
    return [generator.get_state() for generator in _generators_of(device)]


def set_random_state(device: torch.device, states: list[torch.Tensor]) -> None:
    """Restore what `random_state_of` returned."""
    for generator, state in zip(_generators_of(device), states, strict=True):
        generator.set_state(state)


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[list[torch.Generator]]:
    """Torch's global generators of the CPU and of a device, restored after this context.

    Other contexts of this kind wait until this one has ended, except in the same thread.
    """
    with _global_generators.held():
        before = random_state_of(device)
        try:
            try:
                yield _generators_of(device)
            finally:
                set_random_state(device, before)
        except BaseException:
            # Ctrl-C may have come in between
            set_random_state(device, before)
            raise


@contextmanager
def seeded_torch(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators inside this context, and restore them afterwards."""
    with kept_random_state(device) as generators:
        for generator in generators:
            generator.manual_seed(seed)
        yield


@contextmanager
def torch_draws_from(own: Sequence[torch.Generator], device: torch.device) -> Iterator[None]:
    """Let torch's global generators draw what these would, inside this context.

    `own` is a generator of the CPU and, if that is not the device, one of the device.
    """
    with kept_random_state(device) as generators:
        pairs = list(zip(own, generators, strict=False))
        for mine, torchs in pairs:
            torchs.set_state(mine.get_state())
        try:
            yield
        finally:
            for mine, torchs in pairs:
                mine.set_state(torchs.get_state())
