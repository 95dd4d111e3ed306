"""`TorchLinearRegressor as LinearRegression`: existing calls keep meaning and shapes."""

import copy
import inspect

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sklearn
from sklearn.linear_model import LinearRegression
from sklearn.neural_network import MLPRegressor

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor
from sktorch_linreg._runtime.sklearn_private import HAS_CALLBACKS

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 5)) * [1, 10, 0.1, 3, 1] + [0, 5, 1, -2, 100]
Y = X @ RNG.normal(size=(5, 3)) + RNG.normal(size=3) + RNG.normal(size=(80, 3))
W = RNG.uniform(0, 3, 80)
INPUTS = {
    "float64": (X, Y[:, 0]),
    "float32": (X.astype(np.float32), Y[:, 0].astype(np.float32)),
    "float32 X, float64 y": (X.astype(np.float32), Y[:, 0]),
    "integers": (RNG.integers(-5, 9, (80, 5)), RNG.integers(0, 9, 80)),
    "booleans": (RNG.random((80, 5)) > 0.5, Y[:, 0]),
    "lists": (X.tolist(), Y[:, 0].tolist()),
    "objects": (X.astype(object), Y[:, 0]),
    "Fortran order": (np.asfortranarray(X), np.asfortranarray(Y)),
    "strided": (np.repeat(X, 2, axis=1)[::-1, ::2], Y[::-1]),
    "frame and series": (pd.DataFrame(X, columns=list("abcde")), pd.Series(Y[:, 0])),
    "frame and frame": (pd.DataFrame(X), pd.DataFrame(Y)),
    "one column target": (X, Y[:, :1]),
    "several targets": (X, Y),
    "csr": (sp.csr_matrix(X), Y[:, 0]),
    "csc, several targets": (sp.csc_array(X), Y),
    "coo, float32": (sp.coo_array(X.astype(np.float32)), Y[:, 0].astype(np.float32)),
    "one feature": (X[:, :1], Y[:, 0]),
    "more columns than rows": (RNG.normal(size=(4, 9)), Y[:4]),
}
SETTINGS = [{}, {"fit_intercept": False}, {"positive": True}, {"copy_X": False, "n_jobs": 2}]


def constructor(cls):
    return inspect.signature(cls.__init__).parameters


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", list(INPUTS))
def test_every_call_gives_what_linear_regression_gives(name, settings, weighted):
    features, target = INPUTS[name]
    if settings.get("positive") and sp.issparse(features):
        features = features.toarray()  # LinearRegression cannot, and ours is tested elsewhere
    weight = W[: np.shape(target)[0]] if weighted else None
    kept = features.copy() if hasattr(features, "copy") else list(features)
    ours = TorchLinearRegressor(**settings).fit(features, target, sample_weight=weight)
    assert type(features) is type(kept)
    if isinstance(features, np.ndarray):
        np.testing.assert_array_equal(features, kept)
    # with copy_X=False LinearRegression may write to what it is given
    scratch = copy.deepcopy(kept)
    theirs = LinearRegression(**settings, tol=1e-12).fit(scratch, target, sample_weight=weight)
    single = "float32" in name
    tolerance = {"rtol": 1e-4, "atol": 1e-3} if single else {"rtol": 1e-9, "atol": 1e-9}
    if sp.issparse(features):
        # LSQR there, in the precision of X
        tolerance = {"rtol": 1e-3, "atol": 2e-3} if single else {"rtol": 1e-6, "atol": 1e-6}
    for attribute in ("coef_", "intercept_"):
        a, b = getattr(ours, attribute), getattr(theirs, attribute)
        assert np.shape(a) == np.shape(b)
        if settings.get("positive") and name == "more columns than rows":
            continue  # many solutions fit alike
        np.testing.assert_allclose(a, b, **tolerance)
    predicted, expected = ours.predict(features), theirs.predict(kept)
    assert predicted.shape == expected.shape
    np.testing.assert_allclose(predicted, expected, **tolerance)
    assert ours.n_features_in_ == theirs.n_features_in_
    assert hasattr(ours, "feature_names_in_") == hasattr(theirs, "feature_names_in_")
    if not sp.issparse(features) and not settings.get("positive"):
        assert ours.rank_ == theirs.rank_
        np.testing.assert_allclose(ours.singular_, theirs.singular_, rtol=1e-4, atol=1e-3)


def test_constructor_takes_what_linear_regression_takes():
    theirs = constructor(LinearRegression)
    ours = constructor(TorchLinearRegressor)
    assert set(theirs) <= set(ours)
    for name in ("fit_intercept", "copy_X", "n_jobs", "positive"):
        assert ours[name].default == theirs[name].default
    TorchLinearRegressor(tol=1e-6, n_jobs=-1, copy_X=False).fit(X, Y)


def test_constructor_takes_what_mlp_regressor_takes():
    names = ["hidden_layer_sizes", "activation", "alpha", "batch_size", "shuffle", "random_state"]
    names += ["tol", "warm_start", "early_stopping", "validation_fraction", "n_iter_no_change"]
    names += ["verbose"]
    for name in names:
        assert (
            constructor(TorchMLPRegressor)[name].default == constructor(MLPRegressor)[name].default
        ), name


@pytest.mark.parametrize(
    "bad",
    [
        (X[:, 0], Y[:, 0]), (X, Y[:-1]), (X, None), (np.where(X > 100, np.nan, X), Y), (X + 0j, Y),
        (X, Y, W[:-1]), (X, Y, -W), ("text", Y), ([["a"], ["b"]], [1, 2]), (X[None], Y),
        (np.empty((0, 5)), np.empty(0)), (X, sp.csr_array(Y)), (X, Y[None]),
        # before 1.9 LinearRegression fails in a division
        *([(X, Y, np.zeros(80))] if HAS_CALLBACKS else []),
    ],
)  # fmt: skip
def test_errors_are_of_the_same_type(bad):
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        LinearRegression().fit(*bad)
    with pytest.raises(type(theirs.value)):
        TorchLinearRegressor().fit(*bad)


def test_requests_and_tags_are_those_of_linear_regression():
    ours, theirs = TorchLinearRegressor(), LinearRegression()
    for request in ("set_fit_request", "set_score_request"):
        assert hasattr(ours, request) == hasattr(theirs, request)
    mine, other = sklearn.utils.get_tags(ours), sklearn.utils.get_tags(theirs)
    assert mine.estimator_type == other.estimator_type
    assert mine.target_tags == other.target_tags
    assert mine.input_tags.sparse == other.input_tags.sparse
