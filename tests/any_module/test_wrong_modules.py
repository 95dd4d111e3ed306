"""Wrong modules, wrong rows, and what is said about them; the estimator stays as it was."""

import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.base import clone
from torch import nn
from user_modules import BatchNormed, Embedded, Net, Recurrent

from sktorch_linreg import TorchMLPRegressor, TorchRegressor

rng = np.random.default_rng(0)
X, CODES = rng.normal(size=(50, 3)), rng.integers(0, 10, size=(50, 3))
STEPS = rng.normal(size=(50, 7, 3))
y = X @ [1.0, 2.0, 3.0]
Y = np.c_[y, y]


class Returns(nn.Module):
    """Returns what `make` makes of the right output."""

    def __init__(self, n_features, make):
        super().__init__()
        self.linear, self.make = nn.Linear(n_features, 1), make

    def forward(self, x):
        return self.make(self.linear(x))


class Fails(Net):
    def forward(self, x):
        raise KeyError("no such entry")


class FailsInTraining(Net):
    def forward(self, x):
        if self.training:
            raise KeyError("no such entry")
        return super().forward(x)


class FailsAtOnce(nn.Module):
    def __init__(self):
        raise OSError("no weights")


class Complex(nn.Module):
    def __init__(self, n_features):
        super().__init__()
        self.w = nn.Parameter(torch.randn(n_features, dtype=torch.cfloat))

    def forward(self, x):
        return x @ self.w.real


def all_frozen(n_features):
    return nn.Linear(n_features, 1).requires_grad_(False)


SHAPES = [
    (lambda out: torch.cat([out, out], 1), y, r"shape \(4, 2\) for 4 rows.*\(4, 1\)"),
    (lambda out: out, Y, r"shape \(4, 1\) for 4 rows.*\(4, 2\)"),
    (lambda out: out.T, y, r"shape \(1, 4\) for 4 rows.*\(4, 1\)"),
    (lambda out: out.mean(), y, r"shape \(\) for 4 rows.*\(4, 1\)"),
    (lambda out: out[1:], y, r"shape \(3, 1\) for 4 rows"),
    (lambda out: (out, out), y, r"Returns returned a tuple instead of a tensor of shape \(4, 1\)"),
    (lambda out: {"y": out}, y, "returned a dict instead of a tensor"),
]


@pytest.mark.parametrize(("make", "targets", "message"), SHAPES)
def test_outputs_of_another_shape(make, targets, message):
    with pytest.raises(ValueError, match=message):
        TorchRegressor(Returns, module__make=make).fit(X, targets)


@pytest.mark.parametrize(
    "make", [lambda out: out[:, 0], lambda out: out.squeeze(), lambda out: out[:, :, None]]
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_outputs_of_as_many_elements_are_reshaped(make):
    settings = {"max_epochs": 2, "tol": None, "random_state": 0, "batch_size": 7}
    plain = TorchRegressor(nn.Linear, **settings).fit(X, y)
    model = TorchRegressor(Returns, module__make=make, **settings).fit(X, y)
    np.testing.assert_array_equal(model.predict(X), plain.predict(X))
    np.testing.assert_array_equal(model.predict(X[:1]), plain.predict(X[:1]))


WRONG = {
    "relu": r"module must be a subclass.*got 'relu'",
    "none": "module must be a subclass.*got None",
    "dict": "module must be a subclass.*got <class 'dict'>",
    "estimator": r"module must be a subclass.*got TorchMLPRegressor\(\)",
    "no module": "returned 3 instead of a torch.nn.Module",
    "misspelt": r"'Net' has no option module__widht.*module__width.*Did you mean 'width'\?",
    "instance": r"module__width cannot be set.*instance of Net.*module=Net",
    "missing": "module=Returns requires make. Set module__make",
    "missing for steps": r"requires n_features, n_outputs.*rows of shape \(7, 3\), no sizes",
    "frozen": "module=all_frozen are all frozen.*nothing to train",
    "nothing": "module=Identity do not exist",
    "complex": "module=Complex has complex parameters",
    "side": "'standardize' parameter.*Got 'both'",
    "lstsq": "Unknown optimizer 'lstsq'",
    "vector": "Expected 2D array, got 1D array",
    "nan": "Input X contains NaN",
    "codes": "out of range for int64",
}


def wrong(name):
    model, rows, targets = TorchRegressor(Net), X, y
    if name in ("relu", "none", "dict", "estimator"):
        given = {"relu": "relu", "none": None, "dict": dict, "estimator": TorchMLPRegressor()}
        model.set_params(module=given[name])
    elif name == "no module":
        model.set_params(module=lambda n_features: n_features)
    elif name == "misspelt":
        model.set_params(module__widht=3)
    elif name == "instance":
        model.set_params(module=Net(3, 1), module__width=3)
    elif name == "missing":
        model.set_params(module=Returns)
    elif name == "missing for steps":
        rows = STEPS
    elif name in ("frozen", "nothing", "complex"):
        given = {"frozen": all_frozen, "nothing": nn.Identity, "complex": Complex}
        model.set_params(module=given[name])
        targets = X if name == "nothing" else y
    elif name == "side":
        model.set_params(standardize="both")
    elif name == "lstsq":
        model.set_params(optimizer="lstsq")
    elif name == "vector":
        rows = y
    elif name == "nan":
        rows = np.full_like(STEPS, np.nan)
    elif name == "codes":
        model.set_params(standardize=False)
        rows = np.full((50, 3), 2**63, dtype=np.uint64)
    return model, rows, targets


@pytest.mark.parametrize("name", WRONG)
def test_wrong_modules_and_rows(name):
    model, rows, targets = wrong(name)
    before = dict(vars(model))
    with pytest.raises(ValueError, match=f"(?s){WRONG[name]}"):
        model.fit(rows, targets)
    assert vars(model) == before


@pytest.mark.parametrize(
    ("module", "error"),
    [(Fails, KeyError), (FailsInTraining, KeyError), (FailsAtOnce, OSError)],
)
def test_errors_of_a_module_are_passed_on(module, error):
    with pytest.raises(error) as raised:
        TorchRegressor(module).fit(X, y)
    (note,) = raised.value.__notes__
    assert f"raised by {module.__name__}, which was given as the parameter 'module'" in note


def test_wrong_kinds_of_numbers():
    floats = "For a module that takes integers, set standardize='target' or False"
    for rows, settings in ((X, {}), (CODES, {}), (X, {"standardize": False})):
        with pytest.raises(RuntimeError) as raised:
            TorchRegressor(Embedded, **settings).fit(rows, y)
        assert floats in raised.value.__notes__[1]
    with pytest.raises(RuntimeError) as raised:
        TorchRegressor(nn.Linear, standardize=False).fit(CODES, y)
    assert "Pass X.astype(float)" in raised.value.__notes__[1]
    with pytest.raises(IndexError, match="out of range"):
        TorchRegressor(Embedded, module__n_codes=3, standardize=False).fit(CODES, y)


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {}])
def test_batch_normalisation_of_one_row_is_torchs_error(settings):
    rows = X if settings else X[:1]
    with pytest.raises(ValueError, match="Expected more than 1 value per channel") as raised:
        TorchRegressor(BatchNormed, **settings).fit(rows, y[: len(rows)])
    assert "parameter 'module'" in raised.value.__notes__[0]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_failed_fit_leaves_the_fitted_model():
    model = TorchRegressor(Net, max_epochs=3, random_state=0, warm_start=True).fit(X, y)
    before, predicted = pickle.dumps(model), model.predict(X)
    changes = [
        {"module": Fails}, {"module__width": 5}, {"module": "relu"}, {"module__depth": 2},
        {"loss": "poisson"}, {"standardize": False}, {"module": Recurrent},
    ]  # fmt: skip
    for change in changes:
        other = pickle.loads(before).set_params(**change)
        state = {k: v for k, v in vars(other).items() if k != "_predictor"}
        for method in ("fit", "partial_fit"):
            with pytest.raises((ValueError, KeyError, TypeError)):
                getattr(other, method)(X, y)
            now = {k: v for k, v in vars(other).items() if k != "_predictor"}
            assert now.keys() == state.keys()
            assert all(now[k] is state[k] for k in now)
        np.testing.assert_array_equal(other.predict(X), predicted)
    for rows, targets, message in (
        (X, Y, r"fitted to 1 target\(s\), but y has 2"),
        (STEPS, y, r"X has 7 features|rows of shape"),
        (X[:, :, None], y, r"rows of shape \(3, 1\).*rows of shape \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit(rows, targets)
    assert pickle.dumps(model) == before


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_predictions_for_rows_of_another_shape():
    model = TorchRegressor(Recurrent, max_epochs=1, tol=None).fit(STEPS, y)
    for rows in (STEPS[:, :, :2], STEPS[:, :5], STEPS.reshape(50, -1), STEPS[0], STEPS[..., None]):
        with pytest.raises(ValueError, match=r"X has|Expected 2D"):
            model.predict(rows)
    plain = TorchRegressor(Net, max_epochs=1, tol=None).fit(X, y)
    with pytest.raises(ValueError, match="X has 2 features, but TorchRegressor is expecting 3"):
        plain.predict(X[:, :2])
    with pytest.raises(ValueError, match=r"rows of shape \(3, 1\)"):
        plain.predict(X[:, :, None])


def test_names_of_parameters():
    with pytest.raises(TypeError, match="module"):
        TorchRegressor()
    with pytest.raises(TypeError, match=r"no parameter 'modul__x'.*start with module__"):
        TorchRegressor(Net, modul__x=1)
    with pytest.raises(TypeError, match=r"'width'. Did you mean 'module__width'\?"):
        TorchRegressor(Net, width=3)
    with pytest.raises(ValueError, match="no parameter 'hidden_layer_sizes'"):
        TorchRegressor(Net).set_params(hidden_layer_sizes=(3,))
    model = clone(TorchRegressor(Net, module__width=3).set_params(module__width=5))
    assert model.get_params()["module__width"] == 5
    del model.module__width
    assert "module__width" not in model.get_params()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_local_class_fits_but_has_no_import_path():
    class Local(Net):
        pass

    model = TorchRegressor(Local, max_epochs=1, tol=None).fit(X, y)
    assert model.predict(X).shape == (50,)
    with pytest.raises((AttributeError, pickle.PicklingError), match="Local"):
        pickle.dumps(model)


def test_rows_for_a_module_that_was_trained_on_integers():
    model = TorchRegressor(Embedded, standardize=False, max_epochs=1, tol=None).fit(CODES, y)
    expected = model.predict(CODES)
    np.testing.assert_array_equal(model.predict(sp.csr_array(CODES * 1.0)), expected)
    np.testing.assert_array_equal(model.predict(sp.csc_matrix(CODES)), expected)
    other = "trained on integers, but X holds other numbers"
    rows = CODES * 1.0
    for value, message in (
        (np.nan, "Input X contains NaN"),
        (np.inf, "Input X contains infinity"),
        (1e300, other),
        (0.5, other),
    ):
        rows[3, 1] = value
        for X_new in (rows, sp.csr_array(rows), rows.astype(object)):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(ValueError, match=message):
                    model.predict(X_new)
        if np.isfinite(value):
            with pytest.raises(ValueError, match=rf"The validation set \(X_val.*{other}"):
                model.set_params(early_stopping=True).fit(CODES, y, X_val=rows, y_val=y)
    validation = {"X_val": sp.csr_array(CODES * 1.0), "y_val": y}
    assert len(model.fit(CODES, y, **validation).validation_loss_curve_) == 1


@pytest.mark.parametrize("shape", [(50, 3, 0), (50, 0, 3)])
def test_rows_without_numbers(shape):
    with pytest.raises(ValueError, match=r"rows of shape \(.*which hold no numbers"):
        TorchRegressor(nn.LazyLinear(1)).fit(np.zeros(shape), y)
