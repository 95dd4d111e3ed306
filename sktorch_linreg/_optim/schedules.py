"""Schedules of the learning rate by name or class, and their options."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.optim import lr_scheduler

from .._errors import came_from, check_options, unknown_name
from .._runtime.aliases import Array, FloatArray, Mask
from .._runtime.identity import key_of
from .._spec import FitSpec
from .construct import construct, is_torch_or_ours, signature_of
from .optimizers import LaneOptions

# name: (class, options that it needs, from the number of epochs and the learning rate)
Defaults = Callable[[int, float], dict[str, Any]]

SCHEDULES: dict[str, tuple[type[Any], Defaults]] = {
    "constant": (lr_scheduler.LambdaLR, lambda epochs, lr: {"lr_lambda": _one}),
    "step": (lr_scheduler.StepLR, lambda epochs, lr: {"step_size": max(1, epochs // 3)}),
    "exponential": (
        lr_scheduler.ExponentialLR,
        lambda epochs, lr: {"gamma": 0.01 ** (1.0 / epochs)},
    ),
    "linear": (
        lr_scheduler.LinearLR,
        lambda epochs, lr: {"start_factor": 1.0, "end_factor": 0.01, "total_iters": epochs},
    ),
    "polynomial": (lr_scheduler.PolynomialLR, lambda epochs, lr: {"total_iters": epochs}),
    "cosine": (lr_scheduler.CosineAnnealingLR, lambda epochs, lr: {"T_max": epochs}),
    "cosine_restarts": (
        lr_scheduler.CosineAnnealingWarmRestarts,
        # a cycle of one epoch would be a constant rate
        lambda epochs, lr: {"T_0": max(epochs // 10, min(5, epochs))},
    ),
    "one_cycle": (
        lr_scheduler.OneCycleLR,
        # a single step would be the last one, whose rate is next to nothing
        lambda epochs, lr: {"max_lr": lr, "total_steps": max(2, epochs)},
    ),
    # three falls by the factor of ten that is torch's default
    "plateau": (lr_scheduler.ReduceLROnPlateau, lambda epochs, lr: {"min_lr": 1e-3 * lr}),
}


def _one(epoch: int) -> float:
    return 1.0


def resolve_schedule(
    schedule: Any,
    options: Mapping[str, Any],
    max_epochs: int,
    lr: float,
    tol: float | None = None,
    patience: float = 10,
) -> tuple[type[Any] | None, dict[str, Any]]:
    """Class and constructor options of a learning-rate schedule, (None, {}) for no schedule.

    A plateau, by name, is what else ends training: `patience` epochs that gain less than `tol`.
    """
    if schedule is None:
        if options:
            listed = ", ".join(f"lr_schedule__{k}" for k in options)
            raise ValueError(
                f"{listed} was given, but lr_schedule is None. Set lr_schedule to one of "
                f"{', '.join(repr(k) for k in SCHEDULES)}, or leave the option out."
            )
        return None, {}
    defaults: dict[str, Any] = {}
    cls: Any
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            what = "or a class of torch.optim.lr_scheduler"
            raise unknown_name("lr_schedule", schedule, SCHEDULES, what)
        name = schedule
        cls, make_defaults = SCHEDULES[schedule]
        defaults = make_defaults(max_epochs, lr)
        if schedule == "plateau" and tol is not None:
            defaults |= {"patience": patience, "threshold": tol, "threshold_mode": "abs"}
    elif isinstance(schedule, type) and issubclass(schedule, lr_scheduler.LRScheduler):
        name, cls = schedule.__name__, schedule
    else:
        what = "or a class of torch.optim.lr_scheduler"
        raise unknown_name("lr_schedule", schedule, SCHEDULES, what)
    known, takes_others = signature_of(cls)
    if not takes_others:
        check_options("lr_schedule", name, options, known)
    resolved = {**defaults, **options}
    missing = [k for k, v in known.items() if v is inspect.Parameter.empty and k not in resolved]
    if missing:
        listed = ", ".join(f"lr_schedule__{k}" for k in missing)
        raise ValueError(f"The lr_schedule {name} needs {listed}.")
    return cls, resolved


def step_plateau(schedule: Any, monitored: float) -> tuple[bool, bool]:
    """Step a `ReduceLROnPlateau`; whether it lowered the rate, and whether it is about to."""
    groups = schedule.optimizer.param_groups
    before = [float(group["lr"]) for group in groups]
    schedule.step(monitored)
    after = [float(group["lr"]) for group in groups]
    rates = zip(after, schedule.min_lrs, strict=True)
    falls = any(lr - max(lr * schedule.factor, least) > schedule.eps for lr, least in rates)
    # relative gains of small losses may count as such for ever
    absolute = schedule.threshold_mode == "abs"
    waits = absolute or schedule.num_bad_epochs > 0 or schedule.in_cooldown
    return any(a < b for a, b in zip(after, before, strict=True)), falls and waits


def step_schedule(schedule: Any, options: Mapping[str, Any], monitored: float) -> tuple[bool, bool]:
    """Step a schedule after an epoch; what `step_plateau` says of one that looks at losses."""
    if isinstance(schedule, lr_scheduler.ReduceLROnPlateau):
        return step_plateau(schedule, monitored)
    if not is_torch_or_ours(type(schedule)) or any(map(callable, options.values())):
        with came_from("lr_schedule", schedule):
            schedule.step()
        return False, False
    try:
        schedule.step()
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ValueError(
            f"The lr_schedule could not be stepped: {error}. If it has run through all of its "
            "epochs, raise max_epochs, which it is planned for; else check lr_schedule__*."
        ) from error
    return False, False


class LaneSchedules:
    """Schedules of torch, stepped once per epoch, and what they do to the options of lanes."""

    # what they change
    NAMES = ("lr", "momentum", "betas")

    def __init__(self, specs: Sequence[Sequence[FitSpec]]) -> None:
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
                options.set(part, np.array(values, dtype=np.float64)[self.which])

    def select(self, group: Array, place: Array) -> None:
        """Keep some lanes."""
        self.which = self.which[group, place]

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
