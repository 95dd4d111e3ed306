"""Save fitted estimators to files that contain only numbers and strings, and load them."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ._data.moments import Moments
from ._data.scaling import Scaling
from ._data.statistics import Statistics
from ._modules.activations import ACTIVATIONS
from ._modules.user_module import UnsuitableState, check_module, import_path, name_of
from ._runtime import files
from ._runtime.aliases import Array
from ._version import __version__
from .linear import TorchLinearRegressor
from .mlp import TorchMLPRegressor
from .module import TorchRegressor

KIND = "model"
DTYPES = ("float16", "bfloat16", "float32", "float64")
TRAINING_STATE = {"fits", "rates", "optimizer", "schedule", "generator", "dropout"}
OURS: tuple[type, ...] = (TorchLinearRegressor, TorchMLPRegressor, TorchRegressor)
CLASSES = {cls.__name__: cls for cls in OURS}
Saved = TorchLinearRegressor | TorchMLPRegressor | TorchRegressor
# what a state contains besides parameters, and the types allowed
FITTED: dict[str, tuple[type, ...]] = {
    "n_features_in_": (int,),
    "feature_names_in_": (np.ndarray,),
    "n_iter_": (int,),
    "loss_": (float,),
    "best_loss_": (float,),
    "loss_curve_": (np.ndarray,),
    "validation_loss_curve_": (np.ndarray,),
    "optimizer_": (str,),
    "history_": (list, dict),
    "coef_": (np.ndarray,),
    "intercept_": (np.ndarray, np.floating, float),
    "rank_": (int,),
    "solver_path_": (str,),
    "coef_path_": (np.ndarray,),
    "intercept_path_": (np.ndarray,),
    "n_layers_": (int,),
    "n_outputs_": (int,),
    "out_activation_": (str,),
    "_singular": (np.ndarray,),
    "_statistics": (dict, type(None)),
    "_penalised": (bool,),
    "_log_link": (bool,),
    "_squeeze": (bool,),
    "_trained_dtype": (str,),
    "_training_state": (dict, type(None)),
    "_moments": (tuple, type(None)),
    "_incremental": (bool,),
    "_layers": (list,),
    "_scaling": (dict,),
    "_fitted_activation": (str,),
    "_loss_state": (dict,),
    "_module_state": (dict,),
    "_made_from": (dict,),
    "_pads_rows": (bool,),
    "_seed": (int,),
    "_draws_in_predict": (bool,),
    "_standardize": (bool, str),
}


def save_model(estimator: Saved, path: Any) -> None:
    """Write a fitted estimator to a file.

    The file is in the safetensors format, with parameters, attributes and package versions in its
    header and a checksum over its content. It is written atomically: to a temporary file that is
    synced to disk and then renamed.

    Parameters
    ----------
    estimator : TorchLinearRegressor, TorchMLPRegressor or TorchRegressor
        A fitted estimator. Of a module of your own, the file holds parameters and buffers by name,
        and the name of its class or function, which `load_model` has to be given again.
    path : str or path-like
        The file; an existing one is replaced.

    Raises
    ------
    NotFittedError
        If the estimator is not fitted.
    TypeError
        If it is not an estimator of this package. Save a `Pipeline` with `skops.io.dump`.
    ValueError
        If a parameter is neither a number nor a string: an optimizer, loss or schedule class, an
        instance as `module`, or callbacks. Use `joblib.dump` for these.
    ImportError
        If safetensors (extra ``persist``) is not installed.
    OSError
        If the file cannot be written.

    See Also
    --------
    load_model : Load the file.

    Examples
    --------
    >>> import tempfile
    >>> from sktorch_linreg import TorchLinearRegressor, load_model, save_model
    >>> model = TorchLinearRegressor().fit([[0.0], [1.0]], [1.0, 3.0])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(model, f"{folder}/model.safetensors")
    ...     again = load_model(f"{folder}/model.safetensors")
    >>> again.predict([[2.0]]).round(6)
    array([5.])
    """
    name = type(estimator).__name__
    if CLASSES.get(name) is not type(estimator):
        raise TypeError(
            f"save_model takes a {', a '.join(CLASSES)}; got {name}. Save the last step of a "
            "pipeline or the best_estimator_ of a search, or save all of it with skops.io.dump."
        )
    check_is_fitted(estimator)
    state = estimator.__getstate__()
    for key in ("coef_", "intercept_"):
        # may have been set manually, to anything that predict accepts
        if key in state and not hasattr(state[key], "dtype"):
            state[key] = np.asarray(state[key], dtype=np.float64)[()]
        elif key in state and state[key].dtype.kind != "f":
            state[key] = state[key].astype(np.float64)
    params = estimator.get_params()
    module = params.pop("module", None)
    if isinstance(module, nn.Module):
        raise ValueError(
            f"save_model cannot store module={type(module).__name__}(...), an instance. Pass its "
            "class or a function that makes it as module, or save the estimator with joblib.dump."
        )
    if module is not None:
        state["_made_from"] = {k: v for k, v in state["_made_from"].items() if k != "given"}
    for key in ("device", "dtype", "checkpoint_dir"):
        params[key] = state[key]
    content = {
        "estimator": name,
        "versions": _versions(),
        "params": params,
        "fitted": {k: v for k, v in state.items() if k in FITTED},
    }
    if module is not None:
        content["module"] = import_path(module)
    try:
        _restore(copy.deepcopy(content), module)
    except Exception as error:
        raise ValueError(
            f"The {name} could not be read back by load_model: {error}. Nothing was written."
        ) from error
    try:
        files.write(path, KIND, content)
    except files.NotStorable as error:
        raise ValueError(
            f"{error} Set that parameter to a string or a number if possible, or save the "
            "estimator with joblib.dump."
        ) from error


def load_model(path: Any, *, module: Any = None) -> Saved:
    """Load an estimator written by `save_model`; nothing in the file is executed.

    Parameters
    ----------
    path : str or path-like
        The file.
    module : type, callable or torch.nn.Module, default=None
        For a `TorchRegressor`: its class or function, or an instance to fill, which is copied.

    Returns
    -------
    estimator : TorchLinearRegressor, TorchMLPRegressor or TorchRegressor
        The fitted estimator. If its device is not available, it predicts on the CPU.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, was not written by `save_model`, or contains values that no fit
        produces, or if `module` is missing or has other parameters; the message names the file and
        the problem.
    ImportError
        If safetensors (extra ``persist``) is not installed.

    See Also
    --------
    save_model : Write such a file, with an example.

    Examples
    --------
    >>> from sktorch_linreg import load_model
    >>> load_model("/no/such/file")
    Traceback (most recent call last):
    FileNotFoundError: There is no file '/no/such/file'.
    """
    if module is not None:
        check_module(module, {})
    content = files.read(path, KIND)
    saved = content.get("estimator") if isinstance(content, dict) else None
    if saved == "TorchRegressor" and module is None:
        name = content.get("module")
        raise ValueError(
            f"{os.fspath(path)!r} holds a TorchRegressor with module={name}. Pass that class or "
            f"function, or an instance to fill: load_model(path, module={name})."
        )
    if module is not None and saved != "TorchRegressor":
        raise ValueError(
            f"{os.fspath(path)!r} holds a {saved}, which takes no module. Call load_model(path)."
        )
    try:
        return _restore(content, module)
    except UnsuitableState as error:
        raise ValueError(
            f"{os.fspath(path)!r} cannot be loaded into module={name_of(module)}: {error}. It was "
            f"saved with module={content['module']}."
        ) from error
    except Exception as error:
        raise ValueError(
            f"{os.fspath(path)!r} cannot be loaded: it does not contain a fitted model of this "
            f"package ({error})."
        ) from error


def _versions() -> dict[str, str]:
    modules = {"scikit-learn": sklearn, "torch": torch, "numpy": np}
    found = {name: str(module.__version__) for name, module in modules.items()}
    return {"sktorch_linreg": __version__, **found}


def _restore(content: Mapping[str, Any], module: Any = None) -> Saved:
    """Rebuild the estimator from a file; raises if something in it cannot come from a fit."""
    name = content["estimator"]
    if name not in CLASSES:
        raise ValueError(f"its class {name!r} is unknown")
    params, given = dict(content["params"]), {} if module is None else {"module": module}
    if isinstance(module, nn.Module):
        # the instance has been constructed with arguments of its own
        params = {k: v for k, v in params.items() if not k.startswith("module__")}
    estimator: Any = CLASSES[name](**given, **params)
    estimator._validate_params()
    fitted = content["fitted"]
    for key, value in fitted.items():
        if not isinstance(value, FITTED[key]):
            raise ValueError(f"{key} has the type {type(value).__name__}")
    if module is not None:
        return _restore_user_module(estimator, fitted, module)
    network = name == "TorchMLPRegressor"
    layers = fitted["_layers"] if network else _linear_layers(fitted)
    n_features = fitted.get("n_features_in_", layers[0][0].shape[-1])
    _check_layers(layers, n_features)
    n_outputs = len(layers[-1][0])
    _check_curves(fitted)
    _check_attributes(fitted, n_features, n_outputs)
    if network:
        _check_scaling(fitted, n_features, n_outputs)
    estimator.__setstate__({**vars(estimator), **fitted})
    squeeze = fitted.get("_squeeze", np.ndim(fitted.get("coef_")) == 1)
    # any other inconsistency shows up in a prediction
    out = estimator.predict(np.zeros((1, n_features)))
    if out.shape != ((1,) if squeeze else (1, n_outputs)) or np.isnan(out).any():
        raise ValueError(f"its predictions are {out}, of the shape {out.shape}")
    return estimator  # type: ignore[no-any-return]


def _restore_user_module(estimator: Any, fitted: Mapping[str, Any], module: Any) -> Saved:
    """As `_restore`, for a module of the user's."""
    made_from = {**fitted["_made_from"], "given": module}
    n_columns, n_outputs = math.prod(made_from["row_shape"]), fitted["n_outputs_"]
    _check_curves(fitted)
    _check_attributes(fitted, n_columns, n_outputs, fitted["n_features_in_"])
    _check_scaling(fitted, n_columns, n_outputs)
    for name, array in fitted["_module_state"].items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"its parameter {name} is not an array")
    estimator.__setstate__({**vars(estimator), **fitted, "_made_from": made_from})
    # raises if names or shapes do not match
    estimator._module_for_predict()
    out: Saved = estimator
    return out


def _linear_layers(fitted: Mapping[str, Any]) -> list[tuple[Array, Array]]:
    """Coefficients and intercepts as one layer; raises if the shape of coef_ is invalid."""
    coef, intercept = np.asarray(fitted["coef_"]), np.atleast_1d(fitted["intercept_"])
    if coef.ndim not in (1, 2) or not coef.size:
        raise ValueError(f"coef_ has the shape {coef.shape}")
    coef = np.atleast_2d(coef)
    if intercept.shape == (1,):
        intercept = np.repeat(intercept, len(coef))
    return [(coef, intercept)]


def _check_curves(fitted: Mapping[str, Any]) -> None:
    """Raise if the loss curve and the history differ in length."""
    if "history_" not in fitted:
        return
    history, curve = fitted["history_"], fitted["loss_curve_"]
    n_rows = len(history) if isinstance(history, list) else history["n_rows"]
    if curve.ndim != 1 or n_rows != len(curve) or fitted["n_iter_"] < 0:
        raise ValueError("the history and the loss curve differ in length")
    if isinstance(history, list) and not all(isinstance(row, dict) for row in history):
        raise ValueError("the training history is invalid")


def _check_attributes(
    fitted: Mapping[str, Any], n_features: int, n_outputs: int, n_names: int | None = None
) -> None:
    """Raise if attributes do not match the layers."""
    names = fitted.get("feature_names_in_")
    if names is not None and names.shape != (n_names or n_features,):
        raise ValueError("feature_names_in_ does not match n_features_in_")
    if (fitted.get("_squeeze") and n_outputs > 1) or fitted.get(
        "n_outputs_", n_outputs
    ) != n_outputs:
        raise ValueError(f"{n_outputs} outputs do not match the targets it was fitted to")
    link = "exp" if fitted.get("_log_link") else "identity"
    if fitted.get("out_activation_", link) != link:
        raise ValueError("out_activation_ does not match the link of its loss")
    if fitted.get("_fitted_activation", "identity") not in ACTIVATIONS:
        raise ValueError("its activation is unknown")
    if fitted.get("_trained_dtype", "float64") not in DTYPES:
        raise ValueError("its precision is unknown")
    if not 0 <= fitted.get("rank_", 0) <= n_features:
        raise ValueError("its rank is larger than the number of features")
    stats = fitted.get("_statistics")
    if stats is not None:
        s = Statistics.from_state(Statistics.unpack(stats) if "triangle" in stats else stats)
        shapes = s.factor.shape[1:], s.residual_ss.shape, s.shift.shape, s.offset.shape
        both = n_features + n_outputs
        if shapes != ((both,), (n_outputs,), (both,), (both,)) or s.n_features != n_features:
            raise ValueError("its statistics do not match its coefficients")
    moments = fitted.get("_moments")
    if moments is not None:
        for m, size in zip(moments, (n_features, n_outputs), strict=True):
            if Moments(**m).mean.shape != (size,) or Moments(**m).deviation.shape != (size,):
                raise ValueError("its moments do not match its layers")
    state = fitted.get("_training_state")
    if state is not None and not state.keys() >= TRAINING_STATE:
        raise ValueError("its training state is incomplete")


def _check_scaling(fitted: Mapping[str, Any], n_features: int, n_outputs: int) -> None:
    """Raise if the scaling parameters of a network are invalid."""
    s = Scaling.from_state(fitted["_scaling"])
    shapes = [a.shape for a in (s.x_offset, s.x_scale, s.y_offset, s.y_scale)]
    if shapes != [(n_features,)] * 2 + [(n_outputs,)] * 2:
        raise ValueError("its scaling parameters do not match its layers")
    arrays = np.concatenate([s.x_offset, s.x_scale, s.y_offset, s.y_scale])
    if not np.isfinite(arrays).all() or (s.x_scale < 0).any() or (s.y_scale < 0).any():
        raise ValueError("its scaling parameters are negative or not finite")


def _check_layers(layers: Any, n_in: int) -> None:
    """Raise ValueError if the shapes of the layers do not match, or values are not finite."""
    for weight, bias in layers:
        arrays = [weight] if bias is None else [weight, bias]
        if any(a.dtype not in (np.float32, np.float64) for a in arrays):
            raise ValueError("a layer does not contain floats")
        if weight.ndim != 2 or weight.shape[1] != n_in or not len(weight):
            raise ValueError(
                f"a layer of shape {weight.shape} cannot follow a layer of {n_in} units"
            )
        n_in = len(weight)
        if bias is not None and bias.shape != (n_in,):
            raise ValueError(f"intercepts of shape {bias.shape} do not match {n_in} units")
        if not all(np.isfinite(a).all() for a in arrays):
            raise ValueError("a layer is not finite")
