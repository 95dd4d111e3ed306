"""Many rows: bounded memory, files larger than memory, threads."""

import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from sktorch_linreg import TorchLinearRegressor
from sktorch_linreg._data import accumulate
from sktorch_linreg._runtime import threads

COEF = np.linspace(-3, 4, 50)


def write_rows(path, n_rows):
    """Rows with large means and known coefficients, written block by block."""
    rows = np.lib.format.open_memmap(path, mode="w+", shape=(n_rows, 51))
    rng = np.random.default_rng(0)
    for i in range(0, n_rows, 50_000):
        block = rows[i : i + 50_000]
        block[:, :50] = rng.normal(size=(len(block), 50)) + 100.0
        block[:, 50] = block[:, :50] @ COEF + 7.0
    rows.flush()


SCRIPT = """
import re, resource, sys
import numpy as np
from sktorch_linreg import TorchLinearRegressor

rows = np.load(sys.argv[1], mmap_mode="r")
X, y = rows[:, :50], rows[:, 50]
TorchLinearRegressor().fit(X[:40_000], y[:40_000])  # what is loaded lazily is loaded now
used = int(re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 64 * 2**20,) * 2)
try:
    np.array(rows)
except MemoryError:
    pass
else:
    raise SystemExit("the limit does not hold")
weight = np.linspace(1.0, 2.0, len(X)) if sys.argv[2] == "weighted" else None
whole = TorchLinearRegressor().fit(X, y, weight)
parts = TorchLinearRegressor()
for i in range(0, len(X), 100_000):
    w = None if weight is None else weight[i : i + 100_000]
    parts.partial_fit(X[i : i + 100_000], y[i : i + 100_000], w)
for model in (whole, parts):
    np.testing.assert_allclose(model.coef_, np.linspace(-3, 4, 50), rtol=1e-9, atol=1e-9)
    assert abs(model.intercept_ - 7.0) < 1e-6
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_DATA")
@pytest.mark.parametrize("weights", ["plain", "weighted"])
def test_a_file_larger_than_memory(tmp_path, weights):
    path = tmp_path / "rows.npy"
    write_rows(path, 600_000)
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(path), weights]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("mean", [0.0, 50.0])
@pytest.mark.parametrize("common", [0.0, 1e3])
def test_threads_give_the_same_solution(weighted, dtype, mean, common, two_threads, monkeypatch):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60_000, 30)) + common * rng.normal(size=(60_000, 1)) + mean
    X, y = X.astype(dtype), rng.normal(size=60_000).astype(dtype)
    w = rng.uniform(0.5, 2, 60_000) if weighted else None
    spans = []
    original = threads.n_spans
    monkeypatch.setattr(
        accumulate, "n_spans", lambda *args: spans.append(original(*args)) or spans[-1]
    )
    two = TorchLinearRegressor().fit(X, y, sample_weight=w)
    again = TorchLinearRegressor().fit(X, y, sample_weight=w)
    assert set(spans) == {2}
    torch.set_num_threads(1)
    one = TorchLinearRegressor().fit(X, y, sample_weight=w)
    np.testing.assert_array_equal(two.coef_, again.coef_)
    rtol = 1e-9 if dtype == np.float64 else 1e-4
    np.testing.assert_allclose(two.coef_, one.coef_, rtol=rtol, atol=rtol * np.abs(one.coef_).max())
    assert two.solver_path_ == one.solver_path_


def test_blas_threads_are_given_back(two_threads):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60_000, 30)), rng.normal(size=60_000)
    errors = []

    def work():
        try:
            for _ in range(5):
                TorchLinearRegressor().fit(X, y)
        except BaseException as error:
            errors.append(error)

    with threadpool_limits(2, user_api="blas"):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        now = {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}
    assert errors == []
    assert now == {2}


def test_an_error_in_a_thread_reaches_the_caller(two_threads):
    def work(start, stop):
        if start:
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        threads.over_spans(work, 10, 2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["X", "y"])
@pytest.mark.parametrize("row", [0, -1])
def test_one_bad_number_among_many_is_found(bad, where, row):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30_000, 8)), rng.normal(size=30_000)
    (X if where == "X" else y)[row] = bad
    model = TorchLinearRegressor()
    for call in (model.fit, model.partial_fit):
        with pytest.raises(ValueError, match=f"Input {where} contains"):
            call(X, y)
    assert not hasattr(model, "coef_")
    if where == "X":
        model.fit(X[1:-1], y[1:-1])
        with pytest.raises(ValueError, match="Input X contains"):
            model.predict(X)
        # also where a coefficient of 0 would hide it
        model.coef_ = np.zeros(8)
        with pytest.raises(ValueError, match="Input X contains"):
            model.predict(X)


@pytest.mark.parametrize("order", ["C", "F", "packed", "strided", "reversed", "read-only"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("mean", [0.0, 50.0])
def test_any_memory_layout(order, dtype, mean):
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(20_000, 8)) + mean).astype(dtype)
    y = (X @ np.arange(8.0) + rng.normal(size=20_000)).astype(dtype)
    expected = TorchLinearRegressor().fit(X, y)
    if order == "F":
        X = np.asfortranarray(X)
    elif order == "packed":
        record = np.zeros(20_000, dtype=[("x", dtype, (8,)), ("id", "i2")])
        record["x"] = X
        X = record["x"]
    elif order == "strided":
        X = np.repeat(np.repeat(X, 2, axis=0), 2, axis=1)[::2, ::2]
    elif order == "reversed":
        X, y = X[::-1].copy()[::-1], y[::-1].copy()[::-1]
    elif order == "read-only":
        X.flags.writeable = y.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = TorchLinearRegressor().fit(X, y)
        weighted = TorchLinearRegressor().fit(X, y, sample_weight=np.full(20_000, 2.0))
    rtol = 1e-10 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(weighted.coef_, expected.coef_, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(model.predict(X), expected.predict(np.array(X)), atol=100 * rtol)


def test_means_that_drift_away_from_the_sample():
    """Rows that the sample does not see have a mean a thousand times their spread."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40_000, 4))
    X[np.arange(40_000) % 79 > 0] += 1e6
    y = X @ [1.0, 2.0, 3.0, 4.0] + rng.normal(size=40_000)
    model = TorchLinearRegressor().fit(X, y)
    mean = X.mean(axis=0, dtype=np.longdouble)
    centred = (X - mean).astype(np.float64)
    expected = np.linalg.lstsq(centred, y - y.mean(), rcond=None)[0]
    np.testing.assert_allclose(model.coef_, expected, rtol=1e-11)


def test_constant_columns_are_silent(capfd):
    for X in (np.ones((5, 2)), np.zeros((5, 2)), np.full((30_000, 3), 0.1)):
        for fit_intercept in (True, False):
            model = TorchLinearRegressor(fit_intercept=fit_intercept)
            y = np.arange(float(len(X)))
            model.fit(X, y).partial_fit(X, y)
            if fit_intercept:
                assert not model.coef_.any()
                assert model.rank_ == 0
                assert model.intercept_ == pytest.approx(y.mean())
    out = capfd.readouterr()
    assert out.out + out.err == ""
