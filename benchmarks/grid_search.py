"""Searches without the refit, against GridSearchCV over skorch, scikit-learn and our models.

Run without arguments for one and two threads, or with a number of threads and then words that
select jobs by name. With `cost`, it prints the cost of a search by number of candidates instead,
and with `first` searches of modules in fresh processes, where torch has still to import its
compiler. Each search is run with one and with two jobs, and the faster one counts.
"""

import subprocess
import sys
import time
import warnings
from functools import partial
from itertools import pairwise
from operator import itemgetter
from statistics import median

import numpy as np
import skorch
import torch
from common import Table, rounds, with_threads
from sklearn.linear_model import Ridge, RidgeCV, SGDRegressor
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPRegressor
from torch import nn

from sktorch_linreg import (
    BatchedGridSearchCV,
    TorchLinearRegressor,
    TorchMLPRegressor,
    TorchRegressor,
)

RATES, FEW_RATES = np.geomspace(1e-4, 0.1, 20), np.geomspace(1e-4, 0.1, 12)
# mean seconds above which searches are run in fewer rounds
SLOW = 2.0
# seconds above which a search is run only once
ENDLESS = 30.0


def data(n, d):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, d)).astype(np.float32)
    y = X @ rng.normal(size=d) + rng.normal(size=n)
    return X, y.astype(np.float32)


class Network(nn.Sequential):
    """The network that `TorchMLPRegressor` trains."""

    def __init__(self, sizes):
        layers = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        super().__init__(*layers[:-1])


def net(sizes, optimizer, epochs, batch):
    return skorch.NeuralNetRegressor(
        Network,
        module__sizes=sizes,
        optimizer=optimizer,
        max_epochs=epochs,
        batch_size=batch,
        train_split=None,
        iterator_train__shuffle=True,
        verbose=0,
    )


def search(cls, estimator, grid, n_jobs, X, y):
    cls(estimator, grid, cv=5, n_jobs=n_jobs, refit=False, error_score=-1.0).fit(X, y)


def linear(n, d, batch, epochs):
    X, y = data(n, d)
    settings = {"batch_size": batch, "max_epochs": epochs, "random_state": 0}
    ours = TorchLinearRegressor(optimizer="sgd", **settings)
    sgd = SGDRegressor(learning_rate="constant", max_iter=epochs, tol=None, random_state=0)
    column = y[:, None]
    peers = {
        "skorch": (net((d, 1), torch.optim.SGD, epochs, batch), {"lr": RATES}, X, column),
        "SGDRegressor": (sgd, {"eta0": RATES}, X, y),
        "one by one": (ours, {"lr": RATES}, X, y),
    }
    return ours, {"lr": RATES}, X, y, peers


def network(n, d, hidden, batch, epochs, rates=FEW_RATES, alphas=None):
    X, y = data(n, d)
    settings = {"max_epochs": epochs, "random_state": 0, "tol": None}
    ours = TorchMLPRegressor(hidden_layer_sizes=hidden, batch_size=batch, **settings)
    theirs = MLPRegressor(
        hidden_layer_sizes=hidden,
        batch_size=batch,
        max_iter=epochs,
        n_iter_no_change=epochs,
        random_state=0,
    )
    more = {} if alphas is None else {"alpha": alphas}
    decay = {} if alphas is None else {"optimizer__weight_decay": alphas}
    module = net((d, *hidden, 1), torch.optim.Adam, epochs, batch)
    peers = {
        "skorch": (module, {"lr": rates, **decay}, X, y[:, None]),
        "MLPRegressor": (theirs, {"learning_rate_init": rates, **more}, X, y),
        "one by one": (ours, {"lr": rates, **more}, X, y),
    }
    return ours, {"lr": rates, **more}, X, y, peers


class Hidden(nn.Sequential):
    """One hidden layer."""

    def __init__(self, n_features, width):
        super().__init__(nn.Linear(n_features, width), nn.ReLU(), nn.Linear(width, 1))


class Convolution(nn.Module):
    """A convolution over the steps of three series, and the mean over them."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv1d(3, 8, 3), nn.Linear(8, 1)

    def forward(self, x):
        """One number per row."""
        return self.out(torch.relu(self.conv(x.mT)).mean(-1))


class Recurrent(nn.Module):
    """The last state of recurrent units over three series."""

    def __init__(self, cls):
        super().__init__()
        self.cells, self.out = cls(3, 8, batch_first=True), nn.Linear(8, 1)

    def forward(self, x):
        """One number per row."""
        return self.out(self.cells(x)[0][:, -1])


def module(cls, options, shape, batch, epochs=10):
    rng = np.random.default_rng(0)
    X = rng.normal(size=shape).astype(np.float32)
    y = X.reshape(len(X), -1)[:, :5].sum(1)
    options = {f"module__{name}": value for name, value in options.items()}
    ours = TorchRegressor(
        cls, batch_size=batch, max_epochs=epochs, tol=None, random_state=0, **options
    )
    theirs = skorch.NeuralNetRegressor(
        cls,
        optimizer=torch.optim.Adam,
        max_epochs=epochs,
        batch_size=batch,
        train_split=None,
        iterator_train__shuffle=True,
        verbose=0,
        **options,
    )
    grid = {"lr": FEW_RATES}
    peers = {"skorch": (theirs, grid, X, y[:, None]), "one by one": (ours, grid, X, y)}
    return ours, grid, X, y, peers


MODULES = {
    "module of 32 units, 500 x 10, batch 32, 12 rates": partial(
        module, Hidden, {"n_features": 10, "width": 32}, (500, 10), 32
    ),
    "module of 64 units, 2000 x 10, batch 64, 12 rates": partial(
        module, Hidden, {"n_features": 10, "width": 64}, (2000, 10), 64
    ),
    "module, convolution, 500 x 20 x 3, batch 32, 12 rates": partial(
        module, Convolution, {}, (500, 20, 3), 32
    ),
    "module, GRU, 500 x 10 x 3, batch 32, 12 rates": partial(
        module, Recurrent, {"cls": nn.GRU}, (500, 10, 3), 32
    ),
    "module, LSTM, 500 x 10 x 3, batch 32, 12 rates": partial(
        module, Recurrent, {"cls": nn.LSTM}, (500, 10, 3), 32
    ),
}
JOBS = {
    "linear, 500 x 10, batch 64, 30 epochs, 20 rates": partial(linear, 500, 10, 64, 30),
    "linear, 2000 x 20, batch 128, 20 epochs, 20 rates": partial(linear, 2000, 20, 128, 20),
    "32 units, 500 x 10, batch 32, 20 epochs, 12 rates": partial(network, 500, 10, (32,), 32, 20),
    "32 units, 2000 x 20, batch 128, 20 epochs, 12 rates": partial(
        network, 2000, 20, (32,), 128, 20
    ),
    "(64, 64) units, 10000 x 20, batch 256, 10 epochs, 8 x 8": partial(
        network, 10000, 20, (64, 64), 256, 10, np.geomspace(1e-4, 0.03, 8), np.geomspace(1e-6, 1, 8)
    ),
}


JOBS |= MODULES


def ridge(table):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20000, 100))
    y = X @ rng.normal(size=100) + rng.normal(size=20000)
    alphas = np.geomspace(1e-6, 10, 50)
    # Ridge does not divide its objective by the number of rows
    theirs = alphas * 0.5 * len(X)
    contenders = {
        "ours": partial(
            search, BatchedGridSearchCV, TorchLinearRegressor(), {"alpha": alphas}, None, X, y
        ),
        "RidgeCV": lambda: RidgeCV(theirs).fit(X, y),
    }
    for n_jobs in (1, 2):
        contenders[f"GridSearchCV(Ridge), {n_jobs} jobs"] = partial(
            search, GridSearchCV, Ridge(), {"alpha": theirs}, n_jobs, X, y
        )
    table.add("ridge, 20000 x 100, 50 penalties", rounds(contenders, 5))


def timed(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def best_jobs(cls, estimator, grid, X, y):
    """Seconds of the faster of one and two jobs, and its run; workers are started beforehand."""
    search(cls, estimator, {k: v[:1] for k, v in grid.items()}, 2, X[:200], y[:200])
    runs = [partial(search, cls, estimator, grid, n, X, y) for n in (1, 2)]
    return min(((timed(run), run) for run in runs), key=itemgetter(0))


def compare(n_threads):
    warnings.simplefilter("ignore")
    table = Table(f"Searches with 5 folds, {n_threads} thread(s); all with their best n_jobs")
    words = sys.argv[2:]
    for case, make in JOBS.items():
        if not all(word in case for word in words):
            continue
        ours, grid, X, y, peers = make()
        entrants = {"ours": (BatchedGridSearchCV, ours, grid, X, y)}
        entrants |= {name: (GridSearchCV, *peer) for name, peer in peers.items()}
        found = {name: best_jobs(*entrant) for name, entrant in entrants.items()}
        # slow searches are run only once
        contenders = {name: run for name, (seconds, run) in found.items() if seconds < ENDLESS}
        slow = sum(found[name][0] for name in contenders) > SLOW * len(contenders)
        seconds = rounds(contenders, 3 if slow else 7)
        for name in found.keys() - contenders.keys():
            seconds[name] = [found[name][0]] * len(seconds["ours"])
        table.add(case, seconds, case.split(",")[0].split(" ")[-1])
    if not words:
        ridge(table)
    table.summary()


def first():
    """Searches of modules in fresh processes, ours and one by one in turn, with one thread."""
    print("\n| search | ours, s | one by one, s | ratio |")
    print("|---|---|---|---|")
    for case in MODULES:
        seconds = {"ours": [], "one by one": []}
        for _ in range(3):
            for name, found in seconds.items():
                done = subprocess.run(
                    [sys.executable, __file__, "once", case, name],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                found.append(float(done.stdout))
        ours, alone = (median(found) for found in seconds.values())
        print(f"| {case} | {ours:.2f} | {alone:.2f} | {alone / ours:.1f} |", flush=True)


def once(case, name):
    """Print the seconds of one search."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ours, grid, X, y, _ = MODULES[case]()
    cls = BatchedGridSearchCV if name == "ours" else GridSearchCV
    print(timed(partial(search, cls, ours, grid, None, X, y)))


def cost():
    """Seconds by number of candidates, with 5 folds each."""
    warnings.simplefilter("ignore")
    print("\n| candidates | linear ms | per fit us | 32 units ms | per fit us |")
    print("|---|---|---|---|---|")
    X, y = data(500, 10)
    for n in (1, 3, 10, 30, 100, 300, 1000):
        line = [str(n)]
        for model in (
            TorchLinearRegressor(optimizer="sgd", batch_size=64, max_epochs=30, random_state=0),
            TorchMLPRegressor(
                hidden_layer_sizes=(32,), batch_size=32, max_epochs=20, random_state=0, tol=None
            ),
        ):
            grid = {"lr": np.geomspace(1e-4, 0.05, n)}
            run = partial(search, BatchedGridSearchCV, model, grid, None, X, y)
            run()
            seconds = median(timed(run) for _ in range(3))
            line += [f"{1e3 * seconds:.1f}", f"{1e6 * seconds / (5 * n):.0f}"]
        print(f"| {' | '.join(line)} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["cost"]:
        cost()
    elif sys.argv[1:] == ["first"]:
        first()
    elif sys.argv[1:2] == ["once"]:
        once(*sys.argv[2:])
    else:
        with_threads(compare)
