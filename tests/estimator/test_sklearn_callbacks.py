"""scikit-learn's own callbacks, set on an estimator, a Pipeline or a search."""

import pickle

import numpy as np
import pytest
import rich
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_squared_error
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import EarlyStopping

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor, TrainingDivergedError

callback = pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 brings callbacks")
ProgressBar, ScoringMonitor = callback.ProgressBar, callback.ScoringMonitor

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 3)) * [1, 10, 100] + 5
y = X @ [1.0, 0.2, -0.01] + 7 + 0.1 * RNG.normal(size=120)
MODELS = {
    "linear": TorchLinearRegressor(optimizer="adam", lr=0.05, max_epochs=6, random_state=0),
    "mlp": TorchMLPRegressor(hidden_layer_sizes=(8,), max_epochs=6, tol=None, random_state=0),
    "stopping": TorchMLPRegressor(
        hidden_layer_sizes=(8,), max_epochs=6, early_stopping=True, tol=None, random_state=0
    ),
}


def epochs(rows):
    return [row for row in rows if row["task_name"] == "epoch"]


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("weighted", [True, False])
def test_scores_of_every_epoch(name, weighted):
    w = RNG.uniform(0.5, 2, 120) if weighted else None
    monitor = ScoringMonitor(scoring=("r2", "neg_mean_squared_error"))
    model = clone(MODELS[name]).set_callbacks(monitor).fit(X, y, sample_weight=w)
    rows = epochs(monitor.get_logs().data)
    assert [row["task_id"] for row in rows] == list(range(6))
    plain = clone(MODELS[name]).set_callbacks().fit(X, y, sample_weight=w)
    np.testing.assert_array_equal(model.predict(X), plain.predict(X))
    # after the last epoch it is the fitted estimator that was scored
    error = mean_squared_error(y, model.predict(X), sample_weight=w)
    assert rows[-1]["neg_mean_squared_error"] == pytest.approx(-error, rel=1e-4)
    assert rows[-1]["r2"] == pytest.approx(model.score(X, y, w), rel=1e-4)
    if name == "linear":
        path = clone(MODELS[name]).set_params(record_path=True).fit(X, y, sample_weight=w)
        for row, coef, intercept in zip(
            rows, path.coef_path_[1:], path.intercept_path_[1:], strict=True
        ):
            error = np.average((X @ coef + intercept - y) ** 2, weights=w)
            assert -row["neg_mean_squared_error"] == pytest.approx(error, rel=1e-9)


def test_in_a_pipeline():
    monitor = ScoringMonitor(scoring="r2")
    pipeline = make_pipeline(StandardScaler(), clone(MODELS["linear"]))
    pipeline[-1].set_callbacks(monitor)
    pipeline.fit(X, y)
    rows = epochs(monitor.get_logs().data)
    assert len(rows) == 6
    assert rows[-1]["r2"] == pytest.approx(pipeline.score(X, y), rel=1e-9)


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_in_a_search(n_jobs):
    monitor = ScoringMonitor(scoring="r2")
    model = clone(MODELS["linear"]).set_callbacks(monitor)
    search = GridSearchCV(model, {"lr": [0.01, 0.1]}, cv=3, n_jobs=n_jobs).fit(X, y)
    logs = monitor.get_logs(select="all")
    assert sum(len(epochs(log.data)) for log in logs) == 6 * (2 * 3 + 1)
    assert search.best_score_ > 0.5


def test_the_exact_solver_is_a_task_without_epochs():
    monitor = ScoringMonitor(scoring="r2")
    model = TorchLinearRegressor().set_callbacks(monitor).fit(X, y)
    (row,) = monitor.get_logs().data
    assert row["task_name"] == "fit"
    assert row["r2"] == pytest.approx(model.score(X, y))
    np.testing.assert_allclose(model.coef_, LinearRegression().fit(X, y).coef_)


class Recorder:
    """What hooks are called with."""

    def __init__(self, stop_after=None, fail_at=None):
        self.calls, self.stop_after, self.fail_at = [], stop_after, fail_at

    def setup(self, estimator, context):
        self.calls.append(("setup", context.max_subtasks))

    def teardown(self, estimator, context):
        self.calls.append(("teardown", context.task_name))

    def on_fit_task_begin(self, estimator, context):
        self.calls.append(("begin", context.task_name, context.task_id))

    def on_fit_task_end(self, estimator, context, *, X=None, y=None, fitted_estimator=None):
        self.calls.append(("end", context.task_name, context.task_id))
        assert X is not None
        assert fitted_estimator is not None
        if context.task_name != "epoch":
            return False
        n = context.task_id + 1
        assert fitted_estimator.n_iter_ == len(fitted_estimator.loss_curve_) == n
        assert fitted_estimator.net_.predict(X).shape == (len(y), 1)
        pickle.dumps(fitted_estimator.set_callbacks())
        if n == self.fail_at:
            raise RuntimeError("a callback failed")
        return n == self.stop_after


@pytest.mark.parametrize("name", list(MODELS))
def test_order_of_the_hooks(name):
    recorder = Recorder()
    clone(MODELS[name]).set_callbacks(recorder).fit(X, y)
    inner = [(when, "epoch", i) for i in range(6) for when in ("begin", "end")]
    assert recorder.calls == [
        ("setup", 6), ("begin", "fit", 0), *inner, ("end", "fit", 0), ("teardown", "fit"),
    ]  # fmt: skip


def test_a_callback_can_stop_the_fit():
    model = clone(MODELS["mlp"]).set_callbacks(Recorder(stop_after=3)).fit(X, y)
    assert model.n_iter_ == 3
    same = clone(MODELS["mlp"]).set_params(max_epochs=3).fit(X, y)
    np.testing.assert_array_equal(model.predict(X), same.predict(X))


def test_after_a_failure_callbacks_are_torn_down_and_the_estimator_is_as_before():
    recorder = Recorder(fail_at=2)
    model = clone(MODELS["linear"]).fit(X, y)
    before = model.predict(X)
    model.set_callbacks(recorder)
    names = set(vars(model))
    with pytest.raises(RuntimeError, match="a callback failed"):
        model.fit(X, y)
    assert recorder.calls[-1] == ("teardown", "fit")
    assert set(vars(model)) == names
    np.testing.assert_array_equal(model.predict(X), before)
    recorder = Recorder()
    diverging = TorchLinearRegressor(optimizer="sgd", lr=1e9, max_epochs=500)
    with pytest.raises(TrainingDivergedError):
        diverging.set_callbacks(recorder).fit(X, y)
    assert recorder.calls[-1] == ("teardown", "fit")
    assert not hasattr(diverging, "coef_")


def test_a_fit_that_a_skorch_callback_stops_ends_its_epoch():
    recorder = Recorder()
    stopping = EarlyStopping("train_loss", patience=2, threshold=1.0)
    model = clone(MODELS["mlp"]).set_params(callbacks=[stopping]).set_callbacks(recorder).fit(X, y)
    assert model.n_iter_ < 6
    names = [call[:2] for call in recorder.calls]
    assert names.count(("begin", "epoch")) == names.count(("end", "epoch")) == model.n_iter_


def test_what_an_epoch_begins_with():
    seen = []

    class Begin(Recorder):
        def on_fit_task_begin(self, estimator, context, *, X=None, fitted_estimator=None):
            if context.task_name == "epoch":
                seen.append(fitted_estimator.predict(X))

        def on_fit_task_end(self, estimator, context, *, X=None, fitted_estimator=None):
            if context.task_name == "epoch":
                seen.append(fitted_estimator.predict(X))

    model = clone(MODELS["mlp"]).set_callbacks(Begin()).fit(X, y)
    assert len(seen) == 12
    np.testing.assert_array_equal(seen[1], seen[2])
    assert np.abs(seen[0] - seen[1]).max() > 0
    np.testing.assert_allclose(seen[-1], model.predict(X), rtol=1e-6)


def test_warm_start_hands_over_the_whole_curve():
    seen = []

    class Curves(Recorder):
        def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
            seen.append(len(fitted_estimator.loss_curve_))

    model = clone(MODELS["mlp"]).set_params(warm_start=True, max_epochs=2)
    model.fit(X, y).set_callbacks(Curves()).fit(X, y)
    assert seen == [3, 4, 4]


@pytest.mark.parametrize("where", ["alone", "pipeline", "search"])
@pytest.mark.parametrize("name", list(MODELS))
def test_progress_bar(capsys, monkeypatch, where, name):
    monkeypatch.setenv("COLUMNS", "200")
    # another test may have made rich's console, which keeps the width that it began with
    monkeypatch.setattr(rich, "_console", None)
    model = clone(MODELS[name])
    if where == "pipeline":
        model = make_pipeline(StandardScaler(), model)
    elif where == "search":
        model = GridSearchCV(model, {"max_epochs": [2, 3]}, cv=2)
    model.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(X, y)
    out = capsys.readouterr().out
    assert f"{type(MODELS[name]).__name__} - fit" in out
    assert "100%" in out
