"""Shared plotting helpers: axes to draw in, and line options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def new_axes(ax: Any, **kwargs: Any) -> Any:
    """The axes to draw in; new ones if `ax` is None."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Plotting requires matplotlib, which is not installed. Install it with "
            "pip install 'sktorch_linreg[plot]'."
        ) from error
    return plt.subplots(layout="constrained", **kwargs)[1] if ax is None else ax


def styled(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Line options by their full names, since `c` and `color` together would conflict."""
    from matplotlib.cbook import normalize_kwargs
    from matplotlib.lines import Line2D

    return dict(normalize_kwargs(dict(kwargs), Line2D))
