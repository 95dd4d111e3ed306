"""Linear and neural-network regression in PyTorch, as scikit-learn estimators."""

from ._types import TrainingDivergedError
from ._version import __version__
from .linear import TorchLinearRegressor
from .mlp import TorchMLPRegressor

__all__ = ["TorchLinearRegressor", "TorchMLPRegressor", "TrainingDivergedError", "__version__"]
