"""Store what the cases give today: results, signatures, and files and pickles of fitted models."""

import pickle

import numpy as np
from cases import (
    CASES,
    DATA,
    RESULTS,
    SEARCHES,
    SIGNATURES,
    X,
    Y,
    linear,
    network,
    quiet,
    results,
    signatures,
    y,
)

from sktorch_linreg import BatchedGridSearchCV, save_model

KEPT = DATA / "kept"


def models():
    """Fitted models of each kind, by name."""
    with quiet():
        yield "solved", linear(alpha=0.1).fit(X, Y)
        yield "stream", linear().partial_fit(X[:30], y[:30])
        yield "trained", linear(optimizer="adam", warm_start=True).fit(X, y)
        yield "network", network(lr=0.02).fit(X, Y)
        yield "network_stream", network(lr=0.02).partial_fit(X[:30], y[:30])
        yield "counts", network(loss="poisson").fit(X, np.abs(y))


def main():
    """Write all of it."""
    KEPT.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(RESULTS, **results())
    SIGNATURES.write_text("\n".join(signatures()) + "\n")
    predictions = {}
    for name, model in models():
        (KEPT / f"{name}.pkl").write_bytes(pickle.dumps(model, protocol=5))
        save_model(model, KEPT / f"{name}.safetensors")
        predictions[name] = model.predict(X)
    with quiet():
        estimator, grid, target = SEARCHES["ridge"]
        search = BatchedGridSearchCV(estimator, grid, cv=3).fit(X, target)
    (KEPT / "search.pkl").write_bytes(pickle.dumps(search, protocol=5))
    predictions["search"] = search.predict(X)
    np.savez_compressed(KEPT / "predictions.npz", **predictions)
    print(f"{len(CASES)} cases, {RESULTS.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
