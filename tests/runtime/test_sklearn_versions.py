"""What depends on the version of scikit-learn."""

import pytest
import sklearn
from sklearn.base import clone

from sktorch_linreg import BatchedGridSearchCV, TorchLinearRegressor, TorchMLPRegressor
from sktorch_linreg._runtime.sklearn_private import HAS_CALLBACKS

OURS = [
    TorchLinearRegressor(),
    TorchMLPRegressor(),
    BatchedGridSearchCV(TorchLinearRegressor(), {"alpha": [0.0, 1.0]}),
]


@pytest.mark.skipif(HAS_CALLBACKS, reason="this scikit-learn has callbacks")
@pytest.mark.parametrize("estimator", OURS, ids=lambda estimator: type(estimator).__name__)
def test_callbacks_need_a_newer_scikit_learn(estimator):
    with pytest.raises(NotImplementedError, match=rf"1\.9 or newer; {sklearn.__version__}.*skorch"):
        clone(estimator).set_callbacks(object())


@pytest.mark.skipif(not HAS_CALLBACKS, reason="this scikit-learn has no callbacks")
@pytest.mark.parametrize("estimator", OURS, ids=lambda estimator: type(estimator).__name__)
def test_callbacks_are_those_of_scikit_learn(estimator):
    from sklearn.callback import CallbackSupportMixin

    assert isinstance(estimator, CallbackSupportMixin)
    assert type(estimator).set_callbacks is CallbackSupportMixin.set_callbacks
