"""Whatever goes in: the right answer, or a documented error that leaves everything as it was.

``NIGHTLY=1 python -m pytest tests/estimator/test_fuzz.py`` draws 20,000 examples instead of 500.
"""

import copy
import itertools
import os
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor, load_model, save_model

EXAMPLES = 20_000 if os.environ.get("NIGHTLY") else 500
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=False
)
# what fit is documented to raise
DOCUMENTED = (ValueError, TypeError)

# -- rows -----------------------------------------------------------------------------------------

DTYPES = ["f8", "f4", "f8", "f4", "i8", "i4", "u1", "?", "f2", "O", "c16", "U3", ">f8", "M8[D]"]
SIZES = st.integers(1, 12)


@st.composite
def numbers(draw, shape):
    """An array of a drawn dtype and magnitude, maybe with values that are not finite."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    if dtype.kind in "cUM":
        return np.zeros(shape, dtype=dtype)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    exponent = draw(st.sampled_from([0, 0, 0, 0, 1, 8, -8, 38, -38, 150, -150, 300, -300]))
    with np.errstate(all="ignore"):
        a = np.asarray(rng.normal(size=shape) * 10.0**exponent)
        kind = draw(st.sampled_from(["noise", "noise", "constant", "zeros", "few", "offset"]))
        if kind == "constant":
            a[...] = a.flat[0] if a.size else 0.0
        elif kind == "zeros":
            a[...] = 0.0
        elif kind == "few":
            a = np.asarray(np.sign(a) * 10.0**exponent)
        elif kind == "offset":
            a = a + 1e8 * 10.0**exponent
        a = np.nan_to_num(a, posinf=1e300, neginf=-1e300)
        if dtype.kind in "iu?":
            return rng.integers(0, 2 if dtype.kind == "?" else 100, size=shape).astype(dtype)
        out = a.astype(dtype)
    out = np.asarray(out)
    if dtype.kind == "f" and out.ndim and out.size and draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, out.size - 1))
        out.flat[at] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    return out


@st.composite
def layouts(draw, a):
    """The same numbers in another memory layout."""
    way = draw(st.sampled_from(["C", "F", "stride", "reversed", "read-only", "memmap", "offset"]))
    if way == "F":
        return np.asfortranarray(a)
    if way == "stride" and a.ndim:
        out = np.zeros((2 * len(a), *a.shape[1:]), dtype=a.dtype)[::2]
        out[...] = a
        return out
    if way == "reversed" and a.ndim:
        return np.ascontiguousarray(a[::-1])[::-1]
    if way == "read-only":
        a = a.copy()
        a.flags.writeable = False
    if way == "memmap" and a.dtype != object and a.size:
        # X and y are two files
        path = os.path.join(MAPPED, f"rows {next(NUMBER) % 4}")
        mapped = np.memmap(path, dtype=a.dtype, mode="w+", shape=a.shape)
        mapped[...] = a
        mapped.flush()
        return np.memmap(path, dtype=a.dtype, mode="r", shape=a.shape)
    if way == "offset" and a.dtype.kind in "fiu" and a.ndim == 2:
        # columns of a record are not aligned
        raw = np.zeros(a.shape, dtype=[("pad", "u1"), ("x", a.dtype)])
        raw["x"] = a
        return raw["x"]
    return a


MAPPED, NUMBER = "", itertools.count()


@pytest.fixture(scope="module", autouse=True)
def mapped(tmp_path_factory):
    global MAPPED
    MAPPED = str(tmp_path_factory.mktemp("mapped"))


@st.composite
def containers(draw, a):
    """The same numbers in what users keep them in."""
    way = draw(st.sampled_from(["array"] * 4 + ["list", "pandas", "polars", "sparse", "tensor"]))
    if a.ndim != 2 or a.dtype.kind not in "fiu?":
        return a
    if way == "list":
        return a.tolist()
    if way == "pandas":
        index = draw(st.sampled_from([None, "names", "repeated", "reversed"]))
        rows = {
            None: None,
            "names": [f"row {i}" for i in range(len(a))],
            "repeated": [0] * len(a),
            "reversed": range(len(a))[::-1],
        }[index]
        names = draw(st.sampled_from([None, "ab", "odd"]))
        columns = {
            None: None,
            "ab": [chr(97 + i) for i in range(a.shape[1])],
            "odd": [f"größe {i} [m²]" for i in range(a.shape[1])],
        }[names]
        return pd.DataFrame(a, index=rows, columns=columns)
    if way == "polars" and a.dtype.str[1:] in ("f8", "f4", "i8", "i4"):
        return pl.from_numpy(np.ascontiguousarray(a.astype(a.dtype.newbyteorder("="))))
    if way == "sparse" and a.dtype.str[1:] in ("f8", "f4", "i8", "i4"):
        cls = draw(st.sampled_from([sp.csr_matrix, sp.csc_array, sp.coo_matrix, sp.lil_matrix]))
        return cls(a.astype(a.dtype.newbyteorder("=")))
    if way == "tensor" and a.dtype.str in ("<f8", "<f4", "<i8"):
        return torch.from_numpy(np.ascontiguousarray(a).copy())
    return a


@st.composite
def rows(draw):
    """X, y and weights that mostly go together."""
    n, d = draw(SIZES), draw(st.integers(1, 5))
    shape = draw(st.sampled_from([(n, d)] * 12 + [(n,), (0, d), (n, 0), (n, d, 2)]))
    X = draw(numbers(shape))
    X = draw(containers(draw(layouts(X))))
    m = n + draw(st.sampled_from([0] * 15 + [1]))
    y = draw(numbers(draw(st.sampled_from([(m,), (m,), (m, 1), (m, 3)]))))
    y = draw(layouts(y))
    if draw(st.integers(0, 9)) == 0 and y.ndim == 1:
        y = draw(st.sampled_from([pd.Series, list]))(y)
    way = draw(st.sampled_from(["none"] * 6 + ["some", "zero", "negative", "wrong", "nan", "huge"]))
    weight = {
        "none": None,
        "some": np.linspace(0.0, 2.0, n),
        "zero": np.zeros(n),
        "negative": -np.ones(n),
        "wrong": np.ones(n + 1),
        "nan": np.full(n, np.nan),
        "huge": np.linspace(1.0, 2.0, n) * 1e300,
    }[way]
    return X, y, weight


# -- parameters -----------------------------------------------------------------------------------

WRONG = st.sampled_from([-1, 0, 2.5, "wrong", None, [1], {}, float("nan"), True, object])
COMMON = {
    "loss": ["squared_error", "absolute_error", "huber", "quantile", "poisson"],
    "alpha": [0.0, 1e-3, 1.0, 1e10],
    "l1_ratio": [0.0, 0.5, 1.0],
    "optimizer": ["lbfgs", "sgd", "adam", "nadam", "rmsprop", "adadelta", torch.optim.Adagrad],
    "lr": [None, 1e-3, 0.1, 1e6],
    "lr_schedule": [None, "cosine", "plateau", "one_cycle"],
    "batch_size": [None, 1, 4, "auto"],
    "shuffle": [True, False],
    "tol": [None, 0.0, 1e-3],
    "n_iter_no_change": [1, 5],
    "early_stopping": [False, True],
    "validation_fraction": [0.1, 0.5, 0.99],
    "standardize": [True, False],
    "device": ["cpu", "auto", torch.device("cpu")],
    "dtype": ["auto", "float32", "float64", torch.float32],
    "warm_start": [False, True],
    "random_state": [0, None],
    "loss__delta": [0.5],
    "loss__quantile": [0.1, 0.9],
    "optimizer__momentum": [0.9],
    "optimizer__betas": [(0.5, 0.6)],
}
LINEAR = {
    "fit_intercept": [True, False],
    "copy_X": [True, False],
    "positive": [False, True],
    "record_path": [False, True],
    "n_jobs": [None, 2],
}
MLP = {
    "hidden_layer_sizes": [(3,), (2, 2), 4, ()],
    "activation": ["relu", "tanh", "logistic", "identity", "gelu", "silu", "leaky_relu", "elu"],
    "dropout": [0.0, 0.5],
}


@st.composite
def estimators(draw):
    cls, own = draw(st.sampled_from([(TorchLinearRegressor, LINEAR), (TorchMLPRegressor, MLP)]))
    known = {**COMMON, **own}
    names = draw(st.lists(st.sampled_from(sorted(known)), max_size=4, unique=True))
    params = {name: draw(st.sampled_from(known[name])) for name in names}
    if names and draw(st.integers(0, 5)) == 0:
        params[names[0]] = draw(WRONG)
    # a few epochs are enough to go wrong
    return cls(**{"max_epochs": 3, **params})


def frozen(value):
    """A copy to compare with."""
    return value.copy() if isinstance(value, sp.spmatrix | sp.sparray) else copy.deepcopy(value)


def unchanged(value, before):
    if isinstance(value, sp.spmatrix | sp.sparray):
        return (value != before).nnz == 0 or np.isnan(value.sum())
    if isinstance(value, pd.DataFrame | pd.Series | pl.DataFrame):
        return value.equals(before)
    if isinstance(value, torch.Tensor):
        return torch.equal(torch.nan_to_num(value), torch.nan_to_num(before))
    if value is None or isinstance(value, list):
        return str(value) == str(before)
    return value.tobytes() == before.tobytes() if value.dtype != object else True


def check_fitted(model, X, y, weight):
    """What holds for any model that was fitted without an error."""
    prediction = model.predict(X)
    shape = np.shape(y) if np.ndim(y) else (len(y),)
    assert prediction.shape == tuple(shape)
    assert prediction.dtype in (np.float32, np.float64)
    attributes = [model.loss_, *model.loss_curve_]
    if isinstance(model, TorchLinearRegressor):
        attributes += [model.coef_, model.intercept_]
    else:
        attributes += model.coefs_ + model.intercepts_
    for a in attributes:
        assert np.isfinite(a).all(), a
    if model.loss != "poisson" and model.loss_ < 1e4:
        # exponentials may overflow, as in scikit-learn, and so may what astray training predicts
        seen = slice(None) if weight is None else np.asarray(weight) > 0
        assert np.isfinite(prediction[seen]).all()


@FUZZ
@given(model=estimators(), data=rows())
def test_fit_is_right_or_says_why(model, data):
    X, y, weight = data
    before = [frozen(v) for v in data]
    state = dict(vars(model))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            error = None
            model.fit(X, y, sample_weight=weight)
        except DOCUMENTED as raised:
            error = raised
        else:
            check_fitted(model, X, y, weight)
            # an overflow that nobody looked at would be a silent wrong answer
            assert not [str(w) for w in told if issubclass(w.category, RuntimeWarning)]
    if error is not None:
        assert len(str(error)) > 20, repr(error)
        assert vars(model).keys() == state.keys()
        assert all(vars(model)[k] is v for k, v in state.items())
    for value, old in zip(data, before, strict=True):
        assert unchanged(value, old)


EXACT = TorchLinearRegressor()


@FUZZ
@given(
    X=hnp.arrays(
        st.sampled_from([np.float64, np.float32]),
        st.tuples(st.integers(2, 15), st.integers(1, 4)),
        elements=st.integers(-1000, 1000).map(lambda i: i / 8),
    ),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-250, 1e-20, 1.0, 1e20, 1e250]),
    weighted=st.booleans(),
    fit_intercept=st.booleans(),
)
def test_least_squares_is_least(X, seed, scale, weighted, fit_intercept):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=len(X))
    weight = rng.uniform(0.1, 2.0, len(X)) if weighted else None
    given_X = X if X.dtype == np.float32 else X * scale
    model = TorchLinearRegressor(fit_intercept=fit_intercept).fit(given_X, y, weight)
    root = np.ones(len(X)) if weight is None else np.sqrt(weight)
    design = X.astype(np.float64)
    # by hand, on centred rows, with numpy's own least squares
    target = y
    if fit_intercept:
        design = design - np.average(design, axis=0, weights=root**2)
        target = y - np.average(y, weights=root**2)
    coef = np.linalg.lstsq(root[:, None] * design, root * target, rcond=1e-10)[0]
    least = np.sum((root * (target - design @ coef)) ** 2)
    found = np.sum((root * (y - model.predict(given_X))) ** 2)
    tolerance = 1e-4 if X.dtype == np.float32 else 1e-9
    assert found <= least + tolerance * (1 + np.sum((root * target) ** 2))


@settings(FUZZ, max_examples=EXAMPLES // 5)
@given(model=estimators(), data=rows())
def test_what_was_fitted_survives_a_file(model, data, tmp_path_factory):
    X, y, weight = data
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model.fit(X, y, sample_weight=weight)
        except DOCUMENTED:
            return
        try:
            save_model(model, path)
        except ValueError as error:
            if "cannot be stored" not in str(error):
                raise
            return
        copied = load_model(path)
        np.testing.assert_array_equal(copied.predict(X), model.predict(X))
