"""Plots: loss curves, loss surfaces, learning rates, fitted lines.

Displays store data, and `plot` draws it; attributes with matplotlib artists end in ``_``. They
require matplotlib (extra ``plot``).
"""

from .fitted_line import FittedLineDisplay
from .learning_rate import LearningRateDisplay
from .loss_curve import LossCurveDisplay
from .loss_surface import LossSurfaceDisplay
from .lr_range_test import LRRangeTestDisplay, lr_range_test

__all__ = [
    "FittedLineDisplay",
    "LRRangeTestDisplay",
    "LearningRateDisplay",
    "LossCurveDisplay",
    "LossSurfaceDisplay",
    "lr_range_test",
]
