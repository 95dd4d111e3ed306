"""Preparation of validated rows for training: merged, held out, scaled, condensed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import TypeVar

import numpy as np

from .._data.magnitudes import check_moments
from .._data.moments import Moments, moments
from .._data.overflow import check_validation_range
from .._data.rows import TrainingData, distinct_rows, group_rows, split_rows
from .._data.scaling import Scaling, identity_scaling
from .._data.statistics import Statistics
from .._runtime.aliases import Array
from .._runtime.processes import ProcessGroup
from .._spec import FitSpec, RunContext, Start
from .batches import Share, TabularDataset
from .condense import accumulate_statistics, can_condense, condensed

# with more entries than this, sorting the rows costs more than it saves
DISTINCT_ENTRIES = 2_000_000


Dataset = TypeVar("Dataset", bound=TabularDataset)


@dataclass(frozen=True)
class Prepared:
    """Rows of a fit, their scaling, and the moments that later batches update.

    `stats` is set if the rows of all processes are condensed; `share` says how the rows are spread
    over the processes.
    """

    rows: TrainingData
    held_out: TrainingData | None
    stats: Statistics | None
    moments: tuple[Moments, Moments] | None
    scaling: Scaling
    share: Share
    held_out_share: Share | None

    @property
    def held_out_scaling(self) -> Scaling:
        """As `scaling`; targets that are constant in training keep their unit."""
        y_scale = self.scaling.y_scale
        return replace(self.scaling, y_scale=np.where(y_scale == 0, 1.0, y_scale))

    def datasets(
        self, spec: FitSpec, context: RunContext, cls: type[Dataset]
    ) -> tuple[Dataset, Dataset | None]:
        """The training and validation data sets, in training units."""

        def dataset(
            rows: TrainingData, share: Share, stats: Statistics | None, scaling: Scaling
        ) -> Dataset:
            if stats is not None:
                return cls(*condensed(stats, scaling, spec))
            return cls.for_training(rows, scaling, spec, share.mean_weight)

        training = dataset(self.rows, self.share, self.stats, self.scaling)
        if self.held_out is None or self.held_out_share is None:
            return training, None
        stats = None if self.stats is None else statistics_of_all(self.held_out, spec, context)
        return training, dataset(self.held_out, self.held_out_share, stats, self.held_out_scaling)


def statistics_of_all(rows: TrainingData, spec: FitSpec, context: RunContext) -> Statistics:
    """Sufficient statistics of the rows of all processes."""
    return reduce(Statistics.merge, context.group.gather(lambda: accumulate_statistics(rows, spec)))


def moments_of_rows(rows: TrainingData) -> tuple[Moments, Moments]:
    """Moments of features and targets."""
    both = moments(rows.X, rows.weight), moments(rows.y, rows.weight)
    x, y = (replace(m, exponent=rows.exponent) for m in both)
    return x, y


def moments_of_all(rows: TrainingData, group: ProcessGroup) -> tuple[Moments, Moments]:
    """Moments of features and targets over the rows of all processes."""
    x, y = zip(*group.gather(lambda: moments_of_rows(rows)), strict=True)
    with np.errstate(over="ignore", invalid="ignore"):
        return reduce(Moments.merge, x), reduce(Moments.merge, y)


def _as_given(data: TrainingData) -> TrainingData:
    return data


def _is_full_batch(data: TrainingData, spec: FitSpec, context: RunContext) -> bool:
    """Whether each batch holds all rows."""
    return spec.training.batch_size >= data.n_samples and context.group.size == 1


def _split_and_merge(
    data: TrainingData, spec: FitSpec, context: RunContext
) -> tuple[TrainingData, TrainingData | None]:
    """Training and validation rows; duplicate rows of a full batch are merged."""
    few = data.n_samples * data.n_features <= DISTINCT_ENTRIES
    small = few and _is_full_batch(data, spec, context)
    fraction = spec.training.validation_fraction
    # merged rows have weights, which other losses and modules cannot use
    counted = small and not (spec.objective.loss.sees_batches or spec.behaviour.mixes_rows)
    # callbacks see the original rows
    merge = distinct_rows if counted and not context.callbacks else _as_given
    if data.held_out is not None:
        return merge(data), merge(data.held_out)
    if fraction is None:
        return merge(data), None
    rows, held_out = split_rows(data, fraction, spec.training.seed, counted=counted)
    return merge(rows), merge(held_out)


def dropout_groups(rows: TrainingData, spec: FitSpec, context: RunContext) -> Array | None:
    """Group index of each row among equal rows, if they would be merged but for callbacks.

    All rows of a group share a dropout mask, so that results do not depend on callbacks.
    """
    listened = spec.shape.dropout and context.callbacks and not spec.objective.loss.sees_batches
    few = rows.n_samples * rows.n_features <= DISTINCT_ENTRIES
    if not (listened and few and _is_full_batch(rows, spec, context)):
        return None
    return group_rows(rows.X, rows.y)[1]


def prepare(
    data: TrainingData,
    spec: FitSpec,
    context: RunContext,
    start: Start | None = None,
) -> Prepared:
    """Split and merge the rows, and compute their scaling, which continues that of `start`."""
    (rows, held_out), shares = _split_and_count(data, spec, context)
    condenses = can_condense(rows, spec, context, shares[0].n_samples)
    stats = statistics_of_all(rows, spec, context) if condenses else None
    scaling, kept = identity_scaling(rows.n_features, rows.n_targets), None
    if spec.standardize:
        x, y = moments_of_all(rows, context.group) if stats is None else stats.moments()
        _check_moments(rows, x, y, spec, context)
        if start is not None and start.moments is not None:
            before = start.moments
            with np.errstate(over="ignore", invalid="ignore"):
                x, y = before[0].merge(x), before[1].merge(y)
            _check_moments(rows, x, y, spec, context)
        scaling, kept = spec.scaling(x, y), (x, y)
        if start is not None and start.module_state:
            # layers of a module of the user's cannot be rewritten
            scaling = start.scaling.extended_by(scaling)
    prepared = Prepared(rows, held_out, stats, kept, scaling, *shares)
    if (given := data.held_out) is not None:
        units = prepared.held_out_scaling
        x_units = units.x_offset, units.x_factor
        y_units = spec.objective.loss.target_units(units)
        context.group.run(lambda: check_validation_range(given, x_units, y_units, spec.dtype))
    return prepared


def _check_moments(
    rows: TrainingData, x: Moments, y: Moments, spec: FitSpec, context: RunContext
) -> None:
    # also checks the rows of each process
    scales_target = spec.objective.loss.scales_target and spec.standardize != "features"
    targets = y if scales_target else None
    if spec.standardize == "target":
        # nothing is computed from the squares of the features
        x = replace(x, deviation=np.ones_like(x.deviation))
    context.group.run(lambda: check_moments(rows, x, targets))


def _split_and_count(
    data: TrainingData, spec: FitSpec, context: RunContext
) -> tuple[tuple[TrainingData, TrainingData | None], tuple[Share, Share | None]]:
    """Training and validation rows, and the number of both in each process."""
    group = context.group
    rows, held_out = group.run(lambda: _split_and_merge(data, spec, context))
    parts = [part for part in (rows, held_out) if part is not None]
    counts = group.gather(lambda: [(part.n_samples, part.total_weight) for part in parts])
    shares = [
        Share(group, tuple(n for n, _ in part), sum(weight for _, weight in part))
        for part in zip(*counts, strict=True)
    ]
    return (rows, held_out), (shares[0], shares[1] if len(shares) > 1 else None)
