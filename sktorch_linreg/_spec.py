"""What an engine is told, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ._data.moments import Moments
from ._data.scaling import Scaling, identity_scaling, make_scaling
from ._objective.losses import Loss
from ._runtime.aliases import FloatArray, Layers


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

    def scaling(self, x: Moments, y: Moments) -> Scaling:
        """The scaling of features and targets that have these moments."""
        if not self.standardize:
            return identity_scaling(len(x.mean), len(y.mean))
        return make_scaling(
            x,
            y,
            centred=self.fit_intercept,
            log_link=self.loss.log_link,
            scales_target=self.loss.scales_target,
            # exact solvers divide by their scale, and find coefficients of 0 by themselves
            keeps_constant_targets=self.optimizer_class is None,
        )

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
