"""Frames of pandas, polars and pyarrow, alone and behind steps that give frames."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, PolynomialFeatures, StandardScaler

from sktorch_linreg import BatchedGridSearchCV, TorchLinearRegressor, TorchMLPRegressor

rng = np.random.default_rng(0)
N = 60
COLUMNS = {
    "size": rng.normal(size=N),
    "count": rng.integers(0, 9, N),
    "flag": rng.random(N) > 0.5,
}
ARRAY = np.column_stack(list(COLUMNS.values())).astype(np.float64)
TARGET = ARRAY @ [2.0, 1.0, -3.0] + 0.1 * rng.normal(size=N)

FRAMES = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": pa.table}
SERIES = {"pandas": pd.Series, "polars": pl.Series, "pyarrow": pa.array}
MODELS = [
    TorchLinearRegressor(),
    TorchLinearRegressor(optimizer="adam", batch_size=16, max_epochs=5, random_state=0),
    TorchMLPRegressor(max_epochs=5, tol=None, random_state=0),
]


@pytest.fixture(params=FRAMES)
def kind(request):
    return request.param


@pytest.fixture(params=range(len(MODELS)))
def model(request):
    return clone(MODELS[request.param])


def test_numbers_integers_and_booleans_are_as_in_an_array(kind, model):
    frame, target = FRAMES[kind](COLUMNS), SERIES[kind](TARGET)
    weight = SERIES[kind](np.linspace(1, 2, N))
    expected = clone(model).fit(ARRAY, TARGET, sample_weight=np.linspace(1, 2, N))
    model.fit(frame, target, sample_weight=weight)
    assert_array_equal(model.feature_names_in_, list(COLUMNS))
    assert_array_equal(model.predict(frame), expected.predict(ARRAY))
    assert model.score(frame, target) == expected.score(ARRAY, TARGET)


def test_names_are_checked(kind, model):
    model.fit(FRAMES[kind](COLUMNS), TARGET)
    other = dict(reversed(COLUMNS.items()))
    with pytest.raises(ValueError, match="in the same order"):
        model.predict(FRAMES[kind](other))
    with pytest.raises(ValueError, match="Feature names unseen at fit time"):
        model.predict(FRAMES[kind]({**COLUMNS, "more": COLUMNS["size"]}))
    with pytest.raises(ValueError, match="Feature names"):
        model.partial_fit(FRAMES[kind]({"size": COLUMNS["size"]}), TARGET)


def test_targets_in_frames_keep_their_dimensions(kind, model):
    frame = FRAMES[kind](COLUMNS)
    one, two = FRAMES[kind]({"y": TARGET}), FRAMES[kind]({"y": TARGET, "z": -TARGET})
    assert clone(model).fit(frame, one).predict(frame).shape == (N, 1)
    assert clone(model).fit(frame, two).predict(frame).shape == (N, 2)


def test_strings_are_to_be_encoded(kind, model):
    frame = FRAMES[kind]({**COLUMNS, "colour": ["red", "blue", "green"] * (N // 3)})
    with pytest.raises(ValueError, match="OneHotEncoder"):
        model.fit(frame, TARGET)
    assert not hasattr(model, "n_iter_")
    if kind == "pyarrow":
        # scikit-learn's ColumnTransformer has no adapter for its tables
        frame = frame.to_pandas()
    columns = ColumnTransformer(
        [("colour", OneHotEncoder(sparse_output=False), ["colour"])], remainder="passthrough"
    )
    assert make_pipeline(columns, model).fit(frame, TARGET).predict(frame).shape == (N,)


def test_missing_values_are_an_error(kind, model):
    size = [None, *COLUMNS["size"][1:]]
    with pytest.raises(ValueError, match="contains NaN"):
        model.fit(FRAMES[kind]({**COLUMNS, "size": size}), TARGET)


@pytest.mark.parametrize("dtypes", [("Float64", "Int64", "boolean"), ("double", "int64", "bool")])
def test_nullable_columns_of_pandas(dtypes, model):
    if dtypes[0] == "double":
        dtypes = [f"{name}[pyarrow]" for name in dtypes]
    typed = zip(COLUMNS.items(), dtypes, strict=True)
    frame = pd.DataFrame({k: pd.array(v, dtype=d) for (k, v), d in typed})
    expected = clone(model).fit(ARRAY, TARGET).predict(ARRAY)
    assert_array_equal(model.fit(frame, TARGET).predict(frame), expected)


def test_columns_of_float32_stay_in_single_precision(kind):
    single = {k: v.astype(np.float32) for k, v in COLUMNS.items()}
    frame = FRAMES[kind](single)
    model = TorchLinearRegressor().fit(frame, TARGET.astype(np.float32))
    assert model.coef_.dtype == model.predict(frame).dtype == np.float32


def test_chunked_tables_of_pyarrow(model):
    frame = FRAMES["pyarrow"](COLUMNS)
    chunked = pa.concat_tables([frame.slice(0, 20), frame.slice(20)])
    assert chunked.column(0).num_chunks == 2
    expected = clone(model).fit(ARRAY, TARGET).predict(ARRAY)
    assert_array_equal(model.fit(chunked, TARGET).predict(chunked), expected)


@pytest.mark.parametrize("output", ["pandas", "polars", "default"])
def test_behind_steps_that_give_frames(output, model):
    steps = [StandardScaler(), PolynomialFeatures(2, include_bias=False)]
    pipeline = make_pipeline(*steps, model).set_output(transform=output)
    pipeline.fit(pd.DataFrame(COLUMNS), TARGET)
    expected = make_pipeline(*map(clone, steps), clone(model)).fit(ARRAY, TARGET)
    assert_allclose(
        pipeline.predict(pd.DataFrame(COLUMNS)), expected.predict(ARRAY), rtol=1e-6, atol=1e-9
    )
    named = output != "default"
    assert hasattr(model, "feature_names_in_") == named
    if named:
        assert "size count" in list(model.feature_names_in_)


@pytest.mark.parametrize("search", [GridSearchCV, BatchedGridSearchCV])
def test_searches_over_frames(kind, search, model):
    frame, target = FRAMES[kind](COLUMNS), SERIES[kind](TARGET)
    grid = {"alpha": [0.0, 0.1]}
    ours = search(model, grid, cv=3).fit(frame, target)
    expected = search(clone(model), grid, cv=3).fit(ARRAY, TARGET)
    assert_allclose(
        ours.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"], rtol=1e-9
    )
    assert_array_equal(ours.best_estimator_.feature_names_in_, list(COLUMNS))
    scores = cross_val_score(model, frame, target, cv=3)
    assert_allclose(scores, cross_val_score(model, ARRAY, TARGET, cv=3), rtol=1e-9)


@pytest.mark.parametrize("where", ["fit", "predict", "target"])
def test_missing_values_among_objects(where, model):
    rows, target = [[1.0, 0.0], [2.0, 1.0], [3.0, 1.0]], [1.0, 2.0, 4.0]
    if where == "fit":
        rows[1][0] = None
    if where == "target":
        target[1] = None
    name = "y" if where == "target" else "X"
    if where == "predict":
        model.fit(rows, target)
        with pytest.raises(ValueError, match="Input X contains NaN"):
            model.predict([[1.0, 1.0], [None, 1.0]])
        return
    with pytest.raises(ValueError, match=f"Input {name} contains NaN"):
        model.fit(rows, target)


def test_missing_booleans_of_pyarrow(model):
    frame = pa.table({"size": COLUMNS["size"], "flag": pa.array(COLUMNS["flag"])})
    model.fit(frame, TARGET)
    holes = pa.table({"size": [1.0, 2.0], "flag": pa.array([True, None])})
    with pytest.raises(ValueError, match="Input X contains NaN"):
        model.predict(holes)
