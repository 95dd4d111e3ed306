"""One model: its batches, its optimizer, and its callbacks."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from .._data.moments import Moments
from .._data.scaling import Scaling, to_user_units
from .._errors import TrainingDivergedError
from .._modules.scaled import ScaledModule
from .._objective.penalty import longer
from .._optim.schedules import Schedules
from .._optim.updates import RuleUpdates, TorchUpdates, rate_of
from .._runtime.seeds import torch_draws_from
from .._spec import FitResult, FitSpec, RunContext
from .batches import (
    OUTPUT_ROWS,
    Batch,
    BatchIterator,
    Share,
    SharedBatchIterator,
    TabularDataset,
)
from .begin import runs_code
from .epoch_table import EpochTable
from .flat_parameters import Snapshot
from .lbfgs_convergence import (
    LbfgsConvergence,
    forget,
    goes_on,
    keep_lowest,
    step_until_settled,
    why_not_converged,
)
from .loop import TrainingLoop
from .module_objective import ModuleObjective
from .stopping import Monitor


class StopTraining(Exception):
    """A callback asked to stop; skorch itself uses KeyboardInterrupt, which Ctrl-C raises too."""


@dataclass
class Stepper:
    """The updates of a run, and its learning-rate schedule."""

    updates: Any
    schedules: Schedules | None = None

    @property
    def schedule(self) -> Any:
        """The torch schedule, or None."""
        return None if self.schedules is None else self.schedules.schedules[0]

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore an optimizer's state."""
        if not self.updates.load(state):
            self.use_torch()

    def use_torch(self) -> None:
        """Use torch's own optimizer for the updates from here on."""
        self.updates = TorchUpdates(self.updates.optimizer)


class Listener(Protocol):
    """Receives the events of a run and keeps its history: the net with its callbacks."""

    max_epochs: int
    batch_size: int
    history: Any
    # whether there are callbacks, and whether any of them use batches or gradients
    hears_epochs: bool
    hears_batches: bool
    hears_gradients: bool
    # whether one of them prints the epochs
    prints: bool

    def notify(self, method_name: str, **kwargs: Any) -> None:
        """Call the skorch method of this name on all callbacks."""

    def add_epoch(self) -> dict[str, Any]:
        """Start the history record of an epoch."""

    def _set_training(self, training: bool) -> None:
        """Set module and loss to training or evaluation mode."""


@dataclass
class RunState:
    """The state of one training run, discarded after it."""

    # only for L-BFGS
    convergence: LbfgsConvergence | None
    validation: TabularDataset | None
    order: torch.Generator | None
    # what code of the user's draws comes from these instead of torch's global generators
    of_code: list[torch.Generator]
    # all generators, whose states a checkpoint keeps
    generators: list[torch.Generator | None]
    # parameters before the first epoch and after each one, if requested
    path: list[Tensor] | None
    # rows in the user's units, for callbacks
    shown: Mapping[str, Any]
    # scaled, or condensed
    rows: TabularDataset
    # how the rows are spread over processes
    share: Share
    # the scaling used in training, and the moments it was computed from
    scaling: Scaling
    moments: tuple[Moments, Moments] | None
    # rows of the history from earlier runs that a callback has loaded
    n_earlier: int = 0
    best_train: float = math.inf
    # mean over the last epoch of the function that the optimizer minimises
    minimised: float = math.inf
    # whether the last epoch ran until nothing was gained; None for a fixed number of steps
    settled: bool | None = None
    # losses of the completed epochs
    loss_curve: list[float] = field(default_factory=list)
    validation_curve: list[float] = field(default_factory=list)
    warnings: list[tuple[str, type[Warning]]] = field(default_factory=list)


class OneModel(TrainingLoop):
    """Training of one model, with callbacks, checkpoints and any optimizer.

    Without batch callbacks, an epoch is one call of the objective. Batch losses are recorded in
    the history only if there are batch callbacks; recording them is most of what makes plain
    skorch slow on tabular data.

    Parameters
    ----------
    spec : FitSpec
        Specification of the fit.
    context : RunContext
        Context of the call of `fit` or `partial_fit`.
    module : ScaledModule
        The module to train.
    objective : ModuleObjective
        Its loss and penalty, and their gradients.
    stepper : Stepper
        The updates of its parameters.
    listener : Listener
        Receives the events of the run.
    monitor : Monitor
        Decides when training stops.
    state : RunState
        Rows, and the changing state of the run.
    """

    def __init__(
        self,
        spec: FitSpec,
        context: RunContext,
        module: ScaledModule,
        objective: ModuleObjective,
        stepper: Stepper,
        listener: Listener,
        monitor: Monitor,
        state: RunState,
    ) -> None:
        self.spec, self.context, self.module = spec, context, module
        self.objective, self.weights, self.stepper = objective, objective.flat, stepper
        self.listener, self.monitor, self.state = listener, monitor, state
        # history record of the epoch
        self.row: dict[str, Any] = {}
        # the parameters after the last epoch
        self.kept: Snapshot | None = None
        self.table = EpochTable(0)

    @property
    def schedules(self) -> Schedules | None:  # type: ignore[override]
        """The learning-rate schedule, which is bound to the optimizer."""
        return self.stepper.schedules

    @property
    def max_epochs(self) -> int:
        """Maximum number of epochs, which callbacks may change."""
        return self.listener.max_epochs

    def so_far(self) -> FitResult:
        """The result of the fit if it ended now."""
        state, flat, scaling = self.state, self.weights, self.state.scaling
        best: Snapshot | None = self.monitor.best_weights
        # arrays share the memory of the snapshot
        best = flat.keep(None) if best is None else best._replace(values=best.values.clone())
        return FitResult.of_training(
            self.spec,
            trained=flat.layers(best.values),
            scaling=scaling,
            curves=(list(state.loss_curve), list(state.validation_curve)),
            best_loss=self.monitor.best,
            history=self.plain_history(),
            path=[to_user_units(flat.layers(values), scaling) for values in state.path or []],
            moments=state.moments,
            warnings=state.warnings,
            module_state=flat.arrays(best, "module"),
            loss_state=flat.arrays(best, "loss"),
        )

    def train(self) -> None:
        """Train for `max_epochs`, or until a stopping rule or a callback ends training."""
        state, context = self.state, self.context
        state.n_earlier = len(self.listener.history)
        if context.checkpoint is not None:
            context.checkpoint.resume(self)
        self.batches, self.checks = self.training_batches(), None
        if state.validation is not None:
            size = max(self.listener.batch_size, OUTPUT_ROWS)
            self.checks = self._iterate(state.validation, size)
        heard = self.listener.hears_epochs or context.listener is not None
        self.table = EpochTable(0 if self.listener.prints else context.verbose)
        self.kept = self.weights.keep(None) if self.n_epochs else None
        try:
            with torch.inference_mode(self._needs_no_autograd() and not heard):
                with self.seeded():
                    keep_lowest(self, self.batches)
                if self.run():
                    self._warn_unfinished()
        except (StopTraining, KeyboardInterrupt) as error:
            if state.share.group.size > 1:
                raise RuntimeError(
                    "Distributed training was interrupted in one process, while others may have "
                    "been an epoch ahead; the result was discarded. To stop early, stop from a "
                    "callback at the end of an epoch."
                ) from error
            self._keep_finished_epochs()
            if isinstance(error, KeyboardInterrupt):
                go_on = "Set warm_start=True and call fit again to continue."
                if context.checkpoint is not None:
                    go_on = "Call fit again to resume from the last checkpoint."
                message = (
                    f"Training was interrupted; the estimator keeps the "
                    f"{len(state.loss_curve)} completed epochs. {go_on}"
                )
                state.warnings.append((message, UserWarning))
        finally:
            self.table.close()
        # before on_train_end, so that weights saved or loaded by callbacks there are final
        self.monitor.restore_best_weights(self.weights)

    def training_batches(self) -> BatchIterator:
        """The batches of an epoch."""
        state, size = self.state, self.listener.batch_size
        order = state.order
        if self._runs_code and order is state.of_code[0]:
            # it stands for this one during an epoch
            order = torch.default_generator
        if self.objective.group.size > 1:
            joins = self.spec.behaviour.joins_last_row
            return SharedBatchIterator(state.rows, size, order, state.share, joins_last=joins)
        return self._iterate(state.rows, size, order)

    def _iterate(
        self, rows: TabularDataset, size: int, order: torch.Generator | None = None
    ) -> BatchIterator:
        return BatchIterator(
            rows,
            size,
            order,
            # a loss that only returns a mean is computed batch by batch
            one_batch=self.spec.objective.loss.reduced,
            # batch normalisation takes no single row
            joins_last=self.spec.behaviour.joins_last_row,
        )

    @cached_property
    def _runs_code(self) -> bool:
        """Whether code of the user's takes part in epochs, and may draw random numbers."""
        listener = self.listener
        return listener.hears_batches or listener.hears_gradients or runs_code(self.spec)

    def seeded(self) -> AbstractContextManager[None]:
        """A context in which torch's global generators draw the numbers of this fit."""
        # between epochs, other threads may draw theirs
        own = self.state.of_code
        return torch_draws_from(own, self.spec.device) if self._runs_code else nullcontext()

    def _needs_no_autograd(self) -> bool:
        """Inference mode is cheapest, but autograd cannot use tensors created in it."""
        by_rule = isinstance(self.stepper.updates, RuleUpdates)
        written = self.spec.objective.loss.slope is not None
        return by_rule and written and self.objective.backprop is not None

    def _write_down(self) -> None:
        """Save a checkpoint if one is due."""
        checkpoint, n = self.context.checkpoint, self.n_epochs
        if checkpoint is None:
            return
        if not self.monitor.active or n == self.max_epochs or n % checkpoint.every == 0:
            checkpoint.save(self)

    def plain_history(self) -> list[dict[str, Any]]:
        """Completed epochs of this run, without batches; an interrupt may leave an extra row."""
        first = self.state.n_earlier
        rows = list(self.listener.history)[first : first + len(self.state.loss_curve)]
        return [
            {k: v for k, v in {**row, "epoch": i + 1}.items() if k != "batches"}
            for i, row in enumerate(rows)
        ]

    def end_epoch(self) -> None:
        """Notify listeners that an epoch is done; a callback or L-BFGS may stop training."""
        self.table.add(self.row)
        self.kept = self.weights.keep(self.kept)
        self.n_epochs += 1
        monitor, stop = self.monitor, False
        if self.listener.hears_epochs or self.context.listener is not None:
            # a callback that fails or stops does so in all processes
            stop = any(self.context.group.gather(self._tell_of_epoch))
        convergence = self.state.convergence
        if convergence is not None:
            if monitor.stopped:
                self.state.warnings += why_not_converged(self)
            elif not stop:
                stop = convergence.settled and not self._goes_on()
        if stop:
            monitor.active = False
        self._write_down()

    def _goes_on(self) -> bool:
        """Continue L-BFGS after an epoch without gain; returns False if it has converged."""
        with self.seeded():
            return (self.state.settled is None and goes_on(self)) or self._sharpen()

    def _tell_of_epoch(self) -> bool:
        """Notify callbacks that an epoch is done; returns whether one asked to stop."""
        stop, listener = False, self.context.listener
        if self.listener.hears_epochs:
            self.stepper.updates.publish()
            try:
                self.listener.notify("on_epoch_end", **self.state.shown)
            except StopTraining:
                stop = True
            self.objective.flat.take_parameters()
        return bool(listener is not None and listener.end_epoch(self.so_far)) or stop

    def begin_epoch(self) -> None:
        """Notify callbacks, and pick up what they changed."""
        if self.context.listener is not None:
            self.context.listener.begin_epoch(self.so_far)
        self.row = self.listener.add_epoch()
        self.begun = time.perf_counter()
        if not self.listener.hears_epochs:
            return
        self.listener.notify("on_epoch_begin", **self.state.shown)
        whole = self.objective.configure()
        if not (whole and self.stepper.updates.in_step()):
            # a rule updates all parameters with one shared state
            self.stepper.use_torch()

    def _sharpen(self) -> bool:
        """Continue with a narrower envelope of a loss with kinks; False if there is none."""
        if not self.objective.sharpen():
            return False
        if self.state.convergence is not None:
            self.state.convergence.minimised, self.state.convergence.settled = math.inf, False
        forget(self.stepper.updates.optimizer)
        return True

    def _keep_finished_epochs(self) -> None:
        """Undo an unfinished epoch; without a finished one, re-raise the interrupt."""
        finished = len(self.state.loss_curve)
        if finished == 0:
            raise KeyboardInterrupt
        # an epoch counts as completed once its loss is in the curve
        if self.kept is not None and finished == self.n_epochs:
            self.weights.restore(self.kept)

    def _warn_unfinished(self) -> None:
        must_stop = self.spec.tol is not None or self.state.convergence is not None
        if self.context.incremental or not must_stop:
            return
        message = f"Training stopped at max_epochs={self.max_epochs} before "
        if self.spec.tol is None:
            message += "L-BFGS had converged. Raise max_epochs."
        else:
            message += (
                f"the loss settled within tol={self.spec.tol}. Raise max_epochs, lr or tol, or set "
                "tol=None to run a fixed number of epochs."
            )
        self.state.warnings.append((message, ConvergenceWarning))

    def train_epoch(self) -> float:
        """Update over all batches; returns the mean objective, measured before each update."""
        with self.seeded():
            loss = self._pass(self.batches, training=True)
            keep_lowest(self, self.batches)
        return loss

    def validation_loss(self) -> float | None:
        """The mean loss over held-out rows."""
        if self.checks is None:
            return None
        with self.seeded():
            return self._pass(self.checks, training=False)

    def learning_rate(self) -> float:
        """The learning rate of this epoch."""
        return rate_of(self.stepper.updates.group)

    def refuse(self, diverged: bool, rate: float) -> None:
        """Raise a TrainingDivergedError."""
        raise TrainingDivergedError(len(self.state.loss_curve) + 1, rate)

    def finish(self, done: bool, rate: float) -> None:
        """Do nothing: no other model continues, so the weights stay in place."""

    def record(self, loss: float, validation: float | None, rate: float) -> None:
        """Record losses, and the entries that skorch's Checkpoint and PrintLog need."""
        state, row = self.state, self.row
        # other processors may round differently
        group = self.objective.group
        group.broadcast_(self.weights.values)
        if group.size > 1 and self._runs_code:
            parts = group.gather(lambda: {k: b.cpu() for k, b in self.weights.buffers().items()})
            # the first process may lack a buffer that forward sets, if it had no rows so far
            for buffers in reversed(parts):
                self.weights.set_buffers_(buffers)
        row["train_loss_best"] = loss < state.best_train
        state.best_train = min(state.best_train, loss)
        if validation is not None:
            row["valid_loss_best"] = validation < self.monitor.best
            state.validation_curve.append(validation)
        row["lr"], row["dur"] = rate, time.perf_counter() - self.begun
        # from here on the epoch counts as completed
        state.loss_curve.append(loss)
        if state.convergence is not None:
            state.convergence.update(state.minimised, state.settled)
        if state.path is not None:
            state.path.append(self.weights.values.cpu().clone())

    # -- batches --------------------------------------------------------------------------------

    def _pass(self, iterator: BatchIterator, *, training: bool) -> float:
        """Pass over training rows with updates, or over held-out rows without."""
        prefix = "train" if training else "valid"
        if self.module.training != training:
            self.listener._set_training(training)
        row, updates = self.row, self.stepper.updates
        by_torch = training and not isinstance(updates, RuleUpdates)
        listener = self.listener
        if listener.hears_batches or by_torch or (training and listener.hears_gradients):
            mean = self._pass_by_batches(iterator, training, prefix)
        else:
            quiet = nullcontext() if torch.is_inference_mode_enabled() else torch.no_grad()
            with quiet:
                if training:
                    mean = self.objective.epoch(iterator, updates.step)
                    self.state.minimised = mean
                else:
                    mean = self.objective.loss_of(iterator)
            # skorch's Checkpoint and PassthroughScoring read batch records
            size = len(iterator.dataset)
            row["batches"].append({f"{prefix}_loss": mean, f"{prefix}_batch_size": size})
        row[f"{prefix}_loss"], row[f"{prefix}_batch_count"] = mean, len(iterator)
        return mean

    def _pass_by_batches(self, iterator: BatchIterator, training: bool, prefix: str) -> float:
        """A pass that notifies callbacks of each batch, or whose optimizer takes a closure."""
        listener, step_of = self.listener, self._step if training else self._validate
        total: Any = 0.0
        batches, names = self.row["batches"], (f"{prefix}_loss", f"{prefix}_batch_size")
        for block in iterator.blocks():
            for batch in block.batches:
                if not listener.hears_batches:
                    step = step_of(batch, self._shown(batch) if listener.hears_gradients else None)
                    total = longer(total, step["loss"] * batch.n_all)
                    continue
                shown = self._shown(batch)
                listener.notify("on_batch_begin", batch=shown, training=training)
                step = step_of(batch, shown)
                loss = float(step["loss"])
                total += loss * batch.n_all
                batches[-1].update(zip(names, (loss, batch.n_all), strict=True))
                y_pred = self.module.to_predictions(step["y_pred"])
                about = {"loss": step["loss"], "y_pred": y_pred, "training": training}
                listener.notify("on_batch_end", batch=shown, **about)
        if training:
            # only used by L-BFGS, whose epochs are one batch
            self.state.minimised = float(step["minimised"])
        sums = [float(total), float(iterator.n_all)]
        if not training:
            # validation rows have not been summed over the processes yet
            sums = self.context.group.sum(sums)
        mean = sums[0] / sums[1]
        if not listener.hears_batches:
            batches.append(dict(zip(names, (mean, len(iterator.dataset)), strict=True)))
        return mean

    def _shown(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A batch in the user's units."""
        return self.module.to_user_rows(batch.x), self.module.to_user_units(batch.y)

    def _step(self, batch: Batch, shown: Any) -> dict[str, Any]:
        """One update; the loss returned is the objective before it.

        `shown` is the batch as passed to callbacks.
        """
        if not self.module.training:
            self.listener._set_training(True)
        objective, updates, listener = self.objective, self.stepper.updates, self.listener
        first: dict[str, Any] = {}

        def closure() -> Tensor:
            with torch.no_grad():
                # an optimizer may have replaced parameters or cleared gradients
                objective.flat.take_parameters()
                objective.flat.offer_gradients()
                objective.gradient_(batch)
                loss, minimised, smooth = objective.values(batch)
            if not first:
                # a line search evaluates more than once
                y_pred = batch.out.clone() if listener.hears_batches else None
                first.update(loss=loss, minimised=minimised, y_pred=y_pred)
            if listener.hears_gradients:
                parameters = list(self.module.named_parameters())
                about = {"named_parameters": parameters, "training": True}
                listener.notify("on_grad_computed", batch=shown, **about)
                if isinstance(updates, RuleUpdates):
                    objective.flat.take_gradients()
            value: Tensor = smooth
            return value

        step = updates.step
        # for a convex loss with kinks, the number of steps needed depends on rounding
        follows = (
            self.spec.training.is_lbfgs
            and objective.width is not None
            and self.spec.shape.is_linear
        )
        if follows:
            step = partial(step_until_settled, self)
        if self.spec.training.is_lbfgs:
            objective.group.lead(step, closure, objective.flat.values)
            if follows:
                self.state.settled = objective.group.broadcast(self.state.settled)
        else:
            step(closure)
        with torch.no_grad():
            objective.flat.take_parameters()
            objective.project_()
        return first

    def _validate(self, batch: Batch, shown: Any) -> dict[str, Any]:
        """Loss of held-out rows, without the penalty."""
        self.listener._set_training(False)
        with torch.no_grad():
            self.objective.outputs_(batch)
            loss = self.spec.objective.loss.mean(batch.out, batch.y, batch.row_weight)
        return {"loss": loss, "y_pred": batch.out}
