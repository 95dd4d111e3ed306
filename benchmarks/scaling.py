"""How fits scale: rows in one piece, in blocks, with dask, and on two torchrun processes."""

import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np
import torch
from common import rounds

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor
from sktorch_linreg.distributed import data_parallel

BLOCK = 100_000
COLUMNS = 20
ONE = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# jobs for two processes: rows, columns and the model
JOBS = {
    "exact": (2_000_000, 50, lambda: TorchLinearRegressor()),
    "linear, adam, full batch, 100 epochs": (
        2_000_000,
        20,
        lambda: TorchLinearRegressor(optimizer="adam", max_epochs=100, random_state=0),
    ),
    "linear, sgd, batch 1024, 1 epoch": (
        500_000,
        20,
        lambda: TorchLinearRegressor(optimizer="sgd", batch_size=1024, max_epochs=1),
    ),
    "64 units, batch 256, 1 epoch": (100_000, 20, lambda: network((64,), 256)),
    "64 units, batch 4096, 1 epoch": (400_000, 20, lambda: network((64,), 4096)),
    "(256, 256) units, batch 1024, 1 epoch": (50_000, 20, lambda: network((256, 256), 1024)),
    "(256, 256) units, batch 8192, 1 epoch": (100_000, 20, lambda: network((256, 256), 8192)),
}
SIZES = {"1,000": 10**3, "100,000": 10**5, "1,000,000": 10**6}


def network(hidden, batch_size):
    return TorchMLPRegressor(
        hidden_layer_sizes=hidden, batch_size=batch_size, max_epochs=1, tol=None, random_state=0
    )


def block(number, n_rows=BLOCK, n_columns=COLUMNS, dtype=np.float64):
    """A reproducible block of rows."""
    rng = np.random.default_rng(number)
    X = rng.normal(size=(n_rows, n_columns)).astype(dtype)
    y = X @ np.linspace(-1, 1, n_columns) + 0.1 * rng.normal(size=n_rows)
    return X, y.astype(dtype)


# -- one process -----------------------------------------------------------------------------------


def growth():
    print("\nexact fit of rows x 20 in float64: one piece, and blocks of 100000 rows\n")
    print("| rows | fit ms | ns per row | blocks over one piece |")
    print("|---|---|---|---|")
    for n_blocks in (1, 4, 16, 40):
        parts = [block(i) for i in range(n_blocks)]
        X, y = (np.concatenate(p) for p in zip(*parts, strict=True))

        def in_blocks(parts=parts):
            model = TorchLinearRegressor()
            for part in parts:
                model.partial_fit(*part)

        whole = {"fit": lambda X=X, y=y: TorchLinearRegressor().fit(X, y), "blocks": in_blocks}
        seconds = rounds(whole, 7)
        fit, blocks = median(seconds["fit"]), median(seconds["blocks"])
        print(f"| {len(X)} | {1e3 * fit:.1f} | {1e9 * fit / len(X):.1f} | {blocks / fit:.2f} |")


def memory():
    print("\nrows that are made block by block: 10,000,000 x 20, 1.5 GiB in all\n")
    print("| way | seconds | of which making rows | peak MiB beyond the imports |")
    print("|---|---|---|---|")
    for way in ("rows alone", "partial_fit", "dask-ml Incremental"):
        out = subprocess.run(
            [sys.executable, __file__, "stream", way], env=ONE, check=True, capture_output=True
        )
        print(out.stdout.decode().strip(), flush=True)


def peak():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return float("nan")


def stream(way, n_blocks=100):
    """One pass over rows that are never in memory all at once."""
    TorchLinearRegressor().partial_fit(*block(0, 1000))
    if way == "dask-ml Incremental":
        import dask
        import dask.array as da
        from dask_ml.wrappers import Incremental
    begin, start = peak(), time.perf_counter()
    if way == "dask-ml Incremental":
        parts = [dask.delayed(block, nout=2)(i) for i in range(n_blocks)]
        X = da.concatenate([da.from_delayed(x, (BLOCK, COLUMNS), float) for x, _ in parts])
        y = da.concatenate([da.from_delayed(y, (BLOCK,), float) for _, y in parts])
        with dask.config.set(scheduler="synchronous"):
            Incremental(TorchLinearRegressor(), shuffle_blocks=False, assume_equal_chunks=True).fit(
                X, y
            )
    else:
        model = TorchLinearRegressor()
        for i in range(n_blocks):
            part = block(i)
            if way == "partial_fit":
                model.partial_fit(*part)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    for i in range(5):
        block(i)
    making = (time.perf_counter() - start) / 5 * n_blocks
    print(f"| {way} | {seconds:.1f} | {making:.1f} | {peak() - begin:.0f} |")


# -- two processes ---------------------------------------------------------------------------------


def job(folder):
    """Time each job on this process's share of the rows."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {}
    with data_parallel() as processes:
        for name, (n_rows, n_columns, make) in JOBS.items():
            X, y = block(processes.rank, n_rows // processes.size, n_columns, np.float32)
            make().fit(X, y)
            times = []
            for _ in range(5):
                start = time.perf_counter()
                make().fit(X, y)
                times.append(time.perf_counter() - start)
            found[name] = times
        if processes.size > 1:
            for name, size in SIZES.items():
                vector = torch.zeros(size)
                torch.distributed.all_reduce(vector)
                start = time.perf_counter()
                for _ in range(50):
                    torch.distributed.all_reduce(vector)
                found[name] = [(time.perf_counter() - start) / 50]
    if processes.rank == 0:
        np.savez(Path(folder) / f"{processes.size}.npz", **found)


def processes():
    print("\none and two processes of one thread each, float32, over gloo\n")
    with tempfile.TemporaryDirectory() as folder:
        for size in (1, 2):
            run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
            subprocess.run([sys.executable, *run, __file__, "job", folder], env=ONE, check=True)
        one, two = (dict(np.load(Path(folder) / f"{size}.npz")) for size in (1, 2))
    print("| job | one process ms | two ms | times faster |")
    print("|---|---|---|---|")
    for name in JOBS:
        a, b = (1e3 * np.median(found[name]) for found in (one, two))
        n_rows, n_columns, _ = JOBS[name]
        print(f"| {name}, {n_rows} x {n_columns} | {a:.1f} | {b:.1f} | {a / b:.2f} |")
    print("\n| numbers exchanged | us |\n|---|---|")
    for name in SIZES:
        print(f"| {name} | {1e6 * two[name][0]:.0f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["job"]:
        job(sys.argv[2])
    elif sys.argv[1:2] == ["stream"]:
        stream(sys.argv[2])
    else:
        torch.set_num_threads(1)
        growth()
        memory()
        processes()
