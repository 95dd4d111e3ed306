"""Streams whose first batch is not like the others, and warm starts on other rows."""

import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.base import clone

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor
from sktorch_linreg._data.scaling import Scaling, rewrite_layers, to_user_units

RATES = {
    "adam": 0.005, "sgd": 0.01, "adamw": 0.005, "nadam": 0.005, "radam": 0.02, "rmsprop": 0.002,
    "adagrad": 0.02, "adadelta": 1.0, "adamax": 0.005,
}  # fmt: skip


def rows(n, spread, rng):
    """Two columns far from 0 and a class; a target that is not linear in the first."""
    X = np.array([20.0, 50.0]) + spread * rng.normal(size=(n, 2)) * [1, 2]
    X = np.column_stack([X, rng.random(n) < 0.5])
    return X, np.sin((X[:, 0] - 20) / 3) + 0.1 * (X[:, 1] - 50) + 0.5 * X[:, 2]


def first(kind):
    rng = np.random.default_rng(0)
    X, y = rows(20, 5.0, rng)
    if kind == "one class":
        X[:, 2] = 1.0
    if kind == "narrow, other targets":
        return rows(200, 0.01, rng)[0], rng.normal(size=200)
    return {
        "typical": (X, y),
        "one row": (X[:1], y[:1]),
        "equal rows": (np.repeat(X[:1], 20, axis=0), np.repeat(y[:1], 20)),
        "one class": (X, y),
        "narrow": rows(20, 0.1, rng),
        "very narrow": rows(20, 0.01, rng),
        "constant target": (X, np.ones(20)),
    }[kind]


KINDS = ["one row", "equal rows", "one class", "narrow", "very narrow", "narrow, other targets",
         "constant target"]  # fmt: skip


def score_of_stream(model, begin, container=np.asarray):
    rng = np.random.default_rng(1)
    (X, y), test = rows(2000, 5.0, rng), rows(500, 5.0, rng)
    model = clone(model).partial_fit(container(begin[0]), begin[1])
    for _ in range(3):
        for i in range(0, 2000, 50):
            model.partial_fit(container(X[i : i + 50]), y[i : i + 50])
    return model.score(*test)


def network(optimizer="adam", **settings):
    settings = {"hidden_layer_sizes": (30,), "random_state": 0, **settings}
    return TorchMLPRegressor(optimizer=optimizer, lr=RATES[optimizer], **settings)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [(o, k) for o in ("adam", "sgd") for k in KINDS]
    + [
        pytest.param(o, k, marks=pytest.mark.slow)
        for o in RATES
        if o not in ("adam", "sgd")
        for k in ("one row", "very narrow")
    ],
)
def test_an_odd_first_batch_spoils_nothing(optimizer, kind):
    usual = score_of_stream(network(optimizer), first("typical"))
    assert usual > 0.75
    assert score_of_stream(network(optimizer), first(kind)) > usual - 0.12


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one row", "very narrow", "narrow, other targets"])
@pytest.mark.parametrize(
    "settings",
    [{"activation": "tanh"}, {"activation": "logistic"}, {"activation": "gelu"},
     {"activation": "elu"}, {"hidden_layer_sizes": (20, 10)}, {"dtype": "float64"}],
    ids=str,
)  # fmt: skip
def test_an_odd_first_batch_for_every_kind_of_network(kind, settings):
    usual = score_of_stream(network(**settings), first("typical"))
    assert score_of_stream(network(**settings), first(kind)) > usual - 0.15


@pytest.mark.parametrize("kind", ["one row", "very narrow"])
def test_an_odd_first_batch_of_sparse_rows(kind):
    dense = score_of_stream(network(dtype="float64"), first(kind))
    sparse = score_of_stream(network(dtype="float64"), first(kind), sp.csr_array)
    np.testing.assert_allclose(sparse, dense, atol=1e-4)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_an_odd_first_batch_for_a_linear_model(kind, optimizer):
    model = TorchLinearRegressor(optimizer=optimizer, lr=0.02, random_state=0)
    usual = score_of_stream(model, first("typical"))
    assert score_of_stream(model, first(kind)) > usual - 0.05


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lbfgs"])
def test_a_warm_start_on_wider_rows(optimizer):
    rng = np.random.default_rng(0)
    model = network(**({} if optimizer == "lbfgs" else {"optimizer": optimizer}))
    model.set_params(optimizer=optimizer, warm_start=True, max_epochs=20, tol=None)
    if optimizer == "lbfgs":
        model.set_params(lr=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(*rows(200, 0.1, rng))
        model = pickle.loads(pickle.dumps(model))
        model.fit(*rows(2000, 5.0, rng))
    assert model.score(*rows(500, 5.0, rng)) > 0.7


def test_weights_of_a_column_that_nothing_was_seen_of_stay():
    X, y = first("one class")
    model = network("sgd", dtype="float64", alpha=0.0).set_params(lr=1e-30)
    before = model.partial_fit(X, y)._layers[0][0][:, 2].copy()
    # in the user's units a constant column has the coefficient 0
    assert (model.coefs_[0][2] == 0).all()
    seen = model.predict(X)
    model.partial_fit(*rows(20, 5.0, np.random.default_rng(3)))
    np.testing.assert_allclose(model._layers[0][0][:, 2], before, rtol=1e-12)
    np.testing.assert_allclose(model.predict(X), seen, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "identity"])
@pytest.mark.parametrize("spread", [0.2, 1.0, 5.0])
def test_predictions_stay_where_activations_allow_it(activation, spread):
    rng = np.random.default_rng(0)
    settings = {"activation": activation, "hidden_layer_sizes": (8, 5), "alpha": 0.0}
    model = network("sgd", dtype="float64", **settings).set_params(lr=1e-30)
    X, y = rows(50, spread, rng)
    model.partial_fit(X, y)
    before = model.predict(X)
    for _ in range(4):
        model.partial_fit(*rows(50, 5.0, rng))
    np.testing.assert_allclose(model.predict(X), before, rtol=1e-8, atol=1e-8)


def test_layers_rewritten_for_other_units_predict_the_same():
    rng = np.random.default_rng(0)

    def scaling(x_scale, y_scale):
        return Scaling(rng.normal(size=3), np.array(x_scale), rng.normal(size=2), np.array(y_scale))

    layers = [(rng.normal(size=(4, 3)), rng.normal(size=4)),
              (rng.normal(size=(2, 4)), rng.normal(size=2))]  # fmt: skip
    for depth in (layers, [(rng.normal(size=(2, 3)), rng.normal(size=2))]):
        old, new = scaling([1.0, 2.0, 0.0], [0.5, 0.0]), scaling([3.0, 0.1, 2.0], [2.0, 1.0])
        X = rng.normal(size=(20, 3))
        X[:, 2] = old.x_offset[2]

        def predict(layers, scaling, X=X):
            h = X
            for i, (w, b) in enumerate(to_user_units(layers, scaling)):
                h = (np.tanh(h) if i else h) @ w.T + b
            return h

        again = rewrite_layers(depth, old, new)
        np.testing.assert_allclose(predict(again, new), predict(depth, old), rtol=1e-9, atol=1e-9)
    # weights that no row has seen are those that were drawn
    np.testing.assert_array_equal(rewrite_layers(layers, old, new)[0][0][:, 2], layers[0][0][:, 2])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_going_on_without_an_intercept(optimizer):
    X = np.random.default_rng(0).normal(size=(40, 2))
    y = X @ [1.0, 2.0]
    model = TorchLinearRegressor(fit_intercept=False, optimizer=optimizer, lr=0.05, random_state=0)
    for _ in range(150):
        model.partial_fit(X, y)
    np.testing.assert_allclose(model.coef_, [1.0, 2.0], atol=0.01)
    warm = clone(model).set_params(warm_start=True, max_epochs=3)
    assert warm.fit(X, y).fit(X, y).intercept_ == 0.0


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "silu", "elu", "logistic"])
@pytest.mark.parametrize("factor", [1.6, 2.5])
def test_what_was_learned_stays_where_rows_spread_somewhat(activation, factor):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 1))
    network = TorchMLPRegressor(
        hidden_layer_sizes=(16, 16), activation=activation, lr=0.02, max_epochs=60, tol=None,
        random_state=0, dtype="float64",
    ).fit(X, np.sin(4 * X[:, 0]))  # fmt: skip
    before = network.predict(X)
    wider = factor * rng.normal(size=(300, 1))
    network.set_params(lr=1e-30).partial_fit(wider, np.sin(4 * wider[:, 0]))
    np.testing.assert_allclose(network.predict(X), before, atol=1e-9)
