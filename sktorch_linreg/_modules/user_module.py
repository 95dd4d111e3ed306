"""Modules of the user's: their construction, their behaviour and their state as arrays."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .._errors import came_from, check_options, public_name
from .._runtime.aliases import Array
from .._runtime.copies import REMEDY, copy_arguments, copy_module, modules_in, shares_tensors
from .._runtime.seeds import kept_random_state, random_state_of
from .._runtime.sklearn_private import InvalidParameterError
from .scaled import Rescale, ScaledModule, Standardize

# names of constructor parameters that are filled in
FEATURE_NAMES = ("in_features", "n_features", "input_size", "input_dim")
TARGET_NAMES = ("out_features", "n_outputs", "output_size", "output_dim")
# what torch's errors about dtypes contain, and what to do
ABOUT_DTYPES = ("dtype", "scalar type")
INTEGERS = (
    "X holds integers, which reach the module as int64 because the features are not standardised. "
    "Pass X.astype(float) if the module takes floating-point numbers."
)
FLOATS = (
    "The features reach the module as floating-point numbers. For a module that takes integers, "
    "set standardize='target' or False, and pass an X of an integer dtype, such as that of "
    "OrdinalEncoder(dtype='int64')."
)
CODES = (
    "With standardize=True or 'features', columns of codes are standardised like all others. Set "
    "standardize='target' or False, and scale the other columns before."
)
# rows on which a module is tried
TRIED_ROWS = 4


@dataclass(frozen=True)
class ModuleRecipe:
    """What makes a module: the user's class, function or instance, and the shape of the data.

    Parameters
    ----------
    given : type, callable or torch.nn.Module
        What the user passed as `module`.
    row_shape : tuple of int
        Shape of a row of `X`.
    n_targets : int
        Number of targets.
    options : Mapping
        Arguments of the constructor.
    integers : bool
        Whether rows reach the module as int64.
    """

    given: Any
    row_shape: tuple[int, ...]
    n_targets: int
    options: Mapping[str, Any] = field(default_factory=dict)
    integers: bool = False

    @property
    def name(self) -> str:
        """The name of the class or function."""
        return name_of(self.given)

    def modules(self) -> list[nn.Module]:
        """The user's own modules: an instance, and those among the options."""
        return modules_in([self.given, *self.options.values()])

    def make(self) -> nn.Module:
        """A new module of the user's, or a copy of the instance."""
        with came_from("module", self.name):
            if isinstance(self.given, nn.Module):
                return copy_module(self.given, f"module={self.name}")
            # modules among the arguments are the user's too
            made = self.given(**copy_arguments(self._arguments(), "module__"))
        if not isinstance(made, nn.Module):
            raise InvalidParameterError(
                f"module={self.name} returned {_described(made)} instead of a torch.nn.Module. "
                "Pass a subclass of torch.nn.Module, a function that returns one, or an instance."
            )
        return made

    def _arguments(self) -> dict[str, Any]:
        """The options, with the numbers of features and targets filled in."""
        parameters = _parameters_of(self.given)
        required = [
            p.name
            for p in parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        arguments, flat = dict(self.options), len(self.row_shape) == 1
        for name in required:
            if name in arguments:
                continue
            if flat and name in FEATURE_NAMES:
                arguments[name] = self.row_shape[0]
            elif flat and name in TARGET_NAMES:
                arguments[name] = self.n_targets
        missing = [name for name in required if name not in arguments]
        if missing:
            why = ""
            if not flat and not {*missing}.isdisjoint((*FEATURE_NAMES, *TARGET_NAMES)):
                why = f" For rows of shape {self.row_shape}, no sizes are filled in."
            raise InvalidParameterError(
                f"module={self.name} requires {', '.join(missing)}.{why} Set "
                f"{' and '.join(f'module__{name}' for name in missing)}."
            )
        return arguments


def name_of(given: Any) -> str:
    """A short name of a class, function or instance."""
    if isinstance(given, nn.Module):
        return type(given).__name__
    return str(getattr(given, "__name__", None) or _described(given))


def import_path(given: Any) -> str:
    """The module and name from which a class or function can be imported."""
    return f"{getattr(given, '__module__', '?')}.{getattr(given, '__qualname__', name_of(given))}"


class UnsuitableState(ValueError):
    """Parameters that are not those of a module."""


def _described(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"a {public_name(type(value))} object"


def _parameters_of(given: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(given).parameters
    except (TypeError, ValueError):
        # some functions written in C have no signature
        return {}


def check_module(given: Any, options: Mapping[str, Any]) -> None:
    """Raise InvalidParameterError unless `given` makes a module from these options."""
    if isinstance(given, nn.Module):
        if options:
            listed = ", ".join(f"module__{name}" for name in options)
            raise InvalidParameterError(
                f"{listed} cannot be set, because module is an instance of "
                f"{type(given).__name__}, which has been constructed already. Pass the class, "
                f"module={type(given).__name__}, and its arguments as module__*."
            )
        return
    is_class = isinstance(given, type)
    if not callable(given) or (is_class and not issubclass(given, nn.Module)):
        raise InvalidParameterError(
            "module must be a subclass of torch.nn.Module, a function that returns one, or an "
            f"instance; got {_described(given)}."
        )
    parameters = _parameters_of(given).values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    check_options("module", name_of(given), options, known, lambda _: ())


class UserModule(ScaledModule):
    """A module of the user's between the scaling of its input and that of its output.

    Parameters
    ----------
    module : torch.nn.Module
        The user's module.
    recipe : ModuleRecipe
        What it was made from.
    log_link : bool
        Whether predictions are the exponential of its output.

    Notes
    -----
    Rows have their own shape in `forward`, which takes raw features once the module is fitted, and
    are flat in `outputs`, which the engine calls.
    """

    def __init__(self, module: nn.Module, recipe: ModuleRecipe, log_link: bool = False) -> None:
        super().__init__()
        self.standardize = Standardize(int(np.prod(recipe.row_shape)))
        self.module = module
        self.rescale = Rescale(recipe.n_targets, log_link)
        self.row_shape, self.n_targets = recipe.row_shape, recipe.n_targets
        self.integers = recipe.integers

    def sharing(self) -> UserModule:
        """A copy of the scaling around the same module of the user's."""
        return copy.deepcopy(self, {id(self.module): self.module})

    def cast_(self, dtype: torch.dtype, device: torch.device) -> UserModule:
        """Move to a device, and cast floating-point parameters and buffers, but no others."""
        for tensor in (*self.parameters(), *self.buffers()):
            tensor.data = tensor.data.to(device, dtype if tensor.is_floating_point() else None)
        return self

    def forward(self, x: Tensor) -> Tensor:
        if not self.integers:
            x = self.standardize(x.flatten(1))
        output = self.module(x.reshape(x.shape[0], *self.row_shape))
        return self.rescale(self.as_targets(output, x.shape[0]))  # type: ignore[no-any-return]

    def as_targets(self, output: Any, n_rows: int) -> Tensor:
        """The output of the user's module in the shape of the targets.

        Raises
        ------
        ValueError
            If it is not a tensor of one number per row and target.
        """
        wanted = n_rows, self.n_targets
        if not isinstance(output, Tensor):
            raise InvalidParameterError(
                f"module={type(self.module).__name__} returned a {type(output).__name__} instead "
                f"of a tensor of shape {wanted}, one number per row and target. Return only the "
                "predictions in its forward."
            )
        shape = tuple(output.shape)
        # a squeezed output of one row has lost its first dimension
        by_row = n_rows == 1 or (len(shape) > 0 and shape[0] == n_rows)
        if not by_row or output.numel() != n_rows * self.n_targets:
            raise InvalidParameterError(
                f"module={type(self.module).__name__} returned an output of shape {shape} for "
                f"{n_rows} rows, but y needs one of shape {wanted}, one number per row and target."
            )
        return output.reshape(wanted)

    # -- the engine's view ----------------------------------------------------------------------

    @property
    def user_module(self) -> nn.Module:  # type: ignore[override]
        """The user's module."""
        return self.module

    def outputs(self, x: Tensor) -> Tensor:
        """The outputs for flat rows, dense or sparse; the module sees a copy of them."""
        x = x.clone() if x.layout == torch.strided else x.to_dense()
        with self.blamed():
            return self(x)  # type: ignore[no-any-return]

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """A context in which errors say that they came from the user's module."""
        try:
            with came_from("module", self.module):
                yield
        except (RuntimeError, TypeError, IndexError) as error:
            if any(word in str(error) for word in ABOUT_DTYPES):
                error.add_note(INTEGERS if self.integers else FLOATS)
            elif isinstance(error, IndexError) and not self.integers:
                error.add_note(CODES)
            raise

    def as_input(self, x: Tensor) -> Tensor:
        """Rows in the dtype that the module takes, on its device."""
        x = super().as_input(x) if not self.integers else x.to(self.x_offset.device)
        return x if x.layout != torch.strided else x.reshape(len(x), -1)

    def to_user_rows(self, x: Tensor) -> Tensor:
        """Features in the user's units and shape."""
        if self.integers:
            return x.reshape(-1, *self.row_shape)
        rows = super().to_user_rows(x)
        return rows if x.layout != torch.strided else rows.reshape(-1, *self.row_shape)

    @property
    def _named(self) -> list[tuple[str, nn.Parameter]]:
        """The floating-point parameters; integers are constants."""
        return [(n, p) for n, p in self.module.named_parameters() if p.is_floating_point()]

    @property
    def weights(self) -> list[nn.Parameter]:
        """The trainable parameters that are penalised."""
        return [p for name, p in self._named if p.requires_grad and is_penalised(name, p)]

    @property
    def others(self) -> list[nn.Parameter]:
        """The trainable parameters that are not penalised."""
        return [p for name, p in self._named if p.requires_grad and not is_penalised(name, p)]

    @property
    def frozen(self) -> list[nn.Parameter]:
        """The parameters that are not trained."""
        return [p for _, p in self._named if not p.requires_grad]

    def kept_buffers(self) -> Mapping[str, Tensor]:
        """The buffers of the user's module, by name, but for sparse ones, which are constants."""
        found = self.module.named_buffers()
        return {name: b for name, b in found if b.layout == torch.strided}


def is_penalised(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a weight, rather than an intercept, a scale or a token."""
    if parameter.ndim < 2 or name.endswith("bias"):
        return False
    return not (parameter.ndim > 2 and parameter.shape[0] == 1)


# -- construction ---------------------------------------------------------------------------------


def make_user_module(
    recipe: ModuleRecipe, rows: Tensor, dtype: torch.dtype, device: torch.device, *, log_link: bool
) -> UserModule:
    """A new module, cast to its dtype and moved to its device, with its lazy layers shaped.

    The module is constructed on the CPU in torch's default precision, float32, so that its initial
    weights are the same for any dtype and device. `rows`, flat and in training units, are then
    passed once, in evaluation mode and without gradients, through a copy of it; through itself if
    that gives it parameters or their shapes.

    Raises
    ------
    ValueError
        If the output does not have the shape of the targets, or no parameter can be trained.
    """
    with _single_precision():
        made = recipe.make()
        module = UserModule(made, recipe, log_link)
        _finish(module, recipe, rows)
    parameters = list(made.parameters())
    if any(p.is_complex() for p in parameters):
        raise ValueError(
            f"module={recipe.name} has complex parameters, which are not supported. Represent each "
            "by two real numbers."
        )
    if not any(p.requires_grad for p in parameters):
        state = "are all frozen (requires_grad=False)" if parameters else "do not exist"
        raise ValueError(
            f"The parameters of module={recipe.name} {state}, so there is nothing to train. "
            "Unfreeze some, for example those of its last layer."
        )
    module.cast_(dtype, device)
    # an instance may be in evaluation mode, in whole or in part
    return module.train()


@contextmanager
def _single_precision() -> Iterator[None]:
    """Torch's default precision, whatever the user has set."""
    before = torch.get_default_dtype()
    if before == torch.float32:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _finish(module: UserModule, recipe: ModuleRecipe, rows: Tensor) -> None:
    """Let the first call of forward shape or create the parameters that still lack it."""
    if not _has_lazy(module.module) and _is_finished(module, recipe, rows):
        # buffers that forward sets are left to the first batch
        return
    _pass_once(module, rows)


def _is_finished(module: UserModule, recipe: ModuleRecipe, rows: Tensor) -> bool:
    """Whether forward creates no parameters, as tried on another such module."""
    with kept_random_state(torch.device("cpu")):
        try:
            tried = _another(module, recipe)
            _pass_once(tried, rows)
        except Exception:
            # if the module itself is to blame, its own error follows
            return False
    return _names_of(tried.module) == _names_of(module.module)


def _another(module: UserModule, recipe: ModuleRecipe) -> UserModule:
    """A copy of a module for trials, or a newly made one if it cannot be copied."""
    try:
        user = copy_module(module.module, recipe.name)
    except Exception:
        with _single_precision():
            user = recipe.make()
    other = UserModule(user, recipe, module.rescale.log_link)
    return other.cast_(module.x_offset.dtype, module.x_offset.device)


def _uses_others(module: UserModule, rows: Tensor) -> bool:
    """Whether outputs depend on trainable parameters that are not the module's own."""
    own = {id(p) for p in module.parameters()}
    with torch.enable_grad():
        todo, seen = [module.outputs(rows).grad_fn], set[Any]()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        # a gradient with respect to rows has other leaves
        if isinstance(leaf, nn.Parameter) and id(leaf) not in own:
            return True
        todo += [before for before, _ in node.next_functions]
    return False


def _has_lazy(module: nn.Module) -> bool:
    return any(map(is_lazy, (*module.parameters(), *module.buffers())))


def _names_of(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters()}


@torch.no_grad()
def _pass_once(module: UserModule, rows: Tensor, *, training: bool = False) -> None:
    """Pass rows through a new module, in evaluation mode unless in `training`."""
    user = module.module
    modes = {m: m.training for m in user.modules()}
    own = next((p for p in user.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if own is None else own.dtype
    rows = rows if module.integers else rows.to(dtype)
    rows = rows if own is None else rows.to(own.device)
    user.train(training)
    module.outputs(rows)
    for m in user.modules():
        m.training = modes.get(m, True)


@contextmanager
def keeping_originals(recipe: ModuleRecipe) -> Iterator[None]:
    """A context of trials, after which the buffers of the user's instances are as before.

    Raises
    ------
    InvalidParameterError
        If they had changed, so that a copy of an instance goes on using it.
    """
    found = [b for module in recipe.modules() for b in module.buffers() if not is_lazy(b)]
    kept = [(buffer, buffer.clone()) for buffer in found]
    changed = False
    try:
        yield
    finally:
        for buffer, before in kept:
            if not torch.equal(buffer, before):
                changed = True
                with torch.no_grad():
                    buffer.copy_(before)
    if changed:
        raise _uses_the_original(recipe)


def _uses_the_original(recipe: ModuleRecipe) -> InvalidParameterError:
    return InvalidParameterError(
        f"module={recipe.name} uses parameters or buffers that are not its own, such as those that "
        f"a function in it refers to: a copy would go on using the original. {REMEDY}"
    )


class Behaviour(NamedTuple):
    """What a module is seen to do on a few rows.

    `mixes_rows` says whether its output or its buffers depend in training on which rows come
    together, or may do so, `mixes_rows_in_eval` whether predictions do, `joins_last_row` whether a
    single row that is left over has to join the batch before it, and `draws` and `draws_in_eval`
    whether it draws random numbers.
    """

    mixes_rows: bool = False
    joins_last_row: bool = False
    draws: bool = False
    mixes_rows_in_eval: bool = False
    draws_in_eval: bool = False


@torch.no_grad()
def examine(module: UserModule, recipe: ModuleRecipe, rows: Tensor) -> Behaviour:
    """Try a copy of a module on a few flat rows, in training units.

    It is said to mix rows unless it is seen to treat them one by one.
    """
    device = module.x_offset.device
    rows = module.as_input(rows)
    uses_others = failed = False
    with kept_random_state(device):
        try:
            tried = _another(module, recipe)
            if _is_unfinished(tried.module, dict(module.module.named_parameters())):
                _pass_once(tried, rows)
            if shares_tensors(tried.module, module.module):
                # a trial would change them
                return Behaviour(True, True, False, True)
            uses_others = _uses_others(tried.train(), rows)
            # a last layer that starts at zero would hide what happens before it
            noise = torch.Generator().manual_seed(0)
            for p in tried.module.parameters():
                if p.is_floating_point():
                    p.add_(0.1 * torch.randn(p.shape, generator=noise).to(p))
            states = [random_state_of(device)]
            in_eval = _look(tried.eval(), rows)
            states.append(random_state_of(device))
            buffers = {name: b.clone() for name, b in tried.kept_buffers().items()}
            in_training = _look(tried.train(), rows)
            states.append(random_state_of(device))
            counts = _differ(buffers, tried.kept_buffers())
        except Exception:
            # if the module itself is to blame, its error recurs in training
            failed = True
    if uses_others and recipe.modules():
        raise _uses_the_original(recipe)
    if failed:
        return Behaviour(True, True, False, True)
    draws_in_eval, draws = (
        any(not torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in pairwise(states)
    )
    # a buffer that counts rows would miss those that are merged
    mixes = in_training.mixes or draws or counts
    return Behaviour(mixes, in_training.joins_last_row, draws, in_eval.mixes, draws_in_eval)


class _Look(NamedTuple):
    """Whether outputs for some rows may depend on others, and whether a lone row must join."""

    mixes: bool
    joins_last_row: bool


def _look(module: UserModule, rows: Tensor) -> _Look:
    """Compare outputs for rows together with those for parts."""
    together = module.outputs(rows)
    try:
        alone = module.outputs(rows[:1])
    except Exception:
        # such as that of batch normalisation
        return _Look(True, True)
    if len(rows) < 2 or bool((rows == rows[0]).all()):
        return _Look(True, True)
    parts = torch.cat([alone, module.outputs(rows[1:])])
    again = module.outputs(rows)
    tolerance = 1e-8 if together.dtype == torch.float64 else 1e-4
    alike = partial(torch.allclose, rtol=tolerance, atol=tolerance * float(together.abs().max()))
    if alike(parts, together):
        return _Look(False, False)
    # if outputs differ from call to call, as with dropout, only an error would tell anything
    return _Look(True, alike(again, together))


@torch.no_grad()
def predict_alike(a: UserModule, b: UserModule) -> bool:
    """Whether two fitted modules give the same outputs for some rows; if they draw, assume so."""
    device, n_entries = a.x_offset.device, int(np.prod(a.row_shape))
    rows = torch.zeros(TRIED_ROWS, n_entries, dtype=torch.int64)
    if not a.integers:
        rows = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
    kept = [(buffer, buffer.clone()) for m in (a, b) for buffer in m.buffers()]
    with kept_random_state(device):
        try:
            found = []
            for module in (a, b, b):
                before = module.scale_input, module.scale_output
                module.scale_input = module.scale_output = False
                found.append(module.eval().outputs(module.as_input(rows)))
                module.scale_input, module.scale_output = before
        except Exception:
            return False
        finally:
            for buffer, values in kept:
                buffer.copy_(values)
    tolerance = 1e-8 if found[0].dtype == torch.float64 else 1e-4
    alike = partial(torch.allclose, rtol=tolerance, atol=tolerance, equal_nan=True)
    return alike(found[0], found[1]) or not alike(found[1], found[2])


def _differ(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    """Whether buffers have changed."""
    if before.keys() != after.keys():
        return True
    return any(not torch.equal(values, after[name]) for name, values in before.items())


@torch.no_grad()
def load_arrays_(module: nn.Module, arrays: Mapping[str, Array]) -> None:
    """Set parameters and buffers by name.

    Raises
    ------
    UnsuitableState
        If a parameter is missing or of another shape; the module is then unchanged.
    """
    parameters, name_of_class = dict(module.named_parameters()), type(module).__name__
    for name, parameter in parameters.items():
        found = arrays.get(name)
        if found is None or found.shape != tuple(parameter.shape):
            has = "is missing" if found is None else f"has the shape {found.shape}"
            raise UnsuitableState(
                f"its parameter {name} {has}, but {name_of_class} needs one of shape "
                f"{tuple(parameter.shape)}"
            )
    owners = {name: _owner_of(module, name) for name in arrays if name not in parameters}
    for name, owner in owners.items():
        if owner is None:
            raise UnsuitableState(f"{name_of_class} has no parameter or buffer {name}")
    like = next((p for p in parameters.values()), torch.empty(0))
    for name, array in arrays.items():
        values = torch.from_numpy(np.array(array))
        if name in parameters:
            parameters[name].copy_(values)
        else:
            set_buffer_(module, name, values.to(like.device))


def set_buffer_(module: nn.Module, name: str, values: Tensor) -> None:
    """Set a buffer, which may have another shape or still be empty."""
    owner, last = _owner_of(module, name), name.rpartition(".")[2]
    if owner is None:
        return
    current = owner._buffers[last]
    if current is None:
        owner._buffers[last] = values
    else:
        current.data = values.to(current.device, current.dtype)


def _owner_of(module: nn.Module, name: str) -> Any:
    """The submodule with a buffer of this name, None if there is none."""
    path, _, last = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        return None
    return owner if last in owner._buffers else None


def _is_unfinished(made: nn.Module, arrays: Mapping[str, Any]) -> bool:
    """Whether the first call of forward still has to shape or create some of these."""
    names = {name for name, _ in (*made.named_parameters(), *made.named_buffers())}
    return _has_lazy(made) or not arrays.keys() <= names


def rebuild(recipe: ModuleRecipe, arrays: Mapping[str, Array], *, log_link: bool) -> UserModule:
    """A module with this state, constructed anew; on the CPU, in the dtype of the state."""
    with _single_precision():
        module = UserModule(recipe.make(), recipe, log_link)
        _finish_for(module, arrays)
    floats = [a.dtype for a in arrays.values() if a.dtype.kind == "f"]
    dtype = torch.float64 if np.float64 in floats else torch.float32
    module.cast_(dtype, torch.device("cpu"))
    load_arrays_(module.module, arrays)
    return module


def _finish_for(module: UserModule, arrays: Mapping[str, Array]) -> None:
    """Let calls of forward create what these arrays are for, as in the first fit."""
    # batch normalisation takes no single row
    n_entries = int(np.prod(module.row_shape))
    rows = torch.zeros(2, n_entries, dtype=torch.int64 if module.integers else torch.float32)
    for training in (False, True):
        if _is_unfinished(module.module, arrays):
            # what is missing afterwards is reported by name
            with suppress(Exception):
                _pass_once(module, rows, training=training)


def continue_from_(module: UserModule, arrays: Mapping[str, Array]) -> None:
    """Set the parameters and buffers of a new module to those of an earlier fit."""
    _finish_for(module, arrays)
    load_arrays_(module.module, arrays)
