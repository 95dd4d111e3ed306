"""From validated rows to what is trained on: merged, held out, scaled, condensed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import TypeVar

import numpy as np

from .._data.magnitudes import check_moments
from .._data.moments import Moments, moments
from .._data.rows import DISTINCT_ENTRIES, TrainingData, distinct_rows, group_rows, split_rows
from .._data.scaling import Scaling, identity_scaling
from .._data.statistics import Statistics
from .._runtime.aliases import Array
from .._runtime.processes import Processes, Share, on_all, safely
from .._spec import FitSpec
from .batches import TabularDataset
from .condense import can_condense, condensed, gather_statistics

Dataset = TypeVar("Dataset", bound=TabularDataset)


@dataclass(frozen=True)
class Prepared:
    """Rows of a fit, their scaling, and what is kept to scale later batches alike.

    `stats` is there where a few rows stand for all, and `share` where other processes have rows
    as well, which `stats` stands for then.
    """

    rows: TrainingData
    held_out: TrainingData | None
    stats: Statistics | None
    moments: tuple[Moments, Moments] | None
    scaling: Scaling
    share: Share | None = None
    held_out_share: Share | None = None

    def datasets(self, spec: FitSpec, cls: type[Dataset]) -> tuple[Dataset, Dataset | None]:
        """What is trained and validated on, in the trained space."""

        def dataset(rows: TrainingData, share: Share | None, stats: Statistics | None) -> Dataset:
            if stats is not None:
                return cls(*condensed(stats, self.scaling, spec))
            mean_weight = None if share is None else share.mean_weight
            return cls.for_training(rows, self.scaling, spec, mean_weight)

        training = dataset(self.rows, self.share, self.stats)
        if self.held_out is None:
            return training, None
        stats = None if self.stats is None else statistics_of_all(self.held_out, spec)
        return training, dataset(self.held_out, self.held_out_share, stats)


def statistics_of_all(rows: TrainingData, spec: FitSpec) -> Statistics:
    """Sufficient statistics of the rows, together with those of the other processes."""
    return reduce(Statistics.merge, on_all(spec.processes, lambda: gather_statistics(rows, spec)))


def moments_of_all(rows: TrainingData, spec: FitSpec) -> tuple[Moments, Moments]:
    """Moments of features and targets, together with those of the other processes."""

    def mine() -> tuple[Moments, Moments]:
        both = moments(rows.X, rows.weight), moments(rows.y, rows.weight)
        x, y = (replace(m, exponent=rows.exponent) for m in both)
        return x, y

    x, y = zip(*on_all(spec.processes, mine), strict=True)
    with np.errstate(over="ignore", invalid="ignore"):
        return reduce(Moments.merge, x), reduce(Moments.merge, y)


def _as_given(data: TrainingData) -> TrainingData:
    return data


def _split_and_merge(data: TrainingData, spec: FitSpec) -> tuple[TrainingData, TrainingData | None]:
    """Training and validation rows; rows of a full batch are merged where they are equal."""
    full = spec.batch_size >= data.n_samples and spec.processes is None
    small = full and data.n_samples * data.n_features <= DISTINCT_ENTRIES
    # callbacks see the rows as they were given, and a loss that only gives a mean has no weights
    merge = distinct_rows if small and not spec.callbacks and not spec.loss.reduced else _as_given
    if spec.validation_fraction is None:
        return merge(data), None
    counted = small and not spec.loss.reduced
    rows, held_out = split_rows(data, spec.validation_fraction, spec.seed, counted=counted)
    return merge(rows), merge(held_out)


def dropout_groups(rows: TrainingData, spec: FitSpec) -> Array | None:
    """The group of equal rows that each row is in, where rows would be merged but for callbacks.

    All rows of a group have the same dropout mask, so that these do not depend on who listens.
    """
    listened = spec.dropout and spec.callbacks and not spec.loss.reduced
    full = spec.batch_size >= rows.n_samples and spec.processes is None
    if not listened or not full or rows.n_samples * rows.n_features > DISTINCT_ENTRIES:
        return None
    return group_rows(rows.X, rows.y)[1]


def prepare(
    data: TrainingData, spec: FitSpec, before: tuple[Moments, Moments] | None = None
) -> Prepared:
    """Split, merge and measure the rows; `before` are the moments of earlier batches."""
    if spec.processes is None:
        rows, held_out = _split_and_merge(data, spec)
        shares: tuple[Share | None, Share | None] = None, None
        condenses = can_condense(rows, spec)
    else:
        (rows, held_out), (share, held_out_share) = _split_and_count(data, spec, spec.processes)
        shares = share, held_out_share
        condenses = can_condense(rows, spec, share.n_samples)
    stats = statistics_of_all(rows, spec) if condenses else None
    if not spec.standardize:
        scaling = identity_scaling(rows.n_features, rows.n_targets)
        return Prepared(rows, held_out, stats, None, scaling, *shares)
    x, y = moments_of_all(rows, spec) if stats is None else stats.moments()
    _check_moments(rows, x, y, spec)
    if before is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            x, y = before[0].merge(x), before[1].merge(y)
        _check_moments(rows, x, y, spec)
    return Prepared(rows, held_out, stats, (x, y), spec.scaling(x, y), *shares)


def _check_moments(rows: TrainingData, x: Moments, y: Moments, spec: FitSpec) -> None:
    # which looks at the rows of each process as well
    targets = y if spec.loss.scales_target else None
    safely(spec.processes, lambda: check_moments(rows, x, targets))


def _split_and_count(
    data: TrainingData, spec: FitSpec, processes: Processes
) -> tuple[tuple[TrainingData, TrainingData | None], tuple[Share, Share | None]]:
    """Rows to train and to validate on, and how many of both each process has."""
    kept: list[tuple[TrainingData, TrainingData | None]] = []

    def split() -> list[tuple[int, float]]:
        rows, held_out = _split_and_merge(data, spec)
        kept.append((rows, held_out))
        return [(p.n_samples, float(p.weights.sum())) for p in (rows, held_out) if p is not None]

    shares = [
        Share(processes, tuple(n for n, _ in part), sum(weight for _, weight in part))
        for part in zip(*processes.gather(split), strict=True)
    ]
    return kept[0], (shares[0], shares[1] if len(shares) > 1 else None)
