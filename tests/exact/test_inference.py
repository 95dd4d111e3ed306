"""Standard errors of the exact fit, against statsmodels."""

import pickle

import numpy as np
import pytest
import scipy.sparse as sp
import statsmodels.api as sm

from sktorch_linreg import TorchLinearRegressor


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4)) * [1, 1e3, 1e-3, 5] + [0, 1e4, 1.0, -3]
    Y = X @ rng.normal(size=(4, 2)) + rng.normal(size=(60, 2)) * [1, 30]
    return X, Y, rng.uniform(0.2, 4, 60)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
def test_standard_errors_are_those_of_statsmodels(rows, fit_intercept, weighted, container):
    X, Y, w = rows
    w = w if weighted else None
    model = TorchLinearRegressor(fit_intercept=fit_intercept).fit(container(X), Y, sample_weight=w)
    predicted, spread = model.predict(container(X[:7]), return_std=True)
    np.testing.assert_array_equal(predicted, model.predict(container(X[:7])))
    assert model.coef_std_err_.shape == model.coef_.shape
    assert spread.shape == (7, 2)
    A = np.column_stack([np.ones(60), X]) if fit_intercept else X
    for k in range(2):
        theirs = sm.WLS(Y[:, k], A, weights=1.0 if w is None else w).fit()
        np.testing.assert_allclose(model.coef_std_err_[k], theirs.bse[-4:], rtol=1e-8)
        if fit_intercept:
            assert model.intercept_std_err_[k] == pytest.approx(theirs.bse[0], rel=1e-8)
        expected = theirs.get_prediction(A[:7]).se_mean
        np.testing.assert_allclose(spread[:, k], expected, rtol=1e-8)
    if not fit_intercept:
        assert model.intercept_std_err_ == 0.0


def test_shapes_and_dtypes_follow_the_target(rows):
    X, Y, _ = rows
    model = TorchLinearRegressor().fit(X.astype(np.float32), Y[:, 0].astype(np.float32))
    predicted, spread = model.predict(X[:3].astype(np.float32), return_std=True)
    assert model.coef_std_err_.shape == (4,)
    assert np.ndim(model.intercept_std_err_) == 0
    assert predicted.dtype == spread.dtype == model.coef_std_err_.dtype == np.float32
    assert spread.shape == (3,)


def test_rows_of_weight_zero_are_no_rows(rows):
    X, Y, w = rows
    w = w * (np.arange(60) % 3 > 0)
    some = TorchLinearRegressor().fit(X, Y, sample_weight=w)
    kept = TorchLinearRegressor().fit(X[w > 0], Y[w > 0], sample_weight=w[w > 0])
    np.testing.assert_array_equal(some.coef_std_err_, kept.coef_std_err_)


def test_they_survive_pickling_and_batches(rows):
    X, Y, w = rows
    model = TorchLinearRegressor().fit(X, Y, sample_weight=w)
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.coef_std_err_, model.coef_std_err_)
    parts = TorchLinearRegressor()
    for i in range(0, 60, 17):
        parts.partial_fit(X[i : i + 17], Y[i : i + 17], sample_weight=w[i : i + 17])
    np.testing.assert_allclose(parts.coef_std_err_, model.coef_std_err_, rtol=1e-9)
    np.testing.assert_allclose(parts.intercept_std_err_, model.intercept_std_err_, rtol=1e-9)
    # and a second fit forgets those of the first
    before = model.coef_std_err_
    assert not np.allclose(model.fit(X, -2 * Y).coef_std_err_, before)


@pytest.mark.parametrize("how", ["fit", "batches", "one batch"])
@pytest.mark.parametrize("n", [60, 5000])
def test_standard_errors_of_a_fit_with_hardly_any_noise(how, n):
    rng = np.random.default_rng(0)
    X, noise = rng.normal(size=(n, 4)), 1e-7 * rng.normal(size=n)
    model, y = TorchLinearRegressor(), X @ [1.0, 2.0, 3.0, 4.0] + noise
    if how == "fit":
        model.fit(X, y)
    for rows in np.array_split(np.arange(n), 5 if how == "batches" else 1):
        if how != "fit":
            model.partial_fit(X[rows], y[rows])
    centred = X - X.mean(axis=0)
    residual = noise - noise.mean() - centred @ np.linalg.lstsq(centred, noise, rcond=None)[0]
    covariance = np.linalg.inv(centred.T @ centred) * (residual @ residual) / (n - 5)
    # the target itself is rounded to 1e-16
    np.testing.assert_allclose(model.coef_std_err_, np.sqrt(np.diag(covariance)), rtol=1e-7)
    assert model.loss_ == pytest.approx((residual @ residual) / n / np.var(y), rel=1e-7)


@pytest.mark.parametrize(
    ("settings", "change", "reason"),
    [
        ({"alpha": 0.1}, None, "Set alpha=0"),
        ({"positive": True}, None, "positive=False"),
        ({}, "collinear", "rank 4 of 5"),
        ({}, "constant", "rank 4 of 5"),
        ({}, "few", "no residual degrees of freedom .5 rows with non-zero weight, 5 parameters"),
        ({"optimizer": "lbfgs"}, None, "trained by 'lbfgs'"),
    ],
)
def test_where_they_are_not_defined_the_error_says_why(rows, settings, change, reason):
    X, Y, _ = rows
    if change == "collinear":
        X = np.column_stack([X, X[:, 0] + X[:, 3]])
    if change == "constant":
        X = np.column_stack([X, np.full(60, 3.0)])
    if change == "few":
        X, Y = X[:5], Y[:5]
    model = TorchLinearRegressor(**settings).fit(X, Y)
    for name in ("coef_std_err_", "intercept_std_err_"):
        assert not hasattr(model, name)
        with pytest.raises(AttributeError, match=reason):
            getattr(model, name)
    with pytest.raises(ValueError, match=reason):
        model.predict(X, return_std=True)
    assert model.predict(X).shape == Y.shape


def test_singular_values_are_those_of_the_centred_features(rows):
    X, Y, _ = rows
    model = TorchLinearRegressor().fit(X, Y)
    expected = np.linalg.svd(X - X.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(model.singular_, expected, rtol=1e-9)
    assert not hasattr(TorchLinearRegressor(positive=True).fit(X, Y), "singular_")
    assert not hasattr(TorchLinearRegressor(optimizer="adam", max_epochs=1).fit(X, Y), "singular_")
    assert not hasattr(TorchLinearRegressor(), "singular_")


def test_asking_changes_nothing(rows):
    X, Y, _ = rows
    for model in (TorchLinearRegressor().fit(X, Y), TorchLinearRegressor().fit(X[:3], Y[:3])):
        before = dict(vars(model))
        pickled = pickle.dumps(model)
        assert hasattr(model, "singular_")
        hasattr(model, "coef_std_err_")
        assert vars(model).keys() == before.keys()
        assert pickle.dumps(model) == pickled
        np.testing.assert_allclose(pickle.loads(pickled).singular_, model.singular_)


def test_a_display_of_many_columns_works_nothing_out(rows):
    X, Y, _ = rows
    assert "coef_std_err_" in dir(TorchLinearRegressor().fit(X, Y))
    wide = np.random.default_rng(0).normal(size=(400, 300))
    model = TorchLinearRegressor().fit(wide, wide[:, 0])
    assert "coef_std_err_" not in dir(model)
    assert "coef_" in dir(model)
    assert model.coef_std_err_.shape == (300,)


def test_coefficients_set_by_hand_have_no_errors():
    model = TorchLinearRegressor()
    model.coef_, model.intercept_ = np.ones(3), 0.0
    with pytest.raises(AttributeError, match=r"set manually; call fit"):
        _ = model.coef_std_err_
