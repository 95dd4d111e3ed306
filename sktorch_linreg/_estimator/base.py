"""Base class of the estimators: parameter constraints, the steps of a fit, and state."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn import get_config
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from .._data.arrays import to_host, verify_finite
from .._data.moments import Moments
from .._data.rows import TrainingData
from .._data.scaling import Scaling
from .._data.validation import (
    SPARSE_FORMATS,
    RowRules,
    adopt_names,
    as_numbers,
    is_plain,
    patient_validation,
    validate_held_out,
    validate_rows,
)
from .._errors import ExtremeScales, collected_warnings
from .._modules.network import build_module
from .._modules.scaled import ScaledModule
from .._modules.user_module import load_arrays_
from .._objective.losses import Loss, resolve_loss
from .._runtime.aliases import Array, Layers
from .._runtime.devices import resolve_device
from .._runtime.processes import current_group
from .._runtime.sklearn_private import CallbackSupportMixin, Interval, Options, StrOptions
from .._runtime.torch_modes import own_torch_settings
from .._spec import FitResult, FitSpec, RunContext, Start
from .._training.checkpoint import Checkpoint
from .._training.history import pack_history, unpack_history
from .._training.skorch_net import wrap
from .._training.train import train
from .agreement import Local, agree, result_of_first
from .checks import check_start, check_targets
from .extreme_scales import fit_rescaled
from .parameters import ParametersMixin
from .sklearn_callbacks import TASK_ATTRIBUTES, FitTask

CURVES = {"loss_curve_", "validation_loss_curve_"}


class BaseTorchRegressor(
    CallbackSupportMixin,  # type: ignore[misc]
    MultiOutputMixin,  # type: ignore[misc]
    RegressorMixin,  # type: ignore[misc]
    ParametersMixin,
):
    """The steps of a fit: validate, make the spec, run an engine, adopt the result."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "loss": "no_validation",
        "alpha": [Interval(Real, 0, None, closed="left")],
        "l1_ratio": [Interval(Real, 0, 1, closed="both")],
        "optimizer": "no_validation",
        "lr": [None, Interval(Real, 0, None, closed="neither")],
        "lr_schedule": "no_validation",
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [None, StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "tol": [None, Interval(Real, 0, None, closed="left")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), Options(Real, {np.inf})],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "standardize": ["boolean"],
        "device": [str, torch.device],
        "dtype": [StrOptions({"auto", "float32", "float64"}), torch.dtype],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "callbacks": [None, list, tuple],
        "checkpoint_dir": [None, str, os.PathLike],
        "checkpoint_every": [Interval(Integral, 1, None, closed="left")],
    }

    # -- fit ------------------------------------------------------------------------------------

    def _fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        *,
        incremental: bool,
        validation: Sequence[Any] = (None, None, None),
    ) -> Self:
        """Fit, or leave the estimator unchanged if that fails.

        `validation` is X_val, y_val and sample_weight_val.
        """
        before = dict(vars(self))
        context = RunContext(current_group(), incremental, self.callbacks, int(self.verbose))
        try:
            device = context.group.run(lambda: resolve_device(self.device))
            with own_torch_settings(device):
                result = self._fit_steps((X, y, sample_weight), validation, context)
        except BaseException:
            before |= {k: v for k, v in vars(self).items() if k in TASK_ATTRIBUTES}
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        collected = collected_warnings()
        for message, category in result.warnings:
            if collected is not None and category is ConvergenceWarning:
                collected.append(message)
                continue
            # skips _fit, fit and scikit-learn's wrapper, to point to the caller's line
            warnings.warn(message, category, stacklevel=4)
        return self

    def _fit_steps(
        self, rows: tuple[Any, Any, Any], validation: Sequence[Any], context: RunContext
    ) -> FitResult:
        """Validate the rows, make the spec, run an engine, and adopt its result."""
        X, y, sample_weight = rows
        goes_on = hasattr(self, "n_iter_") and (context.incremental or self.warm_start)
        listens = not vars(self).keys().isdisjoint(("_skl_callbacks", "_parent_callback_ctx"))

        def prepare() -> Local:
            data, n_dim = validate_rows(self, X, y, sample_weight, reset=not goes_on)
            data = validate_held_out(self, data, n_dim, validation)
            spec = self._make_spec(data, context)
            # in a single process, an exact solver checks the sums of its rows instead
            if data.verify is not None and not (spec.is_exact and context.group.size == 1):
                data.verify()
            if goes_on:
                self._check_start(data, spec)
            check_targets(data, spec)
            return Local(data, n_dim, spec)

        def start() -> list[Array]:
            return self._start_arrays() if goes_on else []

        local = agree(context, self, prepare, start, listens=listens)
        data, spec = local.data, local.spec
        if self.checkpoint_dir is not None and not (spec.is_exact or context.incremental):
            folder, every = self.checkpoint_dir, int(self.checkpoint_every)
            seed = spec.training.seed
            checkpoint = Checkpoint(folder, every, self.get_params(), data, start(), seed)
            # the seed of the run being resumed
            spec = spec.with_training(seed=checkpoint.seed)
            context = replace(context, checkpoint=checkpoint)

        def take_over(estimator: Self, result: FitResult) -> None:
            # an exact solver would add one value per call, without bound in a stream of batches
            if goes_on and not spec.is_exact:
                estimator._append_curves(result)
            estimator._adopt(result, data, spec, local.n_dim)
            estimator._incremental = context.incremental

        task = None
        if listens and not context.incremental:
            n_epochs = 0 if spec.is_exact else spec.training.max_epochs
            task = FitTask(self, X, y, sample_weight, n_epochs, take_over)
            context = replace(context, listener=task)
        try:
            result = self._run_engine(data, spec, context, goes_on)
        except ExtremeScales:
            # distributed and continued fits cannot change their units
            allowed = not (goes_on or context.incremental) and context.group.size == 1
            run = partial(self._run_engine, spec=spec, context=context, goes_on=False)
            result = fit_rescaled(run, data, spec, allowed=allowed)
        result = result_of_first(context.group, result)
        context.group.run(lambda: take_over(self, result))
        if task is not None:
            task.end()
        return result

    def _run_engine(
        self, data: TrainingData, spec: FitSpec, context: RunContext, goes_on: bool
    ) -> FitResult:
        """Train; the linear model overrides this to try its exact solvers first."""
        return train(data, spec, context, self._start(spec, context) if goes_on else None)

    def _start(self, spec: FitSpec, context: RunContext) -> Start:
        """Where training continues from."""
        layers, units = self._trained_layers()
        if not spec.shape.fit_intercept:
            layers = [(weight, None) for weight, _ in layers]
        start = Start(units, layers, loss_state=vars(self).get("_loss_state", {}))
        moments = self._kept_moments()
        if moments is not None:
            start.x_scale = spec.scaling(*moments).x_scale
        if context.incremental:
            start.moments, start.state = moments, vars(self).get("_training_state")
        return start

    def _kept_moments(self) -> tuple[Moments, Moments] | None:
        """The moments of the rows so far, for `partial_fit`."""
        kept = vars(self).get("_moments")
        if not kept:
            return None
        x, y = (Moments(**m) for m in kept)
        return x, y

    def _start_arrays(self) -> list[Array]:
        """The parameters that training continues from."""
        of_loss = vars(self).get("_loss_state", {}).values()
        return [*(a for layer in self._user_layers() for a in layer if a is not None), *of_loss]

    def _check_start(self, data: TrainingData, spec: FitSpec) -> None:
        """Raise if training cannot continue from the current parameters."""
        check_start(self._user_layers(), self._log_link, data, spec)

    def _append_curves(self, result: FitResult) -> None:
        """Append to the curves and the history, as MLPRegressor does."""
        result.loss_curve = self.loss_curve_ + result.loss_curve
        result.validation_loss_curve = self.validation_loss_curve_ + result.validation_loss_curve
        result.best_loss = min(self.best_loss_, result.best_loss)
        seen = len(self.history_)
        later = [{**row, "epoch": seen + row["epoch"]} for row in result.history]
        result.history = self.history_ + later

    def _adopt(self, result: FitResult, data: TrainingData, spec: FitSpec, n_dim: int) -> None:
        """Set the fitted attributes from a result."""
        self.n_iter_ = result.n_iter
        self.loss_ = result.loss
        self.best_loss_ = result.best_loss
        self.loss_curve_ = result.loss_curve
        self.validation_loss_curve_ = result.validation_loss_curve
        self.optimizer_ = result.optimizer
        self.history_ = result.history
        self._log_link = spec.objective.loss.log_link
        self._squeeze = n_dim == 1
        self._trained_dtype = str(spec.dtype).removeprefix("torch.")
        self._net = result.net
        self._training_state = result.state
        self._moments = result.moments and tuple(dict(vars(m)) for m in result.moments)
        self._loss_state = dict(result.loss_state)
        # a loss by name has no state to be put back into it
        own = spec.objective.loss.own
        self._trained_loss = (self.loss, self._options_of("loss__")) if own else None

    # -- implemented by subclasses --------------------------------------------------------------

    @property
    def _row_rules(self) -> RowRules:
        """What rows may look like in `fit`."""
        return RowRules()

    @property
    def _fitted_rules(self) -> RowRules:
        """What rows may look like in `predict`."""
        return self._row_rules

    def _make_spec(self, data: TrainingData, context: RunContext) -> FitSpec:
        """The spec of a fit to these rows."""
        raise NotImplementedError

    def _user_layers(self) -> Layers:
        """Weights and intercepts in the user's units."""
        raise NotImplementedError

    def _trained_layers(self) -> tuple[Layers, Scaling]:
        """Weights and intercepts as they were trained, and the scaling around them."""
        raise NotImplementedError

    # -- after fit ------------------------------------------------------------------------------

    def _validate_predict(self, X: Any) -> tuple[Any, Callable[[], object] | None]:
        """X as floats, and a function that raises if it is not finite, None if already checked."""
        check_is_fitted(self)
        return self._validate_predict_rows(X)

    def _validate_predict_rows(self, X: Any) -> tuple[Any, Callable[[], object] | None]:
        X, rules = to_host(X), self._fitted_rules
        if is_plain(X, (2,)):
            adopt_names(self, X, reset=False)
            X = np.asarray(X)
            return X, partial(verify_finite, self, X=X)
        with patient_validation(X=X):
            X = validate_data(
                self, X, reset=False, accept_sparse=SPARSE_FORMATS, allow_nd=rules.any_shape
            )
            return as_numbers(self, X, rules), None

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Coefficient of determination R2 of the predictions.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Features.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets; scores of several targets are averaged.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.

        Returns
        -------
        float
            1 for exact predictions, 0 for predicting the mean, negative for worse ones.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.

        Examples
        --------
        >>> from sktorch_linreg import TorchLinearRegressor
        >>> X, y = [[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0]
        >>> TorchLinearRegressor().fit(X, y).score(X, y)
        1.0
        """
        if not get_config()["array_api_dispatch"]:
            # scores need arrays, but tensors may require gradients or be on a device
            y, sample_weight = to_host(y), to_host(sample_weight)
        return float(super().score(X, y, sample_weight))

    def _build_module(self, dtype: torch.dtype, device: torch.device) -> ScaledModule:
        layers, scaling = self._trained_layers()
        with own_torch_settings(device):
            return build_module(
                layers,
                scaling,
                activation=getattr(self, "_fitted_activation", "identity"),
                log_link=self._has_log_link,
                dtype=dtype,
                device=device,
            )

    @property
    def _has_log_link(self) -> bool:
        """Whether predictions are exponentials of outputs, also with manually set coefficients."""
        link: bool = getattr(self, "_log_link", self.loss == "poisson")
        return link

    def _fitted_device(self) -> torch.device:
        """The requested device, or the CPU if that is not available (any more)."""
        try:
            return resolve_device(self.device)
        except ValueError:
            return torch.device("cpu")

    @property
    def module_(self) -> ScaledModule:
        """The trained `torch.nn.Module`; it takes raw features and returns predictions."""
        check_is_fitted(self)
        net = vars(self).get("_net")
        return self._make_module() if net is None else net.module_

    def _make_module(self) -> ScaledModule:
        dtype = getattr(torch, getattr(self, "_trained_dtype", "float64"))
        return self._build_module(dtype, self._fitted_device())

    @property
    def net_(self) -> Any:
        """The skorch net around `module_`."""
        check_is_fitted(self)
        net = vars(self).get("_net")
        return wrap(self.module_, self._fitted_loss()) if net is None else net

    def _fitted_loss(self) -> Loss:
        """The loss in the state after training."""
        module, given = self.module_, vars(self).get("_trained_loss")
        n_targets, offset = len(module.rescale.scale), module.x_offset
        loss, options = given or (self.loss, self._options_of("loss__"))
        resolved = resolve_loss(loss, options, n_targets, offset.dtype, offset.device)
        if resolved.module is not None and (state := vars(self).get("_loss_state")):
            load_arrays_(resolved.module, state)
        return resolved

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        state.pop("_net", None)
        if not (self.warm_start or state.get("_incremental")):
            # a plain fit may continue in partial_fit, but its pickles are for prediction
            state.pop("_training_state", None)
            state.pop("_moments", None)
        if "history_" in state:
            state["history_"] = pack_history(state["history_"])
        for name in CURVES & state.keys():
            state[name] = np.array(state[name], dtype=np.float64)
        for name in ("device", "dtype", "checkpoint_dir"):
            # torch objects and paths become strings, which the parameters accept too
            if not isinstance(state[name], str | None):
                state[name] = str(state[name]).removeprefix("torch.")
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        if "history_" in state:
            state["history_"] = unpack_history(state["history_"])
        for name in CURVES & state.keys():
            state[name] = np.asarray(state[name]).tolist()
        super().__setstate__(state)

    def __copy__(self) -> Self:
        out = type(self).__new__(type(self))
        out.__dict__.update({k: v for k, v in vars(self).items() if k != "_net"})
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy everything that a later partial_fit needs, which a pickle may omit."""
        out = self.__copy__()
        out.__dict__.update(copy.deepcopy(vars(out), memo))
        return out

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.positive_only = self.loss == "poisson"
        return tags
