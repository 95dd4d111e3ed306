"""The searches against scikit-learn's own, which fit one by one."""

import os
import re
import subprocess
import sys
import threading
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import loguniform
from sklearn import config_context
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.decomposition import NMF, PCA
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.feature_selection import SelectKBest, f_regression
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.metrics import make_scorer, mean_pinball_loss, mean_squared_error
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    RandomizedSearchCV,
    ShuffleSplit,
    TimeSeriesSplit,
)
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    OneHotEncoder,
    RobustScaler,
    StandardScaler,
    TargetEncoder,
)
from sklearn.utils.estimator_checks import parametrize_with_checks

from sktorch_linreg import (
    BatchedGridSearchCV,
    BatchedRandomizedSearchCV,
    TorchLinearRegressor,
    TorchMLPRegressor,
    TrainingDivergedError,
)
from sktorch_linreg._runtime import memory
from sktorch_linreg.model_selection import evaluation
from sktorch_linreg.model_selection.scoring import SCORES

LINEAR = TorchLinearRegressor(optimizer="adam", batch_size=32, max_epochs=8, random_state=0)
MLP = TorchMLPRegressor(
    hidden_layer_sizes=(8,), batch_size=32, max_epochs=5, random_state=0, dtype="float64"
)
RATES = {"lr": [1e-3, 0.01, 0.05], "alpha": [0.0, 0.1]}


def rows(n=121, d=4, k=1, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * [1, 10, 0.1, 1][:d] + 3
    y = X @ rng.normal(size=(d, k)) + rng.normal(size=(n, k))
    return X, y[:, 0] if k == 1 else y


def compare(estimator, grid, X, y, *, fit_params=None, tolerance=1e-9, stacked=None, **options):
    """Run both searches; they have to agree in everything but times."""
    ours = BatchedGridSearchCV(clone(estimator), grid, **options)
    theirs = GridSearchCV(clone(estimator), grid, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (ConvergenceWarning, UserWarning))
        ours.fit(X, y, **(fit_params or {}))
        theirs.fit(X, y, **(fit_params or {}))
    mine, its = ours.cv_results_, theirs.cv_results_
    assert list(mine) == list(its)
    for name, values in its.items():
        if name == "params":
            assert mine[name] == values
            continue
        assert type(mine[name]) is type(values)
        assert mine[name].dtype == values.dtype
        if name.startswith("rank_"):
            assert (mine[name] == values).all()
        elif "_time" not in name and not name.startswith("param_"):
            np.testing.assert_allclose(mine[name], values, rtol=tolerance, atol=tolerance)
    for name in ("best_index_", "best_params_", "n_splits_", "multimetric_"):
        assert getattr(ours, name, None) == getattr(theirs, name, None), name
    return ours, theirs


def n_stacked(capsys):
    """What the search said of itself."""
    return capsys.readouterr().out


@pytest.mark.parametrize("base", [LINEAR, MLP], ids=["linear", "mlp"])
@pytest.mark.parametrize(
    "cv", [5, KFold(4, shuffle=True, random_state=0), ShuffleSplit(3, random_state=0),
           TimeSeriesSplit(4)], ids=["five", "shuffled", "random", "time"],
)  # fmt: skip
def test_scores_are_those_of_grid_search(base, cv, capsys):
    ours, theirs = compare(base, RATES, *rows(), cv=cv, return_train_score=True, verbose=1)
    assert "individually" not in n_stacked(capsys)
    X = rows(seed=1)[0]
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    assert ours.score(*rows(seed=1)) == theirs.score(*rows(seed=1))


def test_several_targets_weights_and_early_stopping(capsys):
    X, y = rows(k=2)
    weight = np.random.default_rng(0).uniform(0, 2, len(X)).round()
    options = {"early_stopping": True, "max_epochs": 30, "n_iter_no_change": 2}
    for base in (LINEAR, MLP):
        estimator = clone(base).set_params(**options)
        compare(estimator, RATES, X, y, fit_params={"sample_weight": weight}, verbose=1)
        assert "individually" not in n_stacked(capsys)


def test_pipelines_fit_earlier_steps_once(capsys):
    class Counted(StandardScaler):
        n_fits = 0

        def fit(self, X, y=None, sample_weight=None):
            type(self).n_fits += 1
            return super().fit(X, y, sample_weight)

    pipe = Pipeline([("scale", Counted()), ("pca", PCA(random_state=0)), ("reg", LINEAR)])
    grid = {"pca__n_components": [2, 3], "reg__lr": [0.01, 0.05], "reg__alpha": [0.0, 0.1]}
    X, y = rows()
    ours, theirs = compare(pipe, grid, X, y, verbose=1)
    assert "individually" not in n_stacked(capsys)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X))
    Counted.n_fits = 0
    BatchedGridSearchCV(pipe, grid, refit=False).fit(X, y)
    assert Counted.n_fits == 2 * 5
    weight = {"reg__sample_weight": np.linspace(0.1, 1, len(X))}
    compare(pipe, grid, X, y, fit_params=weight)
    compare(make_pipeline(clone(LINEAR)), {"torchlinearregressor__lr": [0.01, 0.1]}, X, y)


def test_shapes_make_stacks_of_their_own(capsys):
    grid = [
        {"hidden_layer_sizes": [(4,), (5, 3)], "lr": [0.01, 0.1], "activation": ["relu", "tanh"]},
        {"optimizer": ["sgd", "rmsprop"], "batch_size": [16, None], "max_epochs": [3, 4]},
        {"dropout": [0.0, 0.1, 0.4], "random_state": [0, 1], "tol": [None, 1e-2]},
        {"loss": ["huber"], "loss__delta": [0.5, 1.0], "alpha": [0.1], "l1_ratio": [0.0, 0.5]},
    ]
    compare(MLP, grid, *rows(), verbose=1)
    assert "individually" not in n_stacked(capsys)


@pytest.mark.parametrize(
    ("estimator", "grid", "reason"),
    [
        (
            LINEAR,
            {"optimizer": ["lbfgs"], "batch_size": [None]},
            "optimizer='lbfgs' has no stacked version",
        ),
        (LINEAR, {"optimizer": [torch.optim.Rprop]}, "optimizer='Rprop' has no stacked version"),
        (
            MLP,
            {"loss": [torch.nn.SmoothL1Loss], "dropout": [0.2]},
            "loss=SmoothL1Loss: dropout with this loss or activation",
        ),
        (LINEAR, {"record_path": [True]}, "record_path"),
        (LINEAR, {"callbacks": [[("none", None)]]}, "callbacks"),
        (Ridge(), {"alpha": [0.1, 1.0]}, "Ridge is not an estimator of this package"),
        (
            TransformedTargetRegressor(LINEAR),
            {"regressor__lr": [0.01, 0.1]},
            "TransformedTargetRegressor is not",
        ),
    ],
)
def test_what_is_not_stacked_is_fitted_alone(estimator, grid, reason, capsys):
    compare(estimator, grid, *rows(), verbose=1)
    out = n_stacked(capsys)
    assert "0 of " in out
    assert reason in out


@pytest.mark.sampled(3)
@pytest.mark.parametrize("shape", [(121, 4), (30, 40), (60, 4)])
@pytest.mark.parametrize("options", [{}, {"standardize": False}, {"fit_intercept": False}])
@pytest.mark.parametrize("weighted", [False, True])
def test_exact_solutions_share_a_decomposition(shape, options, weighted, capsys):
    rng = np.random.default_rng(0)
    X = rng.normal(size=shape) * rng.uniform(0.1, 100, shape[1]) + 5
    X[:, 1] = 3.0
    y = X[:, :3] @ rng.normal(size=(3, 2)) + rng.normal(size=(shape[0], 2))
    weight = {"fit_params": {"sample_weight": rng.integers(0, 3, shape[0])}} if weighted else {}
    alphas = [0.0, 1e-6, 1e-3, 0.1, 10.0]
    model = TorchLinearRegressor(**options)
    compare(model, {"alpha": alphas}, X, y, verbose=1, return_train_score=True, **weight)
    grid = {"alpha": [1e-3, 0.1], "positive": [True, False], "fit_intercept": [True, False]}
    compare(
        make_pipeline(StandardScaler(), model),
        {f"torchlinearregressor__{k}": v for k, v in grid.items()},
        X,
        y,
        verbose=1,
    )
    compare(model, {"alpha": [0.1, 1.0], "l1_ratio": [0.0, 0.5]}, X, y, tolerance=1e-7)
    assert "individually" not in n_stacked(capsys)
    compare(model, {"alpha": alphas}, X, y, verbose=1, scoring=r2_of_half)
    assert "solved exactly, and the scorer" in n_stacked(capsys)


def test_mixed_candidates(capsys):
    pipe = Pipeline([("reg", LINEAR)])
    grid = [{"reg": [clone(LINEAR)], "reg__lr": [0.01, 0.1]}, {"reg": [Ridge(), Ridge(10.0)]}]
    compare(pipe, grid, *rows(), verbose=1)
    assert "10 of 20 fits run in" in n_stacked(capsys)


def r2_of_half(estimator, X, y):
    return estimator.score(X[::2], y[::2])


def several(estimator, X, y):
    return {"half": r2_of_half(estimator, X, y), "epochs": float(estimator.n_iter_)}


def repr_of(scoring):
    """The same in every process."""
    return getattr(scoring, "__name__", str(scoring))


def curve(estimator, X, y):
    assert len(estimator.history_) == estimator.n_iter_
    last = estimator.loss_curve_[-1] + estimator.best_loss_ + estimator.loss_
    return last + np.abs(estimator.module_(torch.tensor(X)).detach().numpy()).mean()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "scoring",
    [
        "r2", "explained_variance", "neg_mean_squared_error", "neg_root_mean_squared_error",
        "neg_mean_absolute_error", "neg_median_absolute_error", "neg_max_error",
        "neg_mean_absolute_percentage_error", "d2_absolute_error_score",
        make_scorer(mean_pinball_loss, greater_is_better=False, alpha=0.3), r2_of_half, curve,
    ],
)  # fmt: skip
@pytest.mark.parametrize("base", [LINEAR, MLP], ids=["linear", "mlp"])
def test_scorers(base, scoring):
    X, y = rows()
    compare(base, RATES, X, y, scoring=scoring, return_train_score=True)
    if not callable(scoring):
        compare(make_pipeline(StandardScaler(), LINEAR), {}, X, y, scoring=scoring)


@pytest.mark.parametrize("metric", list(SCORES), ids=lambda metric: metric.__name__)
@pytest.mark.parametrize("weighted", [True, False])
def test_stacked_scores_are_those_of_the_metric(metric, weighted):
    rng = np.random.default_rng(0)
    true, predicted = rng.normal(size=(2, 30)), rng.normal(size=(4, 2, 30))
    # perfect predictions, and a constant target
    predicted[0], true[1] = true, 1.0
    weight = rng.uniform(0.1, 2.0, 30) if weighted else None
    options = {"sample_weight": weight} if weighted else {}
    expected = [metric(true.T, p.T, **options) for p in predicted]
    sign = -1.0 if "error" in metric.__name__ else 1.0
    found = SCORES[metric](true, predicted, weight)
    np.testing.assert_allclose(sign * found, expected, rtol=1e-12, atol=1e-12)


def test_several_scores():
    X, y = rows(k=2)
    many = ["r2", "neg_mean_squared_error", "neg_root_mean_squared_error"]
    compare(LINEAR, RATES, X, y, scoring=many, refit="r2")
    compare(LINEAR, RATES, X, y, scoring=[*many, "neg_median_absolute_error"], refit=False)
    compare(LINEAR, RATES, X, y, scoring=several, refit="half")
    compare(LINEAR, RATES, X, y, scoring={"a": "r2", "b": r2_of_half}, refit="b")
    compare(LINEAR, RATES, X, y, refit=lambda results: 1)
    with pytest.raises(ValueError, match="multi-metric"):
        BatchedGridSearchCV(LINEAR, RATES, scoring=many).fit(X, y)


def test_constant_targets_and_tiny_folds():
    X, y = rows(40)
    compare(LINEAR, RATES, X, np.zeros(40))
    compare(LINEAR, RATES, X, np.where(np.arange(40) < 8, 2.0, y))
    compare(clone(LINEAR).set_params(batch_size=8), {"lr": [0.01, 0.1]}, X[:12], y[:12], cv=12)


def test_weights_reach_the_scorer():
    X, y = rows()
    weight = np.linspace(0.1, 3, len(X))
    for scoring in (None, "neg_mean_squared_error", "explained_variance", ["r2", "neg_max_error"]):
        refit = scoring is None or isinstance(scoring, str)
        params = {"fit_params": {"sample_weight": weight}, "scoring": scoring, "refit": refit}
        compare(LINEAR, RATES, X, y, return_train_score=True, **params)


def test_groups_frames_and_float32():
    X, y = rows()
    groups = np.repeat(np.arange(11), 11)
    compare(LINEAR, RATES, X, y, cv=GroupKFold(4), fit_params={"groups": groups})
    frame = pd.DataFrame(X, columns=list("abcd"))
    ours, _ = compare(LINEAR, RATES, frame, pd.Series(y), scoring=curve_of_frame)
    assert list(ours.feature_names_in_) == list("abcd")
    single = X.astype(np.float32), y.astype(np.float32)
    compare(LINEAR, RATES, *single, tolerance=1e-4)
    compare(clone(MLP).set_params(dtype="float32"), RATES, X, y, tolerance=1e-4)


def curve_of_frame(estimator, X, y):
    assert list(estimator.feature_names_in_) == list(X.columns)
    return estimator.score(X, y)


def test_metadata_routing():
    import sklearn

    X, y = rows()
    weight = np.linspace(0.1, 3, len(X))
    with sklearn.config_context(enable_metadata_routing=True):
        model = clone(LINEAR).set_fit_request(sample_weight=True)
        model.set_score_request(sample_weight=True)
        compare(model, RATES, X, y, fit_params={"sample_weight": weight})


@pytest.mark.parametrize("scoring", [None, ["r2", "neg_max_error"], several])
def test_a_candidate_that_diverges_leaves_the_others_alone(scoring):
    X, y = rows()
    base = clone(LINEAR).set_params(optimizer="sgd", max_epochs=40)
    grid = {"lr": [0.01, 0.05, 1e6]}
    search = BatchedGridSearchCV(base, grid, scoring=scoring, refit=False, error_score=-7.0)
    with pytest.warns(FitFailedWarning, match="TrainingDivergedError"):
        search.fit(X, y)
    names = [n for n in search.cv_results_ if n.startswith("mean_test_")]
    assert all(search.cv_results_[name][2] == -7.0 for name in names)
    alone = BatchedGridSearchCV(base, {"lr": [0.01, 0.05]}, scoring=scoring, refit=False).fit(X, y)
    for name in names:
        np.testing.assert_allclose(search.cv_results_[name][:2], alone.cv_results_[name])
    with pytest.raises(ValueError, match="stopped being finite"):
        BatchedGridSearchCV(base, grid, error_score="raise").fit(X, y)
    with pytest.raises(ValueError, match="All the 5 fits failed"):
        BatchedGridSearchCV(base, {"lr": [1e6]}).fit(X, y)


def test_wrong_parameters_fail_as_in_grid_search():
    X, y = rows()
    for grid in ({"lr": [-1.0]}, {"optimizer": ["nonsense"]}, {"optimizer__betas": [(2.0, 3.0)]}):
        with pytest.raises(ValueError, match="All the 5 fits failed"):
            BatchedGridSearchCV(LINEAR, grid).fit(X, y)
    with pytest.raises(ValueError, match="has no parameter"):
        BatchedGridSearchCV(LINEAR, {"nonsense": [1]}).fit(X, y)
    with pytest.warns(FitFailedWarning, match="5 fits failed"):
        search = BatchedGridSearchCV(LINEAR, {"lr": [0.1, -1.0]}).fit(X, y)
    assert search.best_params_ == {"lr": 0.1}
    X[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        BatchedGridSearchCV(LINEAR, {"lr": [0.1]}).fit(X, y)


def test_a_seed_repeats_bit_for_bit_under_any_number_of_jobs():
    X, y = rows()
    grid = {"lr": [0.01, 0.05], "activation": ["relu", "tanh"]}
    first, second, jobs = (
        BatchedGridSearchCV(MLP, grid, n_jobs=n).fit(X, y).cv_results_ for n in (None, 1, 2)
    )
    for name in first:
        if "_test_" in name:
            np.testing.assert_array_equal(first[name], second[name])
            np.testing.assert_array_equal(first[name], jobs[name])


def test_without_a_seed_candidates_share_one():
    base = clone(MLP).set_params(random_state=None)
    search = BatchedGridSearchCV(base, {"lr": [0.01, 0.01]}, refit=False)
    first, again = (search.fit(*rows()).cv_results_["mean_test_score"] for _ in range(2))
    assert first[0] == first[1]
    assert first[0] != again[0]


def test_randomized_search():
    X, y = rows()
    distributions = {"lr": loguniform(1e-3, 0.1), "alpha": [0.0, 0.1], "random_state": [0, 1]}
    options = {"n_iter": 12, "random_state": 0, "refit": False}
    ours = BatchedRandomizedSearchCV(LINEAR, distributions, **options).fit(X, y)
    theirs = RandomizedSearchCV(LINEAR, distributions, **options).fit(X, y)
    mine, its = ours.cv_results_, theirs.cv_results_
    assert mine["params"] == its["params"]
    np.testing.assert_allclose(mine["mean_test_score"], its["mean_test_score"], rtol=1e-9)


def test_progress(capsys):
    pytest.importorskip("rich")
    ProgressBar = pytest.importorskip("sklearn.callback").ProgressBar
    X, y = rows()
    search = BatchedGridSearchCV(MLP, {"lr": [0.01, 0.1], "activation": ["relu", "tanh"]})
    search.set_callbacks(ProgressBar()).fit(X, y)
    assert "BatchedGridSearchCV - stack" in capsys.readouterr().out


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("refit", [True, False])
def test_one_warning_for_all_fits_that_have_not_converged(refit, n_jobs):
    # one of the optimizers is stacked, the other fitted alone
    base = TorchMLPRegressor(max_epochs=3, random_state=0, hidden_layer_sizes=(4,))
    search = BatchedGridSearchCV(
        base, {"lr": [0.01, 0.1], "optimizer": ["adam", "lbfgs"]}, cv=2, refit=refit, n_jobs=n_jobs
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        search.fit(*rows())
    (warning,) = caught
    n = 9 if refit else 8
    refit_too = ", counting the refit," if refit else ""
    assert re.match(rf"{n} of {n} fits{refit_too} stopped at max_epochs", str(warning.message))
    assert warning.category is ConvergenceWarning
    assert warning.filename == __file__


def test_warnings_of_other_kinds_are_shown():
    class Warns(StandardScaler):
        def fit(self, X, y=None, sample_weight=None):
            warnings.warn("something else", UserWarning, stacklevel=2)
            return super().fit(X, y)

    pipe = make_pipeline(Warns(), clone(LINEAR).set_params(optimizer="lbfgs", batch_size=None))
    with pytest.warns(UserWarning, match="something else"):
        BatchedGridSearchCV(pipe, {"torchlinearregressor__alpha": [0.0, 0.1]}).fit(*rows())


def test_one_stack(capsys):
    BatchedGridSearchCV(LINEAR, RATES, verbose=1).fit(*rows(100))
    assert "30 of 30 fits run in 1 stack." in n_stacked(capsys)


# -- rows that steps change -----------------------------------------------------------------------


def take_logs(frame):
    frame["c"] = np.log(np.abs(frame["c"]) + 1)
    return frame


def halve(X):
    X *= 0.5
    return X


def halve_sparse(X):
    X.data *= 0.5
    return X


def halve_polars(frame):
    frame.insert_column(0, (0.5 * frame.to_series(0)).alias("a2"))
    return frame


IN_PLACE = {
    "scaler": (StandardScaler(copy=False), lambda X: X),
    "robust": (RobustScaler(copy=False), lambda X: X),
    "several": (make_pipeline(StandardScaler(copy=False), FunctionTransformer(halve)), lambda X: X),
    "function": (FunctionTransformer(halve), lambda X: X),
    "frame": (FunctionTransformer(take_logs), lambda X: pd.DataFrame(X, columns=list("abcd"))),
    "sparse": (FunctionTransformer(halve_sparse, accept_sparse=True), sp.csr_matrix),
    "frame of polars": (
        FunctionTransformer(halve_polars), lambda X: pl.DataFrame(X, schema=list("abcd"))
    ),
}  # fmt: skip


def changes_rows(estimator, X, y):
    """A scorer that works in place as well."""
    out = -np.abs(estimator.predict(X) - y).mean()
    y *= 0.5
    if isinstance(X, np.ndarray):
        X += 1.0
    return out


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", IN_PLACE)
@pytest.mark.parametrize(
    "scoring",
    ["r2", ["r2", "neg_mean_squared_error"], "neg_mean_absolute_percentage_error",
     ["r2", "neg_max_error"], changes_rows],
    ids=repr_of,
)  # fmt: skip
def test_rows_that_steps_change_are_those_of_one_candidate(kind, scoring):
    step, given = IN_PLACE[kind]
    X, y = rows()
    before = X.copy()
    refit = False
    for last, key in ((LINEAR, "lr"), (TorchLinearRegressor(), "alpha")):
        pipe = Pipeline([("step", step), ("reg", last)])
        grid = {f"reg__{key}": [0.1, 0.01, 0.001]}
        options = {"cv": 3, "scoring": scoring, "refit": refit, "return_train_score": True}
        compare(pipe, grid, given(X.copy()), y, **options)
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize("scoring", ["r2", r2_of_half, ["r2", "neg_max_error"]], ids=repr_of)
def test_training_scores_are_those_of_the_fitted_pipeline(scoring):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(150, 6)), rng.normal(size=150)
    city = rng.integers(0, 60, 150).astype(str)[:, None]
    grid = {"torchlinearregressor__alpha": [0.01, 0.1]}
    options = {"cv": 3, "scoring": scoring, "refit": False, "return_train_score": True}
    for step, given in (
        (TargetEncoder(random_state=0), city),
        (NMF(3, random_state=0, max_iter=20), np.abs(X)),
        (KBinsDiscretizer(3, subsample=None), X),
    ):
        for last in (TorchLinearRegressor(), clone(LINEAR).set_params(max_epochs=3)):
            pipe = make_pipeline(step, last)
            ours, _ = compare(pipe, grid, given, y, tolerance=1e-7, **options)
    assert any(name.startswith("mean_train") for name in ours.cv_results_)


# -- options that a candidate leaves out ----------------------------------------------------------

LEFT_OUT = [
    ("sgd", [{"optimizer__weight_decay": [5.0]}, {"lr": [0.01]}]),
    (
        "sgd",
        [{"optimizer__momentum": [0.9]}, {"lr": [0.01]}, {"optimizer__dampening": [0.1]}],
    ),
    ("adam", [{"optimizer__betas": [(0.1, 0.2)]}, {"lr": [0.01]}, {"optimizer__eps": [0.1]}]),
    ("adamw", [{"lr": [0.01]}, {"optimizer__weight_decay": [3.0]}, {"alpha": [0.1]}]),
    ("nadam", [{"optimizer__momentum_decay": [0.5]}, {"lr": [0.01]}]),
    ("radam", [{"optimizer__weight_decay": [1.0]}, {"optimizer__betas": [(0.5, 0.5)]}]),
    ("rmsprop", [{"optimizer__alpha": [0.1]}, {"optimizer__momentum": [0.5]}, {"lr": [0.01]}]),
    ("adagrad", [{"optimizer__lr_decay": [0.5]}, {"optimizer__initial_accumulator_value": [1.0]}]),
    ("adadelta", [{"optimizer__rho": [0.5]}, {"optimizer__eps": [0.01]}, {"alpha": [0.1]}]),
    ("adamax", [{"optimizer__betas": [(0.5, 0.5)]}, {"optimizer__eps": [0.1]}, {"lr": [0.01]}]),
]


@pytest.mark.parametrize(("optimizer", "grid"), LEFT_OUT, ids=str)
def test_an_option_that_is_left_out_is_the_default(optimizer, grid):
    X, y = rows()
    for base in (LINEAR, MLP):
        model = clone(base).set_params(optimizer=optimizer, max_epochs=4)
        compare(model, grid, X, y, refit=False, cv=3)
        compare(model, grid[::-1], X, y, refit=False, cv=3)
    # as in a random search over several spaces
    ours, theirs = (
        cls(model, grid, n_iter=3, random_state=0, cv=3, refit=False).fit(X, y).cv_results_
        for cls in (BatchedRandomizedSearchCV, RandomizedSearchCV)
    )
    np.testing.assert_allclose(ours["mean_test_score"], theirs["mean_test_score"], rtol=1e-9)


def test_momentum_that_a_schedule_turns_on_is_dampened():
    model = clone(LINEAR).set_params(optimizer="sgd", lr_schedule="one_cycle", max_epochs=5)
    grid = {"optimizer__momentum": [0.0, 0.9], "optimizer__dampening": [0.0, 0.2]}
    compare(model, grid, *rows(), cv=3)


# -- steps in all arrangements --------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 2, 5])
def test_nested_steps_that_work_in_place(seed):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.normal(size=(80, 4)) * [1, 10, 0.1, 3], columns=list("abcd"))
    y = frame["a"].to_numpy() + rng.normal(size=80)
    frame["e"] = rng.integers(0, 4, 80).astype(str)
    if seed % 2:
        frame.loc[rng.integers(0, 80, 3), "a"] = np.nan
    numbers = Pipeline([("fill", SimpleImputer(copy=False)), ("scale", StandardScaler(copy=False))])
    names = [OneHotEncoder(handle_unknown="ignore"), TargetEncoder(random_state=0)][seed // 2 % 2]
    steps = [
        ("columns", ColumnTransformer([("n", numbers, list("abcd")), ("s", names, ["e"])])),
        ("best", FeatureUnion([("two", SelectKBest(f_regression, k=2)), ("one", PCA(1))])),
        ("last", MaxAbsScaler(copy=False)),
    ]
    if seed // 2 % 2 == 0:
        # of sparse rows
        del steps[1]
    # whose scores depend on the scale of each column
    last = clone(LINEAR).set_params(lr=1e-3) if seed < 3 else TorchLinearRegressor()
    pipe = Pipeline([*steps, ("reg", last.set_params(standardize=False))])
    grid = {
        "reg__alpha": [0.1, 1.0],
        "columns__n__scale": ["passthrough", RobustScaler(copy=False)],
        "last": ["passthrough", MaxAbsScaler(copy=False)],
    }
    for scoring in ("neg_median_absolute_error", ["r2", "neg_max_error"]):
        options = {"cv": 3, "scoring": scoring, "refit": False, "return_train_score": True}
        compare(pipe, grid, frame, y, tolerance=1e-7, **options)


@pytest.mark.parametrize("params", [{}, {"standardize": False}, {"fit_intercept": False}])
@pytest.mark.parametrize("scoring", [None, "neg_mean_poisson_deviance"])
def test_counts_are_scored_on_predictions(params, scoring):
    X, _ = rows()
    y = np.exp(0.3 * (X[:, 0] - 3)) + 0.1
    for base in (LINEAR, MLP):
        if "fit_intercept" in params and base is MLP:
            continue
        model = clone(base).set_params(loss="poisson", **params)
        compare(model, {"lr": [1e-4, 1e-3]}, X, y, scoring=scoring, return_train_score=True)


# -- rows of any kind -----------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["nbytes", "shape", "dtype", "data", "strides", "ndim", "columns"])
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_columns_of_any_name(name, library):
    X, y = rows(d=2)
    frame = pd.DataFrame(X, columns=["npackets", name])
    if library == "polars":
        frame = pl.from_pandas(frame)
    for model in (TorchLinearRegressor(), LINEAR):
        compare(model, {"alpha": [0.1, 1.0]}, frame, y)
        pipe = Pipeline([("scale", StandardScaler()), ("reg", model)])
        compare(pipe, {"reg__alpha": [0.1, 1.0]}, frame, y, scoring="neg_max_error")


def test_rows_that_are_lists():
    rng = np.random.default_rng(0)
    tokens = [list(rng.choice(list("abcdefg"), rng.integers(0, 6))) for _ in range(90)]
    texts = [" ".join(row) + " end" for row in tokens]
    y = rng.normal(size=90)
    words = CountVectorizer(token_pattern=r"\w")
    dense = FunctionTransformer(lambda X: X.toarray(), accept_sparse=True)
    for X, step in ((tokens, CountVectorizer(analyzer=list)), (texts, words)):
        for last in (TorchLinearRegressor(), LINEAR):
            grid = {f"{type(last).__name__.lower()}__alpha": [0.1, 1.0]}
            compare(make_pipeline(step, last), grid, X, y, cv=3)
            compare(make_pipeline(step, dense, last), grid, X, y, cv=3)


def test_nested_lists_that_steps_change():
    X, y = rows(40)
    longer = FunctionTransformer(lambda table: [row.append(1.0) or row for row in table])
    pipe = Pipeline([("longer", longer), ("reg", LINEAR)])
    given = X.tolist()
    search = BatchedGridSearchCV(pipe, {"reg__lr": [0.01, 0.1]}, cv=3, refit=False).fit(given, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert given == X.tolist()


def test_functions_that_differ_in_the_names_of_their_arguments():
    X, y = rows()
    first = lambda X, a=1.0, b=2.0: np.c_[X, np.sin(X * a) + b * X**2]  # noqa: E731
    second = lambda X, b=1.0, a=2.0: np.c_[X, np.sin(X * b) + a * X**2]  # noqa: E731
    last = clone(LINEAR).set_params(optimizer="adam")
    pipe = Pipeline([("more", FunctionTransformer(kw_args={"a": 5.0})), ("reg", last)])
    ours, _ = compare(pipe, {"more__func": [first, second]}, X, y)
    assert len(set(ours.cv_results_["mean_test_score"])) == 2


@pytest.mark.parametrize("hole", [None, pd.NA, np.nan, "text", pd.NaT], ids=repr)
@pytest.mark.parametrize("side", ["test", "train", "both"])
@pytest.mark.parametrize("scoring", ["r2", ["r2", "neg_max_error"]], ids=str)
def test_something_that_is_no_number_is_a_failed_fit(hole, side, scoring):
    X, y = rows(90)
    given = X.astype(object)
    first, second, third = np.split(np.arange(90), 3)
    given[0 if side != "train" else 45, 0] = hole
    if side == "both":
        given[45, 1] = hole
    cv = [(np.r_[second, third], first), (second, third)]
    for model in (TorchLinearRegressor(), LINEAR, make_pipeline(StandardScaler(), LINEAR)):
        key = "alpha" if not hasattr(model, "steps") else "torchlinearregressor__alpha"
        options = {"cv": cv, "scoring": scoring, "refit": False}
        outcomes = []
        for cls in (BatchedGridSearchCV, GridSearchCV):
            search = cls(model, {key: [0.1, 1.0]}, **options)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    found = search.fit(given, y).cv_results_
                except ValueError as error:
                    outcomes.append("fits failed" in str(error))
                else:
                    outcomes.append({k: v for k, v in found.items() if k.endswith("_score")})
        ours, theirs = outcomes
        if theirs is True:
            assert ours is True
            continue
        for name, values in theirs.items():
            np.testing.assert_allclose(ours[name], values, rtol=1e-9)


def test_grids_of_numpy_numbers():
    X, y = rows()
    grid = {"batch_size": 2 ** np.arange(4, 7), "lr": np.array([0.01, 0.1], dtype=np.float32)}
    for base in (LINEAR, MLP):
        compare(base, grid, X, y, cv=3)
        compare(base, {"early_stopping": np.array([True, False])}, X, y, cv=3)
        betas = [(np.float32(0.5), np.float32(0.9)), (0.5, np.float64(0.9))]
        model = clone(base).set_params(optimizer="adam")
        compare(model, {"optimizer__betas": betas, "optimizer__amsgrad": [np.True_]}, X, y, cv=3)
        steps = {"lr_schedule": ["step"], "lr_schedule__step_size": np.array([1, 2])}
        compare(base, steps, X, y, cv=3)


ROUTES = [
    (fit, score, scale) for fit in (True, False) for score in (None, True, False)
    for scale in (True, False)
]  # fmt: skip


@pytest.mark.parametrize(("fit", "score", "scale"), ROUTES)
@pytest.mark.parametrize("scoring", [None, "r2", ["r2", "neg_mean_squared_error"]], ids=str)
def test_weights_that_scikit_learn_does_not_route_are_not_used(fit, score, scale, scoring):
    X, y = rows(60)
    with config_context(enable_metadata_routing=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        last = clone(LINEAR).set_fit_request(sample_weight=fit)
        if score is not None:
            last.set_score_request(sample_weight=score)
        scaler = StandardScaler().set_fit_request(sample_weight=scale)
        pipe = Pipeline([("scale", scaler), ("reg", last)])
        outcomes = []
        for cls in (BatchedGridSearchCV, GridSearchCV):
            search = cls(pipe, {"reg__lr": [0.01, 0.1]}, cv=2, scoring=scoring, refit=False)
            try:
                search.fit(X, y, sample_weight=np.linspace(0.1, 2, 60))
            except Exception as error:
                outcomes.append(type(error))
            else:
                scores = [v for k, v in search.cv_results_.items() if k.startswith("mean_test")]
                outcomes.append(np.array(scores))
    ours, theirs = outcomes
    if isinstance(theirs, type):
        assert ours is theirs
    else:
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_a_splitter_that_contradicts_itself():
    class Odd(KFold):
        def get_n_splits(self, X=None, y=None, groups=None):
            return 7

    with pytest.raises(ValueError, match="announced 7 splits"):
        BatchedGridSearchCV(LINEAR, RATES, cv=Odd(3)).fit(*rows())
    with pytest.raises(ValueError, match="No fits were performed"):
        BatchedGridSearchCV(LINEAR, RATES, cv=[]).fit(*rows())


@parametrize_with_checks(
    [
        BatchedGridSearchCV(TorchLinearRegressor(), {"alpha": [0.1, 1.0]}),
        BatchedGridSearchCV(LINEAR, {"lr": [0.1, 0.01]}, cv=2),
    ]
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_targets_are_checked_in_each_fold():
    X, y = rows(n=100)
    y = np.abs(y)
    y[95] = -1.0
    estimator = clone(LINEAR).set_params(loss="poisson", standardize=True)
    with pytest.warns(FitFailedWarning, match="needs targets of at least 0"):
        ours, _ = compare(estimator, RATES, X, y, scoring="neg_mean_squared_error", refit=False)
    # only the fold that tests on the negative target is trained without it
    scores = np.array([ours.cv_results_[f"split{i}_test_score"] for i in range(5)])
    assert np.isnan(scores[:4]).all()
    assert np.isfinite(scores[4]).all()


@pytest.mark.parametrize("estimator", [LINEAR, MLP, TorchLinearRegressor()], ids=str)
def test_little_memory_gives_the_same_scores(estimator, capsys):
    X, y = rows()
    pipe = Pipeline([("pca", PCA(random_state=0)), ("reg", estimator)])
    grid = {"pca__n_components": [2, 3], "reg__alpha": [0.0, 0.01, 0.1]}
    search = BatchedGridSearchCV(pipe, grid, refit=False, verbose=1)
    free = clone(search).fit(X, y).cv_results_
    assert n_stacked(capsys).count("fits run in") == 1
    tight = clone(search).set_params(max_memory=1).fit(X, y).cv_results_
    told = n_stacked(capsys)
    assert told.count("fits run in") == 2 * 5
    assert told.count("3 of 3 fits") == 2 * 5
    for name, values in free.items():
        if name.endswith("test_score"):
            np.testing.assert_allclose(tight[name], values, rtol=1e-9)


def test_progress_where_memory_is_short(capsys):
    ProgressBar = pytest.importorskip("sklearn.callback").ProgressBar
    search = BatchedGridSearchCV(LINEAR, RATES, cv=3, max_memory=1)
    search.set_callbacks(ProgressBar()).fit(*rows())
    assert "stack" in capsys.readouterr().out


@pytest.mark.parametrize("max_memory", [0, -5, 1.5, "much"])
def test_wrong_memory(max_memory):
    with pytest.raises(ValueError, match="max_memory"):
        BatchedGridSearchCV(LINEAR, RATES, max_memory=max_memory).fit(*rows())


def test_free_memory(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory.free_memory(cpu) <= total
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert memory.free_memory(cpu) == 2_000_000
    assert memory.budget(None, {cpu}) == 500_000
    assert memory.budget(7, {cpu}) == 7
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory(cpu) > 2_000_000


def test_stacks_on_threads_give_the_same_bits(monkeypatch):
    X, y = rows(n=500)
    grid = {"lr": np.geomspace(1e-4, 0.05, 8), "hidden_layer_sizes": [(8,), (9,), (10, 3)]}
    search = BatchedGridSearchCV(MLP, grid, refit=False)
    alone = clone(search).fit(X, y).cv_results_
    before, seen = torch.get_num_threads(), set()
    train = evaluation.train_stack

    def watched(*args):
        seen.add(threading.get_ident())
        assert torch.get_num_threads() == 1
        return train(*args)

    monkeypatch.setattr(evaluation, "THREADED_STACK", 0)
    monkeypatch.setattr(evaluation, "train_stack", watched)
    torch.set_num_threads(2)
    try:
        together = clone(search).fit(X, y).cv_results_
        assert torch.get_num_threads() == 2
        assert len(seen) == 2
        diverging = clone(search).set_params(
            estimator=clone(MLP).set_params(optimizer="sgd"),
            param_grid={"lr": [0.01, 1e30], "hidden_layer_sizes": [(8,), (9,), (10,)]},
            error_score="raise",
        )
        with pytest.raises(TrainingDivergedError):
            diverging.fit(X, y)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    for name, values in alone.items():
        if name.endswith("test_score"):
            np.testing.assert_array_equal(together[name], values)


def test_a_line_per_stack(capsys):
    BatchedGridSearchCV(LINEAR, {"batch_size": [16, 32]}, verbose=2).fit(*rows())
    told = n_stacked(capsys)
    n_fits = [int(n) for n in re.findall(r"^\[stack \d+\] END (\d+) fits; total time=", told, re.M)]
    assert len(n_fits) > 1
    assert sum(n_fits) == 10


def test_ridge_under_a_rank_tolerance():
    X = rows()[0][:, :3]
    X = np.c_[X, X[:, 0] + 1e-3 * rows(seed=1)[0][:, 3]]
    y = rows(seed=2)[1]
    compare(TorchLinearRegressor(alpha=1e-8), {"tol": [None, 1e-2], "alpha": [0.0, 1e-8]}, X, y)


def test_weights_are_routed_score_by_score():
    X, y = rows()

    def error(requested):
        scorer = make_scorer(mean_squared_error, greater_is_better=False)
        return scorer.set_score_request(sample_weight=requested)

    weight = {"sample_weight": np.linspace(0, 3, len(X))}
    with config_context(enable_metadata_routing=True):
        scoring = {"weighted": error(True), "plain": error(False)}
        model = clone(LINEAR).set_fit_request(sample_weight=True)
        ours, _ = compare(model, RATES, X, y, fit_params=weight, scoring=scoring, refit=False)
    results = ours.cv_results_
    assert (results["mean_test_weighted"] != results["mean_test_plain"]).all()


class Columns(TransformerMixin, BaseEstimator):
    """Keeps nothing that says it was fitted."""

    def __init__(self, columns=(0,)):
        self.columns = columns

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return X[:, np.asarray(self.columns)]


def test_settings_that_are_equal_but_not_the_same(capsys):
    X, y = rows()
    pipe = Pipeline([("columns", Columns()), ("reg", LINEAR)])
    grid = {"columns__columns": [(0, 1), (False, True)]}
    compare(pipe, grid, X[:, :2], y, verbose=1)
    assert "individually" not in n_stacked(capsys)


@pytest.mark.parametrize("seed", [0, None, "RandomState"])
def test_rows_that_single_fits_rescale_keep_the_seed(seed):
    X, y = rows()
    seed = np.random.RandomState(0) if seed == "RandomState" else seed
    model = clone(LINEAR).set_params(random_state=seed)
    grid = {"shuffle": [True], "n_iter_no_change": [10, 10]}
    if seed is not None:
        compare(model, grid, X * 1e150, y, refit=False)
    scores = BatchedGridSearchCV(model, grid, refit=False).fit(X * 1e150, y)
    first, second = scores.cv_results_["mean_test_score"]
    assert first == second


@pytest.mark.parametrize(
    ("params", "grid"),
    [
        ({"early_stopping": True}, {"validation_fraction": [0.1, 0.999]}),
        ({"lr_schedule": "step"}, {"lr_schedule__step_size": [2, 0]}),
        ({"lr_schedule": "one_cycle"}, {"lr_schedule__pct_start": [0.3, 2.0]}),
        ({"lr_schedule": "exponential"}, {"lr_schedule__gamma": [0.9, "x"]}),
    ],
    ids=str,
)
def test_options_that_only_training_shows_to_be_wrong(params, grid):
    X, y = rows()
    model = clone(LINEAR).set_params(**params)
    with pytest.warns(FitFailedWarning):
        ours, _ = compare(model, grid, X, y)
    assert np.isfinite(ours.cv_results_["mean_test_score"]).tolist() == [True, False]


def test_coefficients_that_no_float32_holds():
    X, y = rows()
    X, y = (X * 1e-30).astype(np.float32), (y * 1e20).astype(np.float32)
    exact = TorchLinearRegressor()
    with pytest.warns(FitFailedWarning, match="float32"):
        search = BatchedGridSearchCV(exact, {"alpha": [0, 1e28]}, refit=False).fit(X, y)
    # where scikit-learn's own score overflows, as it is taken in single precision
    assert np.isfinite(search.cv_results_["mean_test_score"]).tolist() == [False, True]
    for cls in (BatchedGridSearchCV, GridSearchCV):
        with pytest.raises(ValueError, match="All the 30 fits failed"):
            cls(clone(LINEAR), RATES, refit=False).fit(X, y)


def test_a_default_device_of_the_users():
    X, y = rows()
    expected = BatchedGridSearchCV(LINEAR, RATES).fit(X, y).cv_results_["mean_test_score"]
    with torch.device("meta"):
        found = BatchedGridSearchCV(LINEAR, RATES).fit(X, y).cv_results_["mean_test_score"]
    np.testing.assert_array_equal(found, expected)


class Twice(BatchedGridSearchCV):
    def _run_search(self, evaluate_candidates, callback_ctx=None):
        evaluate_candidates([{"lr": 0.1}, {"lr": 0.01}])
        evaluate_candidates([{"lr": 0.05}], callback_ctx=callback_ctx)
        evaluate_candidates([{"lr": 0.02}], callback_ctx=callback_ctx)


class Plain(BatchedGridSearchCV):
    def _run_search(self, evaluate_candidates):
        evaluate_candidates([{"lr": 0.1}, {"lr": 0.01}])
        evaluate_candidates([{"optimizer": "lbfgs"}])


@pytest.mark.parametrize("cls", [Twice, Plain])
def test_searches_of_somebody_elses(cls):
    search = cls(LINEAR, {}, cv=3).fit(*rows())
    assert len(search.cv_results_["params"]) == (4 if cls is Twice else 3)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


MEMORY = """
import resource, sys
import numpy as np
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sktorch_linreg import BatchedGridSearchCV, TorchLinearRegressor

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

model = TorchLinearRegressor(optimizer="sgd", max_epochs=1, batch_size=1000, random_state=0)
pipe = make_pipeline(StandardScaler(), model)
rates = np.geomspace(1e-4, 0.05, 50)
grid = {"standardscaler__with_mean": [True, False], "torchlinearregressor__lr": rates}
X = np.ones((300_000, 20)) * np.arange(20) + np.random.default_rng(0).normal(size=(300_000, 1))
y = X[:, 0]
if sys.argv[2] == "seeds":
    pipe = TorchLinearRegressor(batch_size=1000, max_epochs=1, early_stopping=True)
    grid = {"random_state": range(12)}
search = BatchedGridSearchCV(pipe, grid, refit=False, max_memory=int(sys.argv[1]))
search.fit(X[:1000], y[:1000])
before = peak()
search.fit(X, y)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the peak of a process is read in Unix's way")
@pytest.mark.parametrize("kind", ["pipeline", "seeds"])
def test_memory_stays_within_what_is_stated(kind):
    mib = 2**20
    # the rows of a fold take 144 MiB with their copies, those of all folds and settings 1440
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(350 * mib), kind],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) < 350 * mib


class OtherPipeline(Pipeline):
    """Stands for one whose steps may change the rows, such as imbalanced-learn's."""


def test_pipelines_of_other_packages_are_run_as_they_are(capsys):
    X, y = rows()
    compare(OtherPipeline([("scale", StandardScaler()), ("model", LINEAR)]), {}, X, y, verbose=1)
    assert f"{__name__}.OtherPipeline is not an estimator of this package" in n_stacked(capsys)
