"""Random numbers that code of the user's draws in training: repeatable, and its own."""

import linecache
import pickle
import sys
import threading

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from skorch.callbacks import Callback, EarlyStopping, EpochScoring
from torch import nn
from user_modules import Net

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor, TorchRegressor
from sktorch_linreg._runtime import seeds, turns

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

rng = np.random.default_rng(0)
X = rng.normal(size=(61, 4))
y = X @ [1.0, 2.0, 3.0, 4.0] + np.sin(3 * X[:, 0])
SETTINGS = {"max_epochs": 6, "tol": None, "lr": 0.05, "batch_size": 20}


class Dropped(nn.Module):
    """Dropout at a rate that may change."""

    def __init__(self, n_features, rate=0.0, after=np.inf):
        super().__init__()
        self.body, self.out = nn.Linear(n_features, 16), nn.Linear(16, 1)
        self.dropout, self.after, self.n_steps = nn.Dropout(rate), after, 0

    def forward(self, x):
        self.n_steps += self.training
        if self.n_steps > self.after:
            self.dropout.p = 0.5
        return self.out(self.dropout(torch.tanh(self.body(x))))


def dropped(n_features):
    return Dropped(n_features, 0.3)


class Noisy(nn.Module):
    """Its scale must be positive, which the trial does not know."""

    def __init__(self, n_features):
        super().__init__()
        self.scale, self.out = nn.Parameter(torch.full((4,), 0.01)), nn.Linear(n_features, 1)

    def forward(self, x):
        if self.training:
            x = torch.normal(x, self.scale.expand_as(x))
        return self.out(x)


class NeedsRows(Dropped):
    """Takes at least ten rows in training."""

    def forward(self, x):
        h = self.dropout(torch.tanh(self.body(x)))
        if self.training:
            h = h - h.topk(10, dim=0).values.mean(0)
        return self.out(h)


class RandomLoss(nn.Module):
    def forward(self, prediction, target):
        return ((prediction - target).square() * torch.rand_like(target)).mean()


class Langevin(torch.optim.SGD):
    """Adds noise in each step."""

    def step(self, closure=None):
        out = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(0.01 * torch.randn_like(p))
        return out


class RaisesRate(Callback):
    def on_epoch_begin(self, net, **kwargs):
        net.module_.module.dropout.p = 0.1 * len(net.history)


class NoisyGradients(Callback):
    def on_grad_computed(self, net, named_parameters, **kwargs):
        for _, p in named_parameters:
            p.grad.add_(torch.randn_like(p.grad))


MODELS = {
    "rate of the module's": TorchRegressor(Dropped, module__after=5),
    "rate of a callback's": TorchRegressor(Dropped, callbacks=[RaisesRate()]),
    "trial that fails": TorchRegressor(Noisy),
    "more rows than in the trial": TorchRegressor(NeedsRows, module__rate=0.3),
    "function": TorchRegressor(dropped),
    "instance": TorchRegressor(Dropped(4, 0.3)),
    "loss": TorchRegressor(Net, loss=RandomLoss),
    "loss of a network": TorchMLPRegressor(loss=RandomLoss),
    "loss of a linear model": TorchLinearRegressor(loss=RandomLoss, optimizer="adam"),
    "optimizer": TorchRegressor(Net, optimizer=Langevin),
    "optimizer of a network": TorchMLPRegressor(optimizer=Langevin),
    "callback of a network": TorchMLPRegressor(callbacks=[NoisyGradients()]),
}


@pytest.mark.parametrize("name", MODELS)
def test_draws_are_repeated_and_leave_the_global_generator(name):
    model = clone(MODELS[name]).set_params(random_state=0, **SETTINGS)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    expected = model.fit(X, y).predict(X)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert_array_equal(clone(model).fit(X, y).predict(X), expected)
    other = clone(model).set_params(random_state=1).fit(X, y)
    assert not np.array_equal(other.predict(X), expected)
    # draws in each batch, not the same ones again
    parts = clone(model).partial_fit(X, y)
    state = torch.get_rng_state()
    again = pickle.loads(pickle.dumps(parts)).partial_fit(X, y)
    assert_array_equal(parts.partial_fit(X, y).predict(X), again.predict(X))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("rate of the module's",)])
def test_draws_are_resumed(name, tmp_path):
    model = clone(MODELS[name]).set_params(random_state=0, **SETTINGS)
    expected = clone(model).fit(X, y).predict(X)

    class Fails(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 4:
                raise OSError("power failure")

    model.set_params(checkpoint_dir=tmp_path, checkpoint_every=2)
    callbacks = model.callbacks or []
    with pytest.raises(OSError, match="power"):
        clone(model).set_params(callbacks=[*callbacks, Fails()]).fit(X, y)
    torch.rand(3)
    assert_array_equal(clone(model).fit(X, y).predict(X), expected)


class Fourier(nn.Module):
    """Random features in an attribute that is no buffer."""

    def __init__(self, n_features):
        super().__init__()
        self.frequencies, self.out = 0.3 * torch.randn(n_features, 64), nn.Linear(64, 1)

    def forward(self, x):
        return self.out(torch.cos(x @ self.frequencies + 0.5))


@pytest.mark.parametrize("seed", [0, None, np.random.RandomState(0)])
def test_random_features_stay_when_training_continues(seed):
    model = TorchRegressor(Fourier, random_state=seed, lr=0.05)
    features = model.partial_fit(X, y).module_.module.frequencies
    for _ in range(3):
        model.partial_fit(X, y)
        assert torch.equal(model.module_.module.frequencies, features)
    restored = pickle.loads(pickle.dumps(model)).partial_fit(X, y)
    assert torch.equal(restored.module_.module.frequencies, features)
    warm = TorchRegressor(Fourier, random_state=seed, warm_start=True, max_epochs=3, tol=None)
    features = warm.fit(X, y).module_.module.frequencies
    assert torch.equal(warm.fit(X, y).module_.module.frequencies, features)
    assert torch.equal(warm.fit(X, y).module_.module.frequencies, features)
    # a new fit draws new ones, unless the seed is a number
    again = warm.set_params(warm_start=False).fit(X, y).module_.module.frequencies
    assert torch.equal(again, features) == (seed == 0)


def test_a_restored_model_predicts_in_another_thread_during_a_fit():
    model = pickle.loads(pickle.dumps(TorchRegressor(Net, **SETTINGS).fit(X, y)))
    predicted, errors = [], []

    class Asks(Callback):
        def on_epoch_end(self, net, **kwargs):
            thread = threading.Thread(target=lambda: predicted.append(model.predict(X)))
            thread.daemon = True
            thread.start()
            thread.join(60)
            if thread.is_alive():
                errors.append("it waits for the fit")
                raise KeyboardInterrupt

    TorchRegressor(Dropped, module__rate=0.3, callbacks=[Asks()], **SETTINGS).fit(X, y)
    assert not errors
    assert len(predicted) == SETTINGS["max_epochs"]


def test_fits_in_two_threads_take_turns():
    models = [
        TorchRegressor(Dropped, module__rate=0.3, random_state=seed, **SETTINGS) for seed in (0, 1)
    ]
    expected = [clone(model).fit(X, y).predict(X) for model in models]
    found = [[], []]

    def fit(i):
        for _ in range(3):
            found[i].append(clone(models[i]).fit(X, y).predict(X))

    threads = [threading.Thread(target=fit, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        assert len(found[i]) == 3
        for predicted in found[i]:
            assert_array_equal(predicted, expected[i])


class DropsAlways(Dropped):
    """Dropout in predictions too."""

    def forward(self, x):
        h = torch.nn.functional.dropout(torch.tanh(self.body(x)), 0.3, True)
        return self.out(h)


def test_predictions_that_draw_are_repeated():
    model = TorchRegressor(DropsAlways, random_state=0, **SETTINGS).fit(X, y)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    expected = model.predict(X)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    for again in (model, pickle.loads(pickle.dumps(model))):
        assert_array_equal(again.predict(X), expected)
    # what a callback predicts while training decides alike
    stops = TorchRegressor(
        DropsAlways, random_state=0, **{**SETTINGS, "max_epochs": 30},
        callbacks=[
            EpochScoring("r2", lower_is_better=False, name="r2", on_train=True),
            EarlyStopping("r2", patience=1, lower_is_better=False),
        ],
    )  # fmt: skip
    found = []
    for seed in range(4):
        torch.manual_seed(seed)
        found.append(clone(stops).fit(X, y).n_iter_)
    assert len(set(found)) == 1


class DrawsAtFirst(torch.optim.SGD):
    def __init__(self, params, lr=0.01):
        super().__init__(params, lr=lr)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(0.1 * torch.randn_like(p))


class DrawnLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = float(torch.rand(()))

    def forward(self, prediction, target):
        return self.factor * (prediction - target).square().mean()


@pytest.mark.parametrize("settings", [{"optimizer": DrawsAtFirst}, {"loss": DrawnLoss}])
@pytest.mark.parametrize("model", [TorchRegressor(Net), TorchMLPRegressor()])
def test_constructors_that_draw(model, settings):
    model = clone(model).set_params(**SETTINGS, **settings)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    found = [clone(model).set_params(random_state=seed).fit(X, y) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert_array_equal(found[0].predict(X), found[1].predict(X))
    assert not np.array_equal(found[0].predict(X), found[2].predict(X))
    if "loss" in settings:
        assert found[0].net_.criterion_.module.factor != found[2].net_.criterion_.module.factor


def interrupted_at(n):
    """A trace function that raises at the n-th line of the locks and generators."""
    files, seen = {seeds.__file__, turns.__file__}, [0]

    def local(frame, event, arg):
        source = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        # between taking or releasing a lock and the block, the interpreter looks for no signal
        if event == "line" and "with self._lock" not in source:
            seen[0] += 1
            if seen[0] == n:
                raise KeyboardInterrupt
        return local

    def tracer(frame, event, arg):
        return local if frame.f_code.co_filename in files else None

    return tracer, seen


def test_ctrl_c_at_any_line_leaves_the_lock_and_the_generator():
    device, own = torch.device("cpu"), [torch.Generator()]
    n = n_lines = 0
    while n <= n_lines:
        n += 1
        torch.manual_seed(7)
        before = torch.get_rng_state()
        tracer, seen = interrupted_at(n)
        # such as that of a measurement of coverage
        others = sys.gettrace()
        sys.settrace(tracer)
        try:
            with seeds.torch_draws_from(own, device):
                torch.rand(3)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(others)
        n_lines = max(n_lines, seen[0])
        assert torch.equal(torch.get_rng_state(), before), n
        thread = threading.Thread(target=_enter, args=(device,), daemon=True)
        thread.start()
        thread.join(30)
        assert not thread.is_alive(), n
    assert n_lines > 15


def _enter(device):
    with seeds.seeded_torch(0, device):
        pass
