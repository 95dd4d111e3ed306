"""Packages built on scikit-learn's interface, tried with the estimators of sktorch_linreg.

Each function tries one package and returns what to write about it; run the file to print a table.
An exact least-squares fit must give what LinearRegression gives, a network a sane score.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.multioutput import RegressorChain
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktorch_linreg import BatchedGridSearchCV, TorchLinearRegressor, TorchMLPRegressor

X, y = load_diabetes(return_X_y=True)
FRAME, SERIES = load_diabetes(return_X_y=True, as_frame=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.25, random_state=0)
KINDS = (LinearRegression, TorchLinearRegressor)
NEIGHBOURS: list[tuple[str, str, Any]] = []


def neighbour(package: str, tried: str) -> Any:
    """Register a function for the table under the name of the package on PyPI."""

    def register(function: Any) -> Any:
        NEIGHBOURS.append((package, tried, function))
        return function

    return register


def network(**settings: Any) -> TorchMLPRegressor:
    """A small network that trains in a fraction of a second."""
    defaults = {"hidden_layer_sizes": (16,), "lr": 0.01, "batch_size": 32}
    epochs = {"max_epochs": 20, "tol": None, "random_state": 0}
    return TorchMLPRegressor(**{**defaults, **epochs, **settings})


def search(**settings: Any) -> BatchedGridSearchCV:
    """A search over learning rates of a linear model."""
    model = TorchLinearRegressor(optimizer="adam", batch_size=32, max_epochs=20, random_state=0)
    return BatchedGridSearchCV(model, {"lr": [1e-3, 1e-2, 1e-1]}, **{"cv": 3, **settings})


def same(found: Any, expected: Any, rtol: float = 1e-6) -> None:
    """Equality up to rounding, relative to the largest value."""
    expected = np.asarray(expected, float)
    atol = rtol * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(found, float), expected, rtol=rtol, atol=atol)


def partially_linear() -> tuple[Any, Any, Any]:
    """Rows of Y = 2 T + x_0 + noise, where T depends on x, for estimates of the effect 2."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(1000, 4))
    treatment = rows[:, 0] + 0.5 * rows[:, 1] + rng.normal(size=1000)
    return 2.0 * treatment + rows[:, 0] + rng.normal(size=1000), treatment, rows


def monthly() -> pd.Series:
    """Ten years of a trend with a season."""
    index = pd.period_range("2010-01", periods=120, freq="M")
    months, noise = np.arange(120), np.random.default_rng(0).normal(size=120)
    return pd.Series(100 + months + 10 * np.sin(months * np.pi / 6) + noise, index, name="sales")


@neighbour("MAPIE", "Split-, CrossConformal- and JackknifeAfterBootstrapRegressor")
def mapie_intervals() -> str:
    from mapie.regression import (
        CrossConformalRegressor,
        JackknifeAfterBootstrapRegressor,
        SplitConformalRegressor,
    )

    def split(model: Any) -> Any:
        mapie = SplitConformalRegressor(model, confidence_level=0.9, prefit=False)
        mapie.fit(X_train[:200], y_train[:200]).conformalize(X_train[200:], y_train[200:])
        return mapie.predict_interval(X_test)

    def jackknife(model: Any) -> Any:
        mapie = JackknifeAfterBootstrapRegressor(
            model, confidence_level=0.9, resampling=10, random_state=0
        )
        return mapie.fit_conformalize(X_train, y_train).predict_interval(X_test)

    def cross(model: Any) -> Any:
        mapie = CrossConformalRegressor(model, confidence_level=0.9, cv=5, random_state=0)
        return mapie.fit_conformalize(X_train, y_train).predict_interval(X_test)

    def coverage(intervals: Any) -> float:
        lower, upper = intervals[:, 0, 0], intervals[:, 1, 0]
        return float(((lower <= y_test) & (y_test <= upper)).mean())

    for method in (split, cross, jackknife):
        (points, intervals), (expected, around) = (method(kind()) for kind in reversed(KINDS))
        same(points, expected)
        same(intervals, around)
        for model in (network(), search()):
            assert 0.75 < coverage(method(model)[1]) < 1.0
    return "works"


@neighbour("MAPIE", "ConformalizedQuantileRegressor")
def mapie_quantiles() -> str:
    from mapie.regression import ConformalizedQuantileRegressor
    from sklearn.linear_model import QuantileRegressor

    model = TorchLinearRegressor(loss="quantile", loss__quantile=0.5)
    rows, calibration = slice(None, 200), slice(200, None)
    try:
        ConformalizedQuantileRegressor(model).fit(X_train[rows], y_train[rows])
    except ValueError as error:
        assert "The base model is not supported" in str(error)  # noqa: PT017
    else:
        return "works"

    def intervals(models: Any) -> Any:
        fitted = [model.fit(X_train[rows], y_train[rows]) for model in models]
        mapie = ConformalizedQuantileRegressor(fitted, confidence_level=0.9, prefit=True)
        mapie.conformalize(X_train[calibration], y_train[calibration])
        return mapie.predict_interval(X_test)[1][:, :, 0]

    levels = (0.05, 0.95, 0.5)  # lower, upper, median
    found = intervals([TorchLinearRegressor(loss="quantile", loss__quantile=q) for q in levels])
    expected = intervals([QuantileRegressor(quantile=q, alpha=0) for q in levels])
    same(found, expected, rtol=0.02)
    networks = intervals([network(loss="quantile", loss__quantile=q) for q in levels])
    for lower, upper in (found.T, networks.T):
        assert 0.8 < ((lower <= y_test) & (y_test <= upper)).mean() < 1.0
    return "works with `prefit=True` and fitted models for the lower, upper and median quantile"


@neighbour("MAPIE", "CrossConformalizedQuantileRegressor")
def mapie_cross_quantiles() -> str:
    from mapie.regression import CrossConformalizedQuantileRegressor
    from sklearn.linear_model import QuantileRegressor

    known = CrossConformalizedQuantileRegressor.quantile_estimator_params
    listed = "TorchLinearRegressor" in known
    for cls in (TorchLinearRegressor, TorchMLPRegressor):
        known.setdefault(cls.__name__, {"loss_name": "loss", "alpha_name": "loss__quantile"})

    def intervals(model: Any) -> Any:
        mapie = CrossConformalizedQuantileRegressor(
            model, confidence_level=0.9, cv=4, random_state=0
        )
        return mapie.fit_conformalize(X_train, y_train).predict_interval(X_test)[1][:, :, 0]

    exact = TorchLinearRegressor(loss="quantile", loss__quantile=0.5)
    same(intervals(exact), intervals(QuantileRegressor(alpha=0)), rtol=0.02)
    lower, upper = intervals(network(loss="quantile", loss__quantile=0.5)).T
    assert 0.8 < ((lower <= y_test) & (y_test <= upper)).mean() < 1.0
    return "works" if listed else "works after an entry in its `quantile_estimator_params`"


@neighbour("MAPIE", "TimeSeriesRegressor (EnbPI)")
def mapie_time_series() -> str:
    from mapie.regression import TimeSeriesRegressor
    from mapie.subsample import BlockBootstrap

    def intervals(model: Any) -> Any:
        cv = BlockBootstrap(n_resamplings=10, n_blocks=8, overlapping=False, random_state=0)
        mapie = TimeSeriesRegressor(model, method="enbpi", cv=cv, agg_function="mean")
        return mapie.fit(X_train, y_train).predict(X_test, confidence_level=0.9)

    (points, around), (expected, limits) = (intervals(kind()) for kind in reversed(KINDS))
    same(points, expected)
    same(around, limits)
    assert r2_score(y_test, intervals(network())[0]) > 0.2
    return "works"


@neighbour("econml", "LinearDML, NonParamDML, CausalForestDML, S-, T- and XLearner, DRLearner")
def econml_effects() -> str:
    from econml.dml import CausalForestDML, LinearDML, NonParamDML
    from econml.dr import DRLearner
    from econml.metalearners import SLearner, TLearner, XLearner
    from sklearn.linear_model import LogisticRegression

    outcome, treatment, rows = partially_linear()

    def linear(make: Any) -> Any:
        effect = LinearDML(model_y=make(), model_t=make(), cv=3, random_state=0)
        effect.fit(outcome, treatment, X=rows[:, :1], W=rows[:, 1:])
        inference = effect.intercept__inference()
        return np.hstack([effect.coef_.ravel(), effect.intercept_, np.ravel(inference.stderr)])

    found, expected = linear(TorchLinearRegressor), linear(LinearRegression)
    same(found, expected)
    assert abs(expected[1] - 2) < 0.1
    for make in (network, search):
        assert abs(linear(make)[1] - 2) < 0.2
    weights = np.random.default_rng(1).uniform(0.5, 2.0, size=len(outcome))
    weighted = [
        NonParamDML(model_y=kind(), model_t=kind(), model_final=kind(), cv=3, random_state=0)
        .fit(outcome, treatment, X=rows, sample_weight=weights)
        .effect(rows)
        for kind in KINDS
    ]
    same(weighted[1], weighted[0])
    forest = CausalForestDML(model_y=network(), model_t=network(), n_estimators=40, random_state=0)
    forest.fit(outcome, treatment, X=rows)
    assert abs(forest.effect(rows).mean() - 2) < 0.4
    treated = (treatment > 0).astype(int)
    outcome = outcome - 2 * treatment + 2 * treated

    def learners(make: Any) -> Any:
        logistic = LogisticRegression()
        yield SLearner(overall_model=make())
        yield TLearner(models=make())
        yield XLearner(models=make(), propensity_model=logistic)
        yield DRLearner(
            model_propensity=logistic,
            model_regression=make(),
            model_final=make(),
            cv=3,
            random_state=0,
        )

    learned = [
        [learner.fit(outcome, treated, X=rows).effect(rows) for learner in learners(make)]
        for make in (LinearRegression, TorchLinearRegressor, network)
    ]
    same(learned[1], learned[0])
    assert (abs(np.mean(learned[2], axis=1) - 2) < 0.4).all()
    return "works"


@neighbour("DoubleML", "DoubleMLPLR (with tune), DoubleMLIRM")
def doubleml_effects() -> str:
    import doubleml
    from sklearn.linear_model import LogisticRegression

    outcome, treatment, rows = partially_linear()

    def partially(make: Any) -> Any:
        np.random.seed(0)  # noqa: NPY002 - DoubleML draws its folds from the global state
        data = doubleml.DoubleMLData.from_arrays(rows, outcome, treatment)
        return doubleml.DoubleMLPLR(data, make(), make(), n_folds=3)

    def effect(make: Any) -> Any:
        model = partially(make).fit()
        return np.ravel([model.coef, model.se])

    same(effect(TorchLinearRegressor), effect(LinearRegression))
    for make in (network, search):
        assert abs(effect(make)[0] - 2) < 0.2
    tuned = partially(lambda: TorchLinearRegressor(optimizer="adam", max_epochs=50))
    grid = {"lr": [1e-4, 1e-1]}
    tuned.tune({"ml_l": grid, "ml_m": grid}, n_folds_tune=3)
    assert abs(tuned.fit().coef[0] - 2) < 0.1

    treated = (treatment > 0).astype(float)
    result = outcome - 2 * treatment + 2 * treated

    def interactive(model: Any) -> Any:
        np.random.seed(0)  # noqa: NPY002
        data = doubleml.DoubleMLData.from_arrays(rows, result, treated)
        return doubleml.DoubleMLIRM(data, model, LogisticRegression(), n_folds=3).fit().coef

    same(interactive(TorchLinearRegressor()), interactive(LinearRegression()))
    assert abs(interactive(network())[0] - 2) < 0.3
    return "works"


@neighbour("sktime", "make_reduction (recursive, direct, multioutput), ForecastingGridSearchCV")
def sktime_forecasts() -> str:
    from sktime.forecasting.compose import make_reduction
    from sktime.forecasting.model_selection import ForecastingGridSearchCV
    from sktime.split import ExpandingWindowSplitter

    series = monthly()
    past, future, steps = series[:108], series[108:], np.arange(1, 13)

    def forecast(model: Any, strategy: str) -> Any:
        reduction = make_reduction(model, window_length=24, strategy=strategy)
        return reduction.fit(past, fh=steps).predict()

    for strategy in ("recursive", "direct", "multioutput"):
        found, expected = (forecast(kind(), strategy) for kind in reversed(KINDS))
        same(found, expected)
        for model in (network(max_epochs=200), search()):
            assert mean_absolute_error(future, forecast(model, strategy)) < 30
    reduction = make_reduction(network(), window_length=12, strategy="recursive")
    windows = ExpandingWindowSplitter(fh=steps, initial_window=72, step_length=12)
    grid = {"estimator__lr": [1e-4, 1e-2]}
    tuned = ForecastingGridSearchCV(reduction, windows, grid).fit(past, fh=steps)
    assert tuned.best_params_ == {"estimator__lr": 1e-2}
    return "works"


@neighbour(
    "mlforecast", "MLForecast with lags and date features, PredictionIntervals, cross_validation"
)
def mlforecast_forecasts() -> str:
    from mlforecast import MLForecast
    from mlforecast.target_transforms import Differences
    from mlforecast.utils import PredictionIntervals

    series = monthly()
    frames = [
        pd.DataFrame({"unique_id": name, "ds": series.index.to_timestamp(), "y": factor * series})
        for name, factor in (("a", 1.0), ("b", 2.0))
    ]
    data = pd.concat(frames).reset_index(drop=True)
    models = {"sklearn": LinearRegression(), "exact": TorchLinearRegressor(), "network": network()}
    forecast = MLForecast(
        models={**models, "search": search()},
        freq="MS",
        lags=[1, 12],
        date_features=["month"],
        target_transforms=[Differences([1])],
    )
    found = forecast.fit(data, prediction_intervals=PredictionIntervals(n_windows=2, h=12)).predict(
        12, level=[90]
    )
    assert forecast.models_["exact"].feature_names_in_.tolist() == ["lag1", "lag12", "month"]
    for column in ("", "-lo-90", "-hi-90"):
        same(found[f"exact{column}"], found[f"sklearn{column}"])
    tested = forecast.cross_validation(data, n_windows=2, h=12)
    same(tested["exact"], tested["sklearn"])
    for name in ("network", "search"):
        assert mean_absolute_error(tested["y"], tested[name]) < 20
    return "works"


@neighbour("statsforecast", "SklearnModel with exogenous columns")
def statsforecast_models() -> str:
    from statsforecast import StatsForecast
    from statsforecast.models import SklearnModel

    series = monthly()
    months = np.arange(120)
    data = pd.DataFrame(
        {
            "unique_id": "a",
            "ds": series.index.to_timestamp(),
            "y": series.to_numpy(),
            "month": months,
            "season": np.sin(months * np.pi / 6),
        }
    )
    models = {"sklearn": LinearRegression(), "exact": TorchLinearRegressor(), "network": network()}
    wrapped = [SklearnModel(model, alias=name) for name, model in models.items()]
    forecast = StatsForecast(models=wrapped, freq="MS")
    past, future = data[:108], data[108:].drop(columns="y")
    found = forecast.forecast(df=past, h=12, X_df=future)
    same(found["exact"], found["sklearn"], rtol=1e-5)
    assert mean_absolute_error(data["y"][108:], found["network"]) < 30
    return "works"


@neighbour("mlxtend", "SequentialFeatureSelector, StackingCVRegressor, bias_variance_decomp")
def mlxtend_selection() -> str:
    from mlxtend.evaluate import bias_variance_decomp, feature_importance_permutation
    from mlxtend.feature_selection import ExhaustiveFeatureSelector, SequentialFeatureSelector
    from mlxtend.plotting import plot_learning_curves
    from mlxtend.regressor import StackingCVRegressor, StackingRegressor

    def chosen(model: Any) -> Any:
        return SequentialFeatureSelector(model, k_features=4, scoring="r2", cv=3).fit(X, y)

    found, expected = (chosen(kind()) for kind in reversed(KINDS))
    assert found.k_feature_idx_ == expected.k_feature_idx_
    same(found.k_score_, expected.k_score_)
    assert chosen(network()).k_score_ > 0.35
    pairs = ExhaustiveFeatureSelector(
        TorchLinearRegressor(), max_features=2, scoring="r2", cv=3, print_progress=False
    )
    assert pairs.fit(X, y).best_feature_names_ == ("2", "8")
    for stacking in (StackingRegressor, StackingCVRegressor):
        given = {"random_state": 0, "cv": 3} if stacking is StackingCVRegressor else {}
        stacks = [
            stacking([kind(), kind(positive=True)], meta_regressor=kind(), **given).fit(X, y)
            for kind in KINDS
        ]
        same(stacks[1].predict(X), stacks[0].predict(X), rtol=1e-4)
        mixed = stacking([network(), search()], meta_regressor=TorchLinearRegressor(), **given)
        assert mixed.fit(X, y).score(X, y) > 0.4
    parts = [
        bias_variance_decomp(
            kind(), X_train, y_train, X_test, y_test, loss="mse", num_rounds=20, random_seed=0
        )
        for kind in KINDS
    ]
    same(parts[1], parts[0])
    loss, bias, variance = bias_variance_decomp(
        network(), X_train, y_train, X_test, y_test, loss="mse", num_rounds=10, random_seed=0
    )
    assert abs(loss - bias - variance) < 1e-6 * loss
    fitted = network().fit(X, y)
    importance, _ = feature_importance_permutation(X, y, fitted.predict, metric="r2", seed=0)
    assert importance.argmax() in (2, 8)
    import matplotlib

    matplotlib.use("Agg")
    curves = [
        plot_learning_curves(
            X_train, y_train, X_test, y_test, kind(), scoring="r2", print_model=False
        )
        for kind in KINDS
    ]
    same(curves[1], curves[0])
    return "works"


@neighbour("feature-engine", "selectors over our estimators, transformers in pipelines")
def feature_engine_pipelines() -> str:
    from feature_engine.discretisation import EqualFrequencyDiscretiser
    from feature_engine.encoding import OneHotEncoder
    from feature_engine.imputation import MeanMedianImputer
    from feature_engine.selection import (
        RecursiveFeatureElimination,
        SelectByShuffling,
        SelectBySingleFeaturePerformance,
    )
    from feature_engine.wrappers import SklearnTransformerWrapper

    def dropped(kind: Any, model: Any) -> Any:
        given = {"scoring": "r2", "cv": 3}
        if kind is SelectByShuffling:
            given["random_state"] = 0
        selector = kind(model, **given).fit(FRAME, SERIES)
        return selector.features_to_drop_

    selectors = (SelectByShuffling, SelectBySingleFeaturePerformance, RecursiveFeatureElimination)
    for kind in selectors:
        assert dropped(kind, TorchLinearRegressor()) == dropped(kind, LinearRegression())
    for kind in selectors[:2]:
        assert "bmi" not in dropped(kind, network())
    frame = FRAME.assign(sex=np.where(FRAME["sex"] > 0, "m", "f"))
    frame.loc[::20, "bmi"] = np.nan

    def pipeline(model: Any) -> Any:
        scaler = SklearnTransformerWrapper(StandardScaler(), variables=["age", "s5"])
        steps = (MeanMedianImputer(), OneHotEncoder(), EqualFrequencyDiscretiser(variables=["s1"]))
        return make_pipeline(*steps, scaler, model).fit(frame, SERIES)

    found, expected = (pipeline(kind()).predict(frame) for kind in reversed(KINDS))
    same(found, expected)
    assert pipeline(network()).score(frame, SERIES) > 0.4
    grid = {"torchmlpregressor__lr": [1e-4, 1e-2]}
    tuned = BatchedGridSearchCV(pipeline(network()), grid, cv=3).fit(frame, SERIES)
    assert tuned.best_params_ == {"torchmlpregressor__lr": 1e-2}
    return "works"


@neighbour("shap", "Explainer, KernelExplainer, LinearExplainer, DeepExplainer")
def shap_values() -> str:
    import shap

    background, rows = X[:50], X[50:54]
    exact, trained = TorchLinearRegressor().fit(X, y), network().fit(X, y)
    plain = LinearRegression().fit(X, y)
    same(
        shap.LinearExplainer(exact, background).shap_values(rows),
        shap.LinearExplainer(plain, background).shap_values(rows),
    )
    for model in (exact, trained, search().fit(X, y)):
        expected = model.predict(rows) - model.predict(background).mean()
        explanation = shap.Explainer(model.predict, background)(rows, silent=True)
        same(explanation.values.sum(axis=1), expected, rtol=1e-4)
        kernel = shap.KernelExplainer(model.predict, background)
        same(kernel.shap_values(rows, silent=True).sum(axis=1), expected, rtol=1e-4)
    found, expected = (shap.Explainer(model, background)(rows) for model in (exact, plain))
    same(found.values, expected.values)
    deep = shap.DeepExplainer(trained.module_, torch.tensor(background, dtype=torch.float32))
    values = deep.shap_values(torch.tensor(rows, dtype=torch.float32))
    expected = trained.predict(rows) - trained.predict(background).mean()
    same(np.squeeze(values).sum(axis=1), expected, rtol=1e-4)
    return "works; `DeepExplainer` takes `model.module_`"


@neighbour("scikit-optimize", "BayesSearchCV, gp_minimize")
def skopt_search() -> str:
    from skopt import BayesSearchCV, gp_minimize
    from skopt.space import Categorical, Real

    rates = Real(1e-4, 1.0, prior="log-uniform")
    space = {"lr": rates, "optimizer": Categorical(["sgd", "adam"])}
    linear = TorchLinearRegressor(max_epochs=20, batch_size=32, random_state=0)
    for model in (linear, network()):
        tuned = BayesSearchCV(model, space, n_iter=8, cv=3, random_state=0).fit(X, y)
        assert tuned.best_score_ > 0.4
    result = gp_minimize(
        lambda point: -network(lr=point[0]).fit(X_train, y_train).score(X_test, y_test),
        [rates],
        n_calls=10,
        random_state=0,
    )
    assert result.fun < -0.2
    return "works"


@neighbour("optuna", "OptunaSearchCV, pruning with partial_fit, SkorchPruningCallback")
def optuna_search() -> str:
    import optuna
    from optuna_integration import OptunaSearchCV, SkorchPruningCallback

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rates = optuna.distributions.FloatDistribution(1e-4, 1.0, log=True)
    linear = TorchLinearRegressor(optimizer="adam", max_epochs=20, random_state=0)
    for model in (linear, network()):
        tuned = OptunaSearchCV(model, {"lr": rates}, cv=3, n_trials=10, random_state=0).fit(X, y)
        assert tuned.best_score_ > 0.4

    def by_epochs(trial: Any) -> float:
        model = network(lr=trial.suggest_float("lr", 1e-6, 0.1, log=True))
        for epoch in range(15):
            score = model.partial_fit(X_train, y_train).score(X_test, y_test)
            trial.report(score, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return score

    def by_callback(trial: Any) -> float:
        callbacks = [SkorchPruningCallback(trial, "valid_loss")]
        rate = trial.suggest_float("lr", 1e-6, 0.1, log=True)
        model = network(lr=rate, early_stopping=True, callbacks=callbacks, n_iter_no_change=20)
        return -model.fit(X_train, y_train).best_loss_

    for objective in (by_epochs, lambda trial: -by_callback(trial)):
        study = optuna.create_study(
            direction="maximize" if objective is by_epochs else "minimize",
            sampler=optuna.samplers.RandomSampler(seed=0),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=2),
        )
        study.optimize(objective, n_trials=12)
        assert optuna.trial.TrialState.PRUNED in {trial.state for trial in study.trials}
    return "works"


def run_alone(code: str) -> str:
    """Output of code in a process and a folder of its own, which autologging requires."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            cwd=folder,
            env={**os.environ, "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "0"},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


MLFLOW_START = """
import mlflow
from sklearn.datasets import load_diabetes
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sktorch_linreg import BatchedGridSearchCV, TorchLinearRegressor, TorchMLPRegressor

X, y = load_diabetes(return_X_y=True)
mlflow.set_tracking_uri("sqlite:///runs.db")
linear = TorchLinearRegressor(optimizer="adam", lr=0.1, max_epochs=20, random_state=0)
network = TorchMLPRegressor(lr=0.01, max_epochs=20, tol=None, random_state=0)
grid = {"lr": [1e-3, 0.1]}
"""

MLFLOW_AUTOLOG = """
mlflow.sklearn.autolog(silent=True)
logged = {}
for name, model in {
    "linear": linear,
    "network": network,
    "search": BatchedGridSearchCV(linear, grid),
    "pipeline": make_pipeline(network),
    "exact pipeline": make_pipeline(TorchLinearRegressor()),
    "pipeline of a search": make_pipeline(BatchedGridSearchCV(linear, grid)),
    "GridSearchCV": GridSearchCV(linear, grid),
}.items():
    with mlflow.start_run() as run:
        model.fit(X, y)
    run = mlflow.get_run(run.info.run_id)
    logged[name] = (len(run.data.params), run.data.metrics.get("training_r2_score"))
    if name == "pipeline":
        again = mlflow.sklearn.load_model(f"runs:/{run.info.run_id}/model")
        assert (again.predict(X) == model.predict(X)).all()
print(logged)
"""

MLFLOW_BY_HAND = """
import skops.io
from skorch.callbacks import MlflowLogger

refused = 0
for model in (TorchLinearRegressor(), network, BatchedGridSearchCV(linear, grid)):
    with mlflow.start_run() as run:
        model.fit(X, y)
        mlflow.log_params(model.get_params())
        mlflow.log_metric("r2", model.score(X, y))
        try:
            mlflow.sklearn.log_model(model, name="model")
        except mlflow.exceptions.MlflowException as error:
            assert "untrusted types" in str(error)
            refused += 1
        trusted = skops.io.get_untrusted_types(data=skops.io.dumps(model))
        info = mlflow.sklearn.log_model(model, name="model", skops_trusted_types=trusted)
    run = mlflow.get_run(run.info.run_id)
    assert run.data.metrics["r2"] == model.score(X, y) and run.data.params
    for flavor in (mlflow.sklearn, mlflow.pyfunc):
        assert (flavor.load_model(info.model_uri).predict(X) == model.predict(X)).all()
network.set_params(callbacks=[MlflowLogger(create_artifact=False, terminate_after_train=False)])
with mlflow.start_run() as run:
    network.fit(X, y)
history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train_loss")
assert [step.value for step in history] == network.loss_curve_
print(refused)
"""


@neighbour("mlflow", "sklearn.autolog")
def mlflow_autolog() -> str:
    import ast

    import mlflow  # noqa: F401

    logged = ast.literal_eval(run_alone(MLFLOW_START + MLFLOW_AUTOLOG))
    r2 = LinearRegression().fit(X, y).score(X, y)
    assert abs(logged["exact pipeline"][1] - r2) < 1e-9
    assert logged["pipeline"][1] > 0.4
    assert logged["pipeline of a search"][0] > 0
    assert logged["GridSearchCV"][0] > 0
    if any(logged[name][0] for name in ("linear", "network", "search")):
        return "works"
    assert all(logged[name] == (0, None) for name in ("linear", "network", "search"))
    return "works in a `Pipeline` or a `GridSearchCV`; logs nothing for a bare estimator or search"


@neighbour("mlflow", "sklearn.log_model and load_model, pyfunc, skorch's MlflowLogger")
def mlflow_by_hand() -> str:
    import mlflow  # noqa: F401

    if run_alone(MLFLOW_START + MLFLOW_BY_HAND) == "0":
        return "works"
    return "works with `skops_trusted_types` naming our classes; `MlflowLogger` logs each epoch"


@neighbour(
    "yellowbrick", "ResidualsPlot, PredictionError, CVScores, FeatureImportances, ValidationCurve"
)
def yellowbrick_plots() -> str:
    import matplotlib

    matplotlib.use("Agg")
    from yellowbrick.exceptions import YellowbrickTypeError
    from yellowbrick.model_selection import CVScores, FeatureImportances, ValidationCurve
    from yellowbrick.regressor import PredictionError, ResidualsPlot

    for plot in (ResidualsPlot, PredictionError):
        expected, found, of_network, of_search = (
            plot(model, force_model=True).fit(X_train, y_train).score(X_test, y_test)
            for model in (LinearRegression(), TorchLinearRegressor(), network(), search())
        )
        same(found, expected)
        assert min(of_network, of_search) > 0.2
    expected, found = (CVScores(kind(), cv=3).fit(X, y).cv_scores_ for kind in KINDS)
    same(found, expected)
    expected, found = (FeatureImportances(kind()).fit(X, y).feature_importances_ for kind in KINDS)
    same(found, expected)
    curve = ValidationCurve(network(), param_name="lr", param_range=[1e-4, 1e-2], cv=3).fit(X, y)
    assert curve.test_scores_mean_[1] > curve.test_scores_mean_[0]
    refused = []
    for kind in KINDS:
        try:
            ResidualsPlot(kind())
        except YellowbrickTypeError:
            refused.append(kind)
    if not refused:
        return "works"
    assert LinearRegression in refused  # yellowbrick reads an attribute of older scikit-learns
    return "works; plots of residuals need `force_model=True`, with LinearRegression too"


@neighbour("yellowbrick", "LearningCurve")
def yellowbrick_learning_curve() -> str:
    import matplotlib

    matplotlib.use("Agg")
    from sklearn.model_selection import learning_curve
    from yellowbrick.model_selection import LearningCurve

    sizes = [0.5, 1.0]

    def scores(model: Any) -> Any:
        return LearningCurve(model, cv=3, train_sizes=sizes).fit(X, y).test_scores_

    def expected(model: Any) -> Any:
        return learning_curve(model, X, y, cv=3, train_sizes=sizes)[2]

    for model in (TorchLinearRegressor(random_state=0), network()):
        same(scores(make_pipeline(model)), expected(model))
    bare, rows = TorchLinearRegressor(random_state=0), expected(TorchLinearRegressor())
    if np.allclose(scores(bare), rows):
        return "works"
    shuffled = learning_curve(bare, X, y, cv=3, train_sizes=sizes, shuffle=True, random_state=0)[2]
    same(scores(bare), shuffled)
    return "works with `make_pipeline(model)`; alone, `shuffle` of the model replaces the curve's"


@neighbour(
    "skorch", "EpochScoring, EarlyStopping, Checkpoint, LRScheduler, Freezer, Initializer, ..."
)
def skorch_callbacks() -> str:
    from skorch import callbacks

    with tempfile.TemporaryDirectory() as folder:
        listed = [
            ("r2", callbacks.EpochScoring("r2", lower_is_better=False)),
            ("batches", callbacks.BatchScoring("neg_mean_squared_error", name="mse")),
            ("clip", callbacks.GradientNormClipping(1.0)),
            ("rates", callbacks.LRScheduler("StepLR", step_size=5, gamma=0.5)),
            ("stop", callbacks.EarlyStopping("valid_loss", patience=50)),
            ("best", callbacks.Checkpoint("valid_loss_best", dirname=folder, load_best=True)),
            ("end", callbacks.TrainEndCheckpoint(dirname=folder)),
            ("time", callbacks.EpochTimer()),
            ("print", callbacks.PrintLog(sink=lambda text: None)),
        ]
        linear = TorchLinearRegressor(optimizer="adam", lr=0.05, batch_size=32, random_state=0)
        for model in (linear.set_params(max_epochs=20), network()):
            model.set_params(callbacks=listed, early_stopping=True, n_iter_no_change=50)
            model.fit(X, y)
            assert model.score(X, y) > 0.4
            last = model.history_[-1]
            assert last["r2"] > 0.2
            assert last["dur"] > 0
            assert {"params.pt", "train_end_params.pt"} <= set(os.listdir(folder))
    short, long = (
        network(callbacks=[callbacks.Freezer("layers.0.*")], max_epochs=n).fit(X, y)
        for n in (5, 10)
    )
    same(long.coefs_[0], short.coefs_[0])
    assert not np.allclose(long.coefs_[1], short.coefs_[1])
    zeros = [callbacks.Initializer("*", fn=torch.nn.init.zeros_)]
    same(
        network(callbacks=zeros, max_epochs=1, lr=1e-12).fit(X, y).predict(X),
        np.full(len(y), y.mean()),
    )
    scoring = callbacks.EpochScoring("r2", lower_is_better=False, on_train=True)
    model = network(callbacks=[("r2", scoring)])
    tuned = BatchedGridSearchCV(model, {"lr": [1e-4, 1e-2]}, cv=3).fit(X, y)
    assert tuned.best_params_ == {"lr": 1e-2}
    return "works"


@neighbour("skl2onnx", "to_onnx of pipelines, searches and ensembles")
def skl2onnx_pipelines() -> str:
    import onnxruntime
    from skl2onnx import to_onnx
    from sklearn.ensemble import BaggingRegressor, StackingRegressor, VotingRegressor
    from sklearn.multioutput import MultiOutputRegressor

    from sktorch_linreg.interop import register_onnx_converters

    register_onnx_converters()
    rows, both = X.astype(np.float32), np.column_stack([y, -y])
    pair = [("exact", TorchLinearRegressor()), ("network", network())]
    for model in (
        TorchLinearRegressor(),
        network(),
        search(),
        make_pipeline(StandardScaler(), network()),
        VotingRegressor(pair),
        StackingRegressor(pair, final_estimator=TorchLinearRegressor()),
        BaggingRegressor(network(), n_estimators=3, random_state=0),
        MultiOutputRegressor(network()),
        GridSearchCV(network(), {"lr": [1e-3, 1e-2]}, cv=2),
    ):
        model.fit(X, both if isinstance(model, MultiOutputRegressor) else y)
        session = onnxruntime.InferenceSession(to_onnx(model, rows[:1]).SerializeToString())
        (found,) = session.run(None, {"X": rows})
        same(found.reshape(model.predict(X).shape), model.predict(X), rtol=1e-4)
    return "works after `register_onnx_converters()`"


@neighbour("skl2onnx", "RegressorChain and TransformedTargetRegressor")
def skl2onnx_composites() -> str:
    import onnxruntime
    from skl2onnx import to_onnx, update_registered_converter
    from skl2onnx.algebra.onnx_operator import OnnxSubEstimator
    from skl2onnx.algebra.onnx_ops import OnnxConcat, OnnxExp, OnnxIdentity, OnnxReshape, OnnxSub
    from skl2onnx.common.data_types import DoubleTensorType
    from skl2onnx.common.exceptions import MissingShapeCalculator

    from sktorch_linreg.interop import register_onnx_converters

    register_onnx_converters()
    rows, both = X.astype(np.float32), np.column_stack([y, np.sqrt(y)])

    def log_target(model: Any) -> Any:
        return TransformedTargetRegressor(model, func=np.log1p, inverse_func=np.expm1).fit(X, y)

    def chain(model: Any) -> Any:
        return RegressorChain(model, order=[1, 0]).fit(X, both)

    missing = 0
    for make in (log_target, chain):
        for kind in KINDS:
            try:
                to_onnx(make(kind()), rows[:1])
            except MissingShapeCalculator:
                missing += 1

    def shapes(operator: Any) -> None:
        model = operator.raw_operator
        n_targets = len(model.estimators_) if isinstance(model, RegressorChain) else 1
        operator.outputs[0].type = type(operator.inputs[0].type)([None, n_targets])

    def convert_chain(scope: Any, operator: Any, container: Any) -> None:
        model, opset = operator.raw_operator, container.target_opset
        seen, columns = operator.inputs[0], []
        for step in model.estimators_:
            column = OnnxSubEstimator(step, seen, op_version=opset)
            columns.append(OnnxReshape(column, np.array([-1, 1]), op_version=opset))
            seen = OnnxConcat(seen, columns[-1], axis=1, op_version=opset)
        ordered = [columns[i] for i in np.argsort(model.order_)]
        last = OnnxConcat(*ordered, axis=1, op_version=opset, output_names=operator.outputs[:1])
        last.add_to(scope, container)

    def convert_log_target(scope: Any, operator: Any, container: Any) -> None:
        model, opset = operator.raw_operator, container.target_opset
        double = isinstance(operator.inputs[0].type, DoubleTensorType)
        one = np.array([1], np.float64 if double else np.float32)
        assert model.inverse_func is np.expm1
        inner = OnnxSubEstimator(model.regressor_, operator.inputs[0], op_version=opset)
        inner = OnnxReshape(inner, np.array([-1, 1]), op_version=opset)
        value = OnnxSub(OnnxExp(inner, op_version=opset), one, op_version=opset)
        last = OnnxIdentity(value, op_version=opset, output_names=operator.outputs[:1])
        last.add_to(scope, container)

    for cls, convert in (
        (RegressorChain, convert_chain),
        (TransformedTargetRegressor, convert_log_target),
    ):
        update_registered_converter(cls, f"Own{cls.__name__}", shapes, convert)
    for model in (TorchLinearRegressor(), network()):
        for fitted in (chain(model), log_target(model)):
            for given, rtol in ((rows, 1e-4), (X, 1e-6)):
                graph = to_onnx(fitted, given[:1], target_opset=18).SerializeToString()
                (found,) = onnxruntime.InferenceSession(graph).run(None, {"X": given})
                same(found.reshape(fitted.predict(X).shape), fitted.predict(X), rtol=rtol)
    if not missing:
        return "works"
    assert missing == 4  # with LinearRegression too
    return "does not, with LinearRegression neither; works with converters of your own"


@neighbour("captum", "DeepLift, IntegratedGradients, FeatureAblation, LayerConductance")
def captum_attributions() -> str:
    from captum import attr

    rows, base = torch.from_numpy(X[1:5]), torch.from_numpy(X[:1])
    exact = TorchLinearRegressor().fit(X, y)
    expected = (X[1:5] - X[:1]) * LinearRegression().fit(X, y).coef_
    trained = network(dtype="float64").fit(X, y)
    for model in (exact, trained):
        difference = model.predict(X[1:5]) - model.predict(X[:1])
        for method in (attr.DeepLift, attr.IntegratedGradients):
            found = method(model.module_).attribute(rows, base).detach().numpy()
            same(found.sum(axis=1), difference, rtol=0.02)
            if model is exact:
                same(found, expected)
    ablated = attr.FeatureAblation(exact.module_).attribute(rows, base).detach().numpy()
    same(ablated, expected)
    layers = [layer for layer in trained.module_.modules() if isinstance(layer, torch.nn.Linear)]
    units = attr.LayerConductance(trained.module_, layers[0]).attribute(rows, base)
    same(units.detach().sum(dim=1), trained.predict(X[1:5]) - trained.predict(X[:1]), rtol=0.02)
    return "works with `model.module_`"


@neighbour("imbalanced-learn", "FunctionSampler in imblearn pipelines and a search")
def imblearn_pipelines() -> str:
    from imblearn import FunctionSampler
    from imblearn.pipeline import make_pipeline as make_sampling_pipeline

    def without_high(rows: Any, target: Any) -> Any:
        keep = target < 250
        return rows[keep], target[keep]

    def pipeline(model: Any) -> Any:
        return make_sampling_pipeline(StandardScaler(), FunctionSampler(func=without_high), model)

    found, expected = (pipeline(kind()).fit(X, y).predict(X) for kind in reversed(KINDS))
    same(found, expected)
    kept = y < 250
    scaled = StandardScaler().fit(X)
    by_hand = LinearRegression().fit(scaled.transform(X[kept]), y[kept])
    same(found, by_hand.predict(scaled.transform(X)))
    assert pipeline(network()).fit(X, y).score(X, y) > 0.3
    grid = {"torchmlpregressor__lr": [1e-4, 1e-2]}
    scores = [
        search_kind(pipeline(network()), grid, cv=3).fit(X, y).cv_results_["mean_test_score"]
        for search_kind in (GridSearchCV, BatchedGridSearchCV)
    ]
    same(scores[1], scores[0], rtol=1e-4)
    return "works"


@neighbour("category_encoders", "TargetEncoder, OneHotEncoder, ... in pipelines and searches")
def category_encoders_pipelines() -> str:
    import category_encoders

    bins = pd.cut(FRAME["age"], 5, labels=list("abcde")).astype(str)
    frame = FRAME.assign(age=bins, sex=np.where(FRAME["sex"] > 0, "m", "f"))
    for encoder in (
        category_encoders.TargetEncoder(),
        category_encoders.OneHotEncoder(use_cat_names=True),
        category_encoders.LeaveOneOutEncoder(),
        category_encoders.BinaryEncoder(),
    ):
        found, expected = (
            make_pipeline(encoder, kind()).fit(frame, SERIES).predict(frame)
            for kind in reversed(KINDS)
        )
        same(found, expected, rtol=1e-5)
        pipeline = make_pipeline(encoder, network())
        assert pipeline.fit(frame, SERIES).score(frame, SERIES) > 0.4
        grid = {"torchmlpregressor__lr": [1e-4, 1e-2]}
        scores = [
            kind(pipeline, grid, cv=3).fit(frame, SERIES).cv_results_["mean_test_score"]
            for kind in (GridSearchCV, BatchedGridSearchCV)
        ]
        same(scores[1], scores[0], rtol=1e-4)
    return "works"


def main() -> None:
    """Try every package and print a Markdown table."""
    wanted, failed = sys.argv[1:], 0
    table = ["| package | version | what was tried | result |", "|---|---|---|---|"]
    for package, tried, function in NEIGHBOURS:
        if wanted and not any(name in function.__name__ for name in wanted):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = function()
        except ImportError as error:
            result = f"not installed ({error})"
        except Exception as error:
            failed += 1
            traceback.print_exc()
            result = f"does not: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "-"
        table.append(f"| {package} | {version} | {tried} | {result} |")
        print(function.__name__, result, file=sys.stderr, flush=True)
    print("\n".join(table))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
