"""Gradient training of the linear model: optimizers, losses, penalties, schedules, stopping."""

import warnings

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse as sp
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import (
    ElasticNet,
    HuberRegressor,
    LinearRegression,
    PoissonRegressor,
    QuantileRegressor,
)
from skorch.callbacks import Callback

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor
from sktorch_linreg._optim.optimizers import OPTIMIZERS
from sktorch_linreg._optim.schedules import SCHEDULES

RATES = {
    "lbfgs": None, "sgd": 0.1, "adam": 0.05, "adamw": 0.05, "nadam": 0.02, "radam": 0.05,
    "rmsprop": 0.01, "adagrad": 0.5, "adadelta": 1.0, "adamax": 0.05,
}  # fmt: skip


def standardised(X):
    return (X - X.mean(axis=0)) / X.std(axis=0)


# -- one objective --------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.01, 1.0])
def test_all_solvers_minimise_one_objective(regression, alpha, weighted, many):
    X, y = regression
    y = np.column_stack([y, y[::-1], y + 2 * X[:, 2]]) if many else y
    w = np.random.default_rng(0).uniform(0.1, 2, len(X)) if weighted else None
    exact = TorchLinearRegressor(alpha=alpha, optimizer="lstsq").fit(X, y, sample_weight=w)
    # the answer itself, from the normal equations of the objective that the docstring states
    weight = np.ones(len(X)) if w is None else w
    Y = y.reshape(len(X), -1)
    x_mean, y_mean = np.average(X, axis=0, weights=weight), np.average(Y, axis=0, weights=weight)
    x_scale = np.sqrt(np.average((X - x_mean) ** 2, axis=0, weights=weight))
    y_scale = np.sqrt(np.average((Y - y_mean) ** 2, axis=0, weights=weight))
    Z, T = (X - x_mean) / x_scale, (Y - y_mean) / y_scale
    gram = Z.T @ (weight[:, None] * Z) / weight.sum() + alpha * Y.shape[1] / 2 * np.eye(6)
    oracle = np.linalg.solve(gram, Z.T @ (weight[:, None] * T) / weight.sum()).T
    size = np.abs(oracle).max()

    def in_standard_units(model):
        return np.atleast_2d(model.coef_) * x_scale / y_scale[:, None]

    lbfgs = TorchLinearRegressor(alpha=alpha, optimizer="lbfgs", random_state=0)
    adam = TorchLinearRegressor(alpha=alpha, optimizer="adam", lr=0.02, lr_schedule="cosine")
    lbfgs.fit(X, y, sample_weight=w)
    adam.set_params(random_state=0).fit(X, y, sample_weight=w)
    np.testing.assert_allclose(in_standard_units(exact), oracle, atol=1e-6 * size)
    np.testing.assert_allclose(in_standard_units(lbfgs), oracle, atol=1e-5 * size)
    np.testing.assert_allclose(in_standard_units(adam), oracle, atol=1e-3 * size)
    assert lbfgs.loss_ == pytest.approx(exact.loss_, rel=1e-6)
    assert adam.loss_ == pytest.approx(exact.loss_, rel=1e-4)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
def test_solvers_agree_without_intercept_and_without_scaling(easy, fit_intercept, standardize):
    X, Y = easy
    common = {"fit_intercept": fit_intercept, "standardize": standardize, "alpha": 0.1}
    exact = TorchLinearRegressor(**common).fit(X, Y)
    trained = TorchLinearRegressor(optimizer="lbfgs", random_state=0, **common).fit(X, Y)
    np.testing.assert_allclose(trained.coef_, exact.coef_, atol=1e-7)
    np.testing.assert_allclose(trained.intercept_, exact.intercept_, atol=1e-7)
    assert trained.loss_ == pytest.approx(exact.loss_, rel=1e-9)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_every_optimizer_by_name_and_by_class(easy, name):
    X, Y = easy
    exact = LinearRegression().fit(X, Y)
    rate = RATES[name]
    extra = {"optimizer__weight_decay": 0.0} if name == "adamw" else {}
    by_name = TorchLinearRegressor(optimizer=name, lr=rate, random_state=0, **extra).fit(X, Y)
    np.testing.assert_allclose(by_name.coef_, exact.coef_, atol=2e-2)
    assert by_name.optimizer_ == name
    if name != "lbfgs":
        by_class = TorchLinearRegressor(
            optimizer=OPTIMIZERS[name], lr=rate, random_state=0, **extra
        ).fit(X, Y)
        np.testing.assert_array_equal(by_class.coef_, by_name.coef_)
        assert by_class.optimizer_ == OPTIMIZERS[name].__name__


def test_default_rate_is_the_optimizers_own(easy):
    X, Y = easy
    default = TorchLinearRegressor(optimizer="nadam", max_epochs=5, random_state=0).fit(X, Y)
    set_to = TorchLinearRegressor(optimizer="nadam", lr=0.002, max_epochs=5, random_state=0)
    np.testing.assert_array_equal(default.coef_, set_to.fit(X, Y).coef_)


def test_optimizer_options_reach_the_optimizer(easy):
    X, Y = easy
    model = TorchLinearRegressor(
        optimizer="sgd", lr=0.1, optimizer__momentum=0.9, optimizer__nesterov=True, max_epochs=3
    ).fit(X, Y)
    group = model.net_.optimizer_.param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"]) == (0.1, 0.9, True)


@pytest.mark.parametrize(
    ("settings", "solver"),
    [
        ({}, "lstsq"), ({"alpha": 1.0}, "lstsq"), ({"positive": True}, "nnls"),
        ({"alpha": 0.1, "l1_ratio": 0.5}, "fista"), ({"loss": "huber"}, "lbfgs"),
        ({"lr": 0.1}, "adam"), ({"batch_size": 32}, "adam"), ({"early_stopping": True}, "adam"),
        ({"lr_schedule": "cosine"}, "adam"), ({"record_path": True}, "adam"),
        ({"callbacks": []}, "adam"), ({"lr": 0.1, "loss": "huber"}, "adam"),
    ],
)  # fmt: skip
def test_auto_takes_the_solver_that_fits(easy, settings, solver):
    assert TorchLinearRegressor(max_epochs=20, **settings).fit(*easy).optimizer_ == solver


# -- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 150, 1000, 32, 1, "auto"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_batch_sizes(easy, batch_size, shuffle):
    X, Y = easy
    model = TorchLinearRegressor(
        optimizer="sgd", lr=0.002, batch_size=batch_size, shuffle=shuffle, max_epochs=60,
        lr_schedule="cosine", random_state=0,
    ).fit(X, Y)  # fmt: skip
    if batch_size == 1:
        np.testing.assert_allclose(model.coef_, LinearRegression().fit(X, Y).coef_, atol=0.1)
    assert model.loss_curve_[-1] < model.loss_curve_[0]
    assert model.n_iter_ == len(model.loss_curve_) == len(model.history_) == 60


def test_mini_batch_descent_is_what_a_hand_written_loop_does(easy):
    X, Y = easy
    w = np.random.default_rng(0).uniform(0.2, 3, len(X))
    model = TorchLinearRegressor(
        optimizer="sgd", lr=0.05, batch_size=32, max_epochs=3, standardize=False, random_state=5,
        record_path=True,
    ).fit(X, Y, sample_weight=w)  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    layer = torch.nn.utils.skip_init(torch.nn.Linear, 4, 3)
    with torch.no_grad():
        layer.weight.uniform_(-0.5, 0.5, generator=generator)
        layer.bias.uniform_(-0.5, 0.5, generator=generator)
    layer = layer.double()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    rows, target = torch.from_numpy(X), torch.from_numpy(Y)
    relative = torch.from_numpy(w / w.mean())
    for epoch in range(3):
        order = torch.randperm(len(X), generator=generator)
        total = 0.0
        for batch in order.split(32):
            optimizer.zero_grad()
            each = (layer(rows[batch]) - target[batch]).square().mean(1)
            loss = (each * relative[batch]).mean()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        assert model.loss_curve_[epoch] == pytest.approx(total / len(X), rel=1e-12)
        np.testing.assert_allclose(model.coef_path_[epoch + 1], layer.weight.detach(), rtol=1e-10)
        np.testing.assert_allclose(
            model.intercept_path_[epoch + 1], layer.bias.detach(), rtol=1e-10
        )


def test_initial_weights_are_those_of_nn_linear(easy):
    X, Y = easy
    torch.manual_seed(11)
    layer = torch.nn.Linear(4, 3)
    for dtype in ("float32", "float64"):
        model = TorchLinearRegressor(
            optimizer="sgd", max_epochs=1, standardize=False, random_state=11, record_path=True,
            dtype=dtype,
        ).fit(X, Y)  # fmt: skip
        np.testing.assert_array_equal(model.coef_path_[0], layer.weight.detach().numpy())
        np.testing.assert_array_equal(model.intercept_path_[0], layer.bias.detach().numpy())


@pytest.mark.parametrize("batch_size", [None, 40])
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("container", [sp.csr_array, sp.csc_matrix, sp.coo_array])
def test_sparse_training_equals_dense(batch_size, standardize, container):
    S = sp.random(150, 12, density=0.3, random_state=0)
    y = S @ np.arange(12.0) + 1.0
    settings = {"optimizer": "sgd", "lr": 0.1, "max_epochs": 20, "random_state": 0}
    settings |= {"batch_size": batch_size, "standardize": standardize}
    sparse = TorchLinearRegressor(**settings).fit(container(S), y)
    dense = TorchLinearRegressor(**settings).fit(S.toarray(), y)
    np.testing.assert_allclose(sparse.loss_curve_[0], dense.loss_curve_[0], rtol=0.2)
    if batch_size is not None:
        np.testing.assert_allclose(sparse.coef_, dense.coef_, rtol=1e-9)
        np.testing.assert_allclose(sparse.loss_curve_, dense.loss_curve_, rtol=1e-9)
        np.testing.assert_allclose(sparse.predict(container(S)), dense.predict(S.toarray()))


# -- losses ---------------------------------------------------------------------------------------


@pytest.fixture
def outliers():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(300, 4)) * [1, 10, 0.1, 1]
    y = X @ [1.0, 0.2, 10.0, -1.0] + rng.standard_t(1.5, size=300)
    return X, y


def test_absolute_error_is_the_median_regression(outliers):
    X, y = outliers
    model = TorchLinearRegressor(loss="absolute_error", random_state=0).fit(X, y)
    exact = QuantileRegressor(quantile=0.5, alpha=0).fit(standardised(X), y)
    np.testing.assert_allclose(model.coef_ * X.std(axis=0), exact.coef_, atol=1e-4)
    # the least absolute residuals are those of the linear programme
    best = np.abs(y - exact.predict(standardised(X))).sum()
    assert np.abs(y - model.predict(X)).sum() == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("alpha", [0.0, 0.02])
def test_quantile_loss_equals_the_linear_programme(outliers, quantile, alpha):
    X, y = outliers
    model = TorchLinearRegressor(
        loss="quantile", loss__quantile=quantile, alpha=alpha, l1_ratio=1.0, random_state=0
    ).fit(X, y)
    target = (y - y.mean()) / y.std()
    exact = QuantileRegressor(quantile=quantile, alpha=alpha).fit(standardised(X), target)
    residual = target - exact.predict(standardised(X))
    pinball = np.mean(np.maximum(quantile * residual, (quantile - 1) * residual))
    assert model.loss_ == pytest.approx(pinball + alpha * np.abs(exact.coef_).sum(), rel=1e-5)
    np.testing.assert_allclose(model.coef_ * X.std(axis=0) / y.std(), exact.coef_, atol=1e-3)


def test_huber_loss_equals_scipy(outliers):
    X, y = outliers
    model = TorchLinearRegressor(loss="huber", loss__delta=0.3, random_state=0).fit(X, y)
    Z, t = standardised(X), (y - y.mean()) / y.std()

    def objective(p):
        r = np.abs(t - Z @ p[:4] - p[4])
        return np.mean(np.where(r <= 0.3, 0.5 * r**2, 0.3 * (r - 0.15)))

    found = scipy.optimize.minimize(objective, np.zeros(5), method="BFGS", options={"gtol": 1e-9})
    assert model.loss_ == pytest.approx(found.fun, rel=1e-7)
    np.testing.assert_allclose(model.coef_ * X.std(axis=0) / y.std(), found.x[:4], atol=1e-5)
    robust = HuberRegressor(alpha=0.0).fit(X, y)
    assert (
        np.abs(model.coef_ - robust.coef_).max()
        < np.abs(LinearRegression().fit(X, y).coef_ - robust.coef_).max()
    )


@pytest.mark.parametrize("weighted", [True, False])
def test_poisson_loss_equals_poisson_regressor(weighted):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 3)) * [1, 100, 0.01]
    y = rng.poisson(np.exp(standardised(X) @ [0.3, -0.5, 0.1] + 1.0)).astype(float)
    w = rng.uniform(0.5, 2, 400) if weighted else None
    model = TorchLinearRegressor(loss="poisson", random_state=0).fit(X, y, sample_weight=w)
    theirs = PoissonRegressor(alpha=0, tol=1e-10, max_iter=1000, solver="newton-cholesky")
    theirs.fit(standardised(X), y, sample_weight=w)
    np.testing.assert_allclose(model.predict(X), theirs.predict(standardised(X)), rtol=1e-5)
    np.testing.assert_allclose(model.coef_ * X.std(axis=0), theirs.coef_, atol=1e-5)


@pytest.mark.parametrize(
    ("loss", "options", "same_as", "same_options"),
    [
        (torch.nn.MSELoss, {}, "squared_error", {}),
        (torch.nn.L1Loss, {}, "absolute_error", {}),
        (torch.nn.HuberLoss, {"loss__delta": 0.4}, "huber", {"loss__delta": 0.4}),
    ],
)
@pytest.mark.parametrize("weighted", [True, False])
def test_loss_classes_equal_their_names(easy, loss, options, same_as, same_options, weighted):
    X, Y = easy
    w = np.random.default_rng(0).uniform(0.5, 2, len(X)) if weighted else None
    settings = {"optimizer": "adam", "lr": 0.01, "max_epochs": 20, "random_state": 0}
    by_class = TorchLinearRegressor(loss=loss, **options, **settings).fit(X, Y, sample_weight=w)
    by_name = TorchLinearRegressor(loss=same_as, **same_options, **settings)
    by_name.fit(X, Y, sample_weight=w)
    np.testing.assert_allclose(by_class.coef_, by_name.coef_, rtol=1e-12)


class LogCosh(torch.nn.Module):
    """A user's loss that only gives the mean."""

    def __init__(self, sharpness=1.0):
        super().__init__()
        self.sharpness = sharpness

    def forward(self, prediction, target):
        return torch.log(torch.cosh(self.sharpness * (prediction - target))).mean()


def test_a_loss_of_the_users_own(easy):
    X, Y = easy
    model = TorchLinearRegressor(loss=LogCosh, loss__sharpness=0.5, random_state=0).fit(X, Y)
    repeated = TorchLinearRegressor(loss=LogCosh, loss__sharpness=0.5, random_state=0)
    repeated.fit(np.repeat(X, 2, axis=0), np.repeat(Y, 2, axis=0))
    np.testing.assert_allclose(repeated.coef_, model.coef_, atol=1e-5)
    np.testing.assert_allclose(model.coef_, LinearRegression().fit(X, Y).coef_, atol=0.05)
    with pytest.raises(ValueError, match="reduction"):
        model.fit(X, Y, sample_weight=np.arange(1.0, 151.0))


# -- penalties ------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop", "adamax", "lbfgs"])
@pytest.mark.parametrize("positive", [True, False])
def test_lasso_has_exact_zeros_under_any_optimizer(regression, optimizer, positive):
    X, y = regression
    settings = {"alpha": 0.3, "l1_ratio": 0.9, "positive": positive}
    rate = {"sgd": 0.1, "adam": 0.01, "rmsprop": 0.001, "adamax": 0.01, "lbfgs": None}[optimizer]
    model = TorchLinearRegressor(
        optimizer=optimizer, lr=rate, max_epochs=3000, random_state=0, **settings
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
    exact = TorchLinearRegressor(**settings).fit(X, y)
    np.testing.assert_array_equal(model.coef_ == 0, exact.coef_ == 0)
    assert (exact.coef_ == 0).any()
    assert not positive or (model.coef_ >= 0).all()
    scale = X.std(axis=0) / y.std()
    np.testing.assert_allclose(model.coef_ * scale, exact.coef_ * scale, atol=1e-3)
    net = ElasticNet(alpha=0.15, l1_ratio=0.9, positive=positive, tol=1e-12)
    net.fit(standardised(X), (y - y.mean()) / y.std())
    np.testing.assert_allclose(exact.coef_ * scale, net.coef_, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "lbfgs"])
def test_positive_under_a_named_optimizer(easy, optimizer):
    X, Y = easy
    rate = None if optimizer == "lbfgs" else 0.05
    model = TorchLinearRegressor(positive=True, optimizer=optimizer, lr=rate, random_state=0)
    model.fit(X, Y)
    np.testing.assert_allclose(
        model.coef_, LinearRegression(positive=True).fit(X, Y).coef_, atol=1e-4
    )
    assert (model.coef_ >= 0).all()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("loss", ["huber", "poisson", "quantile", "absolute_error"])
def test_l1_with_other_losses_agrees_between_solvers(outliers, loss):
    X, y = outliers
    y = np.abs(y) if loss == "poisson" else y
    settings = {"loss": loss, "alpha": 0.05, "l1_ratio": 1.0, "random_state": 0}
    auto = TorchLinearRegressor(**settings).fit(X, y)
    slow = TorchLinearRegressor(
        optimizer="adam", lr=0.02, lr_schedule="cosine", max_epochs=4000, **settings
    ).fit(X, y)
    assert auto.optimizer_ == "lbfgs"
    assert auto.loss_ <= slow.loss_ + 1e-7
    assert slow.loss_ == pytest.approx(auto.loss_, rel=1e-4)


# -- stopping, schedules, paths -------------------------------------------------------------------


def test_plateau_stop_waits_n_iter_no_change_epochs(easy):
    X, Y = easy
    model = TorchLinearRegressor(
        optimizer="sgd", lr=0.3, tol=1e-3, n_iter_no_change=5, random_state=0
    ).fit(X, Y)
    curve = np.array(model.loss_curve_)
    best = np.minimum.accumulate(np.concatenate([[np.inf], curve]))[:-1]
    stale = curve > best - 1e-3
    assert model.n_iter_ < 1000
    assert stale[-6:].all()
    assert not stale[-7]
    assert model.best_loss_ == curve.min()
    assert model.loss_ == curve[-1]


def test_no_tol_runs_every_epoch_in_silence(easy):
    X, Y = easy
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = TorchLinearRegressor(optimizer="sgd", lr=0.5, max_epochs=77).fit(X, Y)
    assert model.n_iter_ == 77


@pytest.mark.parametrize(
    "settings", [{"optimizer": "adam", "tol": 1e-9}, {"optimizer": "lbfgs", "loss": "huber"}]
)
def test_max_epochs_before_tol_warns(regression, settings):
    X, y = regression
    with pytest.warns(ConvergenceWarning, match="Raise max_epochs"):
        TorchLinearRegressor(max_epochs=1 + (settings["optimizer"] == "adam"), **settings).fit(X, y)


def test_early_stopping_restores_the_best_weights(easy):
    X, Y = easy
    seen = []

    class Keep(Callback):
        def on_epoch_end(self, net, **kwargs):
            seen.append([p.detach().clone() for p in net.module_.parameters()])

    model = TorchMLPRegressor(
        hidden_layer_sizes=(64, 64), early_stopping=True, validation_fraction=0.3, lr=0.01,
        max_epochs=300, random_state=0, callbacks=[Keep()],
    ).fit(X, Y)  # fmt: skip
    curve = model.validation_loss_curve_
    best = int(np.argmin(curve))
    assert len(curve) == model.n_iter_ == len(seen) < 300
    assert best < model.n_iter_ - 1
    assert model.best_loss_ == curve[best]
    for ours, then in zip(model.module_.parameters(), seen[best], strict=True):
        torch.testing.assert_close(ours.detach(), then, rtol=0, atol=0)


def test_validation_rows_are_held_out_and_scaled_by_the_rest():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 2)), rng.normal(size=40)
    sizes = {}

    class Look(Callback):
        def on_epoch_end(self, net, dataset_train, dataset_valid, **kwargs):
            sizes.update(
                train=len(dataset_train), valid=len(dataset_valid), mean=dataset_train.X.mean(0)
            )

    model = TorchMLPRegressor(
        early_stopping=True, validation_fraction=0.25, max_epochs=2, callbacks=[Look()]
    ).fit(X, y)
    assert (sizes["train"], sizes["valid"]) == (30, 10)
    np.testing.assert_allclose(model.module_.x_offset, sizes["mean"], atol=1e-7)


@pytest.mark.parametrize("loss", ["squared_error", "huber"])
def test_no_hidden_hold_out(easy, loss):
    """Every row moves the answer, because every row is trained on."""
    X, Y = easy
    X, y = X[:30], Y[:30, 0]
    settings = {"optimizer": "sgd", "lr": 0.1, "max_epochs": 30, "loss": loss, "random_state": 0}
    for batch_size in (None, 7):
        base = TorchLinearRegressor(batch_size=batch_size, shuffle=False, **settings).fit(X, y)
        for row in range(30):
            moved = y.copy()
            moved[row] += 1.0
            other = TorchLinearRegressor(batch_size=batch_size, shuffle=False, **settings)
            assert np.abs(other.fit(X, moved).coef_ - base.coef_).max() > 1e-6


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_every_schedule_by_name(easy, name):
    X, Y = easy
    model = TorchLinearRegressor(
        optimizer="sgd", lr=0.1, lr_schedule=name, max_epochs=30, random_state=0
    ).fit(X, Y)
    rates = [row["lr"] for row in model.history_]
    assert len(rates) == 30
    if name == "constant":
        assert set(rates) == {0.1}
    elif name in ("step", "exponential", "linear", "polynomial", "cosine"):
        assert rates[0] == pytest.approx(0.1)
        assert rates[-1] < 0.03
        assert np.all(np.diff(rates) <= 1e-12)
    elif name != "plateau":
        assert len(set(rates)) > 2


def test_schedule_class_and_options(easy):
    X, Y = easy
    model = TorchLinearRegressor(
        optimizer="sgd", lr=0.1, lr_schedule=torch.optim.lr_scheduler.MultiStepLR,
        lr_schedule__milestones=[2, 4], lr_schedule__gamma=0.5, max_epochs=6,
    ).fit(X, Y)  # fmt: skip
    np.testing.assert_allclose(
        [row["lr"] for row in model.history_], [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]
    )


def test_plateau_schedule_follows_the_monitored_loss(easy):
    X, Y = easy
    model = TorchLinearRegressor(
        optimizer="sgd", lr=0.5, lr_schedule="plateau", lr_schedule__patience=2, max_epochs=60
    ).fit(X, Y)
    assert model.history_[-1]["lr"] < 0.5


@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("batch_size", [None, 64])
def test_recorded_path(easy, many, fit_intercept, batch_size):
    X, Y = easy
    y = Y if many else Y[:, 0]
    model = TorchLinearRegressor(
        record_path=True, lr=0.01, max_epochs=7, fit_intercept=fit_intercept, batch_size=batch_size
    ).fit(X, y)
    assert model.coef_path_.shape == ((8, 3, 4) if many else (8, 4))
    assert model.intercept_path_.shape == ((8, 3) if many and fit_intercept else (8,))
    np.testing.assert_array_equal(model.coef_path_[-1], model.coef_)
    np.testing.assert_array_equal(model.intercept_path_[-1], model.intercept_)
    # in the user's units, the losses of the path are those of the curve
    if batch_size is None:
        scale = Y.std(axis=0) if fit_intercept else np.sqrt((Y**2).mean(axis=0))
        for coef, intercept, loss in zip(
            model.coef_path_, model.intercept_path_, model.loss_curve_, strict=False
        ):
            residual = (X @ coef.T + intercept - y) / (scale if many else scale[0])
            assert np.mean(residual**2) == pytest.approx(loss, rel=1e-9)


def test_squared_error_reads_as_the_share_not_explained(regression):
    X, y = regression
    model = TorchLinearRegressor().fit(X, y)
    assert model.loss_ == pytest.approx(1 - model.score(X, y), rel=1e-9)


# -- going on -------------------------------------------------------------------------------------


def test_warm_start_goes_on_from_the_weights(easy):
    X, Y = easy
    settings = {"optimizer": "sgd", "lr": 0.01, "random_state": 0, "standardize": False}
    twice = TorchLinearRegressor(max_epochs=10, warm_start=True, **settings).fit(X, Y).fit(X, Y)
    once = TorchLinearRegressor(max_epochs=20, **settings).fit(X, Y)
    np.testing.assert_allclose(twice.coef_, once.coef_, rtol=1e-10)
    cold = TorchLinearRegressor(max_epochs=10, **settings).fit(X, Y).fit(X, Y)
    assert np.abs(cold.coef_ - once.coef_).max() > 1e-3


@pytest.mark.parametrize("cls", [TorchLinearRegressor, TorchMLPRegressor])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("through_pickle", [True, False])
def test_partial_fit_keeps_optimizer_and_schedule(easy, cls, optimizer, through_pickle):
    import pickle

    X, Y = easy
    settings = {
        "optimizer": optimizer, "lr": 0.05, "lr_schedule": "exponential", "standardize": False,
        "batch_size": 50, "random_state": 0, "dtype": "float64", "tol": None, "max_epochs": 12,
    }  # fmt: skip
    if cls is TorchMLPRegressor:
        settings |= {"dropout": 0.2, "hidden_layer_sizes": (8,)}
    if optimizer == "sgd":
        settings["optimizer__momentum"] = 0.9
    parts = cls(**settings)
    for _ in range(12):
        parts.partial_fit(X, Y)
        if through_pickle:
            parts = pickle.loads(pickle.dumps(parts))
    whole = cls(**settings).fit(X, Y)
    np.testing.assert_allclose(parts.predict(X), whole.predict(X), rtol=1e-9)
    assert parts.n_iter_ == 1


@pytest.mark.parametrize("cls", [TorchLinearRegressor, TorchMLPRegressor])
@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
def test_predictions_do_not_jump_when_the_statistics_move(cls, loss):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 3)) * [1, 10, 100]
    y = np.exp(X @ [0.1, 0.02, 0.001])
    # a learning rate of almost nothing leaves only what the statistics do
    model = cls(optimizer="sgd", lr=1e-30, loss=loss, dtype="float64", random_state=0, alpha=0.0)
    model.partial_fit(X[:50], y[:50])
    before = model.predict(X)
    model.partial_fit(50 + 3 * X[50:], 10 + 5 * y[50:])
    np.testing.assert_allclose(model.predict(X), before, rtol=1e-9, atol=1e-9)


def test_partial_fit_learns_a_column_that_was_constant_at_first():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 2))
    X[:50, 1] = 3.0
    y = X @ [1.0, 2.0]
    model = TorchLinearRegressor(optimizer="adam", lr=0.05, random_state=0)
    for _ in range(40):
        for part in np.split(np.arange(400), 8):
            model.partial_fit(X[part], y[part])
    np.testing.assert_allclose(model.coef_, [1.0, 2.0], atol=0.05)


def test_partial_fit_merges_running_statistics(easy):
    X, Y = easy
    model = TorchMLPRegressor(random_state=0)
    for rows in np.split(np.arange(150), [10, 11, 80]):
        model.partial_fit(X[rows], Y[rows])
    x, y = model._moments
    np.testing.assert_allclose(x["mean"], X.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(x["deviation"] / 150, X.var(axis=0), rtol=1e-12)
    np.testing.assert_allclose(y["deviation"] / 150, Y.var(axis=0), rtol=1e-12)


def test_changed_schedule_options_take_effect(easy):
    X, Y = easy
    settings = {"optimizer": "sgd", "lr": 1e-3, "random_state": 0}
    model = TorchLinearRegressor(lr_schedule="exponential", lr_schedule__gamma=0.5, **settings)
    for _ in range(2):
        model.partial_fit(X, Y)
    model.set_params(lr_schedule__gamma=0.9)
    for _ in range(2):
        model.partial_fit(X, Y)
    model.set_params(lr_schedule=None)
    del model.lr_schedule__gamma
    model.partial_fit(X, Y)
    rates = [row["lr"] for row in model.history_]
    np.testing.assert_allclose(rates, [1e-3, 5e-4, 1e-3, 9e-4, 1e-3])


@pytest.mark.parametrize("cls", [TorchLinearRegressor, TorchMLPRegressor])
def test_poisson_starts_from_the_mean_count(cls):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3)) * [1, 50, 1000]
    y = 1e6 * rng.poisson(np.exp(standardised(X) @ [0.3, -0.4, 0.2] + 1.0))
    settings = {"lr": 0.01} if cls is TorchMLPRegressor else {"lr": 0.05, "max_epochs": 300}
    model = cls(loss="poisson", random_state=0, **settings).fit(X, y)
    assert model.score(X, y) > 0.2
    net = model.net_.predict(X)[:, 0]
    np.testing.assert_allclose(net, model.predict(X), rtol=1e-4)


def test_warnings_point_at_the_line_of_the_caller(regression):
    X, y = regression
    with pytest.warns(ConvergenceWarning, match="L-BFGS had converged. Raise max_epochs") as seen:
        TorchLinearRegressor(loss="huber", max_epochs=1).fit(X, y)
    assert seen[0].filename == __file__


@pytest.mark.sampled(2)
def test_lbfgs_lasso_on_collinear_columns():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(80, 1))
    X = base + 0.03 * rng.normal(size=(80, 12))
    y = X[:, 0] + 2 * X[:, 1] + 0.1 * rng.normal(size=80)
    exact = TorchLinearRegressor(alpha=1e-3, l1_ratio=0.5).fit(X, y)
    lbfgs = TorchLinearRegressor(alpha=1e-3, l1_ratio=0.5, optimizer="lbfgs", random_state=0)
    assert lbfgs.fit(X, y).loss_ == pytest.approx(exact.loss_, rel=1e-8)
