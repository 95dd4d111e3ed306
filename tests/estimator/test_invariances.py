"""What must not change the answer: repeated rows, row order, units, duplicated columns."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import Callback

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor

MODELS = {
    "exact": lambda: TorchLinearRegressor(),
    "ridge": lambda: TorchLinearRegressor(alpha=0.1),
    "lasso": lambda: TorchLinearRegressor(alpha=0.05, l1_ratio=1.0),
    "positive": lambda: TorchLinearRegressor(positive=True),
    "sgd": lambda: TorchLinearRegressor(optimizer="sgd", lr=0.1, max_epochs=20, random_state=0),
    "huber": lambda: TorchLinearRegressor(loss="huber", random_state=0),
    "mlp": lambda: TorchMLPRegressor(
        hidden_layer_sizes=(5,), lr=0.01, max_epochs=10, tol=None, random_state=0
    ),
    "held out": lambda: TorchMLPRegressor(
        hidden_layer_sizes=(5,), max_epochs=10, early_stopping=True, random_state=0
    ),
}
# these are exact in float64 up to the conditioning of small random data
SOLVED = ("exact", "ridge", "lasso", "positive", "huber")
QUICK = settings(max_examples=12, deadline=None)


@st.composite
def data(draw, n_features=3):
    """Rows of a random design with a bounded condition number, and a target with noise."""
    seed = draw(st.integers(0, 2**31 - 1))
    n = draw(st.integers(12, 40))
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, n_features)) + rng.normal(size=n_features)
    return X, X @ rng.normal(size=n_features) + rng.normal() + 0.5 * rng.normal(size=n), rng


def fit(name, X, y, sample_weight=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return MODELS[name]().fit(X, y, sample_weight=sample_weight)


@pytest.mark.parametrize("name", list(MODELS))
@QUICK
@given(data(), st.data())
def test_integer_weights_equal_repeated_rows(name, xy, choose):
    X, y, _ = xy
    weight = choose.draw(hnp.arrays(np.int64, len(X), elements=st.integers(0, 3)))
    weight[:6] = 1
    weighted = fit(name, X, y, weight)
    repeated = fit(name, np.repeat(X, weight, axis=0), np.repeat(y, weight))
    if name in SOLVED:
        np.testing.assert_allclose(weighted.predict(X), repeated.predict(X), rtol=1e-6, atol=1e-6)
    else:
        np.testing.assert_array_equal(weighted.predict(X), repeated.predict(X))


@pytest.mark.parametrize("name", list(MODELS))
@QUICK
@given(data())
def test_row_order(name, xy):
    X, y, rng = xy
    order = rng.permutation(len(X))
    first, second = fit(name, X, y), fit(name, X[order], y[order])
    if name in SOLVED:
        np.testing.assert_allclose(first.predict(X), second.predict(X), rtol=1e-7, atol=1e-7)
    else:
        np.testing.assert_array_equal(first.predict(X), second.predict(X))


@pytest.mark.parametrize("name", list(MODELS))
@QUICK
@given(data(), st.integers(-6, 6), st.integers(0, 2))
def test_scaling_a_column(name, xy, power, column):
    X, y, _ = xy
    scaled = X.copy()
    scaled[:, column] *= 10.0**power
    rtol = 1e-5 if name in SOLVED else 1e-4
    np.testing.assert_allclose(
        fit(name, scaled, y).predict(scaled), fit(name, X, y).predict(X), rtol=rtol, atol=rtol
    )


@pytest.mark.parametrize("name", list(MODELS))
@QUICK
@given(data(), st.floats(-1e4, 1e4), st.integers(0, 2))
def test_shifting_a_column_or_the_target(name, xy, shift, column):
    X, y, _ = xy
    shifted = X.copy()
    shifted[:, column] += shift
    base = fit(name, X, y).predict(X)
    rtol = 1e-5 if name in SOLVED else 2e-3
    np.testing.assert_allclose(fit(name, shifted, y).predict(shifted), base, rtol=rtol, atol=rtol)
    moved = fit(name, X, y + shift).predict(X) - shift
    np.testing.assert_allclose(moved, base, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", ["exact", "ridge"])
@QUICK
@given(data(), st.integers(0, 2))
def test_duplicated_columns_share_the_coefficient(name, xy, column):
    X, y, _ = xy
    model = fit(name, np.column_stack([X, X[:, column]]), y)
    assert model.coef_[column] == pytest.approx(model.coef_[3], rel=1e-8, abs=1e-10)
    if name == "exact":
        alone = fit(name, X, y)
        assert 2 * model.coef_[3] == pytest.approx(alone.coef_[column], rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("name", list(MODELS))
@QUICK
@given(data(), st.floats(-1e3, 1e3))
def test_a_constant_column_gets_coefficient_zero(name, xy, value):
    X, y, _ = xy
    model = fit(name, np.column_stack([X, np.full(len(X), value)]), y)
    first = model.coefs_[0][3] if hasattr(model, "coefs_") else model.coef_[3]
    assert np.all(first == 0)


@QUICK
@given(data(), st.floats(1e-3, 1e3))
def test_all_weights_times_a_constant(xy, factor):
    X, y, rng = xy
    w = rng.uniform(0.1, 2, len(X))
    for name in MODELS:
        if name == "held out":
            continue
        one, other = fit(name, X, y, w).predict(X), fit(name, X, y, factor * w).predict(X)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_held_out_rows_are_drawn_one_by_one():
    """With few distinct rows, each stays on both sides in its proportion."""
    X = np.repeat([[0.0], [1.0]], 1000, axis=0)
    model = TorchLinearRegressor(
        lr=0.05, max_epochs=500, early_stopping=True, batch_size=None, random_state=0
    ).fit(X, 3 * X[:, 0])
    assert model.score(X, 3 * X[:, 0]) > 0.98
    same = TorchLinearRegressor(lr=0.05, max_epochs=5, early_stopping=True)
    assert same.fit(np.ones((20, 1)), np.ones(20)).n_iter_ >= 1


@pytest.mark.parametrize("factor", [2, 1000])
def test_whole_weights_do_not_put_every_row_on_both_sides(factor):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 4)), rng.normal(size=60)
    settings = {"hidden_layer_sizes": (50,), "lr": 0.01, "early_stopping": True, "random_state": 0}
    settings["validation_fraction"] = 0.3
    plain = TorchMLPRegressor(**settings).fit(X, y)
    weighted = TorchMLPRegressor(**settings).fit(X, y, sample_weight=np.full(60, factor))
    # targets are pure noise, so a loss that falls would be that of rows that were trained on
    assert weighted.n_iter_ < 25
    assert weighted.best_loss_ > 0.7
    if factor == 2:
        ours, expected = weighted.validation_loss_curve_, plain.validation_loss_curve_
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.parametrize("repeated", [True, False])
def test_a_callback_that_only_listens_changes_nothing(early_stopping, repeated):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 4)), rng.normal(size=60)
    if repeated:
        X, y = np.repeat(X, 3, axis=0), np.repeat(y, 3)
    settings = {"lr": 0.1, "max_epochs": 60, "early_stopping": early_stopping, "random_state": 0}
    plain = TorchLinearRegressor(**settings).fit(X, y)
    watched = TorchLinearRegressor(callbacks=[Callback()], **settings).fit(X, y)
    np.testing.assert_allclose(watched.coef_, plain.coef_, rtol=1e-9)
    assert watched.n_iter_ == plain.n_iter_


def test_many_rows_are_held_out_as_they_come():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 300, 3000)
    X, y = np.eye(300)[codes], rng.normal(size=300)[codes]
    model = TorchLinearRegressor(lr=0.05, max_epochs=300, early_stopping=True, random_state=0)
    assert model.fit(X, y).score(X, y) > 0.95


@pytest.mark.parametrize("ties", [True, False])
def test_groups_of_rows_are_ordered_by_value(ties):
    from sktorch_linreg._data.rows import group_rows

    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(200, 3)), rng.normal(size=(200, 1))
    if ties:
        X[:, 0] = rng.integers(0, 9, 200)
        X[100:], y[100:] = X[:100], y[:100]
    first, group = group_rows(X, y)
    rows = np.hstack([X, y])
    unique, index, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    np.testing.assert_array_equal(first, index)
    np.testing.assert_array_equal(group, inverse.ravel())
    assert len(unique) == (100 if ties else 200)


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("cls", [TorchLinearRegressor, TorchMLPRegressor])
def test_held_out_rows_are_the_same_for_sparse_rows_and_in_other_units(cls, ties):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4)) * (rng.random((60, 4)) < 0.4)
    if ties:
        X = np.sign(X)
    y = np.sign(X @ [1.0, 2.0, 3.0, 0.5]) + X[:, 0]
    model = cls(early_stopping=True, lr=0.05, max_epochs=9, batch_size=None, random_state=0)
    model.set_params(dtype="float64")
    seen = []
    for unit in (1.0, 1024.0, 2.0**-60):
        for rows in (X * unit, sp.csr_array(X * unit), sp.csc_array(X * unit)):
            fitted = clone(model).fit(rows, y * unit)
            assert fitted.validation_loss_curve_
            seen.append([*fitted.validation_loss_curve_, *(fitted.predict(rows)[:9] / unit)])
    np.testing.assert_allclose(seen, seen[:1] * len(seen), rtol=1e-8, atol=1e-8)


def test_dropout_does_not_depend_on_who_listens():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    y = X @ [1.0, 2.0, 3.0]
    weight = rng.integers(1, 3, 60).astype(float)
    settings = {"hidden_layer_sizes": (8,), "dropout": 0.3, "lr": 0.01, "max_epochs": 20}
    model = TorchMLPRegressor(**settings, tol=None, random_state=0, dtype="float64")
    for batch_size in (None, 7):
        model.set_params(batch_size=batch_size)
        alone = clone(model).fit(X, y, weight).predict(X)
        sparse = clone(model).fit(sp.csr_array(X), y, weight).predict(X)
        heard = clone(model).set_params(callbacks=[Callback()]).fit(X, y, weight).predict(X)
        np.testing.assert_allclose(heard, alone, rtol=1e-8)
        np.testing.assert_allclose(sparse, alone, rtol=1e-8)


@pytest.mark.parametrize("cls", [TorchLinearRegressor, TorchMLPRegressor])
def test_held_out_shares_of_equal_rows_with_other_weights(cls):
    X = np.tile(np.arange(6.0), 2)[:, None]
    y, weight = X[:, 0] ** 2, np.repeat([1.0, 3.0], 6)
    model = cls(optimizer="adam", lr=0.01, max_epochs=5, early_stopping=True, random_state=0)
    model.set_params(validation_fraction=0.3, tol=None, dtype="float64", batch_size=None)
    repeated = weight.astype(int)
    curves = [
        clone(model).fit(*rows).validation_loss_curve_
        for rows in (
            (X, y, weight),
            (np.repeat(X, repeated, axis=0), np.repeat(y, repeated)),
            (X[:6], y[:6], np.full(6, 4.0)),
        )
    ]
    np.testing.assert_allclose(curves[1:], [curves[0]] * 2, rtol=1e-9)
