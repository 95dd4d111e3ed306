"""Engines of the linear model: which one a fit runs, and what is taken over from it."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .._data.magnitudes import largest_size
from .._data.rows import TrainingData
from .._data.scaling import Scaling, identity_scaling
from .._data.statistics import Statistics
from .._errors import check_options
from .._exact import solve
from .._exact.inference import ExactResults
from .._modules.network import MLPModule
from .._runtime.aliases import Array, Layers
from .._spec import FitResult, FitSpec
from .base import BaseTorchRegressor
from .sklearn_callbacks import FitTask


class BaseLinear(ExactResults, BaseTorchRegressor):
    """The steps of a fit that only the linear model has."""

    # -- engine ---------------------------------------------------------------------------------

    def _asks_for_training(self) -> bool:
        values = (self.lr, self.lr_schedule, self.batch_size, self.callbacks)
        return any(v is not None for v in values) or self.early_stopping or self.record_path

    def _model_spec(self, incremental: bool) -> dict[str, Any]:
        return {
            "fit_intercept": bool(self.fit_intercept),
            "positive": bool(self.positive),
            "record_path": bool(self.record_path) and not incremental,
        }

    def _with_optimizer(self, spec: FitSpec, data: TrainingData, incremental: bool) -> FitSpec:
        exact = solve.handles(data, spec)
        optimizer, starts_at_zero = self.optimizer, False
        if isinstance(optimizer, str) and optimizer == "auto":
            if self._asks_for_training():
                optimizer = "adam"
            elif exact:
                optimizer = "lstsq"
            else:
                starts_at_zero = not incremental
                optimizer = "lbfgs" if starts_at_zero else "adam"
        if not (isinstance(optimizer, str) and optimizer == "lstsq"):
            names = ("auto", "lstsq")
            return self._with_trainer(spec, optimizer, names, starts_at_zero=starts_at_zero)
        if not exact:
            reason = f"solves squared error alone, not loss={spec.loss.name!r}"
            if spec.loss.name == "squared_error":
                reason = (
                    f"takes {data.n_features} columns only in fit, without an L1 penalty and, "
                    "where X is sparse, without positive=True, and not within data_parallel()"
                )
            raise ValueError(
                f"optimizer='lstsq' {reason}. Choose optimizer='auto', 'lbfgs' or, in partial_fit, "
                "'adam'."
            )
        check_options("optimizer", "lstsq", self._options_of("optimizer__"), ())
        self._schedule(0.0)  # a wrong name is an error also where no schedule is needed
        return spec

    def _run(
        self,
        data: TrainingData,
        spec: FitSpec,
        goes_on: bool,
        incremental: bool,
        task: FitTask | None,
    ) -> FitResult:
        if spec.optimizer_class is not None:
            self._statistics = None
            return super()._run(data, spec, goes_on, incremental, task)
        stats: Statistics | None
        if incremental or spec.processes is not None:
            # a fit of several processes is one batch from each of them
            previous = self._previous_statistics(spec) if goes_on and incremental else None
            result, stats = solve.add_batch(data, spec, previous)
        else:
            result, stats = solve.fit(data, spec)
        self._statistics = None if stats is None else stats.to_state()
        if spec.verbose:
            print(f"[{type(self).__name__}] solved by {result.path_taken}; loss {result.loss:.6g}")
        return result

    def _previous_statistics(self, spec: FitSpec) -> Statistics:
        state = vars(self).get("_statistics")
        if state is None or state["intercept"] != spec.fit_intercept:
            raise ValueError(
                "The sufficient statistics of the rows seen so far are gone: they are not kept by "
                "another optimizer, with another fit_intercept, or in a pickle of a plain fit. "
                "Begin with partial_fit, or set warm_start=True before fit."
            )
        return Statistics(**state)

    def _adopt(self, result: FitResult, data: TrainingData, spec: FitSpec, n_dim: int) -> None:
        super()._adopt(result, data, spec, n_dim)
        dtype = data.X.dtype
        with np.errstate(over="ignore"):
            self.coef_, self.intercept_ = self._as_public(result.layers, dtype)
        if dtype == np.float32:
            self._check_single(result.layers[0][0], data)
        for name in ("rank_", "solver_path_", "coef_path_", "intercept_path_", "_singular"):
            self.__dict__.pop(name, None)
        self._penalised = spec.alpha > 0
        if result.path_taken is not None:
            self.solver_path_ = result.path_taken
        if result.rank is not None:
            self.rank_ = result.rank
        if result.path:
            path = [self._as_public(layers, dtype) for layers in result.path]
            self.coef_path_ = np.stack([coef for coef, _ in path])
            self.intercept_path_ = np.stack([np.asarray(intercept) for _, intercept in path])

    def _check_single(self, weight: Array, data: TrainingData) -> None:
        """Raise where a float32 does not hold the coefficients."""
        lost = np.abs(np.atleast_2d(self.coef_) - weight) > 1e-4 * np.abs(weight)
        gone = False
        if lost.any():
            size = largest_size(data.X, np.arange(data.n_features))
            counts = 1e-6 * np.abs(data.y).max(axis=0)[:, None]
            gone = bool((lost & (np.abs(weight) * size > counts)).any())
        if gone or not (np.isfinite(self.coef_).all() and np.isfinite(self.intercept_).all()):
            raise ValueError(
                "No float32 holds the coefficients. Pass X in float64, or multiply its columns by "
                "a power of ten."
            )

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        stats = state.get("_statistics") or {"n_samples": 0, "n_features": 0}
        wide = stats["n_samples"] < stats["n_features"]
        if wide and not (self.warm_start or state.get("_incremental")):
            # as large as X itself, and no standard errors come from it
            state.update(_statistics=None)
            if "rank_" in state:
                state["_singular"] = self.singular_
        elif state.get("_statistics"):
            state["_statistics"] = Statistics.pack(stats)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if (state.get("_statistics") or {}).keys() >= {"triangle"}:
            state = {**state, "_statistics": Statistics.unpack(state["_statistics"])}
        super().__setstate__(state)

    def _as_public(self, layers: Layers, dtype: Any) -> tuple[Array, Any]:
        """`coef_` and `intercept_` in the shapes of LinearRegression."""
        weight, bias = layers[0]
        coef = weight.astype(dtype)
        if bias is None:
            return (coef[0] if self._squeeze else coef), 0.0
        intercept = bias.astype(dtype)
        return (coef[0], intercept[0]) if self._squeeze else (coef, intercept)

    def _user_layers(self) -> Layers:
        (coef, intercept), *_ = self._trained_layers()[0]
        return [(coef, intercept if self.fit_intercept else None)]

    def _trained_layers(self) -> tuple[Layers, Scaling]:
        coef = np.atleast_2d(np.asarray(self.coef_))
        intercept = np.broadcast_to(np.atleast_1d(self.intercept_), len(coef)).copy()
        return [(coef, intercept)], identity_scaling(coef.shape[1], coef.shape[0])

    @property
    def module_(self) -> MLPModule:
        """The linear model as a `torch.nn.Module`, made from `coef_` and `intercept_`."""
        check_is_fitted(self)
        return self._make_module()
