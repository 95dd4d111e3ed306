"""Pictures of training: loss curves, learning rates, fitted lines.

Displays hold data, drawn by `plot`; artists end in ``_``. They need matplotlib, which the extra
``plot`` brings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from ._figures import fitted_step, new_axes
from ._types import Array

# losses that differ by a larger factor are easier to read on a logarithmic axis
LOG_RANGE = 10.0


class LossCurveDisplay:
    """Training and validation loss per epoch, of one estimator or several.

    It is advised to use `from_estimator`.

    Parameters
    ----------
    loss_curves : dict of str to array-like of shape (n_epochs,)
        Mean training loss per epoch, by name.
    validation_loss_curves : dict of str to array-like of shape (n_epochs,), default=None
        Loss of held-out rows, for names that have one.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curves.
    figure_ : matplotlib Figure
        Figure of the axes.
    lines_ : list of matplotlib Line2D
        Training losses.
    validation_lines_ : list of matplotlib Line2D
        Validation losses.
    best_points_ : list of matplotlib Line2D
        Marks at the best epochs.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sktorch_linreg import LossCurveDisplay, TorchLinearRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = TorchLinearRegressor(optimizer="adam", lr=0.01, max_epochs=50).fit(X, y)
    >>> display = LossCurveDisplay.from_estimator(model)
    >>> len(display.lines_[0].get_xdata())
    50
    """

    def __init__(
        self,
        loss_curves: Mapping[str, Any],
        validation_loss_curves: Mapping[str, Any] | None = None,
    ) -> None:
        self.loss_curves = {k: np.asarray(v, dtype=float) for k, v in loss_curves.items()}
        given = validation_loss_curves or {}
        self.validation_loss_curves = {k: np.asarray(v, dtype=float) for k, v in given.items()}

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, name: Any = None, ax: Any = None, **kwargs: Any
    ) -> Self:
        """Draw the loss curves of fitted estimators.

        Parameters
        ----------
        estimator : estimator, or list or dict of estimators
            Fitted estimators of this package, pipelines that end in one, or searches over these,
            whose best estimator is shown. The keys of a dict are the names.
        name : str or list of str, default=None
            Names for the legend; the classes by default.
        ax : matplotlib Axes, default=None
            Axes to draw in; new ones by default.
        **kwargs : dict
            Handed to `plot`.

        Returns
        -------
        display : LossCurveDisplay
            The display.

        Raises
        ------
        NotFittedError
            If an estimator was not fitted.

        Examples
        --------
        >>> from sktorch_linreg import LossCurveDisplay, TorchLinearRegressor
        >>> rows = [[0.0], [1.0]], [0.0, 1.0]
        >>> models = {f"lr={lr}": TorchLinearRegressor(lr=lr).fit(*rows) for lr in (0.01, 0.1)}
        >>> sorted(LossCurveDisplay.from_estimator(models).loss_curves)
        ['lr=0.01', 'lr=0.1']
        """
        named = estimator
        if not isinstance(estimator, Mapping):
            many = list(estimator) if isinstance(estimator, list | tuple) else [estimator]
            names = [name] if isinstance(name, str) else name
            named = dict(zip(names or _names(many), many, strict=True))
        models = {key: fitted_step(value) for key, value in named.items()}
        for model in models.values():
            check_is_fitted(model)
        return cls(
            {key: m.loss_curve_ for key, m in models.items()},
            {
                key: m.validation_loss_curve_
                for key, m in models.items()
                if m.validation_loss_curve_
            },
        ).plot(ax, **kwargs)

    def plot(
        self, ax: Any = None, *, log: Any = "auto", mark_best: bool = True, **kwargs: Any
    ) -> Self:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw in; new ones by default.
        log : bool or "auto", default="auto"
            Whether the loss axis is logarithmic; "auto" where losses differ by a factor of 10.
        mark_best : bool, default=True
            Whether the epoch with the lowest loss (on held-out rows, if there are any) is marked.
        **kwargs : dict
            Handed to matplotlib for the lines.

        Returns
        -------
        display : LossCurveDisplay
            The display.

        Examples
        --------
        >>> from sktorch_linreg import LossCurveDisplay
        >>> LossCurveDisplay({"Adam": [1.0, 0.1, 0.01]}).plot().ax_.get_yscale()
        'log'
        """
        self.ax_ = ax = new_axes(ax)
        self.figure_ = ax.figure
        self.lines_, self.validation_lines_, self.best_points_ = [], [], []
        for name, losses in self.loss_curves.items():
            epochs = np.arange(1, len(losses) + 1)
            held_out = self.validation_loss_curves.get(name)
            label = name if held_out is None else f"{name}, training"
            (line,) = ax.plot(epochs, losses, label=label, **kwargs)
            self.lines_.append(line)
            color, watched = line.get_color(), losses
            if held_out is not None:
                style = {**kwargs, "color": color, "linestyle": "--"}
                self.validation_lines_ += ax.plot(
                    np.arange(1, len(held_out) + 1), held_out, label=f"{name}, validation", **style
                )
                watched = held_out
            if mark_best and len(watched):
                best = int(np.nanargmin(watched))
                self.best_points_ += ax.plot([best + 1], [watched[best]], "o", color=color)
        every = np.concatenate([*self.loss_curves.values(), *self.validation_loss_curves.values()])
        if log == "auto":
            log = bool(every.size and every.min() > 0 and every.max() > LOG_RANGE * every.min())
        ax.set(xlabel="epoch", ylabel="loss", yscale="log" if log else "linear")
        ax.legend()
        return self


def _names(models: Sequence[Any]) -> list[str]:
    """Names of classes, numbered where there are several."""
    names = [type(fitted_step(model)).__name__ for model in models]
    return names if len(names) == 1 else [f"{name} {i + 1}" for i, name in enumerate(names)]


class LearningRateDisplay:
    """Mean score of a search over its learning rates, with a band of one standard error.

    It is advised to use `from_search`.

    Parameters
    ----------
    lr : array-like of shape (n_rates,)
        Learning rates, in ascending order.
    mean_score, std_error : array-like of shape (n_rates,)
        Score of the best candidate at each rate, and its standard error over the folds.
    score_name : str, default="score"
        Name of the score.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curve.
    figure_ : matplotlib Figure
        Figure of the axes.
    line_ : matplotlib Line2D
        Mean scores.
    band_ : matplotlib artist
        The band.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sktorch_linreg import BatchedGridSearchCV, LearningRateDisplay, TorchLinearRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = TorchLinearRegressor(optimizer="adam", max_epochs=20, random_state=0)
    >>> search = BatchedGridSearchCV(model, {"lr": [1e-3, 1e-2, 0.1]}).fit(X, y)
    >>> LearningRateDisplay.from_search(search).lr
    array([0.001, 0.01 , 0.1  ])
    """

    def __init__(
        self, lr: Any, mean_score: Any, std_error: Any, *, score_name: str = "score"
    ) -> None:
        self.lr, self.mean_score = np.asarray(lr), np.asarray(mean_score)
        self.std_error = np.asarray(std_error)
        self.score_name = score_name

    @classmethod
    def from_search(
        cls, search: Any, *, metric: str = "score", ax: Any = None, **kwargs: Any
    ) -> Self:
        """Draw the scores of a fitted search over learning rates.

        Where a rate was tried with other parameters as well, the best of them counts.

        Parameters
        ----------
        search : fitted search
            Of this package or of scikit-learn, over a parameter ``lr`` or ``step__lr``.
        metric : str, default="score"
            The score, where there are several.
        ax : matplotlib Axes, default=None
            Axes to draw in; new ones by default.
        **kwargs : dict
            Handed to `plot`.

        Returns
        -------
        display : LearningRateDisplay
            The display.

        Raises
        ------
        ValueError
            If the search had no learning rates.
        """
        check_is_fitted(search, "cv_results_")
        results = search.cv_results_
        names = [k for k in results if k == "param_lr" or k.endswith("__lr")]
        if not names:
            tried = [k.removeprefix("param_") for k in results if k.startswith("param_")]
            raise ValueError(f"The search had no parameter lr; it tried {', '.join(tried)}.")
        rates = np.ma.filled(results[names[0]].astype(float), np.nan)
        mean, std = (results[f"{which}_test_{metric}"] for which in ("mean", "std"))
        lr = np.unique(rates[np.isfinite(rates)])
        best = [_best(np.flatnonzero(rates == rate), mean) for rate in lr]
        error = std[best] / np.sqrt(search.n_splits_)
        return cls(lr, mean[best], error, score_name=metric).plot(ax, **kwargs)

    def plot(self, ax: Any = None, *, name: str | None = None, **kwargs: Any) -> Self:
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw in; new ones by default.
        name : str, default=None
            Name for the legend.
        **kwargs : dict
            Handed to matplotlib for the line.

        Returns
        -------
        display : LearningRateDisplay
            The display.

        Examples
        --------
        >>> from sktorch_linreg import LearningRateDisplay
        >>> LearningRateDisplay([0.01, 0.1], [0.3, 0.5], [0.1, 0.1]).plot().ax_.get_xscale()
        'log'
        """
        self.ax_ = ax = new_axes(ax)
        self.figure_ = ax.figure
        style = {"marker": "o", "markersize": 3, **kwargs}
        (self.line_,) = ax.plot(self.lr, self.mean_score, label=name, **style)
        low, high = self.mean_score - self.std_error, self.mean_score + self.std_error
        color = self.line_.get_color()
        self.band_ = ax.fill_between(self.lr, low, high, color=color, alpha=0.15, linewidth=0)
        ax.set(xscale="log", xlabel="learning rate", ylabel=f"mean {self.score_name}")
        if name is not None:
            ax.legend()
        return self


def _best(candidates: Array, mean: Array) -> int:
    """The candidate with the highest score, the first where all have failed."""
    scores = mean[candidates]
    at = 0 if np.isnan(scores).all() else int(np.nanargmax(scores))
    return int(candidates[at])


class FittedLineDisplay:
    """Rows with one feature, and the line or curve that an estimator fitted to them.

    It is advised to use `from_estimator`.

    Parameters
    ----------
    x, y : array-like of shape (n_samples,)
        The rows.
    x_line, y_line : array-like of shape (n_points,)
        The fitted line.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the picture.
    figure_ : matplotlib Figure
        Figure of the axes.
    points_ : matplotlib PathCollection
        The rows.
    line_ : matplotlib Line2D
        The line.

    Examples
    --------
    >>> from sktorch_linreg import FittedLineDisplay, TorchLinearRegressor
    >>> X, y = [[0.0], [1.0]], [1.0, 3.0]
    >>> display = FittedLineDisplay.from_estimator(TorchLinearRegressor().fit(X, y), X, y)
    >>> display.y_line[[0, -1]].round(6)
    array([1., 3.])
    """

    def __init__(self, x: Any, y: Any, x_line: Any, y_line: Any) -> None:
        self.x, self.y = np.asarray(x), np.asarray(y)
        self.x_line, self.y_line = np.asarray(x_line), np.asarray(y_line)

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: Any, *, resolution: int = 200, ax: Any = None, **kwargs: Any
    ) -> Self:
        """Draw rows and the fitted line.

        Parameters
        ----------
        estimator : estimator
            Any fitted regressor.
        X : array-like of shape (n_samples, 1)
            The feature.
        y : array-like of shape (n_samples,)
            Targets.
        resolution : int, default=200
            Points of the line.
        ax : matplotlib Axes, default=None
            Axes to draw in; new ones by default.
        **kwargs : dict
            Handed to `plot`.

        Returns
        -------
        display : FittedLineDisplay
            The display.

        Raises
        ------
        ValueError
            If there is more than one feature or target.
        """
        x, target = np.asarray(X), np.asarray(y)
        if x.ndim != 2 or x.shape[1] != 1 or target.size != len(x):
            raise ValueError(
                f"A fitted line needs one feature and one target; X has the shape {x.shape} and y "
                f"{target.shape}. For more, see sklearn.inspection.PartialDependenceDisplay."
            )
        line = np.linspace(x.min(), x.max(), resolution, dtype=np.result_type(x, np.float32))
        names = getattr(estimator, "feature_names_in_", None)
        rows: Any = line[:, None]
        if names is not None:
            # in the frame that the estimator knows
            rows = type(X)({names[0]: line})
        return cls(x[:, 0], target.ravel(), line, np.ravel(estimator.predict(rows))).plot(
            ax, **kwargs
        )

    def plot(self, ax: Any = None, *, name: str | None = None, **kwargs: Any) -> Self:
        """Draw the picture.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw in; new ones by default.
        name : str, default=None
            Name of the line for the legend.
        **kwargs : dict
            Handed to matplotlib for the line.

        Returns
        -------
        display : FittedLineDisplay
            The display.

        Examples
        --------
        >>> from sktorch_linreg import FittedLineDisplay
        >>> display = FittedLineDisplay([0.0, 1.0], [1.0, 3.0], [0.0, 1.0], [1.0, 3.0]).plot()
        >>> len(display.line_.get_xdata())
        2
        """
        self.ax_ = ax = new_axes(ax)
        self.figure_ = ax.figure
        self.points_ = ax.scatter(self.x, self.y, s=12, color="0.4")
        (self.line_,) = ax.plot(
            self.x_line, self.y_line, **{"color": "tab:red", "label": name, **kwargs}
        )
        ax.set(xlabel="x", ylabel="y")
        if name is not None:
            ax.legend()
        return self
