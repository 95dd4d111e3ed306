"""Instances of modules, also in containers, as plain containers and arrays, and back."""

from __future__ import annotations

import functools
import importlib
import io
import pickle
from collections import OrderedDict
from contextlib import suppress
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy

from .._runtime.copies import PLAIN

TORCH = "torch.nn."
# what a lazy module sets up itself
LAZY_HOOKS = {
    "_load_hook", "_initialize_hook", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_load_state_dict_pre_hooks",
}  # fmt: skip


class _Writer:
    """Writes the attributes of modules as nested tuples; each tensor and module only once."""

    def __init__(self) -> None:
        self.tensors: list[dict[str, Any]] = []
        # the objects themselves are kept, so that their ids are not reused
        self.seen: dict[int, tuple[int, Any]] = {}

    def _number(self, value: Any, known: int) -> tuple[int, bool]:
        """The number of an object among those of its kind, and whether it is new."""
        if id(value) in self.seen:
            return self.seen[id(value)][0], False
        self.seen[id(value)] = known, value
        return known, True

    def write(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if type(value) in (dict, OrderedDict):
            pairs = [(k, self.write(v)) for k, v in value.items()]
            return "ordered" if type(value) is OrderedDict else "dict", pairs
        if type(value) in (list, tuple, set):
            return type(value).__name__, [self.write(v) for v in value]
        if isinstance(value, torch.device | torch.dtype):
            return type(value).__name__, _name(value)
        if type(value) is MethodType and isinstance(value.__self__, nn.Module):
            # such as a hook
            owner, name = value.__self__, value.__func__.__name__
            if getattr(type(owner), name, None) is value.__func__ and name not in vars(owner):
                return "method", (self.write(owner), name)
        if type(value) is functools.partial:
            return "partial", [*map(self.write, (value.func, value.args, value.keywords))]
        _refuse_hidden_torch(value)
        return "plain", value

    def _module(self, module: nn.Module) -> Any:
        number, is_new = self._number(module, len(self.seen))
        if not is_new:
            return "same", number
        cls = type(module)
        try:
            reduced: Any = module.__reduce_ex__(4)
        except RuntimeError:
            # a parametrised module
            reduced = None
        make, args, state = (*reduced, None)[:3] if isinstance(reduced, tuple) else (None,) * 3
        usual = getattr(make, "__name__", "") == "__newobj__" and args == (cls,)
        if not (usual and isinstance(state, dict)):
            raise TypeError(
                f"The module of class {cls.__name__} is parametrised or defines how it is pickled, "
                "so it cannot be stored as an instance. Pass its class, or a function that makes "
                "it, as module."
            )
        # attributes that the constructor of nn.Module sets need no entry while they are empty
        fresh = vars(nn.Module())
        state = {k: v for k, v in state.items() if not (k in fresh and _is_empty(v))}
        if isinstance(module, LazyModuleMixin):
            state = {k: v for k, v in state.items() if k not in LAZY_HOOKS}
        path = f"{cls.__module__}.{cls.__qualname__}"
        named = path if path.startswith(TORCH) else cls
        return "module", (number, named, [(k, self.write(v)) for k, v in state.items()])

    def _tensor(self, tensor: Tensor) -> Any:
        number, is_new = self._number(tensor, len(self.tensors))
        if is_new and is_lazy(tensor):
            kinds = {"buffer": not isinstance(tensor, nn.Parameter)}
            grad = {"requires_grad": bool(tensor.requires_grad)}
            self.tensors.append({"lazy": True, "dtype": _name(tensor.dtype), **kinds, **grad})
        elif is_new:
            values = tensor.detach().cpu()
            dtype = _name(values.dtype)
            # NumPy has no bfloat16
            values = values.float() if values.dtype == torch.bfloat16 else values
            self.tensors.append(
                {
                    "array": values.numpy().copy(),
                    "dtype": dtype,
                    "parameter": isinstance(tensor, nn.Parameter),
                    "requires_grad": bool(tensor.requires_grad),
                }
            )
        return "tensor", number


class _Seeker(pickle.Pickler):
    """Notices modules and tensors anywhere in what it pickles."""

    found: Any = None

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, nn.Module | Tensor):
            self.found = obj
            return type(obj).__name__
        return None


def _refuse_hidden_torch(value: Any) -> None:
    """Raise TypeError for an object whose modules or tensors a pickle would copy separately."""
    if type(value) in PLAIN:
        return
    seeker = _Seeker(io.BytesIO())
    # what cannot be pickled has an error of its own
    with suppress(Exception):
        seeker.dump(value)
    if seeker.found is not None:
        held = type(seeker.found).__name__
        raise TypeError(
            f"An attribute of the module holds a {held} in a {type(value).__name__}, so the module "
            "cannot be stored as an instance. Pass its class, or a function that makes it, as "
            "module."
        )


def _name(value: torch.dtype | torch.device) -> str:
    return str(value).removeprefix("torch.")


def _is_empty(value: Any) -> bool:
    return isinstance(value, dict | set) and not value


def holds_torch(value: Any) -> bool:
    """Whether a value is a module or a tensor, or a container with one."""
    if type(value) in (dict, OrderedDict):
        return any(map(holds_torch, value.values()))
    if type(value) in (list, tuple, set):
        return any(map(holds_torch, value))
    return isinstance(value, nn.Module | Tensor)


def to_plain(value: Any) -> dict[str, Any]:
    """A module as plain containers and arrays, with the classes that are not torch's own.

    The value may also be a container of modules and tensors.

    Raises
    ------
    TypeError
        If a class defines how it is pickled.
    """
    writer = _Writer()
    tree = writer.write(value)
    return {"tree": tree, "tensors": writer.tensors}


class _Reader:
    """Rebuilds what `_Writer` has written."""

    def __init__(self, tensors: list[dict[str, Any]]) -> None:
        self.tensors = [_lazy(**t) if "lazy" in t else _as_tensor(**t) for t in tensors]
        self.modules: dict[int, nn.Module] = {}

    def read(self, node: Any) -> Any:
        kind, value = node
        if kind in ("dict", "ordered"):
            pairs = [(k, self.read(v)) for k, v in value]
            return OrderedDict(pairs) if kind == "ordered" else dict(pairs)
        if kind in ("list", "tuple", "set"):
            return {"list": list, "tuple": tuple, "set": set}[kind](map(self.read, value))
        if kind == "device":
            return torch.device(value)
        if kind == "dtype":
            return getattr(torch, value)
        if kind == "tensor":
            return self.tensors[value]
        if kind == "same":
            return self.modules[value]
        if kind == "method":
            return getattr(self.read(value[0]), value[1])
        if kind == "partial":
            function, args, keywords = map(self.read, value)
            return functools.partial(function, *args, **keywords)
        return self._module(*value) if kind == "module" else value

    def _module(self, number: int, named: Any, state: list[Any]) -> nn.Module:
        cls = _torch_class(named) if isinstance(named, str) else named
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise ValueError(f"{named!r} is not a subclass of torch.nn.Module")
        module: Any = cls.__new__(cls)
        nn.Module.__init__(module)
        self.modules[number] = module
        module.__setstate__({k: self.read(v) for k, v in state})
        if isinstance(module, LazyModuleMixin):
            _add_lazy_hooks(module)
        made: nn.Module = module
        return made


def _torch_class(path: str) -> Any:
    """A class of torch's own by its path; nothing else is imported."""
    module, _, name = path.rpartition(".")
    if not path.startswith(TORCH):
        raise ValueError(f"{path!r} is not a class of torch.nn")
    return getattr(importlib.import_module(module), name)


def _add_lazy_hooks(module: Any) -> None:
    """What the constructor of `LazyModuleMixin` does, after that of the layer."""
    module._load_hook = module._register_load_state_dict_pre_hook(module._lazy_load_hook)
    infer = module._infer_parameters
    module._initialize_hook = module.register_forward_pre_hook(infer, with_kwargs=True)


def _lazy(lazy: bool, dtype: str, buffer: bool, requires_grad: bool) -> Tensor:
    cls: Any = UninitializedBuffer if buffer else UninitializedParameter
    tensor: Tensor = cls(requires_grad=requires_grad, dtype=getattr(torch, dtype))
    return tensor


def _as_tensor(array: Any, dtype: str, parameter: bool, requires_grad: bool) -> Tensor:
    values = torch.from_numpy(np.array(array)).to(getattr(torch, dtype))
    if parameter:
        return nn.Parameter(values, requires_grad=requires_grad)
    return values.requires_grad_(requires_grad)


def is_plain(value: Any) -> bool:
    """Whether a value is what `to_plain` returns."""
    return isinstance(value, dict) and value.keys() == {"tree", "tensors"}


def from_plain(plain: dict[str, Any]) -> Any:
    """Inverse of `to_plain`."""
    return _Reader(plain["tensors"]).read(plain["tree"])
