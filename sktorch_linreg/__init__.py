"""Linear and neural-network regression in PyTorch, as scikit-learn estimators."""

from ._errors import TrainingDivergedError
from ._version import __version__
from .fitted_line import FittedLineDisplay
from .linear import TorchLinearRegressor
from .mlp import TorchMLPRegressor
from .model_selection import BatchedGridSearchCV, BatchedRandomizedSearchCV
from .persistence import load_model, save_model
from .plotting import LearningRateDisplay, LossCurveDisplay
from .range_test import LRRangeTestDisplay, lr_range_test
from .surfaces import LossSurfaceDisplay

__all__ = [
    "BatchedGridSearchCV",
    "BatchedRandomizedSearchCV",
    "FittedLineDisplay",
    "LRRangeTestDisplay",
    "LearningRateDisplay",
    "LossCurveDisplay",
    "LossSurfaceDisplay",
    "TorchLinearRegressor",
    "TorchMLPRegressor",
    "TrainingDivergedError",
    "__version__",
    "load_model",
    "lr_range_test",
    "save_model",
]
