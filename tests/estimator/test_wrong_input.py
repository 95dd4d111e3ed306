"""Wrong input: a clear error that names the way out, and nothing lost."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from sklearn.exceptions import FitFailedWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, EarlyStopping

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor, TrainingDivergedError
from sktorch_linreg._optim.updates import RuleUpdates
from sktorch_linreg._training.one_model import OneModel

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 3))
y = X @ [1.0, 2.0, 3.0] + 0.1 * RNG.normal(size=30)
FITTED = {
    "exact": TorchLinearRegressor(),
    "trained": TorchLinearRegressor(optimizer="adam", lr=0.05, max_epochs=20, random_state=0),
    "mlp": TorchMLPRegressor(hidden_layer_sizes=(4,), max_epochs=5, tol=None, random_state=0),
}


class Raises(Callback):
    def __init__(self, error, when="on_epoch_end"):
        self.error = error
        self.when = when

    def on_epoch_end(self, net, **kwargs):
        if self.when == "on_epoch_end":
            raise self.error

    def on_batch_end(self, net, **kwargs):
        if self.when == "on_batch_end":
            raise self.error

    def __getstate__(self):
        # where dask is imported, exceptions are pickled with their tracebacks
        return {**vars(self), "error": repr(self.error)}


def changed(index, value):
    out = X.copy()
    out[index] = value
    return out


BAD_DATA = [
    ((changed((3, 1), np.nan), y), "contains NaN"),
    ((changed((3, 1), np.inf), y), "infinity"),
    ((X, np.where(np.arange(30) == 4, np.nan, y)), "contains NaN"),
    ((np.empty((0, 3)), np.empty(0)), "0 sample"),
    ((np.empty((30, 0)), y), "0 feature"),
    ((X[:, 0], y), "Reshape your data"),
    ((X[None], y), "dim 3"),
    ((X + 1j, y), "Complex data"),
    ((X, y[:-1]), "inconsistent numbers of samples"),
    ((X, y, np.ones(29)), "sample_weight.shape"),
    ((X, y, np.zeros(30)), "non-zero"),
    ((X, y, np.full(30, -1.0)), "[Nn]egative values"),
    ((X, y, np.full(30, np.nan)), "NaN"),
    ((np.full((30, 3), "a"), y), "X contains text: .*in row 0, column 0"),
    ((X, sp.csr_array(y[:, None])), "toarray"),
]
BAD_PARAMETERS = [
    ({"optimizer": "adamm"}, r"Supported:.*'sgd'.*Did you mean 'adam'\?"),
    ({"optimizer": 3}, "'sgd'.*or a subclass of torch.optim.Optimizer; got 3"),
    (
        {"optimizer": torch.optim.Adam([torch.zeros(1, requires_grad=True)])},
        "Pass the class, optimizer=torch.optim.Adam, and its options as optimizer__.*as lr",
    ),
    ({"optimizer": torch.nn.ReLU}, "got the class torch.nn.ReLU"),
    ({"loss": "squared_eror"}, r"Supported:.*'huber'.*Did you mean 'squared_error'\?"),
    (
        {"loss": torch.nn.MSELoss()},
        "Pass the class, loss=torch.nn.MSELoss, and its options as loss__",
    ),
    ({"loss": torch.nn.functional.mse_loss}, "function mse_loss. Did you mean 'squared_error'"),
    (
        {"loss": "squared_error", "loss__delta": 1.0},
        "set loss to 'huber'. To remove the option: del",
    ),
    ({"loss": ["huber"]}, r"got \['huber'\]\.$"),
    ({"loss": torch.nn.Linear}, "loss__"),
    ({"loss": torch.nn.GaussianNLLLoss}, "predictions and targets"),
    ({"loss": "huber", "loss__delt": 1.0}, r"loss__delta.*Did you mean 'delta'\?"),
    ({"loss": "huber", "loss__delta": 0.0}, "above 0"),
    ({"loss": "quantile", "loss__quantile": 1.5}, "between 0 and 1"),
    ({"optimizer": "sgd", "optimizer__momentun": 0.9}, r"optimizer__momentum.*Did you mean"),
    ({"optimizer": "sgd", "optimizer__momentum": -1.0}, "Check optimizer__"),
    ({"optimizer": "sgd", "lr_schedule": "cosin"}, r"Supported:.*Did you mean 'cosine'\?"),
    ({"optimizer": "sgd", "lr_schedule": 7}, "torch.optim.lr_scheduler"),
    (
        {"lr_schedule": torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], 0.1), 3)},
        "Pass the class, lr_schedule=torch.optim.lr_scheduler.StepLR",
    ),
    (
        {"optimizer": "sgd", "lr_schedule": "cosine", "lr_schedule__step_size": 1},
        "set lr_schedule to 'step'",
    ),
    ({"optimizer": "sgd", "lr_schedule": "step", "lr_schedule__gama": 1}, "lr_schedule__gamma"),
    ({"optimizer": "sgd", "lr_schedule__gamma": 1.0}, "lr_schedule is None"),
    (
        {"optimizer": "sgd", "lr_schedule": torch.optim.lr_scheduler.StepLR},
        "needs lr_schedule__step_size",
    ),
    ({"optimizer": "sgd", "lr_schedule": "step", "lr_schedule__step_size": 0}, "lr_schedule__"),
    ({"optimizer": "adagrad", "lr_schedule": "one_cycle"}, "cycle_momentum"),
    ({"lr": -0.1}, "lr"),
    ({"lr": "fast"}, "lr"),
    ({"alpha": -1.0}, "alpha"),
    ({"l1_ratio": 2.0}, "l1_ratio"),
    ({"max_epochs": 0}, "max_epochs"),
    ({"batch_size": 0}, "batch_size"),
    ({"batch_size": "all"}, "batch_size"),
    ({"tol": -1.0}, "tol"),
    ({"validation_fraction": 1.0}, "validation_fraction"),
    ({"standardize": "yes"}, "standardize"),
    ({"dtype": "float16"}, "dtype"),
    ({"dtype": torch.int32}, "float32 or torch.float64"),
    ({"device": "cuda:99"}, "Available devices: cpu"),
    ({"device": "tpu"}, "Available devices: cpu"),
    ({"random_state": "seed"}, "random_state"),
    ({"callbacks": [3]}, "skorch.callbacks"),
    ({"callbacks": "cb"}, "callbacks"),
    ({"optimizer": "adam", "callbacks": [EarlyStopping()]}, "early_stopping=True"),
    ({"loss": "poisson"}, "at least 0"),
    ({"early_stopping": True, "validation_fraction": 0.99}, "leaves no row"),
]
OF_ONE_MODEL = [
    ("mlp", {"activation": "rely"}, r"Supported:.*Did you mean 'relu'\?"),
    ("mlp", {"activation": torch.nn.ReLU}, "the class torch.nn.ReLU. Did you mean 'relu'"),
    ("mlp", {"activation": torch.nn.Sigmoid()}, "Did you mean 'logistic'"),
    ("mlp", {"activation": ["relu", "tanh"]}, r"got \['relu', 'tanh'\]\.$"),
    (
        "mlp",
        {"optimizer": "adam", "optimizer__momentum": 0.9},
        "set optimizer to 'sgd' or 'rmsprop'",
    ),
    ("mlp", {"hidden_layer_sizes": (3, 0)}, r"such as \(100,\)"),
    ("mlp", {"hidden_layer_sizes": (2.5,)}, r"such as \(100,\)"),
    ("mlp", {"dropout": 1.0}, "dropout"),
    ("mlp", {"optimizer": "lstsq"}, "Supported: 'lbfgs'"),
    ("exact", {"positive": "no"}, "positive"),
    ("exact", {"optimizer": "lstsq", "loss": "huber"}, "Choose optimizer='auto'"),
    ("exact", {"optimizer": "lstsq", "optimizer__momentum": 0.9}, "none.*to 'sgd' or 'rmsprop'"),
    ("exact", {"optimizer__momentum": 0.9}, "chosen by optimizer='auto'.*to 'sgd' or 'rmsprop'"),
    ("exact", {"lr": 0.1, "optimizer__momentum": 0.9}, "'adam', chosen by optimizer='auto',"),
]


def snapshot(model):
    return pickle.dumps(model.__getstate__()), model.predict(X).tobytes()


def fitted(name):
    model = FITTED[name]
    return type(model)(**model.get_params()).fit(X, y)


@pytest.mark.parametrize("name", list(FITTED))
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize(("data", "message"), BAD_DATA)
def test_bad_data(name, method, data, message):
    model = fitted(name)
    before = snapshot(model)
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(model, method)(*data)
    assert snapshot(model) == before
    fresh = type(model)(**model.get_params())
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(fresh, method)(*data)
    with pytest.raises(NotFittedError):
        fresh.predict(X)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [(name, *case) for case in BAD_PARAMETERS for name in ("exact", "mlp")] + OF_ONE_MODEL,
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_bad_parameters(name, parameters, message):
    model = fitted(name)
    predicted = model.predict(X)
    state = {k: v for k, v in vars(model).items() if k.endswith("_")}
    model.set_params(**parameters)
    small = slice(0, 2) if "validation_fraction" in parameters else slice(None)
    with pytest.raises(ValueError, match=message):
        model.fit(X[small], y[small])
    after = {k: v for k, v in vars(model).items() if k.endswith("_")}
    assert after.keys() == state.keys()
    assert all(after[k] is state[k] for k in state)
    model.set_params(loss="squared_error", device="cpu")
    np.testing.assert_array_equal(model.predict(X), predicted)


@pytest.mark.parametrize("name", list(FITTED))
def test_bad_rows_in_predict(name):
    model = fitted(name)
    for bad, message in [
        (X[:, :2], "expecting 3 features"),
        (changed((0, 0), np.nan), "contains NaN"),
        (X[0], "Reshape your data"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.predict(bad)


@pytest.mark.parametrize("cls", [TorchLinearRegressor, TorchMLPRegressor])
def test_not_fitted(cls):
    with pytest.raises(NotFittedError):
        cls().predict(X)
    for name in ("module_", "net_"):
        with pytest.raises(NotFittedError):
            getattr(cls(), name)
    for name in ("coef_", "loss_", "nothing"):
        with pytest.raises(AttributeError, match=name):
            getattr(cls(), name)
    with pytest.raises(NotFittedError):
        _ = TorchMLPRegressor().coefs_
    with pytest.raises(NotFittedError):
        _ = TorchMLPRegressor().intercepts_


@pytest.mark.parametrize("name", ["trained", "mlp"])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_divergence(name, method):
    model = fitted(name).set_params(
        optimizer="sgd", lr=1e30, standardize=False, max_epochs=10, dtype="float32"
    )
    before = [snapshot(model)]

    def train():
        for _ in range(10):
            getattr(model, method)(1e3 * X, y)
            before.append(snapshot(model))

    with pytest.raises(TrainingDivergedError, match=r"epoch \d.*smaller.*standardize") as caught:
        train()
    assert caught.value.lr == pytest.approx(1e30)
    assert caught.value.epoch >= 1
    assert snapshot(model) == before[-1]
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.epoch, again.lr, str(again)) == (
        caught.value.epoch, caught.value.lr, str(caught.value),
    )  # fmt: skip


def test_divergence_in_the_last_update():
    model = TorchLinearRegressor(
        optimizer="sgd", lr=1e38, standardize=False, dtype="float32", max_epochs=1
    )
    with pytest.raises(TrainingDivergedError, match="epoch 1 "):
        model.fit(1e3 * X, y)


def test_divergence_in_a_search_scores_error_score():
    model = TorchLinearRegressor(optimizer="sgd", max_epochs=60, standardize=False, dtype="float32")
    search = GridSearchCV(model, {"lr": [0.01, 1e6]}, cv=2, error_score=-7.0)
    with pytest.warns(FitFailedWarning, match="TrainingDivergedError"):
        search.fit(X, y)
    assert search.cv_results_["mean_test_score"][1] == -7.0
    assert search.best_params_ == {"lr": 0.01}


@pytest.mark.parametrize("name", ["trained", "mlp"])
@pytest.mark.parametrize("when", ["on_epoch_end", "on_batch_end"])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_a_callback_that_raises(name, when, method):
    model = fitted(name)
    predicted = model.predict(X)
    model.set_params(callbacks=[Raises(RuntimeError("broken"), when)])
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="broken"):
        getattr(model, method)(X, y)
    assert snapshot(model) == before
    np.testing.assert_array_equal(model.predict(X), predicted)


def test_a_callback_that_stops_before_an_epoch_is_done():
    model = fitted("mlp")
    predicted = model.predict(X)
    model.set_params(callbacks=[Raises(KeyboardInterrupt(), "on_batch_end")])
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    np.testing.assert_array_equal(model.predict(X), predicted)


@pytest.mark.parametrize("batch_size", [None, 10])
@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_ctrl_c_keeps_the_epochs_done(monkeypatch, batch_size, optimizer):
    settings = {
        "optimizer": optimizer,
        "loss": "quantile",
        "random_state": 0,
        "batch_size": batch_size,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        three = TorchLinearRegressor(max_epochs=3, **settings).fit(X, y)
    owner, name = RuleUpdates, "step"
    if optimizer == "lbfgs":
        owner, name = OneModel, "_step"
    original = getattr(owner, name)
    calls = []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        step = original(self, *args, **kwargs)
        if len(calls) == (11 if batch_size == 10 and optimizer == "adam" else 4):
            raise KeyboardInterrupt
        return step

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.warns(UserWarning, match="3 completed epochs.*warm_start=True"):
        model = TorchLinearRegressor(max_epochs=50, **settings).fit(X, y)
    assert model.n_iter_ == len(model.loss_curve_) == len(model.history_) == 3
    assert model.loss_curve_ == three.loss_curve_
    if batch_size is not None or optimizer == "lbfgs":
        np.testing.assert_array_equal(model.coef_, three.coef_)


def test_ctrl_c_before_the_first_epoch_changes_nothing(monkeypatch):
    model = fitted("trained")
    before = snapshot(model)

    def interrupted(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(RuleUpdates, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    assert snapshot(model) == before


@pytest.mark.parametrize("cls", [TorchLinearRegressor, TorchMLPRegressor])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"early_stopping": True}, "Set early_stopping=False"),
        ({"optimizer": "lbfgs"}, "optimizer='adam'"),
        ({"optimizer": torch.optim.LBFGS}, "optimizer='adam'"),
    ],
)
def test_partial_fit_where_it_cannot_work(cls, settings, message):
    with pytest.raises(AttributeError) as error:
        cls(**settings).partial_fit(X, y)
    assert message in str(error.value.__cause__)
    assert not hasattr(cls(**settings), "partial_fit")


def test_going_on_with_another_shape():
    model = fitted("mlp").set_params(warm_start=True)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"1 target.*has 2.*warm_start=False"):
        model.fit(X, np.c_[y, y])
    with pytest.raises(ValueError, match="expecting 3 features"):
        model.fit(X[:, :2], y)
    assert snapshot(model) == before
    with pytest.raises(ValueError, match=r"hidden_layer_sizes=\(4,\).*\(5,\)"):
        model.set_params(hidden_layer_sizes=(5,)).fit(X, y)


def test_lost_statistics_are_an_error_and_not_a_silent_restart():
    wide = TorchLinearRegressor().fit(X.T, X[0])
    model = pickle.loads(pickle.dumps(wide))
    np.testing.assert_allclose(model.singular_, wide.singular_)
    with pytest.raises(ValueError, match=r"Start with partial_fit, or set warm_start=True"):
        model.partial_fit(X.T, X[0])
    # those of many rows are small, and go with the pickle
    model = pickle.loads(pickle.dumps(fitted("exact"))).partial_fit(X, y)
    np.testing.assert_array_equal(model.coef_, fitted("exact").partial_fit(X, y).coef_)
    model = fitted("exact").set_params(fit_intercept=False)
    with pytest.raises(ValueError, match="another optimizer or fit_intercept"):
        model.partial_fit(X, y)


def test_a_schedule_that_has_run_out():
    model = TorchLinearRegressor(optimizer="sgd", lr=0.1, lr_schedule="one_cycle", max_epochs=2)
    model.partial_fit(X, y).partial_fit(X, y)
    with pytest.raises(ValueError, match="raise max_epochs"):
        model.partial_fit(X, y)


class NeedsRate(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr=lr)


class NoRate(torch.optim.SGD):
    def __init__(self, params):
        super().__init__(params, lr=0.1)


class AnyOptions(torch.optim.SGD):
    def __init__(self, params, **kwargs):
        super().__init__(params, **kwargs)


def test_optimizer_classes_of_the_users_own():
    with pytest.raises(ValueError, match="set lr"):
        TorchLinearRegressor(optimizer=NeedsRate).fit(X, y)
    with pytest.raises(ValueError, match="leave lr=None"):
        TorchLinearRegressor(optimizer=NoRate, lr=0.1).fit(X, y)
    one = TorchLinearRegressor(optimizer=NeedsRate, lr=0.1, random_state=0).fit(X, y)
    two = TorchLinearRegressor(optimizer=NoRate, random_state=0).fit(X, y)
    three = TorchLinearRegressor(optimizer=AnyOptions, lr=0.1, random_state=0).fit(X, y)
    np.testing.assert_array_equal(one.coef_, two.coef_)
    np.testing.assert_array_equal(one.coef_, three.coef_)


def test_devices_that_are_faked(monkeypatch):
    from sktorch_linreg._runtime import devices

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.available_devices()[:4] == ["cpu", "cuda", "cuda:0", "cuda:1"]
    assert devices.resolve_device("auto").type == "cuda"
    assert str(devices.resolve_device("cuda:1")) == "cuda:1"
    with pytest.raises(ValueError, match="cuda:0, cuda:1"):
        devices.resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.resolve_device("auto").type == "mps"
    mps = torch.device("mps")
    assert devices.resolve_dtype("auto", X, mps) == torch.float32
    with pytest.raises(ValueError, match="dtype='float32'"):
        devices.resolve_dtype("float64", X, mps)


def test_a_device_that_is_gone_after_training():
    model = fitted("mlp")
    predicted = model.predict(X)
    model.set_params(device="cuda:7")
    np.testing.assert_array_equal(model.predict(X), predicted)
    assert next(model.module_.parameters()).device.type == "cpu"


def test_a_wide_sparse_matrix_is_never_made_dense_by_partial_fit():
    S = sp.random(50, 3000, density=0.01, random_state=0, format="csr")
    target = np.arange(50.0)
    assert TorchLinearRegressor().partial_fit(S, target).optimizer_ == "adam"
    with pytest.raises(ValueError, match=r"in partial_fit, 'adam'"):
        TorchLinearRegressor(optimizer="lstsq").partial_fit(S, target)


def test_going_on_under_another_link():
    model = TorchMLPRegressor(warm_start=True, max_epochs=3, tol=None).fit(X, np.abs(y))
    with pytest.raises(ValueError, match=r"no log link.*warm_start=False"):
        model.set_params(loss="poisson").fit(X, np.abs(y))


def test_an_option_can_be_taken_back():
    model = TorchLinearRegressor(optimizer="sgd", optimizer__momentum=0.9, lr=0.1, max_epochs=3)
    with pytest.raises(ValueError, match=r"del estimator\.optimizer__momentum"):
        model.set_params(optimizer="adam").fit(X, y)
    del model.optimizer__momentum
    assert "optimizer__momentum" not in model.get_params()
    assert model.fit(X, y).optimizer_ == "adam"
    with pytest.raises(AttributeError):
        del model.optimizer__momentum


def test_names_that_are_missing_are_told_once():
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    model = TorchLinearRegressor(alpha=5.0, l1_ratio=1.0).fit(frame, y)
    assert not model.coef_.all()
    with pytest.warns(UserWarning, match="feature names") as caught:
        model.predict(X)
    assert len(caught) == 1
    model = TorchLinearRegressor().partial_fit(frame, y)
    with pytest.warns(UserWarning, match="feature names") as caught:
        model.partial_fit(X[:2], y[:2])
    assert len(caught) == 1


def in_place(values, row, value, column=None):
    out = np.array(values, dtype=object)
    out[row if column is None else (row, column)] = value
    return out


FRAME = pd.DataFrame(X, columns=["a", "b", "c"])
TEXT = {
    "object array": (
        in_place(X, 4, "n/a", 1),
        y,
        "X contains text: 'n/a' in row 4, column 1.*OneHot",
    ),
    "lists": (in_place(X, 4, "n/a", 1).tolist(), y, "'n/a' in row 4, column 1"),
    "string array": (in_place(X, 4, "n/a", 1).astype(str), y, "'n/a' in row 4, column 1"),
    "frame": (FRAME.assign(b="x"), y, "X contains text: 'x' in row 0, column 'b'"),
    "categories": (FRAME.assign(b=pd.Categorical(["x"] * 30)), y, "'x' in row 0, column 'b'"),
    "targets": (X, in_place(y, 7, "n/a"), "y contains text: 'n/a' in row 7. Convert the targets"),
    "list of targets": (X, in_place(y, 7, "n/a").tolist(), "y contains text: 'n/a' in row 7"),
    "string targets": (X, in_place(y, 7, "n/a").astype(str), "y contains text: 'n/a' in row 7"),
    "named targets": (X, pd.Series(in_place(y, 7, "n/a"), name="p"), "'n/a' in row 7"),
    "two targets": (X, in_place(np.column_stack([y, y]), 7, "n/a", 1), "'n/a' in row 7, column 1"),
    "number in X": (
        in_place(X, 4, 10**400, 1),
        y,
        "beyond the range of float64 in row 4, column 1",
    ),
    "huge number": (X, in_place(y, 7, 10**5000), "y contains a number.*row 7: .* 5001 digits"),
    "number in y": (X, in_place(y, 7, -(10**400)), "y contains a number.*row 7: .* 401 digits"),
}


@pytest.mark.parametrize("case", list(TEXT))
@pytest.mark.parametrize("name", ["exact", "mlp"])
def test_text_and_huge_numbers_are_named_with_their_place(name, case):
    features, target, match = TEXT[case]
    model = fitted(name)
    before = snapshot(model)
    for method in (model.fit, model.partial_fit):
        with pytest.raises(ValueError, match=match):
            method(features, target)
    if match.startswith(("X", "'")) and target is y:
        with pytest.raises(ValueError, match=match):
            model.predict(features)
    assert snapshot(model) == before


def test_numbers_written_as_text_in_objects_are_taken():
    """As scikit-learn's own estimators do."""
    numbers = X.astype(object)
    numbers[3, 1] = str(X[3, 1])
    expected = TorchLinearRegressor().fit(X, y).coef_
    np.testing.assert_array_equal(TorchLinearRegressor().fit(numbers, y).coef_, expected)
