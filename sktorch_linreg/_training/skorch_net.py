"""The skorch net around the training loop; no other file imports skorch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, NoReturn

import skorch
import torch
from skorch.callbacks import Callback, PrintLog
from torch import Tensor, nn

from .._errors import came_from
from .._modules.scaled import ScaledModule
from .._objective.losses import Loss
from .._optim.construct import construct
from .._optim.orthant_lbfgs import OrthantLBFGS
from .._optim.schedules import Schedules
from .._optim.state import load_schedule_state
from .._optim.updates import RuleUpdates, TorchUpdates, has_rule
from .._spec import FitSpec, RunContext
from .batches import OUTPUT_ROWS, BatchIterator, TabularDataset
from .module_objective import ModuleObjective
from .one_model import OneModel, Stepper, StopTraining

__all__ = ["Callback", "NetDataset", "RegressionNet", "check_callbacks", "make_net", "wrap"]

# methods that are only called if a callback overrides them
METHODS = ("on_batch_begin", "on_batch_end", "on_grad_computed")


class NetDataset(TabularDataset, skorch.dataset.Dataset):  # type: ignore[misc]
    """Rows in the form that skorch's callbacks expect."""


class _Criterion(nn.Module):
    """The loss as the module that skorch expects."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss
        # skorch sets its mode together with that of the net
        self.module = loss.module

    def forward(self, prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return self.loss.mean(prediction, target, weight)


class RegressionNet(skorch.NeuralNet):  # type: ignore[misc]
    """skorch's net around the package's training loop.

    Training uses scaled rows. Everything passed to a callback, and every prediction of the net, is
    in the user's units.
    """

    # updates and schedule, once the optimizer is initialised
    stepper: Any = None

    def __init__(
        self,
        *args: Any,
        spec: FitSpec | None = None,
        start: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.spec = spec
        self.start = start
        self.loop: OneModel | None = None
        self.hears_epochs = self.hears_batches = self.hears_gradients = self.prints = False

    # -- set-up ---------------------------------------------------------------------------------

    @property
    def _default_callbacks(self) -> list[Any]:
        return []

    def initialize_callbacks(self) -> Any:
        with came_from("callbacks", "a callback"):
            return super().initialize_callbacks()

    def initialize_criterion(self) -> RegressionNet:
        self.criterion_ = self.criterion
        return self

    def initialize_optimizer(self, *args: Any, **kwargs: Any) -> RegressionNet:
        spec = self.spec
        if spec is None:
            return super().initialize_optimizer(*args, **kwargs)  # type: ignore[no-any-return]
        loss = spec.objective.loss.module
        parameters = [*self.module_.parameters(), *(() if loss is None else loss.parameters())]
        penalty = spec.objective.penalty
        orthant_wise = spec.training.is_lbfgs and penalty.projects
        cls: Any = spec.training.optimizer_class
        options = spec.training.optimizer_options
        by_rule = has_rule(cls, options, spec.device)
        self.objective_ = ModuleObjective(
            self.module_,
            spec.objective.loss,
            penalty,
            orthant_wise,
            transposed=by_rule,
            with_frozen=bool(self.callbacks_),
        )
        if by_rule:
            updates = RuleUpdates(self.objective_.flat.trained, cls, options, parameters)
            self.stepper = Stepper(updates)
            if "optimizer" not in self._optimizers:
                # skorch does this when the attribute is set
                self._register_attribute("optimizer_", None)
            if options.keys() > {"lr"}:
                # runs torch's own checks of the options
                updates.make_optimizer()
        else:
            cls = partial(OrthantLBFGS, penalty=penalty) if orthant_wise else cls
            self.optimizer_ = construct("optimizer", cls, parameters, options)
        if spec.training.schedule_class is not None:
            self.stepper.schedules = Schedules.of_one(spec.training, self.optimizer_)
        if self.start is not None:
            self._resume(self.stepper, self.start)
        return self

    @property
    def optimizer_(self) -> Any:
        """The torch optimizer; created on first access for named optimizers."""
        if self.stepper is None:
            raise AttributeError("optimizer_")
        return self.stepper.updates.optimizer

    @optimizer_.setter
    def optimizer_(self, optimizer: torch.optim.Optimizer) -> None:
        self._step_by(TorchUpdates(optimizer))

    @property
    def schedule_(self) -> Any:
        """The torch schedule, or None."""
        return None if self.stepper is None else self.stepper.schedule

    def _step_by(self, updates: Any) -> None:
        """Use these updates, even in the middle of a run, which keeps its schedule."""
        if self.stepper is None:
            self.stepper = Stepper(updates)
        else:
            self.stepper.updates = updates

    def _resume(self, stepper: Stepper, state: Mapping[str, Any]) -> None:
        """Restore an optimizer's state; a changed learning rate or schedule starts over."""
        group = stepper.updates.group
        begin = {k: group[k] for k in ("lr", "initial_lr") if k in group}
        shapes = self.objective_.flat.trained.shapes
        if state.get("shapes", shapes) != shapes:
            # other parameters are trained now, so the optimizer starts over
            return
        stepper.load(state["optimizer"])
        if state["same_rates"]:
            # after creating the schedule, since its constructor sets the first learning rate
            load_schedule_state(stepper.schedule, state["schedule"])
        else:
            stepper.updates.group.update(begin)

    # -- skorch's interface outside a training run ----------------------------------------------

    def fit(self, X: Any, y: Any = None, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            "This net belongs to an estimator. Call the estimator's fit or partial_fit, which also "
            "scale the data and keep coef_ and predict up to date."
        )

    def partial_fit(self, X: Any, y: Any = None, **kwargs: Any) -> Any:
        if self.loop is None:
            self.fit(X, y)
        return super().partial_fit(X, y, **kwargs)

    def train_step(self, batch: Any, **kwargs: Any) -> NoReturn:
        self.fit(None)

    def __getstate__(self) -> dict[str, Any]:
        # Checkpoint pickles a net in the middle of training
        state: dict[str, Any] = super().__getstate__()
        state.update(loop=None, objective_=None)
        return state

    def get_dataset(self, X: Any, y: Any = None) -> Any:
        return X if isinstance(X, torch.utils.data.Dataset) else NetDataset.raw(X, y)

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        if not isinstance(dataset, TabularDataset):
            return super().get_iterator(dataset, training=training)
        return BatchIterator(dataset, max(self.batch_size, OUTPUT_ROWS))

    def evaluation_step(self, batch: Any, training: bool = False) -> Tensor:
        """Predict raw rows in the user's units, also during training."""
        module: ScaledModule = self.module_
        x = module.as_input(batch[0])
        # a module may draw in evaluation mode too
        seeded = nullcontext() if self.loop is None else self.loop.seeded()
        with torch.set_grad_enabled(training), module.raw(), seeded:
            self._set_training(training)
            return module.outputs(x)

    def notify(self, method_name: str, **kwargs: Any) -> None:
        try:
            getattr(self, method_name)(self, **kwargs)
            for _, callback in self.callbacks_:
                with came_from("callbacks", callback):
                    getattr(callback, method_name)(self, **kwargs)
        except KeyboardInterrupt as error:
            if method_name in ("on_train_begin", "on_train_end"):
                raise
            raise StopTraining from error
        except KeyError as error:
            if self.loop and self.loop.state.validation is None and "valid_loss" in str(error):
                raise ValueError(
                    "A callback asked for 'valid_loss', which is only recorded with "
                    "early_stopping=True. Set that, or let the callback monitor 'train_loss'."
                ) from error
            raise

    # -- called by the loop ---------------------------------------------------------------------

    def add_epoch(self) -> dict[str, Any]:
        """Start the history record of an epoch."""
        # history.record would copy the entire history for each entry
        self.history.append({"batches": [], "epoch": len(self.history) + 1})
        row: dict[str, Any] = list.__getitem__(self.history, -1)
        return row

    def on_epoch_begin(self, net: Any, *args: Any, **kwargs: Any) -> None:
        # the loop has already started the record
        pass

    def on_batch_begin(self, net: Any, *args: Any, **kwargs: Any) -> None:
        # as history.new_batch would
        list.__getitem__(self.history, -1)["batches"].append({})

    def train(self, loop: OneModel) -> None:
        """Run a loop, as skorch's `fit` would, between `on_train_begin` and `on_train_end`."""
        self.loop = loop
        callbacks = [callback for _, callback in self.callbacks_]
        heard = {m for callback in callbacks for m in METHODS if _hears(callback, m)}
        self.hears_epochs = bool(callbacks)
        self.hears_batches = not heard.isdisjoint(METHODS[:2])
        self.hears_gradients = METHODS[2] in heard
        self.prints = any(isinstance(callback, PrintLog) for callback in callbacks)
        if self.prints:
            # a PrintLog only prints if the net is verbose
            self.verbose = max(1, loop.context.verbose)
        shown = loop.state.shown["dataset_train"]
        self.partial_fit(*((None, None) if shown is None else (shown.X, shown.y)))
        loop.objective.flat.take_parameters()
        if not loop.state.loss_curve:
            # skorch swallows the interrupt, but without a finished epoch there is nothing to keep
            raise KeyboardInterrupt

    def let_go(self) -> None:
        """Release the state of the run."""
        self.loop = self.start = self.objective_ = None  # type: ignore[assignment]

    def fit_loop(self, X: Any, y: Any = None, epochs: Any = None, **kwargs: Any) -> RegressionNet:
        if self.loop is not None:
            self.loop.train()
        return self


def _hears(callback: Any, method: str) -> bool:
    """Whether a callback overrides a method, in its class or on the instance."""
    return getattr(getattr(callback, method), "__func__", None) is not getattr(Callback, method)


def check_callbacks(callbacks: Any) -> None:
    """Raise ValueError for anything that is not a skorch callback."""
    for callback in callbacks or []:
        given = callback[1] if isinstance(callback, tuple) and len(callback) == 2 else callback
        if not (isinstance(given, Callback) or given is None) and not (
            isinstance(given, type) and issubclass(given, Callback)
        ):
            raise ValueError(
                f"callbacks must be skorch callbacks or (name, callback) pairs; got {callback!r}. "
                "See skorch.callbacks for the available ones, or subclass its Callback."
            )


def make_net(
    module: ScaledModule,
    spec: FitSpec,
    context: RunContext,
    start: Mapping[str, Any] | None = None,
) -> RegressionNet:
    """An initialised net around a module."""
    callbacks = list(context.callbacks or [])
    net = RegressionNet(
        module,
        _Criterion(spec.objective.loss),
        lr=float(spec.training.optimizer_options.get("lr", 0.0)),
        max_epochs=spec.training.max_epochs,
        batch_size=spec.training.batch_size,
        train_split=None,
        callbacks=callbacks,
        predict_nonlinearity=None,
        verbose=context.verbose,
        device=str(spec.device),
        spec=spec,
        start=start,
    )
    return net.initialize()  # type: ignore[no-any-return]


def wrap(module: ScaledModule, loss: Loss) -> RegressionNet:
    """A net around a fitted module that was not trained here, for skorch's interface."""
    net = RegressionNet(
        module,
        _Criterion(loss),
        train_split=None,
        callbacks=None,
        predict_nonlinearity=None,
        verbose=0,
        device=str(module.x_offset.device),
    )
    return net.initialize()  # type: ignore[no-any-return]
