"""Rejection of dates and durations, which are not numbers."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np

KINDS = (datetime.date, datetime.time, datetime.timedelta, np.datetime64, np.timedelta64)
# prefixes of type names in pandas, polars and pyarrow
NAMES = ("date", "time", "duration", "period", "interval[date")


def refuse_dates(rows: Any, name: str) -> None:
    """Raise if rows hold dates or durations, naming the columns.

    Raises
    ------
    ValueError
        If there is a date or duration; NaT (a missing date) counts as one.
    """
    columns = _columns_of_dates(rows)
    if columns:
        named = [repr(column) for column in columns if column is not None]
        where = f" in the column{'s' * (len(named) > 1)} {', '.join(named)}" if named else ""
        raise ValueError(
            f"{name} holds dates or durations{where}, which are not numbers. Convert them to "
            "numbers in a unit of your choice, for example (dates - dates.min()) / "
            "numpy.timedelta64(1, 'D')."
        )


def _columns_of_dates(rows: Any) -> list[Any]:
    """Names, or indices, of the columns that hold dates or durations."""
    if isinstance(rows, np.ndarray):
        if rows.dtype.kind in "mM":
            return list(range(rows.shape[1] if rows.ndim > 1 else 1))
        if rows.dtype != object or rows.ndim > 2:
            return []
        table = rows.reshape(len(rows), -1) if rows.size else rows.reshape(0, 0)
        return [j for j in range(table.shape[1]) if any(isinstance(v, KINDS) for v in table[:, j])]
    if isinstance(rows, list | tuple):
        found: dict[int, None] = {}
        for row in rows:
            values = row if isinstance(row, list | tuple) else (row,)
            found |= dict.fromkeys(j for j, v in enumerate(values) if isinstance(v, KINDS))
        return list(found)
    if hasattr(type(rows), "schema"):
        # polars or pyarrow
        types = rows.dtypes if hasattr(type(rows), "dtypes") else rows.schema.types
        names = rows.columns if hasattr(type(rows), "dtypes") else rows.column_names
        return [name for name, dtype in zip(names, types, strict=True) if _is_date(dtype)]
    if hasattr(type(rows), "dtypes") and hasattr(type(rows), "iloc"):
        if not hasattr(type(rows), "columns"):
            return [rows.name] if _holds_dates(rows) else []
        places = range(rows.shape[1])
        return [rows.columns[j] for j in places if _holds_dates(rows.iloc[:, j])]
    return [getattr(rows, "name", 0)] if _is_date(getattr(rows, "dtype", "")) else []


def _holds_dates(column: Any) -> bool:
    """Whether a pandas column has a date dtype, or holds objects some of which are dates."""
    if column.dtype == object:
        return any(isinstance(value, KINDS) for value in column)
    return _is_date(column.dtype)


def _is_date(dtype: Any) -> bool:
    return getattr(dtype, "kind", "") in ("m", "M") or str(dtype).lower().startswith(NAMES)
