"""What training costs beyond time: memory, threads, imports, several fits at once."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor
from sktorch_linreg._runtime import threads

MEMORY = """
import re, resource, sys
import numpy as np
from sktorch_linreg import TorchMLPRegressor

kind, limit = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(0)
n = 400_000
X = rng.standard_normal((n, 50), dtype=np.float32)  # 76 MiB
y = X[:, 0].copy()
settings = {"hidden_layer_sizes": (500,) if kind == "predict" else (16,), "max_epochs": 1}
settings |= {"tol": None, "batch_size": 1024, "standardize": kind == "standardized"}
model = TorchMLPRegressor(**settings).fit(X[:5000], y[:5000])  # loads what is loaded lazily
model.predict(X[:5000])
used = int(re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + limit * 2**20,) * 2)
try:
    np.ones(2 * limit * 2**18, dtype=np.float32)
except MemoryError:
    pass
else:
    raise SystemExit("the limit does not hold")
if kind == "predict":
    assert model.predict(X).shape == (n,)
else:
    TorchMLPRegressor(**settings).fit(X, y)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_DATA")
@pytest.mark.parametrize(
    ("kind", "limit"),
    # float32 as it is: no copy; in standard units: one; 500 hidden units of all rows are 763 MiB
    [("plain", 48), ("standardized", 76 + 48), ("predict", 48)],
)
def test_memory_is_one_copy_at_most(kind, limit):
    command = [sys.executable, "-c", MEMORY, kind, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_fit_by_name_makes_no_torch_optimizer():
    """The first one in a process imports torch._dynamo, which takes a second."""
    code = """
import sys
import numpy as np
from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor
X = np.random.default_rng(0).normal(size=(50, 3))
model = TorchMLPRegressor(max_epochs=2, tol=None, early_stopping=True).fit(X, X[:, 0])
TorchLinearRegressor(lr=0.1, batch_size=10, max_epochs=2).fit(X, X[:, 0]).predict(X)
assert "torch._dynamo" not in sys.modules
assert model.net_.optimizer_.param_groups[0]["lr"] == 1e-3
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", ["done", "raises", "interrupted"])
def test_small_steps_run_on_one_thread_and_give_the_others_back(two_threads, how):
    from skorch.callbacks import Callback

    seen = []

    class Look(Callback):
        def on_epoch_end(self, net, **kwargs):
            seen.append(torch.get_num_threads())
            if how == "raises":
                raise RuntimeError("stop")
            if how == "interrupted":
                raise KeyboardInterrupt

    X = np.random.default_rng(0).normal(size=(60, 3))
    model = TorchMLPRegressor(max_epochs=3, tol=None, callbacks=[Look()])
    if how == "raises":
        with pytest.raises(RuntimeError, match="stop"):
            model.fit(X, X[:, 0])
    else:
        model.fit(X, X[:, 0])
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2


def test_large_steps_use_all_threads(two_threads, monkeypatch):
    from skorch.callbacks import Callback

    seen = []

    class Look(Callback):
        def on_epoch_end(self, net, **kwargs):
            seen.append(torch.get_num_threads())

    X = np.random.default_rng(0).normal(size=(600, 20))
    monkeypatch.setattr(threads, "THREADED_STEP", 100 * 200)
    TorchMLPRegressor(max_epochs=1, tol=None, callbacks=[Look()]).fit(X, X[:, 0])
    assert seen == [2]


def test_fits_in_several_threads_at_once(two_threads):
    X = np.random.default_rng(0).normal(size=(300, 4))
    y = np.sin(X[:, 0])
    kinds = [
        lambda: TorchMLPRegressor(
            hidden_layer_sizes=(16,), max_epochs=15, tol=None, random_state=1
        ),
        lambda: TorchLinearRegressor(lr=0.01, batch_size=20, max_epochs=40, random_state=2),
        lambda: TorchLinearRegressor(lr=0.01, max_epochs=300, random_state=3),
        lambda: TorchMLPRegressor(
            hidden_layer_sizes=(8,), dropout=0.2, max_epochs=15, tol=None, random_state=4
        ),
    ]
    alone = [make().fit(X, y).predict(X) for make in kinds]
    together = [None] * len(kinds)

    def work(i):
        together[i] = kinds[i]().fit(X, y).predict(X)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(kinds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
    assert torch.get_num_threads() == 2
