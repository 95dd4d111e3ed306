"""Many modules of the user's, or networks with losses of the user's, trained as one stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from .._data.rows import TrainingData
from .._modules.user_module import Behaviour
from .._runtime.aliases import FloatArray
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

# models, and steps, of a trial
TRIED_MODELS, TRIED_STEPS = 2, 2


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
        own = [begin_user_module(d, self.spec, RunContext(), None) for d in data if self.of_user]
        self.begun = [own[i] for i in self.owner if self.of_user]
        prepared = super()._prepare(data)
        if not self.of_user:
            one = _begin_network(prepared[0], self.spec)
            self.begun = [one for _ in self.owner]
        return prepared

    @property
    def of_user(self) -> bool:
        """Whether the modules are the user's."""
        return self.spec.shape.module is not None

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
        if not self.draws:
            return super().train_epoch()
        with torch_draws_from(self.begun[0].of_code, self.spec.device):
            return super().train_epoch()


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
    with own_torch_settings(spec.device), kept_random_state(spec.device):
        if spec.shape.module is not None:
            begun = begin_user_module(data, spec, RunContext(), None)
        elif spec.shape.dropout:
            raise NotStackable("dropout with this loss or activation")
        else:
            few = replace(data.rows(slice(0, SCALED_ROWS)), row_shape=data.row_shape)
            whole = spec.with_training(validation_fraction=None)
            begun = _begin_network(prepare(few, whole, RunContext()), whole)
        behaviour = begun.spec.behaviour
        if behaviour.mixes_rows_in_eval:
            raise NotStackable("its predictions may depend on the other rows")
        both = _both(begun)
        x = some_rows(data, spec).to(spec.device)
        if len(x) < 2:
            raise NotStackable("there are too few distinct rows to try it on")
        trial = _Trial(both, x, behaviour)
        try:
            trial.compare_training()
        except NotStackable:
            raise
        except Exception as error:
            raise NotStackable(f"torch.func.vmap: {_first_line(error)}") from error
        in_eval = trial.can_evaluate()
        kept = sum(t.numel() for t in both.kept.values())
        n_parameters = sum(t.numel() for t in both.trained.values()) + kept
        return Stackable(behaviour, in_eval, n_parameters, trial.n_saved // len(x))


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text if len(text) <= 100 else text[:97] + '...'}"


class _Trial:
    """Two models whose weights differ, as a stack and alone."""

    def __init__(self, both: ModuleAndLoss, x: Tensor, behaviour: Behaviour) -> None:
        self.both, self.x, self.behaviour = both, x, behaviour
        self.dtype, self.device = both.module.x_offset.dtype, both.module.x_offset.device
        n_targets = both.n_targets
        # positive, as counts are
        self.y = torch.linspace(0.5, 1.5, len(x) * n_targets, dtype=self.dtype, device=self.device)
        self.y = self.y.view(len(x), n_targets)
        self.stack = StackedState(both, 1, TRIED_MODELS)
        self.stack.start_group(0, both)
        noise = torch.Generator().manual_seed(0)
        for view in self.stack.views:
            view.add_(0.1 * torch.randn(view.shape, generator=noise).to(view))
        self.n_saved = 0

    def compare_training(self) -> None:
        """Two steps of training, whose gradients, outputs and buffers must agree."""
        modules = StackedModules(self.stack, in_eval=True, draws=self.behaviour.draws)
        n_rows, n_targets = self.y.shape
        alone = [self._state_of(c) for c in range(TRIED_MODELS)]
        for _ in range(TRIED_STEPS):
            with kept_random_state(self.device) as generators:
                before = [g.get_state() for g in generators]
                batch = self._batch()
                modules.gradient_(batch, self.both.loss)
                for c in range(TRIED_MODELS):
                    for generator, state in zip(generators, before, strict=True):
                        generator.set_state(state)
                    out, gradients = self._alone(alone[c], 1.0 / (n_rows * n_targets))
                    self._check(batch.out[0, c].mT, out)
                    for name, gradient in gradients.items():
                        self._check(modules._gradients[name][0, c], gradient)
                    for name, values in self.stack.kept.items():
                        self._check(values[0, c], alone[c][name])

    def can_evaluate(self) -> bool:
        """Whether outputs in evaluation mode can be vectorised."""
        found = []
        for in_eval in (True, False):
            modules = StackedModules(self.stack, in_eval=in_eval, draws=False)
            try:
                found.append(modules.outputs(self.x[None]))
            except Exception:
                if not in_eval:
                    raise NotStackable("it fails in evaluation mode") from None
                return False
        return self._agree(*found)

    def _batch(self) -> StackedBatch:
        n_rows, n_targets = self.y.shape
        x = self.x[None].to(self.dtype)
        out = self.y.new_empty(1, TRIED_MODELS, n_targets, n_rows)
        factor = 1.0 / (n_rows * n_targets)
        return StackedBatch(
            n_rows, [n_rows], x, x.mT, self.y.mT[None, None], factor, out,
            out.flatten(0, 1), out.flatten(1, 2),
        )  # fmt: skip

    def _state_of(self, c: int) -> dict[str, Tensor]:
        named = {**self.stack.named(self.stack.views), **self.stack.kept}
        return {name: values[0, c].clone() for name, values in named.items()}

    def _alone(self, tensors: dict[str, Tensor], factor: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs and gradients of one model by autograd; its buffers in `tensors` change."""
        both = self.both.train()
        leaves = {name: tensors[name].requires_grad_() for name in both.trained}
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            given = {**tensors, **leaves}
            value, (out, buffers) = torch.func.functional_call(
                both, given, (self.x.to(self.dtype), self.y, factor)
            )
            gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        self.n_saved = max(self.n_saved, sum(sizes))
        for name, values in buffers.items():
            tensors[name] = values.detach()
        found = {
            name: torch.zeros_like(leaf) if g is None else g
            for (name, leaf), g in zip(leaves.items(), gradients, strict=True)
        }
        return out.detach(), found

    def _check(self, stacked: Tensor, alone: Tensor) -> None:
        if not self._agree(stacked, alone):
            raise NotStackable("torch.func.vmap of it computes something else")

    def _agree(self, a: Tensor, b: Tensor) -> bool:
        tolerance = 1e-8 if self.dtype == torch.float64 else 1e-3
        a, b = a.detach().double(), b.detach().double()
        size = float(b.abs().max()) if b.numel() else 0.0
        return torch.allclose(a, b, rtol=tolerance, atol=tolerance * (size + 1e-3))


def with_behaviour(spec: FitSpec, found: Stackable) -> FitSpec:
    """The spec with what the module was seen to do."""
    return replace(spec, behaviour=found.behaviour)
