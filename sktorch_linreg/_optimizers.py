"""Names of optimizers and learning-rate schedules, and L-BFGS for non-smooth objectives."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import lr_scheduler
from torch.optim.optimizer import required

from ._errors import came_from, check_options, unknown_name
from ._objective.penalty import Penalty

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "lbfgs": torch.optim.LBFGS,
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "adamax": torch.optim.Adamax,
}
# L-BFGS is only worth its price when it converges, so it stops on its own, not on torch's defaults
LBFGS_DEFAULTS = {
    "line_search_fn": "strong_wolfe",
    "history_size": 20,
    "tolerance_grad": 1e-12,
    "tolerance_change": 0.0,
}

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


def _lbfgs_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of L-BFGS, whose line search is not cut short where it makes few iterations."""
    max_iter = options.get("max_iter", 20)
    few = isinstance(max_iter, Real) and float(max_iter) < 20
    return {**LBFGS_DEFAULTS, "max_eval": 25} if few else LBFGS_DEFAULTS


def _one(epoch: int) -> float:
    return 1.0


@cache
def _signature_of(cls: Any) -> tuple[Mapping[str, Any], bool]:
    """Options that `cls` takes, with their defaults, and whether it takes others as well."""
    parameters = list(inspect.signature(cls).parameters.values())[1:]
    named = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}
    return named, len(named) < len(parameters)


@cache
def defaults_of(cls: Any) -> Mapping[str, Any]:
    """The options of an optimizer's constructor that have defaults."""
    named, _ = _signature_of(cls)
    return {k: v for k, v in named.items() if v is not inspect.Parameter.empty}


def is_torchs(cls: Any) -> bool:
    """Whether a class is one of torch, whose errors are about its options, or of this package."""
    owner = getattr(cls, "func", cls)
    return str(owner.__module__).partition(".")[0] in ("torch", __package__)


def closure_call(step: Callable[..., Any], closure: Callable[[], Tensor]) -> Callable[[], Any]:
    """A call of an optimizer's `step` with the closure, or without it where it takes none."""
    parameters = inspect.signature(step).parameters
    named = parameters.get("closure")
    if named is not None and named.kind is not named.POSITIONAL_ONLY:
        return partial(step, closure=closure)
    first = next(iter(parameters.values()), None)
    takes = named is not None or (
        first is not None
        and first.kind not in (first.KEYWORD_ONLY, first.VAR_KEYWORD)
        and (first.kind is first.VAR_POSITIONAL or first.default is first.empty)
    )
    return partial(step, closure) if takes else step


def construct(kind: str, cls: Callable[..., Any], target: Any, options: Mapping[str, Any]) -> Any:
    """Make an optimizer or a schedule.

    Raises
    ------
    ValueError
        Where a class of torch does not take the options. Errors of other classes are their own.
    """
    if not is_torchs(cls):
        with came_from(kind, cls):
            return cls(target, **options)
    try:
        return cls(target, **options)
    except Exception as error:
        # what constructors do with wrong options is theirs
        given = ", ".join(f"{k}={v!r}" for k, v in options.items())
        raise ValueError(
            f"The {kind} does not take the options {given}: {error!r}. Change {kind}__* "
            "accordingly."
        ) from error


def resolve_optimizer(
    optimizer: Any, lr: float | None, options: Mapping[str, Any], extra_names: tuple[str, ...] = ()
) -> tuple[str, type[torch.optim.Optimizer], dict[str, Any]]:
    """Name, class and constructor options (with the learning rate) of an optimizer."""
    cls: Any
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            known = [*extra_names, *OPTIMIZERS]
            raise unknown_name("optimizer", optimizer, known, "or a torch.optim.Optimizer subclass")
        name, cls = optimizer, OPTIMIZERS[optimizer]
    elif isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer):
        name, cls = optimizer.__name__, optimizer
    else:
        known = [*extra_names, *OPTIMIZERS]
        raise unknown_name("optimizer", optimizer, known, "or a torch.optim.Optimizer subclass")
    known_options, takes_others = _signature_of(cls)
    if not takes_others:
        check_options("optimizer", name, options, [k for k in known_options if k != "lr"])
    resolved = {**(_lbfgs_defaults(options) if optimizer == "lbfgs" else {}), **options}
    if "lr" in known_options:
        default = known_options["lr"]
        if lr is not None:
            resolved["lr"] = float(lr)
        elif isinstance(default, Real):
            resolved["lr"] = float(default)
        elif default is inspect.Parameter.empty or default is required:
            raise ValueError(f"The optimizer {name} has no default learning rate: set lr.")
    elif lr is not None and takes_others:
        resolved["lr"] = float(lr)
    elif lr is not None:
        raise ValueError(f"The optimizer {name} takes no learning rate: leave lr=None.")
    return name, cls, resolved


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
    known, takes_others = _signature_of(cls)
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


class OrthantLBFGS(torch.optim.Optimizer):
    """L-BFGS for a smooth objective plus an L1 term, or under a sign constraint.

    Orthant-wise limited-memory quasi-Newton (Andrew and Gao, 2007, "Scalable training of
    L1-regularized log-linear models"): the direction comes from gradients of the smooth part, is
    kept in the orthant of the pseudo-gradient, and the line search projects onto that orthant.
    Parameters of two dimensions are penalised, others (intercepts) are not. The closure has to
    give the smooth part alone.

    Parameters
    ----------
    params : iterable of torch.nn.Parameter
        What to optimise.
    penalty : Penalty
        The L1 term and the constraint; its squared norm belongs to the smooth part.
    lr : float, default=1.0
        First step length tried.
    max_iter : int, default=20
        Iterations per call of `step`.
    history_size : int, default=20
        Number of curvature pairs kept.
    tolerance_grad : float, default=1e-12
        Stop where no entry of the pseudo-gradient is larger.
    tolerance_change, max_eval, line_search_fn
        Taken as `torch.optim.LBFGS` takes them, and of no effect: the search is always by halving.
    """

    def __init__(
        self,
        params: Any,
        penalty: Penalty,
        lr: float = 1.0,
        max_iter: int = 20,
        history_size: int = 20,
        tolerance_grad: float = 1e-12,
        tolerance_change: float = 0.0,
        max_eval: int | None = None,
        line_search_fn: str | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr})
        self.penalty = penalty
        self.max_iter = max_iter
        self.history_size = history_size
        self.tolerance_grad = tolerance_grad
        self._parameters = self.param_groups[0]["params"]
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def _flat(self, gradient: bool = False) -> Tensor:
        parts = [p.grad if gradient else p for p in self._parameters]
        return torch.cat([p.detach().reshape(-1) for p in parts])

    def _set(self, flat: Tensor) -> None:
        start = 0
        for p in self._parameters:
            p.copy_(flat[start : start + p.numel()].view_as(p))
            start += p.numel()

    def _direction(self, gradient: Tensor) -> Tensor:
        """The two-loop recursion."""
        q = gradient.clone()
        steps = []
        for s, y in reversed(self._pairs):
            a = s.dot(q) / y.dot(s)
            q.add_(y, alpha=-float(a))
            steps.append(a)
        if self._pairs:
            s, y = self._pairs[-1]
            q.mul_(s.dot(y) / y.dot(y))
        for (s, y), a in zip(self._pairs, reversed(steps), strict=True):
            q.add_(s, alpha=float(a - y.dot(q) / y.dot(s)))
        return -q

    def _objective(self, closure: Callable[[], Tensor], x: Tensor, mask: Tensor) -> float:
        self._set(x)
        with torch.enable_grad():
            smooth = float(closure().detach())
        return smooth + self.penalty.l1 * float(x[mask].abs().sum())

    def state_dict(self) -> dict[str, Any]:
        """With the curvature pairs."""
        return {**super().state_dict(), "pairs": list(self._pairs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        state = dict(state_dict)
        self._pairs = [(s, y) for s, y in state.pop("pairs", [])]
        super().load_state_dict(state)

    def forget(self) -> None:
        """Drop the curvature pairs, for when the objective has changed."""
        self._pairs.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> float:  # type: ignore[override]
        """Run up to `max_iter` iterations; returns the objective before the first."""
        mask = torch.cat([torch.full((p.numel(),), p.ndim == 2) for p in self._parameters])
        x = self._flat()
        mask = mask.to(x.device)
        first = value = self._objective(closure, x, mask)
        gradient = self._flat(gradient=True)
        for _ in range(self.max_iter):
            pseudo = torch.where(mask, self.penalty.pseudo_gradient(x, gradient), gradient)
            if not math.isfinite(value) or float(pseudo.abs().max()) <= self.tolerance_grad:
                break
            found = self._search(closure, x, value, pseudo, mask)
            if found is None and self._pairs:
                self._pairs.clear()
                found = self._search(closure, x, value, pseudo, mask)
            if found is None:
                break
            moved, value = found
            new_gradient = self._flat(gradient=True)
            s, y = moved - x, new_gradient - gradient
            if float(s.dot(y)) > 1e-10 * float(s.norm() * y.norm()):
                self._pairs = [*self._pairs[1 - self.history_size :], (s, y)]
            x, gradient = moved, new_gradient
        self._set(x)
        return first

    def _search(
        self,
        closure: Callable[[], Tensor],
        x: Tensor,
        value: float,
        pseudo: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, float] | None:
        """Backtrack along the projected direction until the objective falls enough."""
        direction = self._direction(pseudo)
        direction[mask & (direction * pseudo >= 0)] = 0.0
        orthant = torch.where(x != 0, x.sign(), -pseudo.sign())
        step = self.param_groups[0]["lr"]
        if not self._pairs:
            step = min(step, 1.0 / max(float(pseudo.norm()), 1e-30))
        for _ in range(40):
            moved = x + step * direction
            moved[mask & (moved * orthant < 0)] = 0.0
            new_value = self._objective(closure, moved, mask)
            if new_value <= value + 1e-4 * float(pseudo.dot(moved - x)) and new_value < value:
                return moved, new_value
            step *= 0.5
        return None
