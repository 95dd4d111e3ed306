"""Objects of the user: known again where they do the same, told apart where they do not."""

import copy
import functools
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections import OrderedDict

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sktorch_linreg import (
    BatchedGridSearchCV,
    CheckpointMismatchError,
    TorchLinearRegressor,
    TorchMLPRegressor,
)
from sktorch_linreg._runtime.identity import IncomparableError, describe, fingerprint, identify

LambdaLR = torch.optim.lr_scheduler.LambdaLR
RNG = np.random.default_rng(0)
X = RNG.normal(size=(100, 3))
y = X.sum(axis=1) + RNG.normal(size=100)


def power(base, epoch, shift=0):
    return base ** (epoch + shift)


def decay(base):
    return lambda epoch: base**epoch


def with_default(base):
    def rate(epoch, base=base):
        return base**epoch

    return rate


class Decay:
    """Prints the same whatever its base is."""

    def __init__(self, base):
        self.base = base

    def __call__(self, epoch):
        return self.base**epoch

    def __repr__(self):
        return "Decay()"

    def of(self, epoch):
        return self(epoch)


def local_class(q):
    class Pinball(torch.nn.Module):
        def forward(self, prediction, target):
            return torch.maximum(q * (target - prediction), (q - 1) * (target - prediction)).mean()

    return Pinball


def two_optimizers(factor):
    class Scaled(torch.optim.SGD):
        def __init__(self, params, lr=0.01):
            super().__init__(params, lr=factor * lr)

    return Scaled


def with_metaclass(factor):
    class Meta(type):
        def __call__(cls, *args):
            return factor

    class Made(metaclass=Meta):
        pass

    return Made


class Sparing:
    """Keeps its function out of pickles."""

    def __init__(self, fn):
        self.fn = fn

    def __getstate__(self):
        return {"version": 1}


def with_global(value):
    space = {"VALUE": value}
    exec("def rate(epoch): return VALUE(epoch)", space)
    return space["rate"]


def network(*order):
    torch.manual_seed(0)
    parts = {"a": torch.nn.Linear(2, 2), "b": torch.nn.Tanh()}
    return torch.nn.Sequential(OrderedDict((name, parts[name]) for name in order))


# pairs of objects that do something else, though they print alike or have the same name
DIFFERENT = {
    "closures": (decay(0.9), decay(0.1)),
    "defaults": (with_default(0.9), with_default(0.1)),
    "keyword defaults": (lambda e, *, g=0.9: g**e, lambda e, *, g=0.1: g**e),
    "names": (lambda e: 1 / (1 + np.sqrt(e)), lambda e: 1 / (1 + np.exp(e))),
    "constants": (lambda e: 0.9**e, lambda e: 0.1**e),
    "nested constants": (lambda e: max(0.9**i for i in [e]), lambda e: max(0.1**i for i in [e])),
    "names of arguments": (lambda e, a=1, b=2: e * a + b, lambda e, b=1, a=2: e * b + a),
    "names of keywords": (lambda *, a, b: a - b, lambda *, b, a: b - a),
    "metaclasses": (with_metaclass(1), with_metaclass(2)),
    "left out by __getstate__": (Sparing(np.sin), Sparing(np.cos)),
    "large integers": (10**5000, 10**5000 + 1),
    "globals that are instances": (with_global(Decay(0.9)), with_global(Decay(0.1))),
    "globals that are partials": (
        with_global(functools.partial(power, 0.9)),
        with_global(functools.partial(power, 0.1)),
    ),
    "partials": (functools.partial(power, 0.9), functools.partial(power, 0.1)),
    "keywords of partials": (
        functools.partial(power, 0.9, shift=1),
        functools.partial(power, 0.9, shift=2),
    ),
    "instances": (Decay(0.9), Decay(0.1)),
    "methods": (Decay(0.9).of, Decay(0.1).of),
    "classes": (local_class(0.1), local_class(0.9)),
    "instances of local classes": (local_class(0.1)(), local_class(0.9)()),
    "optimizers": (two_optimizers(1.0), two_optimizers(2.0)),
    "arrays": (np.arange(2000.0), np.where(np.arange(2000) == 1000, -1.0, np.arange(2000.0))),
    "shapes": (np.zeros((2, 3)), np.zeros((3, 2))),
    "objects in arrays": (np.array([Decay(1), None]), np.array([Decay(2), None])),
    "tensors": (torch.zeros(3), torch.zeros(3, dtype=torch.float64)),
    "half precision": (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.float16)),
    "numbers": (1, True),
    "signs": (0.0, -0.0),
    "sequences": ([1], (1,)),
    "order of layers": (network("a", "b"), network("b", "a")),
    "functions of numpy": (np.sqrt, np.exp),
    "transformers": (FunctionTransformer(decay(0.9)), FunctionTransformer(decay(0.1))),
    "frames": (pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"a": [1, 3]})),
    "sparse": (sp.eye(3, format="csr"), 2 * sp.eye(3, format="csr")),
    "generators": (np.random.default_rng(0), np.random.default_rng(1)),
    "random states": (np.random.RandomState(0), np.random.RandomState(1)),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_does_something_else_is_told_apart(name):
    first, second = DIFFERENT[name]
    assert fingerprint(first) != fingerprint(second)


@pytest.mark.parametrize("name", DIFFERENT)
def test_copies_are_known_again(name):
    for value in DIFFERENT[name]:
        expected = fingerprint(value)
        if isinstance(value, Sparing):
            # whose copies lack what it leaves out
            continue
        assert fingerprint(copy.deepcopy(value)) == expected
        assert fingerprint([value, value]) == fingerprint([value, copy.deepcopy(value)])
        try:
            stored = pickle.dumps(value)
        except (AttributeError, pickle.PicklingError):
            continue
        assert fingerprint(pickle.loads(stored)) == expected


# pairs of objects that are the same
SAME = {
    "lambdas": (decay(0.9), decay(0.9)),
    "comprehensions": (
        lambda e: min([0.9**i for i in range(e + 1)]),
        lambda e: min([0.9**i for i in range(e + 1)]),
    ),
    "partials": (functools.partial(power, 0.9, shift=1), functools.partial(power, 0.9, shift=1)),
    "order of keywords": (
        functools.partial(power, base=0.9, shift=1),
        functools.partial(power, shift=1, base=0.9),
    ),
    "instances": (Decay(0.9), Decay(0.9)),
    "local classes": (local_class(0.1), local_class(0.1)),
    "numpy numbers": (np.float64(0.1), 0.1),
    "memory order": (np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(6.0).reshape(2, 3)),
    "byte order": (np.arange(3, dtype=">f8"), np.arange(3, dtype="<f8")),
    "views": (torch.arange(6.0)[::2], torch.tensor([0.0, 2.0, 4.0])),
    "sets": ({"a", "b", "c"}, {"c", "b", "a"}),
    "dictionaries": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "estimators": (make_pipeline(StandardScaler()), make_pipeline(StandardScaler())),
}


@pytest.mark.parametrize("name", SAME)
def test_what_does_the_same_is_known_again(name):
    first, second = SAME[name]
    assert fingerprint(first) == fingerprint(second)


def test_objects_within_themselves():
    first, second = [1], [1]
    first.append(first)
    second.append(second)
    assert fingerprint(first) == fingerprint(second) != fingerprint([1, [1]])

    def factorial(n):
        return n * factorial(n - 1) if n else 1

    assert fingerprint(factorial) == fingerprint(factorial)


def test_a_global_that_a_function_works_with():
    space = {}
    exec("rate = 0.9\ndef f(e): return rate**e", space)
    before = fingerprint(space["f"])
    space["rate"] = 0.1
    assert fingerprint(space["f"]) != before
    space["rate"] = 0.9
    assert fingerprint(space["f"]) == before


def test_words_for_people():
    assert describe(power).endswith("test_identity.power")
    assert describe(torch.optim.Adam) == "torch.optim.adam.Adam"
    assert describe(np.float64(0.5)) == "0.5"
    assert describe(torch.float32) == "'float32'"
    assert describe(decay(0.9)) != describe(decay(0.1))
    assert describe(decay(0.9)).startswith("decay.<locals>.<lambda> ")
    assert describe((1, Decay)) == f"(1, {__name__}.Decay)"


INCOMPARABLE = {
    "lock": threading.Lock,
    "generator": lambda: (i for i in range(3)),
    "file": lambda: open(os.devnull),  # noqa: SIM115
    "closure": lambda: (lambda lock: lambda epoch: lock)(threading.Lock()),
}


@pytest.mark.parametrize("name", INCOMPARABLE)
def test_what_has_no_value_equals_itself_alone(name):
    value, other = INCOMPARABLE[name](), INCOMPARABLE[name]()
    with pytest.raises(IncomparableError):
        fingerprint(value)
    with pytest.warns(UserWarning, match=r"loss__x holds an object .* so nothing follows\."):
        first = identify(value, "loss__x", "nothing follows")
    # within others as well
    assert identify([1, value], "loss__x") == identify([1, value], "loss__x")
    assert identify([1, value], "loss__x") != identify([1, other], "loss__x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert first == identify(value, "loss__x")
        assert first != identify(other, "loss__x")


# -- where it counts ------------------------------------------------------------------------------

# what fits differ in
PAIRS = {
    name: [
        {"lr_schedule": LambdaLR, "lr_schedule__lr_lambda": value}
        for value in (*DIFFERENT[name], copy.deepcopy(DIFFERENT[name][0]))
    ]
    for name in (
        "closures", "defaults", "keyword defaults", "names", "constants", "nested constants",
        "partials", "keywords of partials", "instances", "methods",
    )
}  # fmt: skip
PAIRS["losses"] = [{"loss": local_class(q)} for q in (0.1, 0.9, 0.1)]
PAIRS["optimizers"] = [{"optimizer": two_optimizers(f)} for f in (1.0, 2.0, 1.0)]


@pytest.mark.parametrize("name", PAIRS)
def test_checkpoints_of_another_object_are_refused(name, tmp_path):
    first, second, again = PAIRS[name]
    model = TorchMLPRegressor(
        hidden_layer_sizes=(4,), max_epochs=4, tol=None, random_state=0,
        checkpoint_dir=tmp_path, checkpoint_every=1,
    )  # fmt: skip
    fitted = clone(model).set_params(**first).fit(X, y)
    np.testing.assert_array_equal(
        clone(model).set_params(**again).fit(X, y).predict(X), fitted.predict(X)
    )
    with pytest.raises(CheckpointMismatchError, match=r"of a different fit: \w+ was .*, now"):
        clone(model).set_params(**second).fit(X, y)


def test_a_checkpoint_with_something_that_cannot_be_compared(tmp_path):
    lock = threading.Lock()

    def rate(epoch):
        return 0.9**epoch * (lock is not None)

    model = TorchLinearRegressor(
        optimizer="adam", max_epochs=3, checkpoint_dir=tmp_path, random_state=0,
        lr_schedule=LambdaLR, lr_schedule__lr_lambda=rate,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="lr_schedule__lr_lambda holds an object of type lock"):
        model.fit(X, y)
    # the same object goes on in this process
    with pytest.warns(UserWarning, match="no later fit can resume from this checkpoint"):
        model.fit(X, y)


SCRIPT = """
import functools, sys, warnings
import numpy as np, torch
from sktorch_linreg import TorchMLPRegressor
warnings.simplefilter("ignore")
X = np.random.default_rng(0).normal(size=(50, 2))

def power(base, epoch):
    return base**epoch

class Decay:
    base = 0.9
    def __call__(self, epoch):
        return self.base**epoch

class Cubed(torch.nn.Module):
    def forward(self, prediction, target):
        return (prediction - target).abs().pow(3).mean()

rates = {
    "lambda": lambda epoch: 0.9**epoch,
    "comprehension": lambda epoch: min([0.9**i for i in range(epoch + 1)]),
    "def": power.__get__(0.9),
    "partial": functools.partial(power, 0.9),
    "object": Decay(),
}
for name, rate in rates.items():
    model = TorchMLPRegressor(
        loss=Cubed, max_epochs=3, tol=None, random_state=0, checkpoint_dir=f"{sys.argv[1]}/{name}",
        lr_schedule=torch.optim.lr_scheduler.LambdaLR, lr_schedule__lr_lambda=rate,
    )
    try:
        model.fit(X, X[:, 0])
        print("fitted")
    except ValueError as error:
        print("refused", str(error)[:400].replace(chr(10), " "))
"""


@pytest.mark.slow
def test_the_same_script_goes_on_in_another_process(tmp_path):
    def started(script):
        command = [sys.executable, "-c", script, str(tmp_path)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        return [line.split()[0] for line in run.stdout.splitlines()]

    assert started(SCRIPT) == started(SCRIPT) == ["fitted"] * 5
    # a class that was edited meanwhile is another loss
    assert started(SCRIPT.replace("pow(3)", "pow(4)")) == ["refused"] * 5


@pytest.mark.parametrize("name", PAIRS)
def test_partial_fit_keeps_its_state_for_the_same_object_alone(name):
    first, second, again = PAIRS[name]
    base = TorchMLPRegressor(hidden_layer_sizes=(4,), lr=0.05, random_state=0)

    def trained(*settings):
        model = clone(base)
        for one in settings:
            model.set_params(**one).partial_fit(X, y)
        return model

    same = trained(first, first, first)
    np.testing.assert_array_equal(trained(first, again, first).predict(X), same.predict(X))
    state = trained(first, second)._training_state
    if name != "losses":
        # rates, or the optimizer, begin anew
        kept = trained(first)._training_state
        assert state["rates"] != kept["rates"] or state["fits"] != kept["fits"]


def test_schedules_that_print_alike_are_kept_apart_in_a_search():
    model = TorchMLPRegressor(
        hidden_layer_sizes=(4,), lr=0.05, max_epochs=5, tol=None, random_state=0, dtype="float64",
        lr_schedule=LambdaLR,
    )  # fmt: skip
    values = [Decay(0.9), Decay(0.1), decay(0.9), decay(0.1), functools.partial(power, 0.5)]
    grid = {"lr_schedule__lr_lambda": values, "lr": [0.01, 0.05]}
    ours, theirs = (
        cls(model, grid, cv=3, refit=False).fit(X, y).cv_results_["mean_test_score"]
        for cls in (BatchedGridSearchCV, GridSearchCV)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    assert len(np.unique(theirs.round(9))) > 5


class Fading:
    """A schedule that remembers how often it was asked."""

    def __init__(self):
        self.n_calls = 0

    def __call__(self, epoch):
        self.n_calls += 1
        return 0.8**self.n_calls


def remembering():
    cache = {}

    def rate(epoch):
        return cache.setdefault(epoch, 0.8**epoch)

    return rate


class Locked:
    """Cannot be compared."""

    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self, epoch):
        return 0.8**epoch


@pytest.mark.parametrize("make", [remembering, Locked], ids=["cache", "lock"])
@pytest.mark.filterwarnings("ignore:lr_schedule__lr_lambda holds")
def test_a_schedule_that_remembers_stays_what_it_is(make, tmp_path):
    def model(rate, **params):
        return TorchLinearRegressor(
            optimizer="sgd", lr=0.05, max_epochs=4, random_state=0, lr_schedule=LambdaLR,
            lr_schedule__lr_lambda=rate, **params,
        )  # fmt: skip

    own, plain = model(make()), model(lambda epoch: 0.8**epoch)
    for _ in range(4):
        own.partial_fit(X, y)
        plain.partial_fit(X, y)
    np.testing.assert_array_equal(own.coef_, plain.coef_)
    kept = model(make(), checkpoint_dir=tmp_path)
    coef = kept.fit(X, y).coef_
    np.testing.assert_array_equal(kept.fit(X, y).coef_, coef)
    if make is remembering:
        # one that is made anew is what the other was
        again = model(make(), checkpoint_dir=tmp_path)
        np.testing.assert_array_equal(again.fit(X, y).coef_, coef)


def test_a_schedule_with_a_state_is_that_of_one_fit():
    model = TorchLinearRegressor(
        optimizer="sgd", lr=0.05, max_epochs=5, random_state=0, lr_schedule=LambdaLR,
        lr_schedule__lr_lambda=Fading(), batch_size=20,
    )  # fmt: skip
    grid = {"alpha": [0.0, 0.1]}
    ours, theirs = (
        cls(model, grid, cv=3, refit=False).fit(X, y).cv_results_["mean_test_score"]
        for cls in (BatchedGridSearchCV, GridSearchCV)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
