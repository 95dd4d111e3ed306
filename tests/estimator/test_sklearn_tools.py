"""The estimators inside scikit-learn's pipelines, searches and meta-estimators."""

import copy
import pickle

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_diabetes
from sklearn.ensemble import BaggingRegressor, StackingRegressor
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_selection import RFE
from sklearn.inspection import PartialDependenceDisplay, permutation_importance
from sklearn.linear_model import LinearRegression, RANSACRegressor
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    cross_val_score,
    learning_curve,
)
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, PolynomialFeatures, StandardScaler

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor

X, y = load_diabetes(return_X_y=True)
FRAME = load_diabetes(as_frame=True).data
ESTIMATORS = {
    "exact": TorchLinearRegressor(),
    "trained": TorchLinearRegressor(optimizer="adam", lr=0.05, max_epochs=100, random_state=0),
    "mlp": TorchMLPRegressor(
        hidden_layer_sizes=(16,), lr=0.02, max_epochs=40, tol=None, random_state=0
    ),
}


@pytest.fixture(params=list(ESTIMATORS))
def estimator(request):
    return sklearn.clone(ESTIMATORS[request.param])


def test_pipeline_with_column_transformer(estimator):
    frame = FRAME.assign(sex=FRAME["sex"].map(lambda v: "a" if v > 0 else "b"))
    numeric = [c for c in frame if c != "sex"]
    columns = ColumnTransformer([("n", StandardScaler(), numeric), ("s", OneHotEncoder(), ["sex"])])
    pipeline = make_pipeline(columns, estimator).fit(frame, y)
    assert pipeline.score(frame, y) > 0.4


def test_grid_search_over_learning_rates_behind_a_prefix():
    pipeline = make_pipeline(
        PolynomialFeatures(2), TorchLinearRegressor(max_epochs=60, random_state=0)
    )
    name = "torchlinearregressor"
    grid = {f"{name}__lr": [1e-3, 1e-2, 1e-1], f"{name}__optimizer": ["adam", "sgd"]}
    search = GridSearchCV(pipeline, grid, cv=3).fit(X, y)
    assert search.best_params_[f"{name}__lr"] > 1e-3
    assert search.score(X, y) > 0.4
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_searches_and_validation(estimator, n_jobs):
    assert cross_val_score(estimator, X, y, cv=3, n_jobs=n_jobs).min() > 0.2
    if n_jobs == 2:
        return
    grid = {"alpha": [1e-4, 1e-2]}
    assert GridSearchCV(estimator, grid, cv=3).fit(X, y).best_score_ > 0.3
    assert RandomizedSearchCV(estimator, grid, n_iter=2, cv=3).fit(X, y).best_score_ > 0.3
    assert (
        HalvingGridSearchCV(estimator, grid, cv=3, min_resources=100).fit(X, y).n_iterations_ >= 1
    )
    sizes, train, test = learning_curve(estimator, X, y, cv=3, train_sizes=[0.3, 1.0])
    assert len(sizes) == 2
    assert train.shape == test.shape == (2, 3)


def test_meta_estimators(estimator):
    assert (
        TransformedTargetRegressor(estimator, func=np.log1p, inverse_func=np.expm1)
        .fit(X, y)
        .score(X, y)
        > 0.3
    )
    assert BaggingRegressor(estimator, n_estimators=3, random_state=0).fit(X, y).score(X, y) > 0.4
    stack = StackingRegressor([("a", estimator), ("b", LinearRegression())], cv=3)
    assert stack.fit(X, y).score(X, y) > 0.4
    assert MultiOutputRegressor(estimator).fit(X, np.c_[y, -y]).predict(X).shape == (len(X), 2)
    ransac = RANSACRegressor(estimator, min_samples=100, max_trials=3, random_state=0).fit(X, y)
    assert ransac.predict(X).shape == y.shape
    assert permutation_importance(estimator.fit(X, y), X, y, n_repeats=2).importances.shape == (
        10,
        2,
    )


@pytest.mark.parametrize("name", ["exact", "trained"])
def test_recursive_feature_elimination_reads_coef(name):
    selected = RFE(ESTIMATORS[name], n_features_to_select=3).fit(X, y)
    assert selected.support_.sum() == 3


def test_partial_dependence(estimator):
    import matplotlib

    matplotlib.use("Agg")
    display = PartialDependenceDisplay.from_estimator(
        estimator.fit(X, y), X, [0, (1, 2)], grid_resolution=5
    )
    assert len(display.pd_results) == 2


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "joblib"])
def test_copies_predict_alike(estimator, way, tmp_path):
    estimator.fit(X, y)
    if way == "pickle":
        other = pickle.loads(pickle.dumps(estimator))
    elif way == "deepcopy":
        other = copy.deepcopy(estimator)
    else:
        joblib.dump(estimator, tmp_path / "model.joblib")
        other = joblib.load(tmp_path / "model.joblib")
    np.testing.assert_array_equal(other.predict(X), estimator.predict(X))
    np.testing.assert_allclose(other.net_.predict(X)[:, 0], estimator.predict(X), rtol=1e-4)
    assert other.history_ == estimator.history_


def test_state_is_plain_python_and_numpy(estimator):
    def walk(value, path):
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{path}.{key}")
        elif isinstance(value, list | tuple):
            for i, item in enumerate(value):
                walk(item, f"{path}[{i}]")
        else:
            kinds = (np.ndarray, np.generic, int, float, str, bool, type(None), bytes)
            assert isinstance(value, kinds), (path, type(value))
            assert not isinstance(value, np.ndarray) or value.size < 6000, path

    walk(estimator.fit(X, y).__getstate__(), "state")
    walk(estimator.set_params(warm_start=True).fit(X, y).__getstate__(), "state")


def test_deep_copies_and_warm_started_pickles_go_on_with_partial_fit():
    whole = TorchLinearRegressor().fit(X, y)
    first = TorchLinearRegressor().fit(X[:300], y[:300])
    assert_close = np.testing.assert_allclose
    assert_close(copy.deepcopy(first).partial_fit(X[300:], y[300:]).coef_, whole.coef_, rtol=1e-8)
    assert_close(copy.copy(first).partial_fit(X[300:], y[300:]).coef_, whole.coef_, rtol=1e-8)
    first.set_params(warm_start=True)
    again = pickle.loads(pickle.dumps(first))
    assert_close(again.partial_fit(X[300:], y[300:]).coef_, whole.coef_, rtol=1e-8)


@pytest.mark.parametrize("to_frame", [lambda f: f, lambda f: pl.from_pandas(f)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_frames_keep_names_and_precision(estimator, to_frame, dtype):
    frame = to_frame(FRAME.astype(dtype))
    estimator.fit(frame, y)
    np.testing.assert_array_equal(estimator.feature_names_in_, list(FRAME.columns))
    assert estimator.n_features_in_ == 10
    assert estimator.predict(frame).dtype == dtype
    with pytest.raises(ValueError, match="feature names"):
        estimator.predict(frame[list(FRAME.columns)[::-1]])


def test_frames_of_integers_and_booleans():
    frame = pd.DataFrame({"a": [1, 2, 3, 4], "b": [True, False, True, True]}, index=[9, 3, 3, 1])
    model = TorchLinearRegressor().fit(frame, pd.Series([1.0, 5.0, 3.0, 4.0], index=[7, 7, 1, 0]))
    np.testing.assert_allclose(model.predict(frame), [1.0, 5.0, 3.0, 4.0], atol=1.0)
    assert model.coef_.dtype == np.float64


def test_metadata_routing(estimator):
    w = np.linspace(0.1, 2, len(X))
    with sklearn.config_context(enable_metadata_routing=True):
        routed = estimator.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipeline = make_pipeline(scaler, routed).fit(X, y, sample_weight=w)
        scores = sklearn.model_selection.cross_validate(
            routed, X, y, params={"sample_weight": w}, cv=2
        )
    direct = sklearn.clone(estimator).fit(StandardScaler().fit_transform(X), y, sample_weight=w)
    np.testing.assert_allclose(
        pipeline.predict(X), direct.predict(StandardScaler().fit_transform(X))
    )
    assert len(scores["test_score"]) == 2


def test_score_is_r2_with_weights(estimator):
    w = np.linspace(0, 1, len(X))
    estimator.fit(X, y)
    expected = sklearn.metrics.r2_score(y, estimator.predict(X), sample_weight=w)
    assert estimator.score(X, y, sample_weight=w) == pytest.approx(expected)


@pytest.mark.parametrize("cls", [TorchLinearRegressor, TorchMLPRegressor])
def test_strings_are_to_be_encoded(cls):
    frame = pd.DataFrame({"size": [1.0, 2.0, 3.0], "colour": ["red", "blue", "red"]})
    target = [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match=r"'red' in row 0, column 'colour'.*OneHotEncoder"):
        cls().fit(frame, target)
    model = cls(max_epochs=1).fit(frame[["size", "size"]].to_numpy(), target)
    with pytest.raises(ValueError, match="OneHotEncoder"):
        model.predict(frame.to_numpy())
