"""Optimizers by name or class, and their options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import required

from .._errors import check_options, unknown_name
from .._runtime.aliases import Array, FloatArray
from .._spec import FitSpec
from .construct import defaults_of, signature_of

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

# L-BFGS only pays off if it converges, so torch's default tolerances must not stop it early
LBFGS_DEFAULTS = {
    "line_search_fn": "strong_wolfe",
    "history_size": 20,
    "tolerance_grad": 1e-12,
    "tolerance_change": 0.0,
}


def _lbfgs_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of L-BFGS; with few iterations, the line search still gets enough evaluations."""
    max_iter = options.get("max_iter", 20)
    few = isinstance(max_iter, Real) and float(max_iter) < 20
    return {**LBFGS_DEFAULTS, "max_eval": 25} if few else LBFGS_DEFAULTS


def optimizers_with(option: str) -> list[str]:
    """The named optimizers that have an option."""
    return [name for name, cls in OPTIMIZERS.items() if option in signature_of(cls)[0]]  # type: ignore[arg-type]


def resolve_optimizer(
    optimizer: Any,
    lr: float | None,
    options: Mapping[str, Any],
    extra_names: tuple[str, ...] = (),
    chosen: str = "",
) -> tuple[str, type[torch.optim.Optimizer], dict[str, Any]]:
    """Name, class and constructor options (with the learning rate) of an optimizer.

    For error messages only, `extra_names` are further supported names, and `chosen` says what
    selected the optimizer.
    """
    cls: Any
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            known = [*extra_names, *OPTIMIZERS]
            raise unknown_name("optimizer", optimizer, known, torch.optim.Optimizer)
        name, cls = optimizer, OPTIMIZERS[optimizer]
    elif isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer):
        name, cls = optimizer.__name__, optimizer
    else:
        known = [*extra_names, *OPTIMIZERS]
        raise unknown_name("optimizer", optimizer, known, torch.optim.Optimizer)
    known_options, takes_others = signature_of(cls)
    if not takes_others:
        names = [k for k in known_options if k != "lr"]
        check_options("optimizer", name, options, names, optimizers_with, chosen)
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


class StackedOptions:
    """Options of an optimizer: one value for all models, or a number per model."""

    def __init__(self, specs: Sequence[Sequence[FitSpec]]) -> None:
        cls: Any = specs[0][0].training.optimizer_class
        # options that a model does not set take the defaults of the class
        defaults = defaults_of(cls)
        every = [[{**defaults, **spec.training.optimizer_options} for spec in row] for row in specs]
        known = every[0][0]
        self.same: dict[str, Any] = {}
        self.varied: dict[str, FloatArray] = {}
        for name, value in known.items():
            if isinstance(value, tuple | list):
                for i in range(len(value)):
                    self.set(f"{name}.{i}", [[float(o[name][i]) for o in row] for row in every])
            elif isinstance(value, bool) or value is None or isinstance(value, str):
                self.same[name] = value
            else:
                self.set(name, [[float(o[name]) for o in row] for row in every])

    def set(self, name: str, values: Any) -> None:
        """Set an option to a number per model."""
        table = np.array(values)
        if (table == table[0, 0]).all():
            self.same[name] = float(table[0, 0])
        else:
            self.varied[name] = table

    def group(self, device: Any) -> dict[str, Any]:
        """The options in the form that `RuleUpdates` takes."""
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
        """Keep only these models."""
        self.varied = {k: v[group, place] for k, v in self.varied.items()}


def option_values(options: Mapping[str, Any]) -> list[Any]:
    """Values of options, with pairs flattened."""
    return [x for v in options.values() for x in (v if isinstance(v, tuple) else (v,))]
