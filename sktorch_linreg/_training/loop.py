"""The training loop: epochs, divergence, stopping and schedules, for one model and for many."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from .._optim.schedules import Schedules
from .stopping import Monitor


class TrainingLoop(ABC):
    """Epochs over the rows, until all models have stopped.

    Subclasses train one model or many. Losses and learning rates are numbers per model: scalars or
    arrays.

    Attributes
    ----------
    monitor : Monitor
        Which models are still training, and their best losses and weights.
    schedules : Schedules or None
        Learning-rate schedules.
    weights : Weights
        The parameters of all models.
    max_epochs : int
        Maximum number of epochs.
    n_epochs : int
        Number of completed epochs.
    """

    monitor: Monitor
    schedules: Schedules | None
    weights: Any
    n_epochs = 0

    @property
    @abstractmethod
    def max_epochs(self) -> int:
        """Maximum number of epochs."""

    @abstractmethod
    def begin_epoch(self) -> None:
        """Notify listeners that an epoch begins."""

    @abstractmethod
    def train_epoch(self) -> Any:
        """Update over all batches; returns the mean losses, measured before each update."""

    @abstractmethod
    def validation_loss(self) -> Any:
        """The mean losses over held-out rows, or None without any."""

    @abstractmethod
    def learning_rate(self) -> Any:
        """The learning rates of this epoch."""

    @abstractmethod
    def refuse(self, diverged: Any, rate: Any) -> None:
        """Raise or record a TrainingDivergedError for the diverged models."""

    @abstractmethod
    def record(self, loss: Any, validation: Any, rate: Any) -> None:
        """Record the results of an epoch, which counts as completed from here on."""

    @abstractmethod
    def finish(self, done: Any, rate: Any) -> None:
        """Save the weights of finished models while others continue training."""

    @abstractmethod
    def end_epoch(self) -> None:
        """Notify listeners that an epoch is done, which may deactivate models."""

    def run(self) -> Any:
        """Train until all models have stopped or `max_epochs` is reached.

        Returns which models were still training at that point.
        """
        numbers, monitor = self.monitor.numbers, self.monitor
        while self.n_epochs < self.max_epochs and numbers.any(monitor.active):
            self.begin_epoch()
            loss = self.train_epoch()
            self._take_in(loss, self.validation_loss())
            self.end_epoch()
        return monitor.active

    def _take_in(self, loss: Any, validation: Any) -> None:
        """Reject non-finite losses, determine which models stop, and step the schedules."""
        monitor, numbers, rate = self.monitor, self.monitor.numbers, self.learning_rate()
        monitored = loss if validation is None else validation
        finite = numbers.is_finite(loss)
        if validation is not None:
            finite = finite & numbers.is_finite(validation)
        if not numbers.all(finite):
            diverged = monitor.active & numbers.invert(finite)
            self.refuse(diverged, rate)
            monitor.active = monitor.active & finite
        self.record(loss, validation, rate)
        monitor.update(monitored, self.weights)
        if self.schedules is not None:
            monitor.wait_for_rate(*self.schedules.step(monitored, monitor.active))
        if numbers.any(monitor.stopped):
            self.finish(monitor.stopped, rate)
            monitor.active = monitor.active & numbers.invert(monitor.stopped)
