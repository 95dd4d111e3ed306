"""Shared fixtures; the environment is set before scipy is imported."""

import os
from collections import Counter

# small products in two threads slow down tenfold when another process wants a core
os.environ.setdefault("OMP_NUM_THREADS", "1")
# lets scikit-learn's array API checks run instead of being skipped
os.environ.setdefault("SCIPY_ARRAY_API", "1")

import numpy as np
import pytest
import torch

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    seen = Counter()
    for item in items:
        marker = item.get_closest_marker("sampled")
        if marker:
            name = item.nodeid.partition("[")[0]
            if seen[name] % marker.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[name] += 1
    for item in items:
        marker = item.get_closest_marker("since_torch_2_7")
        if marker and TORCH < (2, 7):
            item.add_marker(pytest.mark.skip(reason=f"torch 2.6 {marker.args[0]}"))
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def two_threads():
    """torch on two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def regression():
    """200 rows, 6 features of very different scales, a known solution and some noise."""
    rng = np.random.default_rng(0)
    scale = 10.0 ** np.array([-3, -1, 0, 1, 2, 4])
    X = rng.normal(size=(200, 6)) * scale + 5 * scale
    coef = rng.normal(size=6) / scale
    return X, X @ coef + 3.0 + 0.1 * rng.normal(size=200)


@pytest.fixture
def easy():
    """150 standard normal rows, three targets."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(150, 4))
    Y = X @ rng.normal(size=(4, 3)) + rng.normal(size=3) + 0.3 * rng.normal(size=(150, 3))
    return X, Y
