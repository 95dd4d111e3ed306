"""Exact least squares against scikit-learn and scikit-learn-intelex: time, prediction, memory.

Run ``python benchmarks/least_squares.py``. scikit-learn-intelex is a peer if it is installed
(``pip install scikit-learn-intelex``). Ratios are the peer's median time over ours.
"""

import re
import subprocess
import sys
from functools import partial

import numpy as np
from common import Table, n_rounds, rounds, with_threads
from sklearn.linear_model import LinearRegression, Ridge

from sktorch_linreg import TorchLinearRegressor

CASES = [
    (100, 5, "float64", 1),
    (1_000, 10, "float64", 1),
    (100_000, 20, "float64", 1),
    (1_000_000, 20, "float64", 1),
    (100_000, 200, "float64", 1),
    (20_000, 1_000, "float64", 1),
    (200_000, 100, "float32", 1),
    (1_000_000, 20, "float32", 1),
    (100_000, 50, "float64", 10),
]


def find_accelerated(threads):
    """scikit-learn-intelex's LinearRegression, or None."""
    try:
        import daal4py
        from sklearnex.linear_model import LinearRegression as Accelerated
    except ImportError:
        return None
    daal4py.daalinit(nthreads=threads)
    return Accelerated


def make(n, d, dtype, n_targets):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d), dtype=dtype)
    y = X @ rng.standard_normal((d, n_targets)).astype(dtype)
    y += rng.standard_normal(y.shape, dtype=dtype)
    return X, (y[:, 0].copy() if n_targets == 1 else y), rng.uniform(0.5, 2.0, n)


def fit(make_model, X, y, weight):
    make_model().fit(X, y, weight)


def fits(threads):
    table = Table(f"fit, {threads} thread(s)")
    models = {
        "ours": TorchLinearRegressor,
        "LinearRegression": LinearRegression,
        "Ridge cholesky": partial(Ridge, solver="cholesky", alpha=1e-12),
    }
    if (accelerated := find_accelerated(threads)) is not None:
        models["scikit-learn-intelex"] = accelerated
    for n, d, dtype, n_targets in CASES:
        X, y, weight = make(n, d, dtype, n_targets)
        for w in (None, weight):
            contenders = {name: partial(fit, model, X, y, w) for name, model in models.items()}
            weights = "no weights" if w is None else "weights"
            case = f"{n} x {d} {dtype}, {n_targets} target(s), {weights}"
            table.add(case, rounds(contenders, n_rounds(contenders)), weights)
    table.summary()


def predictions(threads):
    table = Table(f"predict, {threads} thread(s)")
    for n, dtype in [(1, "float64"), (1_000_000, "float64"), (1_000_000, "float32")]:
        X, y, _ = make(max(n, 1_000), 20, dtype, 1)
        models = {"ours": TorchLinearRegressor(), "LinearRegression": LinearRegression()}
        contenders = {name: partial(m.fit(X, y).predict, X[:n]) for name, m in models.items()}
        table.add(f"{n} x 20 {dtype}", rounds(contenders, n_rounds(contenders, most=2001)))
    table.summary()


def memory():
    """Peak memory of a fit beyond its input, each in a fresh process (Linux)."""
    print("\npeak memory of fit beyond the input, MiB\n")
    print("| rows x columns | input | ours | weights | LinearRegression |")
    print("|---|---|---|---|---|")
    for n, d in [(1_000_000, 20), (4_000_000, 20), (500_000, 200)]:
        grown = []
        for args in (("ours", "0"), ("ours", "1"), ("theirs", "0")):
            command = [sys.executable, __file__, "memory", str(n), str(d), *args]
            out = subprocess.run(command, capture_output=True, text=True, check=True)
            grown.append(float(out.stdout))
        print(
            f"| {n} x {d} | {n * d / 2**17:.0f} | " + " | ".join(f"{g:.0f}" for g in grown) + " |"
        )


def grown_by(n, d, whose, weighted):
    rng = np.random.default_rng(0)
    X = np.empty((n, d))
    rng.standard_normal(out=X)
    y, w = X[:, 0] + 1.0, np.linspace(0.5, 2.0, n) if weighted else None
    model = TorchLinearRegressor() if whose == "ours" else LinearRegression()
    model.fit(X[:1000], y[:1000])
    # reset the peak so far, which a child process inherits from its parent
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS")
    model.fit(X, y, w)
    print((status("VmHWM") - before) / 1024)


def status(name):
    """A memory figure of this process, in KiB."""
    with open("/proc/self/status") as file:
        return int(re.search(rf"{name}:\s+(\d+)", file.read())[1])


def main(threads):
    fits(threads)
    predictions(threads)
    if threads == 1:
        memory()


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        n, d, whose, weighted = sys.argv[2:]
        grown_by(int(n), int(d), whose, weighted == "1")
    else:
        with_threads(main)
