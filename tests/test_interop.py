"""Models for other runtimes: scikit-learn without torch, and ONNX."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor
from sktorch_linreg._modules.activations import ACTIVATIONS
from sktorch_linreg.interop import register_onnx_converters, to_onnx

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 3)) * [1, 10, 0.1] + 2
Y = X @ RNG.normal(size=(3, 2)) + 0.1 * RNG.normal(size=(80, 2))
y = Y[:, 0]
SETTINGS = {"max_epochs": 5, "tol": None, "random_state": 0}


# -- scikit-learn ---------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [y, y[:, None], Y], ids=["n", "n, 1", "n, 2"])
@pytest.mark.parametrize(
    "params",
    [{}, {"fit_intercept": False}, {"optimizer": "adam", "max_epochs": 3}, {"loss": "huber"}],
    ids=str,
)
def test_a_linear_regression_that_predicts_the_same(targets, params):
    model = TorchLinearRegressor(**params).fit(X, targets)
    other = model.to_sklearn()
    assert type(other) is LinearRegression
    np.testing.assert_array_equal(other.predict(X), model.predict(X))
    assert other.score(X, targets) == model.score(X, targets)
    assert other.get_params()["fit_intercept"] == model.fit_intercept
    # it is a copy
    other.coef_[...] = 0.0
    assert np.abs(model.coef_).max() > 0


@pytest.mark.sampled(2)
@pytest.mark.parametrize("targets", [y, Y], ids=["n", "n, 2"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
@pytest.mark.parametrize("hidden", [(), (8,), (8, 4)])
@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
def test_a_network_that_predicts_the_same(targets, activation, hidden, loss):
    model = TorchMLPRegressor(
        activation=activation, hidden_layer_sizes=hidden, loss=loss, **SETTINGS
    ).fit(X, np.abs(targets))
    other = model.to_sklearn()
    assert type(other) is MLPRegressor
    np.testing.assert_allclose(other.predict(X), model.predict(X), rtol=1e-9, atol=1e-9)
    assert other.n_layers_ == model.n_layers_ == len(hidden) + 2
    assert other.out_activation_ == model.out_activation_
    assert clone(other).fit(X, np.abs(targets)).score(X, np.abs(targets)) < 2


def test_what_scikit_learn_does_not_have():
    with pytest.raises(ValueError, match=r"'gelu'.*save_model"):
        TorchMLPRegressor(activation="gelu", **SETTINGS).fit(X, y).to_sklearn()
    with pytest.raises(ValueError, match="exponential"):
        TorchLinearRegressor(loss="poisson").fit(X, np.abs(y)).to_sklearn()
    for cls in (TorchLinearRegressor, TorchMLPRegressor):
        with pytest.raises(NotFittedError):
            cls().to_sklearn()


def test_it_needs_no_torch(tmp_path):
    for name, model in {
        "linear": TorchLinearRegressor(),
        "network": TorchMLPRegressor(**SETTINGS),
    }.items():
        model.fit(X, y)
        (tmp_path / name).write_bytes(pickle.dumps(model.to_sklearn()))
        script = (
            "import pickle, sys\n"
            "def no(name, *rest):\n"
            "    assert name.split('.')[0] not in ('torch', 'skorch', 'sktorch_linreg'), name\n"
            "sys.meta_path.insert(0, type('No', (), {'find_spec': staticmethod(no)}));"
            "print(repr(float(pickle.load(open(sys.argv[1], 'rb')).predict([[1.0, 2.0, 3.0]])[0])))"
        )
        run = subprocess.run(
            [sys.executable, "-c", script, tmp_path / name],
            capture_output=True,
            text=True,
            check=True,
        )
        expected = model.predict([[1.0, 2.0, 3.0]])[0]
        assert float(run.stdout) == pytest.approx(expected, rel=1e-9)


# -- ONNX -----------------------------------------------------------------------------------------


def through_onnx(model, rows, dtype, path=None):
    pytest.importorskip("skl2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    made = to_onnx(model, path, dtype=dtype)
    session = onnxruntime.InferenceSession(
        made.SerializeToString() if path is None else str(path), providers=["CPUExecutionProvider"]
    )
    (out,) = session.run(None, {"X": rows.astype(dtype)})
    return out


def check_onnx(model, dtype, rows=X):
    out = through_onnx(model, rows, dtype)
    assert out.dtype == dtype
    expected = model.predict(rows.astype(dtype)).reshape(len(rows), -1)
    # runtimes know the error function in single precision alone
    single = dtype == "float32" or getattr(model, "activation", None) == "gelu"
    tolerance = 1e-5 if single else 1e-12
    scale = np.abs(expected).max()
    np.testing.assert_allclose(out / scale, expected / scale, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("targets", [y, Y], ids=["one", "two"])
@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
def test_linear_models_as_onnx(dtype, targets, loss):
    check_onnx(TorchLinearRegressor(loss=loss).fit(X, np.abs(targets) / 10), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("targets", [y, Y], ids=["one", "two"])
def test_networks_as_onnx(dtype, activation, targets):
    model = TorchMLPRegressor(hidden_layer_sizes=(8, 4), activation=activation, **SETTINGS)
    check_onnx(model.fit(X, targets), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("standardize", [True, False])
def test_pipelines_as_onnx(dtype, standardize):
    for last in (
        TorchLinearRegressor(optimizer="adam", standardize=standardize, max_epochs=3),
        TorchMLPRegressor(standardize=standardize, loss="poisson", **SETTINGS),
    ):
        # skl2onnx converts PolynomialFeatures in single precision alone
        steps = [PolynomialFeatures(2)] if dtype == "float32" else []
        pipe = make_pipeline(StandardScaler(), *steps, last)
        check_onnx(pipe.fit(X, np.abs(y)), dtype)


def test_the_converters_are_there_for_skl2onnx_itself():
    theirs = pytest.importorskip("skl2onnx").to_onnx
    register_onnx_converters()
    model = TorchLinearRegressor().fit(X, y)
    assert len(theirs(model, X[:1].astype(np.float32)).graph.node) > 0


def test_files_and_wrong_input(tmp_path):
    model = TorchLinearRegressor().fit(X, y)
    out = through_onnx(model, X, "float64", tmp_path / "model.onnx")
    np.testing.assert_allclose(out[:, 0], model.predict(X), rtol=1e-12)
    with pytest.raises(ValueError, match="'float16'"):
        to_onnx(model, dtype="float16")
    with pytest.raises(NotFittedError):
        to_onnx(TorchLinearRegressor())


def test_without_skl2onnx_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(ImportError, match=r"sktorch_linreg\[onnx\]"):
        to_onnx(TorchLinearRegressor().fit(X, y))


def test_a_network_goes_on_under_a_warm_start_of_scikit_learn():
    other = TorchMLPRegressor(**SETTINGS).fit(X, 100 * y).to_sklearn()
    other.set_params(warm_start=True, max_iter=50, tol=1e-9).fit(X, 100 * y)
    # losses here, in other units, do not make it stop
    assert other.n_iter_ == 50


def test_a_converted_model_shares_no_state():
    for model in (TorchMLPRegressor(**SETTINGS), TorchLinearRegressor()):
        ours = model.fit(X, y)
        theirs = ours.to_sklearn()
        before = copy.deepcopy(vars(ours))
        for value in vars(theirs).values():
            if isinstance(value, list):
                value.append(0.0)
            elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
                value += 1.0
        for name, value in before.items():
            if isinstance(value, list | np.ndarray):
                np.testing.assert_equal(vars(ours)[name], value, err_msg=name)
