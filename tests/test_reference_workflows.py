"""Five published workflows of linear regression in PyTorch, with their figures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import make_regression
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error, mean_squared_error
from sklearn.model_selection import train_test_split

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor, TrainingDivergedError

DATA = Path(__file__).parents[1] / "examples" / "data"


def read(name):
    return np.loadtxt(DATA / name, delimiter=",", skiprows=1, dtype=np.float32)


def plain(**parameters):
    """An estimator that does what the tutorials do: data as they are."""
    return TorchLinearRegressor(standardize=False, **parameters)


# -- A. mini-batch SGD against LinearRegression ---------------------------------------------------


@pytest.fixture(scope="module")
def four_features():
    rng = np.random.RandomState(0)
    X = rng.randn(1000, 4).astype(np.float32)
    y = X @ rng.randn(4).astype(np.float32) + 0.1 * rng.randn(1000).astype(np.float32)
    return X, y


@pytest.fixture(scope="module")
def sgd_fit(four_features):
    settings = {"optimizer": "sgd", "lr": 0.01, "batch_size": 128, "shuffle": False}
    return plain(**settings, max_epochs=100, random_state=0).fit(*four_features)


def test_a_loss_falls_to_the_noise_variance(sgd_fit):
    every_fifth = sgd_fit.loss_curve_[::5]
    assert every_fifth[0] > 1.0
    assert np.all(np.diff(every_fifth[:7]) < 0)
    assert every_fifth[7] == pytest.approx(0.0095, rel=0.1)
    assert sgd_fit.loss_curve_[-1] == pytest.approx(0.0095, rel=0.1)


def test_a_agrees_with_linear_regression(sgd_fit, four_features):
    X, y = four_features
    exact = LinearRegression().fit(X, y)
    np.testing.assert_allclose(sgd_fit.coef_, exact.coef_, atol=1e-3)
    assert abs(sgd_fit.intercept_) < 0.005
    ours = mean_absolute_error(y, sgd_fit.predict(X))
    assert ours == pytest.approx(mean_absolute_error(y, exact.predict(X)), rel=0.01)


def test_a_flat_and_column_targets_train_alike(sgd_fit, four_features):
    X, y = four_features
    column = sgd_fit.__class__(**sgd_fit.get_params()).fit(X, y[:, None])
    assert column.coef_.shape == (1, 4)
    np.testing.assert_array_equal(column.coef_[0], sgd_fit.coef_)
    assert column.loss_curve_ == sgd_fit.loss_curve_


def test_a_weights_set_by_hand_predict():
    model = TorchLinearRegressor()
    model.coef_, model.intercept_ = np.array([1.0, 2.0, 3.0, 4.0]), 0.5
    predicted = model.predict([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 2.0]])
    assert isinstance(predicted, np.ndarray)
    np.testing.assert_array_equal(predicted, [10.5, 8.5])


# -- B. one line, epoch by epoch ------------------------------------------------------------------


@pytest.fixture(scope="module")
def line():
    noise = torch.randint(-8, 9, (50, 1), generator=torch.Generator().manual_seed(71))
    X = np.arange(1, 51, dtype=np.float32)[:, None]
    assert noise.sum() == 0
    return X, 2 * X + 1 + noise.numpy().astype(np.float32)


def test_b_every_epoch_of_the_published_table(line):
    table = read("line_fit_sgd_50_epochs.csv")
    model = plain(optimizer="sgd", lr=0.001, max_epochs=50, random_state=59, record_path=True).fit(
        *line
    )
    assert len(table) == len(model.loss_curve_) == model.n_iter_ == 50
    np.testing.assert_allclose(model.loss_curve_, table[:, 1], rtol=1e-4)
    np.testing.assert_allclose(model.coef_path_[:50].ravel(), table[:, 2], atol=1e-5)
    np.testing.assert_allclose(model.intercept_path_[:50].ravel(), table[:, 3], atol=1e-5)
    assert model.coef_path_.shape == (51, 1, 1)
    assert model.coef_.item() == pytest.approx(1.98381913, abs=1e-5)
    assert model.intercept_.item() == pytest.approx(1.05575156, abs=1e-5)


def test_b_starts_where_nn_linear_does(line):
    path = plain(optimizer="sgd", max_epochs=1, random_state=59, record_path=True).fit(*line)
    assert path.coef_path_[0].item() == pytest.approx(0.10597813, abs=5e-9)
    assert path.intercept_path_[0].item() == pytest.approx(0.96379614, abs=5e-9)


def test_b_diverges_at_ten_times_the_rate(line):
    with pytest.raises(TrainingDivergedError, match=r"learning rate 0\.01.*lr=0\.001") as error:
        plain(optimizer="sgd", lr=0.01, max_epochs=50, random_state=59).fit(*line)
    assert error.value.lr == 0.01
    assert 1 < error.value.epoch < 50


# -- C. several targets at once -------------------------------------------------------------------


def test_c_hand_written_gradients_and_sgd_agree():
    table = read("crop_yields.csv")
    X, Y = table[:, :3], table[:, 3:]
    model = plain(optimizer="sgd", lr=1e-5, max_epochs=100, random_state=0, record_path=True)
    model.fit(X, Y)
    W = model.coef_path_[0].astype(np.float64)
    b = model.intercept_path_[0].astype(np.float64)
    for epoch in range(100):
        residual = X @ W.T + b - Y
        assert model.loss_curve_[epoch] == pytest.approx(np.mean(residual**2), rel=1e-4)
        W -= 1e-5 * 2 / residual.size * residual.T @ X
        b -= 1e-5 * 2 / residual.size * residual.sum(axis=0)
    np.testing.assert_allclose(model.coef_, W, rtol=1e-4)
    np.testing.assert_allclose(model.intercept_, b, rtol=1e-3, atol=1e-5)


def test_c_fifteen_rows_in_shuffled_batches_of_five():
    table = np.tile(read("crop_yields.csv"), (3, 1))
    X, Y = table[:, :3], table[:, 3:]
    settings = {"optimizer": "sgd", "lr": 1e-5, "batch_size": 5, "max_epochs": 100}
    model = plain(**settings, random_state=0).fit(X, Y)
    assert model.coef_.shape == (2, 3)
    assert model.loss_curve_[-1] < 0.01 * model.loss_curve_[0]
    assert np.abs(model.predict(X) - Y).mean() < 8


# -- D. Adam, train and validation curves; then a small network -----------------------------------


@pytest.fixture(scope="module")
def one_feature():
    X, y, coef = make_regression(
        n_samples=1200, n_features=1, bias=3.0, noise=2, random_state=42, shuffle=True, coef=True
    )
    assert float(coef) == pytest.approx(4.341, abs=5e-4)
    train = train_test_split(X[:1000], y[:1000], test_size=0.20, random_state=42, shuffle=True)
    return train, (X[1000:], y[1000:])


def test_d_linear_regression_figures(one_feature):
    (X, _, y, _), (X_test, y_test) = one_feature
    for model in (LinearRegression(), TorchLinearRegressor()):
        model.fit(X, y)
        assert float(model.coef_[0]) == pytest.approx(4.3867, abs=5e-5)
        assert float(model.intercept_) == pytest.approx(3.0133, abs=5e-5)
        assert model.score(X_test, y_test) == pytest.approx(0.79438, abs=5e-6)
        assert mean_squared_error(y_test, model.predict(X_test)) == pytest.approx(4.21838, abs=5e-6)


def test_d_ten_thousand_epochs_of_adam(one_feature):
    (X, X_valid, y, y_valid), (X_test, y_test) = one_feature
    model = plain(
        optimizer="adam", lr=0.001, max_epochs=10_000, dtype="float32", random_state=0,
        record_path=True,
    ).fit(X, y)  # fmt: skip
    assert model.loss_curve_[9000] == pytest.approx(3.7720, abs=5e-5)
    valid = np.mean(
        (model.coef_path_[9000] * X_valid[:, 0] + model.intercept_path_[9000] - y_valid) ** 2
    )
    assert valid == pytest.approx(4.0963, abs=5e-5)
    assert float(model.coef_[0]) == pytest.approx(4.3867, abs=5e-5)
    assert float(model.intercept_) == pytest.approx(3.0133, abs=5e-5)
    assert model.score(X_test, y_test) == pytest.approx(0.79438, abs=1e-5)
    assert mean_squared_error(y_test, model.predict(X_test)) == pytest.approx(4.21837, abs=2e-5)


def test_d_small_network_on_a_sine():
    rng = np.random.default_rng(42)
    X = rng.normal(size=(1000, 1))
    y = np.sin(2 * X[:, 0]) + 0.1 * rng.normal(size=1000)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, random_state=42)
    assert LinearRegression().fit(X, y).score(X_test, y_test) < 0.2
    model = TorchMLPRegressor(
        hidden_layer_sizes=(8, 8, 8), lr=0.001, max_epochs=10_000, batch_size=None, tol=None,
        alpha=0.0, standardize=False, random_state=0,
    ).fit(X, y)  # fmt: skip
    assert model.score(X_test, y_test) == pytest.approx(0.977, abs=0.01)
    assert mean_squared_error(y_test, model.predict(X_test)) == pytest.approx(0.012, abs=0.004)


# -- E. Salammbo: batch, stochastic and mini-batch descent on unscaled data -----------------------


@pytest.fixture(scope="module")
def salammbo():
    table = read("salammbo.csv")
    return table[:, :1], table[:, 1]


def test_e_full_batch_nadam(salammbo):
    X, y = salammbo
    model = plain(
        optimizer="nadam", lr=0.01, max_epochs=250, random_state=4321, record_path=True
    ).fit(X, y)
    assert model.coef_path_[0].item() == pytest.approx(-0.74892461, abs=5e-8)
    assert model.intercept_path_[0].item() == pytest.approx(0.07533669, abs=5e-8)
    assert model.coef_.item() == pytest.approx(0.06756319, abs=1e-6)
    assert model.intercept_.item() == pytest.approx(0.89196694, abs=1e-5)
    assert model.loss_ == pytest.approx(3708.0398, rel=1e-4)
    assert np.mean((model.predict(X) - y) ** 2) == pytest.approx(3551.8, rel=1e-4)


def test_e_standardised_descent_reaches_least_squares(salammbo):
    X, y = salammbo
    exact = TorchLinearRegressor().fit(X, y)
    trained = TorchLinearRegressor(optimizer="nadam", lr=0.01, random_state=4321).fit(X, y)
    for model in (exact, trained):
        assert model.coef_.item() == pytest.approx(0.0683016, rel=5e-6)
        assert model.intercept_.item() == pytest.approx(8.7253, rel=1e-3)
        assert np.mean((model.predict(X) - y) ** 2) == pytest.approx(1892.711, abs=0.01)


@pytest.mark.parametrize(
    ("settings", "rows", "epochs", "falls_to"),
    [
        ({"batch_size": 1}, 15, 20, 1e-4),
        # without shuffling, dropping the last incomplete batch is leaving its rows out
        ({"batch_size": 4, "shuffle": False}, 12, 40, 0.05),
        ({"batch_size": 4}, 15, 100, 1e-4),
    ],
)
def test_e_stochastic_and_mini_batch(salammbo, settings, rows, epochs, falls_to):
    X, y = salammbo
    model = plain(
        optimizer="nadam",
        lr=0.01,
        max_epochs=epochs,
        random_state=4321,
        record_path=True,
        **settings,
    ).fit(X[:rows], y[:rows])
    losses = np.array(model.loss_curve_)
    assert len(losses) == epochs
    assert model.coef_path_.shape == (epochs + 1, 1)
    assert model.intercept_path_.shape == (epochs + 1,)
    assert losses[-1] < falls_to * losses[0]


def test_e_hand_written_gradients(salammbo):
    X, y = salammbo
    lr = 1e-10
    model = plain(
        optimizer="sgd", lr=lr, max_epochs=3, dtype="float64", random_state=4321, record_path=True
    ).fit(X.astype(np.float64), y)
    for epoch in range(3):
        weight, bias = model.coef_path_[epoch], model.intercept_path_[epoch]
        residual = y - (X @ weight + bias)
        step = model.coef_path_[epoch + 1] - weight
        np.testing.assert_allclose(step, lr * 2 / 15 * residual @ X, rtol=1e-6)
        step = model.intercept_path_[epoch + 1] - bias
        np.testing.assert_allclose(step, lr * 2 / 15 * residual.sum(), rtol=1e-6)
