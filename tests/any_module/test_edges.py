"""What modules may hold and do besides layers, and what must not leak in or out of a fit."""

import pickle
import threading

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from skorch.callbacks import Callback
from torch import nn
from user_modules import BatchNormed, Embedded, Net, Uncertain, train_in_order

from sktorch_linreg import (
    CheckpointMismatchError,
    TorchLinearRegressor,
    TorchMLPRegressor,
    TorchRegressor,
    load_model,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

rng = np.random.default_rng(0)
X = rng.normal(size=(61, 4))
y = X @ [1.0, 2.0, 3.0, 4.0] + 1
CODES = rng.integers(0, 10, size=(61, 2))
SETTINGS = {"max_epochs": 5, "tol": None, "random_state": 3, "lr": 0.05}


class Fourier(nn.Module):
    """Random features in attributes that are no buffers."""

    def __init__(self, n_features):
        super().__init__()
        self.B, self.out = torch.randn(n_features, 32), nn.Linear(32, 1)

    def forward(self, x):
        return self.out(torch.cos(x @ self.B))


class Permuted(nn.Module):
    """An attribute that is not drawn by torch, and one that training changes."""

    def __init__(self, n_features):
        super().__init__()
        self.order, self.n_steps = np.random.default_rng().permutation(n_features), 0
        self.out = nn.Linear(n_features, 1)

    def forward(self, x):
        self.n_steps += self.training
        return self.out(x[:, self.order]) + 0.01 * self.n_steps


@pytest.mark.parametrize("module", [Fourier, Permuted])
def test_predictions_are_those_of_the_trained_module(module):
    model = TorchRegressor(module, **SETTINGS).fit(X, y)
    inside = model.module_(torch.as_tensor(X, dtype=torch.float32)).detach()[:, 0]
    assert_allclose(model.predict(X), inside, rtol=1e-4, atol=1e-5)
    assert_allclose(clone(model).fit(X, y).score(X, y) > 0, model.score(X, y) > 0)
    # changing the trained module changes no prediction
    before = model.predict(X)
    with torch.no_grad():
        model.module_.module.out.weight.zero_()
    assert_array_equal(model.predict(X), before)
    if module is Fourier:
        # what torch draws is drawn again
        assert_allclose(pickle.loads(pickle.dumps(model)).predict(X), before, rtol=1e-6)


class Wrapped(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.out = encoder, nn.Linear(8, 1)

    def forward(self, x):
        return self.out(torch.relu(self.encoder(x)))


def test_a_module_among_the_arguments_is_copied_and_stored():
    encoder = nn.Linear(4, 8)
    weight = encoder.weight.detach().clone()
    model = TorchRegressor(Wrapped, module__encoder=encoder, **SETTINGS).fit(X, y)
    assert torch.equal(encoder.weight, weight)
    predicted = model.predict(X)
    assert_array_equal(clone(model).fit(X, y).predict(X), predicted)
    assert isinstance(model.__getstate__()["_options"]["module__encoder"], dict)
    back = pickle.loads(pickle.dumps(model))
    assert_array_equal(back.predict(X), predicted)
    assert torch.equal(back.get_params()["module__encoder"].weight, weight)
    assert_array_equal(clone(back).fit(X, y).predict(X), predicted)


class Constants(nn.Module):
    """A complex buffer, a sparse one, and integers as frozen parameters."""

    def __init__(self, n_features):
        super().__init__()
        self.out = nn.Linear(2, 1)
        self.register_buffer("phase", torch.tensor([1.0 + 2.0j]))
        self.register_buffer("graph", torch.eye(n_features).to_sparse())
        self.columns = nn.Parameter(torch.tensor([0, 2]), requires_grad=False)

    def forward(self, x):
        x = torch.sparse.mm(self.graph.to(x.dtype), x.T).T
        return self.out(x[:, self.columns]) + self.phase.imag.to(x.dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_constants_keep_their_dtype(dtype):
    model = TorchRegressor(Constants, dtype=dtype, **SETTINGS).fit(X, y)
    module = model.module_.module
    assert module.phase.is_complex()
    assert module.columns.dtype == torch.int64
    back = pickle.loads(pickle.dumps(model))
    assert_allclose(back.predict(X), model.predict(X), rtol=1e-6)


class ZeroHead(nn.Module):
    """Mixes rows, which an output layer of zeros hides at first."""

    def __init__(self, n_features):
        super().__init__()
        self.out = nn.Linear(n_features, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x):
        return self.out(x - x.mean(0))


def test_a_layer_of_zeros_hides_no_mixing():
    model = TorchRegressor(ZeroHead, batch_size=None, standardize=False, **SETTINGS).fit(X, y)
    inside = model.module_(torch.as_tensor(X[:5], dtype=torch.float32)).detach()[:, 0]
    assert_allclose(model.predict(X[:5]), inside, rtol=1e-5)


class Cached(nn.Module):
    """A buffer that the first call in training sets."""

    def __init__(self, n_features):
        super().__init__()
        self.out = nn.Linear(n_features, 1)
        self.register_buffer("centre", None)

    def forward(self, x):
        if self.centre is None:
            self.centre = x.mean(0).detach()
        return self.out(x - self.centre)


def test_a_buffer_that_forward_sets(tmp_path):
    model = TorchRegressor(Cached, **SETTINGS)
    expected = clone(model).fit(X, y)
    assert_array_equal(pickle.loads(pickle.dumps(expected)).predict(X), expected.predict(X))
    # the first batch sets it, not a trial
    assert_allclose(expected.module_.module.centre, np.zeros(4), atol=1e-6)
    clone(model).set_params(checkpoint_dir=tmp_path).fit(X, y)
    resumed = clone(model).set_params(checkpoint_dir=tmp_path).fit(X, y)
    assert_array_equal(resumed.predict(X), expected.predict(X))


class Counted(Net):
    def __init__(self, n_features, n_outputs):
        super().__init__(n_features, n_outputs)
        self.register_buffer("n_calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.n_calls += 1
        return super().forward(x)


def test_trials_do_not_touch_the_module():
    model = TorchRegressor(Counted, batch_size=20, **SETTINGS).fit(X, y)
    # four batches per epoch, the last of one row
    assert model.module_.module.n_calls == 4 * 5


def test_wide_rows_pass_through_the_module_once():
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(3, 1)

        def forward(self, x):
            seen.append(len(x))
            return self.out(x.flatten(1)[:, :3])

    rows = rng.normal(size=(41, 3, 120, 120)).astype(np.float32)
    model = TorchRegressor(Watched, standardize="target", **SETTINGS).fit(rows, rows[:, 0, 0, 0])
    seen.clear()
    model.predict(rows)
    assert sum(seen) == 48
    seen.clear()
    model.predict(rows[:1])
    assert seen == [8]


class DrawsInLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(()))

    def forward(self, prediction, target):
        return (prediction - target).square().mean() * (1 + self.scale**2)


def test_losses_that_draw_leave_the_global_generator():
    before = torch.get_rng_state()
    for model in (
        TorchRegressor(Net, loss=DrawsInLoss, **SETTINGS),
        TorchMLPRegressor(loss=DrawsInLoss, **SETTINGS),
        TorchLinearRegressor(loss=DrawsInLoss, optimizer="adam", **SETTINGS),
    ):
        fitted = pickle.loads(pickle.dumps(clone(model).fit(X, y)))
        again = clone(model).fit(X, y)
        assert_array_equal(again.predict(X), fitted.predict(X))
        assert float(fitted.net_.criterion_.module.scale.detach()) != 0
        assert torch.equal(torch.get_rng_state(), before)


# calls of a trial with gradients
N_TRIALS = 1


def test_other_threads_disturb_no_fit_without_random_layers():
    model = TorchRegressor(Net, batch_size=16, max_epochs=60, tol=None, random_state=0)
    expected = clone(model).fit(X, y).predict(X)
    stop = threading.Event()

    def draw():
        while not stop.is_set():
            torch.rand(10)

    thread = threading.Thread(target=draw)
    calls = []

    class Starts(Net):
        def forward(self, x):
            # in the first update: construction and trials hold the generator
            calls.append(torch.is_grad_enabled())
            if sum(calls) > N_TRIALS and thread.ident is None:
                thread.start()
            return super().forward(x)

    found = clone(model).set_params(module=lambda: Starts(4, 1)).fit(X, y).predict(X)
    stop.set()
    thread.join()
    assert_array_equal(found, expected)


def test_dropout_keeps_a_lone_last_row():
    sizes = []

    class Watched(nn.Module):
        def __init__(self, n_features, normalise):
            super().__init__()
            self.body = nn.Sequential(
                nn.Linear(n_features, 8),
                nn.BatchNorm1d(8) if normalise else nn.Identity(),
                nn.Dropout(0.5),
                nn.Linear(8, 1),
            )

        def forward(self, x):
            if self.training:
                sizes.append(len(x))
            return self.body(x)

    for normalise, last in ((False, [20, 20, 20, 1]), (True, [20, 20, 21])):
        TorchRegressor(
            Watched, module__normalise=normalise, batch_size=20, max_epochs=1, tol=None
        ).fit(X, y)
        assert sizes[-len(last) :] == last


def test_codes_as_floats():
    targets = 1.0 * CODES[:, 0]
    model = TorchRegressor(Embedded, standardize="target", **SETTINGS).fit(CODES, targets)
    expected = model.predict(CODES)
    assert_array_equal(model.predict(CODES.astype(float)), expected)
    assert_array_equal(model.set_params(standardize=True).predict(CODES), expected)
    with pytest.raises(ValueError, match="trained on integers, but X holds other numbers"):
        model.predict(CODES + 0.5)
    model = TorchRegressor(Embedded, standardize="target", early_stopping=True, **SETTINGS)
    validation = {"X_val": CODES[:9].astype(float), "y_val": targets[:9]}
    assert len(model.fit(CODES, targets, **validation).validation_loss_curve_) == 5
    # targets whose squares underflow are rescaled, codes are not
    tiny = TorchRegressor(Embedded, standardize="target", **SETTINGS).fit(CODES, targets * 1e-150)
    assert_allclose(tiny.predict(CODES) * 1e150, expected, rtol=1e-3, atol=1e-3)


def test_unscaled_features_stay_as_they_are_beside_extreme_targets():
    settings = {**SETTINGS, "standardize": "target", "optimizer": "sgd", "lr": 0.01}
    usual = TorchRegressor(nn.Linear, **settings).fit(X, y).predict(X)
    extreme = TorchRegressor(nn.Linear, **settings).fit(X, y * 1e-150).predict(X)
    assert_allclose(extreme * 1e150, usual, rtol=1e-4, atol=1e-4)


def test_the_net_shows_the_loss_that_was_trained():
    model = TorchRegressor(Net, loss=Uncertain, **SETTINGS).fit(X, y)
    learned = float(model.net_.criterion_.module.log_var.detach())
    back = pickle.loads(pickle.dumps(model.set_params(loss="huber")))
    assert float(back.net_.criterion_.module.log_var.detach()) == learned


def test_a_checkpoint_knows_the_state_of_the_loss_it_started_from(tmp_path):
    model = TorchRegressor(Net, loss=Uncertain, warm_start=True, **SETTINGS).fit(X, y)
    other = pickle.loads(pickle.dumps(model))
    other._loss_state["log_var"] = other._loss_state["log_var"] + 3
    model.set_params(checkpoint_dir=tmp_path).fit(X, y)
    with pytest.raises(CheckpointMismatchError, match="starting"):
        other.set_params(checkpoint_dir=tmp_path).fit(X, y)


def test_an_instance_with_a_parametrisation():
    instance = nn.utils.parametrizations.weight_norm(nn.Linear(4, 1))
    model = TorchRegressor(instance, **SETTINGS).fit(X, y)
    assert np.isfinite(model.predict(X)).all()
    with pytest.raises(TypeError, match=r"parametrised.*Pass its class, or a function"):
        pickle.dumps(model)


def test_frozen_parameters_take_part_in_no_vector():
    class Table(nn.Module):
        def __init__(self, n_features):
            super().__init__()
            self.table = nn.Parameter(torch.randn(1000, n_features), requires_grad=False)
            self.out = nn.Linear(n_features, 1)

        def forward(self, x):
            return self.out(x * self.table.mean(0))

    model = TorchRegressor(Table, **SETTINGS).fit(X, y)
    slots = model._training_state["optimizer"]["slots"]
    assert {len(values) for values in slots.values()} == {5}
    assert model._module_state["table"].shape == (1000, 4)


def test_load_model_looks_at_the_module_first(tmp_path):
    with pytest.raises(ValueError, match="module must be a subclass"):
        load_model(tmp_path / "none", module="Net")


def test_batch_normalisation_is_padded_in_evaluation_mode():
    model = TorchRegressor(BatchNormed, **SETTINGS).fit(X, y)
    assert_allclose(model.predict(X[3:4]), model.predict(X)[3:4], rtol=1e-6)


class Stops(Callback):
    """Interrupts training, and may train another layer from the second epoch on."""

    def __init__(self, unfreezes=False):
        self.unfreezes = unfreezes

    def on_epoch_begin(self, net, **kwargs):
        if self.unfreezes and len(net.history) == 2:
            net.module_.module[0].requires_grad_(True)

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 4:
            raise OSError("power failure")


def half_frozen(n_features):
    layers = nn.Sequential(nn.Linear(n_features, 8), nn.Tanh(), nn.Linear(8, 1))
    layers[0].requires_grad_(False)
    return layers


class HalfFrozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.log_var = nn.Parameter(torch.zeros(1))
        self.factor = nn.Parameter(torch.full((1,), 2.0), requires_grad=False)

    def forward(self, prediction, target):
        error = (prediction - target) ** 2
        return (self.factor * error * (-self.log_var).exp() + self.log_var).mean()


@pytest.mark.parametrize("optimizer", ["adam", torch.optim.Rprop])
@pytest.mark.parametrize("loss", ["squared_error", HalfFrozen])
def test_a_checkpoint_of_frozen_parameters_is_resumed_without_callbacks(loss, optimizer, tmp_path):
    model = TorchRegressor(half_frozen, loss=loss, optimizer=optimizer, early_stopping=True)
    model.set_params(max_epochs=7, tol=None, random_state=0, checkpoint_every=2, batch_size=20)
    expected = clone(model).fit(X, y).predict(X)
    for before, after in (([Stops()], None), ([Stops()], [Callback()])):
        writing = clone(model).set_params(checkpoint_dir=tmp_path / f"{after is None}")
        with pytest.raises(OSError, match="power"):
            clone(writing).set_params(callbacks=before).fit(X, y)
        assert_array_equal(writing.set_params(callbacks=after).fit(X, y).predict(X), expected)


def test_what_a_callback_unfroze_stays_trained_when_it_is_gone(tmp_path):
    model = TorchRegressor(half_frozen, checkpoint_dir=tmp_path, checkpoint_every=2, **SETTINGS)
    with pytest.raises(OSError, match="power"):
        clone(model).set_params(callbacks=[Stops(unfreezes=True)]).fit(X, y)
    torch.manual_seed(SETTINGS["random_state"])
    at_first = half_frozen(4)[0].weight
    resumed = model.fit(X, y).module_.module[0].weight
    assert not torch.equal(resumed, at_first)


def test_a_checkpoint_of_an_instance_knows_its_weights(tmp_path):
    net = nn.Linear(4, 1)
    model = TorchRegressor(net, checkpoint_dir=tmp_path, **SETTINGS)
    expected = model.fit(X, y).predict(X)
    assert_array_equal(clone(model).fit(X, y).predict(X), expected)
    with torch.no_grad():
        net.weight.fill_(100.0)
    for other in (model, clone(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(CheckpointMismatchError, match="module was Linear"):
            other.fit(X, y)


def test_a_checkpoint_of_lazy_layers_is_resumed_from_a_copy(tmp_path):
    net = nn.Sequential(nn.LazyLinear(3), nn.Tanh(), nn.LazyLinear(1))
    model = TorchRegressor(net, checkpoint_dir=tmp_path, **SETTINGS)
    expected = model.fit(X, y).predict(X)
    for other in (clone(model), pickle.loads(pickle.dumps(clone(model)))):
        assert_array_equal(other.fit(X, y).predict(X), expected)


class Centred(nn.Module):
    """Subtracts the mean of the batch."""

    def __init__(self, n_features):
        super().__init__()
        self.out = nn.Linear(n_features, 1)

    def forward(self, x):
        return self.out(x - x.mean(0))


def test_rows_that_are_equal_where_they_are_tried():
    rows = X.copy()
    rows[np.unique(np.linspace(0, 60, 4).astype(int))] = 0.0
    model = TorchRegressor(Centred, standardize=False, batch_size=None, **SETTINGS)
    # equal rows are merged only in modules that treat rows one by one
    twice = clone(model).fit(np.r_[rows, rows[:30]], np.r_[y, y[:30]])
    torch.manual_seed(SETTINGS["random_state"])
    net = Centred(4)
    x = torch.as_tensor(np.r_[rows, rows[:30]], dtype=torch.float32)
    t = torch.as_tensor(np.r_[y, y[:30]], dtype=torch.float32)[:, None]
    train_in_order(net, x, t, lr=SETTINGS["lr"], n_epochs=SETTINGS["max_epochs"])
    assert_allclose(twice.module_.module.out.weight.detach(), net.out.weight.detach(), rtol=1e-4)
    # nor are predictions padded
    few = clone(model).fit(rows, y)
    inside = few.module_(torch.as_tensor(rows[1:6], dtype=torch.float32)).detach()[:, 0]
    assert_allclose(few.predict(rows[1:6]), inside, rtol=1e-4, atol=1e-5)


class CountsRows(nn.Module):
    """Buffers that say which rows came, though outputs do not depend on them in training."""

    def __init__(self, n_features):
        super().__init__()
        self.out = nn.Linear(n_features, 1)
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("n_rows", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.mean.copy_(x.mean(0))
            self.n_rows += len(x)
        return self.out(x)


def test_buffers_see_repeated_rows():
    rows, targets = np.r_[X, X[:30]], np.r_[y, y[:30]]
    model = TorchRegressor(CountsRows, standardize=False, batch_size=None, **SETTINGS)
    inside = model.fit(rows, targets).module_.module
    assert inside.n_rows == SETTINGS["max_epochs"] * 91
    assert_allclose(inside.mean, rows.mean(0), rtol=1e-5, atol=1e-6)


def test_spectral_norm_keeps_a_lone_last_row():
    def make():
        return nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8)), nn.Tanh(), nn.Linear(8, 1)
        )

    settings = {**SETTINGS, "dtype": "float64", "batch_size": 20, "shuffle": False}
    model = TorchRegressor(make, standardize=False, **settings).fit(X, y)
    torch.manual_seed(SETTINGS["random_state"])
    net = make().double()
    x, t = torch.as_tensor(X), torch.as_tensor(y)[:, None]
    n_epochs = SETTINGS["max_epochs"]
    train_in_order(net, x, t, lr=SETTINGS["lr"], n_epochs=n_epochs, batch_size=20)
    assert_allclose(model.predict(X), net.eval()(x).detach()[:, 0], rtol=1e-6)
