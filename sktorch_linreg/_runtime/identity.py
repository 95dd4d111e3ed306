"""Identities of user objects, by which equal objects are recognised in any process.

Importable functions and classes are identified by their path. Others, and those of a script, whose
path refers to something else in another script, are identified by their contents: code, constants,
names, default values and closures. Instances are identified by class and state, arrays by their
values. Neither `repr`, which hides differences and shows addresses, nor pickled bytes, which differ
after a copy, would do.
"""

from __future__ import annotations

import builtins
import contextlib
import copyreg
import dis
import functools
import hashlib
import pickle
import sys
import types
import uuid
import warnings
import weakref
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

# modules whose names refer to other objects in another process
SCRIPTS = {None, "__main__", "__mp_main__"}
# class attributes that do not affect what the class does
NO_PART_OF_A_CLASS = {
    "__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__",
    "__annotate__", "__annotate_func__", "__annotations_cache__", "__firstlineno__",
    "__static_attributes__", "_abc_impl",
}  # fmt: skip

# types that are compared by value and type
PLAIN = {bool, int, float, str, type(None)}
# ends of the names under which a module keeps its hooks
HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")
# maximum number of parts of an object that is compared
MOST_PARTS = 1_000_000


class IncomparableError(TypeError):
    """An object contains something that cannot be compared, such as an open file or a lock."""


@dataclass(frozen=True)
class Identity:
    """Identity of an object: equal for objects that behave the same.

    `text`, if any, is for display only.
    """

    digest: str
    text: str = field(default="", compare=False)

    def __repr__(self) -> str:
        return self.text


def identify(value: Any, parameter: str, consequence: str = "") -> Identity:
    """The identity of a parameter's value; one that cannot be compared equals only itself.

    A callable other than a module keeps the identity it had when first seen, since its state may
    change while it is used.

    Parameters
    ----------
    value : object
        Any object.
    parameter : str
        Name of the parameter, for the warning.
    consequence : str
        What follows if it cannot be compared, as the text after "so"; if empty, do not warn.
    """
    if type(value) in (list, tuple):
        parts = [identify(part, parameter, consequence).digest for part in value]
        return Identity(fingerprint([type(value).__name__, *parts]))
    known = _seen.get(id(value))
    same = known is not None and known[0]() is value
    digest, reason = known[1:] if known is not None and same else _look_at(value)
    if reason and consequence:
        warnings.warn(
            f"{parameter} holds {reason}, which cannot be compared with others. It is treated as "
            f"different from every other value, so {consequence}.",
            stacklevel=2,
        )
    return Identity(digest)


# by address: a weak reference to the object, its digest, and why it cannot be compared, if so
_seen: dict[int, tuple[Any, str, str]] = {}


def _look_at(value: Any) -> tuple[str, str]:
    """The digest of an object seen for the first time, and why it cannot be compared, if so."""
    try:
        digest, reason = fingerprint(value), ""
    except IncomparableError as error:
        digest, reason = uuid.uuid4().hex, str(error)
    if reason or (callable(value) and not isinstance(value, type | nn.Module)):
        # without a weak reference the address might be reused by another object
        with contextlib.suppress(TypeError):
            forget = functools.partial(_forget, id(value))
            _seen[id(value)] = weakref.ref(value, forget), digest, reason
    return digest, reason


def _forget(key: int, _: Any) -> None:
    _seen.pop(key, None)


def key_of(options: Mapping[str, Any], parameter: str, consequence: str) -> Hashable:
    """A key equal for equal options: their values if these are plain, else their identities."""
    if all(type(v) in PLAIN for v in options.values()):
        # the fast path; equal numbers of different types are different options
        return tuple((k, type(v), v) for k, v in sorted(options.items()))
    return tuple((k, identify(v, parameter, consequence)) for k, v in sorted(options.items()))


def fingerprint(value: Any) -> str:
    """SHA-256 of the contents of an object.

    Raises
    ------
    IncomparableError
        If it contains something that cannot be compared.
    """
    try:
        return _Reader().digest(value).hex()
    except RecursionError:
        raise IncomparableError("an object that is nested too deeply") from None


def describe(value: Any) -> str:
    """An object in a few words; one that cannot be imported is told apart by part of its digest."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, torch.device | torch.dtype):
        return repr(str(value).removeprefix("torch."))
    if isinstance(value, list | tuple):
        return f"({', '.join(map(describe, value))})"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    path = _import_path(value)
    if path is not None:
        return path
    name = getattr(value, "__qualname__", type(value).__qualname__)
    try:
        return f"{name} {fingerprint(value)[:8]}"
    except IncomparableError:
        return str(name)


def _import_path(value: Any) -> str | None:
    """``module.name`` of a function or class that any process can import from there."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    callables = (type, types.FunctionType, types.BuiltinFunctionType)
    if not isinstance(value, callables) or module in SCRIPTS or not isinstance(name, str):
        return None
    return f"{module}.{name}" if _found(module, name) is value else None


def _found(module: Any, name: str) -> Any:
    found = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _global_names(code: types.CodeType) -> Iterator[str]:
    """Names of globals that code reads, including nested functions."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


class _Reader:
    """Computes the digest of an object from the digests of its parts."""

    def __init__(self) -> None:
        # objects being digested, each within the previous one
        self.within: dict[int, int] = {}
        self.n_parts = 0

    def digest(self, value: Any) -> bytes:
        self.n_parts += 1
        if self.n_parts > MOST_PARTS:
            raise IncomparableError("an object of too many parts")
        atom = _atom(value)
        if atom is not None:
            return _hash(*atom)
        if id(value) in self.within:
            # how many levels up it is, which does not depend on the starting point
            return _hash("again", str(len(self.within) - self.within[id(value)]))
        self.within[id(value)] = len(self.within)
        try:
            return self._compound(value)
        finally:
            del self.within[id(value)]

    def all(self, values: Iterable[Any]) -> bytes:
        """Digest of several values in order."""
        return _hash("all", *map(self.digest, values))

    def unordered(self, values: Iterable[Any]) -> bytes:
        return _hash("set", *sorted(map(self.digest, values)))

    def items(self, mapping: Any) -> bytes:
        """Digest of keys and values, regardless of their order."""
        pairs = (_hash(self.digest(k), self.digest(v)) for k, v in mapping.items())
        return _hash("items", *sorted(pairs))

    def _compound(self, value: Any) -> bytes:
        kind = type(value)
        if kind in (list, tuple, torch.Size):
            return _hash("list" if kind is list else "tuple", self.all(value))
        if kind in (set, frozenset):
            return _hash("set", self.unordered(value))
        if kind in (dict, types.MappingProxyType):
            return _hash("dict", self.items(value))
        if kind in (np.ndarray, np.memmap):
            # an array of objects
            return _hash("objects", str(value.shape), self.all(value.ravel().tolist()))
        if isinstance(value, type):
            return self._class(value)
        if kind is types.FunctionType:
            return self._function(value)
        if kind is types.CodeType:
            return self._code(value)
        if kind is types.MethodType:
            return _hash("method", self.digest(value.__self__), self.digest(value.__func__))
        if kind is types.BuiltinFunctionType:
            owner = value.__self__
            owner = None if isinstance(owner, types.ModuleType) else self.digest(owner)
            return _hash("builtin", str(value.__module__), value.__qualname__, owner or b"")
        if kind is functools.partial:
            parts = self.digest(value.func), self.all(value.args), self.items(value.keywords)
            return _hash("partial", *parts, self.items(vars(value)))
        if kind in (staticmethod, classmethod):
            return _hash(kind.__name__, self.digest(value.__func__))
        if kind is property:
            return _hash("property", self.all((value.fget, value.fset, value.fdel)))
        if kind is functools.cached_property:
            # the property itself may hold a lock
            return _hash("cached property", self.digest(value.func))
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        return self._instance(value)

    def _class(self, cls: type) -> bytes:
        path = _import_path(cls)
        if path is not None:
            return _hash("class", path)
        own = {k: v for k, v in vars(cls).items() if k not in NO_PART_OF_A_CLASS}
        kind = b"" if type(cls) is type else self.digest(type(cls))
        return _hash("class", cls.__name__, kind, self.all(cls.__bases__), self.items(own))

    def _function(self, function: types.FunctionType) -> bytes:
        path = _import_path(function)
        if path is not None:
            return _hash("function", path)
        parts = [
            self.digest(function.__code__),
            self.digest(function.__defaults__),
            self.digest(function.__kwdefaults__),
            self.all(map(_cell, function.__closure__ or ())),
            self.items({k: v for k, v in vars(function).items() if k != "__wrapped__"}),
        ]
        for name in sorted(set(_global_names(function.__code__))):
            value = function.__globals__.get(name, builtins)
            if value is not builtins:
                parts.append(_hash(name, self.digest(value)))
        return _hash("function", *parts)

    def _code(self, code: types.CodeType) -> bytes:
        numbers = (
            code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags,
            code.co_code, getattr(code, "co_exceptiontable", b""),
        )  # fmt: skip
        # names by which arguments can be passed
        n_arguments = code.co_argcount + code.co_kwonlyargcount
        names = (*code.co_varnames[:n_arguments], "in", *code.co_names)
        return _hash("code", self.all(numbers), self.all(names), self.all(code.co_consts))

    def _tensor(self, tensor: torch.Tensor) -> bytes:
        kind = type(tensor) if type(tensor) in (torch.Tensor, nn.Parameter) else None
        if kind is None or tensor.layout != torch.strided or tensor.is_quantized:
            return self._instance(tensor)
        if tensor.device.type == "meta":
            raise IncomparableError("a tensor without values")
        flat = tensor.detach().cpu().resolve_neg().resolve_conj().contiguous().reshape(-1)
        about = str((kind.__name__, tensor.dtype, tuple(tensor.shape), tensor.requires_grad))
        return _hash("tensor", about, flat.view(torch.uint8).numpy().tobytes())

    def _instance(self, value: Any) -> bytes:
        if isinstance(value, torch.Generator):
            return _hash("generator", str(value.device), self.digest(value.get_state()))
        if isinstance(value, np.random.RandomState):
            return _hash("random state", self.digest(value.get_state(legacy=False)))
        if isinstance(value, np.random.Generator):
            return _hash("generator", self.digest(value.bit_generator.state))
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            reduced = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except Exception as error:
            raise IncomparableError(f"an object of type {type(value).__name__}") from error
        if isinstance(reduced, str):
            module = pickle.whichmodule(value, reduced)  # type: ignore[attr-defined]
            if module in SCRIPTS or _found(module, reduced) is not value:
                raise IncomparableError(f"an object of type {type(value).__name__}")
            return _hash("global", module, reduced)
        make, args, *rest = reduced
        state, in_list, in_dict = (*rest, None, None, None)[:3]
        if isinstance(value, nn.Module) and isinstance(state, dict):
            state = _without_hook_numbers(state)
        parts = [
            self.digest(make),
            self.all(args),
            self.digest(state),
            self.all(in_list or ()),
            # items in order, as of an OrderedDict
            self.all(in_dict or ()),
        ]
        if isinstance(state, dict) and hasattr(value, "__dict__"):
            # functions left out of the state because they cannot be pickled
            left_out = vars(value).keys() - state.keys() - {"__wrapped__"}
            kept = {k: vars(value)[k] for k in left_out if callable(vars(value)[k])}
            parts.append(self.items(kept))
        if isinstance(value, nn.Module):
            # the order of submodules matters
            parts.append(self.all(name for name, _ in value.named_modules()))
        return _hash("instance", *parts)


def _without_hook_numbers(state: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a module without the numbers of its hooks, which differ after a copy."""
    return {
        name: list(value.values()) if name.endswith(HOOKS) and isinstance(value, dict) else value
        for name, value in state.items()
        if not isinstance(value, RemovableHandle)
    }


def _cell(cell: types.CellType) -> Any:
    """Contents of a closure cell, which may still be empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return "empty cell"


def _atom(value: Any) -> tuple[str | bytes, ...] | None:
    """Kind and value of an object without parts, None for one with parts."""
    if isinstance(value, np.generic):
        if value.dtype.kind in "biufcUS" and value.dtype.itemsize <= 16:
            value = value.item()
        if isinstance(value, np.generic):
            return "scalar", value.dtype.str, value.tobytes()
    kind = type(value)
    if kind is int:
        return "int", hex(value)
    if value is None or kind in (bool, type(Ellipsis), type(NotImplemented)):
        return kind.__name__, repr(value)
    if kind is float:
        return "float", value.hex()
    if kind is complex:
        return "complex", value.real.hex(), value.imag.hex()
    if kind is str:
        return "str", value
    if kind in (bytes, bytearray):
        return kind.__name__, bytes(value)
    if kind in (np.ndarray, np.memmap) and not value.dtype.hasobject:
        native = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("="))
        return "array", native.dtype.str, str(value.shape), native.tobytes()
    if isinstance(value, np.dtype | torch.dtype | torch.device | torch.layout):
        return "name", str(value)
    if isinstance(value, types.ModuleType):
        return "module", value.__name__
    if kind in (types.MemberDescriptorType, types.GetSetDescriptorType):
        return "slot", value.__name__
    return None


def _hash(*parts: str | bytes) -> bytes:
    """SHA-256 of parts, each prefixed by its length."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.digest()
