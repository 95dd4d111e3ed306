"""When training stops and which weights are best: never decided by the rounding of a sum."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, make_regression
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

from sktorch_linreg import BatchedGridSearchCV, TorchLinearRegressor, TorchMLPRegressor
from sktorch_linreg._objective.losses import Loss
from sktorch_linreg._spec import FitSpec, ModelShape, Objective, TrainingOptions
from sktorch_linreg._training.lbfgs_convergence import LbfgsConvergence
from sktorch_linreg._training.stopping import Monitor


def spec_of(tol, patience, dtype, optimizer_class=None):
    """What a monitor is told."""
    training = TrainingOptions(optimizer_class=optimizer_class, n_iter_no_change=patience)
    objective = Objective(Loss("squared_error", torch.square))
    device = torch.device("cpu")
    return FitSpec(objective, ModelShape(), training, True, tol, dtype, device)


class Weights:
    """Stands for parameters; tells which epoch was kept."""

    epoch = 0

    def keep(self, kept, which=True):
        return self.epoch


def run(losses, spec, validates, units=None):
    """The epoch after which training stops, None if it does not, and the one that is kept.

    `units` of the precision, if given, are what counts as rounding.
    """
    return follow(Monitor.of_one(spec, validates), losses, spec, units)


def run_many(losses, spec, validates, units=None):
    """The same by the monitor of many models."""
    return follow(Monitor.of_many([[spec]], validates), losses, spec, units)


def follow(monitor, losses, spec, units):
    weights = Weights()
    if units is not None:
        monitor.rounding = units * torch.finfo(spec.dtype).eps
    for epoch, loss in enumerate(losses, start=1):
        weights.epoch = epoch
        monitor.update(loss, weights)
        if monitor.stopped:
            return epoch, monitor.best_weights
    return None, monitor.best_weights


def curves(rng):
    """Losses that fall to a plateau, stay there for a while, and some of which rise again."""
    size, n = 10.0 ** rng.integers(-8, 9), 60
    fall = np.exp(-np.arange(n) * rng.uniform(0.2, 3.0))
    bottom = rng.uniform(0.0, 1.0)
    rise = np.maximum(0.0, np.arange(n) - rng.integers(20, 80)) * rng.choice([0.0, 1e-3, 0.1])
    return size * (bottom + fall + rise), size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tol", [None, 0.0, 1e-3])
@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("by", [run, run_many])
def test_rounding_moves_no_stop(dtype, tol, validates, by):
    rng = np.random.default_rng(0)
    eps = torch.finfo(dtype).eps
    n_clear = 0
    for _ in range(80):
        losses, size = curves(rng)
        spec = spec_of(None if tol is None else tol * size, int(rng.integers(1, 8)), dtype)
        expected = by(losses, spec, validates)
        # gains that happen to be about as large as what counts are not asked about
        if not all(by(losses, spec, validates, units) == expected for units in (12, 20)):
            continue
        n_clear += 1
        for seed in range(3):
            noise = np.random.default_rng(seed).uniform(-2, 2, len(losses)) * eps
            assert by(losses * (1 + noise), spec, validates) == expected
    assert n_clear > 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tol", [None, 0.0, 1e-3])
@pytest.mark.parametrize("validates", [True, False])
def test_many_models_stop_where_one_does(dtype, tol, validates):
    rng = np.random.default_rng(1)
    for _ in range(80):
        losses, size = curves(rng)
        losses *= 1 + rng.normal(size=len(losses)) * rng.choice([0.0, 1e-16, 1e-7, 1e-2])
        spec = spec_of(None if tol is None else tol * size, int(rng.integers(1, 8)), dtype)
        assert run_many(losses, spec, validates) == run(losses, spec, validates)


@pytest.mark.parametrize("by", [run, run_many])
def test_a_loss_that_stays_is_a_plateau(by):
    for tol in (0.0, 1e-12):
        spec = spec_of(tol, 3, torch.float64)
        # with tol=0 as well, whatever its last bits are
        losses = 1.0 + 1e-16 * np.random.default_rng(0).integers(-3, 4, size=50)
        assert by(losses, spec, False)[0] == 5
    zeros = np.zeros(50)
    assert by(zeros, spec_of(0.0, 3, torch.float64), False)[0] == 5


@pytest.mark.parametrize("by", [run, run_many])
def test_small_gains_add_up(by):
    # each is less than rounding, a hundred of them are not
    losses = 1.0 - 1e-15 * np.arange(400)
    stopped, kept = by(losses, spec_of(None, 20, torch.float64), True)
    assert stopped is None
    assert kept > 350
    # as in MLPRegressor, an epoch has to gain more than tol
    assert by(losses, spec_of(1e-4, 20, torch.float64), True)[0] == 22


def test_a_rise_is_no_convergence():
    convergence = LbfgsConvergence(16 * np.finfo(np.float64).eps)
    for loss, settled in ((3.0, False), (2.0, False), (2.0 + 1e-15, True), (1.0, False)):
        convergence.update(loss, None)
        assert convergence.settled == settled
    convergence.update(2.0, None)
    assert not convergence.settled


def rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 5)) * [1, 10, 0.1, 1, 1] + [0, 100, 0, 5, 0]
    return X, X @ [1.0, 0.2, 3.0, -1.0, 0.0] + np.sin(X[:, 0]) + 0.1 * rng.normal(size=200)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "params",
    [
        {"loss": "absolute_error"},
        {"loss": "absolute_error", "dtype": "float32"},
        {"loss": "absolute_error", "alpha": 0.01, "l1_ratio": 0.5},
        {"loss": "quantile", "loss__quantile": 0.1},
        {"loss": "quantile", "alpha": 0.1},
        {"loss": torch.nn.L1Loss},
        {"loss": "huber"},
        {"loss": "huber", "alpha": 0.1, "l1_ratio": 1.0},
        {"optimizer": "lbfgs"},
    ],
    ids=str,
)
def test_rounding_moves_no_epoch_of_lbfgs(params):
    X, y = rows()
    found = []
    for seed in range(6):
        noise = 1e-15 * np.random.default_rng(seed).normal(size=X.shape) if seed else 0.0
        model = TorchLinearRegressor(random_state=0, **params)
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            found.append(model.fit(X * (1 + noise), y))
    assert {model.n_iter_ for model in found} == {found[0].n_iter_}
    for model in found[1:]:
        np.testing.assert_allclose(model.loss_curve_, found[0].loss_curve_, rtol=1e-5)
        scale = np.abs(found[0].coef_).max()
        np.testing.assert_allclose(model.coef_, found[0].coef_, rtol=0, atol=1e-4 * scale)


# -- L-BFGS that gets worse, or gains nothing for another reason ----------------------------------


def diabetes(**settings):
    """A network, what it warned of, and the objective of its weights without dropout."""
    X, y = load_diabetes(return_X_y=True, scaled=False)
    model = TorchMLPRegressor(hidden_layer_sizes=(16,), max_epochs=50, random_state=0, **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, y)
    error = np.mean((model.predict(X) - y) ** 2) / y.var()
    layers, _ = model._trained_layers()
    penalty = 0.5 * model.alpha * sum(float(np.sum(w.astype(float) ** 2)) for w, _ in layers)
    return model, [str(w.message) for w in caught], error + penalty


LBFGS_THAT_RISES = {
    "dropout": {"optimizer": "lbfgs", "dropout": 0.2},
    "no line search": {"optimizer": "lbfgs", "optimizer__line_search_fn": None, "lr": 0.1},
    "class": {"optimizer": torch.optim.LBFGS, "lr": 0.1},
    "float64": {"optimizer": torch.optim.LBFGS, "lr": 0.3, "dtype": "float64"},
    "no plateau": {"optimizer": torch.optim.LBFGS, "lr": 0.1, "tol": None},
    "with dropout, no plateau": {"optimizer": "lbfgs", "dropout": 0.2, "tol": None},
}


@pytest.mark.parametrize("settings", LBFGS_THAT_RISES.values(), ids=LBFGS_THAT_RISES)
def test_lbfgs_that_rises_warns_and_keeps_the_best_weights(settings):
    model, warned, kept = diabetes(**settings)
    assert len(warned) == 1
    assert "L-BFGS" in warned[0] or "max_epochs" in warned[0]
    if not model.dropout:
        # the loss of an epoch is that of the weights before it
        assert kept <= min(model.loss_curve_) * (1 + 1e-5)


def test_the_best_weights_of_lbfgs_may_be_those_it_began_with():
    X, y = load_diabetes(return_X_y=True, scaled=False)
    # a single step that is far too long
    settings = {"optimizer": torch.optim.LBFGS, "optimizer__max_iter": 1, "lr": 50.0}
    start = TorchMLPRegressor(random_state=0, optimizer="sgd", lr=1e-30, max_epochs=1, tol=None)
    model = TorchMLPRegressor(random_state=0, max_epochs=1, **settings)
    with pytest.warns(ConvergenceWarning, match="max_epochs=1"):
        model.fit(X, y)
    np.testing.assert_allclose(model.predict(X), start.fit(X, y).predict(X), rtol=1e-5)


@pytest.mark.parametrize("max_iter", [1, 2, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_few_iterations_an_epoch_come_as_far_as_many(max_iter, dtype):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 5))
    y = X @ rng.normal(size=5) + rng.standard_t(2, size=100)
    settings = {"loss": "huber", "optimizer": "lbfgs", "random_state": 0, "dtype": dtype}
    many = TorchLinearRegressor(**settings).fit(X, y)
    few = TorchLinearRegressor(optimizer__max_iter=max_iter, **settings).fit(X, y)
    np.testing.assert_allclose(few.coef_, many.coef_, atol=1e-2 if dtype == "float32" else 1e-6)
    assert few.loss_ <= many.loss_ * (1 + 1e-6)


@pytest.mark.since_torch_2_7("has a line search that gains a little")
def test_lbfgs_whose_line_search_has_no_room_says_so():
    _, warned, _ = diabetes(optimizer=torch.optim.LBFGS, optimizer__max_iter=1, tol=None,
                            optimizer__line_search_fn="strong_wolfe", dtype="float64")  # fmt: skip
    assert len(warned) == 1
    assert "Raise optimizer__max_eval" in warned[0]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("loss", ["huber", "poisson", "absolute_error", "quantile"])
@pytest.mark.parametrize("shape", ["twins", "wide"])
@pytest.mark.parametrize("alpha", [0.0, 1e-3])
def test_solvers_by_default_do_not_depend_on_chance(loss, shape, alpha):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 80) if shape == "wide" else (60, 3))
    y = np.abs(X[:, 0] + 0.5 * X[:, 1] + rng.normal(size=60))
    if shape == "twins":
        X = np.column_stack([X, X[:, 0]])
    state = np.random.RandomState(0)
    before = state.get_state()[1].copy()
    models = []
    for seed in (None, 0, 1, state):
        model = TorchLinearRegressor(loss=loss, alpha=alpha, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            models.append(model.fit(X[:40], y[:40]))
    for model in models[1:]:
        np.testing.assert_array_equal(model.coef_, models[0].coef_)
    np.testing.assert_array_equal(state.get_state()[1], before)
    if shape == "twins" and loss in ("huber", "poisson"):
        np.testing.assert_allclose(models[0].coef_[0], models[0].coef_[3], rtol=1e-4)


def test_twins_share_what_huber_regression_gives_them():
    X, y = make_regression(n_samples=100, n_features=3, random_state=0, noise=1.0)
    model = TorchLinearRegressor(loss="huber", fit_intercept=False).fit(np.c_[X, X[:, 0]], y)
    alone = TorchLinearRegressor(loss="huber", fit_intercept=False).fit(X, y)
    np.testing.assert_allclose(model.coef_[[0, 3]], alone.coef_[0] / 2, rtol=1e-5)


def test_named_optimizers_begin_where_torch_does():
    X = np.random.default_rng(0).normal(size=(30, 4))
    one, other = (
        TorchLinearRegressor(optimizer="lbfgs", loss="huber", random_state=seed, max_epochs=1)
        for seed in (0, 1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        losses = [m.fit(X, X[:, 0]).loss_curve_[0] for m in (one, other)]
    assert losses[0] != losses[1]


# -- schedules ------------------------------------------------------------------------------------

PLATEAUS = {
    "adam": {"lr": 0.03},
    "sgd": {"optimizer": "sgd", "lr": 0.1},
    "held out": {"lr": 0.03, "early_stopping": True},
    "patience": {"lr": 0.03, "n_iter_no_change": 3},
    "long patience of the schedule": {"lr": 0.03, "lr_schedule__patience": 25},
    "own factor": {"lr": 0.03, "lr_schedule__factor": 0.5, "lr_schedule__min_lr": 0.001},
    "class": {"lr": 0.03, "lr_schedule": torch.optim.lr_scheduler.ReduceLROnPlateau},
}


@pytest.mark.parametrize("cls", [TorchLinearRegressor, TorchMLPRegressor])
@pytest.mark.parametrize("settings", PLATEAUS.values(), ids=PLATEAUS)
def test_a_plateau_lowers_the_rate_before_it_ends_training(cls, settings):
    X, y = make_regression(200, 8, noise=10, random_state=0)
    settings = {"lr_schedule": "plateau", "tol": 1e-4, "max_epochs": 3000, **settings}
    model = cls(random_state=0, **{"optimizer": "adam", **settings}).fit(X, y)
    rates = [row["lr"] for row in model.history_]
    levels = sorted(set(rates), reverse=True)
    assert rates == sorted(rates, reverse=True)
    assert model.n_iter_ < 3000
    if settings["lr_schedule"] == "plateau":
        # a class has torch's own idea of a plateau
        assert len(levels) >= 4
        # the last of them has had its time as well
        assert rates.count(levels[-1]) > model.n_iter_no_change


@pytest.mark.sampled(2)
@pytest.mark.parametrize("settings", PLATEAUS.values(), ids=PLATEAUS)
def test_plateaus_of_stacked_models_are_those_of_single_ones(settings):
    X, y = make_regression(60, 4, noise=10, random_state=0)
    settings = {"lr_schedule": "plateau", "max_epochs": 400, **settings}
    model = TorchMLPRegressor(hidden_layer_sizes=(5,), random_state=0, dtype="float64", **settings)
    grid = {"alpha": [0.0, 0.1], "tol": [1e-4, 1e-3]}
    if isinstance(settings["lr_schedule"], str):
        grid["lr"] = [0.01, settings["lr"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        one, other = (
            search(model, grid, cv=3).fit(X, y) for search in (GridSearchCV, BatchedGridSearchCV)
        )
    scores = [s.cv_results_["mean_test_score"] for s in (one, other)]
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-6)


def test_without_a_stop_a_plateau_is_torchs_own():
    X, y = make_regression(60, 4, noise=10, random_state=0)
    settings = {"lr": 0.03, "tol": None, "max_epochs": 200, "random_state": 0}
    model = TorchMLPRegressor(lr_schedule="plateau", **settings).fit(X, y)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], lr=0.03)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=3e-5)
    rates = []
    for loss in model.loss_curve_:
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step(loss)
    np.testing.assert_allclose([row["lr"] for row in model.history_], rates)


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 9, 19, 20, 49, 50, 200])
@pytest.mark.parametrize(
    "name",
    ["constant", "step", "exponential", "linear", "polynomial", "cosine", "cosine_restarts",
     "one_cycle", "plateau"],
)  # fmt: skip
def test_schedules_of_few_epochs_train(name, epochs):
    X, y = make_regression(30, 2, random_state=0)
    model = TorchMLPRegressor(hidden_layer_sizes=(2,), lr=0.01, max_epochs=epochs, tol=None)
    rates = [row["lr"] for row in model.set_params(lr_schedule=name).fit(X, y).history_]
    assert max(rates) > 0.001
    if name in ("cosine_restarts", "cosine", "one_cycle", "exponential", "linear") and epochs > 1:
        assert len(set(rates)) > 1
