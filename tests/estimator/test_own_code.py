"""Optimizers, losses, callbacks and numbers of the user's own: what works, and whose errors."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import Callback, Checkpoint, EpochScoring, TrainEndCheckpoint
from torch import nn
from torch.optim.optimizer import required

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 3))
y = X.sum(axis=1) + 0.1 * RNG.normal(size=120)


def models(**params):
    """A linear model and a network, in double precision."""
    settings = {"batch_size": 30, "max_epochs": 5, "random_state": 0, "tol": None, **params}
    yield TorchLinearRegressor(**settings)
    yield TorchMLPRegressor(hidden_layer_sizes=(4,), dtype="float64", **settings)


class Descent(torch.optim.Optimizer):
    """As written for loops of ``loss.backward(); optimizer.step()``."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": 0.1 if lr is None else lr})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            p.add_(p.grad, alpha=-self.param_groups[0]["lr"])


class Ignores(Descent):
    def step(self, closure=None):
        super().step()


class Calls(Descent):
    def step(self, closure):
        with torch.enable_grad():
            closure()
        super().step()


class ClearsFirst(Descent):
    def step(self, closure=None):
        self.zero_grad()
        with torch.enable_grad():
            closure()
        super().step()


class ClearsInPlace(Descent):
    def step(self, closure=None):
        self.zero_grad(set_to_none=False)
        closure()
        super().step()


class Replaces(Descent):
    @torch.no_grad()
    def step(self, closure=None):
        closure()
        for p in self.param_groups[0]["params"]:
            p.data = p.data - self.param_groups[0]["lr"] * p.grad


class Scaled(Descent):
    """Takes something else than a closure."""

    def step(self, *, scale=1.0):
        assert scale == 1.0
        super().step()


class ScaledFirst(Descent):
    def step(self, scale=1.0):
        assert scale == 1.0
        super().step()


class ByName(Descent):
    def step(self, scale=1.0, *, closure=None):
        assert closure is not None
        super().step()


class Anything(Descent):
    def step(self, *args, **kwargs):
        (closure,) = args
        closure()
        super().step()


class NoRate(Descent):
    def __init__(self, params, lr=None):
        super().__init__(params, lr)


class Elsewhere(Descent):
    """Keeps its rate in itself."""

    def __init__(self, params):
        torch.optim.Optimizer.__init__(self, params, {})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            p.add_(p.grad, alpha=-0.1)


@pytest.mark.parametrize(
    "cls",
    [
        Descent,
        Ignores,
        Calls,
        ClearsFirst,
        ClearsInPlace,
        Replaces,
        Scaled,
        ScaledFirst,
        ByName,
        Anything,
        NoRate,
        Elsewhere,
    ],
)
@pytest.mark.parametrize("alpha", [{}, {"alpha": 0.1}, {"alpha": 0.1, "l1_ratio": 0.5}])
def test_any_way_to_write_a_step_is_gradient_descent(cls, alpha):
    for own, named in zip(
        models(optimizer=cls, **alpha), models(optimizer="sgd", lr=0.1, **alpha), strict=True
    ):
        own.fit(X, y)
        named.fit(X, y)
        assert_allclose(own.predict(X), named.predict(X), rtol=1e-9)
        assert_allclose(own.loss_curve_, named.loss_curve_, rtol=1e-9)
        assert pickle.loads(pickle.dumps(own)).predict(X).shape == (120,)


class LooksAhead(Descent):
    """Moves, asks for the gradient there, and moves back (Foret et al., 2021)."""

    @torch.no_grad()
    def step(self, closure=None):
        parameters = self.param_groups[0]["params"]
        for p in parameters:
            p.add_(0.05)
        with torch.enable_grad():
            closure()
        for p in parameters:
            p.sub_(0.05).add_(p.grad, alpha=-self.param_groups[0]["lr"])


def test_a_closure_after_a_move_is_evaluated_there():
    model = TorchLinearRegressor(
        optimizer=LooksAhead, lr=0.1, max_epochs=3, standardize=False, random_state=0,
        callbacks=[], batch_size=None,
    ).fit(X, y)  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    bound = 3**-0.5
    w = torch.empty(1, 3).uniform_(-bound, bound, generator=generator).double()
    b = torch.empty(1).uniform_(-bound, bound, generator=generator).double()
    rows, target = torch.tensor(X), torch.tensor(y)[:, None]
    for _ in range(3):
        ahead = [p.add(0.05).requires_grad_() for p in (w, b)]
        loss = ((rows @ ahead[0].T + ahead[1] - target) ** 2).mean()
        g_w, g_b = torch.autograd.grad(loss, ahead)
        w, b = w - 0.1 * g_w, b - 0.1 * g_b
    assert_allclose(model.coef_, w.numpy()[0], rtol=1e-9)
    assert_allclose(model.intercept_, float(b), rtol=1e-9)


def test_a_rate_that_is_required():
    class Required(Descent):
        def __init__(self, params, lr=required):
            super().__init__(params, lr)

    class Positional(Descent):
        def __init__(self, params, lr):
            super().__init__(params, lr)

    for cls in (Required, Positional):
        for model in models(optimizer=cls):
            with pytest.raises(ValueError, match="has no default learning rate: set lr"):
                model.fit(X, y)
            model.set_params(lr=0.1).fit(X, y)


def test_a_rate_that_nobody_knows_diverges_with_a_message():
    class Wild(Elsewhere):
        @torch.no_grad()
        def step(self):
            for p in self.param_groups[0]["params"]:
                p.add_(p.grad, alpha=-1e200)

    for model in models(optimizer=Wild):
        with pytest.raises(ValueError, match=r"in epoch 1\. Try a smaller learning rate \(lr\)"):
            model.fit(X, y)


class Fails(Exception):
    """An error of the user's own."""


def note_of(raised):
    (note,) = (n for n in raised.value.__notes__ if n.startswith("sktorch_linreg"))
    return note


@pytest.mark.parametrize("error", [Fails, AssertionError, KeyError, ZeroDivisionError, ValueError])
@pytest.mark.parametrize("where", ["__init__", "step", "first step"])
def test_errors_of_an_optimizer_keep_their_type(error, where):
    class Broken(Descent):
        def __init__(self, params, lr=0.1):
            if where == "__init__":
                raise error("not today")
            super().__init__(params, lr)
            self.n_steps = 0

        def step(self, closure=None):
            self.n_steps += 1
            if where == "first step" or self.n_steps > 6:
                raise error("not today")
            super().step()

    for model in models(optimizer=Broken):
        with pytest.raises(error, match="not today") as raised:
            model.fit(X, y)
        assert "Broken, which was given as the parameter 'optimizer'" in note_of(raised)
        assert not hasattr(model, "n_iter_")


def test_sparse_gradients_are_asked_for_in_vain():
    for model in models(optimizer=torch.optim.SparseAdam):
        with pytest.raises(RuntimeError, match="does not support dense gradients") as raised:
            model.fit(X, y)
        assert "SparseAdam, which was given as the parameter 'optimizer'" in note_of(raised)


@pytest.mark.parametrize("error", [Fails, AssertionError, KeyError, RuntimeError, TypeError])
@pytest.mark.parametrize("where", ["__init__", "forward", "later"])
@pytest.mark.parametrize("kind", ["dense", "sparse", "own optimizer"])
def test_errors_of_a_loss_keep_their_type(error, where, kind):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            if where == "__init__":
                raise error("not today")
            self.n_calls = 0

        def forward(self, prediction, target):
            self.n_calls += 1
            if where == "forward" or self.n_calls > 7:
                raise error("not today")
            return ((prediction - target) ** 2).mean()

    rows = sparse.csr_matrix(X) if kind == "sparse" else X
    for model in models(loss=Broken, optimizer=Calls if kind == "own optimizer" else "adam"):
        with pytest.raises(error, match="not today") as raised:
            model.fit(rows, y)
        assert "Broken, which was given as the parameter 'loss'" in note_of(raised)


@pytest.mark.parametrize("error", [Fails, ZeroDivisionError, TypeError, ValueError])
def test_errors_of_a_schedule_keep_their_type(error):
    def rate(epoch):
        if epoch > 2:
            raise error("not today")
        return 1.0

    class Broken(torch.optim.lr_scheduler.LRScheduler):
        def get_lr(self):
            return [rate(self.last_epoch)]

    schedules = (
        {"lr_schedule": torch.optim.lr_scheduler.LambdaLR, "lr_schedule__lr_lambda": rate},
        {"lr_schedule": Broken},
    )
    for schedule in schedules:
        for model in models(optimizer="adam", **schedule):
            with pytest.raises(error, match="not today") as raised:
                model.fit(X, y)
            assert "which was given as the parameter 'lr_schedule'" in note_of(raised)


def test_a_loss_without_a_gradient():
    class Detached(nn.Module):
        def forward(self, prediction, target):
            return ((prediction - target) ** 2).mean().detach()

    for model in models(loss=Detached, optimizer="adam"):
        with pytest.raises(RuntimeError, match="does not require grad") as raised:
            model.fit(X, y)
        assert "Detached, which was given as the parameter 'loss'" in note_of(raised)


class MeanOrSum(nn.Module):
    def __init__(self, reduction="mean"):
        super().__init__()
        assert reduction in ("mean", "sum")
        self.reduction = reduction

    def forward(self, prediction, target):
        return getattr((prediction - target) ** 2, self.reduction)()


class Always(nn.Module):
    """Takes a reduction that it does not mind."""

    def __init__(self, reduction="mean"):
        super().__init__()

    def forward(self, prediction, target):
        return ((prediction - target) ** 2).mean()


@pytest.mark.parametrize("loss", [MeanOrSum, Always])
def test_losses_that_only_give_a_mean(loss):
    # without standardisation, where a loss of the user's sees what squared error sees
    settings = {"optimizer": "adam", "lr": 0.1, "standardize": False}
    named = models(**settings)
    for own, squared in zip(models(loss=loss, **settings), named, strict=True):
        assert_allclose(own.fit(X, y).predict(X), squared.fit(X, y).predict(X), rtol=1e-9)
        with pytest.raises(
            ValueError, match="returns a single mean, so sample_weight cannot be applied"
        ):
            own.fit(X, y, sample_weight=np.arange(1.0, 121))


def test_a_loss_that_returns_no_tensor():
    class Floats(nn.Module):
        def forward(self, prediction, target):
            return float(((prediction - target) ** 2).mean())

    class Rows(nn.Module):
        def forward(self, prediction, target):
            return (prediction - target) ** 2

    for loss in (Floats, Rows):
        for model in models(loss=loss, optimizer="adam"):
            with pytest.raises(ValueError, match="return one number as a tensor"):
                model.fit(X, y)


# -- callbacks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Fails, KeyError, AttributeError])
@pytest.mark.parametrize(
    "method",
    ["initialize", "on_train_begin", "on_epoch_begin", "on_batch_end", "on_grad_computed",
     "on_epoch_end", "on_train_end"],
)  # fmt: skip
def test_errors_of_a_callback_keep_their_type(error, method):
    def broken(self, *args, **kwargs):
        raise error("not today")

    cls = type("Broken", (Callback,), {method: broken})
    for model in models(callbacks=[cls()], optimizer="adam"):
        with pytest.raises(error, match="not today") as raised:
            model.fit(X, y)
        assert "which was given as the parameter 'callbacks'" in note_of(raised)
        assert not hasattr(model, "n_iter_")


class Sets(Callback):
    """Sets all weights at the end."""

    def on_train_end(self, net, **kwargs):
        with torch.no_grad():
            for parameter in net.module_.parameters():
                parameter.fill_(0.5)


class Notes(Callback):
    """Keeps what the weights are at the end."""

    def on_train_end(self, net, **kwargs):
        self.weights = [p.detach().clone().numpy() for p in net.module_.parameters()]


@pytest.mark.parametrize("optimizer", ["sgd", torch.optim.Rprop, "lbfgs"])
def test_what_a_callback_sets_at_the_end_stays(optimizer):
    for model in models(
        optimizer=optimizer, early_stopping=True, callbacks=[Sets()], standardize=False
    ):
        model.set_params(batch_size=None if optimizer == "lbfgs" else 30)
        model.fit(X, y)
        weights = [p.detach().numpy() for p in model.module_.parameters()]
        assert all((w == 0.5).all() for w in weights)
        if isinstance(model, TorchLinearRegressor):
            assert_array_equal(model.coef_, [0.5, 0.5, 0.5])


def test_the_best_weights_are_there_when_training_ends():
    notes = Notes()
    for model in models(optimizer="sgd", lr=1.5, early_stopping=True, callbacks=[notes]):
        model.set_params(standardize=False, max_epochs=30, lr=0.3).fit(X, y)
        assert model.validation_loss_curve_[-1] > model.best_loss_
        weights = [p.detach().numpy() for p in model.module_.parameters()]
        for mine, seen in zip(weights, notes.weights, strict=True):
            assert_array_equal(mine, seen)


def test_a_checkpoint_that_is_loaded_at_the_end_is_the_model(tmp_path):
    # by this score the first epoch is the best
    mine = EpochScoring(lambda net, X, y: -len(net.history), name="mine", lower_is_better=False)
    keep = Checkpoint(monitor="mine_best", dirname=tmp_path, load_best=True)
    end = TrainEndCheckpoint(dirname=tmp_path)
    for model in models(optimizer="sgd", lr=0.05, early_stopping=True, callbacks=[mine, keep, end]):
        model.fit(X, y)
        for file in ("params.pt", "train_end_params.pt"):
            found = torch.load(tmp_path / file)
            for name, value in model.net_.module_.state_dict().items():
                assert_array_equal(found[name].numpy(), value.numpy())


# -- numbers --------------------------------------------------------------------------------------

INTEGERS = [np.int64, np.int32, np.uint8, np.int16]
# parameters that take integers, and their values
COUNTS = {
    "batch_size": 16, "max_epochs": 4, "n_iter_no_change": 2, "verbose": 0, "checkpoint_every": 2,
    "random_state": 3,
}  # fmt: skip
REALS = {
    "lr": 0.125, "alpha": 0.25, "l1_ratio": 0.5, "tol": 0.0625, "validation_fraction": 0.25,
}  # fmt: skip


@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_of_numpy(kind):
    for plain, given in zip(models(**COUNTS), models(**COUNTS), strict=True):
        given.set_params(**{k: kind(v) for k, v in COUNTS.items()})
        assert_array_equal(given.fit(X, y).predict(X), plain.fit(X, y).predict(X))
        assert type(given.get_params()["batch_size"]) is kind


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_real_numbers_of_any_kind(kind):
    settings = {**REALS, "early_stopping": True, "optimizer": "adam"}
    for plain, given in zip(models(**settings), models(**settings), strict=True):
        given.set_params(**{k: kind(v) for k, v in REALS.items()})
        assert_array_equal(given.fit(X, y).predict(X), plain.fit(X, y).predict(X))


def test_booleans_of_numpy():
    names = ("early_stopping", "shuffle", "standardize", "warm_start")
    for model in models(optimizer="adam", early_stopping=np.True_):
        assert not hasattr(model, "partial_fit")
        assert hasattr(model.set_params(early_stopping=np.False_), "partial_fit")
    for value in (True, False):
        settings = dict.fromkeys(names, value)
        for plain, given in zip(models(**settings), models(**settings), strict=True):
            given.set_params(**{name: np.bool_(value) for name in names})
            assert_array_equal(given.fit(X, y).predict(X), plain.fit(X, y).predict(X))


OPTIONS = [
    ("adam", {"optimizer__betas": (0.5, 0.75), "optimizer__amsgrad": True}),
    ("adamw", {"optimizer__weight_decay": 0.25, "optimizer__eps": 2.0**-20}),
    ("sgd", {"optimizer__momentum": 0.5, "optimizer__nesterov": True}),
    ("sgd", {"optimizer__momentum": 0.5, "optimizer__dampening": 0}),
    ("rmsprop", {"optimizer__alpha": 0.5, "optimizer__centered": True}),
    ("adam", {"lr_schedule": "cosine_restarts", "lr_schedule__T_0": 2, "lr_schedule__T_mult": 2}),
    ("adam", {"lr_schedule": "step", "lr_schedule__step_size": 2, "lr_schedule__gamma": 0.5}),
    ("adam", {"lr_schedule": "linear", "lr_schedule__total_iters": 3}),
    ("adam", {"lr_schedule": "plateau", "lr_schedule__patience": 1}),
    ("adam", {"lr_schedule": "one_cycle", "lr_schedule__three_phase": True}),
    (torch.optim.ASGD, {"optimizer__t0": 10.0, "optimizer__weight_decay": 0.5}),
    ("adam", {"loss": "huber", "loss__delta": 0.5}),
    ("adam", {"loss": "quantile", "loss__quantile": 0.25}),
]


def as_numpy(value):
    if isinstance(value, tuple):
        return tuple(map(as_numpy, value))
    kinds = {bool: np.bool_, int: np.int64, float: np.float32}
    return kinds[type(value)](value) if type(value) in kinds else value


@pytest.mark.parametrize(("optimizer", "options"), OPTIONS, ids=str)
def test_options_that_are_numbers_of_numpy(optimizer, options):
    for plain, given in zip(
        models(optimizer=optimizer, **options), models(optimizer=optimizer, **options), strict=True
    ):
        given.set_params(**{k: as_numpy(v) for k, v in options.items() if "__" in k})
        assert_array_equal(given.fit(X, y).predict(X), plain.fit(X, y).predict(X))
        if options.get("lr_schedule") != "one_cycle":
            # which ends with the epochs of fit
            given.partial_fit(X, y)


# -- what a loss of the user's own is -------------------------------------------------------------


class RMSE(nn.Module):
    def __init__(self, reduction="mean", eps=1e-8):
        super().__init__()
        self.mse, self.eps = nn.MSELoss(reduction=reduction), eps

    def forward(self, prediction, target):
        return (self.mse(prediction, target) + self.eps).sqrt()


class CentredByTheBatch(nn.Module):
    """One value per row, but each sees the mean of all."""

    def __init__(self, reduction="mean"):
        super().__init__()
        self.reduction = reduction

    def forward(self, prediction, target):
        error = prediction - target
        values = (error - 0.5 * error.mean()).square()
        return values if self.reduction == "none" else values.mean()


class NoneAlone(nn.Module):
    """A loss that knows one reduction."""

    def __init__(self, reduction="none"):
        super().__init__()
        if reduction != "none":
            raise ValueError("only 'none'")

    def forward(self, prediction, target):
        return (prediction - target).square()


class SumByDefault(nn.MSELoss):
    def __init__(self, reduction="sum"):
        super().__init__(reduction=reduction)


def outliers():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 1))
    y = X[:, 0].copy()
    y[::10] += 20
    return X, y


def test_a_root_of_a_mean_is_not_a_mean_of_roots():
    X, y = outliers()
    settings = {"optimizer": "adam", "lr": 0.05, "max_epochs": 3000, "random_state": 0}
    model = TorchLinearRegressor(loss=RMSE, **settings).fit(X, y)
    exact = TorchLinearRegressor().fit(X, y)
    np.testing.assert_allclose(model.intercept_, exact.intercept_, atol=1e-3)
    np.testing.assert_allclose(model.coef_, exact.coef_, atol=1e-3)
    np.testing.assert_allclose(
        model.loss_, np.sqrt(np.mean((model.predict(X) - y) ** 2)), rtol=1e-5
    )


@pytest.mark.parametrize("early_stopping", [False, True])
def test_the_root_of_a_mean_batch_by_batch(early_stopping):
    X, y = outliers()
    settings = {"lr": 0.01, "max_epochs": 3, "tol": None, "random_state": 0, "alpha": 0.0}
    model = TorchMLPRegressor(
        loss=RMSE, hidden_layer_sizes=(), batch_size=50, early_stopping=early_stopping,
        dtype="float64", **settings,
    ).fit(X, y)  # fmt: skip

    class Count(Callback):
        def on_batch_end(self, net, loss, training, **kwargs):
            self.seen = [*getattr(self, "seen", []), float(loss)] if training else self.seen

    heard = Count()
    again = clone(model).set_params(callbacks=[heard]).fit(X, y)
    np.testing.assert_allclose(again.coefs_[0], model.coefs_[0], rtol=1e-10)
    sizes = [50] * 5 + [20] if early_stopping else [50] * 6
    curve = np.average(np.reshape(heard.seen, (3, 6)), axis=1, weights=sizes)
    np.testing.assert_allclose(model.loss_curve_, curve, rtol=1e-10)


@pytest.mark.parametrize(
    ("loss", "weighed"),
    [
        (nn.MSELoss, True),
        (nn.PoissonNLLLoss, True),
        (NoneAlone, True),
        (SumByDefault, True),
        (RMSE, False),
        (CentredByTheBatch, False),
    ],
)
def test_weights_are_taken_where_a_loss_goes_row_by_row(loss, weighed):
    X, y = outliers()
    weight = np.random.default_rng(1).integers(1, 4, len(X))
    model = TorchLinearRegressor(
        loss=loss, optimizer="adam", lr=0.05, max_epochs=50, random_state=0
    )
    if not weighed:
        with pytest.raises(
            ValueError, match=f"{loss.__name__} returns a single mean, so sample_weight"
        ):
            model.fit(X, np.abs(y), weight)
        return
    model.fit(X, np.abs(y), weight)
    repeated = clone(model).fit(np.repeat(X, weight, axis=0), np.repeat(np.abs(y), weight))
    np.testing.assert_allclose(model.coef_, repeated.coef_, rtol=1e-6)


def plain(cls):
    """The same forward in a module that is no subclass of torch's losses."""

    class Plain(nn.Module):
        def __init__(self, reduction="mean"):
            super().__init__()
            self.inner = cls(reduction=reduction)

        def forward(self, prediction, target):
            return self.inner(prediction, target)

    return Plain


class MSLE(nn.MSELoss):
    def forward(self, prediction, target):
        return super().forward(torch.log1p(prediction.clamp(min=-0.99)), torch.log1p(target))


class MAPE(nn.L1Loss):
    def forward(self, prediction, target):
        return super().forward(prediction / target, torch.ones_like(target))


class HuberOfRoots(nn.HuberLoss):
    def forward(self, prediction, target):
        return super().forward(prediction.clamp(min=1e-3).sqrt(), target.sqrt())


@pytest.mark.parametrize("loss", [MSLE, MAPE, HuberOfRoots])
@pytest.mark.parametrize("cls", [TorchLinearRegressor, TorchMLPRegressor])
@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_subclasses_of_torchs_losses_see_the_targets_as_they_are(loss, cls, optimizer):
    rng = np.random.default_rng(0)
    X = rng.uniform(size=(100, 3))
    y = np.exp(X @ [1, 2, 1] + 0.2 * rng.normal(size=100))
    model = cls(optimizer=optimizer, max_epochs=20, random_state=0, dtype="float64")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        expected = clone(model).set_params(loss=plain(loss)).fit(X, y)
        found = clone(model).set_params(loss=loss).fit(X, y)
    np.testing.assert_array_equal(found.predict(X), expected.predict(X))
    assert found.loss_curve_ == expected.loss_curve_


class Watched(nn.Module):
    """Keeps what it was called with."""

    def __init__(self):
        super().__init__()
        self.register_buffer("metric", torch.eye(1))
        Watched.seen = []

    def forward(self, prediction, target):
        Watched.seen.append((self.training, len(prediction), self.metric.dtype))
        error = prediction - target
        return ((error @ self.metric) * error).mean()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("heard", [False, True])
@pytest.mark.parametrize("optimizer", ["adam", torch.optim.Adam, "lbfgs"])
def test_the_mode_and_precision_of_a_loss_are_those_of_the_fit(dtype, heard, optimizer):
    class Listen(Callback):
        def on_batch_end(self, net, **kwargs):
            pass

    X, y = outliers()
    TorchMLPRegressor(
        loss=Watched, early_stopping=True, batch_size=100, max_epochs=2, tol=None, dtype=dtype,
        optimizer=optimizer, callbacks=[Listen()] if heard else None, random_state=0,
    ).fit(X, y)  # fmt: skip
    fitting = Watched.seen[-4:]
    assert {mode for mode, n, _ in Watched.seen if n == 30} == {False}
    assert {mode for mode, n, _ in Watched.seen if n in (100, 70, 270)} == {True}
    assert {kind for _, _, kind in fitting} == {getattr(torch, dtype)}


class MeanAndLogVariance(nn.Module):
    def forward(self, p, t):
        return (p[:, 1] + (t[:, 0] - p[:, 0]) ** 2 * torch.exp(-p[:, 1])).mean()


class OneTermPerTarget(nn.Module):
    def forward(self, p, t):
        a, b, c = (p - t).unbind(1)
        return (a**2 + 5 * b**2 + c.abs()).mean()


@pytest.mark.parametrize(("loss", "k"), [(MeanAndLogVariance, 2), (OneTermPerTarget, 3)])
def test_a_loss_is_tried_on_the_number_of_targets(loss, k):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    Y = X @ rng.normal(size=(4, k))
    model = TorchMLPRegressor(loss=loss, max_epochs=3, tol=None, random_state=0).fit(X, Y)
    assert np.isfinite(model.loss_)
    with pytest.raises((ValueError, IndexError)) as raised:
        clone(model).fit(X, Y[:, 0])
    assert any("parameter 'loss'" in note for note in raised.value.__notes__)
