"""Searches drawn at random, held to scikit-learn's search over the same estimator."""

import functools
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import make_scorer, mean_pinball_loss
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneGroupOut,
    ParameterGrid,
    ShuffleSplit,
)
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    StandardScaler,
    TargetEncoder,
)

from sktorch_linreg import BatchedGridSearchCV, TorchLinearRegressor, TorchMLPRegressor

LambdaLR = torch.optim.lr_scheduler.LambdaLR


def power(base, epoch):
    return base**epoch


def decay(base):
    return lambda epoch: base**epoch


# optimizer: its options with values to draw from
OPTIMIZERS = {
    "sgd": {
        "momentum": [0.0, 0.5, 0.9], "dampening": [0.0, 0.2], "weight_decay": [0, 0.1, 2.0],
    },
    "adam": {
        "betas": [(0.9, 0.999), (0.5, 0.9)], "eps": [1e-8, 0.1], "weight_decay": [0.0, 1.0],
        "amsgrad": [True, False],
    },
    "adamw": {"betas": [(0.9, 0.99), (0.1, 0.2)], "weight_decay": [0.0, 0.01, 3.0]},
    "nadam": {"momentum_decay": [4e-3, 0.5], "weight_decay": [0.0, 0.1]},
    "radam": {"betas": [(0.9, 0.999), (0.5, 0.5)], "eps": [1e-8, 1e-2]},
    "rmsprop": {"alpha": [0.99, 0.2], "momentum": [0.0, 0.7], "centered": [True, False]},
    "adagrad": {"lr_decay": [0.0, 0.3], "initial_accumulator_value": [0.0, 1.0]},
    "adadelta": {"rho": [0.9, 0.3], "eps": [1e-6, 1e-2]},
    "adamax": {"betas": [(0.9, 0.999), (0.3, 0.4)], "eps": [1e-8, 0.1]},
}  # fmt: skip
# schedule: its options likewise
SCHEDULES = {
    "constant": {},
    "step": {"step_size": [1, 2, 3], "gamma": [0.1, 0.5]},
    "exponential": {"gamma": [0.5, 0.9]},
    "linear": {"start_factor": [0.3, 1.0], "total_iters": [1, 3]},
    "polynomial": {"power": [1.0, 2.0], "total_iters": [2, 4]},
    "cosine": {"T_max": [2, 5], "eta_min": [0.0, 1e-3]},
    "cosine_restarts": {"T_0": [1, 2], "T_mult": [1, 2]},
    "one_cycle": {"pct_start": [0.2, 0.5], "max_lr": [0.01, 0.05], "cycle_momentum": [True, False]},
    "plateau": {"patience": [0, 2], "factor": [0.1, 0.5]},
    LambdaLR: {
        "lr_lambda": [
            decay(0.9), decay(0.5), functools.partial(power, 0.9), functools.partial(power, 0.5),
        ],
    },
}  # fmt: skip
LOSSES = {
    "squared_error": {},
    "absolute_error": {},
    "huber": {"delta": [0.1, 1.0]},
    "quantile": {"quantile": [0.1, 0.5]},
    "poisson": {},
}


def scaled_in_place(X):
    X *= 0.5
    return X


def renamed_in_place(frame):
    frame[frame.columns[0]] = 0.5 * frame[frame.columns[0]]
    return frame


def half(estimator, X, y):
    """A scorer of somebody's own, which works in place."""
    out = -float(np.abs(estimator.predict(X) - y)[::2].mean())
    y *= 0.5
    return out


SCORINGS = [
    None,
    "r2",
    "neg_mean_squared_error",
    "neg_median_absolute_error",
    make_scorer(mean_pinball_loss, alpha=0.3, greater_is_better=False),
    half,
    ["r2", "neg_mean_absolute_error"],
    ["explained_variance", "neg_max_error"],
    {"mine": half, "theirs": "r2"},
]


class Case:
    """A search drawn from a seed: estimator, grids, rows, splits, weights and scores."""

    def __init__(self, seed, dtype):
        self.rng = np.random.default_rng(seed)
        self.n = int(self.rng.integers(40, 110))
        self.n_targets = self.one_of(1, 1, 2)
        self.loss = self.one_of("squared_error", "squared_error", *LOSSES)
        self.X, self.y = self.rows()
        self.steps = self.some_steps()
        self.estimator = self.whole(self.last(dtype))
        self.grid = self.grids()
        self.cv, self.groups = self.splits()
        # a scorer of somebody's own may not take several targets or weights
        self.scoring = self.one_of(*SCORINGS)
        self.fit_params = {} if self.groups is None else {"groups": self.groups}
        self.routing = False
        self.weigh()

    def one_of(self, *values):
        return values[self.rng.integers(len(values))]

    def some(self, options, most=2):
        """Some options, each with some values."""
        names = [name for name in options if self.rng.integers(2)][:most]
        return {
            name: [options[name][i] for i in self.rng.permutation(len(options[name]))[:2]]
            for name in names
        }

    def rows(self):
        rng, n, d = self.rng, self.n, int(self.rng.integers(1, 6))
        X = rng.normal(size=(n, d)) * 10.0 ** rng.integers(-2, 3, size=d) + rng.normal(size=d)
        Y = X @ rng.normal(size=(d, self.n_targets)) + rng.normal(size=(n, self.n_targets))
        if self.loss == "poisson":
            Y = np.exp(Y / np.abs(Y).max())
        self.kind = self.one_of("array", "array", "array", "frame", "sparse", "strings")
        if self.kind == "frame":
            X = pd.DataFrame(X, columns=["nbytes", "shape", "c", "d", "e"][:d])
        elif self.kind == "sparse":
            X = sp.csr_matrix(X * (rng.uniform(size=X.shape) < 0.5))
        elif self.kind == "strings":
            X = rng.integers(0, 15, size=(n, d)).astype(str).astype(object)
            Y = Y[:, :1]
        return X, Y[:, 0] if Y.shape[1] == 1 else Y

    def some_steps(self):
        if self.kind == "strings":
            first = [("encode", TargetEncoder(target_type="continuous", random_state=0))]
            return [*first, ("scale", StandardScaler(copy=False))][: self.one_of(1, 2)]
        if self.kind == "sparse":
            return [("scale", MaxAbsScaler(copy=False))] if self.rng.integers(2) else []
        if self.kind == "frame":
            return [("rename", FunctionTransformer(renamed_in_place))] * self.one_of(0, 1)
        return self.one_of(
            [],
            [],
            [("scale", StandardScaler(copy=False))],
            [("scale", StandardScaler()), ("pca", PCA(random_state=0))],
            [("halve", FunctionTransformer(scaled_in_place)), ("scale", StandardScaler())],
        )

    def last(self, dtype):
        self.optimizer, self.schedule = (
            self.one_of(*OPTIMIZERS),
            self.one_of(None, None, *SCHEDULES),
        )
        settings = {
            "optimizer": self.optimizer,
            "lr": 0.01,
            "lr_schedule": self.schedule,
            "batch_size": self.one_of(None, 8, np.int64(32), 200),
            "max_epochs": int(self.rng.integers(2, 7)),
            "shuffle": bool(self.rng.integers(2)),
            "standardize": self.one_of(True, True, False),
            "random_state": int(self.rng.integers(100)),
            "dtype": dtype,
            "loss": self.loss,
            "early_stopping": self.one_of(False, False, True, np.True_),
            "tol": self.one_of(None, 1e-3),
        }
        if self.schedule is LambdaLR:
            settings["lr_schedule__lr_lambda"] = decay(0.8)
        if self.rng.integers(2):
            intercept = self.one_of(True, True, False)
            return TorchLinearRegressor(**settings, fit_intercept=intercept)
        return TorchMLPRegressor(
            **settings,
            hidden_layer_sizes=self.one_of((4,), (6, 3)),
            activation=self.one_of("tanh", "logistic", "relu", "gelu"),
            dropout=self.one_of(0.0, 0.0, 0.3),
        )

    def whole(self, last):
        if not self.steps and self.rng.integers(4):
            return last
        return Pipeline([*self.steps, ("reg", last)])

    def grids(self):
        """One to three grids, each of which may leave options of the others out."""
        out = []
        for _ in range(self.one_of(1, 2, 3)):
            grid = self.some(
                {
                    "lr": [1e-4, 3e-3, np.float32(0.02)],
                    "alpha": [0.0, 0.1, 1],
                    "l1_ratio": [0.0, 0.5],
                    "n_iter_no_change": [1, 10],
                    "standardize": [True, False],
                },
                most=3,
            )
            options = {
                "optimizer__": OPTIMIZERS[self.optimizer],
                "lr_schedule__": SCHEDULES.get(self.schedule, {}),
                "loss__": LOSSES[self.loss],
            }
            for prefix, known in options.items():
                grid |= {prefix + name: values for name, values in self.some(known).items()}
            if hasattr(self.estimator, "steps"):
                grid = {f"reg__{name}": values for name, values in grid.items()}
                if "pca" in self.estimator.named_steps:
                    grid["pca__whiten"] = [True, False]
            while len(ParameterGrid(grid)) > 12:
                grid.pop(next(iter(grid)))
            out.append(grid)
        return out if len(out) > 1 else out[0]

    def splits(self):
        groups = np.arange(self.n) % 4
        return self.one_of(
            (3, None),
            (KFold(3, shuffle=True, random_state=0), None),
            (ShuffleSplit(3, random_state=0), None),
            (GroupKFold(3), groups),
            (LeaveOneGroupOut(), groups),
        )

    def weigh(self):
        """Weights, by name of the step, by a routing request, or none."""
        how = self.one_of(None, "plain", "routed")
        weight = self.rng.uniform(0.1, 2.0, self.n)
        pipeline = hasattr(self.estimator, "steps")
        if how is None or callable(self.scoring) or isinstance(self.scoring, dict):
            return
        if how == "plain":
            self.fit_params["reg__sample_weight" if pipeline else "sample_weight"] = weight
            return
        self.routing = True
        last = self.estimator.steps[-1][1] if pipeline else self.estimator
        with config_context(enable_metadata_routing=True):
            last.set_fit_request(sample_weight=True)
            last.set_score_request(sample_weight=self.one_of(True, True, False))
            for _, step in self.estimator.steps[:-1] if pipeline else ():
                if hasattr(step, "set_fit_request"):
                    step.set_fit_request(sample_weight=False)
            self.fit_params["sample_weight"] = weight

    def run(self, cls):
        """Scores, or the kind of error, and whether a ConvergenceWarning came."""
        search = cls(
            clone(self.estimator), self.grid, cv=self.cv, scoring=self.scoring, refit=False,
            return_train_score=True,
        )  # fmt: skip
        with (
            config_context(enable_metadata_routing=self.routing),
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            try:
                search.fit(self.X.copy(), self.y.copy(), **self.fit_params)
            except Exception as error:
                return type(error), None
        n = sum(w.category is ConvergenceWarning for w in caught)
        return search.cv_results_, n


def check(seed, dtype, tolerance):
    case = Case(seed, dtype)
    (ours, n_ours), (theirs, n_theirs) = (case.run(c) for c in (BatchedGridSearchCV, GridSearchCV))
    if isinstance(theirs, type):
        assert ours is theirs
        return
    assert not isinstance(ours, type)
    assert n_ours == min(n_theirs, 1)
    assert ours["params"] == theirs["params"]
    for name, values in theirs.items():
        if name.endswith("_score") or "test_" in name or "train_" in name:
            if name.startswith(("std", "rank")):
                continue
            close = {"rtol": tolerance, "atol": tolerance, "err_msg": name}
            np.testing.assert_allclose(ours[name], values, **close)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("seed", range(30))
def test_the_same_scores_in_double_precision(seed):
    check(seed, "float64", 1e-8)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("seed", range(100, 110))
def test_the_same_scores_in_single_precision(seed):
    check(seed, "float32", 2e-4)


@pytest.mark.thousand
@pytest.mark.parametrize("seed", range(1000, 2000))
def test_a_thousand_more(seed):
    check(seed, "float64", 1e-8)
