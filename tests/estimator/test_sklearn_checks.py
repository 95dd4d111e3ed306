"""scikit-learn's own estimator checks: no failure, and none that is expected."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor

CONFIGURATIONS = [
    TorchLinearRegressor(),
    TorchLinearRegressor(optimizer="sgd", lr=0.05, optimizer__momentum=0.9, max_epochs=100),
    # batches hold all rows of the smallest data sets, where weights have to equal repetition
    TorchLinearRegressor(optimizer="adam", lr=0.05, batch_size=64, max_epochs=50),
    TorchLinearRegressor(optimizer="lbfgs", max_epochs=50),
    TorchLinearRegressor(positive=True),
    TorchLinearRegressor(loss="huber"),
    TorchLinearRegressor(loss="quantile", loss__quantile=0.4, max_epochs=4),
    TorchLinearRegressor(alpha=0.1, l1_ratio=0.5),
    TorchLinearRegressor(fit_intercept=False, standardize=False),
    TorchLinearRegressor(lr=0.05, dtype="float32", early_stopping=True, max_epochs=100),
    TorchMLPRegressor(),
    TorchMLPRegressor(early_stopping=True),
    TorchMLPRegressor(optimizer="lbfgs", hidden_layer_sizes=(8,), max_epochs=5),
    TorchMLPRegressor(lr_schedule="cosine", dropout=0.1, activation="silu", max_epochs=100),
]


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(CONFIGURATIONS)
def test_estimator_checks(estimator, check):
    check(estimator)
