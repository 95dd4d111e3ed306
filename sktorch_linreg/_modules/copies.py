"""Copies of modules, which must not go on using parts of the original."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from .._runtime.sklearn_private import InvalidParameterError

CONTAINERS = (list, tuple, set)


def copy_module(module: nn.Module, name: str) -> nn.Module:
    """A deep copy of a module, which error messages call `name`.

    Raises
    ------
    InvalidParameterError
        If the copy would go on using parts of the original: trainable parameters that some class
        does not copy, or what functions in the module refer to.
    """
    copies: dict[int, Any] = {}
    made = copy.deepcopy(module, copies)
    if shares_tensors(made, module, trainable=True):
        raise InvalidParameterError(
            f"{name} cannot be copied, because a class in it defines __deepcopy__ and keeps its "
            "trainable parameters. Pass as module a function that makes it."
        )
    for function in _functions_in(made, set()):
        if _refers_to(function, copies, _own_classes(made), {id(m) for m in made.modules()}):
            raise InvalidParameterError(
                f"{name} cannot be copied, because the function {function.__qualname__} in it "
                "refers to part of it, and that of a copy would still refer to the original. Pass "
                "as module the class, or a function that makes it; or replace that function by a "
                "method."
            )
    return made


def copied(value: Any, otherwise: Any) -> Any:
    """A deep copy of a value, or `otherwise` if it cannot be copied."""
    try:
        return copy.deepcopy(value)
    except Exception:
        return otherwise


def shares_tensors(a: nn.Module, b: nn.Module, *, trainable: bool = False) -> bool:
    """Whether two modules have parameters or buffers in common, or trainable parameters."""
    return not _tensors_of(a, trainable).isdisjoint(_tensors_of(b, trainable))


def _tensors_of(module: nn.Module, trainable: bool) -> set[int]:
    found: list[Tensor] = [p for p in module.parameters() if p.requires_grad or not trainable]
    if not trainable:
        found += module.buffers()
    return {id(tensor) for tensor in found}


def _own_classes(module: nn.Module) -> set[type]:
    """The classes of a module and of its parts, but for torch's own."""
    classes = {type(m) for m in module.modules()}
    return {type(module)} | {c for c in classes if not c.__module__.startswith("torch.")}


def _functions_in(value: Any, seen: set[int]) -> Iterator[FunctionType]:
    """The functions among the attributes and hooks of a module."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, FunctionType):
        yield value
        return
    for part in _parts(vars(value) if isinstance(value, nn.Module) else value):
        yield from _functions_in(part, seen)


def _parts(value: Any) -> list[Any]:
    """What a container or a partial function holds."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
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


def _refers_to(
    function: FunctionType, copies: Mapping[int, Any], classes: set[type], own: set[int]
) -> bool:
    """Whether a function refers to something that was copied, or to another such module.

    The latter is the original of a module that is itself a copy, as of a cloned estimator.
    """
    todo, seen = _references(function), {id(function)}
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        copy_of_it = copies.get(id(value), value)
        if copy_of_it is not value:
            return True
        if isinstance(value, nn.Module) and type(value) in classes and id(value) not in own:
            return True
        if isinstance(value, FunctionType):
            todo += _references(value)
        elif isinstance(value, MethodType):
            todo.append(value.__self__)
        todo += _parts(value)
    return False
