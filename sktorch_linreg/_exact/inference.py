"""What the statistics of an exact fit tell besides the coefficients: spectrum, standard errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from scipy.linalg import lapack
from sklearn.utils.validation import check_is_fitted

from .._data.arrays import chunks
from .._data.statistics import Statistics, unit_columns
from .._runtime.aliases import Array, FloatArray

# attributes that are worked out whenever they are asked for
COMPUTED = {"singular_", "coef_std_err_", "intercept_std_err_"}
# columns from which on that takes longer than a glance
MANY_FEATURES = 256


class ExactResults:
    """Attributes of a linear model that come from the sufficient statistics of its exact fit."""

    # set by fit
    _statistics: dict[str, Any] | None
    _penalised: bool
    _squeeze: bool
    _singular: Array
    coef_: Array
    optimizer_: str
    rank_: int

    def __dir__(self) -> list[str]:
        """Names of attributes; a notebook's display reads all of them, so none may take long."""
        names = set(super().__dir__())
        many = vars(self).get("n_features_in_", 0) > MANY_FEATURES
        return sorted(names - COMPUTED if many else names)

    def _exact_statistics(self, name: str) -> Statistics:
        check_is_fitted(self)
        state = vars(self).get("_statistics")
        if state is None:
            raise AttributeError(
                f"{name} comes from the statistics of an exact fit, and these are not here: "
                f"{self._why_no_statistics()}"
            )
        return Statistics(**state)

    def _why_no_statistics(self) -> str:
        solver = vars(self).get("optimizer_")
        if solver is None:
            return "coef_ was set by hand. Call fit."
        if solver != "lstsq":
            return (
                f"the model was trained by {solver!r}. Set optimizer='lstsq', which needs "
                "loss='squared_error' and l1_ratio=0, and fit again."
            )
        return (
            "X was sparse with many columns, had magnitudes beyond 1e-140 or 1e145, or had fewer "
            "rows than columns and the model was pickled since. Fit again here, with fewer "
            "columns, a dense X or other units."
        )

    @property
    def singular_(self) -> Array:
        """Singular values of the weighted X, centred if there is an intercept.

        Worked out when asked for; only where `rank_` is.
        """
        if "_singular" in vars(self):
            return self._singular
        stats = self._exact_statistics("singular_")
        if "rank_" not in vars(self):
            raise AttributeError(
                f"singular_ goes with least squares, not with {self.optimizer_!r}."
            )
        out = np.zeros(min(stats.n_samples, stats.n_features))
        found = scipy.linalg.svdvals(stats.factor[:, : stats.n_features])[: len(out)]
        out[: len(found)] = np.ldexp(found, stats.exponent // 2)
        return out.astype(self.coef_.dtype)

    # -- standard errors ------------------------------------------------------------------------

    def _inference(self, name: str) -> tuple[Statistics, FloatArray, FloatArray, FloatArray]:
        """Statistics, inverse triangle of unit columns, their norms, and residual variances."""
        stats = self._exact_statistics(name)
        n_parameters = stats.n_features + stats.intercept
        reason = None
        if self._penalised or self.optimizer_ != "lstsq":
            reason = "penalties and signs bias the coefficients. Set alpha=0 and positive=False"
        elif self.rank_ < stats.n_features:
            reason = (
                f"the columns of X are dependent or constant (rank {self.rank_} of "
                f"{stats.n_features}). Leave out those that others explain"
            )
        elif stats.n_samples <= n_parameters:
            reason = (
                f"{stats.n_samples} rows of non-zero weight leave no degree of freedom for "
                f"{n_parameters} parameters. Give more rows"
            )
        if reason is not None:
            raise AttributeError(f"{name} is not defined here: {reason}, and fit again.")
        unit, norms = unit_columns(stats.factor[:, : stats.n_features])
        inverse = lapack.dtrtri(unit, lower=0)[0]
        return stats, inverse, norms, stats.rest / (stats.n_samples - n_parameters)

    def _as_fitted(self, per_target: FloatArray) -> Any:
        """One row per target, or none where y was one-dimensional."""
        out = per_target.astype(self.coef_.dtype)
        return out[0] if self._squeeze else out

    @property
    def coef_std_err_(self) -> Array:
        """Standard errors of the fitted coefficients, in the shape of `coef_`.

        Least squares without a penalty alone, where X has full rank and more rows than parameters;
        weights count as precisions.
        """
        _, inverse, norms, variance = self._inference("coef_std_err_")
        leverage = np.sqrt(np.einsum("ij,ij->i", inverse, inverse)) / norms
        out: Array = self._as_fitted(np.sqrt(variance)[:, None] * leverage)
        return out

    @property
    def intercept_std_err_(self) -> Any:
        """Standard errors of the fitted intercepts, 0.0 where there are none.

        There under the same conditions as those of the coefficients.
        """
        stats, inverse, norms, variance = self._inference("intercept_std_err_")
        if not stats.intercept:
            return 0.0
        turned = (stats.mean[: stats.n_features] / norms) @ inverse
        return self._as_fitted(np.sqrt(variance * (1.0 / stats.weight + turned @ turned)))

    def _prediction_std(self, X: Any) -> Array:
        """Standard errors of the mean at each row, in the shape of predictions."""
        try:
            stats, inverse, norms, variance = self._inference("The standard error of predictions")
        except AttributeError as error:
            raise ValueError(str(error)) from None
        d = stats.n_features
        leverage = np.empty(X.shape[0])
        for part in chunks(X.shape[0], d):
            rows = X[part].toarray() if sp.issparse(X) else X[part]
            turned = ((rows - stats.shift[:d] - stats.offset[:d]) / norms) @ inverse
            leverage[part] = np.einsum("ij,ij->i", turned, turned)
        if stats.intercept:
            leverage += 1.0 / stats.weight
        out = np.sqrt(leverage[:, None] * variance).astype(X.dtype)
        return out[:, 0] if self._squeeze else out
