"""The stacked engine against its oracle: every model trained alone."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import clone

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor
from sktorch_linreg._data.validation import validate_rows
from sktorch_linreg._errors import TrainingDivergedError
from sktorch_linreg._runtime.torch_modes import own_torch_settings
from sktorch_linreg._spec import RunContext
from sktorch_linreg._training import batches
from sktorch_linreg._training.many_networks import train_models
from sktorch_linreg._training.train import train


def rows(n=103, d=5, k=1, seed=0, dtype=np.float64, weighted=False):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * rng.uniform(0.1, 10, d) + rng.normal(size=d)
    y = np.abs(X @ rng.normal(size=(d, k)) + rng.normal(size=(n, k)))
    weight = rng.uniform(0.2, 3, n) if weighted else None
    return X.astype(dtype), (y[:, 0] if k == 1 else y).astype(dtype), weight


def alone_fit(data, spec):
    with own_torch_settings(torch.device("cpu")):
        return train(data, spec, RunContext())


def compare(base, grid, sets, tolerance=1e-9):
    """Train a grid on several sets of rows as one stack, and one by one."""
    candidates = [clone(base).set_params(**params) for params in grid]
    data = [validate_rows(clone(base), *parts, reset=True)[0] for parts in sets]
    specs = [[c._make_spec(d, RunContext()) for c in candidates] for d in data]
    out = train_models(data, range(len(data)), specs, curves=True)
    for g, c in np.ndindex(len(data), len(candidates)):
        found = out.errors.get((g, c))
        if found is not None:
            with pytest.raises(TrainingDivergedError) as raised:
                alone_fit(data[g], specs[g][c])
            assert (found.epoch, found.lr) == (raised.value.epoch, raised.value.lr)
            continue
        alone = alone_fit(data[g], specs[g][c])
        assert out.n_iter[g, c] == alone.n_iter
        assert bool(out.unfinished[g, c]) == bool(alone.warnings)
        for mine, its in zip(out.parameters.layers(g, c), alone.trained, strict=True):
            np.testing.assert_allclose(mine[0], its[0], rtol=0, atol=tolerance)
            if its[1] is not None:
                np.testing.assert_allclose(mine[1], its[1], rtol=0, atol=tolerance)
        size = {"rtol": tolerance, "atol": tolerance}
        np.testing.assert_allclose(out.curve(out.loss_curves, g, c), alone.loss_curve, **size)
        np.testing.assert_allclose(
            out.curve(out.validation_curves, g, c), alone.validation_loss_curve, **size
        )
        np.testing.assert_allclose(out.best_loss[g, c], alone.best_loss, **size)
        np.testing.assert_allclose(out.loss[g, c], alone.loss, **size)
    return out


def product(**options):
    return [dict(zip(options, v, strict=True)) for v in itertools.product(*options.values())]


RATES = [1e-3, 3e-3, 0.01]
RAGGED = [rows(103, seed=0), rows(101, seed=1), rows(97, seed=2)]
EVEN = [rows(80, seed=0), rows(80, seed=1)]
LINEAR = TorchLinearRegressor(batch_size=32, max_epochs=7, random_state=0)
MLP = TorchMLPRegressor(
    hidden_layer_sizes=(7, 6), batch_size=32, max_epochs=6, random_state=0, dtype="float64"
)


@pytest.mark.parametrize("sets", [EVEN, RAGGED], ids=["even", "ragged"])
@pytest.mark.parametrize("base", [LINEAR, MLP], ids=["linear", "mlp"])
@pytest.mark.parametrize(
    "optimizer",
    ["sgd", "adam", "adamw", "nadam", "radam", "rmsprop", "adagrad", "adadelta", "adamax"],
)
def test_every_optimizer(base, optimizer, sets):
    base = clone(base).set_params(optimizer=optimizer)
    compare(base, product(lr=RATES, alpha=[0.0, 0.1]), sets)


BETAS = [(0.9, 0.999), (0.5, 0.6)]
# options of which a stack has several values each
VARIED = {
    "sgd": {"momentum": [0.0, 0.5, 0.9], "dampening": [0.0, 0.1]},
    "adam": {"betas": BETAS, "eps": [1e-8, 1e-3]},
    "adamw": {"betas": BETAS, "weight_decay": [0.0, 0.1]},
    "nadam": {"betas": BETAS, "momentum_decay": [1e-3, 0.1]},
    "radam": {"betas": BETAS, "weight_decay": [0.0, 0.1]},
    "rmsprop": {"alpha": [0.99, 0.5], "momentum": [0.0, 0.5]},
    "adagrad": {"lr_decay": [0.0, 0.1], "initial_accumulator_value": [0.0, 1.0]},
    "adadelta": {"rho": [0.9, 0.5], "eps": [1e-6, 1e-3]},
    "adamax": {"betas": BETAS, "eps": [1e-8, 1e-3]},
}
FLAGS = {
    "sgd": {"optimizer__nesterov": True, "optimizer__momentum": 0.8},
    "adam": {"optimizer__amsgrad": True},
    "rmsprop": {"optimizer__centered": True},
    "nadam": {"optimizer__decoupled_weight_decay": True, "optimizer__weight_decay": 0.1},
}


@pytest.mark.parametrize("optimizer", VARIED)
@pytest.mark.parametrize("lr", [None, 0.01])
def test_options_per_model(optimizer, lr):
    grid = product(**{f"optimizer__{k}": v for k, v in VARIED[optimizer].items()})
    grid = [{**g, "lr": rate} for g, rate in zip(grid, itertools.cycle([lr, 0.02]), strict=False)]
    compare(clone(MLP).set_params(optimizer=optimizer), grid, RAGGED)


@pytest.mark.parametrize("optimizer", FLAGS)
def test_flags(optimizer):
    base = clone(LINEAR).set_params(optimizer=optimizer, **FLAGS[optimizer])
    compare(base, product(lr=RATES), EVEN)


@pytest.mark.parametrize("sets", [EVEN, RAGGED], ids=["even", "ragged"])
@pytest.mark.parametrize(
    "loss", ["squared_error", "absolute_error", "huber", "quantile", "poisson"]
)
def test_losses_weights_and_targets(loss, sets):
    weighted = [rows(len(s[0]), k=2, seed=i, weighted=True) for i, s in enumerate(sets)]
    compare(clone(MLP).set_params(loss=loss, optimizer="adam"), product(lr=RATES), weighted)
    compare(clone(LINEAR).set_params(loss=loss, optimizer="adam"), product(lr=RATES), weighted)


@pytest.mark.parametrize(
    "activation", ["relu", "tanh", "logistic", "identity", "gelu", "silu", "leaky_relu", "elu"]
)
def test_activations(activation):
    compare(clone(MLP).set_params(activation=activation), product(lr=RATES), RAGGED)


@pytest.mark.parametrize("hidden", [(4,), (5, 4, 3)])
def test_dropout(hidden):
    base = clone(MLP).set_params(hidden_layer_sizes=hidden, lr=0.01)
    compare(base, product(dropout=[0.0, 0.2, 0.5], lr=[0.01, 0.02]), RAGGED)
    compare(base, product(dropout=[0.3], lr=[0.01, 0.02]), EVEN)


@pytest.mark.parametrize("positive", [False, True])
def test_l1_and_signs(positive):
    base = clone(LINEAR).set_params(optimizer="adam", positive=positive)
    grid = product(alpha=[0.05, 0.5], l1_ratio=[0.3, 1.0], lr=[0.01, 0.1])
    out = compare(base, grid, RAGGED)
    assert any((out.parameters.layers(0, c)[0][0] == 0).any() for c in range(len(grid)))


@pytest.mark.parametrize("batch_size", [1, 7, 32, 1000, None])
@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"standardize": False}])
@pytest.mark.parametrize("intercept", [True, False])
def test_batches(batch_size, options, intercept):
    n = 1 if batch_size != 1 else 0
    sets = [rows(66, seed=0), rows(66 - n, seed=1)]
    base = clone(LINEAR).set_params(
        batch_size=batch_size, optimizer="adam", fit_intercept=intercept, **options
    )
    compare(base, product(lr=RATES, alpha=[0.0, 0.1]), sets)


def test_full_batches_of_networks():
    compare(clone(MLP).set_params(batch_size=None, dropout=0.1), product(lr=RATES), RAGGED)


@pytest.mark.parametrize("base", [LINEAR, MLP], ids=["linear", "mlp"])
@pytest.mark.parametrize("batch_size", [16, None])
def test_early_stopping(base, batch_size):
    base = clone(base).set_params(
        early_stopping=True,
        max_epochs=60,
        n_iter_no_change=3,
        batch_size=batch_size,
        optimizer="adam",
    )
    out = compare(base, product(lr=[1e-3, 0.03, 0.1, 0.3], tol=[None, 1e-3, 0.1]), RAGGED, 1e-7)
    assert len(set(out.n_iter.ravel().tolist())) > 4


def test_plateau_stops():
    base = clone(LINEAR).set_params(optimizer="adam", max_epochs=80, n_iter_no_change=2)
    out = compare(base, product(lr=[1e-3, 0.03, 0.1], tol=[None, 1e-4, 1e-2], alpha=[0, 0.1]), EVEN)
    assert len(set(out.n_iter.ravel().tolist())) > 4
    assert out.unfinished.any()


@pytest.mark.parametrize(
    "schedule",
    [
        {"lr_schedule": "constant"},
        {"lr_schedule": "step"},
        {"lr_schedule": "exponential"},
        {"lr_schedule": "linear"},
        {"lr_schedule": "polynomial"},
        {"lr_schedule": "cosine"},
        {"lr_schedule": "cosine_restarts"},
        {"lr_schedule": "one_cycle"},
        {"lr_schedule": "plateau", "lr_schedule__patience": 0},
    ],
    ids=lambda s: s["lr_schedule"],
)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_schedules(schedule, optimizer):
    momentum = {"optimizer__momentum": 0.5} if optimizer == "sgd" else {}
    base = clone(LINEAR).set_params(
        optimizer=optimizer, max_epochs=12, tol=1e-2, n_iter_no_change=3, **schedule, **momentum
    )
    compare(base, product(lr=[0.01, 0.03, 0.1], alpha=[0.0, 0.1]), RAGGED)


def test_models_that_diverge_leave_the_others_alone():
    base = clone(LINEAR).set_params(optimizer="sgd", max_epochs=60)
    out = compare(base, product(lr=[1e-3, 0.01, 100.0, 1e6, 1e30]), RAGGED)
    assert {c for _, c in out.errors} == {2, 3, 4}


def test_seeds_per_group():
    sets = [rows(80, seed=0), rows(80, seed=0), rows(78, seed=1)]
    base = clone(MLP).set_params(dropout=0.2, early_stopping=True)
    data = [validate_rows(clone(base), *parts, reset=True)[0] for parts in sets]
    spec = base._make_spec(data[0], RunContext())
    objectives = [replace(spec.objective, alpha=alpha) for alpha in (0.0, 0.1)]
    specs = [
        [replace(spec, objective=o).with_training(seed=seed) for o in objectives]
        for seed in (0, 1, 1)
    ]
    out = train_models(data, [0, 0, 2], specs)
    for g, c in np.ndindex(3, 2):
        alone = alone_fit(data[g], specs[g][c])
        for mine, its in zip(out.parameters.layers(g, c), alone.trained, strict=True):
            np.testing.assert_allclose(mine[0], its[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("base", [LINEAR, MLP], ids=["linear", "mlp"])
def test_single_precision(base):
    sets = [rows(80, seed=0, dtype=np.float32), rows(81, seed=1, dtype=np.float32)]
    compare(
        clone(base).set_params(dtype="float32", optimizer="adam"), product(lr=RATES), sets, 3e-5
    )


@pytest.mark.parametrize("l1_ratio", [0.0, 0.5])
def test_sums_of_many_small_penalties_do_not_round_away(l1_ratio):
    X = np.ones((20_000, 1), dtype=np.float32)
    base = TorchLinearRegressor(
        optimizer="sgd", lr=1e-30, batch_size=1, shuffle=False, max_epochs=1, l1_ratio=l1_ratio,
        standardize=False, random_state=0, fit_intercept=False, record_path=True,
    )  # fmt: skip
    coef = float(base.fit(X, np.zeros(len(X), dtype=np.float32)).coef_path_[0, 0])
    # next to nothing is left but the penalty
    y = (coef * X[:, 0]).astype(np.float32)
    data = validate_rows(clone(base), X, y, None, reset=True)[0]
    alphas = (1.0, 2.0)
    specs = [[clone(base).set_params(alpha=a)._make_spec(data, RunContext()) for a in alphas]]
    found = train_models([data], [0], specs).loss[0]
    value = l1_ratio * abs(coef) + 0.5 * (1 - l1_ratio) * coef**2
    np.testing.assert_allclose(found, np.array(alphas) * value, rtol=1e-5)


@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "in order"])
@pytest.mark.parametrize("block_entries", [1, 2000])
def test_blocks_may_be_of_any_size(monkeypatch, block_entries, shuffle):
    """Also where groups end at different rows of a block, or in different blocks."""
    monkeypatch.setattr(batches, "BLOCK_ENTRIES", block_entries)
    for counts, size in (((96, 94), 16), ((96, 95, 81), 16), ((96, 65), 48)):
        sets = [rows(n, seed=n, weighted=n == 95) for n in counts]
        for base in (LINEAR, clone(MLP).set_params(dropout=0.2)):
            chosen = clone(base).set_params(batch_size=size, alpha=0.1, shuffle=shuffle)
            compare(chosen, product(lr=RATES[:2]), sets)
