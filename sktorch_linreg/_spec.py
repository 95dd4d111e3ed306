"""Inputs and results of the engines that fit models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from ._data.moments import Moments
from ._data.scaling import Scaling, column_scale, identity_scaling, to_user_units
from ._data.statistics import Statistics
from ._modules.user_module import Behaviour, ModuleRecipe
from ._objective.losses import Loss
from ._objective.penalty import Penalty
from ._runtime.aliases import Array, FloatArray, Layers
from ._runtime.processes import ONE_PROCESS, ProcessGroup


@dataclass(frozen=True)
class Objective:
    """What is minimised: a loss, the elastic-net penalty, and whether weights may be negative."""

    loss: Loss
    alpha: float = 0.0
    l1_ratio: float = 0.0
    positive: bool = False

    @property
    def l1(self) -> float:
        """Weight of |W|_1 in the objective."""
        return self.alpha * self.l1_ratio

    @property
    def l2(self) -> float:
        """Weight of |W|_2^2 / 2 in the objective."""
        return self.alpha * (1.0 - self.l1_ratio)

    @property
    def penalty(self) -> Penalty:
        """The penalty and the constraint, without the loss."""
        return Penalty(self.l1, self.l2, self.positive)

    def damping(self, weight: float, n_targets: int) -> float:
        """What the L2 term adds to the residual sum of squares per squared coefficient."""
        return 0.5 * self.l2 * weight * n_targets


@dataclass(frozen=True)
class ModelShape:
    """The layers between features and targets, or a module of the user's."""

    hidden: tuple[int, ...] = ()
    activation: str = "identity"
    dropout: float = 0.0
    fit_intercept: bool = True
    module: ModuleRecipe | None = None

    @property
    def is_linear(self) -> bool:
        """Whether the model is linear in the features."""
        return not self.hidden and self.module is None


@dataclass(frozen=True)
class TrainingOptions:
    """How parameters are updated, and for how long; `optimizer_class` is None for exact solvers."""

    optimizer: str = ""
    optimizer_class: type[torch.optim.Optimizer] | None = None
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    schedule_class: type[Any] | None = None
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    max_epochs: int = 1
    batch_size: int = 1
    shuffle: bool = True
    n_iter_no_change: float = 10
    validation_fraction: float | None = None
    seed: int = 0
    # whether training starts from zero weights, so that its result does not depend on the seed
    starts_at_zero: bool = False
    record_path: bool = False

    @property
    def is_lbfgs(self) -> bool:
        """Whether the optimizer is L-BFGS, by name or by class."""
        cls = self.optimizer_class
        return cls is not None and issubclass(cls, torch.optim.LBFGS)


@dataclass(frozen=True)
class FitSpec:
    """Everything an engine needs to know besides the data; names are already resolved.

    `tol` is the smallest improvement of the loss that counts in training, and the relative
    singular-value cut-off of exact solvers. `behaviour` is what a module of the user's is seen to
    do once it is made.
    """

    objective: Objective
    shape: ModelShape
    training: TrainingOptions
    # False, True, "features" or "target"
    standardize: bool | str
    tol: float | None
    dtype: torch.dtype
    device: torch.device
    behaviour: Behaviour = field(default_factory=Behaviour)

    @property
    def is_exact(self) -> bool:
        """Whether an exact solver is used."""
        return self.training.optimizer_class is None

    def scaling(self, x: Moments, y: Moments) -> Scaling:
        """The scaling of features and targets with these moments."""
        identity = identity_scaling(len(x.mean), len(y.mean))
        if not self.standardize:
            return identity
        centred = self.shape.fit_intercept
        # without an intercept nothing may be shifted
        x_offset = x.mean if centred else np.zeros_like(x.mean)
        y_offset, y_scale = self.objective.loss.output_units(
            y,
            centred=centred,
            # exact solvers divide by the scale, and find zero coefficients by themselves
            keeps_constant_targets=self.is_exact,
        )
        x_scale = column_scale(x, centred)
        if self.standardize == "target":
            x_offset, x_scale = identity.x_offset, identity.x_scale
        if self.standardize == "features":
            y_offset, y_scale = identity.y_offset, identity.y_scale
        return Scaling(x_offset, x_scale, y_offset, y_scale)

    def with_training(self, **changes: Any) -> FitSpec:
        """A copy with some of the training options changed."""
        return replace(self, training=replace(self.training, **changes))


class EpochListener(Protocol):
    """Notified of each epoch, with the result that the fit would have if it ended there."""

    def begin_epoch(self, so_far: Callable[[], FitResult], /) -> None:
        """Called when an epoch begins."""

    def end_epoch(self, so_far: Callable[[], FitResult], /) -> bool:
        """Called when an epoch has ended; returns whether to stop training."""


@dataclass(frozen=True)
class RunContext:
    """What one call of `fit` or `partial_fit` adds to the spec.

    `group` is the group of processes that share the fit, each with its own rows; `callbacks` are
    skorch callbacks; `listener` is notified of epochs; and the training state is written to
    `checkpoint` every few epochs.
    """

    group: ProcessGroup = ONE_PROCESS
    incremental: bool = False
    callbacks: Sequence[Any] | None = None
    verbose: int = 0
    listener: EpochListener | None = None
    checkpoint: Any = None


@dataclass
class Start:
    """Where training starts if not from fresh weights: parameters, their scaling, and more.

    A network has `layers`; a module of the user's has `module_state`, and `seed` is the one that it
    was constructed under. `x_scale` are the scales of the columns that the layers were trained on,
    if known.
    """

    scaling: Scaling
    layers: Layers = field(default_factory=list)
    module_state: Mapping[str, Array] = field(default_factory=dict)
    loss_state: Mapping[str, Array] = field(default_factory=dict)
    seed: int = 0
    x_scale: FloatArray | None = None
    moments: tuple[Moments, Moments] | None = None
    state: Mapping[str, Any] | None = None


@dataclass
class FitResult:
    """What an engine returns: layers in the user's units, losses, and training records.

    For a module of the user's there are no layers but its parameters and buffers, `module_state`,
    and the `seed` that it was constructed under. `loss_state` are those of a loss of the user's.
    """

    layers: Layers
    loss: float
    loss_curve: list[float]
    validation_loss_curve: list[float]
    best_loss: float
    n_iter: int
    optimizer: str
    scaling: Scaling | None = None
    trained: Layers = field(default_factory=list)
    behaviour: Behaviour = field(default_factory=Behaviour)
    module_state: Mapping[str, Array] = field(default_factory=dict)
    loss_state: Mapping[str, Array] = field(default_factory=dict)
    seed: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    path: list[Layers] = field(default_factory=list)
    net: Any = None
    moments: tuple[Moments, Moments] | None = None
    state: Mapping[str, Any] | None = None
    statistics: Statistics | None = None
    rank: int | None = None
    path_taken: str | None = None
    warnings: list[tuple[str, type[Warning]]] = field(default_factory=list)

    @classmethod
    def of_training(
        cls,
        spec: FitSpec,
        *,
        scaling: Scaling,
        curves: tuple[list[float], list[float]],
        trained: Layers | None = None,
        **others: Any,
    ) -> FitResult:
        """The result of training: layers in the trained units, loss curves, and other fields."""
        trained = trained or []
        loss_curve, validation_loss_curve = curves
        return cls(
            to_user_units(trained, scaling) if trained else [],
            loss_curve[-1] if loss_curve else math.nan,
            loss_curve,
            validation_loss_curve,
            n_iter=len(loss_curve),
            optimizer=spec.training.optimizer,
            scaling=scaling,
            trained=trained,
            behaviour=spec.behaviour,
            **others,
        )
