"""The training loop: epochs and batches, stopping, and what callbacks hear of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.optim import lr_scheduler

from .._errors import TrainingDivergedError, came_from
from .._optim.construct import is_torchs
from .._optim.schedules import step_plateau
from .._optim.updates import RuleUpdates, TorchUpdates, rate_of
from .._runtime.processes import on_all
from .._spec import FitResult
from .batch_gradients import longer
from .batches import Batch, TabularDataset
from .epoch_table import EpochTable
from .lbfgs_convergence import forget, goes_on, keep_lowest, rise_of
from .stopping import Monitor

# the most steps of L-BFGS, of twenty iterations each, for one width of an envelope, and the share
# of that width, by which an envelope is off anyway, that the last of them gains
ENVELOPE_STEPS, SETTLED_WIDTH = 200, 1e-4


class StopTraining(Exception):
    """A callback asked to stop; skorch's own way is a KeyboardInterrupt, which Ctrl-C is too."""


class EpochListener(Protocol):
    """Somebody who hears of each epoch, and of what the fit would give if it ended there."""

    def begin_epoch(self, so_far: Callable[[], FitResult], /) -> None:
        """An epoch begins."""

    def end_epoch(self, so_far: Callable[[], FitResult], /) -> bool:
        """An epoch has ended; returns whether training is to stop."""


@dataclass
class Run:
    """What belongs to one training run, and is let go of after it."""

    monitor: Monitor
    validation: TabularDataset | None
    order: torch.Generator | None
    # parameters before the first epoch and after each, where they are asked for
    path: list[Tensor] | None
    # rows in the user's units, for callbacks
    shown: Mapping[str, Any]
    # scaled, or standing for others
    rows: TabularDataset | None = None
    # scikit-learn's callbacks, and what the fit would be if it ended now
    task: EpochListener | None = None
    so_far: Any = None
    # the file that the state is written to every few epochs
    checkpoint: Any = None
    # how the rows are spread over processes
    share: Any = None
    # whether training had come to its end before it was cut off
    ended: bool = False
    # rows of the history from earlier runs that a callback has loaded
    n_earlier: int = 0
    # epochs whose parameters have been kept
    n_kept: int = 0
    # the mean over the last epoch of what the optimizer minimises
    minimised: float = math.inf
    # whether it then ran until it gained nothing more; None where it makes a number of steps
    settled: bool | None = None
    # iterations of L-BFGS since it last gained something
    n_without_gain: int = 0
    warnings: list[tuple[str, type[Warning]]] = field(default_factory=list)


class TrainingLoop:
    """The part of the net that trains; it overrides skorch's steps of the same names.

    Without callbacks that listen to batches, an epoch is one call of the objective. Losses per
    batch are kept in the history only where a callback listens to batches; that is most of what
    makes plain skorch slow on tabular data.
    """

    # what the net has
    spec: Any
    run: Any
    objective_: Any
    optimizer_: Any
    optimizer_updates: Any
    module_: Any
    criterion_: Any
    schedule_: Any
    history: Any
    callbacks_: Any
    max_epochs: int
    tells_batches: bool
    tells_gradients: bool
    prints: bool
    notify: Callable[..., None]
    on_epoch_begin: Callable[..., None]
    fit: Callable[..., Any]
    get_iterator: Callable[..., Any]
    _set_training: Callable[[bool], None]

    def fit_loop(self, X: Any, y: Any = None, epochs: int | None = None, **kwargs: Any) -> Any:
        run = self.run
        run.n_earlier = len(self.history)
        if run.checkpoint is not None:
            run.checkpoint.resume(self)
        batches = self.get_iterator(run.rows, training=True)
        checks = None if run.validation is None else self.get_iterator(run.validation)
        told = bool(self.callbacks_) or run.task is not None
        table = EpochTable(0 if self.prints else self.spec.verbose)
        done: Tensor | None = self.objective_.flat.keep(None) if run.n_kept else None
        try:
            with torch.inference_mode(self._needs_no_autograd() and not told):
                stop = run.ended
                keep_lowest(self, batches)
                while not stop and run.n_kept < self.max_epochs:
                    self._one_epoch(batches, checks)
                    table.add(self._row())
                    done = self.objective_.flat.keep(done)
                    run.n_kept += 1
                    stop = self._told_to_stop()
                    self._write_down(stop)
                if not stop:
                    self._warn_unfinished()
        except (StopTraining, KeyboardInterrupt) as error:
            if run.share is not None:
                raise RuntimeError(
                    "Training that is shared by processes was interrupted in one of them, while "
                    "others may have been an epoch ahead, so nothing of it is kept. Callbacks can "
                    "stop it at the end of an epoch."
                ) from error
            self._keep_finished_epochs(done)
            if isinstance(error, KeyboardInterrupt):
                go_on = "Set warm_start=True and call fit again to go on from there."
                if run.checkpoint is not None:
                    go_on = "Call fit again to go on from the last checkpoint."
                message = (
                    f"Training was interrupted; the estimator is fitted with the "
                    f"{len(run.monitor.loss_curve)} epochs that were done. {go_on}"
                )
                run.warnings.append((message, UserWarning))
        finally:
            table.close()
        # before on_train_end, so that what callbacks load or save there is what remains
        if run.monitor.best_values is not None:
            self.objective_.flat.values.copy_(run.monitor.best_values)
            run.monitor.best_values = None
        return self

    def _needs_no_autograd(self) -> bool:
        """Inference mode costs least, but autograd cannot take what is made in it."""
        by_rule = isinstance(self.optimizer_updates, RuleUpdates)
        written = self.spec.loss.slope is not None
        return by_rule and written and self.objective_.backprop is not None

    def _one_epoch(self, batches: Any, checks: Any) -> None:
        begin = time.perf_counter()
        self._begin_epoch()
        self.run_single_epoch(batches, True, "train", self.train_step)
        keep_lowest(self, batches)
        if checks is not None:
            self.run_single_epoch(checks, False, "valid", self.validation_step)
        self._end_epoch(time.perf_counter() - begin)

    def _write_down(self, stop: bool) -> None:
        """Keep the state of training in a file, where it is asked for and time."""
        checkpoint, n = self.run.checkpoint, self.run.n_kept
        if checkpoint is None:
            return
        if stop or n == self.max_epochs or n % checkpoint.every == 0:
            checkpoint.save(self, stop)

    def plain_history(self) -> list[dict[str, Any]]:
        """The rows of this run's epochs, without batches; an interrupt may have left one more."""
        first = self.run.n_earlier
        rows = list(self.history)[first : first + len(self.run.monitor.loss_curve)]
        return [
            {k: v for k, v in {**row, "epoch": i + 1}.items() if k != "batches"}
            for i, row in enumerate(rows)
        ]

    def _told_to_stop(self) -> bool:
        """Tell of an epoch that is done; whether a callback or the monitor wants no other."""
        monitor, task = self.run.monitor, self.run.task
        stop = False
        if self.callbacks_ or task is not None:
            # one that fails or stops does so on all processes
            share = self.run.share
            stop = any(on_all(None if share is None else share.processes, self._tell_of_epoch))
        if monitor.stopped and monitor.is_lbfgs:
            self.run.warnings += rise_of(self)
        return stop or monitor.stopped or (monitor.settled and not self._goes_on())

    def _goes_on(self) -> bool:
        """Go on with L-BFGS where it gained nothing; False where it has converged."""
        return (self.run.settled is None and goes_on(self)) or self._sharpen()

    def _tell_of_epoch(self) -> bool:
        """Tell callbacks of an epoch that is done; whether one of them wants no other."""
        stop, task = False, self.run.task
        if self.callbacks_:
            self.optimizer_updates.publish()
            try:
                self.notify("on_epoch_end", **self.run.shown)
            except StopTraining:
                stop = True
            self.objective_.flat.take_parameters()
        return bool(task is not None and task.end_epoch(self.run.so_far)) or stop

    def _begin_epoch(self) -> None:
        """Tell callbacks, and look at what they may have changed."""
        if self.run.task is not None:
            self.run.task.begin_epoch(self.run.so_far)
        if not self.callbacks_:
            self.on_epoch_begin(self)
            return
        self.notify("on_epoch_begin", **self.run.shown)
        updates: Any = self.optimizer_updates
        whole = self.objective_.configure()
        if not (whole and updates.in_step()):
            # a rule moves all parameters with one and the same history
            self.optimizer_updates = TorchUpdates(updates.optimizer)

    def _sharpen(self) -> bool:
        """Go on with a sharper stand-in for a loss with kinks; False where there is none."""
        if not self.objective_.sharpen():
            return False
        self.run.monitor.minimised, self.run.monitor.settled = math.inf, False
        forget(self.optimizer_)
        return True

    def _keep_finished_epochs(self, done: Tensor | None) -> None:
        """Undo an unfinished epoch; without a finished one, let the interrupt pass."""
        finished = len(self.run.monitor.loss_curve)
        if finished == 0:
            raise KeyboardInterrupt
        # an epoch counts from the moment that its loss is in the curve
        if done is not None and finished == self.run.n_kept:
            self.objective_.flat.values.copy_(done)

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
        monitor, row, flat = self.run.monitor, self._row(), self.objective_.flat
        if self.objective_.processes is not None:
            # other processors may round differently
            self.objective_.processes.from_first_(flat.values)
        loss, validation = row["train_loss"], row.get("valid_loss")
        updates: Any = self.optimizer_updates
        lr = rate_of(updates.group)
        if not (math.isfinite(loss) and (validation is None or math.isfinite(validation))):
            raise TrainingDivergedError(len(monitor.loss_curve) + 1, lr)
        # skorch's Checkpoint and PrintLog look for these
        row["train_loss_best"] = loss < monitor.best_train
        if validation is not None:
            row["valid_loss_best"] = validation < monitor.best_validation
        row["lr"], row["dur"] = lr, seconds
        monitor.update(loss, validation, self.run.minimised, flat, self.run.settled)
        if not monitor.settled:
            self.run.n_without_gain = 0
        if self.run.path is not None:
            self.run.path.append(flat.values.cpu().clone())
        if self.schedule_ is not None:
            self._step_schedule(loss if validation is None else validation)

    def _row(self) -> dict[str, Any]:
        """The epoch's record; indexing skorch's history copies all of it."""
        row: dict[str, Any] = list.__getitem__(self.history, -1)
        return row

    def _step_schedule(self, monitored: float) -> None:
        if isinstance(self.schedule_, lr_scheduler.ReduceLROnPlateau):
            self.run.monitor.wait_for_rate(*step_plateau(self.schedule_, monitored))
            return
        options = self.spec.schedule_options.values()
        if not is_torchs(type(self.schedule_)) or any(map(callable, options)):
            with came_from("lr_schedule", self.schedule_):
                self.schedule_.step()
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
        if self.module_.training != training:
            self._set_training(training)
        row, updates = self._row(), self.optimizer_updates
        by_torch = training and not isinstance(updates, RuleUpdates)
        if self.tells_batches or by_torch or (training and self.tells_gradients):
            mean = self._told_epoch(iterator, training, prefix, step_fn)
        else:
            quiet = nullcontext() if torch.is_inference_mode_enabled() else torch.no_grad()
            with quiet:
                if training:
                    mean = self.objective_.epoch(iterator, updates.step)
                    self.run.minimised = mean
                else:
                    mean = self.objective_.loss_of(iterator)
            # skorch's Checkpoint and PassthroughScoring look at batches
            size = len(iterator.dataset)
            row["batches"].append({f"{prefix}_loss": mean, f"{prefix}_batch_size": size})
        row[f"{prefix}_loss"], row[f"{prefix}_batch_count"] = mean, len(iterator)

    def _told_epoch(self, iterator: Any, training: bool, prefix: str, step_fn: Any) -> float:
        """An epoch in which callbacks hear of each batch, or the optimizer calls for gradients."""
        total: Any = 0.0
        batches, names = self._row()["batches"], (f"{prefix}_loss", f"{prefix}_batch_size")
        for block in iterator.blocks():
            for batch in block.batches:
                if not self.tells_batches:
                    step = step_fn(batch, self._shown(batch) if self.tells_gradients else None)
                    total = longer(total, step["loss"] * batch.n_all)
                    continue
                shown = self._shown(batch)
                self.notify("on_batch_begin", batch=shown, training=training)
                step = step_fn(batch, shown)
                loss = float(step["loss"])
                total += loss * batch.n_all
                batches[-1].update(zip(names, (loss, batch.n_all), strict=True))
                y_pred = self.module_.to_predictions(step["y_pred"])
                about = {"loss": step["loss"], "y_pred": y_pred, "training": training}
                self.notify("on_batch_end", batch=shown, **about)
        if training:
            # only L-BFGS looks at this, whose epochs are one batch
            self.run.minimised = float(step["minimised"])
        sums = [float(total), float(iterator.n_all)]
        if not training and self.run.share is not None:
            # rows of validation are not counted over all processes before
            sums = self.run.share.processes.sum(sums)
        mean = sums[0] / sums[1]
        if not self.tells_batches:
            batches.append(dict(zip(names, (mean, len(iterator.dataset)), strict=True)))
        return mean

    def _shown(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A batch in the user's units."""
        return self.module_.to_user_rows(batch.x), self.module_.to_user_units(batch.y)

    def train_step(self, batch: Any, shown: Any = None, **kwargs: Any) -> Any:
        """One update; the loss returned is the objective before it.

        `shown` is the batch as callbacks are to see it.
        """
        if self.run is None:
            # says that the estimator trains
            self.fit(None)
        if not self.module_.training:
            self._set_training(True)
        objective, updates = self.objective_, self.optimizer_updates
        first: dict[str, Any] = {}

        def closure() -> Tensor:
            with torch.no_grad():
                # where an optimizer has replaced parameters or cleared gradients
                objective.flat.take_parameters()
                objective.flat.offer_gradients()
                objective.gradient_(batch)
                loss, minimised, smooth = objective.values(batch)
            if not first:
                # a line search evaluates more than once
                y_pred = batch.out.clone() if self.tells_batches else None
                first.update(loss=loss, minimised=minimised, y_pred=y_pred)
            if self.tells_gradients:
                parameters = list(self.module_.named_parameters())
                about = {"named_parameters": parameters, "training": True}
                self.notify("on_grad_computed", batch=shown, **about)
                if isinstance(updates, RuleUpdates):
                    objective.flat.take_gradients()
            value: Tensor = smooth
            return value

        step = updates.step
        # a convex loss with kinks takes numbers of steps that depend on the last bits of it
        follows = self.spec.is_lbfgs and objective.width is not None and not self.spec.hidden
        if follows:
            step = self._step_until_settled
        if objective.processes is not None and self.spec.is_lbfgs:
            objective.processes.led(step, closure, objective.flat.values)
            if follows:
                self.run.settled = objective.processes.from_first(self.run.settled)
        else:
            step(closure)
        with torch.no_grad():
            objective.flat.take_parameters()
            objective.project_()
        return first

    def _step_until_settled(self, closure: Callable[[], Tensor]) -> None:
        """Make steps of L-BFGS until one gains next to nothing of the width of the envelope."""
        slack = SETTLED_WIDTH * self.objective_.width
        before, self.run.settled = math.inf, False
        for _ in range(ENVELOPE_STEPS):
            # the value before the step
            value = float(self.optimizer_updates.step(closure))
            if not math.isfinite(value) or abs(before - value) <= slack:
                self.run.settled = math.isfinite(value)
                return
            before = value

    def validation_step(self, batch: Any, shown: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Loss of held-out rows, without the penalty."""
        self._set_training(False)
        with torch.no_grad():
            self.objective_.outputs_(batch)
            loss = self.criterion_(batch.out, batch.y, batch.row_weight)
        return {"loss": loss, "y_pred": batch.out}
