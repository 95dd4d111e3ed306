"""Convert fitted models to scikit-learn estimators with the same predictions, without torch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from .._runtime.aliases import Layers

# activations that MLPRegressor also has, under the same names
SHARED_ACTIVATIONS = ("identity", "logistic", "tanh", "relu")
# fitted attributes that both have
SHARED = (
    "n_features_in_", "feature_names_in_", "rank_", "n_iter_", "loss_", "best_loss_",
    "loss_curve_", "n_layers_", "n_outputs_", "out_activation_",
)  # fmt: skip


def _take_over(model: Any, estimator: Any) -> Any:
    for name in SHARED:
        if name in vars(estimator):
            # copied, since a warm start of either extends its curves in place
            setattr(model, name, copy.copy(vars(estimator)[name]))
    return model


def as_linear_regression(estimator: Any) -> Any:
    """A fitted LinearRegression with the same coefficients; raises ValueError for a log link."""
    if estimator._has_log_link:
        raise ValueError(
            "to_sklearn does not support loss='poisson', whose predictions are the "
            "exponential of a linear function. Save the model with save_model, or export it with "
            "to_onnx."
        )
    # a slow import that most users do not need
    from sklearn.linear_model import LinearRegression

    names = ("fit_intercept", "copy_X", "n_jobs", "positive")
    model = LinearRegression(**{name: getattr(estimator, name) for name in names})
    model.coef_ = np.array(estimator.coef_)
    model.intercept_ = np.copy(estimator.intercept_)[()]
    if hasattr(estimator, "singular_"):
        model.singular_ = np.copy(estimator.singular_)
    return _take_over(model, estimator)


def as_mlp_regressor(estimator: Any, layers: Layers, activation: str) -> Any:
    """A fitted MLPRegressor with the same layers; raises ValueError for unsupported activations."""
    if activation not in SHARED_ACTIVATIONS and len(layers) > 1:
        raise ValueError(
            f"MLPRegressor has no activation {activation!r}, only "
            f"{', '.join(map(repr, SHARED_ACTIVATIONS))}. Train with one of these, save the model "
            "with save_model, or export it with to_onnx."
        )
    from sklearn.neural_network import MLPRegressor

    hidden = tuple(len(weight) for weight, _ in layers[:-1])
    model = MLPRegressor(
        loss="poisson" if estimator.out_activation_ == "exp" else "squared_error",
        hidden_layer_sizes=hidden,
        activation=activation if len(layers) > 1 else "identity",
        alpha=estimator.alpha,
        random_state=estimator.random_state,
    )
    model.coefs_ = [weight.T.copy() for weight, _ in layers]
    model.intercepts_ = [np.zeros(len(w)) if b is None else b.copy() for w, b in layers]
    model.t_ = 0
    model._no_improvement_count = 0
    _take_over(model, estimator)
    # ours is in other units, and a warm start in scikit-learn would compare against it
    model.best_loss_ = np.inf
    return model
