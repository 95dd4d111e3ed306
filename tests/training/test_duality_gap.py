"""Losses with kinks: how far from the minimum L-BFGS has ended, and that it says so."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.datasets import load_diabetes
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import QuantileRegressor
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import PolynomialFeatures

from sktorch_linreg import TorchLinearRegressor
from sktorch_linreg._training import train
from sktorch_linreg._training.duality_gap import excess, make_problem


@pytest.fixture
def found(monkeypatch):
    """Objective and excess as they were worked out, fit by fit."""
    seen = []

    checked = train.check_minimum

    def check(*args):
        seen.append(excess(make_problem(*args[:3]), *args[3:]))
        return checked(*args)

    monkeypatch.setattr(train, "check_minimum", check)
    return seen


def problem(seed, mixed):
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(20, 120)), int(rng.integers(1, 12))
    X = rng.normal(size=(n, d)) + 1.0
    if mixed:
        X = X @ rng.normal(size=(d, d)) * 0.3
    y = X[:, 0] + rng.standard_t(2, size=n)
    return X, y, rng.random(n) + 0.1 if seed % 2 else np.ones(n)


def standard(X, y, weight):
    mean = np.average(np.c_[X, y], axis=0, weights=weight)
    scale = np.sqrt(np.average((np.c_[X, y] - mean) ** 2, axis=0, weights=weight))
    both = (np.c_[X, y] - mean) / scale
    return both[:, :-1], both[:, -1]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("alpha", [0.0, 0.02])
@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
def test_the_excess_bounds_that_over_the_linear_programme(found, seed, alpha, container):
    X, y, weight = problem(seed, mixed=seed % 3 == 0)
    q = [0.1, 0.5, 0.8][seed % 3]
    model = TorchLinearRegressor(loss="quantile", loss__quantile=q, alpha=alpha, l1_ratio=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(container(X), y, weight)
    Z, t = standard(X, y, weight)
    exact = QuantileRegressor(quantile=q, alpha=alpha, solver="highs")
    exact.fit(Z, t, weight / weight.mean())
    residual = t - exact.predict(Z)
    least = np.average(np.maximum(q * residual, (q - 1) * residual), weights=weight)
    least += alpha * np.abs(exact.coef_).sum()
    ((value, above),) = found
    # a bound, and next to the truth where columns are not collinear
    assert value - above <= least + 1e-8
    assert above <= (0.02 if seed % 3 == 0 else 1e-3) * value
    np.testing.assert_allclose(value, model.best_loss_, rtol=1e-4)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("loss", ["absolute_error", torch.nn.L1Loss])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("l1_ratio", [0.0, 0.5])
@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_minima_are_known_as_such(found, loss, positive, fit_intercept, l1_ratio, alpha):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 4))
    Y = np.column_stack([X @ [1.0, -1.0, 0.5, 0.0], X[:, 0]]) + rng.standard_t(3, size=(80, 2))
    model = TorchLinearRegressor(
        loss=loss, positive=positive, fit_intercept=fit_intercept, alpha=alpha, l1_ratio=l1_ratio
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(X, Y)
    ((value, above),) = found
    assert -1e-9 <= above <= 1e-3 * value


def far_from_the_minimum():
    """53 rows of 34 mixed columns; polynomials of raw columns, whose condition is 1e16."""
    rng = np.random.default_rng(9)
    n, d = int(rng.integers(5, 120)), int(rng.integers(1, 40))
    X = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * 0.3
    weight = rng.random(n)
    yield X, X[:, 0] / np.abs(X[:, 0]).max() * 2 + rng.normal(size=n), weight, 0.9
    X, y = load_diabetes(return_X_y=True, scaled=False)
    yield PolynomialFeatures(2, include_bias=False).fit_transform(X), y, np.ones(len(y)), 0.95


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("X", "y", "weight", "q"), far_from_the_minimum())
def test_far_above_the_minimum_there_is_a_warning(X, y, weight, q):
    model = TorchLinearRegressor(loss="quantile", loss__quantile=q)
    with pytest.warns(ConvergenceWarning, match=r"may be .* above it.*nearly collinear"):
        model.fit(X, y, weight)


def test_a_search_collects_these_warnings_as_others():
    X, y, weight, _ = next(far_from_the_minimum())
    search = GridSearchCV(TorchLinearRegressor(loss="quantile"), {"loss__quantile": [0.9]}, cv=2)
    with pytest.warns(ConvergenceWarning, match="may be"):
        search.fit(np.repeat(X, 2, axis=0), np.repeat(y, 2), sample_weight=np.repeat(weight, 2))


def test_a_poor_bound_is_no_reason_to_warn():
    X = np.array([
        [-1.6523, 1.0029, -1.6582], [0.8168, 0.7735, 0.8153], [1.2617, -0.9520, 1.2666],
        [1.5052, 1.9070, 1.4934], [0.1435, -0.7223, 0.1491],
    ])  # fmt: skip
    y = np.array([0.58, -2.96, -0.08, -0.07, 0.37])
    model = TorchLinearRegressor(loss="absolute_error", alpha=0.01, l1_ratio=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(X, y, [2, 2, 2, 2, 1])
    np.testing.assert_allclose(model.loss_, 0.522661697, rtol=1e-5)
