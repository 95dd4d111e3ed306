"""Display of scores over learning rates."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .._runtime.aliases import Array, FloatArray
from .axes import new_axes, styled

# scores further below the best than this, or than this multiple of it, are cut off
SCORE_RANGE, ERROR_RANGE = 1.5, 4.0


class LearningRateDisplay:
    """Mean score of a search over its learning rates, with a band of one standard error.

    Use `from_search` to create one.

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

        If a rate was tried with several values of other parameters, the best score is shown.

        Parameters
        ----------
        search : fitted search
            A search of this package or scikit-learn over a parameter ``lr`` or ``step__lr``.
        metric : str, default="score"
            The score to draw, if there are several.
        ax : matplotlib Axes, default=None
            Axes to draw in; new ones by default.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        display : LearningRateDisplay
            The display.

        Raises
        ------
        ValueError
            If the search did not vary the learning rate, or has no such score.
        """
        check_is_fitted(search, "cv_results_")
        results = search.cv_results_
        names = [k for k in results if k == "param_lr" or k.endswith("__lr")]
        if not names:
            tried = [k.removeprefix("param_") for k in results if k.startswith("param_")]
            raise ValueError(f"The search did not vary lr; it tried {', '.join(tried)}.")
        rates = np.ma.filled(results[names[0]].astype(float), np.nan)
        if not np.isfinite(rates).any():
            raise ValueError("The search only used lr=None, the optimizer's own learning rate.")
        known = [k.removeprefix("mean_test_") for k in results if k.startswith("mean_test_")]
        if metric not in known:
            raise ValueError(f"The search has no score {metric!r}; it has {', '.join(known)}.")
        mean, std = (results[f"{which}_test_{metric}"] for which in ("mean", "std"))
        lr = np.unique(rates[np.isfinite(rates)])
        best = [_best(np.flatnonzero(rates == rate), mean) for rate in lr]
        # scikit-learn's standard deviations have ddof=0, hence the n - 1 here
        error = std[best] / np.sqrt(max(search.n_splits_ - 1, 1))
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
            Passed to matplotlib for the line.

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
        style = {"marker": "o", "markersize": 3, "label": name, **styled(kwargs)}
        (self.line_,) = ax.plot(self.lr, self.mean_score, **style)
        low, high = self.mean_score - self.std_error, self.mean_score + self.std_error
        color = self.line_.get_color()
        self.band_ = ax.fill_between(self.lr, low, high, color=color, alpha=0.15, linewidth=0)
        ax.set(xscale="log", xlabel="learning rate", ylabel=f"mean {self.score_name}")
        lowest = _lowest_of_interest(self.mean_score)
        if lowest is not None:
            # a rate at which training diverges would flatten the rest of the curve
            ax.set_ylim(bottom=lowest)
        if style["label"] is not None:
            ax.legend()
        return self


def _best(candidates: Array, mean: Array) -> int:
    """The candidate with the highest score, or the first if all have failed."""
    scores = mean[candidates]
    at = 0 if np.isnan(scores).all() else int(np.nanargmax(scores))
    return int(candidates[at])


def _lowest_of_interest(scores: FloatArray) -> float | None:
    """Where to cut off the score axis, since the worst scores may be far below all others."""
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        return None
    best = float(finite.max())
    lowest = best - (SCORE_RANGE if best >= 0 else max(SCORE_RANGE, ERROR_RANGE * abs(best)))
    return lowest if float(finite.min()) < lowest else None
