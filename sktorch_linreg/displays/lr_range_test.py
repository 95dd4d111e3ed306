"""A learning-rate range test: brief training at increasing learning rates."""

from __future__ import annotations

import math
import warnings
from contextlib import suppress
from typing import Any, Self

import numpy as np
from sklearn.base import clone

from .._errors import TrainingDivergedError
from .._estimator.base import BaseTorchRegressor
from .._estimator.pipelines import fitted_step
from .._runtime.aliases import FloatArray
from .._training.skorch_net import Callback
from .axes import new_axes, styled

# a loss above the best one by this multiple of its scale ends the test
HOPELESS = 3.0
# the suggested rate is the rate of the lowest loss divided by this
BELOW = 10.0
# decay of the moving average per batch
MEMORY = 0.9


class _Over(Exception):
    """Raised to end the test."""


class _Sweep(Callback):  # type: ignore[misc]
    """Sets the learning rate before each batch, and records the loss after it."""

    def __init__(self, rates: FloatArray) -> None:
        self.rates, self.losses = rates, list[float]()
        self.mean = _RunningMean()
        self.best, self.first = math.inf, math.nan

    def on_batch_begin(self, net: Any, batch: Any = None, training: bool = False, **_: Any) -> None:
        if not training:
            return
        for group in net.optimizer_.param_groups:
            group["lr"] = float(self.rates[len(self.losses)])

    def on_batch_end(
        self, net: Any, batch: Any = None, training: bool = False, loss: Any = None, **_: Any
    ) -> None:
        if not training:
            return
        self.losses.append(float(loss))
        mean = self.mean.add(self.losses[-1])
        if len(self.losses) == 1:
            self.first = mean
        self.best = min(self.best, mean)
        # losses may be negative, such as the Poisson loss
        scale = max(abs(self.best), self.first - self.best)
        enough = len(self.losses) == len(self.rates)
        if enough or not math.isfinite(mean) or mean - self.best > HOPELESS * scale:
            raise _Over


class _RunningMean:
    """Exponential moving average, with weights that always sum to one."""

    def __init__(self) -> None:
        self.total = self.count = 0.0

    def add(self, value: float) -> float:
        """Add a number, and return the mean."""
        self.total, self.count = MEMORY * self.total + value, MEMORY * self.count + 1.0
        return self.total / self.count


def lr_range_test(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    sample_weight: Any = None,
    lr_min: float = 1e-6,
    lr_max: float = 10.0,
    n_steps: int = 200,
) -> LRRangeTestDisplay:
    """Train batch by batch, at a learning rate that increases with each batch.

    The loss is flat at first, then falls, and finally rises or becomes NaN (Smith, 2017,
    "Cyclical learning rates for training neural networks"). A tenth of the rate at which it was
    lowest usually works well. The estimator is left unchanged.

    Parameters
    ----------
    estimator : TorchLinearRegressor or TorchMLPRegressor
        The estimator whose optimizer, batches and loss to test, or a pipeline that ends in one,
        whose earlier steps are fitted to the rows.
    X : array-like of shape (n_samples, n_features)
        Features.
    y : array-like of shape (n_samples,) or (n_samples, n_targets)
        Targets.
    sample_weight : array-like of shape (n_samples,), default=None
        Sample weights.
    lr_min, lr_max : float, default=1e-6 and 10.0
        The first and the last rate.
    n_steps : int, default=200
        Number of updates, one per rate.

    Returns
    -------
    display : LRRangeTestDisplay
        Rates, losses and the suggested rate.

    Raises
    ------
    ValueError
        If `lr_min` is not below `lr_max`, the optimizer does not train on batches, or the loss is
        NaN from the start.

    Warns
    -----
    UserWarning
        If the loss was lowest at the last rate.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sktorch_linreg import TorchMLPRegressor, lr_range_test
    >>> X, y = load_diabetes(return_X_y=True)
    >>> found = lr_range_test(TorchMLPRegressor(random_state=0), X, y)
    >>> bool(1e-3 < found.suggested_lr < 10.0)
    True
    """
    if not 0 < lr_min < lr_max or n_steps < 2:
        raise ValueError(
            f"lr_min must be above 0 and below lr_max, and n_steps at least 2; got "
            f"lr_min={lr_min}, lr_max={lr_max}, n_steps={n_steps}."
        )
    model = fitted_step(clone(estimator))
    if not isinstance(model, BaseTorchRegressor):
        raise ValueError(
            f"lr_range_test requires an estimator of this package; got {type(model).__name__}."
        )
    if estimator is not model and hasattr(estimator, "steps") and len(estimator.steps) > 1:
        X = clone(estimator)[:-1].fit_transform(X, y)
    optimizer = model.optimizer
    sweep = _Sweep(np.geomspace(lr_min, lr_max, n_steps))
    settings: dict[str, Any] = {
        "optimizer": "adam" if optimizer == "auto" else optimizer,
        "callbacks": [sweep],
        "lr": lr_min,
        "max_epochs": n_steps,
        "lr_schedule": None,
        "tol": None,
        "early_stopping": False,
        "verbose": 0,
        "warm_start": False,
        "checkpoint_dir": None,
    }
    for name in [name for name in model.get_params() if name.startswith("lr_schedule__")]:
        delattr(model, name)
    model.set_params(**settings)
    if not hasattr(model, "partial_fit") or optimizer == "lstsq":
        raise ValueError(
            f"optimizer={optimizer!r} does not use a learning rate. Try optimizer='adam' or 'sgd'."
        )
    with suppress(_Over, TrainingDivergedError):
        model.fit(X, y, sample_weight=sample_weight)
    return _found(sweep)


def _found(sweep: _Sweep) -> LRRangeTestDisplay:
    """The result of the test; warns if the loss was still falling at the last rate."""
    losses = np.array(sweep.losses)
    if not np.isfinite(losses[:1]).all():
        raise ValueError(
            f"The loss is {losses[0]} before any update, so no rate can be suggested. "
            "Set standardize=True, or scale X and y."
        )
    found = LRRangeTestDisplay(sweep.rates[: len(losses)], losses)
    lr_max = sweep.rates[-1]
    if len(losses) == len(sweep.rates) and found.suggested_lr * BELOW >= 0.99 * lr_max:
        warnings.warn(
            f"The loss was still falling at lr_max={lr_max:g}, so the suggested rate may be far "
            "below the best. Raise lr_max.",
            UserWarning,
            stacklevel=3,
        )
    return found


class LRRangeTestDisplay:
    """Losses of a learning-rate range test, as returned by `lr_range_test`.

    Parameters
    ----------
    lr : array-like of shape (n_steps,)
        Learning rates.
    loss : array-like of shape (n_steps,)
        Loss of each batch.

    Attributes
    ----------
    smoothed_loss : ndarray of shape (n_steps,)
        Exponential moving average of the losses.
    suggested_lr : float
        A tenth of the rate at which the smoothed loss was lowest.
    ax_ : matplotlib Axes
        Axes with the curve, after `plot`.
    figure_ : matplotlib Figure
        Figure of the axes.
    line_ : matplotlib Line2D
        Smoothed losses.
    points_ : matplotlib Line2D
        Losses of single batches.
    suggestion_ : matplotlib Line2D
        A vertical line at the suggested rate.

    Examples
    --------
    >>> import numpy as np
    >>> from sktorch_linreg import LRRangeTestDisplay
    >>> lr = np.geomspace(1e-4, 1.0, 41)
    >>> round(LRRangeTestDisplay(lr, (np.log10(lr) + 1) ** 2).suggested_lr, 3)
    0.063
    """

    def __init__(self, lr: Any, loss: Any) -> None:
        self.lr, self.loss = np.asarray(lr, dtype=float), np.asarray(loss, dtype=float)
        mean = _RunningMean()
        self.smoothed_loss = np.array([mean.add(value) for value in self.loss])
        finite = np.where(np.isfinite(self.smoothed_loss), self.smoothed_loss, np.inf)
        self.suggested_lr = float(self.lr[int(np.argmin(finite))]) / BELOW

    def plot(self, ax: Any = None, **kwargs: Any) -> Self:
        """Draw the losses against the learning rates.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw in; new ones by default.
        **kwargs : dict
            Passed to matplotlib for the line.

        Returns
        -------
        display : LRRangeTestDisplay
            The display.

        Examples
        --------
        >>> from sktorch_linreg import LRRangeTestDisplay
        >>> LRRangeTestDisplay([0.001, 0.01, 0.1], [1.0, 0.5, 2.0]).plot().ax_.get_xscale()
        'log'
        """
        self.ax_ = ax = new_axes(ax)
        self.figure_ = ax.figure
        (self.points_,) = ax.plot(self.lr, self.loss, ".", color="0.7", markersize=3)
        (self.line_,) = ax.plot(self.lr, self.smoothed_loss, **styled(kwargs))
        self.suggestion_ = ax.axvline(
            self.suggested_lr,
            color="tab:red",
            linestyle="--",
            label=f"lr = {self.suggested_lr:.2g}",
        )
        ax.set(xscale="log", xlabel="learning rate", ylabel="loss of a batch")
        # losses that diverge at the end would hide the rest
        before = self.smoothed_loss[self.lr <= BELOW * self.suggested_lr]
        before = before[np.isfinite(before)]
        if len(before):
            low = min(0.0, float(before.min()))
            ax.set_ylim(1.1 * low, low + 1.5 * (float(before.max()) - low))
        ax.legend()
        return self
