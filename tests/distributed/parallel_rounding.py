"""Two processes of torchrun whose processors round differently, and with unequal rows."""

import os
import sys
import warnings
from pathlib import Path

if os.environ["RANK"] == "1":
    # as an older processor would
    os.environ["ATEN_CPU_CAPABILITY"] = "default"
    os.environ["OPENBLAS_CORETYPE"] = "Prescott"
    os.environ["MKL_ENABLE_INSTRUCTIONS"] = "SSE4_2"

import numpy as np

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor
from sktorch_linreg.distributed import data_parallel


def learned(model):
    if isinstance(model, TorchMLPRegressor):
        # coefs_ would be worked out from these, with the rounding of each processor
        parts = [a for layer in model._trained_layers()[0] for a in layer]
    else:
        parts = [model.coef_, np.atleast_1d(model.intercept_)]
    return np.concatenate([np.ravel(p) for p in parts])


def main(folder):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1000, 200))
    y = X[:, :5].sum(axis=1) + np.sin(3 * X[:, 0]) + rng.normal(size=1000)
    small = {"optimizer": "lbfgs", "alpha": 0.01, "random_state": 0, "tol": None}
    network = {"hidden_layer_sizes": (16,), **small, "max_epochs": 15}
    found = {}
    with data_parallel() as processes, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mine = slice(0, 900) if processes.rank == 0 else slice(900, 1000)
        X_mine, y_mine = X[mine], y[mine]
        few = X_mine[:, :10]
        for dtype in ("float32", "float64"):
            model = TorchMLPRegressor(**network, dtype=dtype)
            found[f"l-bfgs, {dtype}"] = learned(model.fit(X_mine, y_mine))
            found[f"l-bfgs, {dtype}: curve"] = np.array(model.loss_curve_)
        wide = {"hidden_layer_sizes": (200,), **small, "dtype": "float32", "max_epochs": 5}
        found["l-bfgs on threads"] = learned(TorchMLPRegressor(**wide).fit(X_mine, y_mine))
        quantile = TorchLinearRegressor(loss="quantile", alpha=0.1)
        found["kinks"] = learned(quantile.fit(few, y_mine))
        lasso = TorchLinearRegressor(loss="huber", alpha=0.1, l1_ratio=1.0, optimizer="lbfgs")
        found["orthant-wise"] = learned(lasso.fit(few, y_mine))
        adam = TorchMLPRegressor(max_epochs=30, batch_size=50, tol=None, random_state=0)
        found["adam"] = learned(adam.fit(few, y_mine))
        found["full batch"] = learned(
            TorchLinearRegressor(optimizer="adam", max_epochs=50, random_state=0).fit(few, y_mine)
        )
        exact = TorchLinearRegressor(alpha=0.1)
        for _ in range(3):
            found["exact"] = learned(exact.partial_fit(X_mine, y_mine))
        warm = TorchLinearRegressor(warm_start=True).fit(few, y_mine)
        warm.set_params(optimizer="adam", max_epochs=5, batch_size=100)
        found["warm start"] = learned(warm.fit(few, y_mine))
    # what makes the others a test
    found["alone"] = learned(TorchMLPRegressor(**network).fit(X[:500], y[:500]))
    np.savez(Path(folder) / f"found{processes.rank}.npz", **found)


if __name__ == "__main__":
    main(sys.argv[1])
