"""Display of the loss of a linear model over two parameters, with the training path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.utils.validation import check_is_fitted

from .._data.arrays import chunks
from .._data.validation import validate_rows
from .._estimator.pipelines import before_last_step, fitted_step
from .._objective.losses import resolve_loss
from .._runtime.aliases import Array, FloatArray
from ..linear import TorchLinearRegressor
from .axes import new_axes


class LossSurfaceDisplay:
    """The loss of a linear model over two of its parameters, with the training path.

    Use `from_estimator` to create one.

    Parameters
    ----------
    x_values, y_values : array-like of shape (n_x,) and (n_y,)
        Values of the parameters.
    log_loss : array-like of shape (n_y, n_x)
        Logarithm to base 10 of the mean loss.
    path : array-like of shape (n_epochs + 1, 2), default=None
        Both parameters before training and after each epoch.
    path_log_loss : array-like of shape (n_epochs + 1,), default=None
        Logarithm to base 10 of the loss along the path.
    names : tuple of str, default=("x", "y")
        Names of the parameters.
    above_lowest : bool, default=False
        Whether the losses are measured from the lowest one.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the surface.
    figure_ : matplotlib Figure
        Figure of the axes.
    surface_ : matplotlib artist
        Filled contours, or a surface in three dimensions.
    path_ : list of matplotlib artists
        The training path.

    Examples
    --------
    >>> from sktorch_linreg import LossSurfaceDisplay, TorchLinearRegressor
    >>> X, y = [[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0]
    >>> model = TorchLinearRegressor(optimizer="sgd", lr=0.1, max_epochs=20, record_path=True)
    >>> display = LossSurfaceDisplay.from_estimator(model.fit(X, y), X, y)
    >>> display.log_loss.shape, display.path.shape
    ((100, 100), (21, 2))
    """

    def __init__(
        self,
        x_values: Any,
        y_values: Any,
        log_loss: Any,
        *,
        path: Any = None,
        path_log_loss: Any = None,
        names: tuple[str, str] = ("x", "y"),
        above_lowest: bool = False,
    ) -> None:
        self.above_lowest = above_lowest
        self.x_values, self.y_values = np.asarray(x_values), np.asarray(y_values)
        self.log_loss, self.names = np.asarray(log_loss), names
        self.path = None if path is None else np.asarray(path)
        self.path_log_loss = None if path_log_loss is None else np.asarray(path_log_loss)

    @classmethod
    def from_estimator(
        cls,
        estimator: TorchLinearRegressor,
        X: Any,
        y: Any,
        *,
        params: Sequence[tuple[str, Any]] = (("intercept", 0), ("coef", 0)),
        limits: Any = None,
        sample_weight: Any = None,
        resolution: int = 100,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Compute and draw the loss of a fitted linear model over two parameters.

        All other parameters keep their fitted values. The loss is that of the estimator, without
        the penalty, on the data in the user's units. A loss that can be negative, such as the
        Poisson loss, is measured from its lowest value in the plot.

        Parameters
        ----------
        estimator : TorchLinearRegressor
            A fitted model; with ``record_path=True`` its training path is drawn too. For a
            pipeline, the last step, whose features are the output of the steps before it.
        X : array-like of shape (n_samples, n_features)
            Features.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets.
        params : pair of (str, int) or (str, (int, int)), default=(("intercept", 0), ("coef", 0))
            Parameters on the axes: ``("intercept", target)``, ``("coef", feature)`` or
            ``("coef", (target, feature))``. A feature is an index or, if the model was fitted to
            a data frame, a name.
        limits : pair of (low, high), default=None
            Ranges of both; by default around the fitted values and the path.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.
        resolution : int, default=100
            Number of values along each axis.
        ax : matplotlib Axes, default=None
            Axes to draw in, three-dimensional for ``kind="3d"``; new ones by default.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        display : LossSurfaceDisplay
            The display.

        Raises
        ------
        TypeError
            If the estimator is not a `TorchLinearRegressor`.
        ValueError
            If a parameter does not exist, or rows are invalid.
        """
        model = fitted_step(estimator)
        if not isinstance(model, TorchLinearRegressor):
            raise TypeError(
                "LossSurfaceDisplay only supports TorchLinearRegressor; got "
                f"{type(model).__name__}."
            )
        check_is_fitted(model)
        if len(params) != 2:
            raise ValueError(f"params must contain exactly two parameters; got {params!r}.")
        X = before_last_step(estimator, X)
        surface = _Surface(model, X, y, sample_weight, [_place(model, p) for p in params])
        path = surface.path()
        ranges = [_around(values) for values in path.T] if limits is None else limits
        across, up = (np.linspace(low, high, resolution) for low, high in ranges)
        points = np.stack([a.ravel() for a in np.meshgrid(across, up)])
        loss = surface.losses(points).reshape(resolution, resolution)
        recorded = len(path) > 1
        on_path = surface.losses(path.T) if recorded else np.empty(0)
        lowest = min(loss.min(), on_path.min(initial=np.inf))
        floor = min(0.0, float(lowest))
        with np.errstate(divide="ignore"):
            return cls(
                across,
                up,
                _log_above(floor, loss),
                path=path if recorded else None,
                path_log_loss=_log_above(floor, on_path) if recorded else None,
                names=(_label(params[0]), _label(params[1])),
                above_lowest=floor < 0,
            ).plot(ax, **kwargs)

    def plot(
        self,
        ax: Any = None,
        *,
        kind: str = "contour",
        levels: int = 30,
        cmap: str = "viridis",
        colorbar: bool = True,
        path_kw: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the surface and the path.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw in; new ones by default.
        kind : {"contour", "3d"}, default="contour"
            Filled contours, or a surface in three dimensions.
        levels : int, default=30
            Number of contours.
        cmap : str, default="viridis"
            Colour map of the loss.
        colorbar : bool, default=True
            Whether to draw a colour bar.
        path_kw : dict, default=None
            Passed to matplotlib for the path.

        Returns
        -------
        display : LossSurfaceDisplay
            The display.

        Raises
        ------
        ValueError
            If `kind` is invalid, or ``"3d"`` is to be drawn in two-dimensional axes.

        Examples
        --------
        >>> from sktorch_linreg import LossSurfaceDisplay
        >>> display = LossSurfaceDisplay([0.0, 1.0], [0.0, 1.0], [[0.0, 1.0], [1.0, 2.0]])
        >>> display.plot(kind="3d").ax_.name
        '3d'
        """
        if kind not in ("contour", "3d"):
            raise ValueError(f"kind must be 'contour' or '3d'; got {kind!r}.")
        space = kind == "3d"
        self.ax_ = ax = new_axes(ax, subplot_kw={"projection": "3d"} if space else {})
        if space and not hasattr(ax, "plot_surface"):
            raise ValueError(
                "kind='3d' requires three-dimensional axes, such as those of "
                "fig.add_subplot(projection='3d')."
            )
        self.figure_, self.path_ = ax.figure, []
        grid = np.meshgrid(self.x_values, self.y_values)
        what = "log10 of the loss" + (" above its minimum" if self.above_lowest else "")
        if space:
            self.surface_ = ax.plot_surface(*grid, self.log_loss, cmap=cmap, alpha=0.7)
            ax.set_zlabel(what)
        else:
            self.surface_ = ax.contourf(*grid, self.log_loss, levels=levels, cmap=cmap)
        if self.path is not None:
            style = {"color": "tab:red", "marker": ".", "markersize": 3, "linewidth": 1}
            columns: list[Any] = [self.path[:, 0], self.path[:, 1]]
            columns += [self.path_log_loss] if space else []
            self.path_ += ax.plot(*columns, label="path", **{**style, **(path_kw or {})})
            ends = [column[-1:] for column in columns]
            self.path_ += ax.plot(*ends, "*", color="white", markersize=10, label="end")
        if colorbar:
            self.figure_.colorbar(self.surface_, ax=ax, label=what)
        ax.set(xlabel=self.names[0], ylabel=self.names[1])
        if not space:
            # a path that starts far away would shrink the surface
            ax.set(xlim=(grid[0].min(), grid[0].max()), ylim=(grid[1].min(), grid[1].max()))
        return self


def _label(param: tuple[str, Any]) -> str:
    return f"{param[0]} {param[1]}"


def _place(model: TorchLinearRegressor, param: tuple[str, Any]) -> tuple[int, int]:
    """The target and the feature of a parameter; the feature is -1 for an intercept."""
    coef = np.atleast_2d(model.coef_)
    kind, at = param if len(param) == 2 and not isinstance(param, str) else ("", 0)
    names = list(getattr(model, "feature_names_in_", ()))
    if kind == "coef":
        target, feature = at if isinstance(at, tuple) else (0, at)
        feature = names.index(feature) if feature in names else feature
        known = not isinstance(feature, str) and 0 <= feature < coef.shape[1]
        if known and 0 <= target < coef.shape[0]:
            return int(target), int(feature)
    elif kind == "intercept" and 0 <= at < coef.shape[0]:
        return int(at), -1
    raise ValueError(
        f"There is no parameter {param!r}. Supported: ('intercept', target) and ('coef', (target, "
        f"feature)) with targets below {coef.shape[0]} and features below {coef.shape[1]}"
        f"{', or named ' + ', '.join(map(repr, names)) if names else ''}."
    )


def _log_above(floor: float, losses: FloatArray) -> FloatArray:
    """Logarithms of losses above a floor; a loss at the floor counts as the next lowest."""
    above = losses - floor
    if floor < 0:
        positive = above[above > 0]
        above = np.maximum(above, positive.min(initial=1.0))
    out: FloatArray = np.log10(above)
    return out


def _around(values: FloatArray) -> tuple[float, float]:
    """A range that shows all values, with a margin of half their range on each side."""
    low, high = float(values.min()), float(values.max())
    margin = 0.5 * (high - low) or 0.5 * abs(low) or 1.0
    return low - margin, high + margin


class _Surface:
    """The loss of a linear model as a function of two of its parameters."""

    def __init__(
        self,
        model: TorchLinearRegressor,
        X: Any,
        y: Any,
        sample_weight: Any,
        places: list[tuple[int, int]],
    ) -> None:
        self.model, self.places = model, places
        data, _ = validate_rows(model, X, y, sample_weight, reset=False)
        if data.verify is not None:
            data.verify()
        n_targets = len(np.atleast_2d(model.coef_))
        if data.n_targets != n_targets:
            raise ValueError(f"The model has {n_targets} target(s), but y has {data.n_targets}.")
        rows = data.X.toarray() if sp.issparse(data.X) else data.X
        self.X, self.y = rows.astype(np.float64), data.y.astype(np.float64)
        self.share = torch.from_numpy(data.weights / data.weights.sum())
        options = model._options_of("loss__")
        self.loss = resolve_loss(model.loss, options, n_targets, torch.float64)

    def path(self) -> FloatArray:
        """Both parameters along the recorded path, or their fitted values, of shape (n, 2)."""
        coef = getattr(self.model, "coef_path_", np.asarray(self.model.coef_)[None])
        intercept = getattr(self.model, "intercept_path_", np.asarray(self.model.intercept_)[None])
        coef = coef.reshape(len(coef), -1, self.X.shape[1])
        return self._columns(coef, intercept)

    def _columns(self, coef: Array, intercept: Array) -> FloatArray:
        """Both parameters, from coefficients of shape (n, targets, features) and n intercepts."""
        flat = intercept.reshape(len(intercept), -1)
        # without an intercept it is 0 for all targets
        many = np.broadcast_to(flat, (len(coef), coef.shape[1]))
        columns = [many[:, t] if j < 0 else coef[:, t, j] for t, j in self.places]
        return np.stack(columns, axis=1).astype(np.float64)

    def losses(self, points: FloatArray) -> FloatArray:
        """Mean losses at points of shape (2, n_points), by outer products of rows and steps."""
        coef = np.atleast_2d(np.asarray(self.model.coef_, dtype=np.float64))
        base = self.X @ coef.T + self.model.intercept_
        # early stopping may have restored these from the best epoch of the path
        now = self._columns(coef[None], np.asarray(self.model.intercept_)[None])[0]
        out = np.empty(points.shape[1])
        # derivatives of the outputs with respect to each parameter
        columns = [np.ones(len(self.X)) if j < 0 else self.X[:, j] for _, j in self.places]
        target = torch.from_numpy(self.y)
        for part in chunks(points.shape[1], 2 * base.size):
            steps = points[:, part] - now[:, None]
            f = np.repeat(base[:, None], steps.shape[1], axis=1)
            for (t, _), column, step in zip(self.places, columns, steps, strict=True):
                f[:, :, t] += np.outer(column, step)
            wanted = target[:, None].expand(*f.shape)
            values = self.loss.pointwise(torch.from_numpy(f), wanted).mean(-1)
            out[part] = (self.share @ values).numpy()
        return out
