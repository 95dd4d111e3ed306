"""Export models to other runtimes: ONNX, alone and as a step of a pipeline."""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from ._errors import came_from
from ._estimator.pipelines import fitted_step
from ._runtime import files
from ._runtime.aliases import Array
from .linear import TorchLinearRegressor
from .mlp import TorchMLPRegressor
from .model_selection import BatchedGridSearchCV, BatchedRandomizedSearchCV
from .module import TorchRegressor

# the ONNX operator set version to export to
OPSET = 18


def to_onnx(
    model: Any, path: Any = None, *, dtype: str = "float32", initial_types: Any = None
) -> Any:
    """Convert a fitted estimator, or a `Pipeline` that ends in one, to ONNX.

    Parameters
    ----------
    model : TorchLinearRegressor, TorchMLPRegressor, TorchRegressor, Pipeline or search
        A fitted model; of a search, the best estimator is converted. The other steps of a pipeline
        must be supported by skl2onnx, and a module of your own by `torch.onnx.export`.
    path : str or path-like, default=None
        File to write, atomically; None writes no file.
    dtype : {"float32", "float64"}, default="float32"
        Precision of the input, the intermediate values and the output. The error function in
        ``activation="gelu"`` is always computed in float32, as are pipeline steps that skl2onnx or
        onnxruntime do not support in float64.
    initial_types : list of (str, skl2onnx type), default=None
        Inputs of the model, for a pipeline that selects columns by name; a single matrix ``X`` by
        default.

    Returns
    -------
    onnx.ModelProto
        The model. Its input ``X`` has the shape of the rows in `fit`, and int64 elements if the
        module takes integers; its output ``variable`` has the shape (n_samples, n_targets).

    Raises
    ------
    NotFittedError
        If the model is not fitted.
    ValueError
        If `dtype` is not supported, if the parameters of the model overflow float32, or if columns
        are selected by name and `initial_types` is None.
    ImportError
        If skl2onnx, or onnxscript for a `TorchRegressor`, is not installed (extra ``onnx``).

    Examples
    --------
    >>> from sktorch_linreg import TorchLinearRegressor
    >>> from sktorch_linreg.interop import to_onnx
    >>> model = TorchLinearRegressor().fit([[0.0], [1.0]], [1.0, 3.0])
    >>> [output.name for output in to_onnx(model).graph.output]
    ['variable']
    """
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype must be 'float32' or 'float64'; got {dtype!r}.")
    if hasattr(model, "cv_results_"):
        check_is_fitted(model, "best_estimator_")
        model = model.best_estimator_
    check_is_fitted(model)
    model = _without_idle_steps(model)
    last = fitted_step(model)
    if isinstance(last, TorchRegressor):
        converted = _convert_module(last, dtype)
        if len(getattr(model, "steps", ())) > 1:
            converted = _join(_by_skl2onnx(model[:-1], dtype, initial_types), converted)
    else:
        converted = _by_skl2onnx(model, dtype, initial_types)
    if path is not None:
        files.replace(path, converted.SerializeToString())
    return converted


def _by_skl2onnx(model: Any, dtype: str, initial_types: Any) -> Any:
    """Convert an estimator or a pipeline whose steps are known to skl2onnx."""
    register_onnx_converters()
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    kind = FloatTensorType if dtype == "float32" else DoubleTensorType
    # manually set coefficients come without other attributes
    n_features = getattr(model, "n_features_in_", None) or np.shape(model.coef_)[-1]
    types = initial_types or [("X", kind([None, int(n_features)]))]
    try:
        return convert_sklearn(
            model, initial_types=types, target_opset={"": OPSET, "ai.onnx.ml": 3}
        )
    except RuntimeError as error:
        if initial_types is not None or "Unable to find column name" not in str(error):
            raise
        raise ValueError(
            "The pipeline selects columns by name. Pass the type of each: initial_types=["
            "('size', FloatTensorType([None, 1])), ('colour', StringTensorType([None, 1]))], with "
            "the types of skl2onnx.common.data_types."
        ) from error


def _convert_module(estimator: TorchRegressor, dtype: str) -> Any:
    """Convert a module of the user's by `torch.onnx`."""
    if find_spec("onnxscript") is None:
        raise ImportError(
            "Converting a module of your own to ONNX requires onnxscript, which is not installed. "
            "Install it with pip install 'sktorch_linreg[onnx]'."
        )
    kind = getattr(torch, dtype)
    module = estimator._build_module(kind, torch.device("cpu"))
    # two rows, since one would become a constant of the graph
    x = torch.zeros(2, *module.row_shape, dtype=torch.int64 if module.integers else kind)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), came_from("module", module.module):
        warnings.simplefilter("ignore")
        try:
            # says that torchvision is not installed
            logger.setLevel(logging.ERROR)
            program = torch.onnx.export(
                module,
                (x,),
                dynamo=True,
                input_names=["X"],
                output_names=["variable"],
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim("n_samples")},),
                verbose=False,
            )
        finally:
            logger.setLevel(level)
    return program.model_proto  # type: ignore[union-attr]


def _join(before: Any, last: Any) -> Any:
    """One graph of the steps of a pipeline and of its last step."""
    from onnx import compose

    # names inside the two graphs may coincide
    before = compose.add_prefix(before, "steps_", rename_inputs=False)
    last = compose.add_prefix(last, "module_", rename_outputs=False)
    before.ir_version = last.ir_version = min(before.ir_version, last.ir_version)
    for operators in before.opset_import:
        # skl2onnx declares the version in which the operators it used last changed
        if operators.domain == "":
            operators.version = OPSET
    edge = before.graph.output[0].name, last.graph.input[0].name
    return compose.merge_models(before, last, io_map=[edge])


def register_onnx_converters() -> None:
    """Register the estimators with skl2onnx, so that its own functions can convert them.

    Raises
    ------
    ImportError
        If skl2onnx (extra ``onnx``) is not installed.

    Examples
    --------
    >>> from sktorch_linreg.interop import register_onnx_converters
    >>> register_onnx_converters()
    """
    try:
        from skl2onnx import update_registered_converter
    except ImportError as error:
        raise ImportError(
            "Converting to ONNX requires skl2onnx, which is not installed. Install it with "
            "pip install 'sktorch_linreg[onnx]'."
        ) from error
    for cls in (TorchLinearRegressor, TorchMLPRegressor):
        update_registered_converter(cls, f"Sktorch{cls.__name__}", _shapes, _convert)
    for search in (BatchedGridSearchCV, BatchedRandomizedSearchCV):
        update_registered_converter(search, f"Sktorch{search.__name__}", _shapes, _convert_search)


def _without_idle_steps(model: Any) -> Any:
    """A pipeline without its passthrough steps, which skl2onnx does not support."""
    if not isinstance(model, Pipeline):
        return model
    return Pipeline([step for step in model.steps if step[1] not in (None, "passthrough")])


def _is_double(operator: Any) -> bool:
    from skl2onnx.common.data_types import DoubleTensorType

    return any(isinstance(given.type, DoubleTensorType) for given in operator.inputs)


def _shapes(operator: Any) -> None:
    """Set the shape and type of the output: float64 for float64 input, otherwise float32."""
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    layers, _ = fitted_step(operator.raw_operator)._trained_layers()
    kind = DoubleTensorType if _is_double(operator) else FloatTensorType
    operator.outputs[0].type = kind([None, len(layers[-1][0])])


def _convert_search(scope: Any, operator: Any, container: Any) -> None:
    """Add the graph of the best estimator."""
    from skl2onnx.algebra.onnx_operator import OnnxSubEstimator

    best, opset = operator.raw_operator.best_estimator_, container.target_opset
    (given,) = operator.inputs
    last = OnnxSubEstimator(best, given, op_version=opset, output_names=operator.outputs[:1])
    last.add_to(scope, container)


def _convert(scope: Any, operator: Any, container: Any) -> None:
    """Add the graph of a fitted estimator: input scaling, layers, output scaling."""
    from skl2onnx.algebra.onnx_ops import (
        OnnxAdd,
        OnnxCast,
        OnnxConcat,
        OnnxExp,
        OnnxIdentity,
        OnnxMatMul,
        OnnxMul,
    )

    estimator, opset = operator.raw_operator, container.target_opset
    dtype, number = (np.float64, 11) if _is_double(operator) else (np.float32, 1)
    layers, scaling = estimator._trained_layers()
    activation = getattr(estimator, "_fitted_activation", "identity")

    def call(op: Any, *args: Any, **settings: Any) -> Any:
        arrays = [_rounded(a, dtype) if isinstance(a, np.ndarray | float) else a for a in args]
        return op(*arrays, op_version=opset, **settings)

    columns = [call(OnnxCast, given, to=number) for given in operator.inputs]
    h = call(OnnxConcat, *columns, axis=1) if len(columns) > 1 else columns[0]
    if scaling.x_offset.any() or (scaling.x_factor != 1).any():
        h = call(OnnxMul, call(OnnxAdd, h, -scaling.x_offset), scaling.x_factor)
    for i, (weight, bias) in enumerate(layers):
        h = call(OnnxMatMul, h, weight.T)
        if bias is not None:
            h = call(OnnxAdd, h, bias)
        if i + 1 < len(layers):
            h = _ACTIVATIONS[activation](call, h, number)
    if scaling.y_offset.any() or (scaling.y_scale != 1).any():
        h = call(OnnxAdd, call(OnnxMul, h, scaling.y_scale), scaling.y_offset)
    if estimator._has_log_link:
        h = call(OnnxExp, h)
    last = OnnxIdentity(h, op_version=opset, output_names=operator.outputs[:1])
    last.add_to(scope, container)


def _rounded(values: Any, dtype: Any) -> Array:
    """Parameters of the model in the precision of the graph; raises ValueError on overflow."""
    with np.errstate(over="ignore"):
        out = np.asarray(values, dtype)
    if not np.isfinite(out).all():
        raise ValueError(
            "The parameters of this model overflow float32. Convert it with dtype='float64', or "
            "scale its features and targets by powers of ten and fit again."
        )
    return out


def _ops() -> Any:
    from skl2onnx.algebra import onnx_ops

    return onnx_ops


def _leaky(call: Any, x: Any, number: int) -> Any:
    below = call(_ops().OnnxRelu, call(_ops().OnnxNeg, x))
    return call(_ops().OnnxSub, call(_ops().OnnxRelu, x), call(_ops().OnnxMul, below, 0.01))


def _elu(call: Any, x: Any, number: int) -> Any:
    below = call(_ops().OnnxNeg, call(_ops().OnnxRelu, call(_ops().OnnxNeg, x)))
    bent = call(_ops().OnnxAdd, call(_ops().OnnxExp, below), -1.0)
    return call(_ops().OnnxAdd, call(_ops().OnnxRelu, x), bent)


def _gelu(call: Any, x: Any, number: int) -> Any:
    # runtimes support the error function in single precision only
    single = call(_ops().OnnxCast, call(_ops().OnnxMul, x, float(0.5**0.5)), to=1)
    bent = call(_ops().OnnxCast, call(_ops().OnnxErf, single), to=number)
    return call(_ops().OnnxMul, call(_ops().OnnxMul, x, 0.5), call(_ops().OnnxAdd, bent, 1.0))


# runtimes lack some operators in double precision, so these are composed of simpler ones
_ACTIVATIONS: dict[str, Any] = {
    "identity": lambda call, x, _: x,
    "relu": lambda call, x, _: call(_ops().OnnxRelu, x),
    "tanh": lambda call, x, _: call(_ops().OnnxTanh, x),
    "logistic": lambda call, x, _: call(_ops().OnnxSigmoid, x),
    "silu": lambda call, x, _: call(_ops().OnnxMul, x, call(_ops().OnnxSigmoid, x)),
    "leaky_relu": _leaky,
    "elu": _elu,
    "gelu": _gelu,
}
