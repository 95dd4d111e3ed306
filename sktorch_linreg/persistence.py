"""Saving fitted estimators to files that hold numbers and names alone, and loading them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.utils.validation import check_is_fitted

from . import _serialize
from ._modules import ACTIVATIONS
from ._version import __version__
from .linear import TorchLinearRegressor
from .mlp import TorchMLPRegressor

KIND = "model"
CLASSES = {cls.__name__: cls for cls in (TorchLinearRegressor, TorchMLPRegressor)}
# what a state holds besides parameters, and of which types
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
}


def save_model(estimator: TorchLinearRegressor | TorchMLPRegressor, path: Any) -> None:
    """Write a fitted estimator to a file.

    The file is in the safetensors format, with parameters, attributes and the versions of packages
    in its header and a checksum over everything. It is written beside its place, synced to the
    disk and renamed, so that at every moment there is the old file or the whole new one.

    Parameters
    ----------
    estimator : TorchLinearRegressor or TorchMLPRegressor
        A fitted estimator.
    path : str or path-like
        The file; one that is there is replaced.

    Raises
    ------
    NotFittedError
        If the estimator was not fitted.
    TypeError
        If it is not an estimator of this package. A `Pipeline` can be kept with `skops.io.dump`.
    ValueError
        If a parameter is neither a number nor a name: a class of optimizer, loss or schedule, or
        callbacks. `joblib.dump` keeps these.
    ImportError
        If safetensors, which the extra ``persist`` brings, is not installed.
    OSError
        If the file cannot be written.

    See Also
    --------
    load_model : The way back.

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
            f"save_model takes a {' or a '.join(CLASSES)}; got {name}. Save the step of a pipeline "
            "or the best_estimator_ of a search, or keep the whole with skops.io.dump."
        )
    check_is_fitted(estimator)
    state = estimator.__getstate__()
    params = estimator.get_params()
    for key in ("device", "dtype", "checkpoint_dir"):
        params[key] = state[key]
    content = {
        "estimator": name,
        "versions": _versions(),
        "params": params,
        "fitted": {k: v for k, v in state.items() if k in FITTED},
    }
    try:
        _serialize.write(path, KIND, content)
    except _serialize.NotStorable as error:
        raise ValueError(
            f"{error} Set that parameter to a name or a number where there is one, or keep the "
            "estimator with joblib.dump."
        ) from error


def load_model(path: Any) -> TorchLinearRegressor | TorchMLPRegressor:
    """Read an estimator that `save_model` wrote; nothing in the file is run.

    Parameters
    ----------
    path : str or path-like
        The file.

    Returns
    -------
    estimator : TorchLinearRegressor or TorchMLPRegressor
        The fitted estimator. One that was trained on a device that is not there predicts on the
        CPU.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, was not written by `save_model`, or holds what no fit gives; the message
        names the file and what is wrong.
    ImportError
        If safetensors, which the extra ``persist`` brings, is not installed.

    See Also
    --------
    save_model : The way there, with an example.

    Examples
    --------
    >>> from sktorch_linreg import load_model
    >>> load_model("/no/such/file")
    Traceback (most recent call last):
    FileNotFoundError: There is no file '/no/such/file'.
    """
    content = _serialize.read(path, KIND)
    try:
        return _restore(content)
    except Exception as error:
        raise ValueError(
            f"{os.fspath(path)!r} cannot be loaded: what it holds is no fitted model of this "
            f"package ({error})."
        ) from error


def _versions() -> dict[str, str]:
    modules = {"scikit-learn": sklearn, "torch": torch, "numpy": np}
    found = {name: str(module.__version__) for name, module in modules.items()}
    return {"sktorch_linreg": __version__, **found}


def _restore(content: Mapping[str, Any]) -> TorchLinearRegressor | TorchMLPRegressor:
    """The estimator of a file; raises where something in it cannot come from a fit."""
    name = content["estimator"]
    if name not in CLASSES:
        raise ValueError(f"it is of the unknown class {name!r}")
    estimator: Any = CLASSES[name](**content["params"])
    estimator._validate_params()
    fitted = content["fitted"]
    for key, value in fitted.items():
        if not isinstance(value, FITTED[key]):
            raise ValueError(f"{key} is of the type {type(value).__name__}")
    estimator.__setstate__({**vars(estimator), **fitted})
    trained = name == "TorchMLPRegressor"
    layers = estimator._layers if trained else estimator._user_layers()
    n_features = fitted.get("n_features_in_", layers[0][0].shape[-1])
    _check_layers(layers, n_features)
    if "feature_names_in_" in fitted and len(fitted["feature_names_in_"]) != n_features:
        raise ValueError("feature_names_in_ does not go with n_features_in_")
    n_outputs = len(layers[-1][0])
    squeeze = fitted.get("_squeeze", n_outputs == 1)
    if (squeeze and n_outputs > 1) or fitted.get("n_outputs_", n_outputs) != n_outputs:
        raise ValueError(f"{n_outputs} outputs do not go with the targets it was fitted to")
    if fitted.get("_fitted_activation", "identity") not in ACTIVATIONS:
        raise ValueError("its activation is not known")
    # whatever else does not fit together shows in a prediction
    out = estimator.predict(np.zeros((1, n_features)))
    if out.shape != ((1,) if squeeze else (1, n_outputs)):
        raise ValueError(f"its predictions have the shape {out.shape}")
    return estimator  # type: ignore[no-any-return]


def _check_layers(layers: Any, n_in: int) -> None:
    """Raise ValueError where layers do not follow on each other, or are not finite."""
    for weight, bias in layers:
        arrays = [weight] if bias is None else [weight, bias]
        if any(a.dtype not in (np.float32, np.float64) for a in arrays):
            raise ValueError("a layer does not hold floats")
        if weight.ndim != 2 or weight.shape[1] != n_in or not len(weight):
            raise ValueError(f"a layer of shape {weight.shape} follows on {n_in} units")
        n_in = len(weight)
        if bias is not None and bias.shape != (n_in,):
            raise ValueError(f"intercepts of shape {bias.shape} belong to {n_in} units")
        if not all(np.isfinite(a).all() for a in arrays):
            raise ValueError("a layer is not finite")
