"""Updates of all parameters: by a rule on one vector, or by a torch optimizer.

The torch optimizer of a rule is only created on demand, for a schedule, a callback or the user.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, optim

from .._data.arrays import as_tensor
from .._errors import came_from
from .._runtime.devices import DEVICES
from .construct import construct, defaults_of, is_torch_or_ours
from .state import to_arrays, to_tensors
from .update_rules import RULES

# maximum number of per-model options whose vectors are cached
FEW_OPTIONS = 16
TINY_RATE = 1e-20
# options that only torch's own classes support
UNUSUAL = ("maximize", "capturable", "differentiable", "foreach", "fused")


def closure_call(step: Callable[..., Any], closure: Callable[[], Tensor]) -> Callable[[], Any]:
    """A call of an optimizer's `step`, with the closure if it takes one."""
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


class _Evaluated:
    """A closure that is evaluated before the optimizer calls it, since some never do.

    The first call returns the known value if the parameters are unchanged.
    """

    def __init__(self, closure: Callable[[], Tensor], parameters: list[Tensor]) -> None:
        self.closure, self.asked = closure, False
        self.value = closure()
        self.kept = [
            (p, p.detach().clone(), p.grad, None if p.grad is None else p.grad.clone())
            for p in parameters
        ]

    def __call__(self) -> Tensor:
        if self.asked or not all(torch.equal(p.detach(), before) for p, before, *_ in self.kept):
            self.asked = True
            return self.closure()
        self.asked = True
        for p, _, grad, before in self.kept:
            # an optimizer may have cleared the gradient before calling the closure
            if grad is not None and before is not None:
                p.grad = grad.copy_(before)
        return self.value


class TorchUpdates:
    """Updates by a torch optimizer or a user-defined one.

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

    def step(self, closure: Callable[[], Tensor] | None = None) -> Any:
        """Make one update from the current gradients, or those that `closure` computes.

        Returns what the optimizer returns: the value of the closure before the update.
        """
        with came_from("optimizer", self.optimizer):
            if closure is None:
                return self.optimizer.step()
            if is_torch_or_ours(type(self.optimizer)):
                return self.optimizer.step(closure)
            # a user-defined optimizer may take no closure, or never call it
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            return closure_call(self.optimizer.step, _Evaluated(closure, parameters))()

    def in_step(self) -> bool:
        """Whether the updates match the torch optimizer; always true here."""
        return True

    def state(self) -> dict[str, Any]:
        """All state that a later run needs to continue, as plain numbers and arrays."""
        return {"torch": to_arrays(self.optimizer.state_dict())}

    def publish(self) -> None:
        """Do nothing: the torch optimizer is always up to date."""

    def load(self, state: Mapping[str, Any]) -> bool:
        """Restore what `state` returned; the state of a rule, from another device, is ignored."""
        if "torch" in state:
            self.optimizer.load_state_dict(to_tensors(state["torch"]))
        return True


class RuleUpdates:
    """Updates of one vector by a rule of `update_rules`.

    Parameters
    ----------
    flat : FlatParameters or StackedParameters
        Parameters and gradient.
    cls : type
        The `torch.optim` class whose rule is used, a key of `RULES`.
    options : Mapping
        Its constructor's options.
    parameters : sequence of torch.nn.Parameter
        The parameters in the order of the torch optimizer.
    expand : callable, optional
        Expands a number per model over the parameters of many models, whose options may then be
        such tensors.
    """

    def __init__(
        self,
        flat: Any,
        cls: Any,
        options: Mapping[str, Any],
        parameters: list[torch.nn.Parameter],
        expand: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.flat, self.cls, self.parameters = flat, cls, parameters
        self.expand = expand
        self._spread: dict[int, tuple[Tensor, Tensor]] = {}
        self.rule, self._slots_for = RULES[cls]
        self.group: dict[str, Any] = {**defaults_of(cls), **options}
        self.slots: dict[str, Tensor] = {}
        for name in self._slots_for(self.group):
            self.slot(name)
        self.n_steps = 0
        # fused kernels keep their own count, on the device
        self.count = torch.zeros((), dtype=torch.float32, device=flat.values.device)
        self.one = torch.ones_like(self.count)
        self.mu_product: Any = 1.0
        self._over_rate: tuple[Any, Any, Tensor, Tensor] | None = None
        self._room: dict[str, Tensor] = {}
        self._optimizer: Any = None

    def slot(self, name: str) -> Tensor:
        """A state vector of the rule, created if an option that needs it has just been set."""
        if name not in self.slots:
            first = self.group.get("initial_accumulator_value", 0.0)
            self.slots[name] = torch.zeros_like(self.flat.values).add_(self.full(first))
        return self.slots[name]

    @property
    def work(self) -> Tensor:
        """A scratch vector."""
        return self._vector("work")

    @property
    def spare(self) -> Tensor:
        """A second scratch vector."""
        return self._vector("spare")

    def _vector(self, name: str) -> Tensor:
        if name not in self._room:
            self._room[name] = torch.empty_like(self.flat.values)
        return self._room[name]

    @property
    def varied(self) -> bool:
        """Whether options may differ between models."""
        return self.expand is not None

    def full(self, option: Any) -> Any:
        """A number as it is, or one per model expanded over the vector of parameters."""
        if not isinstance(option, Tensor) or self.expand is None:
            return option
        kept = self._spread.get(id(option))
        if kept is None:
            if len(self._spread) > FEW_OPTIONS:
                self._spread.clear()
            # also holds the option itself, so that its id is not reused
            kept = self._spread[id(option)] = option, self.expand(option)
        return kept[1]

    def over_rate(self, rate: Tensor, eps: Any) -> tuple[Tensor, Tensor]:
        """1 / rate and eps / rate as vectors, cached while both are the same objects."""
        kept = self._over_rate
        if kept is None or kept[0] is not rate or kept[1] is not eps:
            # a schedule may end at a rate of 0, at which nothing moves
            inverse = 1.0 / rate.clamp(min=TINY_RATE)
            kept = self._over_rate = (rate, eps, self.full(inverse), self.full(inverse * eps))
        return kept[2], kept[3]

    def again(self, vector: Tensor) -> Tensor:
        """The vector, or a copy where using it in an update would overwrite it."""
        return vector.clone() if self.varied else vector

    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        """Make one update from the gradient in `flat`, which `closure` fills in if given."""
        if closure is not None:
            closure()
        self.n_steps += 1
        self.rule(self, self.flat.values, self.flat.gradient, self.group)

    # -- the equivalent torch optimizer ---------------------------------------------------------

    @property
    def optimizer(self) -> Any:
        """A torch optimizer in the same state, sharing groups and state with this object."""
        if self._optimizer is None:
            self.make_optimizer()
        self.publish()
        return self._optimizer

    def make_optimizer(self) -> None:
        """Create the torch optimizer; raises ValueError for options that it rejects."""
        known = defaults_of(self.cls)
        options = {k: v for k, v in self.group.items() if k in known}
        self._optimizer = construct("optimizer", self.cls, self.parameters, options)
        self._optimizer.param_groups[0].update(self.group)
        self.group = self._optimizer.param_groups[0]
        # a schedule would warn that its first step came before any update
        self._optimizer._opt_called = True
        if self._optimizer.state:
            self._fill_in()

    def publish(self) -> None:
        """Bring the torch optimizer's state up to date, if it exists and is still shared."""
        if self._optimizer is not None and self.n_steps and self._shares():
            self._fill_in()

    def _fill_in(self) -> None:
        """Fill in the torch optimizer's state: views of the slots, and the counts."""
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
        """Whether the torch optimizer's state is still the published one, or empty."""
        state = self._optimizer.state.get(self.flat.parameters[0], {})
        groups = self._optimizer.param_groups
        if len(groups) != 1 or groups[0] is not self.group:
            return False
        return all(
            name not in state or state[name].data_ptr() == slot.data_ptr()
            for name, slot in self.slots.items()
        )

    def in_step(self) -> bool:
        """Whether the rule can continue, after adopting a state loaded into the torch optimizer."""
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
            # SGD has a buffer only after the first update with momentum
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
        self.set_count(int(counts.pop()), float(states[0].get("mu_product", 1.0)))
        self._fill_in()
        return True

    def set_count(self, n_steps: int, mu_product: Any) -> None:
        """Set the number of updates made, for the formulas and for the fused kernels."""
        self.n_steps, self.mu_product = n_steps, mu_product
        self.count.fill_(n_steps)

    # -- saving and restoring -------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All state that a later run needs to continue, as plain numbers and arrays."""
        return {
            "n_steps": self.n_steps,
            "mu_product": self.mu_product,
            "slots": to_arrays(self.slots),
            "group": to_arrays({k: v for k, v in self.group.items() if k != "params"}),
        }

    def load(self, state: Mapping[str, Any]) -> bool:
        """Restore what `state` returned; False if only the torch optimizer can continue from it."""
        if "torch" in state:
            self.optimizer.load_state_dict(to_tensors(state["torch"]))
            return self.in_step()
        for name, values in state["slots"].items():
            self.slot(name).copy_(as_tensor(values))
        self.set_count(state["n_steps"], state["mu_product"])
        self.group.update(to_tensors(state["group"]))
        return True


def rate_of(group: Mapping[str, Any]) -> float:
    """The learning rate of a parameter group; NaN if it has none."""
    lr = group.get("lr")
    return float(lr) if isinstance(lr, Real | Tensor) else math.nan


def has_rule(cls: Any, options: Mapping[str, Any], device: torch.device) -> bool:
    """Whether there is a rule for this class with these options on this device."""
    return cls in RULES and is_usual(options) and device.type in DEVICES


def is_usual(options: Mapping[str, Any]) -> bool:
    """Whether no option requires torch's own class."""
    return not any(options.get(name) for name in UNUSUAL)
