"""Plain containers handed from one layer to the next, and the package's exceptions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._runtime.aliases import Array, FloatArray, Layers


def reciprocal(scale: FloatArray) -> FloatArray:
    """1 / scale, and 0 where the scale is 0: what a column of nothing is multiplied by."""
    factor = np.zeros_like(scale)
    np.divide(1.0, scale, out=factor, where=scale > 0)
    return factor


@dataclass(frozen=True)
class TrainingData:
    """Validated rows: `X` dense or CSR, `y` of shape (n_samples, n_targets), no zero weights.

    The weights given are `weight` times two to the power of `exponent`, which is even. `verify`
    raises if X or y are not finite; it is None where that was looked at already.
    """

    X: Any
    y: Array
    weight: FloatArray | None
    verify: Callable[[], object] | None = None
    exponent: int = 0

    @property
    def n_samples(self) -> int:
        return int(self.X.shape[0])

    @property
    def n_features(self) -> int:
        return int(self.X.shape[1])

    @property
    def n_targets(self) -> int:
        return int(self.y.shape[1])

    @property
    def weights(self) -> FloatArray:
        """The weights, ones where none were given."""
        return np.ones(self.n_samples) if self.weight is None else self.weight

    def rows(self, index: Any) -> TrainingData:
        """The rows that `index` (a slice or an integer array) names."""
        weight = None if self.weight is None else self.weight[index]
        return TrainingData(self.X[index], self.y[index], weight, exponent=self.exponent)


@dataclass(frozen=True)
class Moments:
    """Weighted count, mean and sum of squared deviations of each column; batches merge exactly.

    Weights, and so the count and the squares, are in units of two to the power of `exponent`.
    """

    weight: float
    mean: FloatArray
    deviation: FloatArray
    exponent: int = 0

    def in_units_of(self, exponent: int) -> Moments:
        """The same with weights in other units."""
        by = self.exponent - exponent
        if by == 0:
            return self
        deviation = np.ldexp(self.deviation, by)
        return Moments(math.ldexp(self.weight, by), self.mean, deviation, exponent)

    def merge(self, other: Moments) -> Moments:
        """Moments of both batches together (Chan, Golub and LeVeque, 1983)."""
        exponent = max(self.exponent, other.exponent)
        a, b = self.in_units_of(exponent), other.in_units_of(exponent)
        total = a.weight + b.weight
        delta = b.mean - a.mean
        mean = a.mean + delta * (b.weight / total)
        between = delta**2 * (a.weight * b.weight / total)
        return Moments(total, mean, a.deviation + b.deviation + between, exponent)


@dataclass(frozen=True)
class Scaling:
    """The linear maps between the user's units and the space that is trained in.

    A constant column has `x_scale` 0: nothing is learned from it and its coefficient is 0. So has a
    constant target `y_scale` 0: its predictions are that constant. Targets are shifted and scaled
    as `Loss.target_units` says.
    """

    x_offset: FloatArray
    x_scale: FloatArray
    y_offset: FloatArray
    y_scale: FloatArray

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Scaling:
        """The scaling that `vars` gave; version 0.1 kept the link there, which is the loss's."""
        return cls(**{name: value for name, value in state.items() if name != "log_link"})

    @property
    def fits_single(self) -> bool:
        """Whether float32 holds all of it with room to compute in."""
        sizes = np.abs(np.concatenate([self.x_offset, self.x_factor, self.y_offset, self.y_scale]))
        return bool(sizes.max(initial=0.0) < 1e30)

    @property
    def x_factor(self) -> FloatArray:
        """What a centred column is multiplied by: 1 / `x_scale`, and 0 for a constant column."""
        return reciprocal(self.x_scale)


@dataclass(frozen=True)
class Loss:
    """A loss with its options filled in.

    `pointwise(prediction, target)` gives one value per row and target; a user's own module that
    only gives their mean has `reduced` set, and can then take no sample weights. A loss with kinks
    has `smoothed(width)`, its Moreau envelope, which L-BFGS follows down to a small width, and
    `branches`, its slopes on both sides with respect to target less prediction.
    `slope(prediction, target, out)` writes the derivative with respect to the prediction, divided
    by `slope_factor`; where there is none, autograd has to find it. With `log_link` the loss sees
    the logarithm of what is predicted.
    """

    name: str
    pointwise: Callable[[Tensor, Tensor], Tensor]
    scales_target: bool = True
    log_link: bool = False
    smoothed: Callable[[float], Callable[[Tensor, Tensor], Tensor]] | None = None
    branches: tuple[float, float] | None = None
    minimum_target: float | None = None
    reduced: bool = False
    # whether it is a module of the user's own
    own: bool = False
    slope: Callable[[Tensor, Tensor, Tensor], None] | None = None
    slope_factor: float = 1.0

    def target_units(self, scaling: Scaling) -> tuple[FloatArray, FloatArray]:
        """What is subtracted from targets in training, and what they are multiplied by then.

        Under a log link an offset of the output multiplies predictions by its exponential.
        """
        if self.log_link:
            return np.zeros_like(scaling.y_offset), np.exp(-scaling.y_offset)
        return scaling.y_offset, reciprocal(scaling.y_scale)

    def mean(self, prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """Mean over the rows; `weight` is relative to its mean over the whole training set."""
        values = self.pointwise(prediction, target)
        if self.reduced or weight is None:
            return values.mean()
        return (values.reshape(len(values), -1).mean(1) * weight).mean()


@dataclass(frozen=True)
class FitSpec:
    """Everything an engine needs to know besides the data; names are already resolved."""

    loss: Loss
    alpha: float
    l1_ratio: float
    standardize: bool
    tol: float | None
    dtype: torch.dtype
    device: torch.device
    optimizer: str
    optimizer_class: type[torch.optim.Optimizer] | None = None
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    schedule_class: type[Any] | None = None
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    positive: bool = False
    fit_intercept: bool = True
    hidden: tuple[int, ...] = ()
    activation: str = "identity"
    dropout: float = 0.0
    max_epochs: int = 1
    batch_size: int = 1
    shuffle: bool = True
    n_iter_no_change: float = 10
    validation_fraction: float | None = None
    seed: int = 0
    # whether training begins at weights of 0, so that its answer does not depend on chance
    starts_at_zero: bool = False
    incremental: bool = False
    record_path: bool = False
    callbacks: Sequence[Any] | None = None
    verbose: int = 0
    # where the state of training is written to every few epochs
    checkpoint: Any = None
    # the processes that share the fit, each with rows of its own
    processes: Any = None

    @property
    def is_lbfgs(self) -> bool:
        """Whether the optimizer is L-BFGS, by name or by class."""
        cls = self.optimizer_class
        return cls is not None and issubclass(cls, torch.optim.LBFGS)

    @property
    def l1(self) -> float:
        """Weight of |W|_1 in the objective."""
        return self.alpha * self.l1_ratio

    @property
    def l2(self) -> float:
        """Weight of |W|_2^2 / 2 in the objective."""
        return self.alpha * (1.0 - self.l1_ratio)

    def damping(self, weight: float, n_targets: int) -> float:
        """What the L2 term adds to the squared residuals per squared coefficient of one target."""
        return 0.5 * self.l2 * weight * n_targets


@dataclass
class Start:
    """Where training begins when not from fresh weights: layers, the units they are in, and more.

    `x_scale` are the scales of the columns that they were trained on, where these are known.
    """

    layers: Layers
    scaling: Scaling
    x_scale: FloatArray | None = None
    moments: tuple[Moments, Moments] | None = None
    state: Mapping[str, Any] | None = None


@dataclass
class FitResult:
    """What an engine returns: layers in the user's units, and how training went."""

    layers: Layers
    loss: float
    loss_curve: list[float]
    validation_loss_curve: list[float]
    best_loss: float
    n_iter: int
    optimizer: str
    scaling: Scaling | None = None
    trained: Layers = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    path: list[Layers] = field(default_factory=list)
    net: Any = None
    moments: tuple[Moments, Moments] | None = None
    state: Mapping[str, Any] | None = None
    rank: int | None = None
    path_taken: str | None = None
    warnings: list[tuple[str, type[Warning]]] = field(default_factory=list)
