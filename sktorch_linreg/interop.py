"""Models for other runtimes: ONNX, alone and as a step of a pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from . import _serialize
from .linear import TorchLinearRegressor
from .mlp import TorchMLPRegressor

# the last version of ONNX's operators that is made use of
OPSET = 18


def to_onnx(model: Any, path: Any = None, *, dtype: str = "float32") -> Any:
    """Convert a fitted estimator, or a `Pipeline` that ends in one, to ONNX.

    Parameters
    ----------
    model : TorchLinearRegressor, TorchMLPRegressor or Pipeline
        A fitted model. The other steps of a pipeline have to be known to skl2onnx.
    path : str or path-like, default=None
        File to write, whole or not at all; None writes none.
    dtype : {"float32", "float64"}, default="float32"
        Precision of the input, of everything in between, and of the output; the error function in
        ``activation="gelu"`` is always worked out in float32.

    Returns
    -------
    onnx.ModelProto
        The model. Its input ``X`` has the shape (n_samples, n_features), and its output
        (n_samples, n_targets).

    Raises
    ------
    NotFittedError
        If the model was not fitted.
    ValueError
        If `dtype` is another.
    ImportError
        If skl2onnx, which the extra ``onnx`` brings, is not installed.

    Examples
    --------
    >>> from sktorch_linreg import TorchLinearRegressor
    >>> from sktorch_linreg.interop import to_onnx
    >>> model = TorchLinearRegressor().fit([[0.0], [1.0]], [1.0, 3.0])
    >>> [output.name for output in to_onnx(model).graph.output]
    ['variable']
    """
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype has to be 'float32' or 'float64', not {dtype!r}.")
    check_is_fitted(model)
    register_onnx_converters()
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    kind = FloatTensorType if dtype == "float32" else DoubleTensorType
    n_features = getattr(model, "n_features_in_", np.shape(getattr(model, "coef_", ()))[-1:])
    shape = [None, int(np.ravel(n_features)[0])]
    converted = convert_sklearn(
        model, initial_types=[("X", kind(shape))], target_opset={"": OPSET, "ai.onnx.ml": 3}
    )
    if path is not None:
        _serialize.replace(path, converted.SerializeToString())
    return converted


def register_onnx_converters() -> None:
    """Tell skl2onnx about the estimators, so that its own functions convert them as well.

    Raises
    ------
    ImportError
        If skl2onnx, which the extra ``onnx`` brings, is not installed.

    Examples
    --------
    >>> from sktorch_linreg.interop import register_onnx_converters
    >>> register_onnx_converters()
    """
    try:
        from skl2onnx import update_registered_converter
    except ImportError as error:
        raise ImportError(
            "Converting to ONNX needs skl2onnx, which is not installed. Install the extra that "
            "brings it: pip install 'sktorch_linreg[onnx]'."
        ) from error
    for cls in (TorchLinearRegressor, TorchMLPRegressor):
        update_registered_converter(cls, f"Sktorch{cls.__name__}", _shapes, _convert)


def _shapes(operator: Any) -> None:
    """The shape and type of the output."""
    layers, _ = operator.raw_operator._trained_layers()
    kind = type(operator.inputs[0].type)
    operator.outputs[0].type = kind([None, len(layers[-1][0])])


def _convert(scope: Any, operator: Any, container: Any) -> None:
    """The graph of a fitted estimator: units, layers, and units again."""
    from skl2onnx.algebra.onnx_ops import OnnxAdd, OnnxExp, OnnxIdentity, OnnxMatMul, OnnxMul
    from skl2onnx.common.data_types import DoubleTensorType

    estimator, opset = operator.raw_operator, container.target_opset
    double = isinstance(operator.inputs[0].type, DoubleTensorType)
    dtype = np.float64 if double else np.float32
    layers, scaling = estimator._trained_layers()
    activation = getattr(estimator, "_fitted_activation", "identity")

    def call(op: Any, *args: Any, **settings: Any) -> Any:
        arrays = [np.asarray(a, dtype) if isinstance(a, np.ndarray | float) else a for a in args]
        return op(*arrays, op_version=opset, **settings)

    h = operator.inputs[0]
    if scaling.x_offset.any() or (scaling.x_factor != 1).any():
        h = call(OnnxMul, call(OnnxAdd, h, -scaling.x_offset), scaling.x_factor)
    for i, (weight, bias) in enumerate(layers):
        h = call(OnnxMatMul, h, weight.T)
        if bias is not None:
            h = call(OnnxAdd, h, bias)
        if i + 1 < len(layers):
            h = _ACTIVATIONS[activation](call, h)
    if scaling.y_offset.any() or (scaling.y_scale != 1).any():
        h = call(OnnxAdd, call(OnnxMul, h, scaling.y_scale), scaling.y_offset)
    if getattr(estimator, "_log_link", estimator.loss == "poisson"):
        h = call(OnnxExp, h)
    last = OnnxIdentity(h, op_version=opset, output_names=operator.outputs[:1])
    last.add_to(scope, container)


def _ops() -> Any:
    from skl2onnx.algebra import onnx_ops

    return onnx_ops


def _leaky(call: Any, x: Any) -> Any:
    below = call(_ops().OnnxRelu, call(_ops().OnnxNeg, x))
    return call(_ops().OnnxSub, call(_ops().OnnxRelu, x), call(_ops().OnnxMul, below, 0.01))


def _elu(call: Any, x: Any) -> Any:
    below = call(_ops().OnnxNeg, call(_ops().OnnxRelu, call(_ops().OnnxNeg, x)))
    bent = call(_ops().OnnxAdd, call(_ops().OnnxExp, below), -1.0)
    return call(_ops().OnnxAdd, call(_ops().OnnxRelu, x), bent)


def _gelu(call: Any, x: Any) -> Any:
    # runtimes know the error function in single precision alone
    single = call(_ops().OnnxCast, call(_ops().OnnxMul, x, float(0.5**0.5)), to=1)
    bent = call(_ops().OnnxCastLike, call(_ops().OnnxErf, single), x)
    return call(_ops().OnnxMul, call(_ops().OnnxMul, x, 0.5), call(_ops().OnnxAdd, bent, 1.0))


# runtimes lack some operators in double precision, so these are made of simpler ones
_ACTIVATIONS: dict[str, Any] = {
    "identity": lambda call, x: x,
    "relu": lambda call, x: call(_ops().OnnxRelu, x),
    "tanh": lambda call, x: call(_ops().OnnxTanh, x),
    "logistic": lambda call, x: call(_ops().OnnxSigmoid, x),
    "silu": lambda call, x: call(_ops().OnnxMul, x, call(_ops().OnnxSigmoid, x)),
    "leaky_relu": _leaky,
    "elu": _elu,
    "gelu": _gelu,
}
