"""The training loop: epochs, divergence, stopping and schedules, for one model and for many."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from .._optim.schedules import Schedules
from .stopping import Monitor


class TrainingLoop(ABC):
    """Epochs over the rows, until no model is trained any more.

    What is trained, one model or many, is a subclass. Losses and learning rates are numbers per
    model: plain ones, or arrays.

    Attributes
    ----------
    monitor : Monitor
        Which models are still trained, and their best losses and weights.
    schedules : Schedules or None
        Those of the learning rates.
    weights : Weights
        The parameters of all models.
    max_epochs : int
        The most epochs that there will be.
    n_epochs : int
        Epochs that are done.
    """

    monitor: Monitor
    schedules: Schedules | None
    weights: Any
    n_epochs = 0

    @property
    @abstractmethod
    def max_epochs(self) -> int:
        """The most epochs that there will be."""

    @abstractmethod
    def begin_epoch(self) -> None:
        """Tell of an epoch that begins."""

    @abstractmethod
    def train_epoch(self) -> Any:
        """Update over all batches; the mean losses as they were seen on the way."""

    @abstractmethod
    def validation_loss(self) -> Any:
        """The mean losses over held-out rows, None where there are none."""

    @abstractmethod
    def learning_rate(self) -> Any:
        """The learning rates of this epoch."""

    @abstractmethod
    def refuse(self, diverged: Any, rate: Any) -> None:
        """Raise, or note, a TrainingDivergedError for some models."""

    @abstractmethod
    def record(self, loss: Any, validation: Any, rate: Any) -> None:
        """Keep what an epoch has given; from here on it counts."""

    @abstractmethod
    def finish(self, done: Any, rate: Any) -> None:
        """Keep the weights of models that are done, where others are trained on."""

    @abstractmethod
    def end_epoch(self) -> None:
        """Tell of an epoch that is done, which may deactivate models."""

    def run(self) -> Any:
        """Train until all models have stopped or `max_epochs` are done.

        Returns which models were still trained then.
        """
        numbers, monitor = self.monitor.numbers, self.monitor
        while self.n_epochs < self.max_epochs and numbers.any(monitor.active):
            self.begin_epoch()
            loss = self.train_epoch()
            self._take_in(loss, self.validation_loss())
            self.end_epoch()
        return monitor.active

    def _take_in(self, loss: Any, validation: Any) -> None:
        """Refuse losses that are not finite, see which models stop, and step the schedules."""
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
