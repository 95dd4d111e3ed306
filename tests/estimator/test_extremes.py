"""Magnitudes at the ends of what floats hold: the right answer, or an error that says why not."""

import pickle
import warnings
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

from sktorch_linreg import BatchedGridSearchCV, TorchLinearRegressor, TorchMLPRegressor

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(80, 3)) + np.array([0, 2, -1])
COEF = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
Y = Z @ COEF.T + [1.0, -4.0]
EXPONENTS = [-300, -200, -160, -150, -140, 140, 150, 155, 160, 200, 300]
MODELS = {
    "exact": TorchLinearRegressor(),
    "no intercept": TorchLinearRegressor(fit_intercept=False),
    "ridge": TorchLinearRegressor(alpha=0.01),
    "lasso": TorchLinearRegressor(alpha=0.01, l1_ratio=1.0),
    "positive": TorchLinearRegressor(positive=True),
    "adam": TorchLinearRegressor(optimizer="adam", lr=0.1, max_epochs=20, random_state=0),
    "batches": TorchLinearRegressor(batch_size=20, max_epochs=3, random_state=0),
    "lbfgs": TorchLinearRegressor(loss="huber", random_state=0),
    "mlp": TorchMLPRegressor(max_epochs=3, random_state=0, dtype="float64"),
    "stopped": TorchMLPRegressor(
        early_stopping=True, max_epochs=3, random_state=0, dtype="float64"
    ),
}


def fitted(model, X, y, weight=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return clone(model).fit(X, y, weight)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("which", ["X", "one column", "y", "one target", "both"])
def test_units_do_not_matter(name, exponent, which):
    model = MODELS[name]
    # powers of two, so that the scaled numbers are the same to the last bit
    s = np.ldexp(1.0, int(exponent / np.log10(2)))
    x_scale = {"X": s, "both": s, "one column": np.array([1.0, s, 1.0])}.get(which, 1.0)
    y_scale = {"y": s, "both": s, "one target": np.array([1.0, s])}.get(which, 1.0)
    expected = fitted(model, Z, Y).predict(Z)
    found = fitted(model, Z * x_scale, Y * y_scale).predict(Z * x_scale) / y_scale
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_coefficients_are_exact(exponent):
    s = 10.0**exponent
    model = TorchLinearRegressor().fit(Z * [1, s, 1], Y)
    np.testing.assert_allclose(model.coef_, COEF / [1, s, 1], rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(model.intercept_, [1.0, -4.0], rtol=1e-12)
    assert model.rank_ == 3


@pytest.mark.parametrize("exponent", [-200, 200])
@pytest.mark.parametrize("wide", [False, True])
def test_sparse_rows(exponent, wide):
    X = Z * (np.abs(Z) > 0.5)
    if wide:
        X = np.hstack([X, np.zeros((80, 3000))])
    y = X[:, :3] @ COEF.T
    model = TorchLinearRegressor().fit(sp.csr_matrix(X * 10.0**exponent), y)
    np.testing.assert_allclose(model.coef_[:, :3] * 10.0**exponent, COEF, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("s", [2.0**600, 2.0**-600])
def test_more_columns_than_rows(s):
    X = RNG.normal(size=(20, 50))
    y = X @ RNG.normal(size=50)
    expected = TorchLinearRegressor().fit(X, y)
    found = TorchLinearRegressor().fit(X * s, y)
    np.testing.assert_allclose(found.coef_ * s, expected.coef_, rtol=1e-9)


def test_what_statistics_cannot_hold_says_so():
    model = TorchLinearRegressor().fit(Z * 1e200, Y)
    with pytest.raises(AttributeError, match=r"below 1e-140 or above 1e145"):
        _ = model.coef_std_err_
    with pytest.raises(ValueError, match="power of ten"):
        TorchLinearRegressor().partial_fit(Z * 1e200, Y)
    with pytest.raises(ValueError, match="standardize=True"):
        TorchLinearRegressor(alpha=0.1, standardize=False).fit(Z * 1e200, Y)
    with pytest.raises(ValueError, match="underflow float64"):
        TorchLinearRegressor().fit(Z * 1e-300, Y * 1e300)
    with pytest.raises(ValueError, match="float32"):
        TorchLinearRegressor().fit((Z * 1e-37).astype(np.float32), Y * 1e5)
    with pytest.raises(ValueError, match="float32"):
        TorchLinearRegressor().fit((Z * 1e30).astype(np.float32), (Y * 1e-20).astype(np.float32))
    with pytest.raises(ValueError, match="underflow float64"):
        TorchLinearRegressor().fit(Z * 1e200, Y * 1e-150)
    assert TorchLinearRegressor(standardize=False).fit(Z * 1e200, Y).score(Z * 1e200, Y) == 1.0


def test_a_failed_fit_leaves_the_earlier_one():
    model = TorchLinearRegressor().fit(Z, Y)
    before = dict(vars(model))
    with pytest.raises(ValueError, match="underflow float64"):
        model.fit(Z * 1e-300, Y * 1e300)
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[k] is v for k, v in before.items())


@pytest.mark.parametrize("name", ["exact", "ridge", "batches", "mlp"])
@pytest.mark.parametrize("exponent", [-300, 300])
def test_weights(name, exponent):
    weight = RNG.uniform(0.5, 2.0, 80)
    model = MODELS[name]
    expected = fitted(model, Z, Y, weight).predict(Z)
    s = np.ldexp(1.0, int(exponent / np.log10(2)))
    np.testing.assert_allclose(fitted(model, Z, Y, weight * s).predict(Z), expected, rtol=1e-9)
    # rows whose weight is next to nothing are no rows
    tiny = np.where(np.arange(80) < 10, 1e-300, 1e300)
    some = fitted(model, Z[10:], Y[10:]).predict(Z)
    if name != "batches":
        np.testing.assert_allclose(fitted(model, Z, Y, tiny).predict(Z), some, rtol=1e-6)


@pytest.mark.parametrize("name", ["exact", "adam", "batches", "mlp"])
def test_searches(name):
    model = MODELS[name]
    X, y = Z * 2.0**600, Y[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        searches = [
            cls(model, {"alpha": [0.0, 0.1]}, cv=3, return_train_score=True).fit(X, y)
            for cls in (BatchedGridSearchCV, GridSearchCV)
        ]
    ours, theirs = (search.cv_results_ for search in searches)
    for key, values in theirs.items():
        if key.endswith("_score"):
            np.testing.assert_allclose(ours[key], values, rtol=1e-9)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("X", "y"),
    [
        (Z, 1e8 + np.sign(Z[:, 0])),
        (Z + 1e8, Y),
        (Z, np.full(80, 3.25)),
        (Z, np.zeros(80)),
        (Z[:1], Y[:1]),
        (Z[:, :1], Y),
        (Z[:2], Y[:2]),
        (np.zeros((80, 2)), Y),
        (np.full((80, 2), 7.0), Y),
        ((Z * 5e37).astype(np.float32), Y.astype(np.float32)),
        ((Z * 1e-37).astype(np.float32), Y.astype(np.float32)),
        (Z.astype(np.float32), (Y * 5e36).astype(np.float32)),
    ],
    ids=[
        "large target", "large features", "constant target", "zero target", "one row",
        "one column", "two rows", "zeros", "constants", "float32 large", "float32 small",
        "float32 targets",
    ],
)  # fmt: skip
def test_hard_rows(name, X, y):
    model = MODELS[name]
    if name == "stopped" and len(X) < 2:
        with pytest.raises(ValueError, match="leaves no row"):
            fitted(model, X, y)
        return
    found = fitted(model, X, y)
    prediction = found.predict(X)
    assert np.isfinite(prediction).all()
    assert prediction.dtype == X.dtype
    if name == "exact":
        # against numpy's least squares on columns of about one
        rows, target = np.asarray(X, dtype=np.float64), np.asarray(y, dtype=np.float64)
        rows = rows - rows.mean(axis=0)
        design = np.c_[rows / max(np.abs(rows).max(), 1e-300), np.ones(len(rows))]
        scale = np.abs(target).max() + 1e-300
        best = design @ np.linalg.lstsq(design, target / scale, rcond=1e-12)[0]
        least = np.sum((best - target / scale) ** 2)
        tolerance = 1e-5 if X.dtype == np.float32 else 1e-9
        assert np.sum((prediction / scale - target / scale) ** 2) <= least + tolerance
    elif name != "no intercept" and y.ndim == 1 and np.ptp(y) == 0:
        np.testing.assert_allclose(prediction, y, rtol=1e-14)


def test_all_weights_zero():
    for model in MODELS.values():
        with pytest.raises(ValueError, match=r"[Ww]eight"):
            fitted(model, Z, Y, np.zeros(80))


@pytest.mark.parametrize("cls", [TorchLinearRegressor, TorchMLPRegressor])
@pytest.mark.parametrize("params", [{}, {"optimizer": "adam"}, {"loss": "poisson", "lr": 0.01}])
def test_batches_that_are_too_far_away(cls, params):
    model = cls(random_state=0, **params).partial_fit(Z, np.abs(Y[:, 0]))
    before = model.predict(Z)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for X, y in [
            (Z[:1] * [1e160, 1, 1], np.abs(Y[:1, 0])),
            (Z[:1], np.abs(Y[:1, 0]) * 1e200),
            (Z * 1e200, np.abs(Y[:, 0])),
        ]:
            try:
                model.partial_fit(X, y)
            except ValueError as error:
                if "1e-140" not in str(error) and "finite" not in str(error):
                    raise
            else:
                # counts are not scaled by their squares
                assert model.loss == "poisson"
                model = cls(random_state=0, **params).partial_fit(Z, np.abs(Y[:, 0]))
            np.testing.assert_array_equal(model.predict(Z), before)


def test_predictions_in_single_precision():
    network = TorchMLPRegressor(max_epochs=3, random_state=0).fit(Z, Y[:, 0])
    far = np.full((1, 3), 3e38)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        np.testing.assert_allclose(
            network.predict(far.astype(np.float32)), network.predict(far), rtol=1e-5
        )
        for x, t in [(1e-30, 1e20), (1e30, 1e-20), (1.0, 1.0)]:
            model = TorchLinearRegressor().fit(Z * x, Y * t)
            rows = (Z * x).astype(np.float32)
            np.testing.assert_allclose(model.predict(rows) / t, Y, rtol=1e-4, atol=1e-4)
        counts = TorchLinearRegressor(loss="poisson").fit(Z, np.abs(Y))
        assert np.isinf(counts.predict(1e9 * np.abs(Z))).any()


@pytest.mark.parametrize("name", ["exact", "no intercept", "ridge", "lasso", "positive", "adam"])
@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
@pytest.mark.parametrize("exponent", [-1000, -330, -120, 120, 330, 1000])
def test_only_ratios_of_weights_matter_beside_small_columns(name, container, exponent):
    weight = np.random.default_rng(1).random(len(Z)) + 0.1
    X = Z * [1e-130, 1.0, 1e100]
    expected = fitted(MODELS[name], container(X), Y, weight)
    found = fitted(MODELS[name], container(X), Y, np.ldexp(weight, exponent))
    scale = np.abs(COEF).max() * np.array([1e130, 1.0, 1e-100])
    np.testing.assert_allclose(found.coef_ / scale, expected.coef_ / scale, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
def test_a_column_that_only_rows_of_small_weight_have(container):
    # its squares, times these weights, are far below what a float64 holds
    X = np.random.default_rng(0).normal(size=(60, 3))
    X[:40, 2] = 0.0
    y = X @ [1.0, 2.0, 3.0] + 1.0
    weight = np.where(np.arange(60) < 40, 1.0, 1e-20)
    model = TorchLinearRegressor().fit(container(X * [1, 1, 1e-135]), y, weight)
    np.testing.assert_allclose(model.coef_, [1.0, 2.0, 3e135], rtol=1e-7)


@pytest.mark.parametrize("weights", [(1e-120, 4e-120), (1e99, 3e101), (1e-5, 1e250), (1.0, 4.0)])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_weights_of_batches_compare(weights, alpha):
    rng = np.random.default_rng(0)
    X, weight = rng.normal(size=(60, 2)), np.repeat(weights, 30)
    y = X @ [1.0, 2.0] + rng.normal(size=60) + np.repeat([0.0, 3.0], 30)
    one = TorchLinearRegressor(alpha=alpha).fit(X, y, weight)
    for parts in ([0, 30, 60], [0, 10, 30, 45, 60], [0, 20, 60]):
        batches = TorchLinearRegressor(alpha=alpha)
        for start, stop in pairwise(parts):
            batches.partial_fit(X[start:stop], y[start:stop], weight[start:stop])
        np.testing.assert_allclose(batches.coef_, one.coef_, rtol=1e-10)
        np.testing.assert_allclose(batches.intercept_, one.intercept_, rtol=1e-10)
        np.testing.assert_allclose(batches.loss_, one.loss_, rtol=1e-10)
        if not alpha:
            np.testing.assert_allclose(batches.coef_std_err_, one.coef_std_err_, rtol=1e-10)
        copy = pickle.loads(pickle.dumps(batches)).partial_fit(X[:9], y[:9], weight[:9])
        batches.partial_fit(X[:9], y[:9], weight[:9])
        np.testing.assert_array_equal(copy.coef_, batches.coef_)


def test_weights_of_batches_compare_where_training_scales_by_them():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2)) + np.repeat([0.0, 5.0], 30)[:, None]
    y = X @ [1.0, 2.0]
    model = TorchMLPRegressor(hidden_layer_sizes=(4,), random_state=0)
    for part, weight in ((slice(30), 1e-120), (slice(30, 60), 3e-120)):
        model.partial_fit(X[part], y[part], np.full(30, weight))
    mean = np.average(X, axis=0, weights=np.repeat([1.0, 3.0], 30))
    np.testing.assert_allclose(model._scaling["x_offset"], mean, rtol=1e-12)


def test_singular_values_are_those_of_the_weighted_rows():
    for weight in (1e-80, 1.0, 1e80):
        model = TorchLinearRegressor().fit(Z, Y, np.full(len(Z), weight))
        expected = np.linalg.svd((Z - Z.mean(axis=0)) * np.sqrt(weight), compute_uv=False)
        np.testing.assert_allclose(model.singular_, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("x", "y"), [(1e126, 1e-89), (1e110, 1e-95), (1e-120, 1e80), (1.0, 1e-140)]
)
@pytest.mark.parametrize("alpha", [0.0, 0.01])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_few_rows_of_far_scales(x, y, alpha, fit_intercept):
    rng = np.random.default_rng(0)
    X, target = rng.normal(size=(3, 5)), rng.normal(size=(3, 2))
    model = TorchLinearRegressor(alpha=alpha, fit_intercept=fit_intercept)
    expected = clone(model).fit(X, target).coef_
    np.testing.assert_allclose(model.fit(X * x, target * y).coef_ / y * x, expected, rtol=1e-10)


@pytest.mark.parametrize("y", [np.full(20, 1e-60), np.full(20, -1e-60), np.arange(20) * 1e-60])
@pytest.mark.parametrize("model", [TorchLinearRegressor(), TorchMLPRegressor(max_epochs=2)])
@pytest.mark.parametrize("beside", [False, True])
def test_targets_that_predictions_in_float32_do_not_hold(y, model, beside):
    X = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    targets = np.column_stack([np.ones(20), y]) if beside else y
    with pytest.raises(ValueError, match=r"out of range for float32.*Pass X as float64"):
        clone(model).fit(X, targets)
    exact = TorchLinearRegressor().fit(X.astype(np.float64), targets)
    assert np.any(exact.predict(X.astype(np.float64))[..., -1] != 0)


def test_float32_coefficients_are_judged_target_by_target():
    X = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    y = np.column_stack([1e30 * X[:, 0], 1e-35 * X[:, 1]]).astype(np.float64)
    # beside a target of 1e30 the other is not rounding
    with pytest.raises(ValueError, match="The coefficients overflow or underflow float32"):
        TorchLinearRegressor().fit(X * np.float32(1e8), y)


@pytest.mark.parametrize("ratio", [1e10, 1e30, 1e100])
@pytest.mark.parametrize("batches", [False, True])
def test_one_row_whose_weight_is_far_above_all_others(ratio, batches):
    rng = np.random.default_rng(3)
    X, y, weight = rng.normal(size=(20, 2)), rng.normal(size=20), np.ones(20)
    X[3], weight[3] = 0.0, ratio
    # all lines go through that row, but for rounding
    rest = np.delete(np.arange(20), 3)
    expected = np.linalg.lstsq(X[rest], y[rest] - y[3], rcond=None)[0]
    model = TorchLinearRegressor()
    model = (model.partial_fit if batches else model.fit)(X, y, weight)
    np.testing.assert_allclose(model.coef_, expected, rtol=1e-7)


@pytest.mark.parametrize("s", [1.0, 1e-6, 1e-9, 1e-12, 1e-18, 1e-60, 1e60])
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_least_norm_beside_a_column_of_another_unit(s, fit_intercept):
    one = np.array([0.0, 1, 0, 1, 1, 0, 0, 1])
    other = np.array([1.0, 3, -2, 0, 4, 1, -1, 2])
    y = np.array([2.0, 1, 0, 3, 1, -1, 2, 2])
    twin = 1 - one if fit_intercept else one
    model = TorchLinearRegressor(fit_intercept=fit_intercept)
    expected = clone(model).fit(np.column_stack([one, twin, other]), y)
    found = model.fit(np.column_stack([one, twin, other * s]), y)
    np.testing.assert_allclose(found.coef_ * [1, 1, s], expected.coef_, rtol=1e-9)
    np.testing.assert_allclose(found.loss_, expected.loss_, rtol=1e-9)
    assert found.rank_ == 2


def test_few_dependent_rows_of_far_units_predict_what_they_can():
    X = np.array([[2.0**67, 0, 2.0**-68, 2.0**65], [2.0**67, 2.0**-15, 2.0**-68, 2.0**65]])
    model = TorchLinearRegressor(fit_intercept=False).fit(X, [-3.0, 1.0])
    np.testing.assert_allclose(model.predict(X), [-3.0, 1.0], rtol=1e-9)


@pytest.mark.parametrize("y_unit", [1.0, 1e-30, 1e-60, 1e60])
@pytest.mark.parametrize("x_unit", [1.0, 1e-60, 1e-130, 1e100])
def test_wide_sparse_rows_of_any_unit(x_unit, y_unit):
    X = sp.random(40, 2010, density=0.05, format="csr", random_state=1)
    y = np.random.default_rng(0).normal(size=40)
    expected = TorchLinearRegressor().fit(X, y).coef_
    found = TorchLinearRegressor().fit(X * x_unit, y * y_unit).coef_ / y_unit * x_unit
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())


def test_the_loss_of_targets_in_far_units():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(8, 2)), rng.normal(size=(8, 2)) * [1e-100, 1e100]
    model = TorchLinearRegressor(standardize=False)
    expected = clone(model).fit(X, Y).loss_
    np.testing.assert_allclose(clone(model).fit(X * 1e-200, Y).loss_, expected, rtol=1e-9)
    lasso = TorchLinearRegressor(standardize=False, alpha=0.1, l1_ratio=1.0)
    assert np.isfinite(lasso.fit(X * 1e-60, Y[:, 1]).loss_)
