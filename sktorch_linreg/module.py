"""The estimator for any `torch.nn.Module`: parameters, documentation and fitted attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from typing import Any, ClassVar, Self, cast

import numpy as np
import scipy.sparse as sp
import torch

from ._data.arrays import like_input, numpy_dtype
from ._data.rows import TrainingData
from ._data.scaling import Scaling, scaled
from ._data.validation import RowRules, as_codes, check_row_shape
from ._estimator.base import BaseTorchRegressor
from ._estimator.checks import can_partial_fit, check_outputs
from ._estimator.make_spec import make_spec
from ._estimator.parameters import PREFIXES
from ._modules.plain_state import from_plain, holds_torch, is_plain, to_plain
from ._modules.user_module import ModuleRecipe, UserModule, check_module, predict_alike, rebuild
from ._objective.losses import inverse_link
from ._runtime.aliases import Array
from ._runtime.copies import copy_module
from ._runtime.seeds import seeded_torch
from ._runtime.sklearn_private import StrOptions, available_if, fit_context
from ._runtime.torch_modes import own_torch_settings
from ._spec import FitResult, FitSpec, ModelShape, RunContext, Start

# values of `standardize` that leave the features as they are
RAW_FEATURES = (False, "target")
# products of matrices round alike for any multiple of this many rows
PADDED_ROWS = 8
# rows, and entries of X, that pass through a module together
MOST_ROWS, BLOCK_ENTRIES = 4096, 2**20


def _blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Blocks of rows whose lengths, but for the last, are multiples of `PADDED_ROWS`."""
    size = max(1, min(MOST_ROWS, BLOCK_ENTRIES // n_columns) // PADDED_ROWS) * PADDED_ROWS
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


def _stored(given: Any) -> Any:
    """Modules and tensors, also in containers, as plain containers and arrays; others as given."""
    return to_plain(given) if holds_torch(given) else given


def _restored(stored: Any) -> Any:
    """Inverse of `_stored`."""
    return from_plain(stored) if is_plain(stored) else stored


def _with_modules(state: dict[str, Any], convert: Callable[[Any], Any]) -> dict[str, Any]:
    """An estimator's state with each module in its parameters and in `_made_from` converted."""
    given = state["module"]
    out = {
        **state,
        "module": convert(given),
        "_options": {name: convert(value) for name, value in state["_options"].items()},
    }
    if "_made_from" in state:
        fitted = state["_made_from"]
        same = fitted["given"] is given
        out["_made_from"] = {
            **fitted,
            "given": out["module"] if same else convert(fitted["given"]),
            "options": {name: convert(value) for name, value in fitted["options"].items()},
        }
    return out


class _Predictor:
    """Holds the module that `predict` calls, since `predict` may set no attributes itself."""

    def __init__(self, module: UserModule | None = None) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> _Predictor:
        return _Predictor(None if self.module is None else _copy_of_trained(self.module))


def _copy_of_trained(module: UserModule) -> UserModule | None:
    """A copy of a trained module, None if it cannot be copied."""
    try:
        return cast(UserModule, copy_module(module, "the trained module"))
    except Exception:
        return None


class TorchRegressor(BaseTorchRegressor):
    """Regression with any `torch.nn.Module`.

    The module is trained as the networks of `TorchMLPRegressor` are: features and target are
    standardised internally, so no scaler is needed, and predictions are in the units of `y`.

    The objective is the weighted mean of the loss over the rows plus
    ``alpha * (l1_ratio * |W|_1 + (1 - l1_ratio) / 2 * |W|_2^2)`` over the weights, as described
    under `alpha`. The loss of a row is the mean over its targets, squared error has no factor of
    one half, and intercepts are not penalised.

    Parameters
    ----------
    module : type, callable or torch.nn.Module
        A subclass of `torch.nn.Module`; a function that returns a module; or an instance, which is
        copied, so that training starts from its weights. Arguments of a class or a function are
        options ``module__*``. Required ones that are called ``in_features``, ``n_features``,
        ``input_size`` or ``input_dim`` are set to the number of features, and ``out_features``,
        ``n_outputs``, ``output_size`` or ``output_dim`` to the number of targets, if `X` has two
        dimensions.
    loss : str or class, default="squared_error"
        ``"squared_error"``, ``"absolute_error"``, ``"huber"`` (option ``loss__delta``, in
        standardised units unless ``standardize=False``), ``"quantile"`` (option
        ``loss__quantile``), ``"poisson"`` (predictions are the exponential of the module's output),
        or a `torch.nn.Module` loss class, whose own parameters are trained too.
    alpha : float, default=0.0
        Strength of the penalty. It applies to trainable parameters of two or more dimensions whose
        name does not end in ``bias``, except for those of three or more dimensions whose first
        size is 1, such as tokens.
    l1_ratio : float, default=0.0
        Share of the L1 norm in the penalty.
    optimizer : str or class, default="adam"
        ``"lbfgs"``, ``"sgd"``, ``"adam"``, ``"adamw"``, ``"nadam"``, ``"radam"``, ``"rmsprop"``,
        ``"adagrad"``, ``"adadelta"``, ``"adamax"`` or a `torch.optim.Optimizer` subclass.
    lr : float or None, default=None
        Learning rate; None is the optimizer's own default.
    lr_schedule : str, class or None, default=None
        ``"constant"``, ``"step"``, ``"exponential"``, ``"linear"``, ``"polynomial"``,
        ``"cosine"``, ``"cosine_restarts"``, ``"one_cycle"``, ``"plateau"`` or a class of
        `torch.optim.lr_scheduler`, stepped once per epoch.
    max_epochs : int, default=200
        Maximum number of epochs.
    batch_size : int, "auto" or None, default="auto"
        Rows per update: None uses all of them, ``"auto"`` uses ``min(200, n_samples)``. L-BFGS
        always uses all of them.
    shuffle : bool, default=True
        Whether to shuffle the rows in each epoch.
    tol : float or None, default=1e-4
        Stop when the monitored loss has not improved by at least `tol` for more than
        `n_iter_no_change` epochs; None runs all epochs.
    n_iter_no_change : int or numpy.inf, default=10
        Epochs without improvement to wait before stopping; `numpy.inf` never stops.
    early_stopping : bool, default=False
        Whether to hold out rows, stop on their loss and restore the best weights.
    validation_fraction : float, default=0.1
        Fraction of the rows held out with `early_stopping`.
    standardize : bool or {"features", "target"}, default=True
        Whether to centre and scale features and target internally, or which of the two. Each
        position of a row is a column. If the features are not standardised, integers reach the
        module as int64, as embeddings require.
    device : str or torch.device, default="cpu"
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, or ``"auto"`` for the first available of
        cuda, mps and cpu.
    dtype : {"auto", "float32", "float64"} or torch.dtype, default="float32"
        Dtype of the module in training and in `predict`, whose results have the dtype of `X`.
    warm_start : bool, default=False
        Whether `fit` continues from the current weights.
    random_state : int, RandomState instance or None, default=None
        Seed of initial weights, batch order, random layers and held-out rows. The module draws from
        torch's global generators, which are seeded and restored in each epoch; fits of modules in
        other threads take turns.
    verbose : bool or int, default=0
        Whether to print a table of epochs, at most one line per second (2: every epoch).
    callbacks : list or None, default=None
        skorch callbacks for the inner net.
    checkpoint_dir : str or path-like, default=None
        Folder for a checkpoint: `fit` on the same data with the same parameters resumes where it
        was interrupted, with bit-identical results. Use one folder per fit; `partial_fit` and exact
        solvers do not write checkpoints. Requires the extra ``persist``.
    checkpoint_every : int, default=10
        Number of epochs between checkpoints; the last epoch is always saved.
    **module__options : dict
        ``module__*``, ``optimizer__*``, ``loss__*`` and ``lr_schedule__*`` are passed to the
        module, the optimizer, the loss and the schedule.

    Attributes
    ----------
    n_outputs_ : int
        Number of targets.
    out_activation_ : str
        ``"identity"``, or ``"exp"`` under the Poisson loss.
    n_iter_ : int
        Number of epochs run.
    loss_, best_loss_ : float
        The last training loss, and the best of the monitored losses.
    loss_curve_ : list of float
        Objective per epoch, measured during training.
    validation_loss_curve_ : list of float
        Loss of the held-out rows per epoch, without the penalty.
    optimizer_ : str
        Name of the optimizer used.
    module_ : torch.nn.Module
        The fitted module, which takes raw features and returns predictions of shape
        (n_samples, n_outputs). Your own module is ``module_.module``.
    net_ : skorch.NeuralNet
        The net that trained the model.
    history_ : list of dict
        One record per epoch.
    n_features_in_ : int
        Number of features seen in `fit`: the second dimension of `X`.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, if all of them are strings.

    See Also
    --------
    TorchMLPRegressor : Fully connected networks by their layer sizes.
    TorchLinearRegressor : The linear model with the same interface.

    Notes
    -----
    Initial weights are those that the constructor draws after ``torch.manual_seed(random_state)``
    on the CPU in float32. Lazy layers are shaped by a few rows in evaluation mode.

    A single row that is left over after the last full batch joins that batch if the module is seen
    to fail on one row, as batch normalisation does, or to mix rows.

    Examples
    --------
    >>> import numpy as np
    >>> from torch import nn
    >>> from sktorch_linreg import TorchRegressor
    >>> class Net(nn.Module):
    ...     def __init__(self, n_features, n_outputs, width=32):
    ...         super().__init__()
    ...         self.hidden = nn.Linear(n_features, width)
    ...         self.out = nn.Linear(width, n_outputs)
    ...
    ...     def forward(self, x):
    ...         return self.out(self.hidden(x).tanh())
    >>> X = np.linspace(-2, 2, 200)[:, None]
    >>> y = np.sin(2 * X[:, 0])
    >>> model = TorchRegressor(Net, module__width=64, lr=0.02, batch_size=50, random_state=0)
    >>> bool(model.fit(X, y).score(X, y) > 0.99)
    True
    """

    _prefixes: ClassVar[tuple[str, ...]] = ("module__", *PREFIXES)
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseTorchRegressor._parameter_constraints,
        "module": "no_validation",
        "standardize": ["boolean", StrOptions({"features", "target"})],
    }

    def __init__(
        self,
        module: Any,
        *,
        loss: Any = "squared_error",
        alpha: Any = 0.0,
        l1_ratio: Any = 0.0,
        optimizer: Any = "adam",
        lr: Any = None,
        lr_schedule: Any = None,
        max_epochs: Any = 200,
        batch_size: Any = "auto",
        shuffle: Any = True,
        tol: Any = 1e-4,
        n_iter_no_change: Any = 10,
        early_stopping: Any = False,
        validation_fraction: Any = 0.1,
        standardize: Any = True,
        device: Any = "cpu",
        dtype: Any = "float32",
        warm_start: Any = False,
        random_state: Any = None,
        verbose: Any = 0,
        callbacks: Any = None,
        checkpoint_dir: Any = None,
        checkpoint_every: int = 10,
        **module__options: Any,
    ) -> None:
        self.module = module
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
        self.callbacks = callbacks
        self.checkpoint_dir = checkpoint_dir
        self.checkpoint_every = checkpoint_every
        self._set_options(module__options)

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
        """Fit the module.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features) or (n_samples, ...)
            Features; rows may have any number of dimensions. The module sees the rows of a sparse
            matrix as dense batches.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative sample weights; rows with weight 0 are ignored.
        X_val : {array-like, sparse matrix} of shape (n_val, ...), default=None
            Rows to monitor with `early_stopping`, in place of a fraction of `X`. In a `Pipeline`,
            ``transform_input=["X_val"]`` transforms them like `X`.
        y_val : array-like of shape (n_val,) or (n_val, n_targets), default=None
            Their targets.
        sample_weight_val : array-like of shape (n_val,), default=None
            Their sample weights.

        Returns
        -------
        self : TorchRegressor
            The fitted estimator.

        Raises
        ------
        ValueError
            If the input or a parameter is invalid; the estimator is left unchanged.
        TrainingDivergedError
            If the training loss is not finite.
        Exception
            What the module raises, with a note that names `module`.

        Examples
        --------
        >>> from torch import nn
        >>> from sktorch_linreg import TorchRegressor
        >>> model = TorchRegressor(nn.Linear, max_epochs=1, tol=None, random_state=0)
        >>> model.fit([[0.0], [1.0]], [1.0, 3.0]).n_iter_
        1
        """
        validation = X_val, y_val, sample_weight_val
        return self._fit(X, y, sample_weight, incremental=False, validation=validation)

    @available_if(can_partial_fit)
    @fit_context
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train for one epoch on another batch of rows.

        Weights, optimizer state and schedule continue from the previous call. The scaling is that
        of the first batch, except for columns and targets that have been constant so far.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features) or (n_samples, ...)
            Features.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.

        Returns
        -------
        self : TorchRegressor
            The fitted estimator.

        Raises
        ------
        ValueError
            If the input or a parameter is invalid.
        AttributeError
            With `early_stopping` or ``optimizer="lbfgs"``, which need all rows at once.

        Examples
        --------
        >>> from torch import nn
        >>> from sktorch_linreg import TorchRegressor
        >>> model = TorchRegressor(nn.Linear, random_state=0)
        >>> for X, y in [([[0.0], [1.0]], [1.0, 3.0]), ([[2.0], [3.0]], [5.0, 7.0])]:
        ...     model = model.partial_fit(X, y)
        >>> model.predict([[1.0]]).shape
        (1,)
        """
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> Any:
        """Predict targets in evaluation mode, in blocks of rows.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features) or (n_samples, ...)
            Features.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_targets)
            Predictions, 1-D or 2-D like `y` in `fit`; float32 for an `X` of float32, otherwise
            float64.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If rows do not have the shape they had in `fit`.

        Examples
        --------
        >>> from torch import nn
        >>> from sktorch_linreg import TorchRegressor
        >>> model = TorchRegressor(nn.Linear, max_epochs=1, tol=None)
        >>> model = model.fit([[0.0], [1.0]], [1.0, 3.0])
        >>> model.predict([[0.5]]).shape
        (1,)
        """
        given = X
        X, unverified = self._validate_predict(X)
        if unverified is not None:
            unverified()
        module = self._module_for_predict()
        dtype = numpy_dtype(module.x_offset.dtype)
        device, scaling = module.x_offset.device, Scaling.from_state(self._scaling)
        kind = X.dtype if X.dtype.kind == "f" else np.dtype(np.float64)
        out: Array = np.empty((X.shape[0], self.n_outputs_), dtype=kind)
        draws = vars(self).get("_draws_in_predict", False)
        seeded = seeded_torch(self._seed, device) if draws else nullcontext()
        with own_torch_settings(device, grad=False), np.errstate(over="ignore"), seeded:
            for part in _blocks(*X.shape):
                rows = X[part].toarray() if sp.issparse(X) else X[part]
                if not module.integers:
                    # in float64, so that columns far from 0 lose no digits
                    rows = scaled(rows, scaling.x_offset, scaling.x_factor, dtype)
                block = torch.from_numpy(self._padded(rows)).to(device)
                outputs = module.outputs(block)[: len(rows)].cpu().numpy()
                shifted = outputs * scaling.y_scale + scaling.y_offset
                out[part] = inverse_link(shifted, self._has_log_link)
        return like_input(out[:, 0] if self._squeeze else out, given)

    def _padded(self, rows: Array) -> Array:
        """A copy of the rows, the last of which is repeated up to a multiple of `PADDED_ROWS`.

        Products of matrices round differently for few rows and for many, and a prediction must
        not depend on the other rows.
        """
        n_more = -len(rows) % PADDED_ROWS if self._pads_rows else 0
        return np.concatenate([rows, np.repeat(rows[-1:], n_more, axis=0)])

    def _suggest(self, name: str, known: Iterable[str]) -> str:
        return super()._suggest(name, known) or f" Did you mean 'module__{name}'?"

    # -- engine ---------------------------------------------------------------------------------

    @property
    def _row_rules(self) -> RowRules:
        return RowRules(any_shape=True, integers=self.standardize in RAW_FEATURES)

    @property
    def _fitted_rules(self) -> RowRules:
        return RowRules(any_shape=True, integers=self._recipe().integers)

    def _make_spec(self, data: TrainingData, context: RunContext) -> FitSpec:
        options = self._options_of("module__")
        check_module(self.module, options)
        recipe = ModuleRecipe(
            self.module,
            data.row_shape,
            data.n_targets,
            options,
            integers=not sp.issparse(data.X) and data.X.dtype.kind == "i",
        )
        return make_spec(self, data, ModelShape(module=recipe), context)

    def _start(self, spec: FitSpec, context: RunContext) -> Start:
        start = Start(
            Scaling.from_state(self._scaling),
            module_state=self._module_state,
            loss_state=self._loss_state,
            seed=self._seed,
        )
        if context.incremental:
            start.moments, start.state = self._kept_moments(), vars(self).get("_training_state")
        return start

    def _start_arrays(self) -> list[Array]:
        return [*self._module_state.values(), *self._loss_state.values()]

    def _check_start(self, data: TrainingData, spec: FitSpec) -> None:
        again = "To start over, set warm_start=False and call fit, or clone the estimator."
        recipe, fitted = spec.shape.module, self._recipe()
        assert recipe is not None
        check_row_shape(self, data.row_shape, fitted.row_shape)
        check_outputs(fitted.n_targets, self._log_link, data, spec)
        if self._standardize != spec.standardize:
            raise ValueError(
                f"The module was trained with standardize={self._standardize!r}, but it is now "
                f"{spec.standardize!r}. {again}"
            )
        if recipe.integers != fitted.integers:
            kinds = ["floating-point numbers", "integers"]
            raise ValueError(
                f"The module was trained on {kinds[fitted.integers]}, but X holds "
                f"{kinds[recipe.integers]}. {again}"
            )
        try:
            self._rebuild(recipe)
        except ValueError as error:
            raise ValueError(
                f"Training cannot continue with module={recipe.name}: {error}. {again}"
            ) from error

    def _adopt(self, result: FitResult, data: TrainingData, spec: FitSpec, n_dim: int) -> None:
        super()._adopt(result, data, spec, n_dim)
        recipe = spec.shape.module
        assert recipe is not None
        self._seed, self._pads_rows = result.seed, not result.behaviour.mixes_rows_in_eval
        self._module_state = dict(result.module_state)
        self._scaling = dict(vars(result.scaling))
        self._standardize = spec.standardize
        self._made_from = dict(vars(recipe))
        self._draws_in_predict = result.behaviour.draws_in_eval
        self._predictor = _Predictor()
        if result.net is not None:
            self._predictor = _Predictor(self._module_like(result.net.module_))
        self.n_outputs_ = data.n_targets
        self.out_activation_ = "exp" if spec.objective.loss.log_link else "identity"

    def _module_like(self, trained: UserModule) -> UserModule:
        """A module that predicts as the trained one does, which stays the user's to change."""
        made = _copy_of_trained(trained)
        if made is None:
            # one that cannot be copied is made anew, as after loading
            device, dtype = trained.x_offset.device, trained.x_offset.dtype
            with suppress(Exception):
                made = self._build_module(dtype, device)
            if made is None or not predict_alike(made, trained):
                # it depends on what training has left in attributes
                made = trained.sharing()
        made.scale_input = made.scale_output = False
        return made

    # -- the fitted module ----------------------------------------------------------------------

    def _recipe(self) -> ModuleRecipe:
        """What the fitted module was made from."""
        return ModuleRecipe(**self._made_from)

    def _rebuild(self, recipe: ModuleRecipe) -> UserModule:
        """A module made from this recipe, in the fitted state."""
        # what the constructor draws into attributes that are no buffers is drawn again
        with seeded_torch(self._seed, torch.device("cpu")):
            return rebuild(recipe, self._module_state, log_link=self._log_link)

    def _build_module(self, dtype: torch.dtype, device: torch.device) -> UserModule:
        held = self._predictor.module
        with own_torch_settings(device):
            # attributes that training has set are only in a module that was trained
            module = None if held is None else _copy_of_trained(held)
            if module is None:
                module = self._rebuild(self._recipe())
            module.cast_(dtype, device)
            module.set_scaling_(Scaling.from_state(self._scaling))
            module.finish_()
        return module

    def _module_for_predict(self) -> UserModule:
        """The module that `predict` calls, with its scaling off; not the user's to change."""
        device, module = self._fitted_device(), self._predictor.module
        if module is None or module.x_offset.device.type != device.type:
            module = self._build_module(getattr(torch, self._trained_dtype), device)
            module.scale_input = module.scale_output = False
            self._predictor.module = module
        if module.module.training:
            # the trained module itself, which the user may have set to training mode
            module.eval()
        return module

    def _validate_predict_rows(self, X: Any) -> tuple[Any, Callable[[], object] | None]:
        recipe = self._recipe()
        if len(recipe.row_shape) > 1 and len(getattr(X, "shape", ())) > 1:
            # says more than the number of features
            check_row_shape(self, tuple(X.shape[1:]), recipe.row_shape)
        X, unverified = super()._validate_predict_rows(X)
        check_row_shape(self, X.shape[1:], recipe.row_shape)
        if recipe.integers and unverified is not None:
            # NaN is no code either, but has its own message
            unverified()
        X = X if sp.issparse(X) else X.reshape(len(X), -1)
        return (as_codes(X) if recipe.integers else X), unverified

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_predictor", None)
        return _with_modules(state, _stored)

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = _with_modules(state, _restored)
        if "_made_from" in state:
            state["_predictor"] = _Predictor()
        super().__setstate__(state)

    def __copy__(self) -> Self:
        out = super().__copy__()
        if "_predictor" in vars(out):
            # the copy may be given another device
            out._predictor = _Predictor(self._predictor.module)
        return out

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags
