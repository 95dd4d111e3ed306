"""The skorch net, fed by tensor slices; no other file imports skorch."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import skorch
import torch
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import PrintLog
from torch import Tensor, nn
from torch.optim import lr_scheduler

from ._batches import BatchIterator, TabularDataset
from ._losses import Penalty
from ._modules import MLPModule
from ._monitor import Monitor
from ._optimizers import OrthantLBFGS
from ._state import to_tensors
from ._types import FitSpec, Layers, Loss, TrainingDivergedError


class _Criterion(nn.Module):
    """The loss as the module that skorch expects; a target may come as (y, weight)."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, prediction: Tensor, target: Any) -> Tensor:
        y, weight = target if isinstance(target, list | tuple) else (target, None)
        return self.loss.mean(prediction, y, weight)


class _StopTraining(Exception):
    """A callback asked to stop; skorch's own way is a KeyboardInterrupt, which Ctrl-C is too."""


class RegressionNet(skorch.NeuralNet):  # type: ignore[misc]
    """skorch's net over tensor slices, with the package's objective and stopping rules.

    Losses per batch are kept in the history, and callbacks told of batches, only where there are
    callbacks; that is most of what makes plain skorch slow on tabular data.
    """

    optimizer_: Any
    spec: Any
    monitor: Any

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

    @property
    def _default_callbacks(self) -> list[Any]:
        return []

    def initialize_criterion(self) -> RegressionNet:
        self.criterion_ = self.criterion
        return self

    def initialize_optimizer(self, *args: Any, **kwargs: Any) -> RegressionNet:
        spec, parameters = self.spec, list(self.module_.parameters())
        if spec is None or spec.optimizer_class is None:
            return super().initialize_optimizer(*args, **kwargs)  # type: ignore[no-any-return]
        self.penalty_ = Penalty(spec.l1, spec.l2, spec.positive)
        # an optimizer that keeps the L1 term and the constraint by itself gets smooth gradients
        self.own_penalty_ = spec.optimizer == "lbfgs" and self.penalty_.projects
        if self.own_penalty_:
            options = dict(spec.optimizer_options)
            self.optimizer_ = OrthantLBFGS(parameters, self.penalty_, **options)
        else:
            self.optimizer_ = spec.optimizer_class(parameters, **spec.optimizer_options)
        self.schedule_ = None
        if self.start is not None:
            self.optimizer_.load_state_dict(to_tensors(self.start["optimizer"], self.device))
        if spec.schedule_class is not None:
            self.schedule_ = spec.schedule_class(self.optimizer_, **spec.schedule_options)
            if self.start is not None and self.start["schedule"] is not None:
                self.schedule_.load_state_dict(dict(self.start["schedule"]))
        return self

    def notify(self, method_name: str, **kwargs: Any) -> None:
        try:
            super().notify(method_name, **kwargs)
        except KeyboardInterrupt as error:
            if method_name in ("on_train_begin", "on_train_end"):
                raise
            raise _StopTraining from error

    def get_split_datasets(self, X: Any, y: Any = None, **kwargs: Any) -> tuple[Any, Any]:
        return (X, self.validation) if isinstance(X, TabularDataset) else (X, None)

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        if not isinstance(dataset, TabularDataset):
            return super().get_iterator(dataset, training=training)
        if not training:
            return BatchIterator(dataset, max(self.batch_size or 0, 4096))
        return BatchIterator(dataset, self.batch_size, self.order_generator)

    def prepare(
        self,
        monitor: Monitor,
        validation: TabularDataset | None,
        order_generator: torch.Generator | None,
        path: list[Layers] | None,
    ) -> None:
        """Hand over what belongs to one training run."""
        self.monitor, self.validation = monitor, validation
        self.order_generator, self.path = order_generator, path
        self.interrupted = False
        # line searches fail at kinks, so L-BFGS follows ever sharper smooth losses
        kinks = self.spec.optimizer == "lbfgs" and self.spec.loss.smoothed is not None
        self._smooth_at(0.1 if kinks else None)

    def finish(self) -> None:
        """Let go of the rows and of what was only needed for the run."""
        self.monitor = self.validation = self.order_generator = self.path = self.start = None

    def fit_loop(self, X: Any, y: Any = None, epochs: int | None = None, **kwargs: Any) -> Any:
        if not isinstance(X, TabularDataset):
            return super().fit_loop(X, y, epochs, **kwargs)
        batches = self.get_iterator(X, training=True)
        checks = None if self.validation is None else self.get_iterator(self.validation)
        about = {"dataset_train": X, "dataset_valid": self.validation}
        keeps_epochs = len(batches) > 1
        done: Any = None
        try:
            for _ in range(self.max_epochs if epochs is None else epochs):
                begin = time.perf_counter()
                self.notify("on_epoch_begin", **about)
                self.run_single_epoch(batches, True, "train", self.train_step)
                self.run_single_epoch(checks, False, "valid", self.validation_step)
                self._end_epoch(time.perf_counter() - begin)
                if keeps_epochs:
                    done = [p.detach().clone() for p in self.module_.parameters()]
                self.notify("on_epoch_end", **about)
                if self.monitor.stopped or (self.monitor.settled and not self._sharpen()):
                    break
            else:
                self._warn_unfinished()
        except _StopTraining:
            self.monitor.stopped = True
            if not self.monitor.loss_curve:
                self._interrupt(None)
        except KeyboardInterrupt:
            self._interrupt(done)
        return self

    def _sharpen(self) -> bool:
        """Bring the smoothed loss closer to the one with kinks; False if it is close enough."""
        if self.width is None or self.width <= 10 * torch.finfo(self.spec.dtype).eps ** 0.5:
            return False
        self._smooth_at(0.1 * self.width)
        self.monitor.minimised = math.inf
        if isinstance(self.optimizer_, OrthantLBFGS):
            self.optimizer_.forget()
        else:
            self.optimizer_.state.clear()
        return True

    def _smooth_at(self, width: float | None) -> None:
        loss = self.criterion_.loss
        self.width = width
        self.surrogate = None if width is None else replace(loss, pointwise=loss.smoothed(width))

    def _interrupt(self, done: list[Tensor] | None) -> None:
        """Keep the epochs that were finished, and say so; without any, let the interrupt pass."""
        n_done = len(self.monitor.loss_curve)
        if n_done == 0:
            self.interrupted = True
            raise KeyboardInterrupt
        if done is not None:
            with torch.no_grad():
                for parameter, kept in zip(self.module_.parameters(), done, strict=True):
                    parameter.copy_(kept)
        warnings.warn(
            f"Training was interrupted; the estimator is fitted with the {n_done} epochs that were "
            "done. Set warm_start=True and call fit again to go on from there.",
            UserWarning,
            stacklevel=2,
        )

    def _warn_unfinished(self) -> None:
        if self.monitor.must_stop and self.max_epochs > 1:
            warnings.warn(
                f"Training stopped at max_epochs={self.max_epochs} before the loss settled within "
                f"tol={self.spec.tol}. Raise max_epochs, lr or tol, or set tol=None to run a fixed "
                "number of epochs.",
                ConvergenceWarning,
                stacklevel=2,
            )

    def _end_epoch(self, seconds: float) -> None:
        monitor, row = self.monitor, self.history[-1]
        loss, validation = row["train_loss"], row.get("valid_loss")
        lr = float(self.optimizer_.param_groups[0]["lr"])
        if not (math.isfinite(loss) and (validation is None or math.isfinite(validation))):
            raise TrainingDivergedError(len(monitor.loss_curve) + 1, lr)
        best_train = min(monitor.loss_curve, default=math.inf)
        best_valid = min(monitor.validation_curve, default=math.inf)
        self.history.record("train_loss_best", loss < best_train)
        if validation is not None:
            self.history.record("valid_loss_best", validation < best_valid)
        self.history.record("lr", lr)
        self.history.record("dur", seconds)
        monitor.update(loss, validation, self.minimised, self.module_)
        if self.path is not None:
            self.path.append(self.module_.arrays())
        if self.schedule_ is not None:
            if isinstance(self.schedule_, lr_scheduler.ReduceLROnPlateau):
                self.schedule_.step(loss if validation is None else validation)
            else:
                self.schedule_.step()

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: Any, **kwargs: Any
    ) -> None:
        if iterator is None:
            return
        if not isinstance(iterator, BatchIterator):
            super().run_single_epoch(iterator, training, prefix, step_fn, **kwargs)
            return
        told = bool(self.callbacks_)
        total: Any = 0.0
        minimised: Any = 0.0
        for batch in iterator:
            n_rows = len(batch[0])
            if told:
                self.notify("on_batch_begin", batch=batch, training=training)
            step = step_fn(batch)
            total = total + step["loss"] * n_rows
            minimised = minimised + step.get("minimised", 0.0) * n_rows
            if told:
                self.history.record_batch(f"{prefix}_loss", float(step["loss"]))
                self.history.record_batch(f"{prefix}_batch_size", n_rows)
                step.pop("minimised", None)
                self.notify("on_batch_end", batch=batch, training=training, **step)
        self.history.record(f"{prefix}_loss", float(total) / len(iterator.dataset))
        if training:
            self.minimised = float(minimised) / len(iterator.dataset)
        self.history.record(f"{prefix}_batch_count", len(iterator))

    def train_step(self, batch: Any, **kwargs: Any) -> dict[str, Any]:
        """One update; the loss returned is the objective before it."""
        if not self.module_.training:
            self._set_training(True)
        weights, penalty = self.module_.weights, self.penalty_
        projected = weights if penalty.projects and not self.own_penalty_ else []
        first: dict[str, Any] = {}

        def closure() -> Tensor:
            self.optimizer_.zero_grad()
            step = self._gradients(batch, weights)
            for w in projected:
                w.grad = penalty.pseudo_gradient(w, w.grad)
            if not first:
                first.update(step)
            if self.callbacks_:
                parameters = list(self.module_.named_parameters())
                self.notify(
                    "on_grad_computed", named_parameters=parameters, batch=batch, training=True
                )
            minimised: Tensor = step["minimised"]
            return minimised

        before = [w.detach().clone() for w in projected]
        self.optimizer_.step(closure)
        with torch.no_grad():
            for w, old in zip(projected, before, strict=True):
                penalty.project_(w, old)
        return first

    def _gradients(self, batch: Any, weights: list[Tensor]) -> dict[str, Any]:
        """Fill in the gradients of the smooth part; returns the values of the objective."""
        x, target = batch
        output = self.module_(x)
        loss = minimised = self.criterion_(output, target)
        if self.surrogate is not None:
            y, weight = target if isinstance(target, tuple) else (target, None)
            minimised = self.surrogate.mean(output, y, weight)
        minimised.backward()
        penalty = self.penalty_
        with torch.no_grad():
            penalty.add_smooth_gradient_(weights)
            added = penalty.value(weights)
            # an optimizer with a penalty of its own adds the L1 term itself
            smooth = Penalty(l2=penalty.l2).value(weights) if self.own_penalty_ else added
            return {
                "loss": loss.detach() + added,
                "y_pred": output.detach(),
                "minimised": minimised.detach() + smooth,
            }

    def infer(self, x: Any, **kwargs: Any) -> Any:
        if isinstance(x, Tensor):
            dtype = self.module_.layers[0].weight.dtype
            return self.module_(x.to(device=self.device, dtype=dtype))
        return super().infer(x, **kwargs)

    def get_loss(self, y_pred: Any, y_true: Any, X: Any = None, training: bool = False) -> Any:
        return self.criterion_(y_pred, y_true)


def make_net(
    module: MLPModule, spec: FitSpec, start: Mapping[str, Any] | None = None
) -> RegressionNet:
    """An initialised net around a module."""
    callbacks = list(spec.callbacks or [])
    if spec.verbose and not any(isinstance(c, PrintLog) for c in callbacks):
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
        verbose=spec.verbose,
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
        spec=None,
    )
    return net.initialize()  # type: ignore[no-any-return]
