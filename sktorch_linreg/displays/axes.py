"""What all pictures need: axes to draw in, and options of lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def new_axes(ax: Any, **kwargs: Any) -> Any:
    """The axes to draw in, new ones if there are none."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Plotting requires matplotlib, which is not installed. Install it with "
            "pip install 'sktorch_linreg[plot]'."
        ) from error
    return plt.subplots(layout="constrained", **kwargs)[1] if ax is None else ax


def styled(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Options of lines by their full names, since `c` beside `color` would be one twice."""
    from matplotlib.cbook import normalize_kwargs
    from matplotlib.lines import Line2D

    return dict(normalize_kwargs(dict(kwargs), Line2D))
