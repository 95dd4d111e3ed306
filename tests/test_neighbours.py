"""Tools that users bring along, where they are installed: Optuna, MLflow, captum and shap."""

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor

X, y = load_diabetes(return_X_y=True)


@pytest.fixture
def optuna():
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def test_a_search_by_optuna(optuna):
    pytest.importorskip("optuna_integration")
    from optuna_integration import OptunaSearchCV

    model = TorchLinearRegressor(optimizer="adam", max_epochs=20, random_state=0)
    rates = optuna.distributions.FloatDistribution(1e-4, 1.0, log=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = make_pipeline(StandardScaler(), model)
        grid = {"torchlinearregressor__lr": rates}
        search = OptunaSearchCV(pipe, grid, n_trials=15, random_state=0).fit(X, y)
    assert search.best_score_ > 0.4
    assert 1e-3 < search.best_params_["torchlinearregressor__lr"] < 1.0


def test_pruning_by_partial_fit(optuna):
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=2),
    )

    def objective(trial):
        model = TorchMLPRegressor(lr=trial.suggest_float("lr", 1e-6, 0.1, log=True), random_state=0)
        score = -np.inf
        for step in range(15):
            score = model.partial_fit(X, y).score(X, y)
            trial.report(score, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return score

    study.optimize(objective, n_trials=15)
    states = [trial.state for trial in study.trials]
    assert optuna.trial.TrialState.PRUNED in states
    assert study.best_value > 0.4


def test_pruning_by_a_callback(optuna):
    from skorch.callbacks import Callback

    class Reports(Callback):
        def __init__(self, trial):
            self.trial = trial

        def on_epoch_end(self, net, **kwargs):
            epoch = len(net.history)
            self.trial.report(net.history[-1, "valid_loss"], epoch)
            if self.trial.should_prune():
                raise optuna.TrialPruned

    def objective(trial):
        model = TorchMLPRegressor(
            lr=trial.suggest_float("lr", 1e-6, 0.1, log=True),
            early_stopping=True,
            max_epochs=15,
            tol=None,
            n_iter_no_change=15,
            callbacks=[Reports(trial)],
            random_state=0,
        )
        return model.fit(X, y).best_loss_

    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=2),
    )
    study.optimize(objective, n_trials=15)
    states = [trial.state for trial in study.trials]
    assert optuna.trial.TrialState.PRUNED in states
    assert study.best_value < 0.6


# autolog replaces methods of scikit-learn, so that it gets a process of its own
LOGGED = """
import json, sys
import mlflow
from sklearn.datasets import load_diabetes
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sktorch_linreg import BatchedGridSearchCV, TorchLinearRegressor, TorchMLPRegressor

X, y = load_diabetes(return_X_y=True)
mlflow.set_tracking_uri("sqlite:///runs.db")
mlflow.sklearn.autolog(silent=True)
linear = TorchLinearRegressor(optimizer="adam", max_epochs=20, random_state=0)
grid = {"lr": [1e-3, 0.1]}
found = {}
for name, model in {
    "network": make_pipeline(StandardScaler(), TorchMLPRegressor(max_epochs=20, tol=None)),
    "exact": make_pipeline(StandardScaler(), TorchLinearRegressor()),
    "search": GridSearchCV(linear, grid),
    "our search": make_pipeline(StandardScaler(), BatchedGridSearchCV(linear, grid)),
}.items():
    with mlflow.start_run() as run:
        model.fit(X, y)
    run = mlflow.get_run(run.info.run_id)
    again = mlflow.sklearn.load_model(f"runs:/{run.info.run_id}/model")
    same = bool((again.predict(X) == model.predict(X)).all())
    found[name] = {"params": run.data.params, "metrics": run.data.metrics, "same": same}
print(json.dumps(found))
"""


def test_mlflow_logs_pipelines(tmp_path):
    pytest.importorskip("mlflow")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOGGED],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    params, metrics = found["network"]["params"], found["network"]["metrics"]
    assert params["torchmlpregressor__max_epochs"] == "20"
    assert params["torchmlpregressor__optimizer"] == "adam"
    assert metrics["training_r2_score"] > 0.4
    assert found["exact"]["metrics"]["training_r2_score"] == pytest.approx(0.5177, abs=1e-4)
    assert found["search"]["params"]["best_lr"] == "0.1"
    assert "training_score" in found["our search"]["metrics"]
    assert all(run["same"] for run in found.values())


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "elu", "leaky_relu"])
@pytest.mark.filterwarnings("ignore:.*required_grads has been set automatically:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks:UserWarning")
def test_captum_explains_the_whole_difference(activation):
    attr = pytest.importorskip("captum.attr")
    settings = {"hidden_layer_sizes": (16, 8), "max_epochs": 30, "tol": None, "random_state": 0}
    model = TorchMLPRegressor(activation=activation, dtype="float64", **settings).fit(X, y)
    rows, base = torch.from_numpy(X[1:5]), torch.from_numpy(X[:1])
    expected = model.predict(X[1:5]) - model.predict(X[:1])
    found = attr.DeepLift(model.module_).attribute(rows, base).sum(dim=1)
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-8)
    found = attr.IntegratedGradients(model.module_).attribute(rows, base, n_steps=500).sum(dim=1)
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic"])
@pytest.mark.filterwarnings("ignore:unrecognized nn.Module:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_shap_explains_the_whole_difference(activation):
    shap = pytest.importorskip("shap")
    settings = {"hidden_layer_sizes": (16, 8), "max_epochs": 30, "tol": None, "random_state": 0}
    model = TorchMLPRegressor(activation=activation, **settings).fit(X, y)
    background, rows = (torch.tensor(a, dtype=torch.float32) for a in (X[:50], X[50:54]))
    expected = model.predict(X[50:54]) - model.predict(X[:50]).mean()
    deep = shap.DeepExplainer(model.module_, background)
    np.testing.assert_allclose(np.squeeze(deep.shap_values(rows)).sum(axis=1), expected, rtol=1e-3)
    linear = TorchLinearRegressor().fit(X, y)
    found = shap.LinearExplainer(linear, X[:50]).shap_values(X[50:54])
    expected = linear.predict(X[50:54]) - linear.predict(X[:50]).mean()
    np.testing.assert_allclose(found.sum(axis=1), expected, rtol=1e-6)
