"""Modules that nobody here wrote, and what scikit-learn's tools do with them."""

import copy
import pickle
import threading

import numpy as np
import pytest
import scipy.sparse as sp
import skorch.callbacks
import torch
from numpy.testing import assert_allclose, assert_array_equal
from rtdl_revisiting_models import MLP, FTTransformer, ResNet
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import make_regression
from sklearn.ensemble import BaggingRegressor, StackingRegressor
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_squared_error, r2_score
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.multioutput import MultiOutputRegressor, RegressorChain
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from tabm import TabM
from torch import nn
from user_modules import (
    BatchNormed,
    Convolutional,
    Dropped,
    Embedded,
    FrozenFirst,
    InPlace,
    LazyThroughout,
    MadeInForward,
    Mixed,
    Net,
    OneLinear,
    Recurrent,
    SlowAverage,
    ThreeOfEight,
    Tied,
    two_layers,
)

from sktorch_linreg import (
    TorchMLPRegressor,
    TorchRegressor,
    lr_range_test,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

rng = np.random.default_rng(0)
# far from 0, and of different sizes
X = rng.normal(size=(120, 5)) * [1, 10, 100, 0.1, 1] + [0, 5, 5000, 2, -1]
y = X[:, 0] + 0.01 * X[:, 2] + 0.1 * rng.normal(size=120)
Y = np.c_[y, 3 * X[:, 1]]
STEPS = 10 * rng.normal(size=(120, 7, 3)) + 50
CODES = rng.integers(0, 10, size=(120, 3))
MIXED = np.c_[rng.integers(0, 5, 120), X]
ZOO = {
    "batch normalisation": (BatchNormed, X, Y, {}),
    "in place": (InPlace, X, Y, {}),
    "tied": (Tied, X, Y, {}),
    "frozen": (FrozenFirst, X, y, {}),
    "dropout": (Dropped, X, y, {}),
    "LSTM": (Recurrent, STEPS, STEPS[:, -1, 0], {}),
    "GRU": (Recurrent, STEPS, STEPS[:, -1, 0], {"module__cls": nn.GRU}),
    "convolution": (Convolutional, STEPS, STEPS[:, 0].sum(1), {}),
    "embeddings": (Embedded, CODES, 1.0 * CODES[:, 0], {"standardize": "target"}),
    "mixed": (Mixed, MIXED, y + MIXED[:, 0], {"standardize": "target"}),
    "lazy": (LazyThroughout, X, y, {}),
    "made in forward": (MadeInForward, X, y, {}),
    "buffers": (SlowAverage, X, y, {}),
    "function": (two_layers, X, Y, {}),
}
# codes beside features that are not scaled: the others are far from 0
MIXED[:, 1:] = (MIXED[:, 1:] - X.mean(0)) / X.std(0)


def fitted(name, **settings):
    module, A, b, options = ZOO[name]
    settings = {"lr": 0.02, "max_epochs": 40, "random_state": 0, "tol": None, **settings}
    return TorchRegressor(module, **options, **settings).fit(A, b), A, b


def raw(A, like):
    return torch.as_tensor(A) if A.dtype.kind == "i" else torch.as_tensor(A, dtype=like.dtype)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_size": 17},
        {"early_stopping": True, "batch_size": 32, "tol": 1e-4},
        {"dtype": "float64", "alpha": 0.01, "l1_ratio": 0.5},
        {"optimizer": "lbfgs", "max_epochs": 4},
    ],
    ids=str,
)
def test_each_learns_and_predicts_the_same_everywhere(name, settings):
    model, A, b = fitted(name, **settings)
    kept_A, kept_b = A.copy(), b.copy()
    again, *_ = fitted(name, **settings)
    predicted = model.predict(A)
    assert_array_equal(again.predict(A), predicted)
    assert predicted.shape == b.shape
    assert predicted.dtype == np.float64
    assert model.loss_curve_[-1] < model.loss_curve_[0]
    assert_array_equal(pickle.loads(pickle.dumps(model)).predict(A), predicted)
    assert_array_equal(copy.deepcopy(model).predict(A), predicted)
    # the module and the net compute in float32 throughout
    tolerance = 1e-9 if settings.get("dtype") else 1e-3 * np.abs(b).max()
    module = model.module_
    assert not module.training
    out = module(raw(A, module.x_offset)).detach().numpy().reshape(b.shape)
    assert_allclose(out, predicted, rtol=1e-3, atol=tolerance)
    assert_allclose(model.net_.predict(A).reshape(b.shape), predicted, rtol=1e-3, atol=tolerance)
    # rows are not changed, by whatever the module does with them
    assert_array_equal(A, kept_A)
    assert_array_equal(b, kept_b)
    # predictions do not depend on the block of rows
    assert_allclose(model.predict(A[7:8])[0], predicted[7], rtol=1e-4, atol=1e-5 * np.ptp(b))


@pytest.mark.parametrize("name", ZOO)
def test_each_continues_after_a_round_trip(name):
    module, A, b, options = ZOO[name]
    model = TorchRegressor(module, random_state=0, lr=0.02, **options)
    for part in (slice(0, 50), slice(50, 120)):
        model.partial_fit(A[part], b[part])
    back = pickle.loads(pickle.dumps(model))
    assert_array_equal(back.predict(A), model.predict(A))
    assert_array_equal(back.partial_fit(A, b).predict(A), model.partial_fit(A, b).predict(A))
    warm = clone(model).set_params(warm_start=True, max_epochs=3, tol=None).fit(A, b)
    back = pickle.loads(pickle.dumps(warm))
    assert_array_equal(back.fit(A, b).predict(A), warm.fit(A, b).predict(A))
    assert len(warm.loss_curve_) == 6


@pytest.mark.parametrize("name", ["batch normalisation", "dropout", "LSTM", "buffers"])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_fit_that_was_cut_off_resumes_bit_by_bit(name, early_stopping, tmp_path):
    module, A, b, options = ZOO[name]

    class CutOff(skorch.callbacks.Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 7:
                raise OSError("power failure")

    settings = {
        "max_epochs": 12, "tol": None, "random_state": 0, "batch_size": 32,
        "early_stopping": early_stopping, "lr": 0.05, **options,
    }  # fmt: skip
    model = TorchRegressor(module, **settings)
    expected = clone(model).fit(A, b)
    writing = {"checkpoint_dir": tmp_path, "checkpoint_every": 3}
    with pytest.raises(OSError, match="power"):
        clone(model).set_params(callbacks=[CutOff()], **writing).fit(A, b)
    resumed = clone(model).set_params(**writing).fit(A, b)
    assert_array_equal(resumed.predict(A), expected.predict(A))
    assert resumed.loss_curve_ == expected.loss_curve_
    with pytest.raises(ValueError, match="a different fit: module was"):
        clone(model).set_params(module=Net, **writing).fit(X, y)


def test_best_weights_come_with_their_buffers():
    kept = {}

    class Watch(skorch.callbacks.Callback):
        def on_epoch_end(self, net, **kwargs):
            if net.history[-1]["valid_loss_best"]:
                state = net.module_.module.state_dict()
                kept.update({k: v.clone() for k, v in state.items()})

    model = TorchRegressor(
        BatchNormed, lr=0.3, max_epochs=60, early_stopping=True, n_iter_no_change=8,
        batch_size=16, random_state=0, callbacks=[Watch()],
    ).fit(X, y)  # fmt: skip
    assert np.argmin(model.validation_loss_curve_) < model.n_iter_ - 1
    for name, values in model.module_.module.state_dict().items():
        assert torch.equal(values, kept[name]), name


@pytest.mark.parametrize("rows", ["float32", "float64", "integers", "sparse"])
def test_predictions_have_the_dtype_of_the_rows(rows):
    A = np.round(X)
    A = {
        "float32": A.astype(np.float32), "float64": A, "integers": A.astype(int),
        "sparse": sp.csr_array(A),
    }[rows]  # fmt: skip
    model = TorchRegressor(Net, max_epochs=20, random_state=0).fit(A, y)
    assert model.predict(A).dtype == (np.float32 if rows == "float32" else np.float64)
    dense = TorchRegressor(Net, max_epochs=20, random_state=0).fit(np.round(X), y)
    assert_allclose(model.predict(A), dense.predict(np.round(X)), rtol=1e-3, atol=1e-3)


def test_columns_far_from_0_lose_no_digits():
    # float32 holds 1e8 in steps of 8
    far = X[:, [0]] + 1e8
    model = TorchRegressor(nn.Linear, max_epochs=300, lr=0.05, tol=None).fit(far, X[:, 0])
    assert model.score(far, X[:, 0]) > 0.999


def test_standardize_takes_either_side():
    settings = {"max_epochs": 3, "tol": None, "random_state": 0, "dtype": "float64"}
    Z, t = (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()
    whole = TorchRegressor(Net, **settings).fit(X, y).predict(X)
    features = TorchRegressor(Net, standardize="features", **settings).fit(X, t).predict(X)
    target = TorchRegressor(Net, standardize="target", **settings).fit(Z, y).predict(Z)
    assert_allclose(features * y.std() + y.mean(), whole, rtol=1e-9)
    assert_allclose(target, whole, rtol=1e-9)


def test_a_first_batch_of_one_row_spoils_nothing():
    model = TorchRegressor(Net, random_state=0, lr=0.02)
    model.partial_fit(X[:1], y[:1])
    assert_allclose(model.predict(X), y[0])
    for _ in range(150):
        model.partial_fit(X, y)
    assert model.score(X, y) > 0.95
    # from then on the scaling stays
    before = dict(model._scaling)
    model.partial_fit(X + 1000, y)
    for name, values in before.items():
        assert_array_equal(model._scaling[name], values)


def test_penalties_apply_to_weights_alone():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.vector = nn.Parameter(torch.ones(1, 5)), nn.Parameter(torch.ones(5))
            self.matrix_bias = nn.Parameter(torch.ones(1, 5))
            self.token, self.tokens = (
                nn.Parameter(torch.ones(1, 1, 5)),
                nn.Parameter(torch.ones(2, 1, 5)),
            )
            self.frozen = nn.Parameter(torch.ones(5, 5), requires_grad=False)

        def forward(self, x):
            parts = self.vector + self.matrix_bias + self.token[0] + self.tokens[0] + self.tokens[1]
            return x @ self.weight.T + 0.0 * (parts + self.frozen[0]).sum()

    model = TorchRegressor(
        Parts, alpha=0.1, optimizer="sgd", lr=0.1, max_epochs=20, tol=None
    ).fit(X, np.ones(120))  # fmt: skip
    shrunk = {k: float(v.detach().max()) for k, v in model.module_.module.named_parameters()}
    same = {name for name, value in shrunk.items() if value == 1.0}
    assert same == {"vector", "matrix_bias", "token", "frozen"}
    assert max(shrunk["weight"], shrunk["tokens"]) < 0.9
    # L1 makes zeros that are exact
    sparse = TorchRegressor(
        OneLinear, module__input_dim=5, alpha=0.5, l1_ratio=1.0, max_epochs=300, lr=0.05,
        dtype="float64", random_state=0,
    ).fit(X, y)  # fmt: skip
    weight = sparse.module_.module.linear.weight.detach().numpy()
    assert (weight == 0).sum() >= 3


# -- the published workflows, with the modules as they describe them ------------------------------


def test_workflow_a_one_linear_layer_in_a_class():
    draw = np.random.default_rng(4)
    A = draw.normal(size=(1000, 4)).astype(np.float32)
    b = (A @ draw.normal(size=4) + 0.1 * draw.normal(size=1000)).astype(np.float32)
    model = TorchRegressor(
        OneLinear, optimizer="sgd", lr=0.01, batch_size=128, shuffle=False, max_epochs=100,
        tol=None, standardize=False, random_state=0,
    ).fit(A, b)  # fmt: skip
    exact = LinearRegression().fit(A, b)
    weight = model.module_.module.linear.weight.detach().numpy()[0]
    assert_allclose(weight, exact.coef_, atol=1e-3)
    assert abs(model.loss_curve_[35] - 0.0095) < 0.002
    # a target of shape (n, 1) is the same fit, and comes back as it was
    column = clone(model).fit(A, b[:, None])
    assert_array_equal(column.predict(A)[:, 0], model.predict(A))


def test_workflow_b_epoch_by_epoch():
    A = np.arange(1, 51, dtype=np.float32)[:, None]
    before = torch.get_rng_state()
    torch.manual_seed(71)
    noise = torch.randint(-8, 9, (50, 1), dtype=torch.float).numpy()
    torch.set_rng_state(before)
    model = TorchRegressor(
        nn.Linear, optimizer="sgd", lr=0.001, batch_size=None, max_epochs=50, tol=None,
        standardize=False, random_state=59,
    ).fit(A, 2 * A + 1 + noise)  # fmt: skip
    layer = model.module_.module
    assert float(layer.weight.detach()) == pytest.approx(1.98381913, rel=1e-6)
    assert float(layer.bias.detach()) == pytest.approx(1.05575156, rel=1e-6)


def test_workflow_c_two_targets():
    A = np.array([[73, 67, 43], [91, 88, 64], [87, 134, 58], [102, 43, 37], [69, 96, 70]], float)
    B = np.array([[56, 70], [81, 101], [119, 133], [22, 37], [103, 119]], float)
    model = TorchRegressor(
        nn.Linear, optimizer="sgd", lr=1e-5, batch_size=5, max_epochs=100, tol=None,
        standardize=False, random_state=0,
    ).fit(np.tile(A, (3, 1)), np.tile(B, (3, 1)))  # fmt: skip
    # the mean over both targets is the loss
    error = ((model.predict(A) - B) ** 2).mean()
    assert error < 40
    assert model.loss_curve_[0] > 20 * error


def test_workflow_d_three_layers_of_eight():
    A, b, _ = make_regression(
        n_samples=1200, n_features=1, bias=3.0, noise=2, random_state=42, shuffle=True, coef=True
    )
    b = np.sin(2 * A[:, 0]) + np.random.default_rng(0).normal(size=1200) * 0.1
    rest = A[:1000], b[:1000]
    A_train, A_val, b_train, b_val = train_test_split(
        *rest, test_size=0.20, random_state=42, shuffle=True
    )
    model = TorchRegressor(
        ThreeOfEight, batch_size=None, max_epochs=2000, tol=None, early_stopping=True,
        n_iter_no_change=np.inf, lr=0.005, standardize=False, random_state=0,
    ).fit(A_train, b_train, X_val=A_val, y_val=b_val)  # fmt: skip
    assert len(model.validation_loss_curve_) == len(model.loss_curve_)
    predicted = model.predict(A[1000:])
    assert r2_score(b[1000:], predicted) > 0.96
    assert mean_squared_error(b[1000:], predicted) < 0.02


def test_workflow_e_nadam_on_raw_data():
    A = np.array([36961, 43621, 15694, 36231, 29945, 40588, 75255, 37709, 30899, 25486, 37497,
                  40398, 74105, 76725, 18317], float)[:, None]  # fmt: skip
    b = np.array([2503, 2992, 1042, 2487, 2014, 2805, 5062, 2643, 2126, 1784, 2641, 2766, 5047,
                  5312, 1215], float)  # fmt: skip
    settings = {"optimizer": "nadam", "lr": 0.01, "max_epochs": 250, "tol": None,
                "batch_size": None, "standardize": False, "random_state": 4321}  # fmt: skip
    model = TorchRegressor(nn.Linear, **settings).fit(A, b)
    ours = TorchMLPRegressor(hidden_layer_sizes=(), alpha=0.0, **settings).fit(A, b)
    assert_allclose(model.predict(A), ours.predict(A), rtol=1e-5)
    assert_allclose(model.loss_curve_, ours.loss_curve_, rtol=1e-5)


# -- a package of tabular networks ----------------------------------------------------------------


def tabm(n_features, n_outputs, k=4):
    """TabM predicts k times; its mean is the prediction."""
    model = TabM.make(n_num_features=n_features, d_out=n_outputs, k=k, n_blocks=1, d_block=32)

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x).mean(1)

    return Mean()


def transformer(n_features, n_outputs):
    class Numeric(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = FTTransformer(
                n_cont_features=n_features, cat_cardinalities=[], d_out=n_outputs, n_blocks=1,
                d_block=16, attention_n_heads=2, attention_dropout=0.1, ffn_d_hidden=16,
                ffn_d_hidden_multiplier=None, ffn_dropout=0.1, residual_dropout=0.0,
            )  # fmt: skip

        def forward(self, x):
            return self.model(x, None)

    return Numeric()


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (MLP, {"d_in": 5, "d_out": 2, "n_blocks": 2, "d_block": 32, "dropout": 0.1}),
        (ResNet, {"d_in": 5, "d_out": 2, "n_blocks": 1, "d_block": 16, "d_hidden_multiplier": 2.0,
                  "dropout1": 0.1, "dropout2": 0.0}),
        (tabm, {}),
        (transformer, {}),
    ],
)  # fmt: skip
def test_tabular_networks(module, options):
    options = {f"module__{name}": value for name, value in options.items()}
    model = TorchRegressor(
        module, lr=0.01, max_epochs=60, batch_size=32, random_state=0, alpha=1e-4, **options
    )
    first, second = clone(model).fit(X, Y), clone(model).fit(X, Y)
    assert_array_equal(first.predict(X), second.predict(X))
    assert first.score(X, Y) > 0.7


# -- scikit-learn's tools -------------------------------------------------------------------------

SMALL = TorchRegressor(BatchNormed, max_epochs=40, lr=0.02, random_state=0)


def test_meta_estimators():
    for model, targets in (
        (RegressorChain(SMALL), Y),
        (MultiOutputRegressor(SMALL), Y),
        (BaggingRegressor(SMALL, n_estimators=3, random_state=0), y),
        (StackingRegressor([("net", SMALL), ("line", LinearRegression())], cv=3), y),
        (make_pipeline(StandardScaler(), SMALL), Y),
    ):
        assert model.fit(X, targets).score(X, targets) > 0.7
    positive = np.exp(0.1 * (y - y.mean()))
    model = TransformedTargetRegressor(SMALL, func=np.log, inverse_func=np.exp)
    assert model.fit(X, positive).score(X, positive) > 0.7


def test_inspection():
    model = clone(SMALL).fit(X, y)
    found = permutation_importance(model, X, y, n_repeats=3, random_state=0).importances_mean
    assert set(np.argsort(found)[-2:]) == {0, 2}
    curve = partial_dependence(model, X, [0])
    values = curve["average"][0]
    assert values[-1] > values[0]


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_searches_in_workers(backend):
    grid = {"lr": [0.02, 0.001], "module__width": [4, 16]}
    search = GridSearchCV(SMALL, grid, cv=2)
    alone = clone(search).fit(X, y)
    import joblib

    with joblib.parallel_config(backend):
        shared = clone(search).set_params(n_jobs=2).fit(X, y)
    for key in ("mean_test_score", "std_test_score"):
        assert_array_equal(shared.cv_results_[key], alone.cv_results_[key])


def test_fits_in_threads_draw_as_alone():
    model = TorchRegressor(Dropped, max_epochs=5, tol=None, batch_size=16)
    expected = {seed: clone(model).set_params(random_state=seed).fit(X, y) for seed in range(4)}
    found = {}

    def work(seed):
        found[seed] = clone(model).set_params(random_state=seed).fit(X, y)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, one in expected.items():
        assert_array_equal(found[seed].predict(X), one.predict(X))


def test_callbacks_see_rows_in_their_own_shape_and_units():
    seen = []

    class Watch(skorch.callbacks.Callback):
        def on_train_begin(self, net, X=None, y=None, **kwargs):
            seen.append(tuple(X.shape))

        def on_batch_end(self, net, batch, training, y_pred, **kwargs):
            seen.append((tuple(batch[0].shape), float(batch[0].mean()), tuple(y_pred.shape)))

    settings = {"max_epochs": 1, "tol": None, "batch_size": 60, "random_state": 0}
    TorchRegressor(Recurrent, callbacks=[Watch()], **settings).fit(STEPS, STEPS[:, 0, 0])
    assert seen[0] == (120, 7, 3)
    for shape, mean, out in seen[1:]:
        assert (shape, out) == ((60, 7, 3), (60, 1))
        assert abs(mean - 50) < 2


def test_freezing_and_unfreezing_in_training():
    weights = []

    class Watch(skorch.callbacks.Callback):
        def on_epoch_end(self, net, **kwargs):
            weights.append(net.module_.module.first.weight.detach().clone())

    unfreeze = skorch.callbacks.Unfreezer("module.first.*", at=4)
    model = TorchRegressor(
        FrozenFirst, max_epochs=6, tol=None, random_state=0, callbacks=[unfreeze, Watch()]
    ).fit(X, y)
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[2], weights[3])
    assert not torch.equal(weights[3], weights[5])
    restored = pickle.loads(pickle.dumps(model.set_params(callbacks=None)))
    assert_array_equal(restored.predict(X), model.predict(X))


def test_a_range_test_of_learning_rates():
    found = lr_range_test(SMALL, X, y)
    assert 1e-4 < found.suggested_lr < 1


def test_a_validation_set_of_rows_of_any_shape():
    b = STEPS[:, -1, 0]
    model = TorchRegressor(Recurrent, early_stopping=True, max_epochs=20, lr=0.02, random_state=0)
    model.fit(STEPS[:90], b[:90], X_val=STEPS[90:], y_val=b[90:])
    assert len(model.validation_loss_curve_) == model.n_iter_
    with pytest.raises(ValueError, match=r"validation set.*shape \(7, 2\).*shape \(7, 3\)"):
        model.fit(STEPS[:90], b[:90], X_val=STEPS[90:, :, :2], y_val=b[90:])


CHECKED = {
    "class": Net,
    "function": two_layers,
    "instance": nn.Sequential(nn.LazyLinear(64), nn.Tanh(), nn.LazyLinear(1)),
    "batch normalisation": BatchNormed,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CHECKED)
def test_estimator_checks(name):
    model = TorchRegressor(CHECKED[name], random_state=0, max_epochs=40, lr=0.02)
    if name != "instance":
        model.set_params(module__width=32)
    equivalence = "check_sample_weight_equivalence_on_"
    expected = {
        "instance": {"check_regressor_multioutput": "it has one output"},
        "batch normalisation": {
            "check_fit2d_1sample": "torch's error for one row",
            # a row that counts twice is not two rows of a batch
            **{f"{equivalence}{kind}_data": "" for kind in ("dense", "sparse")},
        },
    }.get(name, {})
    found = check_estimator(model, expected_failed_checks=expected, on_skip=None)
    assert {check["status"] for check in found} <= {"passed", "xfail"}
