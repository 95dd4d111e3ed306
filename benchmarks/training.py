"""Training against hand-written loops, skorch and scikit-learn: time, memory, growth, threads.

Run ``python benchmarks/training.py``. Every contender gets the same job: the same rows, compute
dtype, optimizer, learning rate, epochs, batch size and initial weights; the fused loop and ours
also get the same order of rows. The fused loop is the fastest of three hand-written loops for each
job. The relative difference of each peer's mean squared error on the training rows from ours is
printed at the end. Ratios are the peer's median time over ours.

Name sections to run only those: ``python benchmarks/training.py fits callbacks``; see `SECTIONS`.
"""

import os
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import skorch
import torch
from common import Table, n_rounds, rounds
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import SGDRegressor
from sklearn.neural_network import MLPRegressor
from skorch.callbacks import Callback, EpochScoring, GradientNormClipping
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor

SEED = 0
HERE = os.path.dirname(os.path.abspath(__file__))


@dataclass
class Work:
    """One training job."""

    name: str
    n: int
    d: int
    hidden: tuple
    optimizer: str
    lr: float
    batch: int
    epochs: int
    small: bool = False
    # DataLoader and skorch load full batches row by row, which is slow, so they run fewer epochs
    slow_share: int = 1

    def data(self):
        """Rows and targets in float32."""
        rng = np.random.default_rng(SEED)
        X = rng.standard_normal((self.n, self.d), dtype=np.float32)
        y = X @ rng.standard_normal(self.d).astype(np.float32)
        y += np.sin(2 * X[:, 0]) + 0.1 * rng.standard_normal(self.n, dtype=np.float32)
        return X, (y / y.std()).astype(np.float32)

    def module(self):
        """The network with the initial weights."""
        torch.manual_seed(SEED)
        layers, n_in = [], self.d
        for n_out in self.hidden:
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
            n_in = n_out
        return nn.Sequential(*layers, nn.Linear(n_in, 1))


WORKS = [
    Work("linear 1000x4, SGD, batch 128, 100 epochs", 1000, 4, (), "sgd", 0.01, 128, 100),
    Work("linear 800x1, Adam, full batch, 10000 epochs", 800, 1, (), "adam", 1e-3, 800, 10_000,
         False, 50),
    Work("linear 1e6x50, Adam, batch 1024, 2 epochs", 10**6, 50, (), "adam", 1e-3, 1024, 2),
    Work("64 hidden, 10000x20, batch 32", 10_000, 20, (64,), "adam", 1e-3, 32, 3, True),
    Work("64 hidden, 10000x20, batch 256", 10_000, 20, (64,), "adam", 1e-3, 256, 10, True),
    Work("100 hidden, 100000x20, batch 200", 100_000, 20, (100,), "adam", 1e-3, 200, 2, True),
    Work("500 hidden, 10000x4, batch 128", 10_000, 4, (500,), "adam", 1e-3, 128, 5, True),
    Work("(512, 512), 50000x50, batch 1024", 50_000, 50, (512, 512), "adam", 1e-3, 1024, 2),
    Work("(8, 8, 8), 800x1, full batch, 10000 epochs", 800, 1, (8,) * 3, "adam", 1e-3, 800, 10_000,
         True, 50),
]  # fmt: skip
BATCH_1 = Work("linear 1000x4, SGD, batch 1, 5 epochs", 1000, 4, (), "sgd", 0.01, 1, 5)


def ours(work, X, y, **settings):
    settings |= {
        "optimizer": work.optimizer, "lr": work.lr, "max_epochs": work.epochs, "tol": None,
        "batch_size": work.batch, "random_state": SEED, "alpha": 0.0,
    }  # fmt: skip
    settings.setdefault("standardize", False)
    if work.hidden:
        return TorchMLPRegressor(hidden_layer_sizes=work.hidden, **settings).fit(X, y)
    return TorchLinearRegressor(**settings).fit(X, y)


def torch_optimizer(work, parameters):
    cls = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[work.optimizer]
    return cls(parameters, lr=work.lr, fused=True)


def epochs_by_hand(work, X, y, module, optimizer, gather):
    """Epochs of a loop over slices with autograd; `gather` yields the rows of each batch."""
    X, y = torch.from_numpy(X), torch.from_numpy(y)[:, None]
    losses = []
    for _ in range(work.epochs):
        total = torch.zeros(())
        for x, t in gather(work, X, y):
            optimizer.zero_grad()
            loss = F.mse_loss(module(x), t)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(x)
        losses.append(total.item() / work.n)
    return module


def permuted(work, X, y):
    """Slices of a permuted copy."""
    if work.batch < work.n:
        order = torch.randperm(work.n)
        X, y = X.index_select(0, order), y.index_select(0, order)
    for start in range(0, work.n, work.batch):
        yield X[start : start + work.batch], y[start : start + work.batch]


def selected(work, X, y):
    """Rows selected batch by batch."""
    if work.batch == work.n:
        yield X, y
        return
    for index in torch.randperm(work.n).split(work.batch):
        yield X.index_select(0, index), y.index_select(0, index)


def sliced_loop(work, X, y):
    module = work.module()
    return epochs_by_hand(work, X, y, module, torch_optimizer(work, module.parameters()), permuted)


def selecting_loop(work, X, y):
    module = work.module()
    return epochs_by_hand(work, X, y, module, torch_optimizer(work, module.parameters()), selected)


def flat_loop(work, X, y):
    """Slices, and all parameters in one vector, so that the optimizer has one tensor to update."""
    module = work.module()
    flat = torch.cat([p.detach().reshape(-1) for p in module.parameters()]).requires_grad_()
    shapes = [p.shape for p in module.parameters()]
    sizes = [p.numel() for p in module.parameters()]

    def forward(x):
        parts = [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
        for i in range(0, len(parts), 2):
            x = F.linear(F.relu(x) if i else x, parts[i], parts[i + 1])
        return x

    epochs_by_hand(work, X, y, forward, torch_optimizer(work, [flat]), permuted)
    with torch.no_grad():
        for p, part, shape in zip(module.parameters(), flat.split(sizes), shapes, strict=True):
            p.copy_(part.view(shape))
    return module


# the fastest of these is the peer
FUSED_LOOPS = {"slices": sliced_loop, "index_select": selecting_loop, "flat": flat_loop}


def loader_loop(work, X, y):
    """The loop of the PyTorch tutorials."""
    module = work.module()
    optimizer = torch_optimizer(work, module.parameters())
    rows = TensorDataset(torch.from_numpy(X), torch.from_numpy(y)[:, None])
    loader = DataLoader(rows, batch_size=work.batch, shuffle=True)
    losses = []
    for _ in range(work.epochs):
        total = 0.0
        for x, t in loader:
            optimizer.zero_grad()
            loss = F.mse_loss(module(x), t)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(x)
        losses.append(total / work.n)
    return module


def plain_skorch(work, X, y):
    cls = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[work.optimizer]
    net = skorch.NeuralNetRegressor(
        work.module(), optimizer=cls, lr=work.lr, max_epochs=work.epochs, batch_size=work.batch,
        train_split=None, verbose=0, iterator_train__shuffle=True,
    )  # fmt: skip
    return net.fit(X, y[:, None])


def mlp_regressor(work, X, y):
    model = MLPRegressor(
        hidden_layer_sizes=work.hidden, solver="adam", alpha=0.0, batch_size=work.batch,
        learning_rate_init=work.lr, max_iter=work.epochs, tol=0.0, n_iter_no_change=10**9,
        random_state=SEED,
    )  # fmt: skip
    return model.fit(X, y)


def sgd_regressor(work, X, y):
    # its loss has a factor of one half
    model = SGDRegressor(
        penalty=None, learning_rate="constant", eta0=2 * work.lr, max_iter=work.epochs, tol=None,
        random_state=SEED,
    )  # fmt: skip
    return model.fit(X, y)


def error(model, X, y):
    if isinstance(model, nn.Module):
        with torch.no_grad():
            prediction = model(torch.from_numpy(X)).numpy()
    else:
        prediction = model.predict(X)
    return float(np.mean((prediction.ravel() - y) ** 2))


def shortened(work):
    return replace(work, epochs=work.epochs // work.slow_share)


def contenders(work):
    peers = {
        "ours": ours,
        **FUSED_LOOPS,
        "DataLoader loop": lambda work, X, y: loader_loop(shortened(work), X, y),
        "skorch": lambda work, X, y: plain_skorch(shortened(work), X, y),
    }
    if work.hidden:
        peers["MLPRegressor"] = mlp_regressor
    if work.batch == 1:
        peers["SGDRegressor"] = sgd_regressor
    return peers


def best_loop(seconds):
    """The seconds with only the fastest of the hand-written loops, and its name."""
    best = min(FUSED_LOOPS, key=lambda name: median(seconds[name]))
    out = {"ours": seconds["ours"], "fused loop": seconds[best]}
    return out | {k: v for k, v in seconds.items() if k not in FUSED_LOOPS}, best


def fits(threads):
    table = Table(f"fit, {threads} thread(s)")
    gaps = []
    for work in [*WORKS, BATCH_1]:
        X, y = work.data()
        errors = {}

        def run(name, peer, work=work, X=X, y=y, errors=errors):
            errors[name] = (peer(work, X, y), X, y)

        runs = {
            name: (lambda name=name, peer=peer: run(name, peer))
            for name, peer in contenders(work).items()
        }
        seconds = rounds(runs, n_rounds(runs, budget=40.0, most=11, least=3))
        slow = ("DataLoader loop", "skorch") if work.slow_share > 1 else ()
        for name in slow:
            seconds[name] = [work.slow_share * t for t in seconds[name]]
        seconds, best = best_loop(seconds)
        errors["fused loop"] = errors[best]
        for name in FUSED_LOOPS:
            errors.pop(name)
        table.add(work.name, seconds, "small networks" if work.small else "other")
        base = error(*errors["ours"])
        gap = {k: error(*v) / base - 1 for k, v in errors.items() if k not in ("ours", *slow)}
        gaps.append((f"{work.name} (best loop: {best})", base, gap))
    table.summary()
    print("\nmean squared error on the training rows\n")
    for name, base, gap in gaps:
        print(f"{name}: ours {base:.6g};", ", ".join(f"{k} {v:+.1e}" for k, v in gap.items()))


def growth(threads):
    """Seconds of a fit by rows and epochs."""
    print(f"\nfit of a linear model on 10 columns, Adam, {threads} thread(s)\n")
    print("| rows | epochs | batch | seconds | microseconds per 1000 rows and epoch |")
    print("|---|---|---|---|---|")
    for n, epochs, batch in [
        (10**3, 10, 500), (10**3, 100, 500), (10**3, 1000, 500), (10**3, 10_000, 500),
        (10**4, 10, 500), (10**4, 1000, 500), (10**5, 10, 500), (10**5, 100, 500),
        (10**6, 10, 500), (10**3, 1000, None), (10**4, 1000, None), (10**5, 1000, None),
        (10**6, 1000, None),
    ]:  # fmt: skip
        work = Work("", n, 10, (), "adam", 1e-3, batch or n, epochs)
        X, y = work.data()
        times = rounds({"ours": lambda work=work, X=X, y=y: ours(work, X, y)}, 3)["ours"]
        each = 1e6 * median(times) / (n / 1000 * epochs)
        what = batch or "all rows"
        print(f"| {n} | {epochs} | {what} | {median(times):.4f} | {each:.1f} |", flush=True)


MEASURE = """
import sys
import numpy as np
from training import Work, ours
from sktorch_linreg import TorchMLPRegressor
kind = sys.argv[1]

def now(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) / 1024

def peak_of(run):
    before = now("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the peak is counted from here
    out = run()
    return now("VmHWM") - before, out

warm = Work("", 2000, 50, (500,), "adam", 1e-3, 1024, 1)
model = ours(warm, *warm.data())
model.predict(warm.data()[0])
rng = np.random.default_rng(0)
n = 1_000_000 if kind == "predict" else 2_000_000
X = rng.standard_normal((n, 50), dtype=np.float32)
y = X[:, 0].copy()
if kind == "predict":
    used, out = peak_of(lambda: model.predict(X))
    used -= out.nbytes / 2**20
else:
    if kind == "cast":
        X, y = X.astype(np.float64), y.astype(np.float64)
    work = Work("", n, 50, (64,), "adam", 1e-3, 1024, 1)
    used, _ = peak_of(lambda: ours(work, X, y, standardize=kind == "standardized"))
print(X.nbytes / 2**20, used)
"""


def memory(threads):
    """Peak memory beyond the input, in a fresh process."""
    print(f"\npeak memory of a fresh process beyond input and output, {threads} thread(s)\n")
    print("| what | input MiB | peak MiB beyond |")
    print("|---|---|---|")
    # rows that are standardised, cast or made contiguous take one copy in the compute dtype
    for kind, text in [
        ("fit", "fit, float32 in, trained in float32, batch 1024"),
        ("cast", "fit, float64 in, trained in float32, batch 1024"),
        ("standardized", "the first, standardised"),
        ("predict", "predict, float32, 500 hidden units"),
    ]:
        run = subprocess.run(
            [sys.executable, "-c", MEASURE, kind],
            capture_output=True, text=True, check=True, cwd=HERE,
        )  # fmt: skip
        size, used = map(float, run.stdout.split())
        print(f"| {text} | {size:.0f} | {used:.0f} |", flush=True)


class Listener(Callback):
    """Does nothing, but overrides the batch and gradient hooks."""

    def on_batch_begin(self, net, **kwargs):
        """Be told."""

    def on_batch_end(self, net, **kwargs):
        """Be told."""

    def on_grad_computed(self, net, named_parameters, **kwargs):
        """Be told."""


def callbacks(threads):
    """Fits with callbacks that are called for every batch."""
    table = Table(f"fit with callbacks that need every batch, {threads} thread(s)")
    for work in (WORKS[0], WORKS[3], WORKS[4], WORKS[6]):
        X, y = work.data()

        def told(which, work=work, X=X, y=y):
            ours(work, X, y, callbacks=which())

        working = lambda: [EpochScoring("r2", on_train=True), GradientNormClipping(1e3)]  # noqa: E731
        for what, which in [
            ("a listener", lambda: [Listener()]),
            ("scoring and clipping", working),
        ]:
            runs = {"ours": lambda which=which, told=told: told(which)}
            for name, loop in FUSED_LOOPS.items():
                runs[name] = lambda loop=loop, work=work, X=X, y=y: loop(work, X, y)
            table.add(f"{work.name}; {what}", best_loop(rounds(runs, 7))[0], what)
    table.summary()


TIMED = """
import time, sys
start = time.perf_counter()
import torch, skorch, sklearn.linear_model, sklearn.neural_network
middle = time.perf_counter()
import sktorch_linreg
print(middle - start, time.perf_counter() - middle)
"""


def imports(threads):
    pairs = []
    for _ in range(7):
        run = subprocess.run(
            [sys.executable, "-c", TIMED], capture_output=True, text=True, check=True
        )
        pairs.append([float(part) for part in run.stdout.split()])
    before, own = (median(column) for column in zip(*pairs, strict=True))
    print(f"\nimport: torch, skorch and scikit-learn {before:.2f} s,", end=" ")
    print(f"sktorch_linreg {1e3 * own:.0f} ms more ({100 * own / before:.1f} %)")


LOOP = """
import sys, time
from training import WORKS, ours
work = WORKS[int(sys.argv[1])]
X, y = work.data()
ours(work, X, y)
print("ready", flush=True)
sys.stdin.readline()
start, done = time.perf_counter(), 0
while time.perf_counter() - start < 5.0:
    ours(work, X, y)
    done += 1
print(done / (time.perf_counter() - start))
"""


def throughput(n_processes, n_threads, index):
    env = {**os.environ, "OMP_NUM_THREADS": str(n_threads)}
    processes = [
        subprocess.Popen([sys.executable, "-c", LOOP, str(index)], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True, env=env, cwd=HERE)
        for _ in range(n_processes)
    ]  # fmt: skip
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in processes)


def processes(threads):
    """Fits per second of one process with one thread and of two, with one and two threads each."""
    print("\nfits per second, relative to one process with one thread\n")
    print("| work | two processes, 1 thread each | two processes, 2 threads each |")
    print("|---|---|---|")
    for index in (3, 4, 6):
        ratios = []
        for _ in range(3):
            alone = throughput(1, 1, index)
            ratios.append([throughput(2, n, index) / alone for n in (1, 2)])
        one, two = (median(column) for column in zip(*ratios, strict=True))
        print(f"| {WORKS[index].name} | {one:.2f} | {two:.2f} |", flush=True)


SECTIONS = {f.__name__: f for f in (fits, callbacks, growth, memory, imports, processes)}
ONCE = ("imports", "processes", "memory", "growth")


def main(names):
    for name in names:
        for threads in (1,) if name in ONCE else (1, 2):
            env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            command = [sys.executable, sys.argv[0], "--section", name, str(threads)]
            subprocess.run(command, env=env, check=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore", ConvergenceWarning)
    if sys.argv[1:2] == ["--section"]:
        start = time.perf_counter()
        SECTIONS[sys.argv[2]](int(sys.argv[3]))
        print(f"({time.perf_counter() - start:.0f} s)", flush=True)
    else:
        main(sys.argv[1:] or list(SECTIONS))
