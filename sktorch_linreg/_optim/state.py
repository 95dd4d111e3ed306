"""State of optimizers and schedules as plain numbers and arrays, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_arrays(value: Any) -> Any:
    """Convert tensors in nested containers to NumPy arrays, the form in which state is stored."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy().copy()
    if isinstance(value, dict):
        return {k: to_arrays(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_arrays(v) for v in value)
    return value


def to_tensors(value: Any) -> Any:
    """Convert arrays in nested containers to CPU tensors; optimizers move them as needed."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {k: to_tensors(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_tensors(v) for v in value)
    return value


def schedule_state(schedule: Any) -> dict[str, Any] | None:
    """The state that a schedule needs to resume; functions are recreated from its options."""
    if schedule is None:
        return None
    plain = (int, float, str, bool, list, tuple, dict, type(None), Tensor)
    state = schedule.state_dict().items()
    return {k: to_arrays(v) for k, v in state if isinstance(v, plain) and k != "lr_lambdas"}


def load_schedule_state(schedule: Any, state: Any) -> None:
    """Let a new schedule continue where an earlier one stopped."""
    if schedule is not None and state is not None:
        schedule.load_state_dict({**schedule.state_dict(), **state})
