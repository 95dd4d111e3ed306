"""Many modules of the user's, or networks with losses of the user's, trained as one stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from .._data.rows import TrainingData
from .._modules.user_module import Behaviour, set_buffer_
from .._runtime.aliases import FloatArray
from .._runtime.copies import shares_tensors
from .._runtime.seeds import kept_random_state, torch_draws_from
from .._runtime.torch_modes import own_torch_settings
from .._spec import FitSpec, RunContext
from .batches import TabularDataset
from .begin import SCALED_ROWS, Beginning, begin_network, begin_user_module, some_rows
from .many_models import ManyModels, Specs
from .prepare import Prepared, prepare
from .stacked_batches import Order, StackedBatch
from .stacked_modules import ModuleAndLoss, ModulesResult, StackedModules, StackedState
from .stacked_result import StackResult

# models of a trial
TRIED_MODELS = 2


class NotStackable(Exception):
    """Modules cannot be trained as a stack; the message is the reason."""


@dataclass(frozen=True)
class Stackable:
    """What a trial has found out about a stack of modules.

    Parameters
    ----------
    behaviour : Behaviour
        What the module does on a few rows.
    in_eval : bool
        Whether evaluation can be vectorised too.
    n_parameters : int
        Numbers in the parameters and buffers of a model.
    n_entries : int
        Numbers per row that a model keeps for its gradients.
    """

    behaviour: Behaviour
    in_eval: bool
    n_parameters: int
    n_entries: int


class ManyModules(ManyModels):
    """Training of a stack of modules by vectorised calls; they share a seed and a number of rows.

    Parameters
    ----------
    data, owner, specs, curves, tell
        As for `ManyModels`.
    in_eval : bool
        Whether evaluation can be vectorised too.
    """

    parameters: StackedState
    result_class = ModulesResult

    def __init__(
        self,
        data: Sequence[TrainingData],
        owner: Sequence[int],
        specs: Specs,
        curves: bool = False,
        tell: Callable[[int], None] | None = None,
        *,
        in_eval: bool,
    ) -> None:
        self.begun: list[Beginning] = []
        self.in_eval, self.draws = in_eval, specs[0][0].behaviour.draws
        super().__init__(data, owner, specs, curves, tell)
        result = cast(ModulesResult, self.out)
        result.in_eval, result.seed = in_eval, self.spec.training.seed

    def _prepare(self, data: Sequence[TrainingData]) -> list[Prepared]:
        """Prepare each data set, and begin with a module for each group."""
        # each data set may shape or initialise a module in its own way
        spec = self.spec
        if spec.shape.module is not None:
            own = [begin_user_module(d, spec, RunContext(), None, spec.behaviour) for d in data]
            self.begun = [own[i] for i in self.owner]
        prepared = super()._prepare(data)
        if len({p.rows.n_samples for p in prepared}) > 1:
            # rows of zeros, which would fill up the others, may be wrong for a module
            raise ValueError("Merging equal rows left data sets of different lengths.")
        if spec.shape.module is None:
            self.begun = [_begin_network(prepared[0], spec)] * len(self.owner)
        return prepared

    def make_parameters(self, n_groups: int, n_each: int) -> StackedState:
        """The state of all models, not yet initialised."""
        return StackedState(_both(self.begun[0]), n_groups, n_each)

    def draw_start(self) -> None:
        """Set all models to the state of the module that was constructed for their rows."""
        order = torch.default_generator if self.draws else self.begun[0].order
        one = Order(order, self.packed.counts[0])
        for g, begun in enumerate(self.begun):
            self.parameters.start_group(g, _both(begun))
            self.orders.append(one)

    def make_gradients(self) -> StackedModules:
        """What computes outputs and gradients of the remaining models."""
        return StackedModules(self.parameters, in_eval=self.in_eval, draws=self.draws)

    def train_epoch(self) -> FloatArray:
        """Update over all batches; returns the mean objectives, measured before each update."""
        with torch_draws_from(self.begun[0].of_code, self.spec.device):
            return super().train_epoch()

    def validation_loss(self) -> FloatArray | None:
        """The mean losses over held-out rows."""
        with torch_draws_from(self.begun[0].of_code, self.spec.device):
            return super().validation_loss()


def _both(begun: Beginning) -> ModuleAndLoss:
    return ModuleAndLoss(begun.module, begun.spec.objective.loss)


def _begin_network(prepared: Prepared, spec: FitSpec) -> Beginning:
    training, _ = prepared.datasets(spec, RunContext(), TabularDataset)
    return begin_network(prepared, training, spec, RunContext(), None)


def train_modules(
    data: Sequence[TrainingData],
    owner: Sequence[int],
    specs: Specs,
    *,
    in_eval: bool,
    curves: bool = False,
    tell: Callable[[int], None] | None = None,
) -> StackResult:
    """Train a stack of modules; see `ManyModules` for the parameters."""
    with own_torch_settings(specs[0][0].device), torch.no_grad():
        return ManyModules(data, owner, specs, curves, tell, in_eval=in_eval).train()


# -- what can be stacked --------------------------------------------------------------------------


def examine_stack(data: TrainingData, spec: FitSpec) -> Stackable:
    """Try a stack of two modules for two steps on a few rows, against autograd.

    Raises
    ------
    NotStackable
        If it fails, or does something else than the modules alone.
    """
    if spec.shape.module is None and spec.shape.dropout:
        raise NotStackable("dropout with this loss or activation")

    def begin() -> Beginning:
        if spec.shape.module is not None:
            return begin_user_module(data, spec, RunContext(), None)
        few = replace(data.rows(slice(0, SCALED_ROWS)), row_shape=data.row_shape)
        whole = spec.with_training(validation_fraction=None)
        return _begin_network(prepare(few, whole, RunContext()), whole)

    with own_torch_settings(spec.device), kept_random_state(spec.device):
        begun, real = begin(), begin()
        behaviour = begun.spec.behaviour
        if behaviour.mixes_rows_in_eval:
            raise NotStackable("its predictions may depend on the other rows")
        both = _both(begun)
        x = some_rows(data, spec).to(spec.device)
        if len(x) < 2:
            raise NotStackable("there are too few distinct rows to try it on")
        if shares_tensors(both, real.module):
            raise NotStackable("it shares parameters or buffers with other modules")
        trial = _Trial(both, real, x)
        try:
            in_eval = trial.compare()
        except NotStackable:
            raise
        except Exception as error:
            raise NotStackable(f"torch.func.vmap: {_first_line(error)}") from error
        kept = sum(t.numel() for t in both.kept.values())
        n_parameters = sum(t.numel() for t in both.trained.values()) + kept
        return Stackable(behaviour, in_eval, n_parameters, trial.n_saved // len(x))


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text if len(text) <= 100 else text[:97] + '...'}"


class _Trial:
    """Two models whose weights differ, as a stack and as the real module."""

    def __init__(self, both: ModuleAndLoss, real: Beginning, x: Tensor) -> None:
        self.both, self.real, self.x = both, _both(real), x
        self.behaviour = real.spec.behaviour
        self.dtype, self.device = both.module.x_offset.dtype, both.module.x_offset.device
        # positive, as counts are
        self.y = torch.linspace(0.5, 1.5, len(x) * both.n_targets).view(len(x), both.n_targets)
        self.weight = torch.linspace(0.5, 1.5, len(x))
        self.y, self.weight = (t.to(self.device, self.dtype) for t in (self.y, self.weight))
        self.stack = StackedState(both, 1, TRIED_MODELS)
        self.stack.start_group(0, both)
        noise = torch.Generator().manual_seed(0)
        for view in self.stack.views:
            view.add_(0.1 * torch.randn(view.shape, generator=noise).to(view))
        self.n_saved = 0

    def compare(self) -> bool:
        """Compare training, and predictions before and after it.

        Returns whether evaluation can be vectorised.

        Raises
        ------
        NotStackable
            If they differ, or if the module keeps anything but parameters and buffers.
        """
        attributes = [_attributes_of(module) for module in (self.both, self.real.module)]
        in_eval = self.can_evaluate()
        self.compare_training()
        in_eval = self.can_evaluate() and in_eval
        for module, before in zip((self.both, self.real.module), attributes, strict=True):
            if not _same(before, _attributes_of(module)):
                raise NotStackable("an attribute of it changes with its calls")
        return in_eval

    def compare_training(self) -> None:
        """Two steps of training, whose gradients, outputs and buffers must agree."""
        modules = StackedModules(self.stack, in_eval=True, draws=self.behaviour.draws)
        for weight in (None, None if self.both.loss.reduced else self.weight):
            with kept_random_state(self.device) as generators:
                before = [g.get_state() for g in generators]
                start = [self._state_of(c) for c in range(TRIED_MODELS)]
                batch = self._batch(weight)
                modules.gradient_(batch, self.both.loss)
                for c in range(TRIED_MODELS):
                    for generator, state in zip(generators, before, strict=True):
                        generator.set_state(state)
                    out, gradients, kept = self._alone(start[c], weight)
                    self._check(batch.out[0, c].mT, out)
                    for name, gradient in gradients.items():
                        self._check(modules._gradients[name][0, c], gradient)
                    for name, values in kept.items():
                        self._check(self.stack.kept[name][0, c], values)

    def can_evaluate(self) -> bool:
        """Whether outputs in evaluation mode can be vectorised; model by model, they must agree."""
        before = {name: values.clone() for name, values in self.stack.kept.items()}
        expected = []
        for c in range(TRIED_MODELS):
            self._load(self._state_of(c))
            module = self.real.eval().module
            buffers = {name: values.clone() for name, values in module.kept_buffers().items()}
            expected.append(module.outputs(self.x).detach())
            if not _same(buffers, dict(module.kept_buffers())):
                raise NotStackable("its buffers change in evaluation mode")
        in_eval = True
        for vectorised in (True, False):
            modules = StackedModules(self.stack, in_eval=vectorised, draws=False)
            try:
                found = modules.outputs(self.x[None].to(self.dtype))[0]
                agree = all(map(self._agree, found, expected))
            except Exception:
                agree = False
            if not agree and not vectorised:
                raise NotStackable("calls with other parameters compute something else")
            in_eval = in_eval and agree
        if not _same(before, self.stack.kept):
            raise NotStackable("its buffers change in evaluation mode")
        return in_eval

    def _batch(self, weight: Tensor | None) -> StackedBatch:
        n_rows, n_targets = self.y.shape
        x = self.x[None].to(self.dtype)
        out = self.y.new_empty(1, TRIED_MODELS, n_targets, n_rows)
        factor: Any = 1.0 / (n_rows * n_targets)
        if weight is not None:
            factor = factor * weight[None, None, None]
        return StackedBatch(
            n_rows, [n_rows], x, x.mT, self.y.mT[None, None], factor, out,
            out.flatten(0, 1), out.flatten(1, 2),
        )  # fmt: skip

    def _state_of(self, c: int) -> dict[str, Tensor]:
        named = {**self.stack.named(self.stack.views), **self.stack.kept}
        return {name: values[0, c].clone() for name, values in named.items()}

    @torch.no_grad()
    def _load(self, tensors: dict[str, Tensor]) -> None:
        """Set the real module and its loss to the state of a model."""
        parameters = dict(self.real.named_parameters())
        for name, values in tensors.items():
            if name in parameters:
                parameters[name].copy_(values)
            else:
                set_buffer_(self.real, name, values.clone())

    def _alone(
        self, tensors: dict[str, Tensor], weight: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Outputs, gradients and then buffers of the real module, by autograd."""
        self._load(tensors)
        real = self.real.train()
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = real.module.outputs(self.x)
            real.loss.mean(out, self.y, weight).backward()  # type: ignore[no-untyped-call]
        self.n_saved = max(self.n_saved, sum(sizes))
        gradients = {}
        for name, p in real.named_parameters():
            if name in self.both.trained:
                gradients[name] = torch.zeros_like(p) if p.grad is None else p.grad
            p.grad = None
        buffers = dict(real.named_buffers())
        return out.detach(), gradients, {n: buffers[n] for n in real.buffer_names}

    def _check(self, stacked: Tensor, alone: Tensor) -> None:
        if not self._agree(stacked, alone):
            raise NotStackable("torch.func.vmap of it computes something else")

    def _agree(self, a: Tensor, b: Tensor) -> bool:
        tolerance = 1e-8 if self.dtype == torch.float64 else 1e-3
        a, b = a.detach().double(), b.detach().double()
        size = float(b.abs().max()) if b.numel() else 0.0
        return torch.allclose(a, b, rtol=tolerance, atol=tolerance * (size + 1e-3))


def _attributes_of(module: nn.Module) -> dict[str, Any]:
    """The attributes of all parts, but for what a state holds and whether they are training."""
    usual = vars(nn.Module()).keys()
    found = {}
    for name, part in module.named_modules():
        if type(part).__module__.startswith("torch."):
            # recurrent layers keep their parameters in lists too
            continue
        for key, value in vars(part).items():
            if key not in usual:
                # the contents of containers may change in place
                copied = dict(value) if isinstance(value, dict) else value
                found[f"{name}.{key}"] = list(value) if isinstance(value, list | set) else copied
    return found


def _same(a: Any, b: Any) -> bool:
    """Whether two values, or all parts of two containers, are equal or the same."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Tensor):
        return a.shape == b.shape and bool((a == b).all())
    return a is b or (isinstance(a, int | float | str) and a == b)
