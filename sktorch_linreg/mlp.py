"""The neural-network estimator: parameters, documentation and fitted attributes."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.utils.validation import check_is_fitted

from ._data.arrays import CHUNK_BYTES, chunks, like_input
from ._data.rows import TrainingData
from ._data.scaling import Scaling, to_user_units
from ._errors import unknown_name
from ._estimator.base import BaseTorchRegressor
from ._estimator.checks import can_partial_fit
from ._estimator.make_spec import make_spec
from ._estimator.to_sklearn import as_mlp_regressor
from ._modules.activations import ACTIVATIONS
from ._runtime.aliases import Array, Layers
from ._runtime.sklearn_private import Interval, InvalidParameterError, available_if, fit_context
from ._runtime.torch_modes import own_torch_settings
from ._spec import FitResult, FitSpec, ModelShape, RunContext


class TorchMLPRegressor(BaseTorchRegressor):
    """Neural-network regression in PyTorch, modelled on scikit-learn's ``MLPRegressor``.

    Features and target are standardised internally, so no scaler is needed; `coefs_`,
    `intercepts_` and predictions are in the units of `X` and `y`.

    The objective is the weighted mean of the loss over the rows plus
    ``alpha * (l1_ratio * |W|_1 + (1 - l1_ratio) / 2 * |W|_2^2)`` over the weights of all layers.
    The loss of a row is the mean over its targets, squared error has no factor of one half, and
    intercepts are not penalised.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default=(100,)
        Number of units of each hidden layer.
    activation : str, default="relu"
        ``"relu"``, ``"tanh"``, ``"logistic"``, ``"identity"``, ``"gelu"``, ``"silu"``,
        ``"leaky_relu"`` or ``"elu"``.
    dropout : float, default=0.0
        Dropout probability of the hidden units.
    loss : str or class, default="squared_error"
        ``"squared_error"``, ``"absolute_error"``, ``"huber"`` (option ``loss__delta``, in
        standardised units unless ``standardize=False``), ``"quantile"`` (option
        ``loss__quantile``), ``"poisson"`` (predictions are the exponential of the network), or a
        `torch.nn.Module` loss class.
    alpha : float, default=1e-4
        Strength of the penalty.
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
    standardize : bool, default=True
        Whether to centre and scale features and target internally.
    device : str or torch.device, default="cpu"
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, or ``"auto"`` for the first available of
        cuda, mps and cpu.
    dtype : {"auto", "float32", "float64"} or torch.dtype, default="float32"
        Computation dtype of training; predictions have the precision of `X`.
    warm_start : bool, default=False
        Whether `fit` continues from the current weights.
    random_state : int, RandomState instance or None, default=None
        Seed of initial weights, batch order, dropout and held-out rows. torch's and numpy's global
        random state is never changed.
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
    **optimizer__options : dict
        ``optimizer__*``, ``loss__*`` and ``lr_schedule__*`` are passed to the optimizer, the loss
        and the schedule.

    Attributes
    ----------
    coefs_ : list of ndarray of shape (n_in, n_out)
        Weights of each layer, in the units of `X` and `y`.
    intercepts_ : list of ndarray of shape (n_out,)
        Intercepts of each layer.
    n_layers_ : int
        Number of layers, input and output included.
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
        The fitted network, which takes raw features.
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
    TorchLinearRegressor : The linear model with the same interface.
    sklearn.neural_network.MLPRegressor : The NumPy implementation, with mostly the same parameters.

    Notes
    -----
    Weights are initialised like those of `torch.nn.Linear`, uniformly within ``1 / sqrt(n_in)``.

    Examples
    --------
    >>> import numpy as np
    >>> from sktorch_linreg import TorchMLPRegressor
    >>> X = np.linspace(-2, 2, 200)[:, None]
    >>> y = np.sin(2 * X[:, 0])
    >>> model = TorchMLPRegressor(hidden_layer_sizes=(32, 32), lr=0.01, random_state=0)
    >>> bool(model.fit(X, y).score(X, y) > 0.99)
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseTorchRegressor._parameter_constraints,
        "hidden_layer_sizes": ["array-like", Integral],
        "activation": "no_validation",
        "dropout": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(
        self,
        *,
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        dropout: Any = 0.0,
        loss: Any = "squared_error",
        alpha: Any = 1e-4,
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
        **optimizer__options: Any,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.dropout = dropout
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
        """Fit the network.

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
        self : TorchMLPRegressor
            The fitted estimator.

        Raises
        ------
        ValueError
            If the input or a parameter is invalid; the estimator is left unchanged.
        TrainingDivergedError
            If the training loss is not finite.

        Examples
        --------
        >>> from sktorch_linreg import TorchMLPRegressor
        >>> model = TorchMLPRegressor(max_epochs=1, tol=None, random_state=0)
        >>> model.fit([[0.0], [1.0]], [1.0, 3.0]).n_iter_
        1
        """
        validation = X_val, y_val, sample_weight_val
        return self._fit(X, y, sample_weight, incremental=False, validation=validation)

    @available_if(can_partial_fit)
    @fit_context
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train for one epoch on another batch of rows.

        Weights, optimizer state and schedule continue from the previous call. The batch updates the
        statistics used for standardisation, and the first and last layers are rewritten so that
        predictions do not jump.

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
        self : TorchMLPRegressor
            The fitted estimator.

        Raises
        ------
        ValueError
            If the input or a parameter is invalid.
        AttributeError
            With `early_stopping` or ``optimizer="lbfgs"``, which need all rows at once.

        Examples
        --------
        >>> from sktorch_linreg import TorchMLPRegressor
        >>> model = TorchMLPRegressor(random_state=0)
        >>> for X, y in [([[0.0], [1.0]], [1.0, 3.0]), ([[2.0], [3.0]], [5.0, 7.0])]:
        ...     model = model.partial_fit(X, y)
        >>> model.predict([[1.0]]).shape
        (1,)
        """
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> Any:
        """Predict targets, in the precision of `X`, in blocks of rows.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Features.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_targets)
            Predictions, 1-D or 2-D like `y` in `fit`.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.

        Examples
        --------
        >>> from sktorch_linreg import TorchMLPRegressor
        >>> model = TorchMLPRegressor(max_epochs=1, tol=None).fit([[0.0], [1.0]], [[1.0], [3.0]])
        >>> model.predict([[0.5]]).shape
        (1, 1)
        """
        given = X
        X, unverified = self._validate_predict(X)
        if unverified is not None:
            unverified()
        single = X.dtype == np.float32 and self._trained_layers()[1].fits_single
        dtype = torch.float32 if single else torch.float64
        device = self._fitted_device()
        if device.type == "mps" and dtype == torch.float64:
            device = torch.device("cpu")
        out = self._predict_in(dtype, device, X)
        if single and not np.isfinite(out).all():
            out = self._predict_in(torch.float64, device, X)
        return like_input(out[:, 0] if self._squeeze else out, given)

    def _predict_in(self, dtype: torch.dtype, device: torch.device, X: Any) -> Array:
        """Predictions computed in `dtype`, returned in the dtype of X."""
        module = self._build_module(dtype, device)
        widest = max(sum(weight.shape) for weight, _ in self._layers)
        out: Array = np.empty((X.shape[0], self.n_outputs_), dtype=X.dtype)
        with own_torch_settings(device, grad=False), np.errstate(over="ignore"):
            for part in chunks(X.shape[0], widest, CHUNK_BYTES):
                rows = X[part].toarray() if sp.issparse(X) else X[part]
                block = torch.from_numpy(np.array(rows)).to(device, dtype)
                out[part] = module(block).cpu().numpy()
        return out

    def to_sklearn(self) -> Any:
        """Convert to a fitted `MLPRegressor` with the same predictions, for use without torch.

        Returns
        -------
        MLPRegressor
            Its pickle only requires scikit-learn.
            If `y` had the shape (n, 1), its predictions have the shape (n,).

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If `MLPRegressor` does not support the activation.

        Examples
        --------
        >>> from sktorch_linreg import TorchMLPRegressor
        >>> model = TorchMLPRegressor(max_epochs=1, tol=None).fit([[0.0], [1.0]], [1.0, 3.0])
        >>> model.to_sklearn().predict([[2.0]]).shape
        (1,)
        """
        check_is_fitted(self)
        return as_mlp_regressor(self, self._user_layers(), self._fitted_activation)

    # -- fitted attributes ----------------------------------------------------------------------

    @property
    def coefs_(self) -> list[Array]:
        """Weights of each layer, of shape (n_in, n_out), in the user's units."""
        check_is_fitted(self)
        return [w.T for w, _ in self._user_layers()]

    @property
    def intercepts_(self) -> list[Array]:
        """Intercepts of each layer, in the user's units."""
        check_is_fitted(self)
        return [b for _, b in self._user_layers() if b is not None]

    # -- engine ---------------------------------------------------------------------------------

    def _hidden(self) -> tuple[int, ...]:
        """Sizes of the hidden layers."""
        given = self.hidden_layer_sizes
        sizes: tuple[Any, ...] = tuple(given) if isinstance(given, Iterable) else (given,)
        if not all(
            isinstance(s, Integral) and not isinstance(s, bool) and int(s) > 0 for s in sizes
        ):
            raise InvalidParameterError(
                "hidden_layer_sizes must be a positive integer or a sequence of them, such as "
                f"(100,) or (64, 64); got {self.hidden_layer_sizes!r}."
            )
        return tuple(int(s) for s in sizes)

    def _make_spec(self, data: TrainingData, context: RunContext) -> FitSpec:
        if not (isinstance(self.activation, str) and self.activation in ACTIVATIONS):
            raise unknown_name("activation", self.activation, ACTIVATIONS)
        shape = ModelShape(self._hidden(), self.activation, float(self.dropout))
        return make_spec(self, data, shape, context)

    def _adopt(self, result: FitResult, data: TrainingData, spec: FitSpec, n_dim: int) -> None:
        super()._adopt(result, data, spec, n_dim)
        self._layers = result.trained
        self._scaling = dict(vars(result.scaling))
        self._fitted_activation = spec.shape.activation
        self.n_layers_ = len(result.trained) + 1
        self.n_outputs_ = data.n_targets
        self.out_activation_ = "exp" if spec.objective.loss.log_link else "identity"

    def _trained_layers(self) -> tuple[Layers, Scaling]:
        return self._layers, Scaling.from_state(self._scaling)

    def _user_layers(self) -> Layers:
        return to_user_units(*self._trained_layers())
