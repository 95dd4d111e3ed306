"""Copies of fitted estimators: what they hold, how large they are, and files that are damaged."""

import errno
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
import scipy.sparse as sp
import skops.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sktorch_linreg import (
    BatchedGridSearchCV,
    TorchLinearRegressor,
    TorchMLPRegressor,
    load_model,
    save_model,
)
from sktorch_linreg._runtime import files

DATA = Path(__file__).parent / "stored"
RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 4)) * [1, 10, 0.1, 1] + 3
Y = X @ RNG.normal(size=(4, 2)) + 0.1 * RNG.normal(size=(120, 2))
y = Y[:, 0]
TRAINED = {"max_epochs": 8, "random_state": 0}
# every engine
ESTIMATORS = {
    "exact": TorchLinearRegressor(),
    "ridge": TorchLinearRegressor(alpha=0.1),
    "lasso": TorchLinearRegressor(alpha=0.01, l1_ratio=1.0),
    "positive": TorchLinearRegressor(positive=True),
    "lbfgs": TorchLinearRegressor(loss="huber"),
    "adam": TorchLinearRegressor(optimizer="adam", batch_size=16, **TRAINED),
    "path": TorchLinearRegressor(optimizer="sgd", record_path=True, **TRAINED),
    "poisson": TorchLinearRegressor(loss="poisson", optimizer="adam", **TRAINED),
    "schedule": TorchLinearRegressor(optimizer="nadam", lr_schedule="cosine", **TRAINED),
    "mlp": TorchMLPRegressor(**TRAINED),
    "mlp stopped": TorchMLPRegressor(
        hidden_layer_sizes=(16, 8), early_stopping=True, dropout=0.1, activation="tanh", **TRAINED
    ),
    "mlp lbfgs": TorchMLPRegressor(optimizer="lbfgs", hidden_layer_sizes=(3,), **TRAINED),
    "warm": TorchMLPRegressor(warm_start=True, **TRAINED),
    "custom": TorchMLPRegressor(
        optimizer=torch.optim.ASGD, loss=torch.nn.SmoothL1Loss, lr=0.01, **TRAINED
    ),
}


def fitted(name, targets=y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return clone(ESTIMATORS[name]).fit(X, np.abs(targets))


def same(copy, model):
    """Whether a copy is what the model is: predictions, attributes, parameters."""
    np.testing.assert_array_equal(copy.predict(X), model.predict(X))
    assert copy.get_params().keys() == model.get_params().keys()
    for name in ("loss_curve_", "validation_loss_curve_", "history_", "n_iter_", "optimizer_"):
        assert getattr(copy, name) == getattr(model, name), name
    for name in ("singular_", "coef_std_err_", "coef_path_", "rank_", "solver_path_"):
        assert hasattr(copy, name) == hasattr(model, name), name
        if hasattr(model, name):
            np.testing.assert_array_equal(getattr(copy, name), getattr(model, name))
    return True


WAYS = {
    "pickle": lambda model, path: pickle.loads(pickle.dumps(model)),
    "joblib": lambda model, path: joblib.load(joblib.dump(model, path / "model.joblib")[0]),
    "skops": lambda model, path: through_skops(model),
    "file": lambda model, path: through_file(model, path / "model.safetensors"),
}


# what skops does not trust in any search of scikit-learn
SEARCHED = set(
    skops.io.get_untrusted_types(
        data=skops.io.dumps(GridSearchCV(Ridge(), {"alpha": [1.0]}).fit(X, y))
    )
)


def through_skops(model):
    data = skops.io.dumps(model)
    found = skops.io.get_untrusted_types(data=data)
    ours = (TorchLinearRegressor, TorchMLPRegressor, BatchedGridSearchCV)
    names = {f"{c.__module__}.{c.__name__}" for c in ours}
    assert set(found) - names <= (SEARCHED if hasattr(model, "best_estimator_") else set())
    return skops.io.loads(data, trusted=found)


def through_file(model, path):
    save_model(model, path)
    return load_model(path)


@pytest.mark.parametrize(
    ("way", "name"),
    # classes of the user's are code, which only pickles refer to
    [(w, n) for w in WAYS for n in ESTIMATORS if n != "custom" or w in ("pickle", "joblib")],
)
@pytest.mark.parametrize("targets", [y, Y], ids=["one target", "two"])
def test_copies_are_what_was_copied(way, name, targets, tmp_path):
    model = fitted(name, targets)
    assert same(WAYS[way](model, tmp_path), model)


@pytest.mark.parametrize("options", [{}, {"standardize": False}, {"optimizer": "sgd", "lr": 1e-5}])
def test_poisson_models_of_any_scaling_are_kept(tmp_path, options):
    counts = np.exp(0.1 * X[:, 0])
    kinds = [TorchMLPRegressor(loss="poisson", **TRAINED)]
    kinds += [
        TorchLinearRegressor(loss="poisson", fit_intercept=intercept, **TRAINED)
        for intercept in (True, False)
    ]
    for model in kinds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(**options).fit(X, counts)
        assert (model.predict(X) > 0).all()
        for way in WAYS.values():
            assert same(way(model, tmp_path), model)


@pytest.mark.parametrize("way", ["pickle", "joblib", "skops"])
@pytest.mark.parametrize("name", ["exact", "adam", "mlp"])
def test_in_pipelines_and_searches(way, name, tmp_path):
    pipe = make_pipeline(StandardScaler(), clone(ESTIMATORS[name]))
    key = f"{pipe.steps[-1][0]}__alpha"
    for model in (
        pipe,
        GridSearchCV(pipe, {key: [0.0, 0.1]}, cv=2),
        BatchedGridSearchCV(pipe, {key: [0.0, 0.1]}, cv=2),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(X, y)
        copy = WAYS[way](model, tmp_path)
        np.testing.assert_array_equal(copy.predict(X), model.predict(X))


def walk(value, path="state"):
    """Everything in a state, with where it is."""
    yield path, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from walk(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from walk(item, f"{path}[{i}]")


PLAIN = (np.ndarray, np.generic, dict, list, tuple, int, float, str, bool, type(None))


def learns_from_batches(name):
    model = ESTIMATORS[name]
    return hasattr(model, "partial_fit") and name not in ("custom", "lasso", "positive", "lbfgs")


@pytest.mark.parametrize(
    ("name", "incremental"),
    [(n, False) for n in ESTIMATORS if n != "custom"]
    + [(n, True) for n in ESTIMATORS if learns_from_batches(n)],
)
@pytest.mark.parametrize("sets", [{}, {"device": torch.device("cpu"), "dtype": torch.float64}])
def test_state_holds_plain_values_alone(name, sets, incremental):
    model = clone(ESTIMATORS[name]).set_params(**sets)
    many = np.tile(X, (50, 1)), np.tile(np.abs(y), 50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.partial_fit(*many) if incremental else model.fit(*many)
    for path, value in walk(model.__getstate__()):
        assert isinstance(value, PLAIN), (path, type(value))
        # no training data
        assert not isinstance(value, np.ndarray) or value.size < 6000, path


@pytest.mark.parametrize("name", [n for n in ESTIMATORS if n not in ("warm", "custom", "path")])
def test_copies_are_small(name):
    model = fitted(name, Y)
    is_network = isinstance(model, TorchMLPRegressor)
    weights = [*model.coefs_, *model.intercepts_] if is_network else [model.coef_, model.intercept_]
    size = sum(np.asarray(w).nbytes for w in weights)
    assert len(pickle.dumps(model)) <= 2048 + 1.1 * size


@pytest.mark.parametrize("n", [3, 4, 5, 6, 7, 20])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_statistics_of_few_rows_survive(n, fit_intercept):
    rows = RNG.normal(size=(40, 6))
    model = TorchLinearRegressor(fit_intercept=fit_intercept, warm_start=True)
    model.partial_fit(rows[:n], rows[:n].sum(axis=1) + 1.0)
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.singular_, model.singular_)
    for each in (copy, model):
        each.partial_fit(rows[n:], rows[n:, 0] ** 2)
    np.testing.assert_array_equal(copy.coef_, model.coef_)


def test_a_large_network_is_hardly_larger_than_its_weights():
    model = TorchMLPRegressor(hidden_layer_sizes=(300, 300), max_epochs=2, tol=None).fit(X, y)
    size = sum(w.nbytes for w, _ in model._layers) + sum(b.nbytes for _, b in model._layers)
    assert len(pickle.dumps(model)) <= 2048 + 1.1 * size


def test_a_model_of_a_missing_device_predicts_on_the_cpu(monkeypatch, tmp_path):
    model = fitted("mlp")
    state = model.__getstate__()
    state["device"] = "cuda:7"
    other = TorchMLPRegressor.__new__(TorchMLPRegressor)
    other.__setstate__(state)
    for copy in (other, pickle.loads(pickle.dumps(other)), through_file(other, tmp_path / "m")):
        assert copy.device == "cuda:7"
        np.testing.assert_array_equal(copy.predict(X), model.predict(X))
        assert next(copy.module_.parameters()).device.type == "cpu"
        with pytest.raises(ValueError, match="cuda:7"):
            copy.fit(X, y)


@pytest.mark.gpu
def test_a_model_of_a_gpu_loads_anywhere(tmp_path):
    model = clone(ESTIMATORS["mlp"]).set_params(device="cuda").fit(X, y)
    assert next(model.module_.parameters()).device.type == "cuda"
    for path, value in walk(model.__getstate__()):
        assert isinstance(value, PLAIN), (path, type(value))
    script = (
        "import pickle, sys; model = pickle.load(open(sys.argv[1], 'rb'));"
        "print(model.predict([[3.0, 3.0, 3.0, 3.0]])[0])"
    )
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(model))
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "model.pkl"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(run.stdout) == pytest.approx(model.predict([[3.0] * 4])[0], rel=1e-5)


# -- files ----------------------------------------------------------------------------------------


def test_what_files_do_not_keep(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match=r"params\.loss is <class .*joblib\.dump"):
        save_model(fitted("custom"), path)
    with pytest.raises(NotFittedError):
        save_model(TorchLinearRegressor(), path)
    with pytest.raises(TypeError, match=r"got Pipeline.*skops"):
        save_model(Pipeline([("reg", fitted("exact"))]), path)
    with pytest.raises(OSError, match="nowhere"):
        save_model(fitted("exact"), tmp_path / "nowhere" / "model")
    assert list(tmp_path.iterdir()) == []


def test_odd_values_of_parameters_and_names(tmp_path):
    import pandas as pd

    frame = pd.DataFrame(X, columns=["a", "größe", "c d", "e"])
    model = TorchMLPRegressor(
        hidden_layer_sizes=[5],
        random_state=np.random.RandomState(3),
        max_epochs=2,
        tol=np.float32(0.5),
        optimizer="adam",
        optimizer__betas=(0.8, 0.9),
        device=torch.device("cpu"),
        dtype=torch.float64,
    ).fit(frame, y)
    copy = through_file(model, tmp_path / "model")
    np.testing.assert_array_equal(copy.predict(frame), model.predict(frame))
    assert list(copy.feature_names_in_) == list(frame.columns)
    assert copy.hidden_layer_sizes == [5]
    assert copy.optimizer__betas == (0.8, 0.9)
    assert copy.tol == np.float32(0.5)
    assert copy.random_state.randint(1000) == model.random_state.randint(1000)


def test_coefficients_set_by_hand(tmp_path):
    model = TorchLinearRegressor()
    model.coef_, model.intercept_ = np.array([1.0, 2.0]), 3.0
    copy = through_file(model, tmp_path / "model")
    assert copy.predict([[1.0, 1.0]]) == [6.0]


def test_the_file_has_the_mode_of_others(tmp_path):
    save_model(fitted("exact"), tmp_path / "model")
    (tmp_path / "other").write_bytes(b"")
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("name", ["linear", "network"])
def test_files_of_version_0_1_load_for_good(name):
    model = load_model(DATA / f"{name}_0_1.safetensors")
    told = json.loads((DATA / f"{name}_0_1.json").read_text())
    np.testing.assert_allclose(model.predict(told["X"]), told["predictions"], rtol=1e-12)
    assert model.loss_ == told["loss"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "model.safetensors"
    save_model(fitted("mlp stopped"), path)
    return path.read_bytes()


EXPECTED = fitted("mlp stopped").predict(X)


def check_damaged(data, path):
    """A damaged file is refused with an error that names it, or it was not damaged at all."""
    path.write_bytes(data)
    try:
        model = load_model(path)
    except ValueError as error:
        if str(path) not in str(error):
            raise
    else:
        np.testing.assert_array_equal(model.predict(X), EXPECTED)


@settings(max_examples=1000, deadline=None)
@given(choice=st.data())
def test_damaged_files_are_refused(whole, tmp_path_factory, choice):
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    data = bytearray(whole)
    at = st.integers(0, len(data) - 1)
    for _ in range(choice.draw(st.integers(1, 3))):
        kind = choice.draw(st.sampled_from(["flip", "cut", "set", "insert", "drop", "swap"]))
        i = choice.draw(at) % max(1, len(data))
        if not data:
            break
        if kind == "flip":
            data[i] ^= 1 << choice.draw(st.integers(0, 7))
        elif kind == "cut":
            del data[i:]
        elif kind == "set":
            data[i] = choice.draw(st.integers(0, 255))
        elif kind == "insert":
            data[i:i] = choice.draw(st.binary(min_size=1, max_size=20))
        elif kind == "drop":
            del data[i : i + choice.draw(st.integers(1, 50))]
        else:
            j = choice.draw(at) % len(data)
            data[i], data[j] = data[j], data[i]
    check_damaged(bytes(data), path)


def content_of(whole, path):
    path.write_bytes(whole)
    return files.read(path, "model")


def wrong_contents():
    def change(edit):
        def made(content):
            edit(content)
            return content

        return made

    yield "unknown class", change(lambda c: c.update(estimator="os.system"))
    yield "no class", change(lambda c: c.pop("estimator"))
    yield "unknown parameter", change(lambda c: c["params"].update(evil=1))
    yield "wrong parameter", change(lambda c: c["params"].update(max_epochs=-1))
    yield "unknown attribute", change(lambda c: c["fitted"].update(predict=1))
    yield "wrong type", change(lambda c: c["fitted"].update(_layers=3.0))
    yield "no layers", change(lambda c: c["fitted"].update(_layers=[]))
    yield "missing layer", change(lambda c: c["fitted"]["_layers"].pop(1))
    yield (
        "wrong shape",
        change(lambda c: c["fitted"]["_layers"].__setitem__(0, (np.ones((16, 3)), np.ones(16)))),
    )
    yield (
        "integers",
        change(lambda c: c["fitted"]["_layers"].__setitem__(2, (np.ones((1, 8), int), np.ones(1)))),
    )
    yield (
        "not finite",
        change(
            lambda c: c["fitted"]["_layers"].__setitem__(2, (np.full((1, 8), np.nan), np.ones(1)))
        ),
    )
    yield "features", change(lambda c: c["fitted"].update(n_features_in_=10**12))
    yield "activation", change(lambda c: c["fitted"].update(_fitted_activation="eval"))
    yield "scaling", change(lambda c: c["fitted"]["_scaling"].update(x_offset=np.ones(3)))
    yield "squeeze", change(lambda c: c["fitted"].update(n_outputs_=2))
    yield "NaN units", change(lambda c: c["fitted"]["_scaling"].update(x_offset=np.full(4, np.nan)))
    yield (
        "infinite units",
        change(lambda c: c["fitted"]["_scaling"].update(x_scale=np.full(4, np.inf))),
    )
    yield "another link", change(lambda c: c["fitted"].update(_log_link=True))
    yield "epochs", change(lambda c: c["fitted"].update(n_iter_=-5))
    yield (
        "long history",
        change(
            lambda c: c["fitted"].update(history_={"n_rows": 10**8, "columns": {"epoch": None}})
        ),
    )
    yield "odd history", change(lambda c: c["fitted"].update(history_=[1] * 8))
    yield "curve", change(lambda c: c["fitted"].update(loss_curve_=np.zeros((8, 2))))
    yield "precision", change(lambda c: c["fitted"].update(_trained_dtype="int8"))
    yield "statistics", change(lambda c: c["fitted"].update(_statistics={"a": 1}))
    yield (
        "large statistics",
        change(
            lambda c: c["fitted"].update(
                _statistics={"shape": (12000, 12000), "triangle": np.array([1.0])}
            )
        ),
    )
    yield "moments", change(lambda c: c["fitted"].update(_moments=(1, 2)))
    yield "training state", change(lambda c: c["fitted"].update(_training_state={"a": 1}))
    yield "a list", lambda content: [content]
    yield "names", change(lambda c: c["fitted"].update(feature_names_in_=np.array(["a"], object)))


@pytest.mark.parametrize(("what", "edit"), list(wrong_contents()), ids=lambda v: str(v)[:20])
def test_contents_that_no_fit_gives(whole, tmp_path, what, edit):
    path = tmp_path / "model.safetensors"
    content = edit(content_of(whole, path))
    files.write(path, "model", content)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_model(path)


@pytest.mark.parametrize("position", [10**9, -(10**9), 10**30, 625])
def test_random_states_that_are_none(position, tmp_path):
    path = tmp_path / "model"
    save_model(TorchLinearRegressor(random_state=np.random.RandomState(0)).fit(X, y), path)
    content = files.read(path, "model")
    kind, key, *_ = content["params"]["random_state"].get_state()
    written = files.flatten
    state = {"tuple": [kind, {"array": "key"}, position, 0, 0.0]}

    def flatten(value, arrays, path=""):
        if isinstance(value, np.random.RandomState):
            arrays["key"] = key
            return {"random_state": state}
        return written(value, arrays, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "flatten", flatten)
        files.write(path, "model", content)
    with pytest.raises(ValueError, match="invalid random state"):
        load_model(path)


def test_linear_models_that_no_fit_gives(tmp_path):
    path = tmp_path / "model"
    save_model(TorchLinearRegressor(fit_intercept=False).fit(X, y), path)
    for name, value in {
        "intercept_": np.float64(np.nan),
        "coef_": np.zeros((10**7, 0)),
        "rank_": 77,
        "loss_": "low",
    }.items():
        content = files.read(path, "model")
        content["fitted"][name] = value
        files.write(tmp_path / "changed", "model", content)
        with pytest.raises(ValueError, match="changed"):
            load_model(tmp_path / "changed")


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    path = tmp_path / "model"
    save_model(fitted("exact"), path)
    before = path.read_bytes()
    for model in (
        fitted("exact").set_params(alpha=-1.0),
        fitted("exact").set_params(random_state=np.random.RandomState(np.random.PCG64(1))),
    ):
        with pytest.raises(ValueError, match=r"Nothing was written|cannot be stored"):
            save_model(model, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("coef", "intercept"),
    [([1.0, 2.0], 3), (np.array([1, 2]), 3.0), (np.array([[1.0, 2.0]]), np.array([3.0]))],
)
def test_odd_coefficients_set_by_hand(coef, intercept, tmp_path):
    model = TorchLinearRegressor(loss=np.str_("huber"))
    model.coef_, model.intercept_ = coef, intercept
    copy = through_file(model, tmp_path / "model")
    np.testing.assert_array_equal(copy.predict([[1.0, 1.0]]), model.predict([[1.0, 1.0]]))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def other_files(whole):
    yield "pickle", pickle.dumps(Evil())
    yield "empty", b""
    yield "text", b"no model"
    yield "zeros", bytes(1000)
    yield "oversized header", (2**40).to_bytes(8, "little") + whole[8:]
    yield "header beyond the end", (len(whole) * 2).to_bytes(8, "little") + whole[8:]
    yield "negative header", (2**64 - 1).to_bytes(8, "little") + whole[8:]
    deep = b'{"__metadata__":{"format":"sktorch_linreg","version":"1","kind":"model","tree":"'
    deep += b"[" * 100_000 + b'","sha256":""}}'
    yield "deep", len(deep).to_bytes(8, "little") + deep
    huge = b'{"a":{"dtype":"F64","shape":[1000000000000],"data_offsets":[0,8000000000000]}}'
    yield "huge", len(huge).to_bytes(8, "little") + huge + bytes(100)


def test_other_files_are_refused_and_not_run(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.safetensors"
    for what, data in other_files(whole):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            load_model(path)
        assert not (tmp_path / "evil").exists(), what


def test_a_tree_that_is_too_deep(tmp_path, whole):
    tree = "[" * 50_000 + "]" * 50_000
    header = {"format": "sktorch_linreg", "version": "1", "kind": "model", "tree": tree}
    header["sha256"] = files._digest(header, {})
    import safetensors.numpy

    (tmp_path / "model").write_bytes(safetensors.numpy.save({}, header))
    with pytest.raises(ValueError, match="recursion"):
        load_model(tmp_path / "model")


def test_versions_and_kinds(tmp_path, whole, monkeypatch):
    path = tmp_path / "model"
    content = content_of(whole, path)
    files.write(path, "checkpoint", content)
    with pytest.raises(ValueError, match="it is a 'checkpoint'"):
        load_model(path)
    monkeypatch.setattr(files, "VERSION", 2)
    files.write(path, "model", content)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"version '2'.*a newer package"):
        load_model(path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ValueError, match="not a regular file"):
        load_model(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="requires named pipes")
def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        load_model(tmp_path / "pipe")


# -- crashes --------------------------------------------------------------------------------------

# saves a model, and meets something at the first line of the function that writes the file, at the
# second, and so on, each time in a process of its own
AT_EACH_LINE = """
import os, signal, sys
import numpy as np
from sktorch_linreg import load_model, save_model
from sktorch_linreg._runtime import files
folder, what = sys.argv[1:]
target, X = f"{folder}/target", np.load(f"{folder}/X.npy")
models = [load_model(f"{folder}/{i}") for i in range(2)]
expected = [model.predict(X).tobytes() for model in models]
code = files.replace.__code__

def save(wanted):
    seen = 0
    def trace(frame, event, arg):
        nonlocal seen
        if frame.f_code is not code:
            return None
        seen += event == "line"
        if event == "line" and seen == wanted:
            os.kill(os.getpid(), getattr(signal, what))
        return trace
    before = len(os.listdir("/proc/self/fd"))
    sys.settrace(trace)
    try:
        save_model(models[1], target)
        os._exit(0)
    except KeyboardInterrupt:
        sys.settrace(None)
    # what the traceback kept alive is gone here
    os._exit(1 + (len(os.listdir("/proc/self/fd")) > before))

for line in range(1, 100):
    save_model(models[0], target)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        save(line)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    written = expected.index(load_model(target).predict(X).tobytes())
    others = [name for name in os.listdir(folder) if name not in ("0", "1", "X.npy", "target")]
    print(status, written, len(others))
    if status == 0:
        break
"""


def at_each_line(folder, what):
    """What came of it: exit code, whether the new model was written, number of other files."""
    np.save(folder / "X.npy", X)
    for i, name in enumerate(("exact", "ridge")):
        save_model(fitted(name), folder / str(i))
    command = [sys.executable, "-c", AT_EACH_LINE, str(folder), what]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    rows = [tuple(map(int, line.split())) for line in run.stdout.splitlines()]
    # the last one came to the end undisturbed
    assert rows.pop()[:2] == (0, 1)
    assert {written for _, written, _ in rows} == {0, 1}
    return rows


on_linux = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="requires Linux's /proc")


@on_linux
@pytest.mark.slow
def test_a_kill_at_any_line_leaves_the_old_file_or_the_new_one(tmp_path):
    assert {status for status, *_ in at_each_line(tmp_path, "SIGKILL")} == {-signal.SIGKILL}


@on_linux
def test_ctrl_c_at_any_line_leaves_no_temporary_file(tmp_path):
    for status, written, others in at_each_line(tmp_path, "SIGINT"):
        assert others == 0
        # nor a descriptor of it
        assert status == 1 or (status == 2 and written)


@pytest.mark.parametrize("when", ["open", "chmod", "fsync", "replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_system_call_leaves_no_temporary_file(tmp_path, monkeypatch, when, error):
    path = tmp_path / "model"
    save_model(fitted("exact"), path)
    path.chmod(0o600)
    before = path.read_bytes()
    real = getattr(os, when)

    def interrupted(*args, **kwargs):
        if when != "replace":
            real(*args, **kwargs)
        raise error

    monkeypatch.setattr(os, when, interrupted)
    with pytest.raises(error):
        save_model(fitted("ridge"), path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("length", [1, 200, 218, 255])
def test_names_as_long_as_the_system_takes(tmp_path, length):
    for path in (tmp_path / ("m" * length), tmp_path / ("\u00e9" * (length // 2 or 1))):
        for model in (fitted("exact"), fitted("mlp")):
            assert same(through_file(model, path), model)


@pytest.mark.skipif(sys.platform == "win32", reason="requires Unix file modes")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664, 0o400])
def test_a_replaced_file_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "model"
    save_model(fitted("exact"), path)
    path.chmod(mode)
    save_model(fitted("ridge"), path)
    assert path.stat().st_mode & 0o7777 == mode
    assert same(load_model(path), fitted("ridge"))


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="requires symbolic links")
def test_a_symbolic_link_is_written_through(tmp_path):
    (tmp_path / "models").mkdir()
    real, link = tmp_path / "models" / "v1", tmp_path / "current"
    save_model(fitted("exact"), real)
    link.symlink_to("models/v1")
    (tmp_path / "indirect").symlink_to(link)
    for path, name in ((link, "ridge"), (tmp_path / "indirect", "lasso")):
        save_model(fitted(name), path)
        assert path.is_symlink()
        assert same(load_model(real), fitted(name))
    # one that leads to nothing yet
    (tmp_path / "next").symlink_to("models/v2")
    save_model(fitted("exact"), tmp_path / "next")
    assert sorted(p.name for p in real.parent.iterdir()) == ["v1", "v2"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="requires named pipes")
def test_only_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            save_model(fitted("exact"), path)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


# -- arrays in memory that is only read -----------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("name", [n for n in ESTIMATORS if n != "custom"])
def test_models_whose_arrays_are_mapped_into_memory(tmp_path, name, incremental):
    if incremental and not hasattr(ESTIMATORS[name], "partial_fit"):
        pytest.skip("this optimizer needs all rows at once")
    model = clone(ESTIMATORS[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for _ in range(2):
            model = (model.partial_fit if incremental else model.fit)(X, np.abs(y))
    again = joblib.load(joblib.dump(model, tmp_path / "m.joblib")[0], mmap_mode="r")
    assert same(again, model)
    assert same(through_file(again, tmp_path / "m.safetensors"), model)
    np.testing.assert_allclose(again.net_.predict(X), model.net_.predict(X), rtol=1e-4)
    again.score(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if incremental:
            np.testing.assert_array_equal(
                again.partial_fit(X, np.abs(y)).predict(X),
                model.partial_fit(X, np.abs(y)).predict(X),
            )
        again.set_params(warm_start=True).fit(X, np.abs(y))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [n for n in ESTIMATORS if n != "custom"])
@pytest.mark.parametrize("sparse", [False, True])
def test_rows_that_are_only_read(tmp_path, name, sparse):
    # a table of zeros as well, whose rows are sparse
    rows = X * (np.random.default_rng(3).uniform(size=X.shape) < 0.5) if sparse else X
    given = sp.csr_matrix(rows) if sparse else rows
    parts = joblib.load(joblib.dump((given, np.abs(y)), tmp_path / "rows")[0], mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            model = clone(ESTIMATORS[name]).set_params(random_state=0)
            expected = clone(model).fit(given, np.abs(y))
        except ValueError:
            pytest.skip("this solver does not support sparse rows")
        mapped = clone(model).fit(*parts)
    np.testing.assert_array_equal(mapped.predict(parts[0]), expected.predict(given))
    mapped.score(*parts)
    mapped.net_.predict(rows)


FULL = """
import resource, signal, sys
from sktorch_linreg import load_model, save_model
model = load_model(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    save_model(model, sys.argv[2])
except OSError as error:
    print(error.errno)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="requires Unix resource limits")
def test_a_full_disk_leaves_the_old_file(tmp_path, whole):
    path, target = tmp_path / "new", tmp_path / "target"
    path.write_bytes(whole)
    save_model(fitted("exact"), target)
    before = target.read_bytes()
    run = subprocess.run(
        [sys.executable, "-c", FULL, str(path), str(target)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) == errno.EFBIG
    assert target.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "target"]


def test_without_safetensors_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"sktorch_linreg\[persist\]"):
        save_model(fitted("exact"), tmp_path / "model")
