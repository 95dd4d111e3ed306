"""Linear and neural-network regression in PyTorch, as scikit-learn estimators."""

from ._types import TrainingDivergedError
from ._version import __version__
from .linear import TorchLinearRegressor
from .mlp import TorchMLPRegressor
from .model_selection import BatchedGridSearchCV, BatchedRandomizedSearchCV
from .persistence import load_model, save_model

__all__ = [
    "BatchedGridSearchCV",
    "BatchedRandomizedSearchCV",
    "TorchLinearRegressor",
    "TorchMLPRegressor",
    "TrainingDivergedError",
    "__version__",
    "load_model",
    "save_model",
]
