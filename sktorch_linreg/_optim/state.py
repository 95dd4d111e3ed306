"""State of optimizers and schedules as plain numbers and arrays, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_arrays(value: Any) -> Any:
    """Tensors in nested containers as numpy arrays, which is how state is kept."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy().copy()
    if isinstance(value, dict):
        return {k: to_arrays(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_arrays(v) for v in value)
    return value


def to_tensors(value: Any) -> Any:
    """Arrays in nested containers as tensors on the CPU; an optimizer moves its own."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {k: to_tensors(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_tensors(v) for v in value)
    return value


def schedule_state(schedule: Any) -> dict[str, Any] | None:
    """What a schedule needs to go on; functions are made anew from its options."""
    if schedule is None:
        return None
    plain = (int, float, str, bool, list, tuple, dict, type(None), Tensor)
    state = schedule.state_dict().items()
    return {k: to_arrays(v) for k, v in state if isinstance(v, plain) and k != "lr_lambdas"}


def load_schedule_state(schedule: Any, state: Any) -> None:
    """Let a new schedule go on where an earlier one stopped."""
    if schedule is not None and state is not None:
        schedule.load_state_dict({**schedule.state_dict(), **state})
