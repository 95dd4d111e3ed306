"""Display of training and validation losses per epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .._estimator.pipelines import fitted_step
from .axes import new_axes, styled

# losses that differ by a larger factor are easier to read on a logarithmic axis
LOG_RANGE = 10.0


class LossCurveDisplay:
    """Training and validation loss per epoch, of one estimator or several.

    Use `from_estimator` to create one.

    Parameters
    ----------
    loss_curves : dict of str to array-like of shape (n_epochs,)
        Mean training loss per epoch, by name.
    validation_loss_curves : dict of str to array-like of shape (n_epochs,), default=None
        Loss of the held-out rows per epoch, for names that have one.

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
        Markers at the best epochs.

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
            Names for the legend; class names by default.
        ax : matplotlib Axes, default=None
            Axes to draw in; new ones by default.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        display : LossCurveDisplay
            The display.

        Raises
        ------
        NotFittedError
            If an estimator is not fitted.
        ValueError
            If there are no estimators, if they do not have one distinct name each, or if one has no
            loss curve.

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
            names = list(names or _names(many))
            if len(names) != len(many) or len(set(names)) < len(names):
                raise ValueError(
                    f"{len(many)} estimator(s) need one distinct name each; got {names!r}."
                )
            named = dict(zip(names, many, strict=True))
        models = {key: fitted_step(value) for key, value in named.items()}
        if not models:
            raise ValueError("No estimators given.")
        for model in models.values():
            check_is_fitted(model)
            if not hasattr(model, "loss_curve_"):
                raise ValueError(
                    f"{type(model).__name__} has no loss_curve_. Pass an estimator of this "
                    "package, a pipeline that ends in one, a search over these, or an "
                    "MLPRegressor."
                )
        return cls(
            {key: m.loss_curve_ for key, m in models.items()},
            {
                key: m.validation_loss_curve_
                for key, m in models.items()
                # MLPRegressor of scikit-learn has validation scores instead
                if getattr(m, "validation_loss_curve_", None)
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
            Whether the loss axis is logarithmic; "auto": if losses span more than a factor of 10.
        mark_best : bool, default=True
            Whether to mark the epoch with the lowest loss (on held-out rows, if there are any).
        **kwargs : dict
            Passed to matplotlib for the lines.

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
        style = styled(kwargs)
        for name, losses in self.loss_curves.items():
            epochs = np.arange(1, len(losses) + 1)
            held_out = self.validation_loss_curves.get(name)
            label = name if held_out is None else f"{name}, training"
            (line,) = ax.plot(epochs, losses, **{"label": label, **style})
            self.lines_.append(line)
            color, watched = line.get_color(), losses
            if held_out is not None:
                dashed = {**style, "color": color, "linestyle": "--"}
                dashed["label"] = f"{style.get('label', name)}, validation"
                self.validation_lines_ += ax.plot(
                    np.arange(1, len(held_out) + 1), held_out, **dashed
                )
                watched = held_out
            if mark_best and np.isfinite(watched).any():
                best = int(np.nanargmin(watched))
                self.best_points_ += ax.plot([best + 1], [watched[best]], "o", color=color)
        every = np.concatenate([*self.loss_curves.values(), *self.validation_loss_curves.values()])
        if log == "auto":
            log = bool(every.size and every.min() > 0 and every.max() > LOG_RANGE * every.min())
            # keep a logarithmic axis that another curve has set
            log = log or ax.get_yscale() == "log"
        ax.set(xlabel="epoch", ylabel="loss", yscale="log" if log else "linear")
        ax.legend()
        return self


def _names(models: Sequence[Any]) -> list[str]:
    """Class names, numbered if there are several."""
    names = [type(fitted_step(model)).__name__ for model in models]
    return names if len(names) == 1 else [f"{name} {i + 1}" for i, name in enumerate(names)]
