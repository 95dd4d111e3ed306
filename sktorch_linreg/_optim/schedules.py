"""Learning-rate schedules by name or class, and their options."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.optim import lr_scheduler

from .._errors import came_from, check_options, unknown_name
from .._runtime.aliases import Array
from .._runtime.identity import key_of
from .._spec import FitSpec, TrainingOptions
from .construct import construct, is_torch_or_ours, signature_of
from .optimizers import StackedOptions

Defaults = Callable[[int, float], dict[str, Any]]
# name: (class, default options given the number of epochs and the learning rate)
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
        # a cycle of one epoch would keep the rate constant
        lambda epochs, lr: {"T_0": max(epochs // 10, min(5, epochs))},
    ),
    "one_cycle": (
        lr_scheduler.OneCycleLR,
        # a single step would be the last one, whose rate is almost zero
        lambda epochs, lr: {"max_lr": lr, "total_steps": max(2, epochs)},
    ),
    # three reductions by a factor of ten, torch's default
    "plateau": (lr_scheduler.ReduceLROnPlateau, lambda epochs, lr: {"min_lr": 1e-3 * lr}),
}


def _one(epoch: int) -> float:
    return 1.0


def _schedules_with(option: str) -> list[str]:
    return [name for name, (cls, _) in SCHEDULES.items() if option in signature_of(cls)[0]]  # type: ignore[arg-type]


def resolve_schedule(
    schedule: Any,
    options: Mapping[str, Any],
    max_epochs: int,
    lr: float,
    tol: float | None = None,
    patience: float = 10,
) -> tuple[type[Any] | None, dict[str, Any]]:
    """Class and constructor options of a learning-rate schedule, (None, {}) for no schedule.

    A named "plateau" schedule uses the stopping rule: `patience` epochs that gain less than `tol`.
    """
    if schedule is None:
        if options:
            listed = ", ".join(f"lr_schedule__{k}" for k in options)
            raise ValueError(
                f"{listed} was given, but lr_schedule is None. Set lr_schedule to one of "
                f"{', '.join(repr(k) for k in SCHEDULES)}, or remove the option."
            )
        return None, {}
    defaults: dict[str, Any] = {}
    cls: Any
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise unknown_name("lr_schedule", schedule, SCHEDULES, lr_scheduler.LRScheduler)
        name = schedule
        cls, make_defaults = SCHEDULES[schedule]
        defaults = make_defaults(max_epochs, lr)
        if schedule == "plateau" and tol is not None:
            defaults |= {"patience": patience, "threshold": tol, "threshold_mode": "abs"}
    elif isinstance(schedule, type) and issubclass(schedule, lr_scheduler.LRScheduler):
        name, cls = schedule.__name__, schedule
    else:
        raise unknown_name("lr_schedule", schedule, SCHEDULES, lr_scheduler.LRScheduler)
    known, takes_others = signature_of(cls)
    if not takes_others:
        check_options("lr_schedule", name, options, known, _schedules_with)
    resolved = {**defaults, **options}
    missing = [k for k, v in known.items() if v is inspect.Parameter.empty and k not in resolved]
    if missing:
        listed = ", ".join(f"lr_schedule__{k}" for k in missing)
        raise ValueError(f"The lr_schedule {name} needs {listed}.")
    return cls, resolved


def step_plateau(schedule: Any, monitored: float) -> tuple[bool, bool]:
    """Step a `ReduceLROnPlateau`; returns whether it lowered the rate, and is about to."""
    groups = schedule.optimizer.param_groups
    before = [float(group["lr"]) for group in groups]
    schedule.step(monitored)
    after = [float(group["lr"]) for group in groups]
    rates = zip(after, schedule.min_lrs, strict=True)
    falls = any(lr - max(lr * schedule.factor, least) > schedule.eps for lr, least in rates)
    # relative gains of small losses may count as improvements forever
    absolute = schedule.threshold_mode == "abs"
    waits = absolute or schedule.num_bad_epochs > 0 or schedule.in_cooldown
    return any(a < b for a, b in zip(after, before, strict=True)), falls and waits


def _step(schedule: Any, options: Mapping[str, Any]) -> None:
    """Step a schedule that does not depend on losses."""
    if not is_torch_or_ours(type(schedule)) or any(map(callable, options.values())):
        with came_from("lr_schedule", schedule):
            schedule.step()
        return
    try:
        schedule.step()
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ValueError(
            f"The lr_schedule could not be stepped: {error}. If it ran out of steps, raise "
            "max_epochs, from which its length is derived; otherwise check lr_schedule__*."
        ) from error


class Schedules:
    """Torch schedules of one model or of many, stepped once per epoch.

    Parameters
    ----------
    schedules : list of torch.optim.lr_scheduler.LRScheduler
        All of one class.
    options : Mapping
        Constructor options of the first one.
    which : ndarray of int, shape (n_groups, n_each), optional
        Index of the schedule of each model; None for a single model.
    """

    # optimizer options that schedules change
    NAMES = ("lr", "momentum", "betas")

    def __init__(
        self, schedules: list[Any], options: Mapping[str, Any], which: Array | None = None
    ) -> None:
        self.schedules, self.options, self.which = schedules, options, which
        self.by_loss = isinstance(schedules[0], lr_scheduler.ReduceLROnPlateau)

    @classmethod
    def of_one(cls, training: TrainingOptions, optimizer: Any) -> Schedules | None:
        """The schedule of one model, which changes the rates of its optimizer."""
        if training.schedule_class is None:
            return None
        options = training.schedule_options
        return cls([construct("lr_schedule", training.schedule_class, optimizer, options)], options)

    @classmethod
    def of_many(cls, specs: Sequence[Sequence[FitSpec]]) -> Schedules | None:
        """Schedules of groups of models, each with a dummy optimizer."""
        first = specs[0][0].training
        if first.schedule_class is None:
            return None
        by_loss = issubclass(first.schedule_class, lr_scheduler.ReduceLROnPlateau)
        # plateau schedules are per model, others are shared by models with equal options
        which = np.zeros((len(specs), len(specs[0])), dtype=np.intp)
        schedules: list[Any] = []
        known: dict[Any, int] = {}
        for g, row in enumerate(specs):
            for c, spec in enumerate(row):
                key = (g, c) if by_loss else _schedule_key(spec)
                if key not in known:
                    known[key] = len(schedules)
                    schedules.append(_of_its_own(spec.training))
                which[g, c] = known[key]
        return cls(schedules, first.schedule_options, which)

    def step(self, monitored: Any, active: Any) -> tuple[Any, Any]:
        """Step the schedules after an epoch with these losses.

        Returns for which models a plateau has lowered the rate, and for which it is about to.
        """
        if not self.by_loss:
            for schedule in self.schedules:
                _step(schedule, self.options)
            return False, False
        if self.which is None:
            return step_plateau(self.schedules[0], monitored)
        lowered, pending = np.zeros_like(active), np.zeros_like(active)
        for g, c in zip(*np.nonzero(active), strict=True):
            schedule = self.schedules[self.which[g, c]]
            lowered[g, c], pending[g, c] = step_plateau(schedule, float(monitored[g, c]))
        return lowered, pending

    def apply(self, options: StackedOptions) -> None:
        """Write the current values of the schedules into the options of many models."""
        groups = [schedule.optimizer.param_groups[0] for schedule in self.schedules]
        for name in self.NAMES:
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
        """Keep only these models."""
        if self.which is not None:
            self.which = self.which[group, place]


def _of_its_own(training: TrainingOptions) -> Any:
    """A schedule with its own dummy optimizer."""
    cls: Any = training.optimizer_class
    optimizer = construct("optimizer", cls, [torch.zeros(1)], training.optimizer_options)
    optimizer._opt_called = True
    schedule: Any = training.schedule_class
    # a function may keep state, which must not be shared between fits
    return construct("lr_schedule", schedule, optimizer, copy.deepcopy(training.schedule_options))


def _schedule_key(spec: FitSpec) -> Hashable:
    apart = "its schedule is not shared with other fits"
    return (
        key_of(spec.training.optimizer_options, "optimizer__*", apart),
        key_of(spec.training.schedule_options, "lr_schedule__*", apart),
    )
