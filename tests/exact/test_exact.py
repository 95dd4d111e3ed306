"""The exact solvers against numpy, scipy and scikit-learn."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import ElasticNet, LinearRegression, Ridge

from sktorch_linreg import TorchLinearRegressor
from sktorch_linreg._data import accumulate
from sktorch_linreg._data.conditioning import REFINED_ON_ROWS
from sktorch_linreg._data.rows import TrainingData
from sktorch_linreg._exact import solve
from sktorch_linreg._exact.constrained import proximal_quadratic
from sktorch_linreg._runtime.sklearn_private import HAS_CALLBACKS

FORMATS = [sp.csr_matrix, sp.csc_matrix, sp.coo_matrix, sp.csr_array, sp.csc_array, sp.coo_array]


def standard(X, y, w=None):
    """X and y in standard units, with their scales."""
    w = np.ones(len(X)) if w is None else w
    x_mean, y_mean = np.average(X, axis=0, weights=w), np.average(y, axis=0, weights=w)
    x_scale = np.sqrt(np.average((X - x_mean) ** 2, axis=0, weights=w))
    y_scale = np.sqrt(np.average((y - y_mean) ** 2, axis=0, weights=w))
    return (X - x_mean) / x_scale, (y - y_mean) / y_scale, x_scale, y_scale


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-9), (np.float32, 1e-4)])
def test_equals_linear_regression(easy, fit_intercept, weighted, many, standardize, dtype, rtol):
    X, Y = (a.astype(dtype) for a in easy)
    y = Y if many else Y[:, 0]
    w = np.random.default_rng(0).uniform(0, 2, len(X)) if weighted else None
    ours = TorchLinearRegressor(fit_intercept=fit_intercept, standardize=standardize)
    theirs = LinearRegression(fit_intercept=fit_intercept)
    ours.fit(X, y, sample_weight=w)
    theirs.fit(X, y, sample_weight=w)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=rtol)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=rtol)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=rtol, atol=rtol)
    np.testing.assert_allclose(ours.singular_, theirs.singular_, rtol=rtol)
    assert ours.rank_ == theirs.rank_ == 4
    assert ours.coef_.dtype == theirs.coef_.dtype == dtype
    assert ours.predict(X).dtype == dtype
    assert ours.optimizer_ == "lstsq"


def test_columns_whose_scales_differ_by_1e24():
    rng = np.random.default_rng(0)
    scale = 10.0 ** np.linspace(-12, 12, 9)
    X = rng.normal(size=(100, 9)) * scale
    coef = rng.normal(size=9) / scale
    model = TorchLinearRegressor().fit(X, X @ coef + 2.0)
    assert model.rank_ == 9
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-12)
    assert model.intercept_ == pytest.approx(2.0, rel=1e-12)


def test_small_column_is_kept_where_linear_regression_drops_it():
    x = 1e6 + np.linspace(-500, 500, 200)
    X = np.column_stack([x, x**2])
    y = 3.0 * x - 2e-3 * x**2
    model = TorchLinearRegressor().fit(X, y)
    # scikit-learn 1.7 and 1.8 keep it as well
    assert LinearRegression().fit(X, y).rank_ == (1 if HAS_CALLBACKS else 2)
    assert model.rank_ == 2
    np.testing.assert_allclose(model.coef_, [3.0, -2e-3], rtol=1e-6)


def test_target_with_a_mean_far_above_its_spread():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 3))
    coef = np.array([1.0, -2.0, 0.5])
    model = TorchLinearRegressor().fit(X, X @ coef + 1e9)
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-6)


def collinear(n=60):
    rng = np.random.default_rng(3)
    A = rng.normal(size=(n, 3)) * [1.0, 100.0, 0.01]
    X = np.column_stack([A, A[:, 0] + A[:, 1], np.full(n, 7.0), A[:, 2]])
    return X, A @ [1.0, 2.0, 3.0] + rng.normal(size=n)


@pytest.mark.parametrize("to", [np.asarray, sp.csr_array])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_minimum_norm_in_the_units_of_the_user(to, fit_intercept):
    X, y = collinear()
    model = TorchLinearRegressor(fit_intercept=fit_intercept).fit(to(X), y)
    if fit_intercept:
        expected = np.linalg.pinv(X - X.mean(axis=0), rcond=1e-12) @ (y - y.mean())
    else:
        expected = np.linalg.pinv(X, rcond=1e-12) @ y
    np.testing.assert_allclose(model.coef_, expected, rtol=1e-8, atol=1e-10)
    assert model.rank_ == (3 if fit_intercept else 4)
    assert model.coef_[2] == pytest.approx(model.coef_[5], rel=1e-9)
    if fit_intercept:
        assert model.coef_[4] == 0.0


def test_minimum_norm_with_scales_far_apart():
    rng = np.random.default_rng(5)
    A = rng.normal(size=(50, 2)) * [1e-6, 1e6]
    X = np.column_stack([A, A[:, 0] * 1e3, A[:, 1] * 1e-3])
    model = TorchLinearRegressor().fit(X, A @ [1e6, 1e-6])
    assert model.rank_ == 2
    # two directions that do not mix: each shares its effect in proportion to the columns' scales
    expected = np.array([1e6 / (1 + 1e6), 1e-6 / (1 + 1e-6), 1e9 / (1 + 1e6), 1e-9 / (1 + 1e-6)])
    np.testing.assert_allclose(model.coef_, expected, atol=1e-9 * np.linalg.norm(expected))
    np.testing.assert_allclose(model.predict(X), A @ [1e6, 1e-6], rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("many", [True, False])
def test_fewer_rows_than_columns(dtype, many):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 60)).astype(dtype)
    Y = rng.normal(size=(20, 3)).astype(dtype)
    y = Y if many else Y[:, 0]
    ours, theirs = TorchLinearRegressor().fit(X, y), LinearRegression().fit(X, y)
    rtol = 1e-9 if dtype == np.float64 else 1e-4
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(ours.predict(X), y, rtol=10 * rtol, atol=10 * rtol)
    assert ours.rank_ == theirs.rank_ == 19
    assert ours.singular_.shape == theirs.singular_.shape == (20,)


def test_float32_rounding_is_not_taken_for_information():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(300, 2)).astype(np.float32)
    X = np.column_stack([A, A[:, 0] + A[:, 1]])
    model = TorchLinearRegressor().fit(X, A @ np.float32([1, 2]))
    assert model.rank_ == 2
    np.testing.assert_allclose(model.coef_, [0.0, 1.0, 1.0], atol=1e-5)


def test_tol_is_the_relative_singular_value_cut_off():
    rng = np.random.default_rng(0)
    a = rng.normal(size=200)
    X = np.column_stack([a, a + 1e-4 * rng.normal(size=200)])
    assert TorchLinearRegressor().fit(X, a).rank_ == 2
    assert TorchLinearRegressor(tol=1e-3).fit(X, a).rank_ == 1


@pytest.mark.parametrize(
    ("container", "shape"),
    [(c, (300, 20)) for c in FORMATS] + [(sp.csr_array, (40, 90)), (sp.coo_array, (300, 120))],
)
@pytest.mark.parametrize("alpha", [0.0, 0.1])
@pytest.mark.parametrize("limit", [2000, 10])
def test_sparse_equals_dense(container, shape, alpha, limit, monkeypatch):
    monkeypatch.setattr(solve, "MAX_FACTOR_FEATURES", limit)
    rng = np.random.default_rng(0)
    S = sp.random(*shape, density=0.1, random_state=0)
    y = rng.normal(size=(shape[0], 2))
    w = rng.integers(0, 4, shape[0]).astype(float)
    sparse = TorchLinearRegressor(alpha=alpha).fit(container(S), y, sample_weight=w)
    dense = TorchLinearRegressor(alpha=alpha).fit(S.toarray(), y, sample_weight=w)
    scale = np.abs(dense.coef_).max()
    np.testing.assert_allclose(sparse.coef_, dense.coef_, atol=1e-8 * scale)
    np.testing.assert_allclose(sparse.intercept_, dense.intercept_, atol=1e-8)
    np.testing.assert_allclose(sparse.predict(container(S)), dense.predict(S.toarray()), atol=1e-8)
    assert sparse.loss_ == pytest.approx(dense.loss_, rel=1e-8, abs=1e-10)


def test_wide_sparse_minimum_norm_is_in_the_units_of_the_user():
    S = sp.random(2300, 2050, density=0.01, random_state=0, format="csc")
    doubled = sp.hstack([S, 10.0 * S[:, :5]], format="csr")
    y = S @ np.linspace(-1, 1, 2050)
    model = TorchLinearRegressor().fit(doubled, y)
    np.testing.assert_allclose(10 * model.coef_[:5], model.coef_[2050:], rtol=1e-6)
    np.testing.assert_allclose(model.coef_[:5] * (1 + 100), np.linspace(-1, 1, 2050)[:5], rtol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"alpha": 0.5}, {"optimizer": "lbfgs", "alpha": 0.5}])
def test_sparse_entries_that_stand_twice_are_added(settings):
    S = sp.random(60, 5, density=0.5, random_state=0, format="csr") * 3.0
    twice = sp.csr_array(
        (np.repeat(S.data, 2) * np.tile([3.0, -2.0], S.nnz), np.repeat(S.indices, 2), S.indptr * 2),
        shape=S.shape,
    )
    y = np.arange(60.0)
    kept = twice.data.copy()
    plain = TorchLinearRegressor(random_state=0, **settings).fit(S, y)
    model = TorchLinearRegressor(random_state=0, **settings).fit(twice, y)
    np.testing.assert_allclose(model.coef_, plain.coef_, rtol=1e-9)
    np.testing.assert_allclose(model.predict(twice), plain.predict(S), rtol=1e-9)
    np.testing.assert_array_equal(twice.data, kept)


@pytest.mark.parametrize("kind", ["sparse products", "dense blocks", "qr"])
def test_sparse_is_never_made_dense_whole(kind, monkeypatch):
    density = 0.1 if kind == "dense blocks" else 0.005
    S = sp.random(20_000, 400, density=density, random_state=0, format="csr")
    if kind == "qr":
        S = sp.hstack([S, S[:, :1]], format="csr")
    y = np.arange(20_000.0)
    largest = [0]
    original = sp.csr_matrix.toarray
    for cls in (sp.csr_matrix, sp.csr_array):
        monkeypatch.setattr(
            cls,
            "toarray",
            lambda self, *a, **k: (largest.append(self.shape[0]), original(self, *a, **k))[1],
        )
    model = TorchLinearRegressor().fit(S, y)
    assert max(largest) <= 5_000
    assert (max(largest) > 401) == (kind != "sparse products")
    assert model.solver_path_.startswith("svd" if kind == "qr" else "cholesky")
    few = S[:2000].toarray()
    np.testing.assert_allclose(model.predict(S[:2000]), few @ model.coef_ + model.intercept_)


def test_wide_rows_without_a_square_matrix(regression):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 20_000)) * rng.uniform(0.1, 10, 20_000), rng.normal(size=30)
    tracemalloc.start()
    plain = TorchLinearRegressor().fit(X, y)
    ridge = TorchLinearRegressor(alpha=0.1).fit(X, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # X takes 5 MB, its Gram matrix would take 3 GB
    assert peak < 100e6
    centred, right = X - X.mean(axis=0), y - y.mean()
    expected = centred.T @ np.linalg.solve(centred @ centred.T + np.ones((30, 30)), right)
    np.testing.assert_allclose(plain.coef_, expected, atol=1e-12)
    Z, t, x_scale, y_scale = standard(X, y)
    dual = Z.T @ np.linalg.solve(Z @ Z.T + 0.1 / 2 * 30 * np.eye(30), t)
    np.testing.assert_allclose(ridge.coef_, dual * y_scale / x_scale, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize("alpha", [0.01, 1.0])
def test_ridge_is_the_stated_objective(easy, weighted, many, alpha):
    X, Y = easy
    y = Y if many else Y[:, 0]
    w = np.random.default_rng(0).uniform(0.1, 2, len(X)) if weighted else np.ones(len(X))
    model = TorchLinearRegressor(alpha=alpha, standardize=False).fit(X, y, sample_weight=w)
    n_targets = 3 if many else 1
    ridge = Ridge(alpha=0.5 * alpha * w.sum() * n_targets, tol=1e-12).fit(X, y, sample_weight=w)
    np.testing.assert_allclose(model.coef_, ridge.coef_, rtol=1e-9)
    np.testing.assert_allclose(model.intercept_, ridge.intercept_, rtol=1e-9)
    residual = (model.predict(X) - y) ** 2
    rows = residual.mean(axis=1) if many else residual
    value = np.average(rows, weights=w) + 0.5 * alpha * np.sum(model.coef_**2)
    assert model.loss_ == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("l1_ratio", [0.3, 1.0])
@pytest.mark.parametrize("many", [True, False])
def test_elastic_net_equals_scikit_learns(regression, positive, l1_ratio, many):
    X, y = regression
    y = np.column_stack([y, y[::-1], X[:, 0] * 1e3 + 0.1 * y]) if many else y
    alpha = 0.08
    model = TorchLinearRegressor(alpha=alpha, l1_ratio=l1_ratio, positive=positive).fit(X, y)
    Z, t, x_scale, y_scale = standard(X, y)
    n_targets = 3 if many else 1
    for k in range(n_targets):
        net = ElasticNet(
            alpha=alpha / 2 * n_targets, l1_ratio=l1_ratio, positive=positive, tol=1e-14,
            max_iter=100_000,
        ).fit(Z, t[:, k] if many else t)  # fmt: skip
        coef = model.coef_[k] if many else model.coef_
        ours = coef * x_scale / (y_scale[k] if many else y_scale)
        np.testing.assert_allclose(ours, net.coef_, atol=1e-8)
        np.testing.assert_array_equal(ours == 0, net.coef_ == 0)
    assert model.optimizer_ == "fista"


@pytest.mark.parametrize("alpha", [0.0, 0.1])
@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
def test_positive_is_exact(easy, alpha, container):
    X, Y = easy
    model = TorchLinearRegressor(positive=True, alpha=alpha, standardize=False)
    model.fit(container(X), Y)
    assert model.optimizer_ == "nnls"
    assert (model.coef_ >= 0).all()
    assert (model.coef_ == 0).any()
    if alpha == 0:
        expected = LinearRegression(positive=True).fit(X, Y)
    else:
        expected = Ridge(alpha=0.5 * alpha * len(X) * 3, positive=True, tol=1e-14).fit(X, Y)
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-7)


def test_proximal_quadratic_meets_its_optimality_conditions():
    rng = np.random.default_rng(0)
    for trial in range(30):
        A = rng.normal(size=(12, 20)) if trial % 2 else rng.normal(size=(30, 8))
        H, q = A.T @ A, A.T @ rng.normal(size=len(A))
        l1, positive = 0.3 * np.abs(q).max(), trial % 3 == 0
        x = proximal_quadratic(H, q, l1, positive)
        gradient = H @ x - q
        slack = 1e-8 * np.abs(q).max()
        np.testing.assert_allclose(gradient[x != 0], -l1 * np.sign(x[x != 0]), atol=slack)
        bound = -gradient if positive else np.abs(gradient)
        assert bound[x == 0].max(initial=0) <= l1 + slack
        assert not positive or (x >= 0).all()


def test_proximal_quadratic_says_when_it_has_not_converged():
    H = np.diag([1.0, 1e-12])
    with pytest.warns(UserWarning, match="Raise alpha"):
        proximal_quadratic(H, np.array([1.0, 1e-7]), 1e-12, max_iter=3)
    assert (proximal_quadratic(np.zeros((2, 2)), np.zeros(2), 0.1) == 0).all()


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
@pytest.mark.parametrize(
    "settings", [{}, {"alpha": 0.1}, {"positive": True}, {"alpha": 0.1, "l1_ratio": 0.9}]
)
def test_partial_fit_equals_one_fit(regression, fit_intercept, container, settings):
    X, y = regression
    w = np.random.default_rng(0).uniform(0.5, 2, len(X))
    parts = TorchLinearRegressor(fit_intercept=fit_intercept, **settings)
    for rows in np.split(np.arange(len(X)), [1, 3, 70, 71, 150]):
        parts.partial_fit(container(X[rows]), y[rows], sample_weight=w[rows])
    whole = TorchLinearRegressor(fit_intercept=fit_intercept, **settings)
    whole.fit(container(X), y, sample_weight=w)
    scale = X.std(axis=0)
    np.testing.assert_allclose(parts.coef_ * scale, whole.coef_ * scale, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(parts.intercept_, whole.intercept_, rtol=1e-10)
    assert parts.loss_ == pytest.approx(whole.loss_, rel=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 399), max_size=12, unique=True).map(sorted),
    mean=st.sampled_from([0.0, 3.0, 1e4]),
    drift=st.sampled_from([0.0, 1.0]),
    common=st.sampled_from([0.0, 1.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_any_split_into_batches_equals_one_fit(cuts, mean, drift, common, seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(400, 4)) + common * rng.normal(size=(400, 1)) + mean
    X += drift * np.linspace(0, 5, 400)[:, None]
    y = X @ [1.0, -2.0, 3.0, 0.5] + rng.normal(size=400)
    w = rng.uniform(0, 3, 400) * (rng.random(400) > 0.1)
    whole = TorchLinearRegressor().fit(X, y, sample_weight=w)
    parts = TorchLinearRegressor()
    for rows in np.split(np.arange(400), cuts):
        if (w[rows] > 0).any():
            parts.partial_fit(X[rows], y[rows], sample_weight=w[rows])
    size = np.abs(whole.coef_).max()
    np.testing.assert_allclose(parts.coef_, whole.coef_, rtol=1e-10, atol=1e-10 * size)
    # what rounding coefficients moves it by
    slack = 1e-10 * (abs(whole.intercept_) + np.abs(X.mean(axis=0)) @ np.abs(whole.coef_))
    assert abs(parts.intercept_ - whole.intercept_) <= slack
    np.testing.assert_allclose(parts.coef_std_err_, whole.coef_std_err_, rtol=1e-9)
    assert parts.loss_ == pytest.approx(whole.loss_, rel=1e-9)


def test_partial_fit_goes_on_after_fit(regression):
    X, y = regression
    model = TorchLinearRegressor().fit(X[:120], y[:120]).partial_fit(X[120:], y[120:])
    whole = TorchLinearRegressor().fit(X, y)
    np.testing.assert_allclose(model.coef_, whole.coef_, rtol=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_gpu_solves_as_the_cpu_does(easy, dtype):
    X, Y = (a.astype(dtype) for a in easy)
    cpu, gpu = TorchLinearRegressor().fit(X, Y), TorchLinearRegressor(device="cuda").fit(X, Y)
    np.testing.assert_allclose(gpu.coef_, cpu.coef_, rtol=1e-9 if dtype == np.float64 else 1e-5)
    backwards = TorchLinearRegressor(device="cuda").fit(X[::-1], Y[::-1])
    np.testing.assert_allclose(backwards.coef_, cpu.coef_, rtol=1e-9 if X.itemsize == 8 else 1e-5)
    trained = TorchLinearRegressor(device="cuda", optimizer="lbfgs", random_state=0).fit(X, Y)
    np.testing.assert_allclose(trained.coef_, cpu.coef_, rtol=1e-3, atol=1e-4)


def test_one_row_and_constant_target():
    model = TorchLinearRegressor().fit([[1.0, 2.0]], [3.0])
    np.testing.assert_array_equal(model.coef_, [0.0, 0.0])
    assert model.intercept_ == 3.0
    assert model.rank_ == 0
    model = TorchLinearRegressor().fit(np.eye(3), np.full(3, 5.0))
    np.testing.assert_allclose(model.predict(np.eye(3)), 5.0)


def test_lstsq_by_name_solves_what_auto_would(easy):
    X, Y = easy
    auto = TorchLinearRegressor(alpha=0.1).fit(X, Y)
    named = TorchLinearRegressor(alpha=0.1, optimizer="lstsq", lr=0.1).fit(X, Y)
    np.testing.assert_array_equal(auto.coef_, named.coef_)


def test_statistics_for_a_device_without_float64_come_from_the_cpu(easy):
    X, Y = easy
    data = TrainingData(np.tile(X, (500, 1)), np.tile(Y, (500, 1)), None)
    for columns in (data, TrainingData(np.hstack([data.X, data.X]), data.y, None)):
        here, there = (
            accumulate.accumulate(
                columns, intercept=True, device=torch.device(name), required=REFINED_ON_ROWS
            )
            for name in ("cpu", "mps")
        )
        np.testing.assert_array_equal(here.stats.factor, there.stats.factor)


@pytest.mark.parametrize("mean", [0.0, 1e6, 1e9])
@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize(
    "settings",
    [{}, {"positive": True}, {"alpha": 1e-9, "l1_ratio": 1.0}, {"alpha": 1e-9}],
    ids=["plain", "positive", "l1", "ridge"],
)
def test_loss_of_targets_whose_mean_dwarfs_the_residuals(mean, batches, settings):
    rng = np.random.default_rng(0)
    X = mean + rng.normal(size=(300, 1))
    y = X[:, 0] + rng.normal(size=300)
    weight = rng.random(300) + 0.5
    model = TorchLinearRegressor(fit_intercept=False, standardize=False, **settings)
    if batches:
        # statistics that a fit leaves for later have to tell the residuals as well
        model.set_params(warm_start=True).fit(X[:150], y[:150], weight[:150])
        model.partial_fit(X[150:], y[150:], weight[150:])
    else:
        model.fit(X, y, weight)
    penalty = settings.get("alpha", 0.0) * float(np.abs(model.coef_).sum())
    expected = np.average((y - X @ model.coef_) ** 2, weights=weight) + penalty
    np.testing.assert_allclose(model.loss_, expected, rtol=1e-4)


MEMORY_OF_TARGETS = """
import resource, sys
import numpy as np
from sktorch_linreg import TorchLinearRegressor
rng = np.random.default_rng(0)
n, k, mean, settings = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), eval(sys.argv[4])
X = mean + rng.normal(size=(n, 20))
Y = X @ rng.normal(size=(20, k))
Y += rng.normal(size=Y.shape)
batches = settings.pop("batches", False)
TorchLinearRegressor(**settings).fit(X[:30, :2], Y[:30, 0])
model = TorchLinearRegressor(**settings)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model.partial_fit(X, Y) if batches else model.fit(X, Y)
beyond = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(beyond * 1024 / Y.nbytes)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("mean", "settings"), [
    (0.0, {}), (1e9, {}), (0.0, {"alpha": 0.1}), (0.0, {"batches": True}),
    (0.0, {"positive": True}), (0.0, {"optimizer": "lbfgs", "max_epochs": 6}),
])  # fmt: skip
def test_memory_is_linear_in_the_number_of_targets(mean, settings):
    arguments = ["1000", "8000", str(mean), repr(settings)]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_OF_TARGETS, *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # the square of the number of targets would be eight times Y
    assert float(done.stdout) < 5.0


def test_the_loss_where_columns_are_nothing():
    X = np.zeros((5, 8))
    X[:, 0] = [1, 2, 4, 3, 7]
    y = np.array([1.0, -1, 2, 0, 3])
    model = TorchLinearRegressor().fit(X, y)
    np.testing.assert_allclose(model.loss_, 1 - model.score(X, y), rtol=1e-12)


def test_statistics_of_a_fit_with_columns_that_were_nothing_go_on():
    rng = np.random.default_rng(0)
    first = np.array([[1.0, 0, 0], [2, 0, 0], [4, 0, 0]]), np.array([1.0, -1, 2])
    then = rng.normal(size=(20, 3)), rng.normal(size=20)
    both = [np.concatenate(pair) for pair in zip(first, then, strict=True)]
    one = TorchLinearRegressor().fit(*both)
    two = TorchLinearRegressor(warm_start=True).fit(*first).partial_fit(*then)
    np.testing.assert_allclose(two.loss_, one.loss_, rtol=1e-10)
    np.testing.assert_allclose(two.coef_std_err_, one.coef_std_err_, rtol=1e-10)


def test_the_rank_of_dependent_rows_under_ridge():
    A = np.array([
        [0.0, 16, -4, -12, 8, -12, -20], [4, -4, -1, 4, -3, 7, 6],
        [-8, -4, 5, 1, 0, -5, 3], [16, 4, -9, 1, -2, 13, -1],
    ])  # fmt: skip
    for alpha in (0.0, 0.1):
        model = TorchLinearRegressor(alpha=alpha, fit_intercept=False)
        assert model.fit(A, A[:, 0]).rank_ == np.linalg.matrix_rank(A) == 2
