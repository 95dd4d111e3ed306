"""The linear estimator: parameters, documentation and fitted attributes."""

from __future__ import annotations

from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.validation import check_is_fitted

from ._data.arrays import like_input
from ._data.overflow import check_coefficients
from ._data.rows import TrainingData
from ._data.scaling import Scaling, identity_scaling
from ._data.statistics import Statistics
from ._estimator.base import BaseTorchRegressor
from ._estimator.checks import can_partial_fit
from ._estimator.make_spec import make_spec
from ._estimator.to_sklearn import as_linear_regression
from ._exact import solve
from ._exact.inference import StandardErrors, singular_values, why_undefined
from ._modules.scaled import ScaledModule
from ._objective.losses import inverse_link
from ._runtime.aliases import Array, Layers
from ._runtime.sklearn_private import available_if, fit_context
from ._spec import FitResult, FitSpec, ModelShape, RunContext

# attributes that are computed on each access
COMPUTED = {"singular_", "coef_std_err_", "intercept_std_err_"}
# number of columns above which they are too slow for a notebook's display
MANY_FEATURES = 256
# smaller coefficients are not exact in float32
SMALL_SINGLE = 1e-30


class TorchLinearRegressor(BaseTorchRegressor):
    """Linear regression in PyTorch, a drop-in for scikit-learn's ``LinearRegression``.

    With default settings it gives the exact least-squares solution. With a learning rate, a batch
    size, another optimizer or another loss it trains by gradient descent, by default on data that
    are standardised internally, with coefficients reported in the units of `X` and `y`.

    The objective is the weighted mean of the loss over the rows plus
    ``alpha * (l1_ratio * |W|_1 + (1 - l1_ratio) / 2 * |W|_2^2)``. The loss of a row is the mean
    over its targets, squared error has no factor of one half, and intercepts are not penalised.

    Parameters
    ----------
    fit_intercept : bool, default=True
        Whether to fit an intercept.
    copy_X : bool, default=True
        Accepted for compatibility; `X` is never written to.
    n_jobs : int or None, default=None
        Accepted for compatibility; torch's own threads are used.
    positive : bool, default=False
        Whether to constrain the coefficients to be non-negative.
    loss : str or class, default="squared_error"
        ``"squared_error"``, ``"absolute_error"``, ``"huber"`` (option ``loss__delta``, in
        standardised units unless ``standardize=False``), ``"quantile"`` (option
        ``loss__quantile``), ``"poisson"`` (predictions are the exponential of the linear model), or
        a `torch.nn.Module` loss class.
    alpha : float, default=0.0
        Strength of the penalty, on the coefficients of the standardised data.
    l1_ratio : float, default=0.0
        Share of the L1 norm in the penalty: 0 is ridge, 1 is the lasso.
    optimizer : str or class, default="auto"
        ``"lstsq"`` (exact), ``"lbfgs"``, ``"sgd"``, ``"adam"``, ``"adamw"``, ``"nadam"``,
        ``"radam"``, ``"rmsprop"``, ``"adagrad"``, ``"adadelta"``, ``"adamax"`` or a
        `torch.optim.Optimizer` subclass. ``"auto"`` solves squared error exactly; it uses
        ``"adam"`` if any of `lr`, `lr_schedule`, `batch_size`, `early_stopping`, `record_path` and
        `callbacks` is set, and ``"lbfgs"`` (in `partial_fit` ``"adam"``) for other losses.
    lr : float or None, default=None
        Learning rate; None is the optimizer's own default.
    lr_schedule : str, class or None, default=None
        ``"constant"``, ``"step"``, ``"exponential"``, ``"linear"``, ``"polynomial"``,
        ``"cosine"``, ``"cosine_restarts"``, ``"one_cycle"``, ``"plateau"`` or a class of
        `torch.optim.lr_scheduler`, stepped once per epoch.
    max_epochs : int, default=1000
        Maximum number of epochs.
    batch_size : int, "auto" or None, default=None
        Rows per update: None uses all of them, ``"auto"`` uses ``min(200, n_samples)``. L-BFGS
        always uses all of them.
    shuffle : bool, default=True
        Whether to shuffle the rows in each epoch.
    tol : float or None, default=None
        In training, stop when the monitored loss has not improved by at least `tol` for more than
        `n_iter_no_change` epochs; None runs all epochs. For the exact solver, the relative
        singular-value cut-off of the column-scaled `X`; None uses machine epsilon times
        ``max(X.shape)``, at most 1e-6.
    n_iter_no_change : int or numpy.inf, default=10
        Epochs without improvement to wait before stopping; `numpy.inf` never stops.
    early_stopping : bool, default=False
        Whether to hold out rows, stop on their loss and restore the best weights.
    validation_fraction : float, default=0.1
        Fraction of the rows held out with `early_stopping`.
    standardize : bool, default=True
        Whether to centre and scale features and target internally. Without an intercept they are
        only scaled, by their root mean square.
    device : str or torch.device, default="cpu"
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, or ``"auto"`` for the first available of
        cuda, mps and cpu.
    dtype : {"auto", "float32", "float64"} or torch.dtype, default="auto"
        Computation dtype; ``"auto"`` keeps float32 and float64 and converts other input to float64.
    warm_start : bool, default=False
        Whether `fit` continues from the current coefficients.
    random_state : int, RandomState instance or None, default=None
        Seed of initial weights, batch order and held-out rows. torch's and numpy's global random
        state is never changed.
    verbose : bool or int, default=0
        Whether to print a table of epochs, at most one line per second (2: every epoch), or the
        method that the exact solver used.
    record_path : bool, default=False
        Whether to keep the coefficients of every epoch.
    callbacks : list or None, default=None
        skorch callbacks for the inner net.
    checkpoint_dir : str or path-like, default=None
        Folder for a checkpoint: `fit` on the same data with the same parameters resumes where it
        was interrupted, with bit-identical results. Use one folder per fit; `partial_fit` and exact
        solvers do not write checkpoints. Requires the extra ``persist``.
    checkpoint_every : int, default=10
        Number of epochs between checkpoints; the last epoch is always saved.
    **optimizer__options : dict
        ``optimizer__*``, ``loss__*`` and ``lr_schedule__*`` are passed to the optimizer, the loss
        and the schedule.

    Attributes
    ----------
    coef_ : ndarray of shape (n_features,) or (n_targets, n_features)
        Coefficients in the units of `X` and `y`.
    intercept_ : float or ndarray of shape (n_targets,)
        Intercept; 0.0 without `fit_intercept`.
    rank_ : int
        Rank of the centred, column-scaled `X`. Only after least squares or ridge by the exact
        solver, and not for a sparse `X` with more than 2000 columns.
    singular_ : ndarray of shape (min(n_samples, n_features),)
        Singular values of the weighted `X`, centred if there is an intercept; computed on access.
        Only available where `rank_` is.
    solver_path_ : str
        Method used by the exact solver, such as ``"cholesky"``, ``"cholesky, refined"`` or
        ``"svd"``.
    coef_std_err_ : ndarray of shape (n_features,) or (n_targets, n_features)
        Standard errors of `coef_`. Only for unpenalised least squares, where `X` has full rank
        and more rows than parameters; weights are inverse variances.
    intercept_std_err_ : float or ndarray of shape (n_targets,)
        Standard error of `intercept_`, likewise.
    n_iter_ : int
        Number of epochs run.
    loss_, best_loss_ : float
        The last training loss, and the best of the monitored losses.
    loss_curve_ : list of float
        Objective per epoch, measured during training.
    validation_loss_curve_ : list of float
        Loss of the held-out rows per epoch, without the penalty.
    coef_path_ : ndarray of shape (n_epochs + 1, ...)
        With `record_path`: `coef_` before the first update, and after each epoch of `fit`. With
        `early_stopping`, `coef_` is the best of them, not necessarily the last.
    intercept_path_ : ndarray of shape (n_epochs + 1, ...)
        With `record_path`: `intercept_` likewise.
    optimizer_ : str
        Name of the solver used: one of the optimizers, ``"nnls"`` or ``"fista"``.
    module_ : torch.nn.Module
        The fitted model, which takes raw features.
    net_ : skorch.NeuralNet
        The net that trained the model.
    history_ : list of dict
        One record per epoch.
    n_features_in_ : int
        Number of features seen in `fit`.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, if all of them are strings.

    See Also
    --------
    TorchMLPRegressor : A neural network with the same interface.
    sklearn.linear_model.LinearRegression : The estimator that this one replaces.

    Notes
    -----
    The exact solver makes one pass over the rows, block by block in float64, to accumulate the Gram
    matrix of the centred columns. Where these are nearly collinear it uses QR decompositions
    instead, and refines the solution with residuals in twice the working precision (Björck, 1967).
    If columns are collinear, it returns the minimum-norm solution in the user's units. With an
    intercept, a constant column gets coefficient 0.

    Examples
    --------
    >>> import numpy as np
    >>> from sktorch_linreg import TorchLinearRegressor
    >>> X = np.array([[1.0, 1.0], [1.0, 2.0], [2.0, 2.0], [2.0, 3.0]])
    >>> y = X @ np.array([1.0, 2.0]) + 3.0
    >>> model = TorchLinearRegressor().fit(X, y)
    >>> model.coef_.round(6), round(float(model.intercept_), 6)
    (array([1., 2.]), 3.0)
    >>> sgd = TorchLinearRegressor(optimizer="sgd", lr=0.1, max_epochs=500, random_state=0)
    >>> sgd.fit(X, y).predict([[3.0, 5.0]]).round(3)
    array([16.])
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseTorchRegressor._parameter_constraints,
        "fit_intercept": ["boolean"],
        "copy_X": ["boolean"],
        "n_jobs": [None, Integral],
        "positive": ["boolean"],
        "record_path": ["boolean"],
    }

    def __init__(
        self,
        *,
        fit_intercept: Any = True,
        copy_X: Any = True,
        n_jobs: Any = None,
        positive: Any = False,
        loss: Any = "squared_error",
        alpha: Any = 0.0,
        l1_ratio: Any = 0.0,
        optimizer: Any = "auto",
        lr: Any = None,
        lr_schedule: Any = None,
        max_epochs: Any = 1000,
        batch_size: Any = None,
        shuffle: Any = True,
        tol: Any = None,
        n_iter_no_change: Any = 10,
        early_stopping: Any = False,
        validation_fraction: Any = 0.1,
        standardize: Any = True,
        device: Any = "cpu",
        dtype: Any = "auto",
        warm_start: Any = False,
        random_state: Any = None,
        verbose: Any = 0,
        record_path: Any = False,
        callbacks: Any = None,
        checkpoint_dir: Any = None,
        checkpoint_every: int = 10,
        **optimizer__options: Any,
    ) -> None:
        self.fit_intercept = fit_intercept
        self.copy_X = copy_X
        self.n_jobs = n_jobs
        self.positive = positive
        self.loss = loss
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.optimizer = optimizer
        self.lr = lr
        self.lr_schedule = lr_schedule
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.standardize = standardize
        self.device = device
        self.dtype = dtype
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.record_path = record_path
        self.callbacks = callbacks
        self.checkpoint_dir = checkpoint_dir
        self.checkpoint_every = checkpoint_every
        self._set_options(optimizer__options)

    @fit_context
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> Self:
        """Fit the model.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Features. A sparse matrix is never fully densified.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative sample weights; rows with weight 0 are ignored.
        X_val : {array-like, sparse matrix} of shape (n_val, n_features), default=None
            Rows to monitor with `early_stopping`, in place of a fraction of `X`. In a `Pipeline`,
            ``transform_input=["X_val"]`` transforms them like `X`.
        y_val : array-like of shape (n_val,) or (n_val, n_targets), default=None
            Their targets.
        sample_weight_val : array-like of shape (n_val,), default=None
            Their sample weights.

        Returns
        -------
        self : TorchLinearRegressor
            The fitted estimator.

        Raises
        ------
        ValueError
            If the input or a parameter is invalid; the estimator is left unchanged.
        TrainingDivergedError
            If the training loss is not finite.

        Examples
        --------
        >>> from sktorch_linreg import TorchLinearRegressor
        >>> TorchLinearRegressor().fit([[0.0], [1.0]], [1.0, 3.0]).coef_.round(6)
        array([2.])
        """
        validation = X_val, y_val, sample_weight_val
        return self._fit(X, y, sample_weight, incremental=False, validation=validation)

    @available_if(can_partial_fit)
    @fit_context
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Update the model with another batch of rows.

        The exact solver adds the batch to its sufficient statistics; the result equals that of a
        single `fit` on all rows so far. An optimizer runs one epoch over the batch; weights,
        optimizer state and schedule continue from the previous call.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Features.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.

        Returns
        -------
        self : TorchLinearRegressor
            The fitted estimator.

        Raises
        ------
        ValueError
            If the input or a parameter is invalid, or an earlier `fit` did not keep its statistics.
        AttributeError
            With `early_stopping` or ``optimizer="lbfgs"``, which need all rows at once.

        Examples
        --------
        >>> from sktorch_linreg import TorchLinearRegressor
        >>> model = TorchLinearRegressor()
        >>> for X, y in [([[0.0], [1.0]], [1.0, 3.0]), ([[2.0], [3.0]], [5.0, 7.0])]:
        ...     model = model.partial_fit(X, y)
        >>> model.predict([[10.0]]).round(6)
        array([21.])
        """
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predict targets, in the precision of `X`.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Features.
        return_std : bool, default=False
            Whether to also return the standard error of the predicted mean.

        Returns
        -------
        y_pred : ndarray of shape (n_samples,) or (n_samples, n_targets)
            Predictions, 1-D or 2-D like `y` in `fit`.
        y_std : ndarray of the same shape
            Standard errors; only returned with `return_std`.

        Raises
        ------
        NotFittedError
            If not fitted; setting `coef_` and `intercept_` manually is enough.
        ValueError
            If `X` is invalid, or if `return_std` is set but `coef_std_err_` is undefined; the
            message says why.

        Examples
        --------
        >>> import numpy as np
        >>> from sktorch_linreg import TorchLinearRegressor
        >>> model = TorchLinearRegressor()
        >>> model.coef_, model.intercept_ = np.array([2.0]), 1.0
        >>> model.predict([[3.0]])
        array([7.])
        >>> model.fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 3.0])
        TorchLinearRegressor()
        >>> mean, error = model.predict([[3.0]], return_std=True)
        >>> mean.round(3), error.round(3)
        (array([4.333]), array([0.624]))
        """
        given = X
        X, unverified = self._validate_predict(X)
        spread = self._prediction_std(X) if return_std else None
        with np.errstate(invalid="ignore", over="ignore"):
            out: Array = self._linear(X, X.dtype)
            if X.dtype == np.float32 and not self._fits_single(out):
                out = self._linear(X.astype(np.float64), np.float64).astype(np.float32)
        # non-finite input makes its prediction non-finite, unless a coefficient of 0 hides it
        if unverified is not None and not (np.isfinite(out).all() and np.all(self.coef_)):
            unverified()
        out = inverse_link(out, self._has_log_link)
        if spread is not None:
            return like_input(out, given), like_input(spread, given)
        return like_input(out, given)

    def _linear(self, X: Any, dtype: Any) -> Array:
        out: Array = safe_sparse_dot(X, np.asarray(self.coef_, dtype=dtype).T, dense_output=True)
        out += np.asarray(self.intercept_, dtype=dtype)
        return out

    def _prediction_std(self, X: Any) -> Array:
        """Standard errors of the predicted mean of each row, in the shape of the predictions."""
        try:
            errors = self._standard_errors("The standard error of predictions")
        except AttributeError as error:
            raise ValueError(str(error)) from None
        out = errors.of_means(X).astype(X.dtype)
        return out[:, 0] if self._squeeze else out

    def _fits_single(self, out: Array) -> bool:
        """Whether float64 coefficients and their predictions can be represented in float32."""
        if not np.isfinite(out).all():
            return False
        coef = np.asarray(self.coef_)
        return coef.dtype == np.float32 or float(np.abs(coef).max(initial=0.0)) > SMALL_SINGLE

    def to_sklearn(self) -> Any:
        """Convert to a fitted `LinearRegression` with the same predictions, for use without torch.

        Returns
        -------
        LinearRegression
            Its pickle only requires scikit-learn.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            With ``loss="poisson"``, whose predictions are not linear.

        Examples
        --------
        >>> from sktorch_linreg import TorchLinearRegressor
        >>> model = TorchLinearRegressor().fit([[0.0], [1.0]], [1.0, 3.0])
        >>> model.to_sklearn().predict([[2.0]]).round(6)
        array([5.])
        """
        check_is_fitted(self)
        return as_linear_regression(self)

    # -- fitted attributes ----------------------------------------------------------------------

    def __dir__(self) -> list[str]:
        """Attribute names; a notebook's display reads every attribute, so slow ones are omitted."""
        names = set(super().__dir__())
        many = vars(self).get("n_features_in_", 0) > MANY_FEATURES
        return sorted(names - COMPUTED if many else names)

    @property
    def singular_(self) -> Array:
        """Singular values of the weighted X, centred if there is an intercept.

        Computed on access; only available where `rank_` is.
        """
        if "_singular" in vars(self):
            singular: Array = self._singular
            return singular
        stats = self._exact_statistics("singular_")
        if "rank_" not in vars(self):
            raise AttributeError(
                "singular_ is only available after a least-squares fit, not after "
                f"{self.optimizer_!r}."
            )
        out: Array = singular_values(stats).astype(self.coef_.dtype)
        return out

    @property
    def coef_std_err_(self) -> Array:
        """Standard errors of the fitted coefficients, in the shape of `coef_`.

        Only for unpenalised least squares, where X has full rank and more rows than parameters;
        weights are inverse variances.
        """
        errors = self._standard_errors("coef_std_err_")
        out: Array = errors.of_coefficients().astype(self.coef_.dtype)
        return out[0] if self._squeeze else out

    @property
    def intercept_std_err_(self) -> Any:
        """Standard errors of the fitted intercepts, 0.0 without intercepts.

        Available under the same conditions as `coef_std_err_`.
        """
        errors = self._standard_errors("intercept_std_err_")
        if not errors.stats.intercept:
            return 0.0
        out = errors.of_intercepts().astype(self.coef_.dtype)
        return out[0] if self._squeeze else out

    @property
    def module_(self) -> ScaledModule:
        """The linear model as a `torch.nn.Module`, built from `coef_` and `intercept_`."""
        check_is_fitted(self)
        return self._make_module()

    def _exact_statistics(self, name: str) -> Statistics:
        check_is_fitted(self)
        state = vars(self).get("_statistics")
        if state is not None:
            return Statistics.from_state(state)
        solver = vars(self).get("optimizer_")
        if solver is None:
            reason = "coef_ was set manually; call fit."
        elif solver != "lstsq":
            reason = (
                f"the model was trained by {solver!r}. Set optimizer='lstsq', which requires "
                "loss='squared_error' and l1_ratio=0, and fit again."
            )
        else:
            reason = (
                "X was sparse with many columns, had magnitudes below 1e-140 or above 1e145, "
                "or had fewer rows than columns and the model has been pickled since. Fit again in "
                "this process, or with fewer columns, a dense X or other units."
            )
        raise AttributeError(
            f"{name} requires an exact fit, and its statistics are unavailable: {reason}"
        )

    def _standard_errors(self, name: str) -> StandardErrors:
        stats = self._exact_statistics(name)
        if self._penalised or self.optimizer_ != "lstsq":
            reason = "not available with a penalty or positive=True. Set alpha=0, positive=False"
            raise AttributeError(f"{name} is {reason} and fit again.")
        undefined = why_undefined(stats, self.rank_)
        if undefined is not None:
            raise AttributeError(f"{name} is undefined: {undefined}, and fit again.")
        return StandardErrors.of(stats)

    # -- steps of a fit -------------------------------------------------------------------------

    def _make_spec(self, data: TrainingData, context: RunContext) -> FitSpec:
        shape = ModelShape(fit_intercept=bool(self.fit_intercept))
        return make_spec(self, data, shape, context, is_linear=True)

    def _run_engine(
        self, data: TrainingData, spec: FitSpec, context: RunContext, goes_on: bool
    ) -> FitResult:
        if not spec.is_exact:
            return super()._run_engine(data, spec, context, goes_on)
        previous = self._previous_statistics(spec) if goes_on and context.incremental else None
        result = solve.fit(data, spec, context, previous)
        if context.verbose:
            print(f"[{type(self).__name__}] solved by {result.path_taken}; loss {result.loss:.6g}")
        return result

    def _previous_statistics(self, spec: FitSpec) -> Statistics:
        state = vars(self).get("_statistics")
        if state is None or state["intercept"] != spec.shape.fit_intercept:
            raise ValueError(
                "partial_fit cannot continue: the previous fit's statistics were not kept. They "
                "are dropped by a switch to another optimizer or fit_intercept, by a fit of "
                "extreme magnitudes, and by pickling a plain fit of fewer rows than columns. Clone "
                "the estimator. Start with partial_fit, or set warm_start=True before fit."
            )
        return Statistics.from_state(state)

    def _adopt(self, result: FitResult, data: TrainingData, spec: FitSpec, n_dim: int) -> None:
        super()._adopt(result, data, spec, n_dim)
        dtype = data.X.dtype
        with np.errstate(over="ignore"):
            self.coef_, self.intercept_ = self._as_public(result.layers, dtype)
        if dtype == np.float32:
            check_coefficients(self.coef_, self.intercept_, result.layers[0][0], data)
        for name in ("rank_", "solver_path_", "coef_path_", "intercept_path_", "_singular"):
            self.__dict__.pop(name, None)
        self._penalised = spec.objective.alpha > 0
        self._statistics = None if result.statistics is None else result.statistics.to_state()
        if result.path_taken is not None:
            self.solver_path_ = result.path_taken
        if result.rank is not None:
            self.rank_ = result.rank
        if result.path:
            path = [self._as_public(layers, dtype) for layers in result.path]
            self.coef_path_ = np.stack([coef for coef, _ in path])
            self.intercept_path_ = np.stack([np.asarray(intercept) for _, intercept in path])

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

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        stats = state.get("_statistics") or {"n_samples": 0, "n_features": 0}
        wide = stats["n_samples"] < stats["n_features"]
        if wide and not (self.warm_start or state.get("_incremental")):
            # as large as X itself, and standard errors are undefined for wide X
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
