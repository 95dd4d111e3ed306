"""The skorch net, fed by tensor slices; no other file imports skorch."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import skorch
import torch
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import Callback, PrintLog
from torch import Tensor, nn
from torch.optim import lr_scheduler

from ._batches import BatchIterator, TabularDataset
from ._losses import Penalty
from ._modules import MLPModule
from ._monitor import Monitor
from ._objective import FIRST_WIDTH, TrainingObjective
from ._optimizers import OrthantLBFGS, construct
from ._state import load_schedule_state, to_tensors
from ._types import FitSpec, Layers, Loss, TrainingDivergedError

# what a callback is only told of where it listens
METHODS = ("on_batch_begin", "on_batch_end", "on_grad_computed")


class NetDataset(TabularDataset, skorch.dataset.Dataset):  # type: ignore[misc]
    """Rows in the form that skorch's callbacks look for."""


class _Criterion(nn.Module):
    """The loss as the module that skorch expects."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return self.loss.mean(prediction, target, weight)


class _StopTraining(Exception):
    """A callback asked to stop; skorch's own way is a KeyboardInterrupt, which Ctrl-C is too."""


@dataclass
class Run:
    """What belongs to one training run, and is let go of after it."""

    monitor: Monitor
    validation: NetDataset | None
    order: torch.Generator | None
    path: list[Layers] | None
    # rows in the user's units, for callbacks
    shown: Mapping[str, Any]
    interrupted: bool = False
    warnings: list[tuple[str, type[Warning]]] = field(default_factory=list)


class RegressionNet(skorch.NeuralNet):  # type: ignore[misc]
    """skorch's net over tensor slices, with the package's objective and stopping rules.

    Training sees scaled rows. Everything a callback is handed, and every prediction of the net, is
    in the user's units. Losses per batch are kept in the history only where a callback listens to
    batches; that is most of what makes plain skorch slow on tabular data.
    """

    optimizer_: Any
    spec: Any
    run: Any

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
        self.run = None

    # -- set-up ---------------------------------------------------------------------------------

    @property
    def _default_callbacks(self) -> list[Any]:
        return []

    def initialize_criterion(self) -> RegressionNet:
        self.criterion_ = self.criterion
        return self

    def initialize_optimizer(self, *args: Any, **kwargs: Any) -> RegressionNet:
        spec, parameters = self.spec, list(self.module_.parameters())
        if spec is None:
            return super().initialize_optimizer(*args, **kwargs)  # type: ignore[no-any-return]
        penalty = Penalty(spec.l1, spec.l2, spec.positive)
        orthant_wise = spec.is_lbfgs and penalty.projects
        self.objective_ = TrainingObjective(self.module_, spec.loss, penalty, orthant_wise)
        cls = partial(OrthantLBFGS, penalty=penalty) if orthant_wise else spec.optimizer_class
        self.optimizer_ = construct("optimizer", cls, parameters, spec.optimizer_options)
        self.schedule_ = None
        if spec.schedule_class is not None:
            options = spec.schedule_options
            self.schedule_ = construct("lr_schedule", spec.schedule_class, self.optimizer_, options)
        if self.start is not None:
            self._resume(self.start)
        return self

    def _resume(self, state: Mapping[str, Any]) -> None:
        """Go on with an optimizer's state; a rate or schedule set anew begins from its start."""
        names = ("lr", "initial_lr")
        groups = self.optimizer_.param_groups
        begin = [{k: g[k] for k in names if k in g} for g in groups]
        self.optimizer_.load_state_dict(to_tensors(state["optimizer"]))
        if state["rates"] == self.spec.rates:
            # after the schedule was made, whose constructor sets the first learning rate
            load_schedule_state(self.schedule_, state["schedule"])
            return
        for group, rates in zip(self.optimizer_.param_groups, begin, strict=True):
            group.update(rates)

    # -- skorch's interface outside a training run ----------------------------------------------

    def fit(self, X: Any, y: Any = None, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            "This net belongs to an estimator. Call the estimator's fit or partial_fit, which also "
            "scale the data and keep coef_ and predict up to date."
        )

    def partial_fit(self, X: Any, y: Any = None, **kwargs: Any) -> Any:
        if self.run is None:
            self.fit(X, y)
        return super().partial_fit(X, y, **kwargs)

    def get_dataset(self, X: Any, y: Any = None) -> Any:
        return X if isinstance(X, torch.utils.data.Dataset) else NetDataset.raw(X, y)

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        if not isinstance(dataset, TabularDataset):
            return super().get_iterator(dataset, training=training)
        if not training or self.run is None:
            return BatchIterator(dataset, max(self.batch_size, 4096))
        return BatchIterator(dataset, self.batch_size, self.run.order)

    def evaluation_step(self, batch: Any, training: bool = False) -> Tensor:
        """Predict raw rows, in the user's units, in the middle of training as well."""
        module: MLPModule = self.module_
        x = batch[0].to(device=self.device, dtype=module.x_offset.dtype)
        with torch.set_grad_enabled(training), module.raw():
            self._set_training(training)
            out: Tensor = module(x)
            return out

    def notify(self, method_name: str, **kwargs: Any) -> None:
        try:
            super().notify(method_name, **kwargs)
        except KeyboardInterrupt as error:
            if method_name in ("on_train_begin", "on_train_end"):
                raise
            raise _StopTraining from error
        except KeyError as error:
            if self.run and self.run.validation is None and "valid_loss" in str(error):
                raise ValueError(
                    "A callback asked for 'valid_loss', which is only recorded with "
                    "early_stopping=True. Set that, or let the callback monitor 'train_loss'."
                ) from error
            raise

    def on_epoch_begin(self, net: Any, *args: Any, **kwargs: Any) -> None:
        # history.record would copy all of the history for each entry
        self.history.append({"batches": [], "epoch": len(self.history) + 1})

    # -- epochs ---------------------------------------------------------------------------------

    def train(self, rows: NetDataset, run: Run) -> None:
        """Train on scaled rows for `max_epochs`, or until a rule or a callback stops it."""
        self.run = run
        # line searches fail at kinks, so L-BFGS follows ever sharper smooth losses
        self.objective_.smooth_at(FIRST_WIDTH if self.spec.is_lbfgs else None)
        types = [type(callback) for _, callback in self.callbacks_]
        heard = {m for t in types for m in METHODS if getattr(t, m) is not getattr(Callback, m)}
        self.tells_batches = not heard.isdisjoint(METHODS[:2])
        self.tells_gradients = METHODS[2] in heard
        self.partial_fit(rows)
        if run.interrupted:
            # skorch swallows the interrupt, but without a finished epoch there is nothing to keep
            raise KeyboardInterrupt

    def fit_loop(self, X: Any, y: Any = None, epochs: int | None = None, **kwargs: Any) -> Any:
        monitor, validation = self.run.monitor, self.run.validation
        batches = self.get_iterator(X, training=True)
        checks = None if validation is None else self.get_iterator(validation)
        done: Any = None
        try:
            for _ in range(self.max_epochs):
                begin = time.perf_counter()
                self.notify("on_epoch_begin", **self.run.shown)
                self.run_single_epoch(batches, True, "train", self.train_step)
                self.run_single_epoch(checks, False, "valid", self.validation_step)
                self._end_epoch(time.perf_counter() - begin)
                if len(batches) > 1 or self.spec.is_lbfgs:
                    done = [p.detach().clone() for p in self.module_.parameters()]
                self.notify("on_epoch_end", **self.run.shown)
                if monitor.stopped or (monitor.settled and not self._sharpen()):
                    break
            else:
                self._warn_unfinished()
        except _StopTraining:
            self._keep_finished_epochs(done)
        except KeyboardInterrupt:
            self._keep_finished_epochs(done)
            message = (
                f"Training was interrupted; the estimator is fitted with the "
                f"{len(monitor.loss_curve)} epochs that were done. Set warm_start=True and call "
                "fit again to go on from there."
            )
            self.run.warnings.append((message, UserWarning))
        return self

    def _sharpen(self) -> bool:
        """Go on with a sharper stand-in for a loss with kinks; False where there is none."""
        if not self.objective_.sharpen():
            return False
        self.run.monitor.minimised = math.inf
        if isinstance(self.optimizer_, OrthantLBFGS):
            self.optimizer_.forget()
        else:
            self.optimizer_.state.clear()
        return True

    def _keep_finished_epochs(self, done: list[Tensor] | None) -> None:
        """Undo an unfinished epoch; without a finished one, let the interrupt pass."""
        finished = len(self.run.monitor.loss_curve)
        if finished == 0:
            self.run.interrupted = True
            raise KeyboardInterrupt
        # a stop at the end of an epoch comes when its row in the history is complete
        if done is not None and "lr" not in self._row():
            with torch.no_grad():
                for parameter, kept in zip(self.module_.parameters(), done, strict=True):
                    parameter.copy_(kept)

    def _warn_unfinished(self) -> None:
        if not self.run.monitor.must_stop or self.spec.incremental:
            return
        message = f"Training stopped at max_epochs={self.max_epochs} before "
        if self.spec.tol is None:
            message += "L-BFGS had converged. Raise max_epochs."
        else:
            message += (
                f"the loss settled within tol={self.spec.tol}. Raise max_epochs, lr or tol, or set "
                "tol=None to run a fixed number of epochs."
            )
        self.run.warnings.append((message, ConvergenceWarning))

    def _end_epoch(self, seconds: float) -> None:
        """Take the epoch's losses in, refuse those that are not finite, and step the schedule."""
        monitor, row = self.run.monitor, self._row()
        loss, validation = row["train_loss"], row.get("valid_loss")
        lr = float(self.optimizer_.param_groups[0]["lr"])
        if not (math.isfinite(loss) and (validation is None or math.isfinite(validation))):
            raise TrainingDivergedError(len(monitor.loss_curve) + 1, lr)
        # skorch's Checkpoint and PrintLog look for these
        row["train_loss_best"] = loss < monitor.best_train
        if validation is not None:
            row["valid_loss_best"] = validation < monitor.best_validation
        row["lr"], row["dur"] = lr, seconds
        # an envelope is off by about its width anyway
        slack = 1e-4 * (self.objective_.width or 0.0)
        monitor.update(loss, validation, self.minimised, self.module_, slack)
        if self.run.path is not None:
            self.run.path.append(self.module_.arrays())
        self._step_schedule(loss if validation is None else validation)

    def _row(self) -> dict[str, Any]:
        """The epoch's record; indexing skorch's history copies all of it."""
        row: dict[str, Any] = list.__getitem__(self.history, -1)
        return row

    def _step_schedule(self, monitored: float) -> None:
        if self.schedule_ is None:
            return
        if isinstance(self.schedule_, lr_scheduler.ReduceLROnPlateau):
            self.schedule_.step(monitored)
            return
        try:
            self.schedule_.step()
        except (ArithmeticError, TypeError, ValueError) as error:
            raise ValueError(
                f"The lr_schedule could not be stepped: {error}. If it has run through all of its "
                "epochs, raise max_epochs, which it is planned for; else check lr_schedule__*."
            ) from error

    # -- batches --------------------------------------------------------------------------------

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: Any, **kwargs: Any
    ) -> None:
        if iterator is None:
            return
        total: Any = 0.0
        minimised: Any = 0.0
        for x, y, weight in iterator.weighted():
            if self.tells_batches:
                shown = self._shown(x, y)
                self.notify("on_batch_begin", batch=shown, training=training)
            step = step_fn((x, y), weight=weight)
            total = total + step["loss"] * len(x)
            minimised = minimised + step["minimised"] * len(x)
            if self.tells_batches:
                self.history.record_batch(f"{prefix}_loss", float(step["loss"]))
                self.history.record_batch(f"{prefix}_batch_size", len(x))
                y_pred = self.module_.to_predictions(step["y_pred"])
                about = {"loss": step["loss"], "y_pred": y_pred, "training": training}
                self.notify("on_batch_end", batch=shown, **about)
        mean = float(total) / len(iterator.dataset)
        row = self._row()
        if not self.tells_batches:
            # skorch's Checkpoint looks up the last batch
            row["batches"].append({f"{prefix}_loss": mean})
        row[f"{prefix}_loss"], row[f"{prefix}_batch_count"] = mean, len(iterator)
        if training:
            self.minimised = float(minimised) / len(iterator.dataset)

    def _shown(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """A batch in the user's units."""
        return self.module_.to_user_rows(x), self.module_.to_user_units(y)

    def train_step(self, batch: Any, weight: Tensor | None = None, **kwargs: Any) -> Any:
        """One update; the loss returned is the objective before it."""
        if not self.module_.training:
            self._set_training(True)
        objective, (x, y) = self.objective_, batch
        first: dict[str, Any] = {}

        def closure() -> Tensor:
            self.optimizer_.zero_grad()
            step = objective.gradients(x, y, weight)
            if not first:
                first.update(step)
            if self.tells_gradients:
                parameters = list(self.module_.named_parameters())
                about = {"named_parameters": parameters, "training": True}
                self.notify("on_grad_computed", batch=self._shown(x, y), **about)
            value: Tensor = step["smooth"]
            return value

        before = [w.detach().clone() for w in objective.projected]
        self.optimizer_.step(closure)
        objective.project_(before)
        return first

    def validation_step(
        self, batch: Any, weight: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Loss of held-out rows, without the penalty."""
        self._set_training(False)
        x, y = batch
        with torch.no_grad():
            output = self.module_(x)
            loss = self.criterion_(output, y, weight)
        return {"loss": loss, "y_pred": output, "minimised": loss}


def check_callbacks(callbacks: Any) -> None:
    """Raise ValueError for what skorch could not call."""
    for callback in callbacks or []:
        given = callback[1] if isinstance(callback, tuple) and len(callback) == 2 else callback
        if not (isinstance(given, Callback) or given is None) and not (
            isinstance(given, type) and issubclass(given, Callback)
        ):
            raise ValueError(
                f"callbacks must be skorch callbacks or (name, callback) pairs; got {callback!r}. "
                "See skorch.callbacks for those there are, and subclass skorch.callbacks.Callback "
                "for your own."
            )


def make_net(
    module: MLPModule, spec: FitSpec, start: Mapping[str, Any] | None = None
) -> RegressionNet:
    """An initialised net around a module."""
    callbacks = list(spec.callbacks or [])
    types = [c if isinstance(c, type) else type(c) for c in callbacks]
    if spec.verbose and PrintLog not in types:
        callbacks.append(PrintLog())
    net = RegressionNet(
        module,
        _Criterion(spec.loss),
        lr=float(spec.optimizer_options.get("lr", 0.0)),
        max_epochs=spec.max_epochs,
        batch_size=spec.batch_size,
        train_split=None,
        callbacks=callbacks,
        predict_nonlinearity=None,
        # a PrintLog only prints where the net is verbose
        verbose=spec.verbose or int(PrintLog in types),
        device=str(spec.device),
        spec=spec,
        start=start,
    )
    return net.initialize()  # type: ignore[no-any-return]


def wrap(module: MLPModule) -> RegressionNet:
    """A net round a fitted module that was not trained here, for skorch's interface."""
    net = RegressionNet(
        module,
        nn.MSELoss(),
        train_split=None,
        callbacks=None,
        predict_nonlinearity=None,
        verbose=0,
        device=str(module.x_offset.device),
    )
    return net.initialize()  # type: ignore[no-any-return]
