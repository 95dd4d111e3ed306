"""Magnitudes at the ends of what floats hold: the right answer, or an error that says why not."""

import warnings

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
    with pytest.raises(AttributeError, match=r"beyond 1e-140 or 1e145"):
        _ = model.coef_std_err_
    with pytest.raises(ValueError, match="power of ten"):
        TorchLinearRegressor().partial_fit(Z * 1e200, Y)
    with pytest.raises(ValueError, match="standardize=True"):
        TorchLinearRegressor(alpha=0.1, standardize=False).fit(Z * 1e200, Y)
    with pytest.raises(ValueError, match="no float64 holds"):
        TorchLinearRegressor().fit(Z * 1e-300, Y * 1e300)
    with pytest.raises(ValueError, match="float32"):
        TorchLinearRegressor().fit((Z * 1e-37).astype(np.float32), Y * 1e5)
    with pytest.raises(ValueError, match="float32"):
        TorchLinearRegressor().fit((Z * 1e30).astype(np.float32), (Y * 1e-20).astype(np.float32))
    with pytest.raises(ValueError, match="no float64 holds"):
        TorchLinearRegressor().fit(Z * 1e200, Y * 1e-150)
    assert TorchLinearRegressor(standardize=False).fit(Z * 1e200, Y).score(Z * 1e200, Y) == 1.0


def test_a_failed_fit_leaves_the_earlier_one():
    model = TorchLinearRegressor().fit(Z, Y)
    before = dict(vars(model))
    with pytest.raises(ValueError, match="no float64 holds"):
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
