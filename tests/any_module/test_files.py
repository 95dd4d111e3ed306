"""Files of modules of the user's: pickles, skops, save_model, ONNX."""

import pickle

import numpy as np
import pytest
import skops.io
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from torch import nn
from user_modules import (
    BatchNormed,
    Embedded,
    LazyThroughout,
    Net,
    Recurrent,
    SlowAverage,
    Tied,
    Uncertain,
    two_layers,
)

from sktorch_linreg import TorchMLPRegressor, TorchRegressor, load_model, save_model

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

rng = np.random.default_rng(0)
X, STEPS = rng.normal(size=(60, 4)) + 5, rng.normal(size=(60, 7, 3))
CODES = rng.integers(0, 10, size=(60, 2))
y = X[:, 0] * 2 + 1
GIVEN = {
    "class": (Net, X, {}),
    "options": (Net, X, {"module__width": 5, "early_stopping": True}),
    "batch normalisation": (BatchNormed, X, {}),
    "function": (two_layers, X, {}),
    "torch's class": (nn.Linear, X, {}),
    "tied": (Tied, X, {"module__n_outputs": 1}),
    "buffers": (SlowAverage, X, {}),
    "lazy": (LazyThroughout, X, {"dtype": "float64"}),
    "steps": (Recurrent, STEPS, {}),
    "codes": (Embedded, CODES, {"standardize": "target"}),
}
INSTANCES = {
    "linear": (nn.Linear(4, 1), X, {}),
    "sequential": (nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)), X, {}),
    "lazy": (nn.Sequential(nn.LazyLinear(3), nn.BatchNorm1d(3), nn.LazyLinear(1)), X, {}),
    "tied": (Tied(4, 1), X, {}),
    "steps": (Recurrent(), STEPS, {}),
    "codes": (nn.Sequential(nn.Embedding(10, 3), nn.Flatten(), nn.LazyLinear(1)), CODES,
              {"standardize": False}),
}  # fmt: skip


def fitted(given, rows, settings):
    model = TorchRegressor(given, max_epochs=4, tol=None, random_state=0, **settings)
    return model.fit(rows, y)


def tensors_in(value):
    if isinstance(value, torch.Tensor | nn.Module):
        return [value]
    if isinstance(value, dict):
        return [t for item in value.items() for part in item for t in tensors_in(part)]
    if isinstance(value, list | tuple | set):
        return [t for item in value for t in tensors_in(item)]
    return []


@pytest.mark.parametrize("name", GIVEN)
def test_pickles_and_skops_of_classes_and_functions(name):
    given, rows, settings = GIVEN[name]
    model = fitted(given, rows, settings)
    assert not tensors_in(model.__getstate__())
    dumped = skops.io.dumps(model)
    trusted = skops.io.get_untrusted_types(data=dumped)
    own = f"{given.__module__}.{given.__qualname__}"
    assert set(trusted) == {"sktorch_linreg.module.TorchRegressor", own}
    for back in (pickle.loads(pickle.dumps(model)), skops.io.loads(dumped, trusted=trusted)):
        assert_array_equal(back.predict(rows), model.predict(rows))
        assert back.get_params() == model.get_params()
        assert back.loss_curve_ == model.loss_curve_
        assert_array_equal(back.net_.predict(rows), model.net_.predict(rows))
        assert_array_equal(clone(back).fit(rows, y).predict(rows), model.predict(rows))


@pytest.mark.parametrize("name", INSTANCES)
@pytest.mark.parametrize("is_fitted", [False, True])
def test_pickles_and_skops_of_instances(name, is_fitted):
    given, rows, settings = INSTANCES[name]
    model = TorchRegressor(given, max_epochs=4, tol=None, random_state=0, **settings)
    expected = clone(model).fit(rows, y).predict(rows)
    if is_fitted:
        model.fit(rows, y)
    assert not tensors_in(model.__getstate__())
    dumped = skops.io.dumps(model)
    trusted = skops.io.get_untrusted_types(data=dumped)
    # torch's own classes are known by name
    assert all(path.startswith(("sktorch_linreg", "user_modules")) for path in trusted)
    for back in (pickle.loads(pickle.dumps(model)), skops.io.loads(dumped, trusted=trusted)):
        if is_fitted:
            assert_array_equal(back.predict(rows), expected)
        # training starts from the same weights
        assert_array_equal(clone(back).fit(rows, y).predict(rows), expected)


def test_an_instance_that_cannot_be_stored():
    class Odd(nn.Linear):
        def __reduce_ex__(self, protocol):
            return nn.Linear, (4, 1)

    model = TorchRegressor(Odd(4, 1), max_epochs=1, tol=None).fit(X, y)
    with pytest.raises(TypeError, match=r"defines how it is pickled.*Pass its class"):
        pickle.dumps(model)


def test_only_classes_of_torch_are_found_by_name():
    from sktorch_linreg._modules.plain_state import from_plain, to_plain

    plain = to_plain(nn.Linear(2, 1))
    number, path, state = plain["tree"][1]
    assert path == "torch.nn.modules.linear.Linear"
    for other in ("os.system", "torch.hub.load", "torch.nn.functional.relu"):
        with pytest.raises(ValueError, match="is not a"):
            from_plain({**plain, "tree": ("module", (number, other, state))})


@pytest.mark.parametrize("name", GIVEN)
def test_save_model_and_load_model(name, tmp_path):
    given, rows, settings = GIVEN[name]
    model, path = fitted(given, rows, settings), tmp_path / "model"
    save_model(model, path)
    back = load_model(path, module=given)
    assert_array_equal(back.predict(rows), model.predict(rows))
    assert {**back.get_params(), "module": 0} == {**model.get_params(), "module": 0}
    assert back.loss_curve_ == model.loss_curve_
    assert back.history_ == model.history_
    if name in ("class", "steps"):
        instance = given(4, 1) if name == "class" else given()
        filled = load_model(path, module=instance)
        assert_array_equal(filled.predict(rows), model.predict(rows))
        assert filled.module is instance
    # training goes on as that of the model that was saved
    model.set_params(warm_start=True)
    save_model(model, path)
    warm = load_model(path, module=given)
    assert_array_equal(warm.fit(rows, y).predict(rows), model.fit(rows, y).predict(rows))


def test_files_and_modules_that_do_not_match(tmp_path):
    path = tmp_path / "model"
    save_model(fitted(Net, X, {}), path)
    with pytest.raises(ValueError, match=r"TorchRegressor with module=user_modules.Net. Pass"):
        load_model(path)
    for other, message in (
        (Net(4, 1, 9), r"hidden.weight has the shape \(16, 4\), but Net needs.*\(9, 4\)"),
        (two_layers, "parameter 0.weight is missing.*saved with module=user_modules.Net"),
        (lambda n_features, n_outputs: Net(n_features, n_outputs, 5), "has the shape"),
        (nn.Identity, r"Identity has no parameter or buffer hidden\.weight"),
    ):
        with pytest.raises(ValueError, match=f"(?s){message}"):
            load_model(path, module=other)
    with pytest.raises(ValueError, match=r"cannot store module=Net.*an instance"):
        save_model(fitted(Net(4, 1), X, {}), path)
    save_model(TorchMLPRegressor(max_epochs=1, tol=None).fit(X, y), path)
    with pytest.raises(ValueError, match="holds a TorchMLPRegressor, which takes no module"):
        load_model(path, module=Net)


def test_a_loss_with_parameters_is_stored_with_them():
    for model in (
        TorchRegressor(Net, loss=Uncertain, max_epochs=4, tol=None, random_state=0),
        TorchMLPRegressor(loss=Uncertain, max_epochs=4, tol=None, random_state=0),
    ):
        model.fit(X, y)
        back = pickle.loads(pickle.dumps(model))
        ours, theirs = (m.net_.criterion_.module for m in (model, back))
        assert float(ours.log_var.detach()) != 0
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name])


def test_onnx_of_modules():
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from sktorch_linreg.interop import to_onnx

    for name in ("batch normalisation", "codes"):
        given, rows, settings = GIVEN[name]
        model = fitted(given, rows, settings)
        session = onnxruntime.InferenceSession(to_onnx(model).SerializeToString())
        (out,) = session.run(
            ["variable"], {"X": rows if rows.dtype.kind == "i" else rows.astype(np.float32)}
        )
        np.testing.assert_allclose(out[:, 0], model.predict(rows), rtol=1e-4, atol=1e-4)
    pipeline = make_pipeline(StandardScaler(), TorchRegressor(BatchNormed, max_epochs=3))
    pipeline.fit(X, y)
    graph = to_onnx(pipeline, dtype="float64").SerializeToString()
    (out,) = onnxruntime.InferenceSession(graph).run(["variable"], {"X": X})
    np.testing.assert_allclose(out[:, 0], pipeline.predict(X), rtol=1e-4, atol=1e-4)
