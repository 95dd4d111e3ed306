"""Searches on a cluster: two worker processes of dask on this machine."""

import os
import signal
import threading
import time

import joblib
import numpy as np
import pytest
from sklearn.base import clone

from sktorch_linreg import BatchedGridSearchCV, TorchMLPRegressor

distributed = pytest.importorskip("distributed")


@pytest.fixture
def client():
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def search():
    model = TorchMLPRegressor(
        batch_size=32, max_epochs=120, tol=None, random_state=0, dtype="float64"
    )
    # ten stacks, each of which takes some tenths of a second
    grid = {"hidden_layer_sizes": [(n,) for n in range(20, 30)], "lr": [1e-3, 0.01, 0.05]}
    return BatchedGridSearchCV(model, grid, cv=4, refit=False)


def kill_one_at_work(client, killed):
    """Kill a worker that works on something, once there are some results."""
    while not killed:
        done = sum(map(len, client.has_what().values()))
        busy = [address for address, tasks in client.processing().items() if tasks]
        if done and len(busy) == 2:
            pids = {w.worker_address: w.pid for w in client.cluster.workers.values()}
            pid = pids[busy[0]]
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_worker_that_dies_changes_nothing(client, search):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 5))
    y = X @ rng.normal(size=5) + np.sin(X[:, 0])
    alone = clone(search).fit(X, y).cv_results_
    killed = []
    killer = threading.Thread(target=kill_one_at_work, args=(client, killed), daemon=True)
    with joblib.parallel_config(backend="dask"):
        killer.start()
        ours = clone(search).fit(X, y).cv_results_
    assert killed
    assert list(ours) == list(alone)
    assert ours["params"] == alone["params"]
    for name, values in alone.items():
        if "test_score" in name:
            np.testing.assert_array_equal(ours[name], values)
