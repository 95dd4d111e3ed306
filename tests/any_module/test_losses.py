"""Losses with parameters and buffers of their own."""

import numpy as np
import pytest
import skorch.callbacks
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from torch import nn
from user_modules import Gaussian, Net, Uncertain, UncertainByRow, train_in_order

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor, TorchRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

rng = np.random.default_rng(0)
X = rng.normal(size=(100, 3))
y = X @ [1.0, 2.0, 3.0] + rng.normal(size=100)
SETTINGS = {"loss": Uncertain, "lr": 0.05, "dtype": "float64", "random_state": 0}
MODELS = {
    "linear": TorchLinearRegressor(optimizer="adam", **SETTINGS),
    "network": TorchMLPRegressor(hidden_layer_sizes=(4,), **SETTINGS),
    "module": TorchRegressor(Net, **SETTINGS),
}


def state(model):
    return {k: v.numpy() for k, v in model.net_.criterion_.module.state_dict().items()}


@pytest.mark.parametrize("name", MODELS)
def test_it_converges_to_the_logarithm_of_the_variance(name):
    model = clone(MODELS[name]).set_params(max_epochs=500, tol=None, standardize=False, lr=0.05)
    model.fit(X, y)
    expected = np.log(np.mean((y - model.predict(X)) ** 2))
    assert state(model)["log_var"][0] == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("optimizer", ["auto", "lbfgs"])
def test_a_linear_model_by_lbfgs(optimizer):
    model = TorchLinearRegressor(loss=Uncertain, optimizer=optimizer).fit(X, y)
    exact = TorchLinearRegressor().fit(X, y)
    assert_allclose(model.coef_, exact.coef_, rtol=1e-4)
    mean = np.mean((y - exact.predict(X)) ** 2)
    assert state(model)["log_var"][0] == pytest.approx(np.log(mean), abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_size", [None, 32])
def test_a_fit_is_as_many_batches_of_partial_fit(name, batch_size):
    model = clone(MODELS[name]).set_params(batch_size=batch_size, max_epochs=5, tol=None)
    whole = clone(model).fit(X, y)
    parts = clone(model)
    for _ in range(5):
        parts.partial_fit(X, y)
    assert_allclose(parts.predict(X), whole.predict(X), rtol=1e-9)
    for key, value in state(whole).items():
        assert_allclose(state(parts)[key], value, rtol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_it_goes_on_and_changes(name):
    warm = clone(MODELS[name]).set_params(warm_start=True, max_epochs=5, tol=None).fit(X, y)
    before = state(warm)
    warm.fit(X, y)
    assert state(warm)["calls"] == 2 * before["calls"]
    # with another loss it starts over
    warm.set_params(loss=UncertainByRow).fit(X, y)
    assert set(state(warm)) == {"log_var"}
    warm.set_params(loss="squared_error").fit(X, y).partial_fit(X, y)
    warm.set_params(loss=Uncertain).partial_fit(X, y)
    assert state(warm)["calls"] == -(-100 // min(200, 100))


@pytest.mark.parametrize("name", MODELS)
def test_the_best_weights_come_with_the_state_of_the_loss(name):
    model = clone(MODELS[name]).set_params(
        early_stopping=True, max_epochs=200, n_iter_no_change=5, lr=0.3, batch_size=None
    )
    model.fit(X, y)
    best = int(np.argmin(model.validation_loss_curve_)) + 1
    assert best < model.n_iter_
    # evaluation mode in validation: calls are those of training
    assert state(model)["calls"] == best


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_keeps_it(name, tmp_path):
    model = clone(MODELS[name]).set_params(max_epochs=9, tol=None, batch_size=30)
    expected = clone(model).fit(X, y)
    writing = clone(model).set_params(checkpoint_dir=tmp_path, checkpoint_every=2)

    class Half(Uncertain):
        pass

    class CutOff(skorch.callbacks.Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 5:
                raise OSError("power failure")

    with pytest.raises(OSError, match="power"):
        clone(writing).set_params(callbacks=[CutOff()]).fit(X, y)
    resumed = clone(writing).fit(X, y)
    assert_array_equal(resumed.predict(X), expected.predict(X))
    assert state(resumed) == state(expected)
    with pytest.raises(ValueError, match="a different fit"):
        clone(writing).set_params(loss=Half).fit(X, y)


def test_it_is_in_the_optimizer_and_not_penalised():
    for model in MODELS.values():
        fitted = clone(model).set_params(max_epochs=2, tol=None, alpha=10.0).fit(X, y)
        net = fitted.net_
        (group,) = net.optimizer_.param_groups
        assert any(p is net.criterion_.module.log_var for p in group["params"])

    class Vector(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.ones(2, 2))

        def forward(self, prediction, target):
            return ((prediction - target) ** 2).mean() + 0.0 * self.matrix.sum()

    fitted = TorchMLPRegressor(
        loss=Vector, alpha=10.0, optimizer="sgd", lr=0.01, max_epochs=5, tol=None
    ).fit(X, y)
    assert (fitted.net_.criterion_.module.matrix == 1).all()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_its_state_has_the_dtype_and_the_device(dtype, device):
    seen = set()

    class Watched(Uncertain):
        def forward(self, prediction, target):
            for tensor in (self.log_var, prediction, target):
                seen.add((tensor.dtype, tensor.device.type))
            return super().forward(prediction, target)

    for model in MODELS.values():
        clone(model).set_params(
            loss=Watched, dtype=dtype, device=device, max_epochs=2, tol=None
        ).fit(X, y)
    assert seen == {(getattr(torch, dtype), device)}


@pytest.mark.parametrize("name", MODELS)
def test_it_may_look_at_several_columns_together(name):
    Y = np.c_[y, np.zeros(100)]
    model = clone(MODELS[name]).set_params(
        loss=Gaussian, standardize=False, max_epochs=500, tol=None
    )
    predicted = model.fit(X, Y).predict(X)
    offset = float(state(model)["offset"])
    variance = np.exp(predicted[:, 1] + offset)
    residual = y - predicted[:, 0]
    assert np.mean(residual**2 / variance) == pytest.approx(1, abs=0.1)


def test_frozen_parameters_of_a_loss_stay():
    class Frozen(Uncertain):
        def __init__(self):
            super().__init__(0.5)
            self.log_var.requires_grad_(False)

    for model in MODELS.values():
        fitted = clone(model).set_params(loss=Frozen, max_epochs=3, tol=None).fit(X, y)
        assert state(fitted)["log_var"][0] == 0.5


def test_sample_weights_reach_a_loss_by_row():
    weight = rng.integers(1, 4, 100)
    for model in MODELS.values():
        settings = {"loss": UncertainByRow, "max_epochs": 5, "tol": None, "batch_size": None}
        weighted = clone(model).set_params(**settings).fit(X, y, weight)
        rows = np.repeat(np.arange(100), weight)
        repeated = clone(model).set_params(**settings).fit(X[rows], y[rows])
        assert_allclose(weighted.predict(X), repeated.predict(X), rtol=1e-6)
        with pytest.raises(ValueError, match="single mean"):
            clone(model).fit(X, y, weight)


class Relative(nn.Module):
    """Divides by the mean error so far, which is kept in a buffer that starts as None."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", None)

    def forward(self, prediction, target):
        error = (prediction - target).abs()
        if self.training:
            now = error.detach().mean()
            self.mean = now if self.mean is None else 0.9 * self.mean + 0.1 * now
        return error.square().mean() / self.mean


class Remembers(nn.Module):
    """One value per row; the mean of the last batch is kept in a buffer."""

    def __init__(self, reduction="mean"):
        super().__init__()
        self.reduction = reduction
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, prediction, target):
        error = (prediction - target).square()
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * error.detach().mean())
        return error if self.reduction == "none" else error.mean()


@pytest.mark.parametrize("loss", [Relative, Remembers])
@pytest.mark.parametrize("batch_size", [None, 32])
@pytest.mark.parametrize("name", MODELS)
def test_buffers_see_each_batch_once_and_whole(name, batch_size, loss):
    # repeated rows, which a full batch of another loss would merge
    rows, targets = np.r_[X, X[:50]], np.r_[y, y[:50]]
    model = clone(MODELS[name]).set_params(loss=loss, batch_size=batch_size, shuffle=False)
    model.set_params(max_epochs=4, tol=None, standardize=False).fit(rows, targets)
    if name == "module":
        torch.manual_seed(0)
        net, criterion = Net(3, 1).double(), loss().double()
        x, t = torch.as_tensor(rows), torch.as_tensor(targets)[:, None]
        train_in_order(net, x, t, lr=0.05, n_epochs=4, batch_size=batch_size, loss=criterion)
        assert_allclose(state(model)["mean"], criterion.mean, rtol=1e-9)
        assert_allclose(model.predict(X), net(x[:100]).detach()[:, 0], rtol=1e-9)
    watched = clone(model).set_params(callbacks=[skorch.callbacks.Callback()]).fit(rows, targets)
    assert_allclose(state(watched)["mean"], state(model)["mean"], rtol=1e-9)
    assert_allclose(watched.predict(X), model.predict(X), rtol=1e-9)


class InPlace(nn.Module):
    def forward(self, prediction, target):
        return target.mul_(2.0).sub_(prediction).square().mean()


@pytest.mark.parametrize("name", MODELS)
def test_a_loss_that_works_in_place(name):
    class Twice(nn.Module):
        def forward(self, prediction, target):
            return (2.0 * target - prediction).square().mean()

    targets = y.copy()
    model = clone(MODELS[name]).set_params(max_epochs=4, tol=None, standardize=False)
    found = clone(model).set_params(loss=InPlace).fit(X, targets).predict(X)
    assert_array_equal(targets, y)
    assert_allclose(found, clone(model).set_params(loss=Twice).fit(X, y).predict(X), rtol=1e-12)


class Counts(nn.Module):
    """A number that grows with each call, and decides the weight of the loss."""

    def __init__(self):
        super().__init__()
        self.n_calls = 0

    def forward(self, prediction, target):
        if self.training:
            self.n_calls += 1
        return min(1.0, self.n_calls / 20) * (prediction - target).square().mean()


@pytest.mark.parametrize("name", MODELS)
def test_a_loss_is_called_once_per_update(name):
    model = clone(MODELS[name]).set_params(loss=Counts, batch_size=25, max_epochs=6, tol=None)
    model.fit(X, y)
    assert model.net_.criterion_.module.n_calls == 24
    if name == "module":
        model.set_params(standardize=False, shuffle=False).fit(X, y)
        torch.manual_seed(0)
        net, x, t = Net(3, 1).double(), torch.as_tensor(X), torch.as_tensor(y)[:, None]
        train_in_order(net, x, t, lr=0.05, n_epochs=6, batch_size=25, loss=Counts())
        assert_allclose(model.predict(X), net(x).detach()[:, 0], rtol=1e-9)
