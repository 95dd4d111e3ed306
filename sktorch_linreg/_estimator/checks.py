"""Whether rows fit the loss and the model gone on with, and an estimator learns from batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._data.rows import TrainingData
from .._optim.optimizers import OPTIMIZERS
from .._runtime.aliases import Layers
from .._spec import FitSpec


def check_targets(data: TrainingData, spec: FitSpec) -> None:
    """Raise where the loss, or the precision of predictions, cannot take these targets."""
    if data.X.dtype == np.float32 and data.y.dtype == np.float64:
        # of each target
        sizes = np.maximum(data.y.max(axis=0), -data.y.min(axis=0))
        single = np.finfo(np.float32)
        large = sizes[(sizes > single.max) & (sizes < np.inf)]
        small = sizes[(sizes > 0) & (sizes < single.tiny)]
        if large.size or small.size:
            beyond = large if large.size else small
            raise ValueError(
                f"Targets of up to {beyond[0]:.3g} are beyond what a float32 holds "
                f"({single.tiny:.3g} to {single.max:.3g}), and predictions are float32 because X "
                "is. Pass X in float64, or multiply y by a power of ten."
            )
    minimum = spec.loss.minimum_target
    if minimum is not None and float(data.y.min()) < minimum:
        raise ValueError(
            f"loss={spec.loss.name!r} needs targets of at least {minimum:g}; the smallest is "
            f"{float(data.y.min()):g}. Choose another loss, such as 'squared_error'."
        )
    if spec.loss.reduced and data.weight is not None:
        raise ValueError(
            f"The loss {spec.loss.name} gives one mean and cannot weigh rows. Leave "
            "sample_weight out, or give the class a 'reduction' parameter that takes 'none'."
        )


def check_penalty(spec: FitSpec) -> None:
    """Raise where the precision of the computation does not hold the penalty."""
    largest = torch.finfo(spec.dtype).max
    if spec.alpha > largest and spec.optimizer_class is not None:
        raise ValueError(
            f"alpha={spec.alpha:g} is more than a {str(spec.dtype).removeprefix('torch.')} holds, "
            f"which is {largest:.3g}. Choose a smaller alpha, or dtype='float64'."
        )


def check_start(
    layers: Layers, hidden: tuple[int, ...], log_link: bool, data: TrainingData, spec: FitSpec
) -> None:
    """Raise where training cannot go on with the layers that are there.

    `hidden` are the sizes of hidden layers that are asked for now, `log_link` whether the layers
    were fitted with one.
    """
    n_out = layers[-1][0].shape[0]
    before = tuple(w.shape[0] for w, _ in layers[:-1])
    if n_out != data.n_targets:
        raise ValueError(
            f"The model was fitted to {n_out} target(s), but y has {data.n_targets}. To start "
            "afresh, set warm_start=False and call fit, or clone the estimator."
        )
    if before != hidden:
        raise ValueError(
            f"The model was fitted with hidden_layer_sizes={before}, which is now "
            f"{hidden}. To start afresh, set warm_start=False and call fit."
        )
    if log_link != spec.loss.log_link:
        raise ValueError(
            f"The model was fitted with {'a' if log_link else 'no'} log link, which "
            f"loss={spec.loss.name!r} does not go on from. Set warm_start=False and call fit, "
            "or clone the estimator."
        )


def can_partial_fit(estimator: Any) -> bool:
    """Whether the estimator learns from single batches; raises AttributeError saying why not."""
    if estimator.early_stopping:
        raise AttributeError(
            "partial_fit does not go with early_stopping=True: it sees one batch at a time and has "
            "no rows to hold out. Set early_stopping=False, or call fit."
        )
    optimizer = estimator.optimizer
    optimizer = OPTIMIZERS.get(optimizer) if isinstance(optimizer, str) else optimizer
    if isinstance(optimizer, type) and issubclass(optimizer, torch.optim.LBFGS):
        raise AttributeError(
            "partial_fit does not go with L-BFGS, which needs all rows at once. Choose an "
            "optimizer that learns from batches, such as optimizer='adam'."
        )
    return True
