"""What is particular to the network: layers, attributes, MLPRegressor's meaning of parameters."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

from sktorch_linreg import TorchMLPRegressor
from sktorch_linreg._modules.activations import ACTIVATIONS

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 4)) * [1, 10, 100, 1000] + [0, 5, 50, 1e5]
Y = np.c_[np.sin((X[:, 0]) * 2), X[:, 1] / 10 + 1000] + 0.05 * RNG.normal(size=(300, 2))
QUICK = {"max_epochs": 5, "tol": None, "random_state": 0}


def forward(model, rows):
    """The forward pass that the public attributes describe, in numpy."""
    functions = {
        "relu": lambda h: np.maximum(h, 0),
        "tanh": np.tanh,
        "identity": lambda h: h,
        "logistic": lambda h: 1 / (1 + np.exp(-h)),
        "elu": lambda h: np.where(h > 0, h, np.expm1(h)),
        "silu": lambda h: h / (1 + np.exp(-h)),
        "leaky_relu": lambda h: np.where(h > 0, h, 0.01 * h),
        "gelu": lambda h: ACTIVATIONS["gelu"].make()(torch.from_numpy(h)).numpy(),
    }
    h = rows
    for i, (weight, bias) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        h = h @ weight + bias
        if i < len(model.coefs_) - 1:
            h = functions[model.activation](h)
    return np.exp(h) if model.out_activation_ == "exp" else h


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("standardize", [True, False])
def test_public_weights_are_in_the_units_of_the_user(activation, standardize):
    rows = X if standardize else (X - X.mean(axis=0)) / X.std(axis=0)
    model = TorchMLPRegressor(
        activation=activation, hidden_layer_sizes=(7, 5), standardize=standardize, **QUICK
    ).fit(rows, Y)
    np.testing.assert_allclose(model.predict(rows), forward(model, rows), rtol=1e-7, atol=1e-6)
    assert [c.shape for c in model.coefs_] == [(4, 7), (7, 5), (5, 2)]
    assert [b.shape for b in model.intercepts_] == [(7,), (5,), (2,)]
    assert (model.n_layers_, model.n_outputs_, model.out_activation_) == (4, 2, "identity")


def test_attributes_are_those_of_mlp_regressor():
    ours = TorchMLPRegressor(hidden_layer_sizes=(3,), **QUICK).fit(X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = MLPRegressor(hidden_layer_sizes=(3,), max_iter=2).fit(X, Y)
    for name in ("n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert [c.shape for c in ours.coefs_] == [c.shape for c in theirs.coefs_]
    assert [b.shape for b in ours.intercepts_] == [b.shape for b in theirs.intercepts_]


@pytest.mark.parametrize(
    ("given", "units"),
    [((5, 3), [5, 3]), (4, [4]), ([6], [6]), ((), []), (np.array([2, 2]), [2, 2])],
)
def test_hidden_layer_sizes(given, units):
    model = TorchMLPRegressor(hidden_layer_sizes=given, **QUICK).fit(X, Y)
    assert [c.shape[1] for c in model.coefs_] == [*units, 2]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("trained_in", ["float32", "float64", "auto"])
def test_predictions_have_the_precision_of_the_rows(dtype, trained_in):
    model = TorchMLPRegressor(dtype=trained_in, **QUICK).fit(X, Y)
    out = model.predict(X.astype(dtype))
    assert out.dtype == dtype
    np.testing.assert_allclose(out, forward(model, X), rtol=1e-3, atol=1e-2)
    expected = torch.float32 if trained_in == "float32" else torch.float64
    assert next(model.module_.parameters()).dtype == expected
    np.testing.assert_allclose(
        model.module_(torch.from_numpy(X).to(expected)).detach(),
        model.predict(X),
        rtol=1e-3,
        atol=1e-2,
    )


@pytest.mark.parametrize("shape", [(300,), (300, 1), (300, 2)])
def test_target_shapes(shape):
    target = Y[:, 0] if len(shape) == 1 else Y[:, : shape[1]]
    model = TorchMLPRegressor(**QUICK).fit(X, target)
    assert model.predict(X).shape == shape


@pytest.mark.parametrize("container", [sp.csr_array, sp.csc_matrix, sp.coo_array])
@pytest.mark.parametrize("batch_size", ["auto", None, 64])
def test_sparse_equals_dense(container, batch_size):
    S = sp.random(250, 30, density=0.2, random_state=0)
    y = np.asarray(S.sum(axis=1)).ravel()
    settings = {"hidden_layer_sizes": (6,), "dtype": "float64", "batch_size": batch_size, **QUICK}
    sparse = TorchMLPRegressor(**settings).fit(container(S), y)
    dense = TorchMLPRegressor(**settings).fit(S.toarray(), y)
    np.testing.assert_allclose(sparse.predict(container(S)), dense.predict(S.toarray()), rtol=1e-8)
    np.testing.assert_allclose(sparse.loss_curve_, dense.loss_curve_, rtol=1e-8)


def test_alpha_is_a_penalty_on_all_weights_and_no_intercept():
    model = TorchMLPRegressor(
        hidden_layer_sizes=(3,), activation="tanh", alpha=0.5, optimizer="lbfgs", max_epochs=200,
        tol=None, dtype="float64", standardize=False, random_state=0,
    )  # fmt: skip
    rows, target = (X - X.mean(axis=0)) / X.std(axis=0), Y - Y.mean(axis=0)
    model.fit(rows, target)
    loss = np.mean((target - model.predict(rows)) ** 2)
    penalty = 0.25 * sum(np.sum(c**2) for c in model.coefs_)
    assert model.loss_ == pytest.approx(loss + penalty, rel=1e-6)


def test_lasso_on_a_network_has_exact_zeros():
    model = TorchMLPRegressor(alpha=0.05, l1_ratio=1.0, lr=0.01, random_state=0).fit(X, Y)
    assert (model.coefs_[0] == 0).mean() > 0.5
    assert model.score(X, Y) > 0.2


def test_stopping_is_that_of_mlp_regressor():
    """More than n_iter_no_change epochs in a row that do not gain tol."""
    model = TorchMLPRegressor(lr=0.01, tol=1e-3, n_iter_no_change=3, random_state=0).fit(X, Y)
    best, stale, stops = np.inf, 0, []
    for epoch, loss in enumerate(model.loss_curve_, start=1):
        stale = stale + 1 if loss > best - 1e-3 else 0
        best = min(best, loss)
        stops += [epoch] if stale > 3 else []
    assert stops == [model.n_iter_] == [len(model.loss_curve_)]
    with pytest.warns(ConvergenceWarning):
        TorchMLPRegressor(max_epochs=1, random_state=0).fit(X, Y)


def test_warm_start_and_partial_fit_append_to_the_curves():
    model = TorchMLPRegressor(warm_start=True, early_stopping=True, **QUICK).fit(X, Y)
    first = list(model.loss_curve_)
    model.fit(X, Y)
    assert len(model.loss_curve_) == len(model.validation_loss_curve_) == 10
    assert model.loss_curve_[:5] == first
    assert model.n_iter_ == 5
    assert [row["epoch"] for row in model.history_] == list(range(1, 11))
    model = TorchMLPRegressor(random_state=0).partial_fit(X, Y).partial_fit(X, Y)
    assert (len(model.loss_curve_), model.n_iter_) == (2, 1)


def test_partial_fit_takes_a_new_learning_rate():
    model = TorchMLPRegressor(optimizer="sgd", lr=0.01, random_state=0).partial_fit(X, Y)
    model.set_params(lr=0.5).partial_fit(X, Y)
    assert [row["lr"] for row in model.history_] == [0.01, 0.5]
    model.set_params(optimizer="adam", optimizer__betas=(0.5, 0.9)).partial_fit(X, Y)
    assert model.net_.optimizer_.param_groups[0]["betas"] == (0.5, 0.9)
    assert model.optimizer_ == "adam"


def test_dropout_is_for_training_alone():
    model = TorchMLPRegressor(dropout=0.5, **QUICK).fit(X, Y)
    np.testing.assert_array_equal(model.predict(X), model.predict(X))
    plain = TorchMLPRegressor(**QUICK).fit(X, Y)
    assert np.abs(model.predict(X) - plain.predict(X)).max() > 1e-6
    assert not model.module_.training


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "loss", ["squared_error", "absolute_error", "huber", "quantile", "poisson"]
)
@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_every_loss_trains(loss, optimizer):
    target = np.abs(Y[:, 0]) if loss == "poisson" else Y[:, 0]
    model = TorchMLPRegressor(
        loss=loss, optimizer=optimizer, hidden_layer_sizes=(20,), max_epochs=150, tol=None,
        lr=0.02 if optimizer == "adam" else None, random_state=0,
    ).fit(X, target)  # fmt: skip
    assert model.loss_curve_[-1] < model.loss_curve_[0]
    if loss != "poisson":
        assert model.score(X, target) > 0.7
    else:
        assert (model.predict(X) > 0).all()


def test_learns_a_sine():
    x = np.linspace(-3, 3, 500)[:, None] * 1e4 + 5e5
    target = 1e3 * np.sin((x[:, 0] - 5e5) / 1e4 * 2) - 3e6
    model = TorchMLPRegressor(hidden_layer_sizes=(64, 64), lr=0.005, random_state=0).fit(x, target)
    assert model.score(x, target) > 0.99


def test_large_predictions_go_block_by_block(monkeypatch):
    from sktorch_linreg import mlp

    model = TorchMLPRegressor(**QUICK).fit(X, Y)
    whole = model.predict(X)
    monkeypatch.setattr(mlp, "CHUNK_BYTES", 10_000)
    np.testing.assert_allclose(model.predict(X), whole, rtol=1e-12)
    np.testing.assert_allclose(model.predict(sp.csr_array(X)), whole, rtol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("loss", ["squared_error", "huber"])
def test_gpu_training_equals_cpu_training(loss):
    settings = {"loss": loss, "dtype": "float64", "hidden_layer_sizes": (8,), **QUICK}
    cpu = TorchMLPRegressor(**settings).fit(X, Y)
    gpu = TorchMLPRegressor(device="cuda", **settings).fit(X, Y)
    np.testing.assert_allclose(gpu.predict(X), cpu.predict(X), rtol=1e-6)
