"""Location of values that cannot be converted to float64: text, or numbers out of range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

REMEDIES = {
    "X": "Encode string columns first, for example with sklearn.preprocessing.OneHotEncoder in a "
    "ColumnTransformer.",
    "y": "Convert the targets to numbers, or drop these rows.",
}


def explain(given: Mapping[str, Any]) -> str | None:
    """A message about the first value in the named arrays that cannot be converted.

    None if there is no such value.
    """
    for name, rows in given.items():
        found = _first(rows)
        if found is None:
            continue
        place, value = found
        if isinstance(value, str):
            return f"{name} contains text: {value!r} in {place}. {REMEDIES.get(name, '')}".strip()
        # not by str, which refuses to write very long numbers
        n_digits = math.ceil(value.bit_length() * math.log10(2))
        return (
            f"{name} contains a number beyond the range of float64 in {place}: it has {n_digits} "
            "digits. Rescale that column, or take logarithms."
        )
    return None


def _first(rows: Any) -> tuple[str, Any] | None:
    """Place and value of the first value that cannot be converted."""
    try:
        given = np.asarray(rows, dtype=object)
        table = given.reshape(len(given), -1)
    except Exception:
        # inputs that are not arrays raise other errors
        return None
    names = getattr(rows, "column_names", getattr(rows, "columns", None))
    for j, column in enumerate(table.T):
        for i, value in enumerate(column):
            if isinstance(value, str | int) and not _is_convertible(value):
                place = f"row {i}"
                if given.ndim == 2 or names is not None:
                    place += f", column {j if names is None else names[j]!r}"
                return place, value
    return None


def _is_convertible(value: Any) -> bool:
    try:
        float(value)
    except (ValueError, OverflowError):
        return False
    return True
