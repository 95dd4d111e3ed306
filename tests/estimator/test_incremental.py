"""Arrays of dask, block by block through dask-ml's Incremental."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor

da = pytest.importorskip("dask.array")
Incremental = pytest.importorskip("dask_ml.wrappers").Incremental

rng = np.random.default_rng(0)
X = rng.normal(size=(4000, 6)) * [1, 10, 0.1, 1, 1, 1] + 5.0
y = X @ [1.0, 0.2, 3.0, -1.0, 0.0, 2.0] + np.sin(X[:, 0]) + 0.1 * rng.normal(size=4000)
ROWS = 500
BLOCKS = da.from_array(X, chunks=(ROWS, 6)), da.from_array(y, chunks=ROWS)
IN_ORDER = {"shuffle_blocks": False, "assume_equal_chunks": True}


def test_exact_solutions_are_those_of_all_rows():
    blocks = Incremental(TorchLinearRegressor(), **IN_ORDER).fit(*BLOCKS)
    whole = TorchLinearRegressor().fit(X, y)
    assert_allclose(blocks.coef_, whole.coef_, rtol=1e-10)
    assert_allclose(blocks.intercept_, whole.intercept_, rtol=1e-10)
    assert_allclose(blocks.estimator_.coef_std_err_, whole.coef_std_err_, rtol=1e-9)
    assert_allclose(blocks.predict(BLOCKS[0]).compute(), whole.predict(X), rtol=1e-10)
    assert blocks.score(*BLOCKS) == pytest.approx(whole.score(X, y), abs=1e-12)


@pytest.mark.parametrize(
    "model",
    [
        TorchLinearRegressor(optimizer="sgd", lr=0.05, batch_size=50, random_state=0),
        TorchMLPRegressor(lr=0.01, random_state=0),
    ],
)
def test_training_goes_on_from_block_to_block(model):
    blocks = Incremental(clone(model), **IN_ORDER)
    alone = clone(model)
    for _ in range(2):
        blocks.partial_fit(*BLOCKS)
        for start in range(0, len(X), ROWS):
            alone.partial_fit(X[start : start + ROWS], y[start : start + ROWS])
    assert_array_equal(blocks.estimator_.predict(X), alone.predict(X))
    assert blocks.score(X, y) > 0.9


def test_an_array_that_is_made_block_by_block():
    big = da.random.default_rng(0).normal(size=(1_000_000, 10), chunks=(50_000, 10))
    target = big @ np.arange(10.0) + 1.0
    model = Incremental(TorchLinearRegressor(), **IN_ORDER).fit(big, target)
    assert_allclose(model.coef_, np.arange(10.0), atol=1e-10)
    assert model.intercept_ == pytest.approx(1.0)
