"""What models that are trained together have of their own: options, schedules, stops, penalties.

Arrays of numbers per model have the shape (n_groups, n_each) of `LaneParameters`.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import lr_scheduler

from .._objective.penalty import Penalty
from .._optim.construct import construct, defaults_of
from .._optim.schedules import step_plateau
from .._runtime.aliases import Array, FloatArray, Mask
from .._runtime.identity import key_of
from .._spec import FitSpec
from .stacked_batches import PackedBatch
from .stacked_gradients import LaneParameters
from .stopping import ROUNDING

# what is to be fitted: groups of lanes
Specs = Sequence[Sequence[FitSpec]]


class LaneOptions:
    """Options of an optimizer: one value for all lanes, or a number per lane."""

    def __init__(self, specs: Specs) -> None:
        cls: Any = specs[0][0].training.optimizer_class
        # what a model does not name is the default of the class
        defaults = defaults_of(cls)
        every = [[{**defaults, **spec.training.optimizer_options} for spec in row] for row in specs]
        known = every[0][0]
        self.same: dict[str, Any] = {}
        self.varied: dict[str, FloatArray] = {}
        for name, value in known.items():
            if isinstance(value, tuple | list):
                for i in range(len(value)):
                    self._add(f"{name}.{i}", [[float(o[name][i]) for o in row] for row in every])
            elif isinstance(value, bool) or value is None or isinstance(value, str):
                self.same[name] = value
            else:
                self._add(name, [[float(o[name]) for o in row] for row in every])

    def _add(self, name: str, values: Any) -> None:
        table = np.array(values)
        if (table == table[0, 0]).all():
            self.same[name] = float(table[0, 0])
        else:
            self.varied[name] = table

    def group(self, device: Any) -> dict[str, Any]:
        """As `RuleUpdates` takes them."""
        varied, same = dict(self.varied), dict(self.same)
        if "momentum" in varied and "dampening" in {**same, **varied}:
            # without momentum, which schedules may change, there is nothing to dampen
            dampening = varied.get("dampening", same.pop("dampening", 0.0))
            varied["dampening"] = np.where(varied["momentum"] == 0, 0.0, dampening)
        tensors = {k: torch.from_numpy(v.copy()).to(device) for k, v in varied.items()}
        flat = {**same, **tensors}
        out = {k: v for k, v in flat.items() if "." not in k}
        for name in {k.split(".")[0] for k in flat if "." in k}:
            out[name] = flat[f"{name}.0"], flat[f"{name}.1"]
        return out

    def select(self, group: Array, place: Array) -> None:
        """Keep some lanes."""
        self.varied = {k: v[group, place] for k, v in self.varied.items()}


class LaneSchedules:
    """Schedules of torch, stepped once per epoch, and what they do to the options of lanes."""

    # what they change
    NAMES = ("lr", "momentum", "betas")

    def __init__(self, specs: Specs) -> None:
        cls: Any = specs[0][0].training.schedule_class
        self.by_loss = issubclass(cls, lr_scheduler.ReduceLROnPlateau)
        # a plateau is that of a lane, anything else is the same wherever options are
        self.which = np.zeros((len(specs), len(specs[0])), dtype=np.intp)
        self.optimizers: list[Any] = []
        self.schedules: list[Any] = []
        known: dict[Any, int] = {}
        for g, row in enumerate(specs):
            for c, spec in enumerate(row):
                key = (g, c) if self.by_loss else _schedule_key(spec)
                if key not in known:
                    known[key] = len(self.schedules)
                    self._make(spec)
                self.which[g, c] = known[key]

    def _make(self, spec: FitSpec) -> None:
        cls: Any = spec.training.optimizer_class
        cls_of_schedule: Any = spec.training.schedule_class
        optimizer = construct("optimizer", cls, [torch.zeros(1)], spec.training.optimizer_options)
        optimizer._opt_called = True
        self.optimizers.append(optimizer)
        self.schedules.append(
            # a function may keep a state, which is that of one fit
            construct(
                "lr_schedule",
                cls_of_schedule,
                optimizer,
                copy.deepcopy(spec.training.schedule_options),
            )
        )

    def apply(self, options: LaneOptions) -> None:
        """Put what the schedules say now in the place of the options."""
        for name in self.NAMES:
            groups = [optimizer.param_groups[0] for optimizer in self.optimizers]
            if name not in groups[0]:
                continue
            value = groups[0][name]
            parts = [(name, [g[name] for g in groups])]
            if isinstance(value, tuple | list):
                parts = [(f"{name}.{i}", [g[name][i] for g in groups]) for i in range(len(value))]
            for part, values in parts:
                options.same.pop(part, None)
                options.varied.pop(part, None)
                options._add(part, np.array(values, dtype=np.float64)[self.which])

    def step(self) -> None:
        """After an epoch, where its losses do not matter."""
        for schedule in self.schedules:
            schedule.step()

    def step_plateaus(self, monitored: FloatArray, active: Mask) -> tuple[Mask, Mask]:
        """After an epoch with these losses; which rates were lowered, and which are about to be."""
        lowered, pending = np.zeros_like(active), np.zeros_like(active)
        for g, c in zip(*np.nonzero(active), strict=True):
            schedule = self.schedules[self.which[g, c]]
            lowered[g, c], pending[g, c] = step_plateau(schedule, float(monitored[g, c]))
        return lowered, pending


def _schedule_key(spec: FitSpec) -> Hashable:
    apart = "its schedule is kept apart from the others"
    return (
        key_of(spec.training.optimizer_options, "optimizer__*", apart),
        key_of(spec.training.schedule_options, "lr_schedule__*", apart),
    )


class LaneMonitor:
    """Plateau stops and best losses of the lanes, as `Monitor` does for one."""

    def __init__(self, specs: Specs, validates: bool) -> None:
        shape = len(specs), len(specs[0])
        self.validates = validates
        tols = [[np.nan if s.tol is None else s.tol for s in row] for row in specs]
        self.tol = np.array(tols, dtype=np.float64)
        self.patience = np.array([[s.training.n_iter_no_change for s in row] for row in specs])
        self.rounding = ROUNDING * torch.finfo(specs[0][0].dtype).eps
        self.best, self.reference = np.full(shape, np.inf), np.full(shape, np.inf)
        self.no_improvement = np.zeros(shape, dtype=np.int64)
        self.active = np.ones(shape, dtype=bool)

    def update(self, monitored: FloatArray) -> tuple[Mask, Mask]:
        """Take in an epoch; which lanes are better than ever, and which stop."""
        first = np.isinf(self.reference)
        reference, best = (np.where(first, 0.0, a) for a in (self.reference, self.best))
        improved = first | (monitored < reference - self.rounding * np.abs(reference))
        self.reference = np.where(improved, monitored, self.reference)
        asked = ~np.isnan(self.tol)
        least = np.fmax(np.where(asked, self.tol, 0.0), self.rounding * np.abs(best))
        gained = (monitored < self.best) & (monitored <= best - least)
        worse = ~first & np.where(asked, ~gained, ~improved)
        counts = asked | self.validates
        self.no_improvement = np.where(counts & worse, self.no_improvement + 1, 0)
        self.best = np.fmin(self.best, monitored)
        return improved, self.active & (self.no_improvement > self.patience)

    def wait_for_rate(self, stopped: Mask, lowered: Mask, pending: Mask) -> Mask:
        """Of lanes that would stop, those whose learning rate is not about to be lowered."""
        self.no_improvement[lowered] = 0
        return stopped & ~lowered & ~pending

    def select(self, group: Array, place: Array) -> None:
        """Keep some lanes."""
        for name in ("tol", "patience", "best", "reference", "no_improvement", "active"):
            setattr(self, name, getattr(self, name)[group, place])


class LanePenalties:
    """The penalty of each lane, summed over updates that are weighed by their rows."""

    def __init__(self, lanes: LaneParameters, l1: FloatArray, l2: FloatArray) -> None:
        self.lanes = lanes
        device = lanes.values.device
        self.l1, self.l2 = (torch.from_numpy(a.copy()).to(device) for a in (l1, l2))
        self.has_l1, self.has_l2 = bool(l1.any()), bool(l2.any())
        if self.has_l1:
            self.full_l1 = lanes.penalised(self.l1)
            self.sizes = torch.zeros_like(lanes.values)
        if self.has_l2:
            self.full_l2 = lanes.penalised(self.l2)
            self.squares = torch.zeros_like(lanes.values)

    def add(self, batch: PackedBatch) -> None:
        """Count the penalty as it is before an update."""
        values, counts = self.lanes.values, batch.counts
        n: Any = counts[0]
        if len(set(counts)) > 1:
            own = torch.tensor(counts, dtype=torch.float64, device=values.device)
            n = self.lanes.expand(own[:, None].expand(-1, self.lanes.n_each))
        if self.has_l1:
            _accumulate_(self.sizes, values.abs(), n)
        if self.has_l2:
            if isinstance(n, Tensor):
                self.squares.add_(values.square().mul_(n))
            else:
                self.squares.addcmul_(values, values, value=n)

    def sums(self) -> Any:
        """The sums since the last call, of shape (n_groups, n_each)."""
        total: Any = 0.0
        if self.has_l1:
            total = total + self.lanes.per_lane(self.sizes.mul_(self.full_l1))
            self.sizes.zero_()
        if self.has_l2:
            total = total + self.lanes.per_lane(self.squares.mul_(self.full_l2)).mul_(0.5)
            self.squares.zero_()
        return total


def _accumulate_(total: Tensor, values: Tensor, n: Any) -> None:
    if isinstance(n, Tensor):
        total.addcmul_(values, n)
    else:
        total.add_(values, alpha=n)


class LaneProjection:
    """L1 terms and sign constraints after each update, as `Penalty` keeps them for one model."""

    def __init__(self, penalties: LanePenalties, positive: bool) -> None:
        lanes = self.lanes = penalties.lanes
        self.before = torch.empty_like(lanes.values)
        ones = torch.ones(lanes.n_groups, lanes.n_each, device=lanes.values.device)
        self.reached = lanes.penalised(ones) > 0
        l1: Any = penalties.full_l1 if penalties.has_l1 else 0.0
        self.pulling = Penalty(l1, positive=positive)
        # what is projected does not depend on how large the term is
        self.projecting = Penalty(1.0 if penalties.has_l1 else 0.0, positive=positive)

    def pseudo_(self) -> None:
        """Put the pseudo-gradient in the place of the gradient."""
        w, g = self.lanes.values, self.lanes.gradient
        self.before.copy_(w)
        torch.where(self.reached, self.pulling.pseudo_gradient(w, g), g, out=g)

    def project_(self) -> None:
        """After an update: what crossed zero, or may not leave it, becomes zero."""
        lanes = self.lanes
        moved = lanes.values.clone()
        self.projecting.project_(moved, lanes.gradient, self.before)
        torch.where(self.reached, moved, lanes.values, out=lanes.values)


def numbers(options: Mapping[str, Any]) -> list[Any]:
    """Values of options, those of pairs one by one."""
    return [x for v in options.values() for x in (v if isinstance(v, tuple) else (v,))]
