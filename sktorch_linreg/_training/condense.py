"""Rows condensed to a few, for a linear model with squared error and full batches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .._data.accumulate import MAX_FACTOR_FEATURES, accumulate
from .._data.conditioning import CONDENSED
from .._data.rows import TrainingData
from .._data.scaling import Scaling
from .._data.statistics import Statistics
from .._runtime.devices import DEVICES
from .._spec import FitSpec, RunContext

# fewest epochs, overall and per column, for which an extra pass over the rows pays off
LEAST_EPOCHS, EPOCHS_PER_COLUMN = 5, 1 / 8
# fewest rows per column for which it pays off
LEAST_ROWS = 4


def can_condense(data: TrainingData, spec: FitSpec, context: RunContext, n_samples: int) -> bool:
    """Whether every epoch minimises the same sum of squares, and condensing the rows pays off.

    `n_samples` is the number of rows over all processes.
    """
    n_features = data.n_features
    return (
        spec.shape.is_linear
        and spec.objective.loss.name == "squared_error"
        and spec.objective.loss.slope is not None
        and spec.training.batch_size >= n_samples
        and spec.training.max_epochs >= max(LEAST_EPOCHS, EPOCHS_PER_COLUMN * n_features)
        and not context.callbacks
        and spec.device.type in DEVICES
        and n_features <= MAX_FACTOR_FEATURES
        and n_samples >= LEAST_ROWS * (n_features + 2)
    )


def accumulate_statistics(data: TrainingData, spec: FitSpec) -> Statistics:
    """Sufficient statistics of the rows, in one pass."""
    return accumulate(
        data,
        intercept=spec.shape.fit_intercept,
        device=spec.device,
        required=CONDENSED,
    ).stats


def condensed(
    stats: Statistics, scaling: Scaling, spec: FitSpec
) -> tuple[Tensor, Tensor, None, Tensor]:
    """Rows equivalent to those of the statistics, as arguments of `TabularDataset`.

    They have the same mean squared error for any parameters of the model. They are the triangular
    factor of the centred rows, one row for the residual of the targets, and one for the means, the
    only row with a nonzero entry in the intercept column.
    """
    d = stats.n_features
    shift, factor = spec.objective.loss.target_units(scaling)
    n_rows = len(stats.factor) + 2
    rows = np.zeros((n_rows, stats.factor.shape[1] + 1))
    rows[:-2, :-1] = stats.factor
    rows[-2, d:-1] = np.sqrt(stats.residual_ss)
    if stats.intercept:
        # subtract first, since the offset would be rounded away in a large mean
        rows[-1, :d] = (stats.shift[:d] - scaling.x_offset) + stats.offset[:d]
        rows[-1, d:-1] = (stats.shift[d:] - shift) + stats.offset[d:]
        rows[-1, -1] = 1.0
        rows[-1] *= np.sqrt(stats.weight)
    rows[:, :d] *= scaling.x_factor
    rows[:, d:-1] *= factor
    rows *= np.sqrt(n_rows / stats.weight)
    moved = torch.from_numpy(rows).to(device=spec.device, dtype=spec.dtype)
    X, y, ones = moved[:, :d], moved[:, d:-1], moved[:, -1]
    return X.contiguous(), y.contiguous(), None, ones.contiguous()
