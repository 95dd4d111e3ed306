"""Display of a line or curve fitted to one feature."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from .axes import new_axes, styled


class FittedLineDisplay:
    """Rows with one feature, and the line or curve that an estimator fitted to them.

    Use `from_estimator` to create one.

    Parameters
    ----------
    x, y : array-like of shape (n_samples,)
        Feature and target of each row.
    x_line, y_line : array-like of shape (n_points,)
        The fitted line.
    feature_name : str, default="x"
        Name of the feature.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the plot.
    figure_ : matplotlib Figure
        Figure of the axes.
    points_ : matplotlib PathCollection
        The points, one per row.
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

    def __init__(
        self, x: Any, y: Any, x_line: Any, y_line: Any, *, feature_name: str = "x"
    ) -> None:
        self.x, self.y = np.asarray(x), np.asarray(y)
        self.x_line, self.y_line = np.asarray(x_line), np.asarray(y_line)
        self.feature_name = feature_name

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: Any, *, resolution: int = 200, ax: Any = None, **kwargs: Any
    ) -> Self:
        """Draw the rows and the fitted line.

        Parameters
        ----------
        estimator : estimator
            Any fitted regressor.
        X : array-like of shape (n_samples, 1)
            The feature.
        y : array-like of shape (n_samples,)
            Targets.
        resolution : int, default=200
            Number of points on the line.
        ax : matplotlib Axes, default=None
            Axes to draw in; new ones by default.
        **kwargs : dict
            Passed to `plot`.

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
                "FittedLineDisplay requires one feature and one target; X has the shape "
                f"{x.shape} and y {target.shape}. For more features, use "
                "sklearn.inspection.PartialDependenceDisplay."
            )
        line = np.linspace(x.min(), x.max(), resolution, dtype=np.result_type(x, np.float32))
        names = getattr(estimator, "feature_names_in_", None)
        rows: Any = line[:, None]
        if names is not None and (hasattr(X, "columns") or hasattr(X, "column_names")):
            # as a data frame of the same type as X
            make = getattr(type(X), "from_pydict", type(X))
            rows = make({names[0]: line})
        fitted = np.ravel(estimator.predict(rows))
        label = "x" if names is None else str(names[0])
        return cls(x[:, 0], target.ravel(), line, fitted, feature_name=label).plot(ax, **kwargs)

    def plot(self, ax: Any = None, *, name: str | None = None, **kwargs: Any) -> Self:
        """Draw the rows and the line.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw in; new ones by default.
        name : str, default=None
            Name of the line for the legend.
        **kwargs : dict
            Passed to matplotlib for the line.

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
        style = {"color": "tab:red", "label": name, **styled(kwargs)}
        (self.line_,) = ax.plot(self.x_line, self.y_line, **style)
        ax.set(xlabel=self.feature_name, ylabel="y")
        if style["label"] is not None:
            ax.legend()
        return self
