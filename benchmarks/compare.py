"""A git revision against the working tree on a dozen jobs, in processes that take turns.

Run ``python benchmarks/compare.py BASE``; BASE is any git commit, and is the peer in the table.
Ratios are its median time over that of the working tree: above 1, the working tree is faster.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from io import BytesIO
from pathlib import Path
from statistics import median

from common import Table

HERE = Path(__file__).resolve().parent
ROUNDS = 15
# time budget of a job per turn, in seconds
PATIENCE = 0.15


def jobs():
    """Functions to time, by name, with their data prepared."""
    import numpy as np
    import scipy.sparse as sp

    from sktorch_linreg import BatchedGridSearchCV, TorchLinearRegressor, TorchMLPRegressor

    rng = np.random.default_rng(0)

    def rows(n, d):
        X = rng.normal(size=(n, d))
        return X, X @ rng.normal(size=d) + rng.normal(size=n)

    small, middle, large, wide = rows(100, 5), rows(1000, 10), rows(100_000, 20), rows(60, 300)
    table = rows(500, 10)
    sparse = sp.random(5000, 200, density=0.02, random_state=0, format="csr")
    network = {"hidden_layer_sizes": (32,), "max_epochs": 30, "tol": None, "random_state": 0}
    solved = TorchLinearRegressor().fit(*middle)
    trained = TorchMLPRegressor(**network).fit(*table)
    grid = {"lr": [0.001, 0.003, 0.01, 0.03], "alpha": [0.0, 1e-4, 1e-2]}

    def stream():
        model = TorchMLPRegressor(hidden_layer_sizes=(32,), random_state=0)
        for i in range(0, 500, 50):
            model.partial_fit(table[0][i : i + 50], table[1][i : i + 50])

    return {
        "least squares 100 x 5": lambda: TorchLinearRegressor().fit(*small),
        "least squares 1000 x 10": lambda: TorchLinearRegressor().fit(*middle),
        "least squares 100000 x 20": lambda: TorchLinearRegressor().fit(*large),
        "least squares 60 x 300": lambda: TorchLinearRegressor().fit(*wide),
        "ridge, sparse 5000 x 200": lambda: TorchLinearRegressor(alpha=0.1).fit(
            sparse, sparse[:, [0]].toarray()[:, 0]
        ),
        "lasso 1000 x 10": lambda: TorchLinearRegressor(alpha=0.1, l1_ratio=1.0).fit(*middle),
        "predict, one row": lambda: solved.predict(middle[0][:1]),
        "predict by a network, 500 rows": lambda: trained.predict(table[0]),
        "huber by L-BFGS 1000 x 10": lambda: TorchLinearRegressor(loss="huber").fit(*middle),
        "adam by batches 1000 x 10": lambda: TorchLinearRegressor(
            lr=0.01, batch_size=50, max_epochs=20, random_state=0
        ).fit(*middle),
        "network 500 x 10": lambda: TorchMLPRegressor(**network).fit(*table),
        "network, held-out rows": lambda: TorchMLPRegressor(early_stopping=True, **network).fit(
            *table
        ),
        "partial_fit, 10 batches": stream,
        "search, 12 candidates": lambda: BatchedGridSearchCV(
            TorchMLPRegressor(**network), grid, cv=3
        ).fit(*table),
    }


def serve():
    """Time the jobs named on standard input, one per line, until it ends."""
    import sktorch_linreg

    warnings.simplefilter("ignore")
    known = jobs()
    print(json.dumps([sktorch_linreg.__file__, list(known)]), flush=True)
    for line in sys.stdin:
        job = known[line.strip()]
        times, begin = [], time.perf_counter()
        while not times or (time.perf_counter() - begin < PATIENCE and len(times) < 200):
            start = time.perf_counter()
            job()
            times.append(time.perf_counter() - start)
        print(json.dumps(median(times)), flush=True)


class Worker:
    """A process that times jobs with the package in a folder."""

    def __init__(self, place, folder):
        path = os.pathsep.join([place, str(HERE)])
        env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", str(HERE / "compare.py"), "--serve"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, env=env, cwd=folder, stdin=pipe, stdout=pipe, text=True
        )
        whence, self.jobs = self._answer()
        assert Path(whence).is_relative_to(Path(place).resolve()), whence

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit("A worker process ended early; see its error above.")
        return json.loads(line)

    def seconds(self, job):
        """Median time of a job in one turn."""
        self.process.stdin.write(f"{job}\n")
        self.process.stdin.flush()
        return self._answer()


def checkout(revision, folder):
    """Extract the package of a revision into a folder; return the root of the repository."""
    root = subprocess.run(
        ["git", "rev-parse", "--show-toplevel"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    archive = subprocess.run(
        ["git", "archive", revision, "sktorch_linreg"], cwd=root, capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return root


def main(revision):
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        root = checkout(revision, folder)
        table = Table(f"The working tree against {revision}, one thread, {ROUNDS} turns each")
        workers = {revision: Worker(folder, folder), "ours": Worker(root, folder)}
        for job in workers["ours"].jobs:
            found = {which: [] for which in workers}
            for number in range(ROUNDS + 1):
                for which, worker in sorted(workers.items(), reverse=bool(number % 2)):
                    seconds = worker.seconds(job)
                    # the first turn is a warm-up
                    if number:
                        found[which].append(seconds)
            table.add(job, found)
        for worker in workers.values():
            worker.process.stdin.close()
            worker.process.wait()
    table.summary()


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    elif len(sys.argv) == 2:
        main(sys.argv[1])
    else:
        sys.exit("usage: python benchmarks/compare.py BASE")
