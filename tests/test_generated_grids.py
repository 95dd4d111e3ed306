"""Searches drawn at random, held to scikit-learn's search over the same estimator."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV, KFold, ShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktorch_linreg import BatchedGridSearchCV, TorchLinearRegressor, TorchMLPRegressor
from sktorch_linreg._optimizers import OPTIMIZERS

NAMED = sorted(set(OPTIMIZERS) - {"lbfgs"})


def drawn(seed, dtype):
    """An estimator, a grid, rows and splits."""
    rng = np.random.default_rng(seed)

    def one_of(*values):
        return values[rng.integers(len(values))]

    n, d, k = int(rng.integers(40, 130)), int(rng.integers(1, 6)), one_of(1, 1, 2)
    X = rng.normal(size=(n, d)) * 10.0 ** rng.integers(-2, 3, size=d) + rng.normal(size=d)
    y = X @ rng.normal(size=(d, k)) + rng.normal(size=(n, k))
    settings = {
        "optimizer": one_of(*NAMED),
        "batch_size": one_of(None, 8, 32, 200),
        "max_epochs": int(rng.integers(2, 8)),
        "shuffle": bool(rng.integers(2)),
        "standardize": True,
        "random_state": int(rng.integers(100)),
        "dtype": dtype,
        "loss": one_of("squared_error", "squared_error", "huber", "quantile"),
        "early_stopping": one_of(False, False, True),
        "tol": one_of(None, 1e-3),
        "lr_schedule": one_of(None, None, "cosine", "exponential", "plateau"),
    }
    if rng.integers(2):
        estimator = TorchLinearRegressor(**settings, fit_intercept=bool(rng.integers(4)))
    else:
        estimator = TorchMLPRegressor(
            **settings,
            hidden_layer_sizes=one_of((4,), (6, 3)),
            activation=one_of("tanh", "logistic", "relu", "gelu"),
            dropout=one_of(0.0, 0.0, 0.3),
        )
    grid = {
        "lr": list(np.geomspace(1e-4, 0.02, int(rng.integers(1, 4)))),
        "alpha": one_of([0.0], [0.0, 0.1], [1e-3, 1.0]),
        "l1_ratio": one_of([0.0], [0.0], [0.0, 0.5]),
        "n_iter_no_change": one_of([10], [1, 10]),
    }
    if rng.integers(3) == 0:
        steps = one_of([StandardScaler()], [StandardScaler(), PCA(random_state=0)])
        estimator = make_pipeline(*steps, estimator)
        grid = {f"{estimator.steps[-1][0]}__{key}": values for key, values in grid.items()}
        if len(steps) > 1:
            grid["pca__n_components"] = list(range(1, d + 1))[:2]
    weight = one_of(None, None, rng.uniform(0.1, 2.0, n))
    cv = one_of(3, 4, KFold(3, shuffle=True, random_state=0), ShuffleSplit(3, random_state=0))
    if weight is not None and hasattr(estimator, "steps"):
        weight = None
    return estimator, grid, X, y[:, 0] if k == 1 else y, weight, cv


@pytest.mark.parametrize("seed", range(60))
def test_the_same_scores_in_double_precision(seed):
    check(drawn(seed, "float64"), 1e-9)


@pytest.mark.parametrize("seed", range(100, 130))
def test_the_same_scores_in_single_precision(seed):
    check(drawn(seed, "float32"), 1e-4)


def check(case, tolerance):
    estimator, grid, X, y, weight, cv = case
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for cls in (BatchedGridSearchCV, GridSearchCV):
            search = cls(clone(estimator), grid, cv=cv, return_train_score=True, refit=False)
            found.append(
                search.fit(X, y, sample_weight=weight) if weight is not None else search.fit(X, y)
            )
    ours, theirs = (search.cv_results_ for search in found)
    for name, values in theirs.items():
        if name.endswith("_score") and not name.startswith(("std", "rank")):
            np.testing.assert_allclose(ours[name], values, rtol=tolerance, atol=tolerance)
    # the best by more than rounding is the best in both
    best = np.argsort(-theirs["mean_test_score"])
    scores = theirs["mean_test_score"][best]
    if len(best) == 1 or scores[0] - scores[1] > 2 * tolerance * abs(scores[0]):
        assert found[0].best_params_ == found[1].best_params_
