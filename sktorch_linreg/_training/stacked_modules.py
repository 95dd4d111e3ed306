"""Outputs and gradients of many modules, by vectorised calls of one of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from .._data.arrays import numpy_dtype
from .._data.scaling import scaled
from .._modules.scaled import ScaledModule
from .._modules.user_module import UserModule
from .._objective.losses import Loss, inverse_link
from .._runtime.aliases import Array, Mask
from .._runtime.torch_modes import own_torch_settings, without_mkldnn
from .._runtime.turns import Turns
from .._spec import FitSpec
from .flat_parameters import Snapshot
from .stacked_batches import StackedBatch
from .stacked_parameters import Index, StackedParameters
from .stacked_result import ALL, StackResult

Tensors = dict[str, Tensor]
# before the names of parameters of a module of the user's
USER_MODULE = "module.module."
# rows, and entries of outputs, that pass through a stack together in predictions
MOST_ROWS, OUTPUT_ENTRIES = 4096, 2**20


class ModuleAndLoss(nn.Module):
    """A module and the loss that it is trained with, as a function of their tensors.

    Attributes
    ----------
    trained : dict of str to torch.Tensor
        The parameters that are trained: those that are penalised, others, those of the loss.
    kept : dict of str to torch.Tensor
        Frozen parameters, integers and buffers.
    n_penalised : int
        Number of penalised parameters.
    """

    def __init__(self, module: ScaledModule, loss: Loss) -> None:
        super().__init__()
        self.integers = isinstance(module, UserModule) and module.integers
        self.n_targets = len(module.rescale.scale)
        self.module, self.loss, self.loss_module = module, loss, loss.module
        names = {id(p): name for name, p in self.named_parameters()}
        trained: list[Tensor] = [*module.weights, *module.others]
        self.n_penalised = len(module.weights)
        if loss.module is not None:
            trained += [p for p in loss.module.parameters() if p.requires_grad]
        self.trained: Tensors = {names[id(p)]: p.detach() for p in trained}
        prefix = USER_MODULE if module.user_module is not None else "module."
        buffers = {f"{prefix}{name}": b for name, b in module.kept_buffers().items()}
        if loss.module is not None:
            buffers |= {f"loss_module.{name}": b for name, b in loss.module.named_buffers()}
        frozen = {n: p.detach() for n, p in self.named_parameters() if n not in self.trained}
        self.buffer_names = list(buffers)
        self.kept: Tensors = {**frozen, **buffers}

    def forward(self, method: str, *args: Any) -> Any:
        """Call one of the methods below, with tensors that `functional_call` has put in place."""
        return getattr(self, method)(*args)

    def step(self, x: Tensor, y: Tensor, factor: Any) -> tuple[Tensor, tuple[Tensor, Tensors]]:
        """The loss of a batch, the outputs for its rows, and the buffers afterwards."""
        out = self.outputs(x)
        value = self.loss_value(out, y, factor)
        found = dict(self.named_buffers())
        return value, (out, {name: found[name] for name in self.buffer_names})

    def outputs(self, x: Tensor) -> Tensor:
        """The outputs of the module for flat rows; integers are carried as floats."""
        return self.module.outputs(x.long() if self.integers else x)

    def loss_value(self, out: Tensor, y: Tensor, factor: Any) -> Tensor:
        """The mean loss of the rows; `factor` is what their entries count in it."""
        values = self.loss.pointwise(out, y)
        if self.loss.reduced or not isinstance(factor, Tensor):
            return values.mean()
        # a loss may return one value per row
        weight = self.n_targets * factor[:, 0]
        return (values.reshape(len(values), -1).mean(1) * weight).sum()


class StackedState(StackedParameters):
    """Parameters and buffers of many modules and of their losses.

    Parameters
    ----------
    both : ModuleAndLoss
        One of the modules, and the loss.
    n_groups, n_each : int
        Number of groups, and of models per group.

    Attributes
    ----------
    kept : dict of str to torch.Tensor
        What is not trained, of shape ``(n_groups, n_each, *shape)``.
    """

    def __init__(self, both: ModuleAndLoss, n_groups: int, n_each: int) -> None:
        self.both = both
        shapes = [tuple(p.shape) for p in both.trained.values()]
        like = both.module.x_offset
        super().__init__(shapes, n_groups, n_each, like.dtype, like.device)
        self.kept: Tensors = {
            name: t.new_zeros(n_groups, n_each, *t.shape) for name, t in both.kept.items()
        }

    def penalised(self, per_model: Tensor) -> Tensor:
        """Like `expand`, but 0 where there is no penalty."""
        out = self.expand(per_model)
        for view in self.split(out)[self.both.n_penalised :]:
            view.zero_()
        return out

    def like(self, n_groups: int, n_each: int) -> Self:
        """Parameters of zeros for a different number of models."""
        return type(self)(self.both, n_groups, n_each)

    def named(self, views: list[Tensor]) -> Tensors:
        """Views of parameters by their names."""
        return dict(zip(self.both.trained, views, strict=True))

    def start_group(self, group: int, both: ModuleAndLoss) -> None:
        """Set all models of a group to the state of one."""
        for view, values in zip(self.views, both.trained.values(), strict=True):
            view[group] = values
        for name, values in both.kept.items():
            self.kept[name][group] = values

    # -- some of the models ---------------------------------------------------------------------

    def keep(self, kept: Snapshot | None, which: Any = True) -> Snapshot:
        """`kept` with the current state of some models, or a copy of all if None."""
        if kept is None:
            return Snapshot(super().keep(None), {k: v.clone() for k, v in self.kept.items()})
        values = super().keep(kept.values, which)
        each = np.broadcast_to(np.asarray(which), (self.n_groups, self.n_each))
        mask = torch.from_numpy(each.copy()).to(values.device)
        state = {}
        for name, now in self.kept.items():
            own = mask.view(*mask.shape, *[1] * (now.ndim - 2))
            state[name] = torch.where(own, now, kept.buffers[name])
        return Snapshot(values, state)

    def take_kept(self, kept: Snapshot, models: Index, into: StackedParameters) -> Snapshot:
        """Some of the models in what `keep` returned, in the layout of `into`."""
        return Snapshot(
            self.take(kept.values, models, into), {k: v[models] for k, v in kept.buffers.items()}
        )

    def reduced(self, models: Index) -> Self:
        """The state of some models; the index tensors have the new shape."""
        smaller = super().reduced(models)
        smaller.kept = {name: values[models] for name, values in self.kept.items()}
        return smaller

    def adopt(self, models: Index, other: Self, kept: Snapshot | None, of_other: Index) -> None:
        """Set some models to those of another stack, as in `kept` or, if None, as they are."""
        super().adopt(models, other, None if kept is None else kept.values, of_other)
        for name, values in (other.kept if kept is None else kept.buffers).items():
            self.kept[name][models] = values[of_other]

    def state(self, group: int, place: int, prefix: str) -> dict[str, Array]:
        """Parameters and buffers of a model whose names begin with `prefix`, without it."""
        named = {**self.named(self.views), **self.kept}
        return {
            name.removeprefix(prefix): values[group, place].cpu().numpy().copy()
            for name, values in named.items()
            if name.startswith(prefix)
        }


# calls put tensors in place of parameters, also in parts that several modules share
_calls = Turns()


@contextmanager
def _vectorised() -> Iterator[None]:
    """A context for calls of a module with the tensors of others, one thread at a time."""
    with _calls.held(), warnings.catch_warnings():
        # slower operations are still right
        warnings.filterwarnings("ignore", "There is a performance drop")
        yield


class StackedModules:
    """Outputs and gradients of all models, by `torch.func`.

    Parameters
    ----------
    parameters : StackedState
        The state of the models.
    in_eval : bool
        Whether outputs in evaluation mode can be vectorised too; if not, models are evaluated one
        by one.
    draws : bool
        Whether the module draws random numbers, which are the same for all models.
    """

    def __init__(self, parameters: StackedState, *, in_eval: bool, draws: bool) -> None:
        self.parameters, self.in_eval = parameters, in_eval
        self.both = parameters.both
        self.randomness = "same" if draws else "error"
        # the kernels of oneDNN for recurrent layers are called model by model
        has_rnn = any(isinstance(m, nn.RNNBase) for m in self.both.modules())
        self.mkldnn = without_mkldnn if has_rnn else nullcontext
        # the loss of each batch before its update, of a loss of the user's
        self.keeps_losses = self.both.loss.own
        self.batch_losses: list[Tensor] = []
        self._trained = parameters.named(parameters.views)
        self._gradients = parameters.named(parameters.gradients)

    def _set_training(self, training: bool) -> None:
        if self.both.training != training:
            self.both.train(training)

    def _over_models(self, function: Callable[..., Any], args: list[Any], per_model: int) -> Any:
        """A function of one model for all of them.

        The first `per_model` arguments differ between models, the others between groups; numbers
        are the same for all.
        """
        over_groups = [None if isinstance(a, float) else 0 for a in args]
        in_each = [0] * per_model + [None] * (len(args) - per_model)
        each = vmap(function, in_dims=tuple(in_each), randomness=self.randomness)
        with _vectorised(), self.mkldnn():
            return vmap(each, in_dims=tuple(over_groups), randomness=self.randomness)(*args)

    def _one(self, trained: Tensors, kept: Tensors, y: Tensor, x: Tensor, factor: Any) -> Any:
        return functional_call(self.both, {**trained, **kept}, ("step", x, y, factor))

    def _in_eval(self, method: str) -> tuple[Callable[..., Tensor], Tensors]:
        """A method of one model in evaluation mode, and the tensors of all to call it with."""
        self._set_training(False)

        def one(tensors: Tensors, *args: Any) -> Tensor:
            value: Tensor = functional_call(self.both, tensors, (method, *args))
            return value

        return one, {**self._trained, **self.parameters.kept}

    def gradient_(self, batch: StackedBatch, loss: Loss) -> None:
        """Write outputs into `batch.out`, and the loss's gradient into `parameters.gradient`."""
        self._set_training(True)
        kept = self.parameters.kept
        y, factor = self._targets(batch)
        gradients, (values, (out, now)) = self._over_models(
            grad_and_value(self._one, has_aux=True), [self._trained, kept, y, batch.x, factor], 3
        )
        for name, gradient in gradients.items():
            self._gradients[name].copy_(gradient)
        for name, buffer in now.items():
            if buffer.data_ptr() != kept[name].data_ptr():
                kept[name].copy_(buffer)
        batch.out.copy_(out.mT)
        if self.keeps_losses:
            self.batch_losses.append(values)

    def outputs_(self, batch: StackedBatch) -> None:
        """Write outputs into `batch.out`, in evaluation mode."""
        batch.out.copy_(self.outputs(batch.x).mT)

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs in evaluation mode, of shape (n_groups, n_each, n_rows, n_targets)."""
        one, named = self._in_eval("outputs")
        if self.in_eval:
            out: Tensor = self._over_models(one, [named, x], 1)
            return out
        n_groups, n_each = self.parameters.n_groups, self.parameters.n_each
        with _vectorised():
            found = [
                one({name: values[g, c] for name, values in named.items()}, x[g])
                for g in range(n_groups)
                for c in range(n_each)
            ]
        return torch.stack(found).view(n_groups, n_each, *found[0].shape)

    def losses(self, batch: StackedBatch) -> Tensor:
        """Losses of the outputs in `batch.out` in evaluation mode, of shape (n_groups, n_each)."""
        one, named = self._in_eval("loss_value")
        y, factor = self._targets(batch)
        values: Tensor = self._over_models(one, [named, batch.out.mT, y, factor], 3)
        return values

    def _targets(self, batch: StackedBatch) -> tuple[Tensor, Any]:
        """Targets of each model, and the factors of their losses.

        Some losses of torch's are wrong under vmap if only the prediction differs between models.
        """
        y = batch.y.mT.expand(-1, self.parameters.n_each, -1, -1)
        factor = batch.factor
        return y, factor[:, 0].mT if isinstance(factor, Tensor) else float(factor)


class ModulesResult(StackResult):
    """The result of training modules by vectorised calls."""

    parameters: StackedState
    in_eval: bool = True
    seed: int = 0

    def state(self, group: int, place: int) -> dict[str, Any]:
        """The layers of a network, or parameters and buffers by name and the seed of a module."""
        parameters, module = self.parameters, self.parameters.both.module
        found: dict[str, Any] = {"loss_state": parameters.state(group, place, "loss_module.")}
        if module.user_module is None:
            arrays = [*parameters.state(group, place, "module.").values()]
            return {**found, "trained": module.layers_of(arrays)}
        state = parameters.state(group, place, USER_MODULE)
        return {**found, "module_state": state, "seed": self.seed}

    def representable(self, group: int, dtype: Any, places: slice = ALL) -> Mask:
        """Which models have coefficients representable in X's dtype: all."""
        return np.ones(len(range(*places.indices(self.parameters.n_each))), dtype=bool)

    def predict(self, group: int, X: Array, spec: FitSpec, places: slice = ALL) -> Array:
        """Predictions of models of a group, in the precision of X; see `StackResult`."""
        with own_torch_settings(spec.device, grad=False):
            return self._predict(group, X, spec, places)

    def _predict(self, group: int, X: Array, spec: FitSpec, places: slice) -> Array:
        all_models, s = self.parameters, self.scalings[group]
        n = len(range(*places.indices(all_models.n_each)))
        one = all_models.like(1, n)
        for mine, its in zip(one.views, all_models.views, strict=True):
            mine.copy_(its[group : group + 1, places])
        for name, values in all_models.kept.items():
            one.kept[name] = values[group : group + 1, places].clone()
        modules = StackedModules(one, in_eval=self.in_eval, draws=False)
        both, dtype = all_models.both, numpy_dtype(one.values.dtype)
        size = max(1, min(MOST_ROWS, OUTPUT_ENTRIES // n))
        kind = X.dtype if X.dtype.kind == "f" else np.dtype(np.float64)
        out = np.empty((n, both.n_targets, len(X)), dtype=kind)
        with np.errstate(over="ignore"):
            for start in range(0, len(X), size):
                part = slice(start, start + size)
                rows = X[part]
                if not both.integers:
                    rows = scaled(rows, s.x_offset, s.x_factor, dtype)
                block = torch.from_numpy(np.array(rows)).to(one.values.device)[None]
                found = modules.outputs(block)[0].mT.cpu().numpy()
                out[:, :, part] = found * s.y_scale[:, None] + s.y_offset[:, None]
            predictions: Array = inverse_link(out, spec.objective.loss.log_link)
        return predictions
