"""The update rules of the named optimizers, each on one vector of parameters.

A rule does what the class of `torch.optim` of its name does, to the last rounding or so; the
formulas are those that torch documents for each class. The torch optimizer itself is only made
when somebody asks for it: a schedule, a callback, the user.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, optim

from ._backprop import DEVICES, FlatParameters
from ._optimizers import construct, defaults_of
from ._state import to_arrays, to_tensors

# what only torch's own classes do
UNUSUAL = ("maximize", "capturable", "differentiable", "foreach", "fused")
# a torch without these kernels still has the formulas
FUSED_ADAM = getattr(torch, "_fused_adam_", None)
FUSED_ADAMW = getattr(torch, "_fused_adamw_", None)


class TorchUpdates:
    """Updates by an optimizer of torch.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        It holds the parameters of the module.
    """

    def __init__(self, optimizer: optim.Optimizer) -> None:
        self.optimizer: Any = optimizer

    @property
    def group(self) -> dict[str, Any]:
        """The first parameter group, which holds the options that schedules change."""
        group: dict[str, Any] = self.optimizer.param_groups[0]
        return group

    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        """Make one update from the gradients that are there, or that `closure` fills in."""
        self.optimizer.step(closure)

    def in_step(self) -> bool:
        """Whether nobody has replaced what the updates work on."""
        return True

    def state(self) -> dict[str, Any]:
        """All that a later run needs to go on, as plain numbers and arrays."""
        return {"torch": to_arrays(self.optimizer.state_dict())}

    def publish(self) -> None:
        """There is nothing to bring up to date."""

    def load(self, state: Mapping[str, Any]) -> bool:
        """Go on from what `state` returned; that of a rule, from another device, is not of use."""
        if "torch" in state:
            self.optimizer.load_state_dict(to_tensors(state["torch"]))
        return True


class RuleUpdates:
    """Updates of one vector by a rule of this file.

    Parameters
    ----------
    flat : FlatParameters
        Parameters and gradient.
    cls : type
        The class of `torch.optim` whose rule it is, a key of `RULES`.
    options : Mapping
        Its constructor's options.
    parameters : sequence of torch.nn.Parameter
        The parameters in the order in which the torch optimizer is to have them.
    """

    def __init__(
        self,
        flat: FlatParameters,
        cls: Any,
        options: Mapping[str, Any],
        parameters: list[torch.nn.Parameter],
    ) -> None:
        self.flat, self.cls, self.parameters = flat, cls, parameters
        self.rule, self._slots_for = RULES[cls]
        self.group: dict[str, Any] = {**defaults_of(cls), **options}
        self.slots: dict[str, Tensor] = {}
        for name in self._slots_for(self.group):
            self.slot(name)
        self.n_steps = 0
        # kernels count for themselves, on the device
        self.count = torch.zeros((), dtype=torch.float32, device=flat.values.device)
        self.one = torch.ones_like(self.count)
        self.mu_product = 1.0
        self._room: dict[str, Tensor] = {}
        self._optimizer: Any = None

    def slot(self, name: str) -> Tensor:
        """A vector that the rule keeps; new where an option that needs it has just been set."""
        if name not in self.slots:
            first = self.group.get("initial_accumulator_value", 0.0)
            self.slots[name] = torch.full_like(self.flat.values, first)
        return self.slots[name]

    @property
    def work(self) -> Tensor:
        """A vector to compute in."""
        return self._vector("work")

    @property
    def spare(self) -> Tensor:
        """Another vector to compute in."""
        return self._vector("spare")

    def _vector(self, name: str) -> Tensor:
        if name not in self._room:
            self._room[name] = torch.empty_like(self.flat.values)
        return self._room[name]

    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        """Make one update from the gradient in `flat`, which `closure` fills in if given."""
        if closure is not None:
            closure()
        self.n_steps += 1
        self.rule(self, self.flat.values, self.flat.gradient, self.group)

    # -- the optimizer of torch that would have done the same -----------------------------------

    @property
    def optimizer(self) -> Any:
        """An optimizer of torch in the same state, whose groups and state are this object's."""
        if self._optimizer is None:
            self.make_optimizer()
        self.publish()
        return self._optimizer

    def make_optimizer(self) -> None:
        """Make the torch optimizer; raises ValueError for options that it does not take."""
        known = defaults_of(self.cls)
        options = {k: v for k, v in self.group.items() if k in known}
        self._optimizer = construct("optimizer", self.cls, self.parameters, options)
        self._optimizer.param_groups[0].update(self.group)
        self.group = self._optimizer.param_groups[0]
        # a schedule would warn that no update came before its first step
        self._optimizer._opt_called = True
        if self._optimizer.state:
            self._fill_in()

    def publish(self) -> None:
        """Bring the state of the torch optimizer up to date, if there is one and it is ours."""
        if self._optimizer is not None and self.n_steps and self._shares():
            self._fill_in()

    def _fill_in(self) -> None:
        """The state of the torch optimizer: views of the slots, and the counts."""
        if self.cls is optim.SGD and not self.slots:
            return
        views = {k: self.flat.split(slot) for k, slot in self.slots.items()}
        for i, parameter in enumerate(self.flat.parameters):
            state = self._optimizer.state[parameter]
            for name, parts in views.items():
                state[name] = parts[i]
            if self.cls is not optim.SGD:
                state["step"] = torch.tensor(float(self.n_steps))
            if self.cls is optim.NAdam:
                state["mu_product"] = torch.tensor(self.mu_product)

    def _shares(self) -> bool:
        """Whether the state of the torch optimizer is the one that was published, or none yet."""
        state = self._optimizer.state.get(self.flat.parameters[0], {})
        groups = self._optimizer.param_groups
        if len(groups) != 1 or groups[0] is not self.group:
            return False
        return all(
            name not in state or state[name].data_ptr() == slot.data_ptr()
            for name, slot in self.slots.items()
        )

    def in_step(self) -> bool:
        """Whether the rule can go on, after taking over a state that somebody has loaded."""
        if self._optimizer is None:
            return True
        groups = self._optimizer.param_groups
        hooked = any(
            getattr(self._optimizer, name, None)
            for name in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
        )
        if hooked or len(groups) != 1 or not is_usual(groups[0]):
            return False
        if self._shares():
            return True
        states = [self._optimizer.state.get(p, {}) for p in self.flat.parameters]
        needed = {*self._slots_for(groups[0]), "step"}
        if self.cls is optim.SGD:
            # which has a buffer from the first update with momentum on
            begun = any(s.get("momentum_buffer") is not None for s in states)
            needed = {"momentum_buffer"} if begun else set()
        if not all(needed <= s.keys() for s in states):
            return False
        counts = {float(s.get("step", 1.0)) for s in states}
        if len(counts) != 1:
            return False
        self.group = groups[0]
        for name in needed - {"step"}:
            for part, state in zip(self.flat.split(self.slot(name)), states, strict=True):
                part.copy_(state[name])
        self._set_count(int(counts.pop()), float(states[0].get("mu_product", 1.0)))
        self._fill_in()
        return True

    def _set_count(self, n_steps: int, mu_product: float) -> None:
        self.n_steps, self.mu_product = n_steps, mu_product
        self.count.fill_(n_steps)

    # -- going on later -------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that a later run needs to go on, as plain numbers and arrays."""
        return {
            "n_steps": self.n_steps,
            "mu_product": self.mu_product,
            "slots": to_arrays(self.slots),
            "group": to_arrays({k: v for k, v in self.group.items() if k != "params"}),
        }

    def load(self, state: Mapping[str, Any]) -> bool:
        """Go on from what `state` returned; False if only the torch optimizer can."""
        if "torch" in state:
            self.optimizer.load_state_dict(to_tensors(state["torch"]))
            return self.in_step()
        for name, values in state["slots"].items():
            self.slot(name).copy_(torch.from_numpy(np.asarray(values)))
        self._set_count(state["n_steps"], state["mu_product"])
        self.group.update(to_tensors(state["group"]))
        return True


Rule = Callable[[RuleUpdates, Tensor, Tensor, Mapping[str, Any]], None]


def has_rule(cls: Any, options: Mapping[str, Any], device: torch.device) -> bool:
    """Whether this file does what the class would do with these options."""
    return cls in RULES and is_usual(options) and device.type in DEVICES


def is_usual(options: Mapping[str, Any]) -> bool:
    """Whether no option asks for what only torch's own class does."""
    return not any(options.get(name) for name in UNUSUAL)


def _decayed(u: RuleUpdates, group: Mapping[str, Any], decoupled: bool = False) -> Tensor:
    """The gradient after weight decay, of the parameters themselves if `decoupled`.

    `flat.gradient` stays as it is, since a projection looks at it after the update.
    """
    p, g, rate = u.flat.values, u.flat.gradient, group["weight_decay"]
    if not rate:
        return g
    if decoupled:
        p.mul_(1.0 - group["lr"] * rate)
        return g
    return torch.add(g, p, alpha=rate, out=u.spare)


def _sgd(u: RuleUpdates, p: Tensor, g: Tensor, group: Mapping[str, Any]) -> None:
    g = _decayed(u, group)
    momentum = group["momentum"]
    if momentum:
        buffer = u.slots.get("momentum_buffer")
        if buffer is None:
            buffer = u.slots["momentum_buffer"] = g.clone()
        else:
            buffer.mul_(momentum).add_(g, alpha=1.0 - group["dampening"])
        g = torch.add(g, buffer, alpha=momentum, out=u.work) if group["nesterov"] else buffer
    p.add_(g, alpha=-group["lr"])


def _adam(u: RuleUpdates, p: Tensor, g: Tensor, group: Mapping[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    decoupled = u.cls is optim.AdamW or bool(group.get("decoupled_weight_decay"))
    fused = FUSED_ADAMW if decoupled else FUSED_ADAM
    slots = u.slots
    if fused is None:
        g = _decayed(u, group, decoupled)
        slots["exp_avg"].lerp_(g, 1.0 - beta1)
        square = slots["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1.0 - beta2)
        if group["amsgrad"]:
            largest = u.slot("max_exp_avg_sq")
            square = torch.maximum(largest, square, out=largest)
        root = torch.sqrt(square, out=u.work).div_(math.sqrt(1.0 - beta2**u.n_steps))
        rate = group["lr"] / (1.0 - beta1**u.n_steps)
        p.addcdiv_(slots["exp_avg"], root.add_(group["eps"]), value=-rate)
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


def _nadam(u: RuleUpdates, p: Tensor, g: Tensor, group: Mapping[str, Any]) -> None:
    g = _decayed(u, group, group["decoupled_weight_decay"])
    (beta1, beta2), lr, t = group["betas"], group["lr"], u.n_steps
    mean, square = u.slots["exp_avg"], u.slots["exp_avg_sq"]
    mean.lerp_(g, 1.0 - beta1)
    square.mul_(beta2).addcmul_(g, g, value=1.0 - beta2)
    mu, following = (
        beta1 * (1.0 - 0.5 * 0.96 ** (i * group["momentum_decay"])) for i in (t, t + 1)
    )
    u.mu_product *= mu
    root = torch.sqrt(square, out=u.work).div_(math.sqrt(1.0 - beta2**t)).add_(group["eps"])
    p.addcdiv_(g, root, value=-lr * (1.0 - mu) / (1.0 - u.mu_product))
    p.addcdiv_(mean, root, value=-lr * following / (1.0 - u.mu_product * following))


def _radam(u: RuleUpdates, p: Tensor, g: Tensor, group: Mapping[str, Any]) -> None:
    g = _decayed(u, group, group["decoupled_weight_decay"])
    (beta1, beta2), t = group["betas"], u.n_steps
    mean, square = u.slots["exp_avg"], u.slots["exp_avg_sq"]
    mean.lerp_(g, 1.0 - beta1)
    square.mul_(beta2).addcmul_(g, g, value=1.0 - beta2)
    rate = group["lr"] / (1.0 - beta1**t)
    left = 1.0 - beta2**t
    longest = 2.0 / (1.0 - beta2) - 1.0
    length = longest - 2.0 * t * beta2**t / left
    if length <= 5.0:
        p.add_(mean, alpha=-rate)
        return
    rectified = (length - 4.0) * (length - 2.0) * longest
    rectified /= (longest - 4.0) * (longest - 2.0) * length
    root = torch.sqrt(square, out=u.work).add_(group["eps"])
    p.addcdiv_(mean, root, value=-rate * math.sqrt(rectified * left))


def _rmsprop(u: RuleUpdates, p: Tensor, g: Tensor, group: Mapping[str, Any]) -> None:
    g = _decayed(u, group)
    alpha, lr = group["alpha"], group["lr"]
    square = u.slots["square_avg"].mul_(alpha).addcmul_(g, g, value=1.0 - alpha)
    root = u.work
    if group["centered"]:
        mean = u.slot("grad_avg").lerp_(g, 1.0 - alpha)
        torch.addcmul(square, mean, mean, value=-1.0, out=root).sqrt_()
    else:
        torch.sqrt(square, out=root)
    root.add_(group["eps"])
    if group["momentum"]:
        buffer = u.slot("momentum_buffer").mul_(group["momentum"]).addcdiv_(g, root)
        p.add_(buffer, alpha=-lr)
    else:
        p.addcdiv_(g, root, value=-lr)


def _adagrad(u: RuleUpdates, p: Tensor, g: Tensor, group: Mapping[str, Any]) -> None:
    g = _decayed(u, group)
    total = u.slots["sum"].addcmul_(g, g)
    rate = group["lr"] / (1.0 + (u.n_steps - 1) * group["lr_decay"])
    p.addcdiv_(g, torch.sqrt(total, out=u.work).add_(group["eps"]), value=-rate)


def _adadelta(u: RuleUpdates, p: Tensor, g: Tensor, group: Mapping[str, Any]) -> None:
    g = _decayed(u, group)
    rho, eps = group["rho"], group["eps"]
    square, moved = u.slots["square_avg"], u.slots["acc_delta"]
    square.mul_(rho).addcmul_(g, g, value=1.0 - rho)
    root = torch.add(square, eps, out=u.work).sqrt_()
    delta = (moved + eps).sqrt_().div_(root).mul_(g)
    moved.mul_(rho).addcmul_(delta, delta, value=1.0 - rho)
    p.add_(delta, alpha=-group["lr"])


def _adamax(u: RuleUpdates, p: Tensor, g: Tensor, group: Mapping[str, Any]) -> None:
    g = _decayed(u, group)
    beta1, beta2 = group["betas"]
    mean, norm = u.slots["exp_avg"], u.slots["exp_inf"]
    mean.lerp_(g, 1.0 - beta1)
    size = torch.abs(g, out=u.work).add_(group["eps"])
    torch.maximum(norm.mul_(beta2), size, out=norm)
    p.addcdiv_(mean, norm, value=-group["lr"] / (1.0 - beta1**u.n_steps))


def _adam_slots(group: Mapping[str, Any]) -> list[str]:
    return ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]


def _rmsprop_slots(group: Mapping[str, Any]) -> list[str]:
    extra = ["momentum_buffer"] * bool(group["momentum"]) + ["grad_avg"] * bool(group["centered"])
    return ["square_avg", *extra]


# class of torch.optim: (rule, names of its vectors given the options)
RULES: dict[Any, tuple[Rule, Callable[[Mapping[str, Any]], list[str]]]] = {
    # its buffer begins as the first gradient
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
