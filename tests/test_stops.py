"""When training stops and which weights are best: never decided by the rounding of a sum."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from sktorch_linreg import TorchLinearRegressor
from sktorch_linreg._lane_state import LaneMonitor
from sktorch_linreg._monitor import Monitor


@dataclass
class Spec:
    """What a monitor asks of a specification."""

    tol: float | None
    n_iter_no_change: int
    dtype: torch.dtype
    is_lbfgs: bool = False


class Weights:
    """Stands for parameters; tells which epoch was kept."""

    epoch = 0

    def keep(self, room):
        return self.epoch


def run(losses, spec, validates, units=None):
    """The epoch after which training stops, None if it does not, and the one that is kept.

    `units` of the precision, if given, are what counts as rounding.
    """
    monitor, weights = Monitor(spec, validates), Weights()
    if units is not None:
        monitor.rounding = units * torch.finfo(spec.dtype).eps
    for epoch, loss in enumerate(losses, start=1):
        weights.epoch = epoch
        monitor.update(loss, loss if validates else None, loss, weights)
        if monitor.stopped:
            return epoch, monitor.best_values
    return None, monitor.best_values


def run_lanes(losses, spec, validates, units=None):
    """The same by the monitor of many models."""
    monitor, kept = LaneMonitor([[spec]], validates), None
    if units is not None:
        monitor.rounding = units * torch.finfo(spec.dtype).eps
    for epoch, loss in enumerate(losses, start=1):
        improved, stopped = monitor.update(np.array([[loss]]))
        kept = epoch if validates and improved.any() else kept
        if stopped.any():
            return epoch, kept
    return None, kept


def curves(rng):
    """Losses that fall to a plateau, stay there for a while, and some of which rise again."""
    size, n = 10.0 ** rng.integers(-8, 9), 60
    fall = np.exp(-np.arange(n) * rng.uniform(0.2, 3.0))
    bottom = rng.uniform(0.0, 1.0)
    rise = np.maximum(0.0, np.arange(n) - rng.integers(20, 80)) * rng.choice([0.0, 1e-3, 0.1])
    return size * (bottom + fall + rise), size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tol", [None, 0.0, 1e-3])
@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("by", [run, run_lanes])
def test_rounding_moves_no_stop(dtype, tol, validates, by):
    rng = np.random.default_rng(0)
    eps = torch.finfo(dtype).eps
    n_clear = 0
    for _ in range(80):
        losses, size = curves(rng)
        spec = Spec(None if tol is None else tol * size, int(rng.integers(1, 8)), dtype)
        expected = by(losses, spec, validates)
        # gains that happen to be about as large as what counts are not asked about
        if not all(by(losses, spec, validates, units) == expected for units in (12, 20)):
            continue
        n_clear += 1
        for seed in range(3):
            noise = np.random.default_rng(seed).uniform(-2, 2, len(losses)) * eps
            assert by(losses * (1 + noise), spec, validates) == expected
    assert n_clear > 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tol", [None, 0.0, 1e-3])
@pytest.mark.parametrize("validates", [True, False])
def test_many_models_stop_where_one_does(dtype, tol, validates):
    rng = np.random.default_rng(1)
    for _ in range(80):
        losses, size = curves(rng)
        losses *= 1 + rng.normal(size=len(losses)) * rng.choice([0.0, 1e-16, 1e-7, 1e-2])
        spec = Spec(None if tol is None else tol * size, int(rng.integers(1, 8)), dtype)
        assert run_lanes(losses, spec, validates) == run(losses, spec, validates)


@pytest.mark.parametrize("by", [run, run_lanes])
def test_a_loss_that_stays_is_a_plateau(by):
    for tol in (0.0, 1e-12):
        spec = Spec(tol, 3, torch.float64)
        # with tol=0 as well, whatever its last bits are
        losses = 1.0 + 1e-16 * np.random.default_rng(0).integers(-3, 4, size=50)
        assert by(losses, spec, False)[0] == 5
    zeros = np.zeros(50)
    assert by(zeros, Spec(0.0, 3, torch.float64), False)[0] == 5


@pytest.mark.parametrize("by", [run, run_lanes])
def test_small_gains_add_up(by):
    # each is less than rounding, a hundred of them are not
    losses = 1.0 - 1e-15 * np.arange(400)
    stopped, kept = by(losses, Spec(None, 20, torch.float64), True)
    assert stopped is None
    assert kept > 350
    # as in MLPRegressor, an epoch has to gain more than tol
    assert by(losses, Spec(1e-4, 20, torch.float64), True)[0] == 22


def test_a_rise_is_no_convergence():
    monitor = Monitor(Spec(None, 10, torch.float64, is_lbfgs=True), False)
    for loss, settled in ((3.0, False), (2.0, False), (2.0 + 1e-15, True), (1.0, False)):
        monitor.update(loss, None, loss, Weights())
        assert monitor.settled == settled
    assert math.isfinite(monitor.best)


def rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 5)) * [1, 10, 0.1, 1, 1] + [0, 100, 0, 5, 0]
    return X, X @ [1.0, 0.2, 3.0, -1.0, 0.0] + np.sin(X[:, 0]) + 0.1 * rng.normal(size=200)


@pytest.mark.parametrize(
    "params",
    [
        {"loss": "absolute_error"},
        {"loss": "absolute_error", "dtype": "float32"},
        {"loss": "absolute_error", "alpha": 0.01, "l1_ratio": 0.5},
        {"loss": "quantile", "loss__quantile": 0.1},
        {"loss": "quantile", "alpha": 0.1},
        {"loss": torch.nn.L1Loss},
        {"loss": "huber"},
        {"loss": "huber", "alpha": 0.1, "l1_ratio": 1.0},
        {"optimizer": "lbfgs"},
    ],
    ids=str,
)
def test_rounding_moves_no_epoch_of_lbfgs(params):
    X, y = rows()
    found = []
    for seed in range(6):
        noise = 1e-15 * np.random.default_rng(seed).normal(size=X.shape) if seed else 0.0
        model = TorchLinearRegressor(random_state=0, **params)
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            found.append(model.fit(X * (1 + noise), y))
    assert {model.n_iter_ for model in found} == {found[0].n_iter_}
    for model in found[1:]:
        np.testing.assert_allclose(model.loss_curve_, found[0].loss_curve_, rtol=1e-5)
        scale = np.abs(found[0].coef_).max()
        np.testing.assert_allclose(model.coef_, found[0].coef_, rtol=0, atol=1e-4 * scale)
