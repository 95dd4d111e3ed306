"""Correct digits of the exact solver, against multi-precision arithmetic."""

import mpmath
import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from sktorch_linreg import TorchLinearRegressor


def exact(X, y, w=None):
    """Intercept and coefficients of the least-squares problem as given, bit by bit."""
    with mpmath.workdps(150):
        A = mpmath.matrix([[1.0, *map(float, row)] for row in X])
        b = mpmath.matrix([float(v) for v in y])
        W = mpmath.diag([float(v) for v in (np.ones(len(y)) if w is None else w)])
        return mpmath.lu_solve(A.T * W * A, A.T * W * b)


def digits(estimate, truth):
    """Correct decimal digits of the worst of several numbers, from 0 to 16."""
    with mpmath.workdps(150):
        errors = [
            abs(mpmath.mpf(float(e)) - t) / abs(t) for e, t in zip(estimate, truth, strict=True)
        ]
        return max(0.0, min(float(-mpmath.log10(e)) for e in [*errors, 1e-16] if e > 0))


def numbers(model):
    return np.append(model.intercept_, model.coef_)


def condition(X):
    centred = X - X.mean(axis=0)
    return np.linalg.cond(centred / np.linalg.norm(centred, axis=0))


def polynomial(degree, low, high, n=60):
    rng = np.random.default_rng(degree)
    x = np.linspace(low, high, n)
    X = np.column_stack([x**p for p in range(1, degree + 1)])
    return X, np.sin(x) + rng.normal(size=n)


def economy(n, closeness):
    """Series that grow together, as national accounts do."""
    rng = np.random.default_rng(1)
    trend = np.cumsum(rng.uniform(0.5, 1.5, n))
    X = np.column_stack([trend * s * (1 + closeness * rng.normal(size=n)) for s in (1, 80, 3e4)])
    return np.column_stack([X, 1950.0 + np.arange(n)]), 5e4 + 30 * trend + rng.normal(size=n)


def design(name):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(80, 5))
    y = x @ rng.normal(size=5) + rng.normal(size=80)
    outlier = y + 1e12 * (np.arange(80) == 7)
    far = [1e-12, 1e-6, 1.0, 1e6, 1e12]
    return {
        "well conditioned": (x, y),
        "economy": economy(30, 1e-3),
        "economy, nearly collinear": economy(30, 1e-7),
        "large residual": (x[:, :3] + 1e-3 * x[:, [3]], 1e6 * y),
        "large residual, nearly collinear": (x[:, :2] * 1e-5 + x[:, [3]], 1e6 * y),
        "scales": (x * far, y),
        "scales and means": ((x + 3) * far, y),
        "target of large mean": (x, 1e9 + y),
        "feature of large mean": (x + np.array([0, 1e9, 0, -1e8, 0]), y),
        "no noise": (x, 2.0 + x @ np.arange(1.0, 6.0)),
        "outlier with a dummy of its own": (np.c_[x, np.arange(80) == 7], outlier),
    }[name]


DESIGNS = [
    "well conditioned",
    "economy",
    "economy, nearly collinear",
    "large residual",
    "large residual, nearly collinear",
    "scales",
    "scales and means",
    "target of large mean",
    "feature of large mean",
    "no noise",
    "outlier with a dummy of its own",
]
RANGES = [(-1, 1), (0, 1), (1, 2), (-9, -3), (100, 110), (1950, 2020)]


def check(X, y, w=None):
    truth = exact(X, y, w)
    model = TorchLinearRegressor().fit(X, y, sample_weight=w)
    ours = digits(numbers(model), truth)
    # without its cut-off, which drops small columns
    theirs = digits(numbers(LinearRegression(tol=0).fit(X, y, sample_weight=w)), truth)
    root = np.ones(len(y)) if w is None else np.sqrt(w)
    A = np.column_stack([np.ones(len(X)), X]) * root[:, None]
    lstsq = digits(np.linalg.lstsq(A, y * root, rcond=None)[0], truth)
    assert ours >= min(15.0, max(theirs, lstsq))
    if condition(X) < 1e8:
        # rounding each entry of X moves no coefficient by more than this
        assert ours >= 14.0
    return model


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", DESIGNS)
def test_digits(name, weighted):
    X, y = design(name)
    check(X, y, np.random.default_rng(3).uniform(0.1, 5, len(y)) if weighted else None)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("degree", range(1, 11))
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_digits_of_polynomials(low, high, degree):
    X, y = polynomial(degree, low, high)
    model = check(X, y)
    if model.rank_ == degree:
        assert digits(numbers(model), exact(X, y)) >= 7.0
    else:
        # only beyond what float64 entries can tell
        assert condition(X) > 1e12


@pytest.mark.sampled(2)
@pytest.mark.parametrize("n", [1_000, 30_000])
@pytest.mark.parametrize("closeness", [1.0, 1e-3, 1e-6])
def test_digits_of_many_rows(n, closeness):
    """Against the same numbers in twice the precision, summed exactly."""
    rng = np.random.default_rng(1)
    common = rng.normal(size=(n, 1))
    X = common + closeness * rng.normal(size=(n, 4)) + [0, 10, 0, -100]
    y = X.sum(axis=1) + rng.normal(size=n)
    model = TorchLinearRegressor().fit(X, y)
    ours = numbers(model)
    with mpmath.workdps(60):
        columns = [[mpmath.mpf(1)] * n, *([mpmath.mpf(v) for v in c] for c in X.T.tolist())]
        target = [mpmath.mpf(v) for v in y.tolist()]
        gram = [[mpmath.fdot(a, b) for a in columns] for b in columns]
        truth = mpmath.lu_solve(
            mpmath.matrix(gram), mpmath.matrix([mpmath.fdot(a, target) for a in columns])
        )
    theirs = numbers(LinearRegression(tol=0).fit(X, y))
    assert digits(ours, truth) >= min(13.0, digits(theirs, truth))


@pytest.mark.parametrize("n", [300, 3000])
def test_a_target_that_is_fitted_exactly_spoils_no_other(n):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 1)) + 1e-7 * rng.normal(size=(n, 4)) + 5
    y = rng.normal(size=n)
    alone = TorchLinearRegressor(fit_intercept=False).fit(X, y)
    beside = TorchLinearRegressor(fit_intercept=False).fit(X, np.column_stack([y, X[:, 0]]))
    np.testing.assert_allclose(beside.coef_[0], alone.coef_, rtol=1e-14)
    np.testing.assert_allclose(beside.coef_[1], [1, 0, 0, 0], atol=1e-15)


@pytest.mark.parametrize("solver", [{"positive": True}, {"alpha": 1e-30, "l1_ratio": 1.0}])
def test_digits_of_constrained_solutions_that_are_not_bound(solver):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2000, 1)) + 1e-4 * rng.normal(size=(2000, 3))
    y = X @ [1.0, 2.0, 3.0] + 1e-5 * rng.normal(size=2000)
    plain, bound = TorchLinearRegressor().fit(X, y), TorchLinearRegressor(**solver).fit(X, y)
    np.testing.assert_allclose(bound.coef_, plain.coef_, rtol=1e-10)


@pytest.mark.parametrize("closeness", [1.0, 1e-3, 1e-5])
def test_statistics_of_a_fit_are_as_good_as_its_coefficients(closeness):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1500, 1)) + closeness * rng.normal(size=(1500, 4))
    y = X.sum(axis=1) + rng.normal(size=1500)
    model = TorchLinearRegressor().fit(X, y)
    centred = X - X.mean(axis=0)
    singular = np.linalg.svd(centred, compute_uv=False)
    np.testing.assert_allclose(model.singular_, singular, rtol=1e-9)
    going_on = TorchLinearRegressor().fit(X[:1000], y[:1000]).partial_fit(X[1000:], y[1000:])
    np.testing.assert_allclose(going_on.coef_, model.coef_, rtol=1e-8)


@pytest.mark.parametrize(("n", "d", "closeness"), [(60, 4, 5e-5), (200, 12, 1.0), (2000, 5, 1e-3)])
def test_float32_to_its_rounding(n, d, closeness):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 1)) + closeness * rng.normal(size=(n, d))
    X = X.astype(np.float32)
    y = (X.astype(np.float64) @ np.arange(1.0, d + 1) + rng.normal(size=n)).astype(np.float32)
    model = TorchLinearRegressor().fit(X, y)
    assert model.coef_.dtype == np.float32
    if n <= 500:
        truth = np.array([float(v) for v in exact(X, y)[1:]])
    else:
        truth = TorchLinearRegressor().fit(X.astype(np.float64), y.astype(np.float64)).coef_
    np.testing.assert_array_less(
        np.abs(model.coef_ - truth), 1.01 * np.spacing(np.abs(model.coef_))
    )


def test_many_float32_rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200_000, 100)).astype(np.float32)
    y = (X @ rng.normal(size=100) + 0.1 * rng.normal(size=200_000)).astype(np.float32)
    A = np.column_stack([np.ones(len(X)), X.astype(np.float64)])
    expected = np.linalg.solve(A.T @ A, A.T @ y.astype(np.float64))[1:]
    model = TorchLinearRegressor().fit(X, y)
    np.testing.assert_array_less(
        np.abs(model.coef_ - expected), 1.01 * np.spacing(np.abs(model.coef_))
    )


def test_the_path_is_told(capsys):
    def path(X, y=None, **settings):
        y = np.sin(np.arange(len(X))) if y is None else y
        return TorchLinearRegressor(**settings).fit(X, y).solver_path_

    X, y = design("large residual, nearly collinear")
    assert path(X, y, verbose=1) == "qr, refined in extended precision"
    assert "solved by qr, refined in extended precision" in capsys.readouterr().out
    assert path(*polynomial(5, -1, 1)) == "cholesky, refined in extended precision"
    assert path(*design("well conditioned")) == "cholesky, refined"
    assert path(np.hstack([X, X]), y) == "svd"
    assert path(X[:2], y[:2]) == "cholesky of the rows"
    many = np.random.default_rng(0).normal(size=(20_000, 5))
    assert path(many) == "cholesky"
    assert path(many + 30 * many[:, :1]) == "cholesky, refined"
    assert path(many, many @ np.arange(5.0)) == "cholesky, refined in extended precision"
    assert path(many, np.ones(20_000)) == "cholesky"
    assert path(many, positive=True) == "cholesky, nnls"
    assert path(many, alpha=0.1, l1_ratio=0.5) == "cholesky, fista"


def test_same_input_same_bits():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(50_000, 30)) + 5, rng.normal(size=50_000)
    first, *others = (TorchLinearRegressor().fit(X, y) for _ in range(5))
    for other in others:
        np.testing.assert_array_equal(first.coef_, other.coef_)
        assert first.intercept_ == other.intercept_
