"""A validation set of the user's: X_val, y_val and sample_weight_val of fit."""

import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sktorch_linreg import (
    BatchedGridSearchCV,
    CheckpointMismatchError,
    TorchLinearRegressor,
    TorchMLPRegressor,
)

RNG = np.random.default_rng(0)
X, X_val = RNG.normal(size=(90, 4)), RNG.normal(size=(30, 4))
COEF = RNG.normal(size=(4, 2))
Y, Y_val = (rows @ COEF + 0.5 * RNG.normal(size=(len(rows), 2)) for rows in (X, X_val))
W_val = RNG.uniform(0.0, 3.0, 30).round()
LINEAR = TorchLinearRegressor(
    optimizer="adam", lr=0.05, max_epochs=60, early_stopping=True, random_state=0
)
MLP = TorchMLPRegressor(
    hidden_layer_sizes=(6,), lr=0.02, max_epochs=60, early_stopping=True, random_state=0,
    dtype="float64", tol=None,
)  # fmt: skip
MODELS = {"linear": LINEAR, "mlp": MLP}


@pytest.mark.parametrize("batch_size", [None, 32])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("targets", [0, slice(None)], ids=["one", "two"])
@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_that_of_these_rows(name, targets, weighted, batch_size):
    y, y_val = Y[:, targets], Y_val[:, targets]
    model = clone(MODELS[name]).set_params(batch_size=batch_size)
    weight = W_val if weighted else None
    model.fit(X, y, X_val=X_val, y_val=y_val, sample_weight_val=weight)
    squares = (model.predict(X_val) - y_val) ** 2 / Y[:, targets].var(axis=0)
    expected = np.average(squares.reshape(30, -1).mean(axis=1), weights=weight)
    # the best epoch is the model
    assert model.best_loss_ == min(model.validation_loss_curve_)
    assert model.best_loss_ == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_training_is_that_of_one_epoch_after_another(name):
    """No row of X is held out: epochs by partial_fit, and the best of them, are the oracle."""
    settings = {"standardize": False, "batch_size": 16, "tol": None, "n_iter_no_change": 1000}
    model = clone(MODELS[name]).set_params(**settings).fit(X, Y, X_val=X_val, y_val=Y_val)
    by_hand = clone(MODELS[name]).set_params(early_stopping=False, **settings)
    losses, best = [], None
    for _ in range(60):
        predicted = by_hand.partial_fit(X, Y).predict(X_val)
        losses.append(float(np.mean((predicted - Y_val) ** 2)))
        if losses[-1] == min(losses):
            best = predicted
    np.testing.assert_allclose(model.validation_loss_curve_, losses, rtol=1e-9)
    np.testing.assert_allclose(model.predict(X_val), best, rtol=1e-9)


def test_weights_of_zero_leave_rows_out():
    kept = W_val > 0
    model = clone(MLP).fit(X, Y, X_val=X_val, y_val=Y_val, sample_weight_val=W_val)
    other = clone(MLP).fit(
        X, Y, X_val=X_val[kept], y_val=Y_val[kept], sample_weight_val=W_val[kept]
    )
    np.testing.assert_array_equal(model.predict(X), other.predict(X))


@pytest.mark.parametrize("optimizer", ["sgd", "lbfgs"])
@pytest.mark.parametrize("loss", ["huber", "absolute_error", "poisson"])
def test_other_losses_and_optimizers(loss, optimizer):
    y, y_val = np.exp(Y[:, 0] / 3), np.exp(Y_val[:, 0] / 3)
    model = TorchLinearRegressor(
        loss=loss, optimizer=optimizer, max_epochs=30, early_stopping=True, random_state=0
    ).fit(X, y, X_val=X_val, y_val=y_val)
    assert len(model.validation_loss_curve_) == model.n_iter_
    assert model.best_loss_ == min(model.validation_loss_curve_)


@pytest.mark.parametrize("kinds", ["sparse and dense", "dense and sparse", "both sparse", "frames"])
def test_rows_of_any_kind(kinds):
    expected = clone(LINEAR).set_params(batch_size=16).fit(X, Y, X_val=X_val, y_val=Y_val)
    first, second = X, X_val
    if kinds == "frames":
        first, second = (pd.DataFrame(a, columns=list("abcd")) for a in (X, X_val))
    else:
        if kinds in ("sparse and dense", "both sparse"):
            first = sp.csr_array(X)
        if kinds in ("dense and sparse", "both sparse"):
            second = sp.csr_array(X_val)
    model = clone(expected).fit(first, Y, X_val=second, y_val=Y_val)
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-6)
    np.testing.assert_allclose(
        model.validation_loss_curve_, expected.validation_loss_curve_, rtol=1e-6
    )


def test_columns_of_extreme_scales():
    plain = clone(LINEAR).fit(X, Y[:, 0], X_val=X_val, y_val=Y_val[:, 0])
    scale = np.array([2.0**700, 1.0, 2.0**-700, 1.0])
    model = clone(LINEAR).fit(X * scale, Y[:, 0], X_val=X_val * scale, y_val=Y_val[:, 0])
    np.testing.assert_allclose(model.validation_loss_curve_, plain.validation_loss_curve_)
    np.testing.assert_allclose(model.coef_ * scale, plain.coef_)


def test_in_a_pipeline_it_is_transformed():
    pipe = Pipeline([("scale", StandardScaler()), ("model", clone(MLP))], transform_input=["X_val"])
    with config_context(enable_metadata_routing=True):
        pipe["model"].set_fit_request(X_val=True, y_val=True)
        found = pipe.fit(1e3 * X, Y, X_val=1e3 * X_val, y_val=Y_val).predict(1e3 * X)
    scaler = StandardScaler().fit(1e3 * X)
    rows, held_out = scaler.transform(1e3 * X), scaler.transform(1e3 * X_val)
    expected = clone(MLP).fit(rows, Y, X_val=held_out, y_val=Y_val).predict(rows)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_all_candidates_of_a_search_share_it(name, weighted, capsys):
    params = {"X_val": X_val, "y_val": Y_val}
    if weighted:
        params["sample_weight_val"] = W_val
    grid = {"lr": [0.003, 0.03], "random_state": [0, 1], "batch_size": [20, None]}
    ours = BatchedGridSearchCV(MODELS[name], grid, cv=3, verbose=1).fit(X, Y, **params)
    assert "24 of 24 fits run in" in capsys.readouterr().out
    theirs = GridSearchCV(MODELS[name], grid, cv=3).fit(X, Y, **params)
    for key in ("mean_test_score", "std_test_score"):
        np.testing.assert_allclose(ours.cv_results_[key], theirs.cv_results_[key], rtol=1e-9)
    assert ours.best_estimator_.best_loss_ == theirs.best_estimator_.best_loss_


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_a_search_does_not_split_a_set_as_long_as_the_rows(optimizer):
    """One of these is stacked, the other fitted alone; scikit-learn itself would split it."""
    rng = np.random.default_rng(1)
    long = rng.normal(size=(len(X), 4))
    target = long @ COEF
    base = clone(MLP).set_params(optimizer=optimizer, max_epochs=8)
    search = BatchedGridSearchCV(base, {"lr": [0.01, 0.1]}, cv=3, refit=False)
    found = search.fit(X, Y, X_val=long, y_val=target).cv_results_["split1_test_score"]
    train = np.r_[0:30, 60:90]
    expected = [
        clone(base).set_params(lr=lr).fit(X[train], Y[train], X_val=long, y_val=target)
        for lr in (0.01, 0.1)
    ]
    scores = [model.score(X[30:60], Y[30:60]) for model in expected]
    np.testing.assert_allclose(found, scores, rtol=1e-9)
    with pytest.raises(ValueError, match="has as many rows as X"):
        clone(search).set_params(estimator=make_pipeline(base), param_grid={}).fit(
            X, Y, torchmlpregressor__X_val=long, torchmlpregressor__y_val=target
        )


def test_checkpoints_know_it(tmp_path):
    model = clone(MLP).set_params(checkpoint_dir=tmp_path, checkpoint_every=5, max_epochs=10)
    model.fit(X, Y, X_val=X_val, y_val=Y_val)
    again = clone(model).fit(X, Y, X_val=X_val.copy(), y_val=Y_val)
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    with pytest.raises(CheckpointMismatchError):
        clone(model).fit(X, Y, X_val=X_val + 1.0, y_val=Y_val)


BAD = [
    ({"X_val": X_val}, "y_val is missing"),
    ({"y_val": Y_val}, "X_val is missing"),
    ({"sample_weight_val": W_val}, "X_val is missing"),
    ({"X_val": X_val[:, :2], "y_val": Y_val}, "X has 2 features.*transform_input"),
    ({"X_val": X_val, "y_val": Y_val[:-1]}, "is invalid: Found input variables"),
    ({"X_val": X_val, "y_val": Y_val[:, 0]}, "y_val has 1 dimension"),
    ({"X_val": X_val, "y_val": Y_val[:, [0, 1, 1]]}, "3 target"),
    ({"X_val": np.where(X_val > 1, np.inf, X_val), "y_val": Y_val}, "invalid: Input X contains"),
    ({"X_val": X_val, "y_val": Y_val * np.nan}, "is invalid: Input y contains NaN"),
    ({"X_val": X_val, "y_val": Y_val, "sample_weight_val": -W_val}, "is invalid: .*[Nn]egative"),
]


@pytest.mark.parametrize(("given", "match"), BAD)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_wrong_is_said_and_changes_nothing(name, given, match):
    model = clone(MODELS[name]).fit(X, Y)
    before = pickle.dumps(model.__getstate__())
    with pytest.raises(ValueError, match=match):
        model.fit(X, Y, **given)
    assert pickle.dumps(model.__getstate__()) == before


def test_where_nothing_is_validated():
    given = {"X_val": X_val, "y_val": Y_val}
    with pytest.raises(ValueError, match="Set early_stopping=True"):
        clone(MLP).set_params(early_stopping=False).fit(X, Y, **given)
    with pytest.raises(ValueError, match="solves exactly"):
        TorchLinearRegressor(optimizer="lstsq", early_stopping=True).fit(X, Y, **given)
    with pytest.raises(ValueError, match="at least 0"):
        clone(MLP).set_params(loss="poisson").fit(X, np.abs(Y), **given)


@pytest.mark.parametrize("first", [True, False])
def test_candidates_without_early_stopping_fail_one_by_one(first):
    grid = {"early_stopping": [first, not first], "lr": [0.01, 0.1]}
    found = []
    for cls in (BatchedGridSearchCV, GridSearchCV):
        search = cls(MLP, grid, cv=3, refit=False)
        with pytest.warns(FitFailedWarning, match="6 fits failed"):
            search.fit(X, Y, X_val=X_val, y_val=Y_val)
        found.append(search.cv_results_["mean_test_score"])
    assert np.isnan(found[0]).sum() == 2
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9)


def test_under_another_name_it_is_not_split_either():
    rng = np.random.default_rng(1)
    long = rng.normal(size=(len(X), 4))
    target = long @ COEF + rng.normal(size=(len(X), 2))
    scores = []
    with config_context(enable_metadata_routing=True):
        for names in ({"X_val": "rows", "y_val": "goals"}, {"X_val": True, "y_val": True}):
            model = clone(MLP).set_fit_request(**names)
            keys = [new if isinstance(new, str) else old for old, new in names.items()]
            search = BatchedGridSearchCV(model, {"lr": [0.01, 0.1]}, cv=3, refit=False)
            search.fit(X, Y, **dict(zip(keys, (long, target), strict=True)))
            scores.append(search.cv_results_["mean_test_score"])
    np.testing.assert_array_equal(*scores)


class Scales(TorchMLPRegressor):
    """Looks at the validation set itself."""

    def fit(self, X, y, sample_weight=None, *, X_val=None, y_val=None, sample_weight_val=None):
        return super().fit(X, y, sample_weight, X_val=np.asarray(X_val) * 1.0, y_val=y_val)


def test_subclasses_see_what_was_given():
    base = Scales(**MLP.get_params())
    search = BatchedGridSearchCV(base, {"lr": [0.01]}, cv=3)
    assert search.fit(X, Y, X_val=X_val, y_val=Y_val).best_estimator_.n_iter_ > 0
    with pytest.raises(ValueError, match="has as many rows as X"):
        search.fit(X, Y, X_val=X, y_val=Y)


@pytest.mark.parametrize("batch_size", [None, 32])
@pytest.mark.parametrize("name", MODELS)
def test_targets_that_are_constant_in_training(name, batch_size):
    """Their predictions are that constant, whose error counts in the user's units.

    The loss is not exact, since the outputs that are trained are not quite zero.
    """
    model = clone(MODELS[name]).set_params(max_epochs=300, batch_size=batch_size, tol=None)
    model.fit(X, np.full(90, 7.0), X_val=X_val, y_val=np.full(30, 10.0))
    np.testing.assert_allclose(model.predict(X_val), 7.0)
    assert model.validation_loss_curve_[-1] == pytest.approx(9.0, rel=0.1)


@pytest.mark.parametrize("batch_size", [None, 32])
@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"X_val": X_val * 1e160, "y_val": Y_val}, "X_val reaches .* overflows float64"),
        ({"X_val": X_val, "y_val": Y_val * 1e160}, "y_val reaches .* overflows float64"),
        ({"X_val": sp.csr_array(X_val * 1e160), "y_val": Y_val}, "X_val reaches"),
    ],
)
def test_values_that_overflow_in_training_units(given, match, batch_size):
    with pytest.raises(ValueError, match=match):
        clone(MLP).set_params(batch_size=batch_size).fit(X, Y, **given)
    with pytest.raises(ValueError, match="overflows float32"):
        clone(MLP).set_params(dtype="float32").fit(X, Y, X_val=X_val * 1e25, y_val=Y_val)


def test_precision_is_that_of_the_rows():
    small, held_out = Y[:, 0] * 1e-40, Y_val[:, 0] * 1e-40
    model = clone(LINEAR).fit(X, small, X_val=X_val.astype(np.float32), y_val=held_out)
    assert model.predict(X).dtype == np.float64
    with pytest.raises(ValueError, match="Pass X as float64"):
        clone(LINEAR).fit(X.astype(np.float32), small, X_val=X_val, y_val=held_out)


def test_one_weight_for_all_rows():
    given = {"X_val": X_val, "y_val": Y_val}
    for search in (BatchedGridSearchCV, GridSearchCV):
        search(MLP, {"lr": [0.1]}, cv=3).fit(X, Y, sample_weight_val=2.0, **given)
    weighted = clone(MLP).fit(X, Y, sample_weight_val=2.0, **given)
    plain = clone(MLP).fit(X, Y, **given)
    np.testing.assert_allclose(weighted.predict(X), plain.predict(X), rtol=1e-9)
    with pytest.raises(ValueError, match="validation set"):
        BatchedGridSearchCV(MLP, {"lr": [0.1]}).fit(X, Y, X_val=3, y_val=Y_val)
