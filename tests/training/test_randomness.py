"""Seeds: the same bits twice, global state untouched, and no seed means no repetition."""

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor

X = np.random.default_rng(0).normal(size=(300, 4))
y = X @ [1.0, -1.0, 2.0, 0.0] + 0.1 * np.random.default_rng(1).normal(size=300)
MODELS = {
    "batches": lambda seed: TorchLinearRegressor(
        optimizer="adam", batch_size=32, max_epochs=4, random_state=seed
    ),
    "full": lambda seed: TorchLinearRegressor(optimizer="adam", max_epochs=4, random_state=seed),
    "mlp": lambda seed: TorchMLPRegressor(
        hidden_layer_sizes=(8,), batch_size=32, max_epochs=3, tol=None, random_state=seed
    ),
    "dropout": lambda seed: TorchMLPRegressor(
        hidden_layer_sizes=(8,), dropout=0.3, batch_size=32, max_epochs=3, tol=None,
        random_state=seed,
    ),
    "held out": lambda seed: TorchMLPRegressor(
        hidden_layer_sizes=(8,), early_stopping=True, batch_size=32, max_epochs=3, tol=None,
        random_state=seed,
    ),
}  # fmt: skip


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_same_seed_same_bits(make):
    first = make(3).fit(X, y)
    torch.rand(7), np.random.rand(7)  # noqa: NPY002
    second = make(3).fit(X, y)
    np.testing.assert_array_equal(first.predict(X), second.predict(X))
    assert first.loss_curve_ == second.loss_curve_
    assert np.abs(make(4).fit(X, y).predict(X) - first.predict(X)).max() > 1e-6


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_without_a_seed_two_fits_differ(make):
    torch.manual_seed(0)
    first = make(None).fit(X, y)
    torch.manual_seed(0)
    assert np.abs(make(None).fit(X, y).predict(X) - first.predict(X)).max() > 1e-6


def test_random_state_instance_is_drawn_from():
    rng = np.random.RandomState(0)
    one, two = MODELS["mlp"](rng).fit(X, y), MODELS["mlp"](rng).fit(X, y)
    assert np.abs(one.predict(X) - two.predict(X)).max() > 1e-6
    again = MODELS["mlp"](np.random.RandomState(0)).fit(X, y)
    np.testing.assert_array_equal(again.predict(X), one.predict(X))


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_global_state_is_untouched(make, seed):
    def state():
        kind, keys, *rest = np.random.get_state()  # noqa: NPY002
        return (
            torch.get_rng_state().numpy().tobytes(), kind, keys.tobytes(), rest,
            torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
        )  # fmt: skip

    before = state()
    model = make(seed).fit(X, y)
    model.predict(X)
    model.score(X, y)
    model.net_.predict(X)
    if hasattr(model, "partial_fit"):
        model.partial_fit(X, y)
    assert state() == before


def test_eight_threads_at_once():
    expected = MODELS["dropout"](0).fit(X, y).predict(X)
    results = Parallel(n_jobs=8, backend="threading")(
        delayed(lambda: MODELS["dropout"](0).fit(X, y).predict(X))() for _ in range(16)
    )
    for result in results:
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_modes_of_the_caller_change_nothing(dtype):
    expected = MODELS["dropout"](0).fit(X, y).predict(X)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        np.testing.assert_array_equal(MODELS["dropout"](0).fit(X, y).predict(X), expected)
    finally:
        torch.set_default_dtype(before)
    for mode in (
        torch.no_grad(), torch.inference_mode(), torch.device("meta"), torch.autocast("cpu")
    ):  # fmt: skip
        with mode:
            np.testing.assert_array_equal(MODELS["dropout"](0).fit(X, y).predict(X), expected)
            assert np.isfinite(TorchLinearRegressor().fit(X, y).coef_).all()
