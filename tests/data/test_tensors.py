"""torch tensors in: arrays come out, or tensors where scikit-learn is set to work on tensors."""

import warnings

import numpy as np
import pytest
import sklearn
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from sktorch_linreg import BatchedGridSearchCV, TorchLinearRegressor, TorchMLPRegressor

RNG = np.random.default_rng(0)
X = RNG.normal(size=(100, 3))
Y = X @ RNG.normal(size=(3, 2)) + 0.1 * RNG.normal(size=(100, 2))
SETTINGS = {"max_epochs": 3, "tol": None, "random_state": 0}
MODELS = {
    "exact": TorchLinearRegressor(),
    "adam": TorchLinearRegressor(optimizer="adam", **SETTINGS),
    "mlp": TorchMLPRegressor(**SETTINGS),
    "search": BatchedGridSearchCV(TorchLinearRegressor(), {"alpha": [0.0, 0.1]}, cv=3),
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def tensors(*arrays, dtype=torch.float64, device="cpu"):
    return [torch.tensor(a, dtype=dtype, device=device) for a in arrays]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dispatch", [False, True])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("targets", [Y[:, 0], Y], ids=["one", "two"])
def test_the_same_model_as_from_arrays(name, dispatch, targets, device):
    weight = RNG.uniform(0.5, 2.0, 100)
    expected = clone(MODELS[name]).fit(X, targets, sample_weight=weight)
    x, y, w = tensors(X, targets, weight, device=device)
    with config_context(array_api_dispatch=dispatch):
        model = clone(MODELS[name]).fit(x, y, sample_weight=w)
        out = model.predict(x.requires_grad_())
        score = model.score(x.detach(), y)
    if dispatch:
        assert isinstance(out, torch.Tensor)
        assert out.device == x.device
        assert not out.requires_grad
        out = out.cpu().numpy()
    assert isinstance(out, np.ndarray)
    np.testing.assert_array_equal(out, expected.predict(X))
    assert float(score) == pytest.approx(expected.score(X, targets), rel=1e-12)


@pytest.mark.skipif(
    sklearn.__version__ < "1.8", reason="StandardScaler takes no tensors before 1.8"
)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODELS)
def test_pipelines_and_cross_validation_stay_on_tensors(name, device):
    x, y = tensors(X, Y[:, 0], device=device)
    pipe = make_pipeline(StandardScaler(), PolynomialFeatures(2), clone(MODELS[name]))
    with config_context(array_api_dispatch=True):
        out = clone(pipe).fit(x, y).predict(x)
        scores = cross_val_score(pipe, x, y, cv=3)
    assert out.device == x.device
    np.testing.assert_allclose(scores, cross_val_score(pipe, X, Y[:, 0], cv=3), rtol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["exact", "adam", "mlp"])
def test_searches_over_tensors(name, device):
    x, y = tensors(X, Y[:, 0], device=device)
    grid = {"alpha": [0.0, 0.1]}
    with config_context(array_api_dispatch=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = (
            cls(MODELS[name], grid, cv=3).fit(x, y).cv_results_["mean_test_score"]
            for cls in (BatchedGridSearchCV, GridSearchCV)
        )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("dispatch", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_precision_is_that_of_the_tensor(dtype, dispatch):
    (x,) = tensors(X.round(1) * 8, dtype=dtype)
    y = torch.from_numpy(Y[:, 0]).to(torch.float32)
    with config_context(array_api_dispatch=dispatch):
        out = TorchLinearRegressor().fit(x, y).predict(x)
    single = dtype in (torch.float32, torch.bfloat16)
    kind = "float32" if single else "float64"
    assert str(out.dtype).removeprefix("torch.") == kind


@pytest.mark.parametrize("dispatch", [False, True])
@pytest.mark.parametrize("name", ["exact", "adam", "mlp"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(name, bad, dispatch):
    x, y = tensors(X, Y[:, 0])
    model = clone(MODELS[name])
    with config_context(array_api_dispatch=dispatch):
        x[3, 1] = bad
        with pytest.raises(ValueError, match="X contains"):
            model.fit(x, y)
        model.fit(x[:3], y[:3])
        with pytest.raises(ValueError, match="X contains"):
            model.predict(x)
        y[0] = bad
        with pytest.raises(ValueError, match="y contains"):
            model.fit(x[:3], y[:3])


@pytest.mark.parametrize("name", ["exact", "mlp"])
def test_scores_of_tensors_that_numpy_does_not_take(name):
    y = Y[:, 0]
    model = clone(MODELS[name]).fit(X, y)
    expected = model.score(X, y)
    target = torch.from_numpy(y)
    assert model.score(torch.from_numpy(X), target.clone().requires_grad_()) == expected
    rough = model.score(torch.from_numpy(X), target.bfloat16(), torch.ones(len(y)).bfloat16())
    assert rough == pytest.approx(expected, abs=0.05)
