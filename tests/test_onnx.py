"""ONNX models of pipelines and searches, and with inputs of other kinds than one matrix."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sktorch_linreg import BatchedGridSearchCV, TorchLinearRegressor, TorchMLPRegressor
from sktorch_linreg.interop import register_onnx_converters, to_onnx

skl2onnx = pytest.importorskip("skl2onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from skl2onnx.common.data_types import FloatTensorType, StringTensorType  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 3)) * [1, 10, 0.1] + 2
Y = X @ RNG.normal(size=(3, 2)) + 0.1 * RNG.normal(size=(80, 2))
y = Y[:, 0]
SETTINGS = {"max_epochs": 5, "tol": None, "random_state": 0}


def run(converted, inputs):
    session = onnxruntime.InferenceSession(converted.SerializeToString())
    return session.run(None, inputs)[0]


@pytest.mark.parametrize(
    "model", [TorchLinearRegressor(), TorchMLPRegressor(**SETTINGS)], ids=["linear", "network"]
)
def test_inputs_column_by_column(model):
    frame = pd.DataFrame(X.astype(np.float32), columns=list("abc"))
    model = clone(model).fit(frame, y.astype(np.float32))
    register_onnx_converters()
    converted = skl2onnx.to_onnx(model, frame[:1], target_opset=18)
    found = run(converted, {c: frame[[c]].to_numpy() for c in frame})
    np.testing.assert_allclose(found.ravel(), model.predict(frame), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.int64, np.bool_])
def test_inputs_of_integers_and_booleans(dtype):
    whole = (RNG.integers(0, 2, size=(60, 3))).astype(dtype)
    model = TorchLinearRegressor().fit(whole, whole @ [1.0, 2.0, 3.0] + 1)
    register_onnx_converters()
    converted = skl2onnx.to_onnx(model, whole[:1], target_opset=18)
    np.testing.assert_allclose(
        run(converted, {"X": whole}).ravel(), model.predict(whole), rtol=1e-5
    )
    pipeline = make_pipeline(OneHotEncoder(dtype=int), model).fit(whole, whole[:, 0])
    assert to_onnx(pipeline) is not None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("in_pipeline", [False, True])
def test_searches_as_onnx(dtype, in_pipeline):
    search = BatchedGridSearchCV(TorchMLPRegressor(**SETTINGS), {"lr": [0.1, 0.01]}, cv=2)
    model = make_pipeline(StandardScaler(), search) if in_pipeline else search
    model.fit(X, Y)
    found = run(to_onnx(model, dtype=dtype), {"X": X.astype(dtype)})
    tolerance = 1e-3 if dtype == "float32" else 1e-9
    np.testing.assert_allclose(found, model.predict(X), rtol=tolerance, atol=tolerance)
    with pytest.raises(NotFittedError):
        to_onnx(clone(search).set_params(refit=False).fit(X, Y))


def test_pipelines_that_look_for_names_as_onnx():
    frame = pd.DataFrame(X, columns=["a", "b", "c"]).assign(colour=["red", "blue"] * 40)
    columns = ColumnTransformer(
        [("number", StandardScaler(), ["a", "b"]), ("text", OneHotEncoder(), ["colour"])]
    )
    pipeline = make_pipeline(columns, TorchLinearRegressor()).fit(frame, y)
    with pytest.raises(ValueError, match="initial_types"):
        to_onnx(pipeline)
    types = [(name, FloatTensorType([None, 1])) for name in "ab"]
    converted = to_onnx(pipeline, initial_types=[*types, ("colour", StringTensorType([None, 1]))])
    inputs = {name: frame[[name]].to_numpy(np.float32) for name in "ab"}
    found = run(converted, {**inputs, "colour": frame[["colour"]].to_numpy(object)})
    np.testing.assert_allclose(found.ravel(), pipeline.predict(frame), rtol=1e-4, atol=1e-4)


def test_steps_that_do_nothing_as_onnx():
    pipeline = make_pipeline("passthrough", StandardScaler(), None, TorchLinearRegressor())
    pipeline.fit(X, y)
    found = run(to_onnx(pipeline, dtype="float64"), {"X": X})
    np.testing.assert_allclose(found.ravel(), pipeline.predict(X), rtol=1e-9)


def test_numbers_that_no_float32_holds():
    model = TorchLinearRegressor().fit(X * 1e-30, y * 1e10)
    with pytest.raises(ValueError, match="dtype='float64'"):
        to_onnx(model)
    found = run(to_onnx(model, dtype="float64"), {"X": X * 1e-30})
    np.testing.assert_allclose(found.ravel(), model.predict(X * 1e-30), rtol=1e-9)


def test_old_operators_do_for_gelu():
    model = TorchMLPRegressor(activation="gelu", **SETTINGS).fit(X, y)
    register_onnx_converters()
    converted = skl2onnx.to_onnx(model, X[:1].astype(np.float32), target_opset=12)
    found = run(converted, {"X": X.astype(np.float32)})
    np.testing.assert_allclose(found.ravel(), model.predict(X), rtol=1e-4, atol=1e-4)
