"""Pictures: loss curves, loss surfaces, learning rates, fitted lines.

Displays hold data, drawn by `plot`; artists end in ``_``. They need matplotlib, which the extra
``plot`` brings.
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
