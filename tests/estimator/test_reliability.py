"""Promises about processes: the same bits everywhere, no trace left behind, nothing that grows."""

import hashlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import warnings

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from threadpoolctl import threadpool_info

import sktorch_linreg
from sktorch_linreg import (
    BatchedGridSearchCV,
    BatchedRandomizedSearchCV,
    TorchLinearRegressor,
    TorchMLPRegressor,
    load_model,
    save_model,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 4))
y = X @ [1.0, -1.0, 2.0, 0.0] + 0.1 * RNG.normal(size=300)
MODELS = {
    "exact": TorchLinearRegressor(),
    "batches": TorchLinearRegressor(
        optimizer="adam", batch_size=32, max_epochs=4, random_state=1
    ),
    "lbfgs": TorchLinearRegressor(loss="huber", random_state=1),
    "mlp": TorchMLPRegressor(
        hidden_layer_sizes=(8,), dropout=0.2, early_stopping=True, max_epochs=4, tol=None,
        random_state=1,
    ),
}  # fmt: skip


def digest(name):
    """The bits of a fit."""
    model = clone(MODELS[name]).fit(X, y)
    layers = [model.coef_, model.intercept_] if hasattr(model, "coef_") else model.coefs_
    return hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in layers)).hexdigest()


# -- the same bits --------------------------------------------------------------------------------


def test_another_process_gives_the_same_bits():
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_reliability as t;"
        "print(*map(t.digest, t.MODELS))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, os.path.dirname(__file__)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.stdout.split() == [digest(name) for name in MODELS]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_cross_validation_under_any_backend(name, backend):
    alone = cross_val_score(MODELS[name], X, y, cv=4, n_jobs=1)
    with joblib.parallel_config(backend=backend):
        together = cross_val_score(MODELS[name], X, y, cv=4, n_jobs=2)
    np.testing.assert_array_equal(together, alone)


@pytest.mark.slow
def test_cross_validation_on_a_cluster():
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    )
    with cluster, distributed.Client(cluster), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for model in MODELS.values():
            alone = cross_val_score(model, X, y, cv=4)
            with joblib.parallel_config(backend="dask"):
                together = cross_val_score(model, X, y, cv=4, n_jobs=2)
            np.testing.assert_allclose(together, alone, rtol=1e-12)


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, marks=() if way == "fork" else pytest.mark.slow)
        for way in multiprocessing.get_all_start_methods()
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_processes_after_a_fit_in_the_parent(way):
    before = torch.get_num_threads()
    # on two threads, whose pool a forked process does not inherit
    torch.set_num_threads(2)
    try:
        big = RNG.normal(size=(200_000, 20))
        TorchLinearRegressor().fit(big, big[:, 0])
        network = clone(MODELS["mlp"]).set_params(batch_size=None, max_epochs=1)
        network.fit(big, big[:, 0]).predict(big)
    finally:
        torch.set_num_threads(before)
    expected = [digest(name) for name in MODELS]
    with multiprocessing.get_context(way).Pool(2) as pool:
        found = pool.map_async(digest, list(MODELS)).get(timeout=120)
    assert found == expected


FORKS = """
import os, pathlib, signal, sys, tempfile, threading, time, warnings
import numpy as np
import torch
sys.path.insert(0, sys.argv[1])
import test_reliability as t
warnings.simplefilter("ignore")
torch.set_num_threads(2)
rows = np.random.default_rng(0).normal(size=(20_000, 30))
net = t.TorchMLPRegressor(max_epochs=1, tol=None, random_state=0)
wide = t.clone(net).set_params(hidden_layer_sizes=(512,), batch_size=4000)
search = t.BatchedGridSearchCV(t.TorchMLPRegressor(max_epochs=1, tol=None), {"lr": [0.1, 0.2]})
search.set_params(cv=2)

def work():
    net.predict(rows[:2000])
    net.score(rows[:2000], rows[:2000, 0])
    wide.fit(rows[:4000], rows[:4000, 0])
    t.TorchLinearRegressor().fit(rows, rows[:, 0]).predict(rows)
    search.fit(rows[:2000], rows[:2000, 0])

def in_child():
    signal.alarm(120)
    work()
    # as servers do that answer each request in a thread
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    os._exit(0)

net.fit(rows[:2000], rows[:2000, 0])
for what, call in t.calls(pathlib.Path(tempfile.mkdtemp())):
    try:
        call()
    except ValueError:
        pass
    net.predict(rows)
    child = os.fork()
    if not child:
        in_child()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, (what, status)
    # the parent keeps its threads
    assert torch.get_num_threads() == 2
print("done")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_fork_after_any_call_leaves_both_processes_at_work():
    run = subprocess.run(
        [sys.executable, "-c", FORKS, os.path.dirname(__file__)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "2", "MPLBACKEND": "Agg"},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("done\n")


@pytest.mark.parametrize("name", MODELS)
def test_the_number_of_threads_changes_rounding_at_most(name, two_threads):
    two = clone(MODELS[name]).fit(X, y).predict(X)
    torch.set_num_threads(1)
    np.testing.assert_allclose(clone(MODELS[name]).fit(X, y).predict(X), two, rtol=1e-5, atol=1e-6)


# -- no trace left behind -------------------------------------------------------------------------


def world():
    """Settings of the process that belong to the user."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    pools = [(p["user_api"], p["internal_api"], p["num_threads"]) for p in threadpool_info()]
    return {
        "torch random": torch.get_rng_state().numpy().tobytes(),
        "numpy random": (kind, keys.tobytes(), rest),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), sorted(pools)),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        ),
        "precision": torch.get_float32_matmul_precision(),
        "printing": np.get_printoptions(),
        "numpy errors": np.geterr(),
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "recursion": sys.getrecursionlimit(),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "hook": sys.excepthook,
    }


def calls(tmp_path):
    """Every public call, as something to be called."""
    for name, model in MODELS.items():
        fitted = clone(model).fit(X, y)
        yield f"{name} fit", lambda m=model: clone(m).fit(X, y, np.ones(300))
        yield f"{name} wrong fit", lambda m=model: clone(m).fit(X, y[:5])
        yield f"{name} predict", lambda m=fitted: m.predict(X)
        yield f"{name} score", lambda m=fitted: m.score(X, y)
        yield f"{name} pickle", lambda m=fitted: pickle.loads(pickle.dumps(m))
        yield f"{name} repr", lambda m=fitted: (repr(m), m._repr_html_(), dir(m))
        yield f"{name} net", lambda m=fitted: m.net_.predict(X)
        yield f"{name} module", lambda m=fitted: m.module_(torch.ones(1, 4))
        yield f"{name} save save_model", lambda m=fitted: save_model(m, tmp_path / "model")
        yield f"{name} load load_model", lambda: load_model(tmp_path / "model")
        for cls, grid in (
            (BatchedGridSearchCV, {"alpha": [0.0, 0.1]}),
            (BatchedRandomizedSearchCV, {"alpha": [0.0, 0.1]}),
        ):
            options = {"n_iter": 2} if cls is BatchedRandomizedSearchCV else {}
            yield (
                f"{name} {cls.__name__}",
                lambda m=model, c=cls, g=grid, o=options: c(m, g, cv=2, **o).fit(X, y),
            )
    linear = MODELS["batches"]
    module = sktorch_linreg.TorchRegressor(torch.nn.Linear, max_epochs=3, batch_size=100)
    yield "TorchRegressor", lambda: clone(module).fit(X, y).predict(X)
    yield "partial_fit", lambda: clone(linear).partial_fit(X, y)
    yield "exact partial_fit", lambda: TorchLinearRegressor().partial_fit(X, y)
    yield "checkpoint", lambda: clone(linear).set_params(checkpoint_dir=tmp_path / "c").fit(X, y)
    yield "verbose", lambda: clone(linear).set_params(verbose=1).fit(X, y)
    yield "diverging", lambda: clone(linear).set_params(optimizer="sgd", lr=1e30).fit(X, y)
    exact, search = TorchLinearRegressor().fit(X, y), BatchedGridSearchCV(linear, {"lr": [0.1]})
    column = TorchLinearRegressor().fit(X[:, :1], y)
    show = sktorch_linreg
    yield "LossCurveDisplay", lambda: show.LossCurveDisplay.from_estimator(exact)
    yield "LossSurfaceDisplay", lambda: show.LossSurfaceDisplay.from_estimator(exact, X, y)
    yield "LearningRateDisplay", lambda: show.LearningRateDisplay.from_search(search.fit(X, y))
    yield "FittedLineDisplay", lambda: show.FittedLineDisplay.from_estimator(column, X[:, :1], y)
    yield "lr_range_test LRRangeTestDisplay", lambda: show.lr_range_test(linear, X, y).plot()
    yield "to_sklearn", lambda: exact.to_sklearn().predict(X)
    yield "standard errors", lambda: TorchLinearRegressor().fit(X, y).predict(X, return_std=True)


def test_global_state_is_untouched(tmp_path):
    # what matplotlib, and torch with its compiler, set up when they are first used is their own
    sktorch_linreg.LossCurveDisplay({"a": [1.0]}).plot()
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    errors = {"TrainingDivergedError", "CheckpointMismatchError"}
    seen = {"TorchLinearRegressor", "TorchMLPRegressor", "__version__", *errors}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for what, call in calls(tmp_path):
            before = world()
            try:
                call()
            except ValueError:
                assert what.endswith("wrong fit") or what == "diverging"
            after = world()
            for key, value in before.items():
                assert after[key] == value, (what, key)
            seen.update(what.split())
    # whatever is public is called
    assert {*sktorch_linreg.__all__, "partial_fit", "fit", "predict", "score"} <= seen


# -- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "error", [MemoryError("none left"), torch.OutOfMemoryError("none left"), RuntimeError("odd")]
)
def test_an_engine_that_fails_leaves_the_fitted_model(name, error, monkeypatch):
    def failing(*args, **kwargs):
        raise error

    model = clone(MODELS[name]).fit(X, y)
    before, keys = pickle.dumps(model), list(vars(model))
    monkeypatch.setattr("sktorch_linreg._estimator.base.train", failing)
    monkeypatch.setattr("sktorch_linreg._exact.solve.accumulate", failing)
    with pytest.raises(type(error)):
        model.fit(2 * X, y)
    assert pickle.dumps(model) == before
    assert list(vars(model)) == keys


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("rows", "params"),
    [
        ((X[:, :2], y[:10]), {}),
        ((np.full_like(X, np.nan), y), {}),
        ((X[:, :1], y), {"alpha": -1.0}),
        ((X, y), {"device": "cuda:99"}),
        ((X, y), {"loss": "unknown"}),
    ],
    ids=["lengths", "NaN", "parameter", "device", "loss"],
)
def test_wrong_input_leaves_the_fitted_model(name, rows, params):
    model = clone(MODELS[name]).fit(X, y)
    model.set_params(**params)
    before = pickle.dumps(model)
    with pytest.raises(ValueError, match=r".{20}"):
        model.fit(*rows)
    assert pickle.dumps(model) == before


INTERRUPTED = """
import os, signal, threading, warnings
import numpy as np
import torch
from sktorch_linreg import TorchMLPRegressor
rng = np.random.default_rng(0)
X = rng.normal(size=(2000, 5))
y = X[:, 0]
def rate(epoch):
    if epoch == 20:
        # from here on Ctrl-C may come at any moment
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    return 1.0

settings = dict(
    tol=None, random_state=0, lr_schedule=torch.optim.lr_scheduler.LambdaLR,
    lr_schedule__lr_lambda=rate,
)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = TorchMLPRegressor(max_epochs=10**6, **settings).fit(X, y)
settings["lr_schedule__lr_lambda"] = lambda epoch: 1.0
again = TorchMLPRegressor(max_epochs=model.n_iter_, **settings).fit(X, y)
same = all((a == b).all() for a, b in zip(model.coefs_, again.coefs_))
print(model.n_iter_, len(model.loss_curve_), len(model.history_), same, caught[-1].message)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is a signal of Unix here")
def test_ctrl_c_keeps_whole_epochs():
    command = [sys.executable, "-c", INTERRUPTED]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    n_iter, *lengths, same, message = run.stdout.split(maxsplit=4)
    assert int(n_iter) >= 20
    assert set(lengths) == {n_iter}
    assert same == "True"
    assert f"the {n_iter} completed epochs" in message


# -- nothing grows --------------------------------------------------------------------------------

SOAK = """
import gc, os, threading, warnings
import numpy as np
from sktorch_linreg import BatchedGridSearchCV, TorchLinearRegressor, TorchMLPRegressor
warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
X = rng.normal(size=(100, 4))
y = X @ rng.normal(size=4)
models = [
    TorchLinearRegressor(),
    TorchLinearRegressor(optimizer="adam", batch_size=20, max_epochs=2),
    TorchLinearRegressor(loss="huber", max_epochs=2),
    TorchMLPRegressor(hidden_layer_sizes=(8,), max_epochs=2, early_stopping=True),
    BatchedGridSearchCV(TorchLinearRegressor(), {"alpha": [0.0, 0.1]}, cv=2),
]

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def counts():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

def run(n):
    for i in range(n):
        models[i % len(models)].fit(X, y).predict(X)

run(300)
gc.collect()
before, begin = resident(), counts()
run(2000)
gc.collect()
print(resident() - before, begin == counts(), threading.active_count())
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read in Linux's way")
def test_two_thousand_fits_leave_nothing_behind():
    run = subprocess.run(
        [sys.executable, "-c", SOAK],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    grown, same, threads = run.stdout.split()
    assert int(grown) < 20 * 2**20
    assert same == "True"
    assert threads == "1"
