"""From validated rows to what is trained on: merged, held out, scaled, condensed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ._batches import TabularDataset
from ._condense import can_condense, condensed, gather_statistics
from ._data import (
    DISTINCT_ENTRIES,
    distinct_rows,
    identity_scaling,
    make_scaling,
    split_rows,
)
from ._extreme import check_moments
from ._standardize import moments
from ._statistics import Statistics
from ._types import FitSpec, Moments, Scaling, TrainingData

Dataset = TypeVar("Dataset", bound=TabularDataset)


@dataclass(frozen=True)
class Prepared:
    """Rows of a fit, their scaling, and what is kept to scale later batches alike.

    `stats` is there where a few rows stand for all.
    """

    rows: TrainingData
    held_out: TrainingData | None
    stats: Statistics | None
    moments: tuple[Moments, Moments] | None
    scaling: Scaling

    def datasets(self, spec: FitSpec, cls: type[Dataset]) -> tuple[Dataset, Dataset | None]:
        """What is trained and validated on, in the trained space."""
        if self.stats is None:
            training = cls.for_training(self.rows, self.scaling, spec)
            if self.held_out is None:
                return training, None
            return training, cls.for_training(self.held_out, self.scaling, spec)
        training = cls(*condensed(self.stats, self.scaling, spec))
        if self.held_out is None:
            return training, None
        held_out = gather_statistics(self.held_out, spec)
        return training, cls(*condensed(held_out, self.scaling, spec))


def _as_given(data: TrainingData) -> TrainingData:
    return data


def _split_and_merge(data: TrainingData, spec: FitSpec) -> tuple[TrainingData, TrainingData | None]:
    """Training and validation rows; rows of a full batch are merged where they are equal."""
    full = spec.batch_size >= data.n_samples
    small = full and data.n_samples * data.n_features <= DISTINCT_ENTRIES
    # callbacks see the rows as they were given, and a loss that only gives a mean has no weights
    merge = distinct_rows if small and not spec.callbacks and not spec.loss.reduced else _as_given
    if spec.validation_fraction is None:
        return merge(data), None
    counted = small and not spec.loss.reduced
    rows, held_out = split_rows(data, spec.validation_fraction, spec.seed, counted=counted)
    return merge(rows), merge(held_out)


def prepare(
    data: TrainingData, spec: FitSpec, before: tuple[Moments, Moments] | None = None
) -> Prepared:
    """Split, merge and measure the rows; `before` are the moments of earlier batches."""
    rows, held_out = _split_and_merge(data, spec)
    stats = gather_statistics(rows, spec) if can_condense(rows, spec) else None
    if not spec.standardize:
        scaling = identity_scaling(rows.n_features, rows.n_targets)
        return Prepared(rows, held_out, stats, None, scaling)
    if stats is not None:
        x, y = stats.moments()
    else:
        x, y = moments(rows.X, rows.weight), moments(rows.y, rows.weight)
    check_moments(rows, x, y if spec.loss.scales_target else None)
    if before is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            x, y = before[0].merge(x), before[1].merge(y)
        check_moments(rows, x, y if spec.loss.scales_target else None)
    return Prepared(rows, held_out, stats, (x, y), make_scaling(x, y, spec))
