"""The training history as one array per column."""

from __future__ import annotations

from typing import Any

import numpy as np

# types that survive a round trip through an array
COLUMN_KINDS = {bool, int, float}


def pack_history(rows: list[dict[str, Any]]) -> Any:
    """Records of epochs as one array per column, if all have the same plain columns."""
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
    """The records that were passed to `pack_history`."""
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
