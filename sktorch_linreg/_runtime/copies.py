"""Copies of modules, which must not go on using parts of the original."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from .sklearn_private import InvalidParameterError

CONTAINERS = (list, tuple, set)
# what may hold functions, or be one
FOLLOWED = (*CONTAINERS, Mapping, functools.partial, FunctionType, MethodType, nn.Module)
PLAIN = (bool, int, float, complex, str, bytes, type(None))
REMEDY = "Pass a class, or a function that makes it, instead of an instance."


def copy_modules(given: Mapping[str, Any]) -> dict[str, Any]:
    """Deep copies of modules, or of values that hold some, by the names in error messages.

    What several of them share, their copies share too.

    Raises
    ------
    InvalidParameterError
        If a copy would go on using parts of the original: parameters that some class keeps, or what
        functions refer to; or if it would lack hooks of parameters.
    """
    copies: dict[int, Any] = {}
    modules = [m for value in given.values() for m in modules_in(value)]
    if any(isinstance(part, torch.jit.ScriptModule) for m in modules for part in m.modules()):
        raise InvalidParameterError(
            f"{next(iter(given))} cannot be copied, because it is scripted or traced, and its "
            f"copies run the original. {REMEDY}"
        )
    for tensor in _intermediate(modules):
        # left over from a call; deepcopy refuses it, since it belongs to a graph
        copies[id(tensor)] = tensor.detach().clone()
    out = {}
    for name, value in given.items():
        out[name] = made = copy.deepcopy(value, copies)
        if shares_tensors(made, value, trainable=True):
            raise InvalidParameterError(
                f"{name} cannot be copied, because a class in it defines __deepcopy__ and keeps "
                f"its trainable parameters. {REMEDY}"
            )
    for name, value in given.items():
        if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in _parameters(value)):
            raise InvalidParameterError(
                f"{name} cannot be copied with the hooks of its parameters. {REMEDY}"
            )
        own = [part for module in modules_in(out[name]) for part in module.modules()]
        for function in _functions_in(out[name], set()):
            if _refers_to(function, copies, own):
                raise InvalidParameterError(
                    f"{name} cannot be copied, because the function {function.__qualname__} in it "
                    "refers to part of it, and that of a copy would still refer to the original. "
                    f"{REMEDY} Or replace that function by a method."
                )
    return out


def copy_module(module: nn.Module, name: str) -> nn.Module:
    """A deep copy of one module; see `copy_modules`."""
    made: nn.Module = copy_modules({name: module})[name]
    return made


def copied(value: Any) -> Any:
    """A deep copy of a value, or the value itself if it cannot be copied."""
    try:
        return copy.deepcopy(value)
    except Exception:
        return value


def copy_arguments(arguments: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Copies of constructor arguments; those that hold no modules may stay as they are."""
    own = {name: value for name, value in arguments.items() if modules_in(value)}
    made = copy_modules({f"{prefix}{name}": value for name, value in own.items()})
    return {k: made[f"{prefix}{k}"] if k in own else copied(v) for k, v in arguments.items()}


def modules_in(value: Any) -> list[nn.Module]:
    """The modules in a value: itself, or in containers."""
    if isinstance(value, nn.Module):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, CONTAINERS):
        return []
    return [m for part in value if isinstance(part, FOLLOWED) for m in modules_in(part)]


def _parameters(value: Any) -> list[nn.Parameter]:
    return [p for module in modules_in(value) for p in module.parameters()]


def _intermediate(modules: list[nn.Module]) -> Iterator[Tensor]:
    """The tensors among the attributes of modules that belong to a graph."""
    for module in (part for m in modules for part in m.modules()):
        todo = [v for v in vars(module).values() if isinstance(v, Tensor | Mapping | list | tuple)]
        for value in todo:
            parts = value.values() if isinstance(value, Mapping) else value
            for part in [value] if isinstance(value, Tensor) else parts:
                if isinstance(part, Tensor) and not part.is_leaf:
                    yield part


def shares_tensors(a: Any, b: Any, *, trainable: bool = False) -> bool:
    """Whether two values have parameters or buffers in common, or trainable parameters."""
    return not _tensors_of(a, trainable).isdisjoint(_tensors_of(b, trainable))


def _tensors_of(value: Any, trainable: bool) -> set[int]:
    found: list[Tensor] = [p for p in _parameters(value) if p.requires_grad or not trainable]
    if not trainable:
        found += [b for module in modules_in(value) for b in module.buffers()]
    return {id(tensor) for tensor in found}


def _functions_in(value: Any, seen: set[int]) -> Iterator[FunctionType]:
    """The functions among the attributes and hooks of modules."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, FunctionType):
        yield value
        return
    for part in _parts(vars(value) if isinstance(value, nn.Module) else value):
        if isinstance(part, FOLLOWED):
            yield from _functions_in(part, seen)


def _parts(value: Any) -> list[Any]:
    """What a container, a partial function or a method holds."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__func__]
    return list(value) if isinstance(value, CONTAINERS) else []


def _references(function: FunctionType) -> list[Any]:
    """What a function refers to by its closure and its default values."""
    found = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            # not set yet
            continue
    return found


def _is_trainable(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _is_constant(value: Any) -> bool:
    """Whether a container holds plain values, so that a copy of it serves as well."""
    return bool(_parts(value)) and all(isinstance(part, PLAIN) for part in _parts(value))


def _refers_to(function: FunctionType, copies: Mapping[int, Any], own: Sequence[nn.Module]) -> bool:
    """Whether a function refers to something that was copied, or to another module of its class.

    The latter is the original of a module that is itself a copy, as in a cloned estimator.
    """
    todo, seen = _references(function), {id(function)}
    numbers = {id(module) for module in own}
    classes = {type(m) for m in own if not type(m).__module__.startswith("torch.")}
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if copies.get(id(value), value) is not value and not _is_constant(value):
            return True
        if type(value) in classes and id(value) not in numbers and _is_trainable(value):
            return True
        if isinstance(value, FunctionType):
            todo += _references(value)
        elif isinstance(value, MethodType):
            todo.append(value.__self__)
        todo += [part for part in _parts(value) if isinstance(part, (*FOLLOWED, Tensor))]
    return False
