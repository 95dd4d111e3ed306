"""Searches that train modules as stacks, against scikit-learn's search over the same estimator."""

import pickle

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
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
    Recurrent,
    SlowAverage,
    Tied,
    Uncertain,
    UncertainByRow,
    two_layers,
)

from sktorch_linreg import (
    BatchedGridSearchCV,
    TorchLinearRegressor,
    TorchMLPRegressor,
    TorchRegressor,
)
from sktorch_linreg._training.stacked_modules import ModulesResult
from sktorch_linreg.model_selection import evaluation

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

rng = np.random.default_rng(0)
X = rng.normal(size=(91, 4)) + 5
STEPS, CODES = rng.normal(size=(91, 7, 3)), rng.integers(0, 10, size=(91, 2))
MIXED = np.c_[rng.integers(0, 5, size=91), rng.normal(size=(91, 2))]
y = X @ [1.0, 2.0, 3.0, 4.0] + np.sin(3 * X[:, 0])
SETTINGS = {"max_epochs": 5, "tol": None, "random_state": 0, "batch_size": 16, "dtype": "float64"}
GRID = {"lr": [0.001, 0.01, 0.05], "alpha": [0.0, 0.1]}


def searched(model, rows, targets, grid=GRID, **settings):
    """The results of both searches, and what ours said about its stacks."""
    said = []
    settings = {"cv": 3, "return_train_score": True, **settings}
    ours = BatchedGridSearchCV(model, grid, **settings)
    describe = evaluation.describe
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "describe", lambda plan: said.append(describe(plan)) or said[-1])
        ours.set_params(verbose=1).fit(rows, targets)
    theirs = GridSearchCV(model, grid, **settings).fit(rows, targets)
    return ours, theirs, said[0]


def assert_alike(ours, theirs, tolerance=1e-6):
    for name, values in theirs.cv_results_.items():
        is_score = name.startswith(("mean_t", "split")) and "time" not in name
        if is_score:
            assert_allclose(ours.cv_results_[name], values, tolerance, tolerance, err_msg=name)


def dropping(n_features):
    return nn.Sequential(
        nn.Linear(n_features, 8), nn.Dropout(0.3), nn.BatchNorm1d(8), nn.Linear(8, 1)
    )


class Hooked(nn.Module):
    """A hook that closes over the module."""

    def __init__(self, n_features):
        super().__init__()
        self.body, self.out = nn.Linear(n_features, 8), nn.Linear(8, 1)
        self.body.register_forward_hook(lambda m, inputs, output: setattr(self, "seen", output))

    def forward(self, x):
        self.body(x)
        return self.out(torch.tanh(self.seen))


class Initialised(nn.Module):
    """Its first call sets a buffer from the rows, so it differs from fold to fold."""

    def __init__(self, n_features):
        super().__init__()
        self.out = nn.Linear(n_features, 1)
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("is_set", torch.zeros((), dtype=torch.bool))

    def forward(self, x):
        if self.training:
            self.mean = torch.where(self.is_set, self.mean, x.mean(0))
            self.is_set = torch.ones_like(self.is_set)
        return self.out(x - self.mean)


# name: module, rows, settings, whether two values of a target are learned
STACKED = {
    "network": (Net, X, {}),
    "targets": (Net, X, {"module__width": 5}),
    "function": (two_layers, X, {}),
    "torch's class": (nn.Linear, X, {}),
    "instance": (nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)), X, {}),
    "batch normalisation": (BatchNormed, X, {}),
    "batch normalisation, full batch": (BatchNormed, X, {"batch_size": None}),
    "batch normalisation, lone row": (BatchNormed, X, {"batch_size": 15}),
    "tied": (Tied, X, {"module__n_outputs": 1}),
    "frozen": (FrozenFirst, X, {}),
    "in place": (InPlace, X, {}),
    "buffers": (SlowAverage, X, {}),
    "first batch": (Initialised, X, {}),
    "lazy": (LazyThroughout, X, {}),
    "recurrent": (Recurrent, STEPS, {}),
    "recurrent, GRU": (Recurrent, STEPS, {"module__cls": nn.GRU}),
    "convolution": (Convolutional, STEPS, {}),
    "codes": (Embedded, CODES, {"standardize": "target"}),
    "mixed": (Mixed, MIXED, {"standardize": "target", "lr": 0.01}),
    "dropout": (dropping, X, {}),
    "dropout, full batch": (Dropped, X, {"batch_size": None}),
    "early stopping": (BatchNormed, X, {"early_stopping": True, "tol": 1e-2, "max_epochs": 30,
                                        "n_iter_no_change": 2}),
    "plateau": (Net, X, {"tol": 1e-2, "n_iter_no_change": 2, "max_epochs": 40}),
    "schedule": (Net, X, {"lr_schedule": "cosine", "optimizer": "sgd",
                          "optimizer__momentum": 0.5}),
    "lasso": (Net, X, {"l1_ratio": 0.5, "batch_size": 30}),
    "absolute error": (Net, X, {"loss": "absolute_error"}),
    "loss with parameters": (Net, X, {"loss": Uncertain}),
    "loss with parameters, stopped": (BatchNormed, X, {"loss": Uncertain, "early_stopping": True}),
    "loss by row": (Net, X, {"loss": UncertainByRow}),
    "torch's loss": (Net, X, {"loss": nn.SmoothL1Loss}),
    "not standardised": (Net, X, {"standardize": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", STACKED)
def test_scores_are_those_of_grid_search(name):
    module, rows, settings = STACKED[name]
    targets = np.c_[y, -y] if name == "targets" else y
    ours, theirs, said = searched(TorchRegressor(module, **{**SETTINGS, **settings}), rows, targets)
    assert said.startswith("18 of 18 fits run in")
    assert "individually" not in said
    assert_alike(ours, theirs)
    assert ours.best_params_ == theirs.best_params_
    assert_array_equal(ours.predict(rows), theirs.predict(rows))
    again = pickle.loads(pickle.dumps(ours))
    assert_array_equal(again.predict(rows), theirs.predict(rows))


def test_folds_of_two_lengths_and_seeds_and_shapes():
    grid = {"module__width": [4, 9], "random_state": [0, 1], "lr": [0.01, 0.02]}
    ours, theirs, said = searched(TorchRegressor(Net, **SETTINGS), X[:90], y[:90], grid, cv=4)
    # two lengths of folds, two seeds, two widths
    assert said == "32 of 32 fits run in 8 stacks."
    assert_alike(ours, theirs)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_weights_pipelines_and_workers(n_jobs):
    weight = np.random.default_rng(1).uniform(0.5, 2.0, 91)
    model = make_pipeline(StandardScaler(), PCA(3), TorchRegressor(two_layers, **SETTINGS))
    grid = {"torchregressor__lr": [0.01, 0.1], "pca__whiten": [True, False]}
    ours, theirs = (
        cls(model, grid, cv=KFold(3, shuffle=True, random_state=0), n_jobs=n_jobs).fit(
            X, y, torchregressor__sample_weight=weight
        )
        for cls in (BatchedGridSearchCV, GridSearchCV)
    )
    assert_alike(ours, theirs)


@pytest.mark.parametrize("scoring", ["neg_median_absolute_error", ["r2", "neg_max_error"]])
def test_scorers_that_need_each_estimator(scoring):
    model = TorchRegressor(BatchNormed, loss=Uncertain, early_stopping=True, **SETTINGS)
    first = scoring if isinstance(scoring, str) else scoring[0]
    ours, theirs, said = searched(
        model, X, y, scoring=scoring, refit=first if isinstance(scoring, list) else True
    )
    assert "18 of 18" in said
    assert_alike(ours, theirs)


def test_a_validation_set_is_shared():
    model = TorchRegressor(Net, early_stopping=True, **SETTINGS)
    validation = {"X_val": X[:20] + 0.1, "y_val": y[:20]}
    ours, theirs = (
        cls(model, GRID, cv=3).fit(X, y, **validation)
        for cls in (BatchedGridSearchCV, GridSearchCV)
    )
    assert_alike(ours, theirs)


def test_models_that_diverge_score_as_errors():
    grid = {"lr": [0.01, 1e9]}
    model = TorchRegressor(two_layers, optimizer="sgd", **SETTINGS)
    with pytest.warns(Warning, match="3 fits failed"):
        ours = BatchedGridSearchCV(model, grid, cv=3).fit(X, y)
    scores = ours.cv_results_["mean_test_score"]
    assert np.isfinite(scores[0])
    assert np.isnan(scores[1])


class AsksForValues(Net):
    """Its forward depends on a number in a tensor, which vmap cannot read."""

    def forward(self, x):
        return super().forward(x) * (2.0 if float(x.sum()) > 0 else 1.0)


class Momentless(nn.Module):
    """The average of all batches, which reads the number of batches."""

    def __init__(self, n_features):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(n_features, 4), nn.BatchNorm1d(4, momentum=None), nn.Linear(4, 1)
        )

    def forward(self, x):
        return self.body(x)


class MixesInEval(nn.Module):
    def __init__(self, n_features):
        super().__init__()
        self.out = nn.Linear(n_features, 1)

    def forward(self, x):
        return self.out(x - x.mean(0))


class SetsNone(nn.Module):
    """A buffer that is None until the first call."""

    def __init__(self, n_features):
        super().__init__()
        self.out = nn.Linear(n_features, 1)
        self.register_buffer("mean", None)

    def forward(self, x):
        if self.training:
            self.mean = x.detach().mean(0) if self.mean is None else 0.5 * self.mean
        return self.out(x - self.mean) if self.mean is not None else self.out(x)


class Remembers(Net):
    """Uses what the call before has left in an attribute."""

    level = 0.0

    def forward(self, x):
        out = super().forward(x) + self.level
        if self.training:
            self.level = 0.1 * out.detach().mean()
        return out


class ByList(nn.Module):
    """Its parameters are used by another way than by their names."""

    def __init__(self, n_features):
        super().__init__()
        self.weights = []
        for i, shape in enumerate([(n_features, 8), (8, 1)]):
            self.weights.append(nn.Parameter(0.3 * torch.randn(shape)))
            self.register_parameter(f"w{i}", self.weights[-1])

    def forward(self, x):
        return torch.tanh(x @ self.weights[0]) @ self.weights[1]


class Masked(nn.Module):
    """A hook of a parameter freezes part of it."""

    def __init__(self, n_features):
        super().__init__()
        self.out = nn.Linear(n_features, 1)
        mask = torch.arange(n_features) > 1
        self.out.weight.register_hook(lambda gradient: gradient * mask)

    def forward(self, x):
        return self.out(x)


class Warm(nn.Module):
    """A step counter decides what it computes, but only after the trial."""

    def __init__(self, n_features):
        super().__init__()
        self.body, self.out, self.n_steps = nn.Linear(n_features, 8), nn.Linear(8, 1), 0

    def forward(self, x):
        self.n_steps += self.training
        h = torch.tanh(self.body(x))
        return self.out(torch.relu(h) if self.n_steps > 10 else h)


class Cached(nn.Module):
    """Keeps a number in evaluation mode."""

    cache = None

    def __init__(self, n_features):
        super().__init__()
        self.out = nn.Linear(n_features, 1)

    def train(self, mode=True):
        self.cache = None
        return super().train(mode)

    def forward(self, x):
        if self.training:
            return self.out(x) / self.out.weight.norm()
        if self.cache is None:
            self.cache = self.out.weight.norm().item()
        return self.out(x) / self.cache


class CountsCalls(nn.Module):
    """A buffer that predictions change too."""

    def __init__(self, n_features):
        super().__init__()
        self.out = nn.Linear(n_features, 1)
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x):
        self.n = self.n + 1
        return self.out(x) * (torch.clamp(self.n / 60, max=1.0) if self.training else 1.0)


BACKBONE = nn.Linear(4, 16).requires_grad_(False)


def headed(n_features):
    return nn.Sequential(BACKBONE, nn.Tanh(), nn.Linear(16, 1))


ALONE = {
    ByList: "module=ByList",
    Masked: "module=Masked",
    Warm: "module=Warm: an attribute of it changes with its calls",
    Cached: "module=Cached",
    CountsCalls: "module=CountsCalls: its buffers change in evaluation mode",
    Hooked: "module=Hooked: an attribute of it changes with its calls",
    headed: "module=headed: it shares parameters or buffers with other modules",
    AsksForValues: "module=AsksForValues",
    Momentless: "module=Momentless",
    MixesInEval: "module=MixesInEval: its predictions may depend on the other rows",
    SetsNone: "module=SetsNone",
    Remembers: "module=Remembers",
    MadeInForward: None,
}


@pytest.mark.parametrize("module", ALONE)
def test_modules_that_cannot_be_stacked_are_fitted_one_by_one(module):
    model = TorchRegressor(module, early_stopping=True, **{**SETTINGS, "max_epochs": 12})
    ours, theirs, said = searched(model, X, y, {"lr": [0.01, 0.05]})
    if ALONE[module] is not None:
        assert said.startswith("0 of 6 fits")
        assert ALONE[module] in said
    assert_alike(ours, theirs, 1e-12)


class Fails(Net):
    def forward(self, x):
        raise KeyError("no such entry")


def test_errors_of_a_module_are_those_of_grid_search():
    for cls in (BatchedGridSearchCV, GridSearchCV):
        with pytest.raises(ValueError, match=r"(?s)All the 6 fits failed.*no such entry"):
            cls(TorchRegressor(Fails), {"lr": [0.01, 0.1]}, cv=3).fit(X, y)


def test_a_search_leaves_global_state_and_the_instance():
    given = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.1), nn.Linear(3, 1))
    before = {name: value.clone() for name, value in given.state_dict().items()}
    torch.manual_seed(0)
    state, mkldnn = torch.get_rng_state(), torch._C._get_mkldnn_enabled()
    BatchedGridSearchCV(TorchRegressor(given, **SETTINGS), GRID, cv=3).fit(X, y)
    recurrent = TorchRegressor(Recurrent, **{**SETTINGS, "dtype": "float32"})
    BatchedGridSearchCV(recurrent, {"lr": [0.01, 0.1]}, cv=2).fit(STEPS, y)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch._C._get_mkldnn_enabled() == mkldnn
    for name, value in given.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in given.parameters())


def test_a_seed_repeats_and_matches_a_lone_fit():
    model = TorchRegressor(dropping, **SETTINGS)
    searches = [BatchedGridSearchCV(clone(model), GRID, cv=3).fit(X, y) for _ in range(2)]
    for name, values in searches[0].cv_results_.items():
        if "score" in name and "time" not in name:
            assert_array_equal(values, searches[1].cv_results_[name])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_single_precision_is_close(dtype):
    model = TorchRegressor(Convolutional, **{**SETTINGS, "dtype": dtype})
    ours, theirs, _ = searched(model, STEPS.astype(np.float32), y.astype(np.float32))
    assert_alike(ours, theirs, 1e-6 if dtype == "float64" else 1e-3)


class ByRow(nn.Module):
    """One number per row, whatever the number of targets."""

    def __init__(self, reduction="mean"):
        super().__init__()
        self.reduction = reduction

    def forward(self, prediction, target):
        values = (prediction - target).square().mean(1)
        return values if self.reduction == "none" else values.mean()


class Quantiles(ByRow):
    """Three numbers per row."""

    def forward(self, prediction, target):
        level = torch.tensor([0.1, 0.5, 0.9])
        residual = target[:, :1] - prediction[:, :1]
        values = torch.maximum(level * residual, (level - 1) * residual)
        return values if self.reduction == "none" else values.mean()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("targets", [y, np.c_[y, -y]], ids=["one", "two"])
@pytest.mark.parametrize("loss", [ByRow, Quantiles])
@pytest.mark.parametrize(
    "model", [TorchRegressor(nn.Linear), TorchMLPRegressor(), TorchLinearRegressor()]
)
def test_losses_of_any_number_of_values_per_row(model, loss, targets, weighted):
    model = clone(model).set_params(loss=loss, optimizer="sgd", early_stopping=True, **SETTINGS)
    fit = {"sample_weight": np.random.default_rng(1).uniform(0.5, 2, 91)} if weighted else {}
    grid = {"lr": [0.01, 0.05]}
    ours, theirs = (
        cls(model, grid, cv=3, return_train_score=True).fit(X, targets, **fit)
        for cls in (BatchedGridSearchCV, GridSearchCV)
    )
    assert_alike(ours, theirs)


class Logarithm(nn.Module):
    def __init__(self, n_features):
        super().__init__()
        self.out = nn.Linear(n_features, 1)

    def forward(self, x):
        return self.out(torch.log(x))


def test_no_row_of_zeros_reaches_a_module():
    rows = np.abs(X[:60]) + 0.5
    # merged in a full batch, so that folds have different lengths
    rows = np.r_[rows, rows[:7]]
    model = TorchRegressor(Logarithm, **{**SETTINGS, "batch_size": None, "standardize": False})
    ours, theirs, _ = searched(model, rows, rows.sum(1), {"lr": [0.01, 0.05]})
    assert np.isfinite(theirs.cv_results_["mean_test_score"]).all()
    assert_alike(ours, theirs)


class NoisyLoss(nn.Module):
    def forward(self, prediction, target):
        return (prediction + torch.randn_like(prediction) - target).square().mean()


@pytest.mark.parametrize("module", [dropping, two_layers])
def test_losses_that_draw(module):
    model = TorchRegressor(module, loss=NoisyLoss, early_stopping=True, **SETTINGS)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        ours, theirs, _ = searched(model, X, y)
        assert torch.equal(torch.get_rng_state(), before)
        assert_alike(ours, theirs)
        found.append(ours.cv_results_["mean_test_score"])
    assert_array_equal(*found)


class Hashed(nn.Module):
    """Embeddings of any integers."""

    def __init__(self, n_features):
        super().__init__()
        self.codes, self.out = nn.Embedding(50, 4), nn.Linear(4 * n_features, 1)

    def forward(self, x):
        return self.out(self.codes(x % 50).flatten(1))


@pytest.mark.parametrize("where", ["training rows of some folds", "validation set"])
def test_integers_that_a_float_would_round(where):
    settings = {**SETTINGS, "standardize": "target", "dtype": "float32", "early_stopping": True}
    rows, large = CODES.copy(), 2**24 + 1 + 2 * np.arange(20)[:, None] * [1, 3]
    fit = {}
    if where == "validation set":
        fit = {"X_val": large, "y_val": y[:20]}
    else:
        rows[:10] = large[:10]
    grid = {"lr": [0.01, 0.05]}
    ours, theirs = (
        cls(TorchRegressor(Hashed, **settings), grid, cv=3).fit(rows, y, **fit)
        for cls in (BatchedGridSearchCV, GridSearchCV)
    )
    assert_alike(ours, theirs, 1e-4)


def test_models_that_share_a_part_are_safe_on_threads():
    model = TorchRegressor(headed, **SETTINGS)
    before = BACKBONE.weight.clone()
    with joblib.parallel_config("threading", n_jobs=4):
        ours = BatchedGridSearchCV(model, {"lr": [0.01, 0.05], "batch_size": [8, 16]}, cv=3)
        ours.fit(X, y)
    theirs = GridSearchCV(model, {"lr": [0.01, 0.05], "batch_size": [8, 16]}, cv=3).fit(X, y)
    assert_alike(ours, theirs)
    assert torch.equal(BACKBONE.weight, before)
    assert np.isfinite(BACKBONE(torch.ones(1, 4).to(BACKBONE.weight)).sum().item())


def test_scores_of_many_models_are_computed_together():
    calls = []
    predict = ModulesResult.predict
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModulesResult, "predict", lambda *args: calls.append(1) or predict(*args))
        BatchedGridSearchCV(TorchRegressor(Net, **SETTINGS), GRID, cv=3, refit=False).fit(X, y)
    assert len(calls) == 3


@pytest.mark.filterwarnings("error")
def test_there_are_no_warnings():
    model = TorchRegressor(BatchNormed, early_stopping=True, **SETTINGS)
    BatchedGridSearchCV(model, GRID, cv=3).fit(X, y)
