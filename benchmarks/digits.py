"""Correct digits of the worst coefficient, including the intercept, against 150-digit arithmetic.

Run ``python benchmarks/digits.py``; it needs mpmath (extra `test`).
"""

import mpmath
import numpy as np
from sklearn.linear_model import LinearRegression

from sktorch_linreg import TorchLinearRegressor

mpmath.mp.dps = 150


def exact(X, y):
    A = mpmath.matrix([[1.0, *map(float, row)] for row in X])
    b = mpmath.matrix([float(v) for v in y])
    return mpmath.lu_solve(A.T * A, A.T * b)


def digits(estimate, truth):
    errors = [abs(mpmath.mpf(float(e)) - t) / abs(t) for e, t in zip(estimate, truth, strict=True)]
    return max(0.0, min(float(-mpmath.log10(e)) for e in [*errors, 1e-16] if e > 0))


def designs():
    rng = np.random.default_rng(0)
    for low, high in [(-1, 1), (1, 2), (-9, -3), (100, 110), (1950, 2020)]:
        x = np.linspace(low, high, 60)
        y = np.sin(x) + rng.normal(size=60)
        for degree in (2, 3, 5, 7, 10):
            X = np.column_stack([x**p for p in range(1, degree + 1)])
            yield f"polynomial of degree {degree} on [{low}, {high}]", X, y
    z = rng.normal(size=(80, 5))
    t = z @ rng.normal(size=5) + rng.normal(size=80)
    far = 10.0 ** np.array([-12, -6, 0, 6, 12])
    trend = np.cumsum(rng.uniform(0.5, 1.5, 30))
    economy = np.column_stack(
        [trend * s * (1 + 1e-7 * rng.normal(size=30)) for s in (1, 80, 3e4)]
        + [1950 + np.arange(30)]
    )
    yield "economic series that agree to 1e-7", economy, 5e4 + 30 * trend + rng.normal(size=30)
    yield "columns equal to 1e-5, large residual", z[:, :2] * 1e-5 + z[:, [3]], 1e6 * t
    yield "column scales 1e-12 to 1e12", (z + 3) * far, t
    yield "target with mean 1e9 times its spread", z, 1e9 + t


def main():
    print("| design | condition | ours | LinearRegression(tol=0) | numpy lstsq | path |")
    print("|---|---|---|---|---|---|")
    for name, X, y in designs():
        truth = exact(X, y)
        model, theirs = TorchLinearRegressor().fit(X, y), LinearRegression(tol=0).fit(X, y)
        lstsq = np.linalg.lstsq(np.column_stack([np.ones(len(X)), X]), y, rcond=None)[0]
        found = [np.append(m.intercept_, m.coef_) for m in (model, theirs)]
        scores = " | ".join(f"{digits(b, truth):.1f}" for b in (*found, lstsq))
        centred = X - X.mean(axis=0)
        condition = np.linalg.cond(centred / np.linalg.norm(centred, axis=0))
        print(f"| {name} | {condition:.0e} | {scores} | {model.solver_path_} |")


if __name__ == "__main__":
    main()
