"""A module of the user's against a loop written by hand, and against TorchMLPRegressor."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from torch import nn
from user_modules import (
    BatchNormed,
    Dropped,
    Embedded,
    FrozenFirst,
    Net,
    Recurrent,
    SlowAverage,
    Tied,
    Uncertain,
    UncertainByRow,
)

from sktorch_linreg import TorchMLPRegressor, TorchRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

rng = np.random.default_rng(0)
X = rng.normal(size=(90, 4)) * [1, 10, 0.1, 100] + [0, 5, 3, 1000]
Y = np.c_[np.sin(X[:, 0]) + 0.1 * X[:, 1], X[:, 3] - 1000]
y = Y[:, 0]
WEIGHT = rng.integers(0, 4, 90).astype(float)
STEPS = rng.normal(size=(90, 7, 3))
CODES = rng.integers(0, 10, size=(90, 2))
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def by_hand(
    module, X, y, *, seed, n_epochs, batch_size, optimizer, lr, dtype, alpha=0.0, weight=None
):
    """The loop of a tutorial, on rows as they are."""
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    net = module().to(dtype)
    x, t = torch.as_tensor(X), torch.as_tensor(y).reshape(len(y), -1).to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    w = torch.ones(len(x), dtype=dtype) if weight is None else torch.as_tensor(weight, dtype=dtype)
    w = w / w.mean()
    trained = [p for p in net.parameters() if p.requires_grad]
    opt = OPTIMIZERS[optimizer](trained, lr=lr)
    curve = []
    for _ in range(n_epochs):
        net.train()
        total = 0.0
        order = torch.randperm(len(x)) if batch_size < len(x) else torch.arange(len(x))
        for index in order.split(batch_size):
            opt.zero_grad()
            out = net(x[index].clone()).reshape(len(index), -1)
            loss = ((out - t[index]) ** 2).mean(1).mul(w[index]).mean()
            penalty = sum((p**2).sum() for p in trained if p.ndim > 1)
            loss = loss + 0.5 * alpha * penalty
            loss.backward()
            opt.step()
            total += float(loss.detach()) * len(index)
        curve.append(total / len(x))
    torch.set_rng_state(before)
    return net.eval(), curve


@pytest.mark.parametrize("alpha", [0.0, 0.05])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("batch_size", [32, 90])
def test_it_is_the_loop_written_by_hand(batch_size, optimizer, weighted, alpha):
    Z = (X - X.mean(0)) / X.std(0)
    weight = WEIGHT + 1 if weighted else None
    settings = {"batch_size": batch_size, "optimizer": optimizer, "lr": 0.01}
    model = TorchRegressor(
        Net, standardize=False, dtype="float64", random_state=5, tol=None, max_epochs=8,
        alpha=alpha, **settings,
    ).fit(Z, Y, sample_weight=weight)  # fmt: skip
    net, curve = by_hand(
        lambda: Net(4, 2), Z, Y, seed=5, n_epochs=8, dtype=torch.float64, alpha=alpha,
        weight=weight, **settings,
    )  # fmt: skip
    assert_allclose(model.predict(Z), net(torch.as_tensor(Z)).detach(), rtol=1e-6, atol=1e-9)
    assert_allclose(model.loss_curve_, curve, rtol=1e-6)


@pytest.mark.parametrize(
    ("module", "arguments", "rows", "targets"),
    [
        (BatchNormed, {"n_features": 4, "n_outputs": 1}, X, y),
        (SlowAverage, {"n_features": 4}, X, y),
        (Dropped, {"n_features": 4}, X, y),
        (Tied, {"n_features": 4, "n_outputs": 2}, X, Y),
        (FrozenFirst, {"n_features": 4, "n_outputs": 1}, X, y),
        (Recurrent, {}, STEPS, STEPS[:, -1, 0]),
        (Recurrent, {"cls": nn.GRU}, STEPS, STEPS[:, -1, 0]),
    ],
)
@pytest.mark.parametrize("batch_size", [30, 90])
def test_modules_with_more_than_layers(module, arguments, rows, targets, batch_size):
    # buffers, random layers, shared and frozen parameters
    axes = (0,) if rows.ndim == 2 else (0, 1)
    Z = (rows - rows.mean(axes)) / rows.std(axes)
    settings = {"batch_size": batch_size, "optimizer": "adam", "lr": 0.01}
    options = {f"module__{k}": v for k, v in arguments.items() if k in ("cls",)}
    model = TorchRegressor(
        module, standardize=False, dtype="float64", random_state=5, tol=None, max_epochs=8,
        **settings, **options,
    ).fit(Z, targets)  # fmt: skip
    net, curve = by_hand(
        lambda: module(**arguments), Z, targets, seed=5, n_epochs=8, dtype=torch.float64, **settings
    )
    expected = net(torch.as_tensor(Z)).detach().numpy().reshape(len(Z), -1)
    assert_allclose(model.predict(Z).reshape(len(Z), -1), expected, rtol=1e-6, atol=1e-9)
    assert_allclose(model.loss_curve_, curve, rtol=1e-6)
    for name, buffer in net.named_buffers():
        assert_allclose(model.module_.module.get_buffer(name), buffer, rtol=1e-9)


def test_integers_reach_embeddings():
    targets = CODES[:, 0] + (CODES[:, 1] == 3) * 1.0
    settings = {"batch_size": 32, "optimizer": "adam", "lr": 0.05}
    for sparse in (False, True):
        model = TorchRegressor(
            Embedded, module__sparse=sparse, standardize=False, dtype="float64", random_state=5,
            tol=None, max_epochs=8, **settings,
        ).fit(CODES, targets)  # fmt: skip

        def made():
            module = Embedded()
            module(torch.as_tensor(CODES[:1]))
            return module

        net, _ = by_hand(made, CODES, targets, seed=5, n_epochs=8, dtype=torch.float64, **settings)
        expected = net(torch.as_tensor(CODES)).detach()[:, 0]
        assert_allclose(model.predict(CODES), expected, rtol=1e-6)


MLP_SETTINGS = [
    {},
    {"alpha": 0.01},
    {"alpha": 0.01, "l1_ratio": 0.5},
    {"batch_size": 13},
    {"batch_size": 17, "shuffle": False},
    # a single row is left over
    {"batch_size": 89},
    {"early_stopping": True, "batch_size": 16},
    {"early_stopping": True, "n_iter_no_change": 3, "max_epochs": 100, "lr": 0.05},
    {"optimizer": "rmsprop", "lr_schedule": "cosine", "batch_size": 40},
    {"optimizer": "sgd", "optimizer__momentum": 0.9, "lr": 0.01},
    {"loss": "huber"},
    {"loss": nn.L1Loss},
    {"standardize": False, "lr": 1e-4},
    {"batch_size": None, "tol": 1e-3, "n_iter_no_change": 2, "max_epochs": 200, "lr": 0.02},
]


@pytest.mark.parametrize("targets", [y, Y], ids=["one", "two"])
@pytest.mark.parametrize("settings", MLP_SETTINGS, ids=str)
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["", "weighted"])
def test_it_is_the_network_of_the_same_layers(settings, targets, weight):
    settings = {
        "alpha": 0.0, "max_epochs": 12, "tol": None, "dtype": "float64", "random_state": 3,
        **settings,
    }  # fmt: skip
    ours = TorchMLPRegressor(hidden_layer_sizes=(16,), **settings).fit(X, targets, weight)
    theirs = TorchRegressor(Net, **settings).fit(X, targets, weight)
    assert theirs.n_iter_ == ours.n_iter_
    assert_allclose(theirs.predict(X), ours.predict(X), rtol=1e-6, atol=1e-9)
    assert_allclose(theirs.loss_curve_, ours.loss_curve_, rtol=1e-6)
    assert_allclose(theirs.validation_loss_curve_, ours.validation_loss_curve_, rtol=1e-6)
    first, expected = theirs.module_.module.hidden.weight, ours.module_.layers[0].weight
    assert_allclose(first.detach(), expected.detach(), rtol=1e-6, atol=1e-12)


def test_poisson():
    counts = np.random.default_rng(1).poisson(np.exp(0.1 * X[:, 1]))
    settings = {
        "loss": "poisson", "alpha": 0.0, "max_epochs": 12, "tol": None, "random_state": 3,
        "dtype": "float64",
    }  # fmt: skip
    ours = TorchMLPRegressor(hidden_layer_sizes=(16,), **settings).fit(X, counts)
    theirs = TorchRegressor(Net, **settings).fit(X, counts)
    assert_allclose(theirs.predict(X), ours.predict(X), rtol=1e-6)
    assert_allclose(theirs.net_.predict(X)[:, 0], ours.predict(X), rtol=1e-6)


def test_lbfgs_reaches_the_same_minimum():
    # line searches amplify rounding on the way there
    settings = {"optimizer": "lbfgs", "alpha": 1.0, "dtype": "float64", "random_state": 3}
    ours = TorchMLPRegressor(hidden_layer_sizes=(), **settings).fit(X, Y)
    theirs = TorchRegressor(nn.Linear, **settings).fit(X, Y)
    assert_allclose(theirs.predict(X), ours.predict(X), rtol=1e-6)


def test_warm_starts_and_batches_of_partial_fit_continue_alike():
    settings = {"alpha": 0.0, "max_epochs": 6, "tol": None, "dtype": "float64", "random_state": 3}
    both = [
        TorchMLPRegressor(hidden_layer_sizes=(16,), **settings),
        TorchRegressor(Net, **settings),
    ]
    warm = [clone(m).set_params(warm_start=True, batch_size=20).fit(X, y).fit(X, y) for m in both]
    assert_allclose(warm[1].predict(X), warm[0].predict(X), rtol=1e-6)
    assert warm[1].n_iter_ == warm[0].n_iter_
    # the same scaling only as long as all batches have the same statistics
    rows = [[clone(m) for m in both], [clone(m).set_params(standardize=False) for m in both]]
    for ours, theirs in rows:
        for _ in range(4):
            ours.partial_fit(X, Y)
            theirs.partial_fit(X, Y)
        assert_allclose(theirs.predict(X), ours.predict(X), rtol=1e-6, atol=1e-9)
    ours, theirs = (clone(m).set_params(standardize=False, lr=1e-4) for m in both)
    for part in (slice(0, 40), slice(40, 90), slice(10, 60)):
        ours.partial_fit(X[part], Y[part])
        theirs.partial_fit(X[part], Y[part])
    assert_allclose(theirs.predict(X), ours.predict(X), rtol=1e-6)


@pytest.mark.parametrize("start", ["class", "function", "instance"])
def test_class_function_and_instance_start_alike(start):
    torch.manual_seed(7)
    instance = Net(4, 1)
    weight = instance.hidden.weight.detach().clone()
    given = {"class": Net, "function": lambda n_features: Net(n_features, 1), "instance": instance}
    settings = {"max_epochs": 5, "tol": None, "random_state": 7, "shuffle": False}
    model = TorchRegressor(given[start], **settings).fit(X, y)
    expected = TorchRegressor(Net, **settings).fit(X, y)
    assert_array_equal(model.predict(X), expected.predict(X))
    # the instance was copied
    assert_array_equal(instance.hidden.weight.detach(), weight)
    assert instance.training


def test_a_lone_row_joins_the_batch_before_it():
    sizes = []

    class Watched(BatchNormed):
        def forward(self, x):
            if self.training:
                sizes.append(len(x))
            return super().forward(x)

    TorchRegressor(Watched, batch_size=8, max_epochs=2, tol=None).fit(X[:33], y[:33])
    assert sizes[-8:] == [8, 8, 8, 9] * 2
    sizes.clear()
    TorchRegressor(Watched, batch_size=8, max_epochs=1, tol=None).fit(X[:34], y[:34])
    assert sizes[-5:] == [8, 8, 8, 8, 2]


def test_rows_are_merged_only_where_they_do_not_meet():
    twice = np.r_[0:40, 0:40]
    settings = {"max_epochs": 4, "tol": None, "random_state": 0, "batch_size": None}
    model = TorchRegressor(Net, dtype="float64", **settings)
    repeated = clone(model).fit(X[twice], y[twice]).predict(X)
    # bit by bit, as for networks
    assert_array_equal(clone(model).fit(X[:40], y[:40]).predict(X), repeated)
    assert_array_equal(clone(model).fit(X[twice[::-1]], y[twice[::-1]]).predict(X), repeated)
    sizes = []

    class Watched(BatchNormed):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    TorchRegressor(Watched, **settings).fit(X[twice], y[twice])
    assert sizes[-4:] == [80] * 4


def test_global_generators_are_untouched_and_unread():
    model = TorchRegressor(Dropped, max_epochs=3, tol=None, batch_size=16, random_state=1)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state()
    first = clone(model).fit(X, y)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    second = clone(model).fit(X, y)
    assert_array_equal(first.predict(X), second.predict(X))
    with pytest.raises(ZeroDivisionError):
        clone(model).set_params(module=lambda: 1 / 0).fit(X, y)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("loss", [Uncertain, UncertainByRow])
@pytest.mark.parametrize("batch_size", [30, 90])
def test_a_loss_with_parameters_is_trained_as_by_hand(loss, batch_size):
    Z = (X - X.mean(0)) / X.std(0)
    x, t = torch.as_tensor(Z), torch.as_tensor(y)[:, None]
    before = torch.get_rng_state()
    torch.manual_seed(4)
    net, criterion = nn.Linear(4, 1).double(), loss().double()
    opt = torch.optim.Adam([*net.parameters(), *criterion.parameters()], lr=0.05)
    curve = []
    for _ in range(20):
        total = 0.0
        order = torch.randperm(90) if batch_size < 90 else torch.arange(90)
        for index in order.split(batch_size):
            opt.zero_grad()
            value = criterion(net(x[index]), t[index])
            value.backward()
            opt.step()
            total += float(value.detach()) * len(index)
        curve.append(total / 90)
    torch.set_rng_state(before)
    settings = {
        "loss": loss, "lr": 0.05, "max_epochs": 20, "tol": None, "dtype": "float64",
        "random_state": 4, "standardize": False, "batch_size": batch_size,
    }  # fmt: skip
    for model in (
        TorchRegressor(nn.Linear, **settings),
        TorchMLPRegressor(hidden_layer_sizes=(), alpha=0.0, **settings),
    ):
        model.fit(Z, y)
        assert_allclose(model.predict(Z), net(x).detach()[:, 0], rtol=1e-6, atol=1e-9)
        assert_allclose(model.loss_curve_, curve, rtol=1e-6)
        learned = model.net_.criterion_.module
        assert_allclose(learned.log_var.detach(), criterion.log_var.detach(), rtol=1e-6)
        if loss is Uncertain:
            assert learned.calls == criterion.calls


def test_copies_are_made_of_the_parameter():
    instance = Net(4, 1)
    model = TorchRegressor(instance, max_epochs=2, tol=None).fit(X, y)
    assert model.module is instance
    assert copy.deepcopy(model).module is not instance
    assert clone(model).module is not instance
    with pytest.warns(ConvergenceWarning):
        TorchRegressor(Net, max_epochs=1).fit(X, y)
