"""Schedules of the learning rate by name or class, and their options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import lr_scheduler

from .._errors import check_options, unknown_name
from .construct import signature_of

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
