"""Displays: what they hold, what they draw, and that the surface is the loss."""

import sys
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from sktorch_linreg import (  # noqa: E402
    BatchedGridSearchCV,
    FittedLineDisplay,
    LearningRateDisplay,
    LossCurveDisplay,
    LossSurfaceDisplay,
    LRRangeTestDisplay,
    TorchLinearRegressor,
    TorchMLPRegressor,
    lr_range_test,
)

X, y = load_diabetes(return_X_y=True)
LINEAR = TorchLinearRegressor(
    optimizer="adam", lr=0.05, max_epochs=30, record_path=True, random_state=0
)


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


# -- loss curves ----------------------------------------------------------------------------------


def test_one_curve():
    model = clone(LINEAR).fit(X, y)
    display = LossCurveDisplay.from_estimator(model)
    (line,) = display.lines_
    np.testing.assert_array_equal(line.get_ydata(), model.loss_curve_)
    assert display.validation_lines_ == []
    (best,) = display.best_points_
    assert best.get_xdata()[0] == 1 + int(np.argmin(model.loss_curve_))
    assert display.figure_ is display.ax_.figure
    assert display.ax_.get_xlabel() == "epoch"


def test_validation_curves_log_axis_and_names():
    model = TorchMLPRegressor(
        early_stopping=True, lr=0.01, max_epochs=40, tol=None, random_state=0
    ).fit(X, y)
    pipe = make_pipeline(StandardScaler(), clone(LINEAR)).fit(X, y)
    search = BatchedGridSearchCV(clone(LINEAR), {"lr": [0.01, 0.1]}, cv=2).fit(X, y)
    _, ax = plt.subplots()
    display = LossCurveDisplay.from_estimator([model, pipe, search], ax=ax, mark_best=True)
    assert display.ax_ is ax
    assert list(display.loss_curves) == [
        "TorchMLPRegressor 1", "TorchLinearRegressor 2", "TorchLinearRegressor 3",
    ]  # fmt: skip
    assert len(display.lines_) == len(display.best_points_) == 3
    (line,) = display.validation_lines_
    np.testing.assert_array_equal(line.get_ydata(), model.validation_loss_curve_)
    best = display.best_points_[0].get_xdata()[0]
    assert best == 1 + int(np.argmin(model.validation_loss_curve_))
    assert LossCurveDisplay({"a": [100.0, 1.0]}).plot().ax_.get_yscale() == "log"
    assert LossCurveDisplay({"a": [3.0, 1.0]}).plot().ax_.get_yscale() == "linear"
    assert LossCurveDisplay({"a": [3.0, 1.0]}).plot(log=True).ax_.get_yscale() == "log"
    assert LossCurveDisplay({"a": [3.0, 1.0]}).plot(mark_best=False).best_points_ == []
    named = LossCurveDisplay.from_estimator([model, search], name=["one", "two"])
    assert list(named.loss_curves) == ["one", "two"]


def test_curves_of_what_was_not_fitted():
    with pytest.raises(NotFittedError):
        LossCurveDisplay.from_estimator(LINEAR)


# -- surfaces -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "huber", "quantile"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("many", [False, True])
def test_the_surface_is_the_loss(loss, weighted, many):
    Y = np.c_[y, 2 * y + X[:, 0]] if many else y
    weight = np.linspace(0.5, 2.0, len(y)) if weighted else None
    model = clone(LINEAR).set_params(loss=loss).fit(X, Y, sample_weight=weight)
    t = int(many)
    params = (("coef", (t, 2)), ("intercept", t))
    display = LossSurfaceDisplay.from_estimator(
        model, X, Y, params=params, sample_weight=weight, resolution=7, colorbar=False
    )
    assert display.log_loss.shape == (7, 7)
    # one by one, from the predictions of a model with these parameters
    for i, j in [(0, 0), (3, 5), (6, 1)]:
        other = TorchLinearRegressor()
        other.coef_ = np.array(model.coef_)
        np.atleast_2d(other.coef_)[t, 2] = display.x_values[j]
        other.intercept_ = np.array(model.intercept_)
        other.intercept_[(t,) if many else ()] = display.y_values[i]
        error = Y - other.predict(X)
        values = {
            "squared_error": error**2,
            "absolute_error": np.abs(error),
            "huber": np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5),
            "quantile": np.abs(error) / 2,
        }[loss].reshape(len(X), -1)
        mean = np.average(values.mean(axis=1), weights=weight)
        assert display.log_loss[i, j] == pytest.approx(np.log10(mean), rel=1e-9)
    np.testing.assert_allclose(display.path[-1], [
        np.atleast_2d(model.coef_)[t, 2], np.atleast_1d(model.intercept_)[t]
    ])  # fmt: skip
    assert len(display.path) == len(display.path_log_loss) == 31


def test_the_path_lies_on_the_surface_of_one_feature():
    rows = X[:, [2]]
    model = clone(LINEAR).set_params(standardize=False).fit(rows, y)
    display = LossSurfaceDisplay.from_estimator(model, rows, y, kind="3d")
    # before an update its loss is that of the curve
    np.testing.assert_allclose(10 ** display.path_log_loss[:-1], model.loss_curve_, rtol=1e-9)
    assert display.ax_.name == "3d"
    assert len(display.path_) == 2
    assert display.log_loss.shape == (100, 100)


def test_surfaces_without_a_path_and_with_limits():
    model = TorchLinearRegressor().fit(X, y)
    display = LossSurfaceDisplay.from_estimator(
        model, X, y, params=(("coef", 0), ("coef", 1)), limits=((-5, 5), (0, 1)), resolution=5
    )
    assert display.path is None
    assert display.path_ == []
    np.testing.assert_array_equal(display.x_values, [-5, -2.5, 0, 2.5, 5])
    assert display.ax_.get_xlabel() == "coef 0"


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ((("coef", 10), ("intercept", 0)), "features below 10"),
        ((("coef", 0), ("slope", 0)), "no parameter"),
        ((("coef", 0), ("intercept", 1)), "targets below 1"),
        ((("coef", 0),), "exactly two"),
    ],
)
def test_parameters_that_are_not_there(params, match):
    with pytest.raises(ValueError, match=match):
        LossSurfaceDisplay.from_estimator(TorchLinearRegressor().fit(X, y), X, y, params=params)


def test_surfaces_are_those_of_linear_models():
    with pytest.raises(TypeError, match="TorchMLPRegressor"):
        LossSurfaceDisplay.from_estimator(TorchMLPRegressor(), X, y)
    with pytest.raises(NotFittedError):
        LossSurfaceDisplay.from_estimator(TorchLinearRegressor(), X, y)
    with pytest.raises(ValueError, match="'flat'"):
        LossSurfaceDisplay([0, 1], [0, 1], np.zeros((2, 2))).plot(kind="flat")


# -- learning rates -------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [BatchedGridSearchCV, GridSearchCV])
@pytest.mark.parametrize("in_pipeline", [False, True])
def test_scores_over_learning_rates(cls, in_pipeline):
    model = TorchLinearRegressor(optimizer="adam", max_epochs=5, random_state=0)
    grid = {"lr": [0.1, 1e-3], "alpha": [0.0, 1.0]}
    if in_pipeline:
        model = make_pipeline(StandardScaler(), model)
        grid = {f"torchlinearregressor__{k}": v for k, v in grid.items()}
    search = cls(model, grid, cv=4).fit(X, y)
    display = LearningRateDisplay.from_search(search, name="adam")
    np.testing.assert_array_equal(display.lr, [1e-3, 0.1])
    results = search.cv_results_
    rates = results["param_torchlinearregressor__lr" if in_pipeline else "param_lr"].astype(float)
    for lr, score, error in zip(display.lr, display.mean_score, display.std_error, strict=True):
        at = np.flatnonzero(rates == lr)
        best = at[results["mean_test_score"][at].argmax()]
        assert score == results["mean_test_score"][best]
        folds = [results[f"split{i}_test_score"][best] for i in range(4)]
        assert error == pytest.approx(np.std(folds, ddof=1) / 2)
    assert display.ax_.get_xscale() == "log"


def test_searches_without_learning_rates():
    search = BatchedGridSearchCV(TorchLinearRegressor(), {"alpha": [0.0]}).fit(X, y)
    with pytest.raises(ValueError, match="it tried alpha"):
        LearningRateDisplay.from_search(search)


@pytest.mark.parametrize(
    "model",
    [
        TorchMLPRegressor(random_state=0),
        TorchLinearRegressor(optimizer="sgd", batch_size=32, random_state=0),
        TorchLinearRegressor(random_state=0),
        make_pipeline(StandardScaler(), TorchMLPRegressor(early_stopping=True, random_state=0)),
    ],
    ids=str,
)
def test_range_test(model):
    before = repr(model.get_params())
    found = lr_range_test(model, X, y, n_steps=150)
    assert repr(model.get_params()) == before
    with pytest.raises(NotFittedError):
        model.predict(X)
    assert 1e-4 <= found.suggested_lr <= 1
    assert found.smoothed_loss.min() < found.loss[0]
    display = found.plot()
    assert display.suggestion_.get_xdata()[0] == found.suggested_lr
    # training at that rate works
    last = clone(model).set_params(
        **{("torchmlpregressor__" if hasattr(model, "steps") else "") + "lr": found.suggested_lr}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert last.fit(X, y).score(X, y) > 0.3


def test_range_tests_that_cannot_be():
    with pytest.raises(ValueError, match="'lbfgs'"):
        lr_range_test(TorchMLPRegressor(optimizer="lbfgs"), X, y)
    with pytest.raises(ValueError, match="'lstsq'"):
        lr_range_test(TorchLinearRegressor(optimizer="lstsq"), X, y)
    with pytest.raises(ValueError, match="lr_min"):
        lr_range_test(TorchMLPRegressor(), X, y, lr_min=1.0, lr_max=0.1)
    with pytest.raises(ValueError, match="LinearRegression"):
        lr_range_test(LinearRegression(), X, y)


def test_the_suggestion_is_a_tenth_of_the_best_rate():
    lr = np.geomspace(1e-5, 10.0, 601)
    loss = (np.log10(lr) + 1) ** 2
    # smoothing lags behind
    assert LRRangeTestDisplay(lr, loss).suggested_lr == pytest.approx(0.01, rel=0.5)
    assert LRRangeTestDisplay(lr[:3], [1.0, np.nan, np.nan]).suggested_lr == lr[0] / 10


# -- lines ----------------------------------------------------------------------------------------


def test_fitted_line():
    import pandas as pd

    rows = X[:, [2]]
    for model in (TorchLinearRegressor(), TorchMLPRegressor(max_epochs=2, tol=None)):
        display = FittedLineDisplay.from_estimator(model.fit(rows, y), rows, y, name="fit")
        np.testing.assert_allclose(display.y_line, model.predict(display.x_line[:, None]))
        assert len(display.points_.get_offsets()) == len(y)
    frame = pd.DataFrame({"bmi": X[:, 2]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FittedLineDisplay.from_estimator(TorchLinearRegressor().fit(frame, y), frame, y)
    with pytest.raises(ValueError, match="one feature"):
        FittedLineDisplay.from_estimator(TorchLinearRegressor().fit(X, y), X, y)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"sktorch_linreg\[plot\]"):
        LossCurveDisplay({"a": [1.0]}).plot()


def test_surfaces_behind_the_steps_of_a_pipeline():
    pipeline = make_pipeline(StandardScaler(), PolynomialFeatures(2), clone(LINEAR))
    pipeline.fit(X[:, :3], y)
    display = LossSurfaceDisplay.from_estimator(pipeline, X[:, :3], y)
    error = np.mean((pipeline.predict(X[:, :3]) - y) ** 2)
    assert display.path_log_loss[-1] == pytest.approx(np.log10(error))


def test_a_path_that_early_stopping_leaves_before_its_end():
    model = clone(LINEAR).set_params(lr=2.0, early_stopping=True).fit(X, y)
    display = LossSurfaceDisplay.from_estimator(model, X, y)
    for epoch in (0, 5, -1):
        coef = model.coef_.copy()
        coef[0] = model.coef_path_[epoch][0]
        error = np.mean((X @ coef + model.intercept_path_[epoch] - y) ** 2)
        assert display.path_log_loss[epoch] == pytest.approx(np.log10(error))


def test_surfaces_of_losses_below_zero():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(100, 2))
    counts = rng.poisson(np.exp(rows[:, 0] + 2))
    model = TorchLinearRegressor(loss="poisson").fit(rows, counts)
    params = (("coef", 0), ("coef", 1))
    limits = [(0.5, 1.5), (-0.5, 0.5)]
    display = LossSurfaceDisplay.from_estimator(model, rows, counts, params=params, limits=limits)
    assert np.isfinite(display.log_loss).all()
    # the lowest point is where the model is
    row, column = np.unravel_index(np.argmin(display.log_loss), display.log_loss.shape)
    step = np.diff(display.x_values)[0], np.diff(display.y_values)[0]
    assert abs(display.x_values[column] - model.coef_[0]) <= step[0]
    assert abs(display.y_values[row] - model.coef_[1]) <= step[1]
    assert "above its minimum" in display.ax_.figure.axes[1].get_ylabel()


def test_rows_of_a_surface_come_in_any_form():
    frame = load_diabetes(as_frame=True).data
    model = TorchLinearRegressor().fit(frame, y)
    params = (("coef", "bmi"), ("coef", "bp"))
    display = LossSurfaceDisplay.from_estimator(model, frame, y, params=params)
    assert display.names == ("coef bmi", "coef bp")
    plain = TorchLinearRegressor().fit(X, y)
    for rows, target in (
        (scipy.sparse.csr_matrix(X), y),
        (torch.from_numpy(X).requires_grad_(), pd.Series(y)),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            other = LossSurfaceDisplay.from_estimator(
                plain,
                rows,
                target,
                params=(("coef", 2), ("coef", 3)),
                sample_weight=np.ones(len(y), dtype=np.float32),
                limits=np.array([display.x_values[[0, -1]], display.y_values[[0, -1]]]),
            )
        np.testing.assert_allclose(other.log_loss, display.log_loss, rtol=1e-9)
    with pytest.raises(ValueError, match="named 'age'"):
        LossSurfaceDisplay.from_estimator(model, frame, y, params=("bmi", "bp"))
    with pytest.raises(ValueError, match="Input X contains NaN"):
        LossSurfaceDisplay.from_estimator(plain, X * np.nan, y)
    with pytest.raises(ValueError, match="projection='3d'"):
        LossSurfaceDisplay.from_estimator(plain, X, y, kind="3d", ax=plt.subplots()[1])


def test_a_target_without_an_intercept_has_one_of_zero():
    model = TorchLinearRegressor(fit_intercept=False).fit(X, np.stack([y, -y], axis=1))
    params = (("intercept", 1), ("coef", (1, 0)))
    display = LossSurfaceDisplay.from_estimator(model, X, np.stack([y, -y], axis=1), params=params)
    assert display.x_values.min() < 0 < display.x_values.max()


def test_range_tests_of_losses_below_zero():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 3)) / 10
    model = TorchLinearRegressor(optimizer="adam", loss="poisson", standardize=False)
    with pytest.warns(UserWarning, match="still falling at lr_max=10"):
        found = lr_range_test(model, rows, np.full(300, 50))
    assert len(found.lr) == 200
    low, high = LRRangeTestDisplay([0.1, 1, 10], [-1, -3, -2]).plot().ax_.get_ylim()
    assert low < -2 < high


def test_range_tests_leave_schedules_out():
    model = TorchMLPRegressor(lr_schedule="step", lr_schedule__step_size=3, random_state=0)
    plain = TorchMLPRegressor(random_state=0)
    np.testing.assert_array_equal(lr_range_test(model, X, y).loss, lr_range_test(plain, X, y).loss)
    assert model.lr_schedule__step_size == 3


def test_a_range_test_of_infinite_losses():
    model = TorchLinearRegressor(optimizer="adam", standardize=False, dtype="float32")
    with pytest.raises(ValueError, match="before any update"):
        lr_range_test(model, X, y * 1e30)


def test_names_and_models_that_cannot_be_drawn():
    model = clone(LINEAR).fit(X, y)
    for names in (["A", "A"], ["A"]):
        with pytest.raises(ValueError, match="one distinct name each"):
            LossCurveDisplay.from_estimator([model, model], name=names)
    with pytest.raises(ValueError, match="No estimators"):
        LossCurveDisplay.from_estimator([])
    with pytest.raises(ValueError, match="LinearRegression has no loss_curve_"):
        LossCurveDisplay.from_estimator(LinearRegression().fit(X, y))
    network = TorchMLPRegressor(max_epochs=3, tol=None).fit(X, y).to_sklearn()
    assert len(LossCurveDisplay.from_estimator(network).lines_) == 1


def test_short_names_of_styles():
    model = TorchMLPRegressor(max_epochs=5, early_stopping=True, tol=None).fit(X, y)
    display = LossCurveDisplay.from_estimator(model, c="red", ls=":", label="network")
    assert display.lines_[0].get_linestyle() == ":"
    assert display.validation_lines_[0].get_linestyle() == "--"
    assert display.validation_lines_[0].get_color() == "red"
    assert display.validation_lines_[0].get_label() == "network, validation"
    line = FittedLineDisplay([0, 1], [0, 1], [0, 1], [0, 1]).plot(c="blue", lw=3).line_
    assert (line.get_color(), line.get_linewidth()) == ("blue", 3)
    rates = LearningRateDisplay([0.1, 1], [0, 1], [0, 0]).plot(label="here", ms=9)
    assert rates.ax_.get_legend() is not None


def test_a_later_curve_keeps_a_logarithmic_axis():
    ax = LossCurveDisplay({"far": [1.0, 0.001]}).plot().ax_
    assert LossCurveDisplay({"near": [1.0, 0.9]}).plot(ax).ax_.get_yscale() == "log"


def test_rates_that_explode_do_not_flatten_the_others():
    lr = [0.001, 0.01, 0.1, 1.0]
    ax = LearningRateDisplay(lr, [0.2, 0.5, 0.4, -1e6], [0.1] * 4).plot().ax_
    assert ax.get_ylim()[0] == pytest.approx(-1.0)
    ax = LearningRateDisplay(lr, [-3.0, -2.0, -2.5, -1e6], [0.1] * 4).plot().ax_
    assert ax.get_ylim()[0] == pytest.approx(-10.0)
    ax = LearningRateDisplay(lr, [0.2, 0.5, 0.4, -0.5], [0.1] * 4).plot().ax_
    assert ax.get_ylim()[0] < -0.5


def test_scores_and_rates_that_a_search_does_not_have():
    grid, scores = {"lr": [0.01, 0.1]}, ["r2", "neg_mean_absolute_error"]
    search = BatchedGridSearchCV(clone(LINEAR), grid, scoring=scores, refit=False, cv=3).fit(X, y)
    with pytest.raises(ValueError, match="it has r2, neg_mean_absolute_error"):
        LearningRateDisplay.from_search(search)
    assert LearningRateDisplay.from_search(search, metric="r2").score_name == "r2"
    search = GridSearchCV(clone(LINEAR), {"lr": [None]}, cv=2).fit(X, y)
    with pytest.raises(ValueError, match="only used lr=None"):
        LearningRateDisplay.from_search(search)


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table])
def test_lines_over_a_named_feature(make):
    frame = make({"bmi": X[:, 2]})
    model = TorchLinearRegressor().fit(frame, y)
    display = FittedLineDisplay.from_estimator(model, frame, y)
    assert display.ax_.get_xlabel() == "bmi"
    with warnings.catch_warnings():
        # of feature names that an array does not have
        warnings.simplefilter("ignore")
        other = FittedLineDisplay.from_estimator(model, X[:, [2]], y)
    np.testing.assert_allclose(other.y_line, display.y_line)
