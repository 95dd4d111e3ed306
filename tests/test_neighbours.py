"""Tools that users bring along, where they are installed: Optuna."""

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.ERROR)
X, y = load_diabetes(return_X_y=True)


def test_a_search_by_optuna():
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


def test_pruning_by_partial_fit():
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
