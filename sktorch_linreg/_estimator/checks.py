"""Checks of targets, of the model being continued, and of support for partial_fit."""

from __future__ import annotations

from typing import Any

import torch

from .._data.overflow import check_target_range
from .._data.rows import TrainingData
from .._optim.optimizers import OPTIMIZERS
from .._runtime.aliases import Layers
from .._spec import FitSpec


def check_targets(data: TrainingData, spec: FitSpec) -> None:
    """Raise if the loss, or the precision of predictions, does not support these targets."""
    _check_targets(data, spec, data.X.dtype)
    if data.held_out is not None:
        _check_targets(data.held_out, spec, data.X.dtype)
        if spec.is_exact:
            raise ValueError(
                "optimizer='lstsq' solves exactly and uses no validation set. Omit "
                "X_val and y_val, or choose an optimizer that trains, such as 'adam'."
            )


def _check_targets(data: TrainingData, spec: FitSpec, dtype: Any) -> None:
    check_target_range(data.y, dtype)
    loss, minimum = spec.objective.loss, spec.objective.loss.minimum_target
    if minimum is not None and float(data.y.min()) < minimum:
        raise ValueError(
            f"loss={loss.name!r} needs targets of at least {minimum:g}; the smallest is "
            f"{float(data.y.min()):g}. Choose another loss, such as 'squared_error'."
        )
    if loss.reduced and data.weight is not None:
        raise ValueError(
            f"The loss {loss.name} returns a single mean, so sample_weight cannot be applied. Omit "
            "sample_weight, or give the class a 'reduction' parameter that takes 'none'."
        )


def check_outputs(n_targets: int, log_link: bool, data: TrainingData, spec: FitSpec) -> None:
    """Raise if a model of `n_targets` cannot be trained further on these targets.

    `log_link` says whether it was fitted with a log link.
    """
    if n_targets != data.n_targets:
        raise ValueError(
            f"The model was fitted to {n_targets} target(s), but y has {data.n_targets}. To start "
            "over, set warm_start=False and call fit, or clone the estimator."
        )
    if log_link != spec.objective.loss.log_link:
        raise ValueError(
            f"The model was fitted with {'a' if log_link else 'no'} log link, which "
            f"is incompatible with loss={spec.objective.loss.name!r}. Set warm_start=False and "
            "call fit, or clone the estimator."
        )


def check_start(layers: Layers, log_link: bool, data: TrainingData, spec: FitSpec) -> None:
    """Raise if training cannot continue from the current layers, as in `check_outputs`."""
    check_outputs(layers[-1][0].shape[0], log_link, data, spec)
    hidden = spec.shape.hidden
    before = tuple(w.shape[0] for w, _ in layers[:-1])
    if before != hidden:
        raise ValueError(
            f"The model was fitted with hidden_layer_sizes={before}, but it is now "
            f"{hidden}. To start over, set warm_start=False and call fit."
        )


def can_partial_fit(estimator: Any) -> bool:
    """Whether the estimator supports partial_fit; raises AttributeError saying why not."""
    if estimator.early_stopping:
        raise AttributeError(
            "partial_fit cannot be combined with early_stopping=True: it sees one batch at a "
            "time and has no rows to hold out. Set early_stopping=False, or call fit."
        )
    optimizer = estimator.optimizer
    optimizer = OPTIMIZERS.get(optimizer) if isinstance(optimizer, str) else optimizer
    if isinstance(optimizer, type) and issubclass(optimizer, torch.optim.LBFGS):
        raise AttributeError(
            "partial_fit is not supported with L-BFGS, which needs all rows at once. Choose an "
            "optimizer that learns from batches, such as optimizer='adam'."
        )
    return True
