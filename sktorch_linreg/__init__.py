"""Linear and neural-network regression in PyTorch, as scikit-learn estimators."""

from ._errors import CheckpointMismatchError, TrainingDivergedError
from ._version import __version__
from .displays import (
    FittedLineDisplay,
    LearningRateDisplay,
    LossCurveDisplay,
    LossSurfaceDisplay,
    LRRangeTestDisplay,
    lr_range_test,
)
from .linear import TorchLinearRegressor
from .mlp import TorchMLPRegressor
from .model_selection import BatchedGridSearchCV, BatchedRandomizedSearchCV
from .module import TorchRegressor
from .persistence import load_model, save_model

__all__ = [
    "BatchedGridSearchCV",
    "BatchedRandomizedSearchCV",
    "CheckpointMismatchError",
    "FittedLineDisplay",
    "LRRangeTestDisplay",
    "LearningRateDisplay",
    "LossCurveDisplay",
    "LossSurfaceDisplay",
    "TorchLinearRegressor",
    "TorchMLPRegressor",
    "TorchRegressor",
    "TrainingDivergedError",
    "__version__",
    "load_model",
    "lr_range_test",
    "save_model",
]
