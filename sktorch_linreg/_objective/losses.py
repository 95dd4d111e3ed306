"""Losses, their smooth envelopes and derivatives, and user-defined losses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .._data.moments import Moments
from .._data.scaling import Scaling, column_scale, reciprocal
from .._errors import came_from, check_options, unknown_name
from .._runtime.aliases import Array, FloatArray
from .._runtime.copies import copy_arguments
from .._runtime.seeds import seeded_torch

Values = TypeVar("Values", Tensor, Array)


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square()


def absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).abs()


def huber(prediction: Tensor, target: Tensor, *, delta: float = 1.0) -> Tensor:
    return nn.functional.huber_loss(prediction, target, reduction="none", delta=delta)


def quantile(prediction: Tensor, target: Tensor, *, quantile: float = 0.5) -> Tensor:
    residual = target - prediction
    return torch.maximum(quantile * residual, (quantile - 1.0) * residual)


def smooth_absolute_error(prediction: Tensor, target: Tensor, width: float) -> Tensor:
    return huber(prediction, target, delta=width) / width


def smooth_quantile(
    prediction: Tensor, target: Tensor, width: float, *, quantile: float = 0.5
) -> Tensor:
    residual = target - prediction
    inner = residual.clamp((quantile - 1.0) * width, quantile * width)
    return inner * (residual - 0.5 * inner) / width


def poisson(prediction: Tensor, target: Tensor) -> Tensor:
    return prediction.exp() - target * prediction


# -- derivatives with respect to the prediction, written into `out` --------------------------------


def squared_error_slope(prediction: Tensor, target: Tensor, out: Tensor) -> None:
    torch.sub(prediction, target, out=out)


def absolute_error_slope(prediction: Tensor, target: Tensor, out: Tensor) -> None:
    torch.sub(prediction, target, out=out).sign_()


def huber_slope(prediction: Tensor, target: Tensor, out: Tensor, *, delta: float = 1.0) -> None:
    torch.sub(prediction, target, out=out).clamp_(-delta, delta)


def quantile_slope(
    prediction: Tensor, target: Tensor, out: Tensor, *, quantile: float = 0.5
) -> None:
    # -quantile below the target, 1 - quantile above it, and their mean at it
    torch.sub(prediction, target, out=out).sign_().mul_(0.5).add_(0.5 - quantile)


def poisson_slope(prediction: Tensor, target: Tensor, out: Tensor) -> None:
    torch.exp(prediction, out=out).sub_(target)


def _envelope(
    function: Callable[..., Tensor], width: float, **options: Any
) -> Callable[[Tensor, Tensor], Tensor]:
    return partial(function, width=width, **options)


def _positive(name: str, value: Any) -> None:
    if not (isinstance(value, Real) and float(value) > 0):
        raise ValueError(f"loss__{name} must be a number above 0; got {value!r}.")


def _fraction(name: str, value: Any) -> None:
    if not (isinstance(value, Real) and 0 < float(value) < 1):
        raise ValueError(f"loss__{name} must be a number between 0 and 1; got {value!r}.")


# the envelope of a loss with kinks: (prediction, target, width, **options)
SMOOTHED: dict[str, Callable[..., Tensor]] = {
    "absolute_error": smooth_absolute_error,
    "quantile": smooth_quantile,
}


@dataclass(frozen=True)
class _Entry:
    """A named loss; its slope is divided by `slope_factor`."""

    function: Callable[..., Tensor]
    slope: Callable[..., None]
    slope_factor: float = 1.0
    checks: Mapping[str, Callable[..., None]] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)


LOSSES: dict[str, _Entry] = {
    "squared_error": _Entry(squared_error, squared_error_slope, 2.0),
    "absolute_error": _Entry(absolute_error, absolute_error_slope),
    "huber": _Entry(huber, huber_slope, checks={"delta": _positive}),
    "quantile": _Entry(quantile, quantile_slope, checks={"quantile": _fraction}),
    "poisson": _Entry(
        poisson,
        poisson_slope,
        fields={"scales_target": False, "log_link": True, "minimum_target": 0.0},
    ),
}

# torch losses that only depend on prediction minus target, which may not hold for subclasses
SHIFT_INVARIANT = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
# rows on which a user-defined loss is tried
TRIED_ROWS = 4


def _losses_with(option: str) -> list[str]:
    return [name for name, entry in LOSSES.items() if option in entry.checks]


def resolve_loss(
    loss: Any,
    options: Mapping[str, Any],
    n_targets: int = 1,
    dtype: torch.dtype = torch.float32,
    device: Any = "cpu",
) -> Loss:
    """The `Loss` for a name or an `nn.Module` class and its `loss__*` options.

    A module is created with this dtype and device, and tried on `n_targets` targets.
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise unknown_name("loss", loss, LOSSES, nn.Module)
        entry = LOSSES[loss]
        check_options("loss", loss, options, entry.checks, _losses_with)
        for key, value in options.items():
            entry.checks[key](key, value)
        numbers = {key: float(value) for key, value in options.items()}
        smoothed = branches = None
        if loss in SMOOTHED:
            smoothed = partial(_envelope, SMOOTHED[loss], **numbers)
            high = numbers.get("quantile", 0.5)
            branches = (high - 1.0, high) if loss == "quantile" else (-1.0, 1.0)
        return Loss(
            loss,
            partial(entry.function, **numbers),
            slope=partial(entry.slope, **numbers),
            slope_factor=entry.slope_factor,
            smoothed=smoothed,
            branches=branches,
            **entry.fields,
        )
    if not (isinstance(loss, type) and issubclass(loss, nn.Module)):
        raise unknown_name("loss", loss, LOSSES, nn.Module)
    # constructors may draw from torch's global generators
    with seeded_torch(0, torch.device("cpu")):
        return _resolve_own(loss, options, n_targets, dtype, device)


def _resolve_own(
    loss: type[nn.Module], options: Mapping[str, Any], n_targets: int, dtype: Any, device: Any
) -> Loss:
    """The `Loss` for an `nn.Module` class."""
    known = inspect.signature(loss).parameters
    names = [k for k in known if k != "reduction"]
    check_options("loss", loss.__name__, options, names, _losses_with)
    tried = torch.empty(TRIED_ROWS, n_targets, dtype=dtype, device=device)
    made, reduced = _own_loss(loss, options, "reduction" in known, tried)
    return Loss(
        loss.__name__,
        OwnLoss(*made),
        scales_target=loss in SHIFT_INVARIANT,
        reduced=reduced,
        own=True,
        smoothed=partial(_envelope, smooth_absolute_error) if loss is nn.L1Loss else None,
        branches=(-1.0, 1.0) if loss is nn.L1Loss else None,
    )


def _make_loss(
    cls: type[nn.Module],
    options: Mapping[str, Any],
    dtype: torch.dtype,
    device: torch.device,
    **reduction: str,
) -> nn.Module:
    """A new loss module."""
    # a module among the options is the user's
    return cls(**copy_arguments(options, "loss__"), **reduction).to(device, dtype)


def _own_loss(
    cls: type[nn.Module], options: Mapping[str, Any], has_reduction: bool, like: Tensor
) -> tuple[tuple[nn.Module, Callable[[], nn.Module]], bool]:
    """A loss module with what makes it, and whether it returns a single number for all rows."""
    # leaves the user's random state alone; different in each row and target, and positive
    numbers = torch.linspace(0.5, 1.5, like.numel(), dtype=like.dtype, device=like.device)
    rows = numbers.view_as(like), numbers.square().flip(0).view_as(like)

    make = partial(_make_loss, cls, dict(options), like.dtype, like.device)
    if has_reduction:
        # a loss that rejects or ignores reduction="none" is treated as a mean
        with suppress(Exception):
            by_row = partial(make, reduction="none")
            module = by_row()
            if _is_row_by_row(module, partial(make, reduction="mean"), rows):
                return (module, by_row), False
    _check_call(cls, cls, options=options)
    with came_from("loss", cls):
        module = make()
    _check_call(cls, module.forward, *rows)
    with came_from("loss", cls):
        values = module(*rows)
    if not isinstance(values, Tensor) or values.numel() != 1:
        raise ValueError(
            f"The loss {cls.__name__} cannot be used: for predictions of shape "
            f"{tuple(like.shape)} it returned {values!r}. Make its forward return one number as a "
            "tensor, or give the class a 'reduction' parameter that accepts 'none' for one value "
            "per row and 'mean' for their mean."
        )
    return (module, make), True


@torch.no_grad()
def _is_row_by_row(
    module: nn.Module, make_mean: Callable[[], nn.Module], rows: tuple[Tensor, Tensor]
) -> bool:
    """Whether a loss is the mean of one value per row that does not depend on other rows."""
    values = module(*rows)
    if not isinstance(values, Tensor) or values.ndim == 0 or len(values) != TRIED_ROWS:
        return False
    tolerance = 1e-3 if values.dtype == torch.float32 else 1e-6
    alike = partial(torch.allclose, rtol=tolerance, atol=tolerance)
    if not alike(module(rows[0][:2], rows[1][:2]), values[:2]):
        return False
    try:
        mean = make_mean()(*rows)
    except Exception:
        # it supports no other reduction
        return True
    return alike(mean.mean(), values.mean())


def _check_call(
    cls: type[nn.Module],
    called: Callable[..., Any],
    *args: Any,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Raise ValueError if a loss does not accept the required arguments."""
    try:
        inspect.signature(called).bind(*args, **(options or {}))
    except TypeError as error:
        raise ValueError(
            f"The loss {cls.__name__} cannot be used: {error}. It must be constructible from its "
            "loss__* options and callable with predictions and targets of the same shape."
        ) from error


def blamed_on(loss: Loss) -> AbstractContextManager[None]:
    """A context for using a loss: errors of a user-defined one say where they came from."""
    return came_from("loss", loss.name) if loss.own else nullcontext()


class OwnLoss:
    """A user-defined loss module, whose errors say which parameter it came from.

    `make` makes another one, in the state in which its constructor leaves it.
    """

    def __init__(self, module: nn.Module, make: Callable[[], nn.Module]) -> None:
        self.module, self.make = module, make

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        with came_from("loss", self.module):
            # it may work in place
            values: Tensor = self.module(prediction.clone(), target.clone())
            return values


def inverse_link(output: Values, log_link: bool) -> Values:
    """Predictions from outputs (tensors or arrays): their exponential under a log link."""
    if not log_link:
        return output
    if isinstance(output, np.ndarray):
        with np.errstate(over="ignore"):
            return np.exp(output)
    # a tensor, or its proxy while a module is traced
    return output.exp()


@dataclass(frozen=True)
class Loss:
    """A loss with its options filled in.

    `pointwise(prediction, target)` returns one value per row and target; a user-defined module that
    only returns their mean has `reduced` set, and does not support sample weights. A loss with
    kinks has `smoothed(width)`, its Moreau envelope, which L-BFGS minimises for ever smaller
    widths, and `branches`, its slopes on both sides with respect to target minus prediction.
    `slope(prediction, target, out)` writes the derivative with respect to the prediction, divided
    by `slope_factor`; without one, autograd is used. With `log_link` the loss takes the logarithm
    of the prediction.
    """

    name: str
    pointwise: Callable[[Tensor, Tensor], Tensor]
    scales_target: bool = True
    log_link: bool = False
    smoothed: Callable[[float], Callable[[Tensor, Tensor], Tensor]] | None = None
    branches: tuple[float, float] | None = None
    minimum_target: float | None = None
    reduced: bool = False
    # whether it is user-defined
    own: bool = False
    slope: Callable[[Tensor, Tensor, Tensor], None] | None = None
    slope_factor: float = 1.0

    def output_units(
        self, y: Moments, *, centred: bool, keeps_constant_targets: bool
    ) -> tuple[FloatArray, FloatArray]:
        """Offset and scale that map outputs to the units of targets with these moments.

        Constant targets have a scale of 0, or of 1 with `keeps_constant_targets`. Under a log link
        the offset is the logarithm of the mean.
        """
        zeros, ones = np.zeros_like(y.mean), np.ones_like(y.mean)
        if self.log_link and centred:
            return np.log(np.where(y.mean > 0, y.mean, 1.0)), ones
        if not self.scales_target:
            return zeros, ones
        scale = column_scale(y, centred)
        if keeps_constant_targets:
            scale[scale == 0] = 1.0
        return (y.mean if centred else zeros), scale

    def target_units(self, scaling: Scaling) -> tuple[FloatArray, FloatArray]:
        """Offset subtracted from targets in training, and factor they are then multiplied by.

        Under a log link, an offset of the output multiplies predictions by its exponential.
        """
        if self.log_link:
            factor: FloatArray = inverse_link(-scaling.y_offset, self.log_link)
            return np.zeros_like(scaling.y_offset), factor
        return scaling.y_offset, reciprocal(scaling.y_scale)

    @property
    def module(self) -> nn.Module | None:
        """The module of a user-defined loss."""
        return self.pointwise.module if isinstance(self.pointwise, OwnLoss) else None

    @property
    def has_state(self) -> bool:
        """Whether it has parameters or buffers, which change in training."""
        # a buffer may still be None
        found = () if self.module is None else self.module.modules()
        return any(module._parameters or module._buffers for module in found)

    @property
    def sees_batches(self) -> bool:
        """Whether it must see the batches as they are, with no rows merged."""
        return self.reduced or self.has_state

    def anew(self) -> Loss:
        """The same loss, with a user-defined module in the state its constructor leaves it in."""
        if not isinstance(self.pointwise, OwnLoss):
            return self
        make = self.pointwise.make
        with came_from("loss", self.name):
            return replace(self, pointwise=OwnLoss(make(), make))

    def mean(self, prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """Mean over the rows; `weight` is relative to its mean over the training set."""
        values = self.pointwise(prediction, target)
        if self.reduced or weight is None:
            return values.mean()
        return (values.reshape(len(values), -1).mean(1) * weight).mean()
