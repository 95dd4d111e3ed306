"""Parameters and dunder options in constructors, clones, searches and representations."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor
from sktorch_linreg._runtime.sklearn_private import InvalidParameterError

GRIDS = [
    {"lr": [0.01, 0.1]},
    {"optimizer": ["sgd", "adam", torch.optim.RMSprop]},
    {"optimizer": ["sgd"], "optimizer__momentum": [0.0, 0.9], "lr": [0.01]},
    {"lr_schedule": ["step", "exponential"], "lr": [0.1]},
    {"lr_schedule": ["step"], "lr_schedule__step_size": [1, 10], "lr_schedule__gamma": [0.5]},
    {"loss": ["quantile"], "loss__quantile": np.array([0.3, 0.5]), "lr": [0.1]},
    {"loss": ["huber"], "loss__delta": [np.int64(1), np.float32(0.5)], "lr": [0.1]},
    {"device": ["cpu", torch.device("cpu"), "auto"], "lr": [0.1]},
    {"batch_size": [8, None, "auto"], "lr": [0.01]},
    {"standardize": [True, False], "lr": [0.01]},
    {"hidden_layer_sizes": [(4,), (8, 4), 5]},
    {"activation": ["relu", "tanh"], "dropout": [0.0, 0.5]},
]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("prefix", ["", "regressor__"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_every_hyperparameter_can_be_searched(easy, grid, prefix):
    X, Y = easy
    of_network = {"hidden_layer_sizes", "activation"} & set(grid)
    cls = TorchMLPRegressor if of_network else TorchLinearRegressor
    estimator = cls(max_epochs=10, random_state=0)
    if prefix:
        estimator = Pipeline([("scale", StandardScaler()), ("regressor", estimator)])
    search = GridSearchCV(
        estimator, {prefix + k: v for k, v in grid.items()}, cv=2, error_score="raise"
    ).fit(X, Y)
    assert search.best_estimator_.predict(X).shape == Y.shape
    n_candidates = np.prod([len(v) for v in grid.values()])
    assert len(search.cv_results_["params"]) == n_candidates
    varied = [k for k, v in grid.items() if len(v) > 1 and k not in ("device", "optimizer")]
    if varied and varied != ["dropout"]:
        assert len(set(search.cv_results_["mean_test_score"])) > 1


def test_options_survive_clone_and_params():
    model = TorchLinearRegressor(optimizer="sgd", optimizer__momentum=0.9, loss__delta=2.0)
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    assert copy.get_params()["optimizer__momentum"] == copy.optimizer__momentum == 0.9
    copy.set_params(optimizer__momentum=0.5, lr_schedule__gamma=0.1, lr=0.3)
    assert copy.get_params()["lr_schedule__gamma"] == 0.1
    assert (copy.optimizer__momentum, copy.lr) == (0.5, 0.3)
    assert model.optimizer__momentum == 0.9
    copy.optimizer__momentum = 0.1
    assert clone(copy).get_params()["optimizer__momentum"] == 0.1


def test_parameters_are_stored_as_they_came():
    sizes, callbacks, device = [3, 4], [], torch.device("cpu")
    model = TorchMLPRegressor(hidden_layer_sizes=sizes, callbacks=callbacks, device=device)
    assert model.hidden_layer_sizes is sizes
    assert model.callbacks is callbacks
    assert model.device is device


@pytest.mark.parametrize("cls", [TorchLinearRegressor, TorchMLPRegressor])
def test_constructor_takes_keywords_only_and_refuses_other_names(cls):
    with pytest.raises(TypeError):
        cls(True)
    with pytest.raises(TypeError, match="Did you mean 'max_epochs'"):
        cls(max_epoch=3)
    with pytest.raises(ValueError, match="Did you mean 'max_epochs'"):
        cls().set_params(max_epoch=3)
    with pytest.raises(AttributeError, match="no attribute 'optimizer__lr'"):
        _ = cls().optimizer__lr


def test_representations_show_what_was_set():
    model = TorchLinearRegressor(optimizer="sgd", lr=0.1, optimizer__momentum=0.9)
    assert repr(model) == "TorchLinearRegressor(lr=0.1, optimizer='sgd', optimizer__momentum=0.9)"
    html = model._repr_html_()
    assert "TorchLinearRegressor" in html
    assert "optimizer__momentum" in html
    assert repr(TorchMLPRegressor()) == "TorchMLPRegressor()"
    assert "Adam" in repr(TorchMLPRegressor(optimizer=torch.optim.Adam))


class NegativeDefault(TorchLinearRegressor):
    def __init__(self, alpha=-1.0):
        super().__init__(alpha=alpha)


def test_defaults_of_subclasses_are_checked():
    X, y = np.eye(3), np.arange(3.0)
    with pytest.raises(InvalidParameterError, match="'alpha' parameter of NegativeDefault"):
        NegativeDefault().fit(X, y)
    assert NegativeDefault(alpha=0.5).fit(X, y).get_params() == {"alpha": 0.5}
    NegativeDefault._get_param_names().append("other")
    assert list(NegativeDefault().get_params()) == ["alpha"]
    with pytest.raises(InvalidParameterError, match="'fit_intercept'"):
        TorchLinearRegressor(fit_intercept=1).fit(X, y)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("solver", "optimizer"),
        ("max_iter", "max_epochs"),
        ("learning_rate_init", "lr"),
        ("learning_rate", "lr"),
        ("momentum", "optimizer__momentum"),
        ("penalty", "alpha"),
    ],
)
def test_names_from_elsewhere_are_translated(name, meant):
    for cls in (TorchLinearRegressor, TorchMLPRegressor):
        with pytest.raises(TypeError, match=f"Did you mean '{meant}'"):
            cls(**{name: 1})
        with pytest.raises(ValueError, match=f"Did you mean '{meant}'"):
            cls().set_params(**{name: 1})


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"loss": "mse"}, "Did you mean 'squared_error'"),
        ({"loss": "mae"}, "Did you mean 'absolute_error'"),
        ({"activation": "sigmoid"}, "Did you mean 'logistic'"),
        ({"optimizer__lr": 0.1}, "The learning rate is the parameter 'lr'"),
    ],
)
def test_values_from_elsewhere_are_translated(params, match):
    with pytest.raises(ValueError, match=match):
        TorchMLPRegressor(**params).fit([[0.0], [1.0]], [0.0, 1.0])


def test_what_lstsq_does_not_solve_is_named():
    with pytest.raises(ValueError, match="only solves squared error, not loss='huber'"):
        TorchLinearRegressor(optimizer="lstsq", loss="huber").fit([[0.0], [1.0]], [0.0, 1.0])
