"""Dates, tensors that numpy cannot view, constant targets, and numbers at the limits."""

import datetime
import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import FitFailedWarning
from sklearn.linear_model import LinearRegression, RANSACRegressor
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPRegressor

from sktorch_linreg import (
    BatchedGridSearchCV,
    TorchLinearRegressor,
    TorchMLPRegressor,
    load_model,
    save_model,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 2))
y = X @ [1.0, 2.0] + 0.1 * RNG.normal(size=60)
DAYS = pd.date_range("2024-01-01", periods=60)
MODELS = [
    TorchLinearRegressor(),
    TorchLinearRegressor(optimizer="adam", max_epochs=3, random_state=0),
    TorchMLPRegressor(max_epochs=3, tol=None, random_state=0),
]
MISSING = DAYS.to_series().where(np.arange(60) != 3, pd.NaT).to_numpy()
# rows with something that is no number in the column called "when", or at place 1
DATES = {
    "frame": pd.DataFrame({"a": y, "when": DAYS}),
    "missing": pd.DataFrame({"a": y, "when": MISSING}),
    "time zone": pd.DataFrame({"a": y, "when": DAYS.tz_localize("UTC")}),
    "durations": pd.DataFrame({"a": y, "when": DAYS - DAYS[0]}),
    "periods": pd.DataFrame({"a": y, "when": DAYS.to_period("D")}),
    "objects": pd.DataFrame({"a": y, "when": DAYS.astype(object)}),
    "one NaT": pd.DataFrame({"a": y, "when": [pd.NaT, *y[1:]]}, dtype=object),
    "polars": pl.DataFrame({"a": y, "when": DAYS.to_numpy()}),
    "days of polars": pl.DataFrame({"a": y, "when": [d.date() for d in DAYS]}),
    "pyarrow": pl.DataFrame({"a": y, "when": DAYS.to_numpy()}).to_arrow(),
    "array of objects": np.array([y, DAYS.to_pydatetime()], dtype=object).T,
    "lists": [[float(v), d.date()] for v, d in zip(y, DAYS, strict=True)],
}


@pytest.mark.parametrize("kind", DATES)
@pytest.mark.parametrize("model", MODELS, ids=["exact", "adam", "network"])
def test_dates_are_refused(kind, model):
    name = r"'when'" if hasattr(DATES[kind], "columns") else "1"
    message = rf"X holds dates or durations in the column {name}, which are not numbers"
    with pytest.raises(ValueError, match=message):
        clone(model).fit(DATES[kind], y)
    with pytest.raises(ValueError, match=message):
        clone(model).fit(X, y).predict(DATES[kind])


@pytest.mark.parametrize("model", MODELS, ids=["exact", "adam", "network"])
def test_arrays_of_dates(model):
    for values in (DAYS.to_numpy(), MISSING, (DAYS - DAYS[0]).to_numpy()):
        with pytest.raises(ValueError, match="X holds dates or durations in the columns 0, 1"):
            clone(model).fit(np.c_[values, values], y)
        for targets in (values, pd.Series(values), pd.Series(values, name="when"), list(DAYS)):
            with pytest.raises(ValueError, match="y holds dates or durations"):
                clone(model).fit(X, targets)


def test_what_is_no_date():
    frame = pd.DataFrame({"date": X[:, 0], "time": X[:, 1], "duration": np.arange(60)})
    expected = LinearRegression().fit(frame, y).predict(frame)
    assert_allclose(TorchLinearRegressor().fit(frame, y).predict(frame), expected)
    polars = pl.from_pandas(frame)
    assert_allclose(TorchLinearRegressor().fit(polars, y).predict(polars), expected)
    objects = frame.astype(object)
    assert_allclose(TorchLinearRegressor().fit(objects, y).predict(objects), expected)
    assert isinstance(datetime.date.today(), datetime.date)


def test_tensors_that_numpy_cannot_view():
    expected = TorchLinearRegressor().fit(X, y)
    negative = torch.complex(torch.zeros(60, 2, dtype=torch.float64), torch.tensor(-X)).conj().imag
    assert negative.is_neg()
    targets = torch.complex(torch.zeros(60, dtype=torch.float64), torch.tensor(-y)).conj().imag
    found = TorchLinearRegressor().fit(negative, targets)
    assert_array_equal(found.coef_, expected.coef_)
    assert_array_equal(found.predict(negative), expected.predict(X))
    assert found.score(negative, targets) == expected.score(X, y)
    quantized = torch.quantize_per_tensor(
        torch.tensor(X, dtype=torch.float32), 0.01, 0, torch.qint8
    )
    assert_allclose(TorchLinearRegressor().fit(quantized, y).coef_, [1, 2], atol=0.2)


@pytest.mark.parametrize(
    "rows",
    [
        torch.empty(60, 2, device="meta"),
        torch.tensor(X).to_sparse(),
        torch.tensor(X).to_sparse_csr(),
        torch.tensor(X) * 1j,
        torch.zeros(60, 2, dtype=torch.float8_e5m2),
    ],
    ids=["meta", "sparse", "csr", "complex", "float8"],
)
def test_tensors_that_are_no_arrays(rows):
    for model in MODELS:
        with pytest.raises((ValueError, TypeError)):
            clone(model).fit(rows, y)
        with pytest.raises((ValueError, TypeError)):
            clone(model).fit(X, y).predict(rows)
        with pytest.raises((ValueError, TypeError)):
            clone(model).fit(X, rows)


# -- constant targets -----------------------------------------------------------------------------


@pytest.mark.parametrize("constant", [0.0, 1e-6, 1.0, -12345.678, 1e12])
@pytest.mark.parametrize(
    "params",
    [{}, {"loss": "huber"}, {"optimizer": "lbfgs"}, {"early_stopping": True}, {"dropout": 0.3}],
    ids=str,
)
def test_a_constant_target_is_predicted_exactly(constant, params, tmp_path):
    model = TorchMLPRegressor(max_epochs=8, tol=None, random_state=0, **params)
    model.fit(X, np.full(60, constant))
    assert_array_equal(model.predict(X), np.full(60, constant))
    if "loss" not in params:
        both = clone(model).fit(X, np.c_[y, np.full(60, constant)])
        assert_array_equal(both.predict(X)[:, 1], np.full(60, constant))
        assert np.corrcoef(both.predict(X)[:, 0], y)[0, 1] > 0.1
    for again in (pickle.loads(pickle.dumps(model)), _through_a_file(model, tmp_path)):
        assert_array_equal(again.predict(X), np.full(60, constant))
    linear = {k: v for k, v in params.items() if k != "dropout"}
    linear = TorchLinearRegressor(max_epochs=8, tol=None, random_state=0, **linear)
    linear.fit(X, np.full(60, constant))
    assert_allclose(linear.predict(X), np.full(60, constant), rtol=1e-15)


def _through_a_file(model, folder):
    save_model(model, folder / "model")
    return load_model(folder / "model")


def test_a_target_that_is_constant_at_first():
    for model in (
        TorchMLPRegressor(random_state=0, lr=0.01),
        TorchLinearRegressor(optimizer="adam", lr=0.05, random_state=0),
    ):
        model.partial_fit(X, np.zeros(60))
        assert_array_equal(model.predict(X), np.zeros(60))
        for _ in range(300):
            model.partial_fit(X, y)
        assert model.score(X, y) > 0.8
        warm = clone(model).set_params(warm_start=True, max_epochs=300, tol=None)
        assert warm.fit(X, np.ones(60)).fit(X, y).score(X, y) > 0.9


def test_a_search_over_constant_targets():
    targets = np.c_[y, np.full(60, 3.0)]
    for model in MODELS[1:]:
        ours, theirs = (
            cls(model, {"alpha": [0.0, 0.1]}, cv=3, scoring="neg_mean_squared_error")
            .fit(X, targets)
            .cv_results_["mean_test_score"]
            for cls in (BatchedGridSearchCV, GridSearchCV)
        )
        assert_allclose(ours, theirs, rtol=1e-5)


# -- numbers at the limits ------------------------------------------------------------------------


def test_a_penalty_that_the_precision_does_not_hold():
    for model in (MODELS[2], clone(MODELS[1]).set_params(dtype="float32")):
        for params in ({"alpha": 1e39}, {"alpha": 1e39, "l1_ratio": 1.0}):
            with pytest.raises(ValueError, match=r"overflows float32.*dtype='float64'"):
                clone(model).set_params(**params).fit(X, y)
    double = clone(MODELS[2]).set_params(alpha=1e39, dtype="float64", lr=1e-45)
    assert np.isfinite(double.fit(X, y).predict(X)).all()
    found = BatchedGridSearchCV(MODELS[2], {"alpha": [0.1, 1e39]}, refit=False)
    with pytest.warns(FitFailedWarning, match="alpha=1e"):
        scores = found.fit(X, y).cv_results_["mean_test_score"]
    assert np.isfinite(scores).tolist() == [True, False]


@pytest.mark.parametrize("batched", [False, True])
def test_patience_without_an_end(batched, tmp_path):
    settings = {"tol": 1e9, "n_iter_no_change": np.inf}
    assert MLPRegressor(max_iter=30, **settings).fit(X, y).n_iter_ == 30
    model = TorchMLPRegressor(max_epochs=30, random_state=0, **settings)
    if batched:
        search = BatchedGridSearchCV(model, {"n_iter_no_change": [np.inf, 2], "tol": [1e9]}, cv=3)
        scores = search.fit(X, y).cv_results_["mean_test_score"]
        other = GridSearchCV(model, {"n_iter_no_change": [np.inf, 2]}, cv=3).fit(X, y)
        assert_allclose(scores, other.cv_results_["mean_test_score"], rtol=1e-4)
        return
    assert model.fit(X, y).n_iter_ == 30
    assert _through_a_file(model, tmp_path).get_params()["n_iter_no_change"] == np.inf
    for wrong in (-np.inf, np.nan, 2.5, 0):
        with pytest.raises(ValueError, match="n_iter_no_change"):
            clone(model).set_params(n_iter_no_change=wrong).fit(X, y)


def test_an_exact_fit_draws_nothing():
    for params in ({}, {"alpha": 0.1}, {"positive": True}, {"alpha": 0.1, "l1_ratio": 0.5}):
        state = np.random.RandomState(0)
        model = TorchLinearRegressor(random_state=state, **params).fit(X, y)
        if not params:
            model.partial_fit(X, y)
        assert state.randint(2**31 - 1) == np.random.RandomState(0).randint(2**31 - 1)
    # which hands one state on from fit to fit
    ours, theirs = (
        RANSACRegressor(e, random_state=0, min_samples=10).fit(X, y)
        for e in (TorchLinearRegressor(), LinearRegression())
    )
    assert_array_equal(ours.inlier_mask_, theirs.inlier_mask_)
    assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-9)


def test_a_stream_does_not_grow():
    model = TorchLinearRegressor()
    for n in range(1, 201):
        model.partial_fit(X[:4], y[:4])
        if n == 2:
            size = len(pickle.dumps(model))
    assert len(pickle.dumps(model)) <= size + 16
    assert len(model.history_) == len(model.loss_curve_) == model.n_iter_ == 1
    warm = TorchLinearRegressor(warm_start=True)
    for _ in range(5):
        warm.fit(X, y)
    assert len(warm.history_) == len(warm.loss_curve_) == 1
