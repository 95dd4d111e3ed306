"""What the code gives is what it gave when the oracles were stored."""

import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from cases import CASES, DATA, RESULTS, SIGNATURES, X, quiet, signatures

from sktorch_linreg._runtime.sklearn_private import HAS_CALLBACKS

KEPT = DATA / "kept"
FROM_NUMPY_2 = pytest.mark.skipif(
    np.__version__ < "2", reason="numpy 1 cannot read pickles of numpy 2"
)


@pytest.fixture(scope="module")
def stored():
    with np.load(RESULTS) as found:
        return dict(found)


# what torch 2.6 draws or steps in another way: dropout masks, and L-BFGS
OTHERS = {
    "dropout": "draws other masks",
    "resumed checkpoint": "draws other masks",
    "search: dropout": "draws other masks",
    "search: optimizers": "has another line search in L-BFGS",
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.since_torch_2_7(OTHERS[case]))
        if case in OTHERS
        else case
        for case in CASES
    ],
)
def test_results_are_the_stored_ones(stored, case):
    with quiet():
        found = CASES[case]()
    assert found
    for name, value in found.items():
        expected = stored[f"{case}: {name}"]
        single = "float32" in case or expected.dtype == np.float32
        rtol = 1e-4 if single else 1e-9
        size = max(1e-3, float(np.abs(expected).max(initial=0.0)))
        np.testing.assert_allclose(value, expected, rtol=rtol, atol=rtol * size, err_msg=name)


def test_no_case_is_missing(stored):
    assert {name.split(": ")[0] for name in stored} <= {c.split(": ")[0] for c in CASES}


@pytest.mark.skipif(not HAS_CALLBACKS, reason="stored with scikit-learn 1.9 and its callbacks")
def test_public_signatures_are_the_stored_ones():
    assert signatures() == SIGNATURES.read_text().splitlines()


@FROM_NUMPY_2
@pytest.mark.parametrize("path", sorted(KEPT.glob("*.pkl")), ids=lambda p: p.stem)
def test_pickles_still_load(path):
    with np.load(KEPT / "predictions.npz") as expected, warnings.catch_warnings():
        warnings.simplefilter("error")
        model = pickle.loads(path.read_bytes())
        np.testing.assert_allclose(model.predict(X), expected[path.stem], rtol=1e-9)


@pytest.mark.parametrize("path", sorted(KEPT.glob("*.safetensors")), ids=lambda p: p.stem)
def test_files_still_load(path):
    pytest.importorskip("safetensors")
    from sktorch_linreg import load_model

    with np.load(KEPT / "predictions.npz") as expected:
        np.testing.assert_allclose(load_model(path).predict(X), expected[path.stem], rtol=1e-9)


@FROM_NUMPY_2
@pytest.mark.parametrize("name", ["stream", "network_stream"])
def test_streams_that_were_kept_go_on(name):
    from cases import y

    model = pickle.loads((KEPT / f"{name}.pkl").read_bytes())
    assert np.isfinite(model.partial_fit(X[30:], y[30:]).predict(X)).all()
