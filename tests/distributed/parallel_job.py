"""What two processes of torchrun do in test_distributed.py: fits on half of the rows each."""

import gc
import pickle
import sys
import tempfile
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.distributed as dist
from sklearn.model_selection import cross_val_score
from skorch.callbacks import Callback, TrainEndCheckpoint

from sktorch_linreg import (
    BatchedGridSearchCV,
    TorchLinearRegressor,
    TorchMLPRegressor,
    TorchRegressor,
)
from sktorch_linreg._runtime.processes import DistributedGroup
from sktorch_linreg.distributed import data_parallel

N = 200
DTYPES = (torch.float32, torch.float64)


class StopsEarly(Callback):
    """Stops after the seventh epoch, and only on the second process."""

    rank = 0

    def on_epoch_end(self, net, **kwargs):
        if self.rank == 1 and len(net.history) == 7:
            raise KeyboardInterrupt


class Fails(Callback):
    """Fails on the second process."""

    def __init__(self, when, rank):
        self.when, self.rank = when, rank

    def initialize(self):
        self.fail("initialize")
        return self

    def on_epoch_end(self, net, **kwargs):
        self.fail("on_epoch_end")

    def fail(self, when):
        if self.rank == 1 and when == self.when:
            raise OSError("the disk is full")


class Breaks(Callback):
    """Stops in the middle of an epoch."""

    def on_batch_end(self, net, **kwargs):
        raise KeyboardInterrupt


class OneMean(torch.nn.Module):
    """A loss that gives one number."""

    def forward(self, prediction, target):
        return (prediction - target).abs().pow(1.5).mean()


def rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, 5)) * [1, 10, 0.1, 1, 1] + [0, 100, 0, 5, 0]
    y = X @ [1.0, 0.2, 3.0, -1.0, 0.0] + np.sin(X[:, 0]) + 0.1 * rng.normal(size=N)
    return X, y


def linear(**params):
    return TorchLinearRegressor(**{"random_state": 0, **params})


def network(**params):
    default = {"hidden_layer_sizes": (8,), "dtype": "float64", "random_state": 0, "max_epochs": 30}
    return TorchMLPRegressor(**{**default, "tol": None, **params})


def layers(n_features, n_outputs):
    return torch.nn.Sequential(
        torch.nn.Linear(n_features, 6), torch.nn.Tanh(), torch.nn.Linear(6, n_outputs)
    )


class Averaged(torch.nn.Module):
    """Has a buffer that counts, and one that each process would end with its own value of."""

    def __init__(self, n_features, n_outputs):
        super().__init__()
        self.layers = layers(n_features, n_outputs)
        self.register_buffer("n_calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("latest", None)
        self.register_buffer("short", torch.tensor([3, 4], dtype=torch.int16))

    def forward(self, x):
        if self.training:
            self.n_calls += 1
            self.mean = x.mean(0)
            if len(x) > 3:
                self.latest = x[-1]
        return self.layers(x)


def local():
    """A class that cannot be sent to another process."""

    class Local(torch.nn.Module):
        def __init__(self, n_features, n_outputs):
            super().__init__()
            self.layers = layers(n_features, n_outputs)

        def forward(self, x):
            return self.layers(x)

    return Local


def normalised(n_features, n_outputs):
    return torch.nn.Sequential(
        torch.nn.Linear(n_features, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, n_outputs)
    )


class Uncertain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.log_var = torch.nn.Parameter(torch.zeros(1))

    def forward(self, prediction, target):
        return ((prediction - target) ** 2 * (-self.log_var).exp() + self.log_var).mean()


def module(given, **params):
    default = {"dtype": "float64", "random_state": 0, "max_epochs": 30, "tol": None, "lr": 0.01}
    return TorchRegressor(given, **{**default, "batch_size": 20, **params})


# name: estimator, what is done with the rows
FITS = {
    "least squares": (linear(), None),
    "least squares, weights": (linear(), "weights"),
    "least squares, targets": (linear(), "targets"),
    "least squares, sparse": (linear(), "sparse"),
    "least squares, no intercept": (linear(fit_intercept=False), None),
    "least squares, float32": (linear(), "single"),
    "ridge": (linear(alpha=0.1), "weights"),
    "lasso": (linear(alpha=0.05, l1_ratio=1.0), None),
    "non-negative": (linear(positive=True), None),
    "few rows": (linear(alpha=0.01), "wide"),
    "nearly collinear": (linear(), "collinear"),
    "adam, full batch": (linear(optimizer="adam", lr=0.05, max_epochs=50), None),
    "adam, not condensed": (linear(optimizer="adam", lr=0.05, max_epochs=4), "weights"),
    "sgd in batches": (linear(optimizer="sgd", lr=0.05, batch_size=20, max_epochs=9), "weights"),
    "lasso by sgd": (
        linear(optimizer="sgd", lr=0.05, batch_size=50, alpha=0.1, l1_ratio=0.5, max_epochs=30),
        None,
    ),
    "batches of sparse rows": (
        linear(optimizer="adam", lr=0.1, batch_size=40, max_epochs=60),
        "sparse",
    ),
    "as given": (
        linear(optimizer="sgd", lr=1e-5, batch_size=20, max_epochs=5, standardize=False),
        None,
    ),
    "l-bfgs": (linear(loss="huber"), "weights"),
    "l-bfgs, kinks": (linear(loss="absolute_error"), None),
    "orthant-wise": (linear(loss="huber", alpha=0.1, l1_ratio=1.0, optimizer="lbfgs"), None),
    "counts": (linear(loss="poisson", optimizer="adam", lr=0.05, max_epochs=50), "counts"),
    "network": (network(batch_size=None, lr=0.01), None),
    "network, batches": (network(batch_size=20, lr=0.01), "weights"),
    "network, uneven batches": (network(batch_size=20, lr=0.01), "uneven"),
    "network, targets": (network(batch_size=40, hidden_layer_sizes=(6, 4)), "targets"),
    # rounding grows from step to step of a line search
    "network, lbfgs": (network(optimizer="lbfgs", max_epochs=1, batch_size=None), None),
    "network, schedule": (network(batch_size=40, lr=0.02, lr_schedule="cosine"), None),
    "network, plateau": (network(batch_size=40, tol=1e-2, n_iter_no_change=2, lr=0.02), None),
    "network, autograd": (network(batch_size=40, loss=torch.nn.SmoothL1Loss), None),
    "network, one mean": (network(batch_size=40, loss=OneMean), None),
    "network, torch optimizer": (network(batch_size=40, optimizer=torch.optim.Rprop), None),
    "network, callback": (network(batch_size=40, callbacks=[Callback()]), None),
    "module": (module(layers), "weights"),
    "module, full batch": (module(layers, batch_size=None), "targets"),
    "module, lbfgs": (module(layers, optimizer="lbfgs", max_epochs=1), None),
    "module, buffers": (module(Averaged), None),
    "module, loss": (module(layers, loss=Uncertain), None),
    "module, lambda": (module(lambda n_features, n_outputs: layers(n_features, n_outputs)), None),
    "module, local class": (module(local()), None),
}


def arranged(kind):
    """Rows, weights, and which of them the first process has."""
    X, y = rows()
    weight, n_first = None, N // 2
    if kind == "weights":
        weight = np.random.default_rng(1).uniform(0.5, 2.0, N)
    elif kind == "targets":
        y = np.stack([y, -y + X[:, 3], X[:, 2]], axis=1)
    elif kind == "sparse":
        X = sp.random(N, 5, density=0.5, random_state=0, format="csr") + sp.csr_matrix(X * 0.0)
        y = np.asarray(X.sum(axis=1)).ravel() + 0.1 * y
    elif kind == "single":
        X, y = X.astype(np.float32), y.astype(np.float32)
    elif kind == "wide":
        X = np.random.default_rng(2).normal(size=(N, 300))
    elif kind == "collinear":
        X = np.stack([X[:, 0], X[:, 0] + 1e-6 * X[:, 3], X[:, 1]], axis=1)
    elif kind == "counts":
        y = np.floor(np.exp(X[:, 0])) + 1.0
    elif kind == "uneven":
        n_first = 60
    return X, y, weight, n_first


def validation_set(rank=None):
    """A validation set, or the rows of one process; the weights of its first 25 rows are given."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(40, 5)) * [1, 10, 0.1, 1, 1] + [0, 100, 0, 5, 0]
    y = X @ [1.0, 0.2, 3.0, -1.0, 0.0] + 0.1 * rng.normal(size=40)
    weight = np.append(rng.uniform(0.5, 2.0, 25), np.ones(15))
    mine = (slice(None), slice(0, 25), slice(25, None))[0 if rank is None else 1 + rank]
    given = {"X_val": X[mine], "y_val": y[mine], "sample_weight_val": weight[mine]}
    if rank == 1:
        del given["sample_weight_val"]
    return given


def split(kind, rank):
    """Rows of one process."""
    X, y, weight, n_first = arranged(kind)
    mine = slice(0, n_first) if rank == 0 else slice(n_first, None)
    return X[mine], y[mine], None if weight is None else weight[mine]


def interleaved(kind, batch_size):
    """All rows, in the order in which batches of both processes take them."""
    X, y, weight, n_first = arranged(kind)
    take = batch_size * n_first // N
    parts = []
    for k in range(N // batch_size):
        parts.append(np.arange(k * take, (k + 1) * take))
        rest = batch_size - take
        parts.append(n_first + np.arange(k * rest, (k + 1) * rest))
    order = np.concatenate(parts)
    return X[order], y[order], None if weight is None else weight[order]


def learned(model):
    """All that training has found, as one vector."""
    if isinstance(model, TorchMLPRegressor):
        parts = [*model.coefs_, *model.intercepts_]
    elif isinstance(model, TorchRegressor):
        state = {**model.module_.module.state_dict(), **model.net_.criterion_.state_dict()}
        # how many rows a process has in a batch, and which, is its own
        parts = [v.numpy() for k, v in state.items() if k not in ("n_calls", "mean", "latest")]
    else:
        parts = [model.coef_, np.atleast_1d(model.intercept_)]
    return np.concatenate([np.ravel(p) for p in parts])


class FailsOnOne(torch.nn.Module):
    """Raises in its third step, or in validation, on the second process only."""

    def __init__(self, n_features, when):
        super().__init__()
        self.layers, self.when, self.n_steps = layers(n_features, 1), when, 0

    def forward(self, x):
        self.n_steps += self.training and torch.is_grad_enabled()
        now = self.n_steps == 3 and self.training == (self.when == "training")
        if dist.get_rank() == 1 and now:
            raise OSError("the disk is full")
        return self.layers(x)


class FailingLoss(torch.nn.Module):
    def forward(self, prediction, target):
        if dist.get_rank() == 1 and len(target) > 5:
            raise OSError("the disk is full")
        return (prediction - target).square().mean()


def wider_on_one(n_features):
    width = 4 + dist.get_rank()
    return torch.nn.Sequential(torch.nn.Linear(n_features, width), torch.nn.Linear(width, 1))


def refusals(processes, X, y):
    """Messages of fits that cannot be shared, and whether a later one works."""
    rank = processes.rank
    broken = X.copy()
    if rank == 1:
        broken[3, 2] = np.nan
    deaf = linear(checkpoint_dir="somewhere", optimizer="adam")
    jobs = {
        "NaN on one": lambda: linear().fit(broken, y),
        "NaN on one, training": lambda: network().fit(broken, y),
        "other rates": lambda: network(lr=0.1 * (rank + 1)).fit(X, y),
        "other columns": lambda: linear().fit(X[:, : 4 + rank], y),
        "no rows": lambda: linear().fit(X[: 10 * rank], y[: 10 * rank]),
        "no device": lambda: linear(device="cpu" if rank else "cuda:9").fit(X, y),
        "extreme": lambda: linear().fit(X * (1e200 if rank else 1.0), y),
        "extreme, training": lambda: network().fit(X * (1e200 if rank else 1.0), y),
        "checkpoints": lambda: deaf.fit(X, y),
        "search": lambda: BatchedGridSearchCV(linear(optimizer="sgd"), {"lr": [0.1]}).fit(X, y),
        "tiny weights": lambda: linear().fit(X, y, sample_weight=np.full(len(y), 1e-120)),
        "wrong rate on one": lambda: linear(optimizer="sgd", lr=-1.0 if rank else 0.1).fit(X, y),
        "other precision": lambda: network(dtype=DTYPES[rank]).fit(X, y),
        "no validation set": lambda: network(early_stopping=True).fit(
            X, y, **({} if rank else validation_set(rank))
        ),
        "other widths": lambda: module(wider_on_one).fit(X, y),
        "module fails": lambda: module(FailsOnOne, module__when="training").fit(X, y),
        "module fails, L-BFGS": lambda: module(
            FailsOnOne, module__when="training", optimizer="lbfgs"
        ).fit(X, y),
        "module fails in validation": lambda: module(
            FailsOnOne, module__when="validation", early_stopping=True, batch_size=60
        ).fit(X, y),
        "loss fails": lambda: network(loss=FailingLoss).fit(X, y),
        "one row of a batch": lambda: module(normalised, batch_size=20).fit(
            X[: 100 if rank else 5], y[: 100 if rank else 5]
        ),
        "other shapes": lambda: module(lambda n_features: torch.nn.Flatten()).fit(
            X[:, :4].reshape(len(X), *((2, 2, 1) if rank else (2, 1, 2))), y
        ),
        "other method": lambda: (linear().fit if rank else linear().partial_fit)(X, y),
        "callback fails at first": lambda: network(callbacks=[Fails("initialize", rank)]).fit(X, y),
        "callback fails": lambda: network(callbacks=[Fails("on_epoch_end", rank)]).fit(X, y),
        "diverges": lambda: linear(optimizer="sgd", lr=1e9, batch_size=20).fit(X, y),
        "other kind": lambda: (network() if rank else linear(optimizer="adam")).fit(X, y),
        "stops amid an epoch": lambda: network(callbacks=[Breaks()]).fit(X, y),
    }
    told = {}
    for name, job in jobs.items():
        try:
            job()
        except Exception as error:
            told[name] = f"{type(error).__name__}: {error}"
    return told


def comm_first(value):
    """What the first process has."""
    found = [value]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def groups(processes, X, y):
    """Fits in groups that were made beforehand."""
    both, first = dist.new_group([0, 1]), dist.new_group([0])
    with data_parallel(both) as again:
        assert (again.rank, again.size) == (processes.rank, 2)
        found = learned(linear().fit(X, y))
        if processes.rank == 0:
            with data_parallel(first) as alone:
                assert (alone.rank, alone.size) == (0, 1)
                np.testing.assert_array_equal(learned(linear().fit(X, y)).shape, found.shape)
        else:
            with pytest.raises(ValueError, match="not in the group"), data_parallel(first):
                pass
    return found


def main(folder):
    found = {}
    with data_parallel() as processes, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rank = processes.rank
        for name, (model, kind) in FITS.items():
            X, y, weight = split(kind, rank)
            model = model.set_params(shuffle=False).fit(X, y, sample_weight=weight)
            found[name] = learned(model)
            found[name + ": curve"] = np.array(model.loss_curve_)
        X, y, _ = split(None, rank)

        # shuffled, with dropout and held-out rows
        model = network(batch_size=20, early_stopping=True, dropout=0.2).fit(X, y)
        found["shuffled"] = learned(model)
        found["shuffled: curve"] = np.array(model.validation_loss_curve_)
        found["order"] = model._training_state["generator"]
        found["masks"] = model._training_state["dropout"]
        checked = network(batch_size=20, early_stopping=True, shuffle=False, lr=0.02)
        checked.fit(X, y, **validation_set(rank))
        found["validation set"] = learned(checked)
        found["validation set: curve"] = np.array(checked.validation_loss_curve_)
        found["no seed"] = learned(network(random_state=None).fit(X, y))

        # on and on
        exact, trained = linear(), network(batch_size=20)
        for part in (slice(0, 60), slice(60, None)):
            exact.partial_fit(X[part], y[part])
            trained.partial_fit(X[part], y[part])
        found["partial_fit, exact"], found["partial_fit"] = learned(exact), learned(trained)
        # a first batch that is narrow, and far from others on one process
        narrow = network(batch_size=20).partial_fit(X[:20] * 1e-3, y[:20])
        found["narrow first batch"] = learned(narrow.partial_fit(X * (1 + 9 * rank), y))
        warm = network(warm_start=True, shuffle=False, batch_size=20)
        found["warm start"] = learned(warm.fit(X, y).fit(X, y))

        # sparse rows, of which one process has none in most batches
        rare = linear(optimizer="sgd", lr=0.05, batch_size=10, max_epochs=3)
        some = slice(0, 5) if rank else slice(None)
        found["sparse batches of no rows"] = learned(rare.fit(sp.csr_matrix(X[some]), y[some]))

        # copies of one model on all processes shuffle in orders of their own
        copies = pickle.loads(comm_first(pickle.dumps(network(batch_size=20).partial_fit(X, y))))
        copies.partial_fit(X, y)
        found["copies"] = learned(copies)
        found["order of copies"] = copies._training_state["generator"]

        # a net that a callback pickles, and folds in forked processes
        with tempfile.TemporaryDirectory() as own:
            keeps = TrainEndCheckpoint(dirname=own, f_pickle="net.pkl")
            network(callbacks=[keeps]).fit(X, y)
            assert (Path(own) / "train_end_net.pkl").exists()
        with joblib.parallel_config("multiprocessing"):
            forked = cross_val_score(linear(), X, y, cv=3, n_jobs=2)

        # fewer rows than batches, on one of them
        few = slice(0, 3) if rank else slice(None)
        uneven = network(batch_size=8, max_epochs=5).fit(X[few], y[few])
        found["hardly any rows"] = learned(uneven)
        lone = module(normalised, max_epochs=3).fit(X[:41], y[:41])
        found["a row on each that joins"] = learned(lone)
        seldom = module(Averaged, batch_size=4, max_epochs=2).fit(
            X[: 3 + 60 * rank], y[: 3 + 60 * rank]
        )
        found["a buffer on one"] = seldom.module_.module.latest.numpy()
        tiny = network(batch_size=1, max_epochs=3).fit(X[: 2 + rank], y[: 2 + rank])
        found["batches of one"] = learned(tiny)

        StopsEarly.rank = rank
        stopped = network(callbacks=[StopsEarly()]).fit(X, y)
        found["stopped"] = np.array([stopped.n_iter_])

        found["groups"] = groups(processes, X, y)
        told = refusals(processes, X, y)
        found["after refusals"] = learned(linear().fit(X, y))
    # one that is left when the interpreter ends aborts it now and then
    left = [o for o in gc.get_objects() if isinstance(o, DistributedGroup)]
    assert all(o._group is None for o in left)
    np.testing.assert_allclose(forked, cross_val_score(linear(), X, y, cv=3), rtol=1e-12)
    found["after the context"] = learned(linear().fit(X, y))
    path = Path(folder) / f"found{rank}.npz"
    np.savez(path, **found, told=np.array([f"{k}|{v}" for k, v in told.items()]))


if __name__ == "__main__":
    main(sys.argv[1])
