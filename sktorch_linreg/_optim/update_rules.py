"""The update rules of the named optimizers, each on one vector of parameters.

Options are numbers or, if many models are updated together, small tensors with a number per model,
which `u.full` expands over the parameters. A rule does what the `torch.optim` class of its name
does, up to rounding; the formulas are those that torch documents for each class. Its first argument
`u` is the `RuleUpdates` that holds its vectors and counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, optim

# torch versions without these kernels use the formulas
FUSED_ADAM = getattr(torch, "_fused_adam_", None)
FUSED_ADAMW = getattr(torch, "_fused_adamw_", None)


def _is_on(option: Any) -> bool:
    return isinstance(option, Tensor) or bool(option)


def _plus(u: Any, first: Tensor, part: Tensor, factor: Any, out: Tensor) -> Tensor:
    """``first + factor * part``, written to `out`."""
    if isinstance(factor, Tensor):
        return torch.addcmul(first, part, u.full(factor), out=out)
    return torch.add(first, part, alpha=factor, out=out)


def _less_(u: Any, p: Tensor, part: Tensor, rate: Any) -> None:
    """``p -= rate * part``."""
    if isinstance(rate, Tensor):
        p.addcmul_(part, u.full(rate), value=-1.0)
    else:
        p.add_(part, alpha=-rate)


def _times_(u: Any, p: Tensor, factor: Any) -> Tensor:
    return p.mul_(u.full(factor))


def _drift_(u: Any, mean: Tensor, g: Tensor, beta: Any) -> Tensor:
    """Update the running mean with `g`."""
    return mean.lerp_(g, u.full(1.0 - beta))


def _fade_(u: Any, square: Tensor, g: Tensor, beta: Any) -> Tensor:
    """Update the running mean of squares with `g`."""
    square.mul_(u.full(beta))
    if isinstance(beta, Tensor):
        return square.add_(g.square().mul_(u.full(1.0 - beta)))
    return square.addcmul_(g, g, value=1.0 - beta)


def _move_(u: Any, p: Tensor, part: Tensor, root: Tensor, rate: Any) -> None:
    """``p -= rate * part / root``; `root` may be overwritten."""
    if isinstance(rate, Tensor):
        p.addcdiv_(part, root.div_(u.full(rate)), value=-1.0)
    else:
        p.addcdiv_(part, root, value=-rate)


def _decayed(u: Any, group: Mapping[str, Any], decoupled: bool = False) -> Tensor:
    """The gradient with weight decay; if `decoupled`, the parameters are decayed instead.

    `flat.gradient` is left unchanged, since a projection reads it after the update.
    """
    p, rate = u.flat.values, group["weight_decay"]
    g: Tensor = u.flat.gradient
    if not _is_on(rate):
        return g
    if decoupled:
        _times_(u, p, 1.0 - group["lr"] * rate)
        return g
    return _plus(u, g, p, rate, u.spare)


def _sgd(u: Any, p: Tensor, g: Tensor, group: Mapping[str, Any]) -> None:
    g = _decayed(u, group)
    momentum = group["momentum"]
    if _is_on(momentum):
        buffer = u.slots.get("momentum_buffer")
        if buffer is None:
            buffer = u.slots["momentum_buffer"] = g.clone()
        else:
            _times_(u, buffer, momentum)
            _plus(u, buffer, g, 1.0 - group["dampening"], buffer)
        g = _plus(u, g, buffer, momentum, u.work) if group["nesterov"] else buffer
    _less_(u, p, g, group["lr"])


def _adam(u: Any, p: Tensor, g: Tensor, group: Mapping[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    decoupled = u.cls is optim.AdamW or bool(group.get("decoupled_weight_decay"))
    fused = FUSED_ADAMW if decoupled else FUSED_ADAM
    slots = u.slots
    if fused is None or u.varied:
        g = _decayed(u, group, decoupled)
        _drift_(u, slots["exp_avg"], g, beta1)
        square = _fade_(u, slots["exp_avg_sq"], g, beta2)
        if group["amsgrad"]:
            largest = u.slot("max_exp_avg_sq")
            square = torch.maximum(largest, square, out=largest)
        root = torch.sqrt(square, out=u.work)
        rate, left = group["lr"], (1.0 - beta2**u.n_steps) ** 0.5
        if isinstance(rate, Tensor) and not isinstance(left, Tensor):
            # both factors of the denominator at once
            inverse, floor = u.over_rate(rate, group["eps"])
            torch.addcmul(floor, root, inverse, value=1.0 / left, out=root)
            rate = 1.0
        else:
            root.div_(u.full(left)).add_(u.full(group["eps"]))
        _move_(u, p, slots["exp_avg"], root, rate / (1.0 - beta1**u.n_steps))
        return
    u.count.add_(u.one)
    fused(
        [p],
        [g],
        [slots["exp_avg"]],
        [slots["exp_avg_sq"]],
        [u.slot("max_exp_avg_sq")] if group["amsgrad"] else [],
        [u.count],
        lr=group["lr"],
        beta1=beta1,
        beta2=beta2,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=group["amsgrad"],
        maximize=False,
    )


def _nadam(u: Any, p: Tensor, g: Tensor, group: Mapping[str, Any]) -> None:
    g = _decayed(u, group, group["decoupled_weight_decay"])
    (beta1, beta2), lr, t = group["betas"], group["lr"], u.n_steps
    mean, square = u.slots["exp_avg"], u.slots["exp_avg_sq"]
    _drift_(u, mean, g, beta1)
    _fade_(u, square, g, beta2)
    mu, following = (
        beta1 * (1.0 - 0.5 * 0.96 ** (i * group["momentum_decay"])) for i in (t, t + 1)
    )
    u.mu_product = u.mu_product * mu
    root = torch.sqrt(square, out=u.work)
    root.div_(u.full((1.0 - beta2**t) ** 0.5)).add_(u.full(group["eps"]))
    _move_(u, p, g, u.again(root), lr * (1.0 - mu) / (1.0 - u.mu_product))
    _move_(u, p, mean, root, lr * following / (1.0 - u.mu_product * following))


def _radam(u: Any, p: Tensor, g: Tensor, group: Mapping[str, Any]) -> None:
    g = _decayed(u, group, group["decoupled_weight_decay"])
    (beta1, beta2), t = group["betas"], u.n_steps
    mean, square = u.slots["exp_avg"], u.slots["exp_avg_sq"]
    _drift_(u, mean, g, beta1)
    _fade_(u, square, g, beta2)
    rate = group["lr"] / (1.0 - beta1**t)
    left = 1.0 - beta2**t
    longest = 2.0 / (1.0 - beta2) - 1.0
    length = longest - 2.0 * t * beta2**t / left
    if not isinstance(length, Tensor) and length <= 5.0:
        _less_(u, p, mean, rate)
        return
    rectified = (length - 4.0) * (length - 2.0) * longest
    rectified = rectified / ((longest - 4.0) * (longest - 2.0) * length)
    root = torch.sqrt(square, out=u.work).add_(u.full(group["eps"]))
    if isinstance(length, Tensor):
        # models with different betas start to be rectified at different updates
        factor = u.full((rectified.clamp(min=0.0) * left).sqrt_()) / root
        factor = torch.where(u.full(length) > 5.0, factor, 1.0)
        p.sub_(factor.mul_(mean).mul_(u.full(rate)))
        return
    _move_(u, p, mean, root, rate * (rectified * left) ** 0.5)


def _rmsprop(u: Any, p: Tensor, g: Tensor, group: Mapping[str, Any]) -> None:
    g = _decayed(u, group)
    alpha, lr = group["alpha"], group["lr"]
    square = _fade_(u, u.slots["square_avg"], g, alpha)
    root = u.work
    if group["centered"]:
        mean = _drift_(u, u.slot("grad_avg"), g, alpha)
        torch.addcmul(square, mean, mean, value=-1.0, out=root).sqrt_()
    else:
        torch.sqrt(square, out=root)
    root.add_(u.full(group["eps"]))
    if _is_on(group["momentum"]):
        buffer = _times_(u, u.slot("momentum_buffer"), group["momentum"]).addcdiv_(g, root)
        _less_(u, p, buffer, lr)
    else:
        _move_(u, p, g, root, lr)


def _adagrad(u: Any, p: Tensor, g: Tensor, group: Mapping[str, Any]) -> None:
    g = _decayed(u, group)
    total = u.slots["sum"].addcmul_(g, g)
    rate = group["lr"] / (1.0 + (u.n_steps - 1) * group["lr_decay"])
    _move_(u, p, g, torch.sqrt(total, out=u.work).add_(u.full(group["eps"])), rate)


def _adadelta(u: Any, p: Tensor, g: Tensor, group: Mapping[str, Any]) -> None:
    g = _decayed(u, group)
    rho, eps = group["rho"], group["eps"]
    square, moved = u.slots["square_avg"], u.slots["acc_delta"]
    _fade_(u, square, g, rho)
    eps = u.full(eps)
    root = torch.add(square, eps, out=u.work).sqrt_()
    delta = (moved + eps).sqrt_().div_(root).mul_(g)
    _fade_(u, moved, delta, rho)
    _less_(u, p, delta, group["lr"])


def _adamax(u: Any, p: Tensor, g: Tensor, group: Mapping[str, Any]) -> None:
    g = _decayed(u, group)
    beta1, beta2 = group["betas"]
    mean, norm = u.slots["exp_avg"], u.slots["exp_inf"]
    _drift_(u, mean, g, beta1)
    size = torch.abs(g, out=u.work).add_(u.full(group["eps"]))
    torch.maximum(_times_(u, norm, beta2), size, out=norm)
    _move_(u, p, mean, u.work.copy_(norm), group["lr"] / (1.0 - beta1**u.n_steps))


def _adam_slots(group: Mapping[str, Any]) -> list[str]:
    return ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]


def _rmsprop_slots(group: Mapping[str, Any]) -> list[str]:
    extra = ["momentum_buffer"] * _is_on(group["momentum"]) + ["grad_avg"] * bool(group["centered"])
    return ["square_avg", *extra]


Rule = Callable[[Any, Tensor, Tensor, Mapping[str, Any]], None]

# class of torch.optim: (rule, names of its vectors given the options)
RULES: dict[Any, tuple[Rule, Callable[[Mapping[str, Any]], list[str]]]] = {
    # its buffer is initialised with the first gradient
    optim.SGD: (_sgd, lambda group: []),
    optim.Adam: (_adam, _adam_slots),
    optim.AdamW: (_adam, _adam_slots),
    optim.NAdam: (_nadam, lambda group: ["exp_avg", "exp_avg_sq"]),
    optim.RAdam: (_radam, lambda group: ["exp_avg", "exp_avg_sq"]),
    optim.RMSprop: (_rmsprop, _rmsprop_slots),
    optim.Adagrad: (_adagrad, lambda group: ["sum"]),
    optim.Adadelta: (_adadelta, lambda group: ["square_avg", "acc_delta"]),
    optim.Adamax: (_adamax, lambda group: ["exp_avg", "exp_inf"]),
}
