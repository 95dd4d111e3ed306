"""State of optimizers and schedules as plain numbers and arrays, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

# what an array gives back as it was
COLUMN_KINDS = {bool, int, float}


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


def pack_history(rows: list[dict[str, Any]]) -> Any:
    """Records of epochs as one array per column, where all have the same plain columns."""
    names = list(rows[0]) if rows else []
    columns: dict[str, Any] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        kinds = {type(v) for v in values}
        if len(kinds) > 1 or not kinds <= COLUMN_KINDS:
            return rows
        if name == "epoch" and values == list(range(1, len(rows) + 1)):
            columns[name] = None
        else:
            same = len(set(values)) == 1
            columns[name] = values[0] if same else np.array(values)
    if not rows or any(list(row) != names for row in rows):
        return rows
    return {"n_rows": len(rows), "columns": columns}


def unpack_history(packed: Any) -> list[dict[str, Any]]:
    """The records that `pack_history` was given."""
    if isinstance(packed, list):
        return packed
    n, columns = packed["n_rows"], packed["columns"]
    if not all(len(v) == n for v in columns.values() if isinstance(v, np.ndarray)):
        raise ValueError("the history has columns of different lengths")

    def as_list(value: Any) -> Any:
        if value is None:
            return range(1, n + 1)
        return value.tolist() if isinstance(value, np.ndarray) else [value] * n

    lists = [as_list(value) for value in columns.values()]
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]
