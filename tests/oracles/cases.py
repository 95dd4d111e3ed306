"""Fits and searches whose results are kept, to see that a change of the code changes none of them.

``python tests/oracles/renew.py`` stores what they give today.
"""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from skorch.callbacks import Callback
from torch import distributed, nn

import sktorch_linreg
import sktorch_linreg.distributed as distributed_fits
from sktorch_linreg import (
    BatchedGridSearchCV,
    BatchedRandomizedSearchCV,
    TorchLinearRegressor,
    TorchMLPRegressor,
    interop,
)
from sktorch_linreg.distributed import data_parallel

DATA = Path(__file__).parent.parent / "stored"
RESULTS, SIGNATURES = DATA / "oracles.npz", DATA / "signatures.txt"

RNG = np.random.default_rng(20)
X = RNG.normal(size=(60, 4)) * [1, 10, 0.1, 1] + [0, 5, 0, 2]
SPARSE = np.where(RNG.random((60, 4)) < 0.4, X, 0.0)
Y = X @ RNG.normal(size=(4, 2)) / [1, 3] + np.sin(X[:, :2]) + 0.1 * RNG.normal(size=(60, 2))
y = Y[:, 0]
COUNTS = RNG.poisson(np.exp(0.3 * X[:, 0])).astype(float)
WEIGHT = RNG.integers(0, 4, 60).astype(float)
CUTS = (0, 20, 45, 60)


class RMSE(nn.Module):
    """A loss that is no mean over rows."""

    def forward(self, prediction, target):
        return (prediction - target).square().mean().sqrt()


def linear(**settings: Any) -> TorchLinearRegressor:
    """A linear model that is trained for a few epochs, or solved."""
    return TorchLinearRegressor(**{"random_state": 0, "max_epochs": 25, **settings})


def network(**settings: Any) -> TorchMLPRegressor:
    """A small network that is trained for a few epochs in double precision."""
    known = {"hidden_layer_sizes": (6, 4), "random_state": 0, "max_epochs": 12, "tol": None}
    return TorchMLPRegressor(**{**known, "dtype": "float64", **settings})


SOLVED: dict[str, tuple[Any, ...]] = {
    "least squares": (linear(), X, y),
    "least squares, weights": (linear(), X, Y, WEIGHT),
    "least squares, no intercept": (linear(fit_intercept=False), X, Y),
    "least squares, sparse": (linear(), sp.csr_array(SPARSE), y, WEIGHT),
    "least squares, float32": (linear(), X.astype(np.float32), Y.astype(np.float32)),
    "more columns than rows": (linear(), X.reshape(20, 12)[:6], y[:6]),
    "collinear columns": (linear(), np.column_stack([X, X[:, 0]]), y),
    "ridge": (linear(alpha=0.1), X, Y, WEIGHT),
    "lasso": (linear(alpha=0.1, l1_ratio=1.0), X, Y),
    "elastic net, non-negative": (linear(alpha=0.1, l1_ratio=0.5, positive=True), X, y),
    "non-negative": (linear(positive=True), X, Y, WEIGHT),
}
OPTIMIZERS = {
    "sgd": {"lr": 0.05, "optimizer__momentum": 0.9, "optimizer__nesterov": True},
    "adam": {"lr": 0.05}, "adamw": {"lr": 0.05}, "nadam": {"lr": 0.05}, "radam": {"lr": 0.1},
    "rmsprop": {"lr": 0.02, "optimizer__centered": True}, "adagrad": {"lr": 0.2},
    "adadelta": {"lr": 1.0}, "adamax": {"lr": 0.05}, "lbfgs": {},
}  # fmt: skip
TRAINED: dict[str, tuple[Any, ...]] = {
    **{
        f"{name}, by batches": (linear(optimizer=name, batch_size=16, **options), X, Y, WEIGHT)
        for name, options in OPTIMIZERS.items()
    },
    "torch's class": (linear(optimizer=torch.optim.Rprop, lr=0.05), X, y),
    "huber by default": (linear(loss="huber", max_epochs=100), X, y),
    **{
        f"{loss}": (network(loss=loss, lr=0.02), X, COUNTS, WEIGHT)
        for loss in ("absolute_error", "huber", "quantile", "poisson")
    },
    "loss class": (network(loss=nn.SmoothL1Loss, lr=0.02), X, Y, WEIGHT),
    "own loss": (network(loss=RMSE, lr=0.02, batch_size=20), X, y),
    "l1 by projection": (linear(optimizer="adam", alpha=0.2, l1_ratio=0.7), X, Y),
    "positive by projection": (linear(optimizer="sgd", lr=0.05, positive=True), X, y, WEIGHT),
    "l1 by orthants": (network(optimizer="lbfgs", alpha=0.05, l1_ratio=1.0, max_epochs=1), X, y),
    **{
        f"schedule {name}": (network(lr=0.05, lr_schedule=name, batch_size=16), X, y)
        for name in ("step", "exponential", "linear", "cosine", "one_cycle", "polynomial")
    },
    "schedule plateau": (
        network(lr=0.3, lr_schedule="plateau", tol=0.05, n_iter_no_change=2),
        X,
        y,
    ),
    "stops on a plateau": (network(lr=0.1, tol=0.02, n_iter_no_change=2, max_epochs=80), X, y),
    "held-out rows": (network(lr=0.1, early_stopping=True, max_epochs=30), X, Y, WEIGHT),
    "held-out rows, batches": (network(lr=0.1, early_stopping=True, batch_size=8), X, y),
    "dropout": (network(dropout=0.3, lr=0.02, batch_size=16), X, y),
    "activation tanh": (network(activation="tanh", batch_size=16), X, Y),
    "activation gelu": (network(activation="gelu", l1_ratio=0.5, alpha=0.01), X, Y),
    "sparse rows": (network(lr=0.02, batch_size=16), sp.csr_array(SPARSE), y, WEIGHT),
    "float32": (network(dtype="float32", lr=0.02), X, Y),
    "as given": (network(standardize=False, lr=0.02), X, y),
    "callbacks": (network(lr=0.02, batch_size=16, callbacks=[Callback()]), X, y),
}
SEARCHES: dict[str, tuple[Any, ...]] = {
    "rates": (network(batch_size=16), {"lr": [0.001, 0.01, 0.1], "alpha": [0.0, 0.1]}, y),
    "held out": (network(early_stopping=True), {"lr": [0.01, 0.1], "random_state": [0, 1]}, y),
    "dropout": (network(batch_size=16), {"dropout": [0.0, 0.2, 0.4], "lr": [0.01]}, Y),
    "optimizers": (
        network(lr=0.02),
        {"optimizer": ["adam", "sgd", "lbfgs"], "hidden_layer_sizes": [(3,), (6, 4)]},
        y,
    ),
    "schedules": (network(lr=0.05), {"lr_schedule": ["cosine", "step", "plateau"]}, y),
    "losses": (network(lr=0.05), {"loss": ["huber", "poisson", "quantile"]}, COUNTS),
    "l1": (linear(optimizer="adam"), {"alpha": [0.01, 0.1], "l1_ratio": [0.0, 0.5, 1.0]}, y),
    "ridge": (linear(), {"alpha": [0.0, 0.01, 0.1, 1.0]}, Y),
    "pipeline": (
        make_pipeline(PolynomialFeatures(2), StandardScaler(), linear(optimizer="adam")),
        {"polynomialfeatures__degree": [1, 2], "torchlinearregressor__lr": [0.01, 0.1]},
        y,
    ),
}


def facts(model: Any, rows: Any) -> dict[str, Any]:
    """What is kept of a fitted model."""
    return {
        "predictions": model.predict(rows),
        "loss": np.array(model.loss_curve_),
        "validation": np.array(model.validation_loss_curve_),
        "epochs": np.array(model.n_iter_),
    }


def fitted(model: Any, rows: Any, targets: Any, weight: Any = None) -> dict[str, Any]:
    """A plain fit."""
    return facts(clone(model).fit(rows, targets, weight), rows)


def in_batches(model: Any) -> dict[str, Any]:
    """`partial_fit` over batches whose columns drift."""
    model = clone(model)
    for i, j in pairwise(CUTS):
        model.partial_fit(X[i:j] * (1 + i / 60), Y[i:j], WEIGHT[i:j])
    return facts(model, X)


def warm() -> dict[str, Any]:
    """Two fits, the second of which goes on from the first."""
    model = network(warm_start=True, lr=0.02, batch_size=16).fit(X, y)
    return facts(model.fit(X[:40], y[:40]), X)


def resumed() -> dict[str, Any]:
    """A fit that is interrupted in an epoch, and goes on from its checkpoint."""

    class Stop(Callback):
        def on_epoch_begin(self, net, **kwargs):
            if len(net.history) == 8:
                raise RuntimeError

    with tempfile.TemporaryDirectory() as folder:
        settings = {"batch_size": 16, "checkpoint_every": 3, "lr": 0.02, "dropout": 0.2}
        model = network(checkpoint_dir=folder, lr_schedule="cosine", **settings)
        try:
            model.set_params(callbacks=[Stop()]).fit(X, y)
        except RuntimeError:
            model.set_params(callbacks=None)
        return facts(model.fit(X, y), X)


def shared() -> dict[str, Any]:
    """A fit of a group of processes, which here is one."""
    with tempfile.TemporaryDirectory() as folder:
        place = f"file://{folder}/meeting"
        distributed.init_process_group("gloo", init_method=place, rank=0, world_size=1)
        try:
            with data_parallel():
                trained = fitted(network(batch_size=16, lr=0.02), X, Y, WEIGHT)
                solved = fitted(linear(alpha=0.1), X, Y, WEIGHT)
        finally:
            distributed.destroy_process_group()
    return {**trained, **{f"solved, {k}": v for k, v in solved.items()}}


def searched(model: Any, grid: Any, targets: Any, *, randomized: bool = False) -> dict[str, Any]:
    """A search over folds."""
    settings = {"cv": 3, "return_train_score": True}
    if randomized:
        search = BatchedRandomizedSearchCV(model, grid, n_iter=3, random_state=0, **settings)
    else:
        search = BatchedGridSearchCV(model, grid, **settings)
    search.fit(X, targets)
    results = search.cv_results_
    return {
        "test scores": results["mean_test_score"],
        "training scores": results["mean_train_score"],
        "predictions": search.predict(X),
    }


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    **{k: (lambda args=args: fitted(*args)) for k, args in {**SOLVED, **TRAINED}.items()},
    "batches, solved": lambda: in_batches(linear(alpha=0.1)),
    "batches, linear": lambda: in_batches(linear(optimizer="adam", lr=0.05)),
    "batches, network": lambda: in_batches(network(lr=0.02, lr_schedule="step")),
    "warm start": warm,
    "resumed checkpoint": resumed,
    "shared processes": shared,
    **{f"search: {k}": (lambda args=args: searched(*args)) for k, args in SEARCHES.items()},
    "search: at random": lambda: searched(*SEARCHES["rates"], randomized=True),
}


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings of fits that stop early, as most of these do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def results() -> dict[str, np.ndarray]:
    """All that the cases give, by "case: name"."""
    with quiet():
        found = {name: case() for name, case in CASES.items()}
    return {f"{name}: {k}": np.asarray(v) for name, kept in found.items() for k, v in kept.items()}


def signatures() -> list[str]:
    """A line for each public class and function, and for the public methods of classes."""
    lines = []
    for module in (sktorch_linreg, interop, distributed_fits):
        public = [n for n in vars(module) if not n.startswith("_")]
        for name in sorted(getattr(module, "__all__", public)):
            value = getattr(module, name)
            ours = str(getattr(value, "__module__", "")).startswith("sktorch_linreg")
            if not (callable(value) and ours):
                continue
            lines.append(f"{module.__name__}.{name}{_signature(value)}")
            if isinstance(value, type):
                # what scikit-learn's classes have is theirs to change
                bases = [c for c in value.__mro__ if c.__module__.startswith("sktorch_linreg")]
                own = {k: v for c in reversed(bases) for k, v in vars(c).items()}
                for attribute, member in sorted(own.items()):
                    if not attribute.startswith("_"):
                        what = _signature(member) if inspect.isfunction(member) else ""
                        lines.append(f"{module.__name__}.{name}.{attribute}{what}")
    return lines


def _signature(value: Any) -> str:
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return "(...)"
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    return str(found.replace(parameters=plain, return_annotation=inspect.Signature.empty))
