"""Fits that two processes of torchrun share, against fits of one process with all rows."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import parallel_job as job
import pytest
from filelock import FileLock
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone

from sktorch_linreg.distributed import data_parallel

JOB = Path(job.__file__)
ROUNDING = JOB.with_name("parallel_rounding.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def found(tmp_path_factory, worker_id):
    """What each of the two processes has found; workers of pytest-xdist share one run of them."""
    folder = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        folder = folder.parent
    results = [folder / f"found{rank}.npz" for rank in range(2)]
    with FileLock(folder / "parallel_job.lock"):
        if not all(path.exists() for path in results):
            run_job(JOB, folder)
    return [dict(np.load(path)) for path in results]


def run_job(script, folder, threads=1):
    done = subprocess.run(
        [*TORCHRUN, str(script), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def alone(model, kind, batch_size=None):
    """The same fit in one process, with the rows in the order of the batches."""
    X, y, weight = job.interleaved(kind, batch_size or job.N)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return clone(model).set_params(shuffle=False).fit(X, y, sample_weight=weight)


@pytest.mark.parametrize("name", job.FITS)
def test_a_shared_fit_is_that_of_one_process(found, name):
    model, kind = job.FITS[name]
    one = alone(model, kind, model.batch_size)
    expected = job.learned(one)
    for mine in found:
        assert_allclose(mine[name], expected, rtol=0, atol=1e-6 * np.abs(expected).max())
        assert_allclose(mine[f"{name}: curve"], one.loss_curve_, rtol=1e-6)


def test_a_shared_validation_set(found):
    X, y, _ = job.interleaved(None, 20)
    one = job.network(batch_size=20, early_stopping=True, shuffle=False, lr=0.02)
    one.fit(X, y, **job.validation_set())
    for mine in found:
        assert_allclose(mine["validation set: curve"], one.validation_loss_curve_, rtol=1e-6)
        assert_allclose(mine["validation set"], job.learned(one), rtol=1e-6, atol=1e-8)


def test_all_processes_end_with_the_same_bits(found):
    own = {"order", "order of copies", "masks", "told", "after the context"}
    names = found[0].keys() - own
    assert names == found[1].keys() - own
    for name in names:
        assert np.isfinite(found[0][name]).all()
        assert_array_equal(found[0][name], found[1][name], err_msg=name)


def test_orders_and_dropout_masks_differ(found):
    assert (found[0]["order"] != found[1]["order"]).any()
    assert (found[0]["order of copies"] != found[1]["order of copies"]).any()
    assert (found[0]["masks"] != found[1]["masks"]).any()


def test_partial_fit_and_warm_start(found):
    X, y, _ = job.interleaved(None, job.N)
    assert_allclose(found[0]["partial_fit, exact"], job.learned(job.linear().fit(X, y)), rtol=1e-9)
    X, y, _ = job.interleaved(None, 20)
    warm = job.network(warm_start=True, shuffle=False, batch_size=20).fit(X, y).fit(X, y)
    assert_allclose(found[0]["warm start"], job.learned(warm), rtol=1e-6, atol=1e-8)


def test_a_callback_on_one_process_stops_all(found):
    assert found[0]["stopped"] == found[1]["stopped"] == 7


REFUSALS = {
    "NaN on one": ("On process 1 of 2: ValueError: Input X contains NaN", "Input X contains NaN"),
    "NaN on one, training": ("On process 1 of 2: ValueError: Input X", "Input X contains NaN"),
    "other rates": ("lr is 0.1 on process 0 and 0.2 on process 1",) * 2,
    "no validation set": ("whether there is a validation set is True on process 0 and False",) * 2,
    "other columns": ("the number of columns of X is 4 on process 0 and 5 on process 1",) * 2,
    "no rows": ("Found array with 0 sample", "On process 0 of 2: ValueError: Found array with 0"),
    "no device": ("device='cuda:9' is not", "On process 0 of 2: ValueError: device="),
    "extreme": ("X or y has magnitudes below",) * 2,
    "extreme, training": ("X or y has magnitudes below",) * 2,
    "checkpoints": ("checkpoint_dir cannot be combined with data_parallel",) * 2,
    "search": ("BatchedGridSearchCV cannot be combined with data_parallel",) * 2,
    "tiny weights": ("The largest sample_weight is 1e-120",) * 2,
    "wrong rate on one": (
        "On process 1 of 2: InvalidParameterError: The 'lr'",
        "The 'lr' parameter",
    ),
    "other precision": ("computation is 'torch.float32' on process 0 and 'torch.float64'",) * 2,
    "other widths": ("the shape of the parameter 0.weight is (4, 5) on process 0 and",) * 2,
    "module fails": ("On process 1 of 2: OSError: the disk is full", "OSError: the disk is full"),
    "module fails, L-BFGS": ("On process 1 of 2: OSError: the", "OSError: the disk is full"),
    "module fails in validation": ("On process 1 of 2: OSError: the", "OSError: the disk is full"),
    "loss fails": ("On process 1 of 2: OSError: the disk is full", "OSError: the disk is full"),
    "one row of a batch": (
        "Expected more than 1 value per channel",
        "On process 0 of 2: ValueError: Expected more than 1 value",
    ),
    "other shapes": ("shape of a row of X is (2, 1, 2) on process 0 and (2, 2, 1)",) * 2,
    "other method": ("the method called is 'partial_fit' on process 0 and 'fit'",) * 2,
    "callback fails at first": ("On process 1 of 2: OSError: the disk is", "OSError: the disk"),
    "callback fails": ("On process 1 of 2: OSError: the disk is full", "OSError: the disk is full"),
    "diverges": ("TrainingDivergedError: The training loss stopped being finite in epoch",) * 2,
    "other kind": ("the kind of estimator is 'TorchLinearRegressor' on process 0",) * 2,
    "stops amid an epoch": ("was interrupted in one process",) * 2,
}


@pytest.mark.parametrize("name", REFUSALS)
def test_an_error_on_one_process_is_one_on_all(found, name):
    for mine, expected in zip(found, REFUSALS[name], strict=True):
        told = dict(str(line).split("|", 1) for line in mine["told"])
        assert told.keys() == REFUSALS.keys()
        assert expected in told[name]


def test_after_the_context_each_process_works_alone(found):
    X, y, _ = job.interleaved(None, job.N)
    assert_allclose(found[0]["after refusals"], job.learned(job.linear().fit(X, y)), rtol=1e-9)
    for rank in range(2):
        X, y, _ = job.split(None, rank)
        assert_array_equal(found[rank]["after the context"], job.learned(job.linear().fit(X, y)))


@pytest.mark.slow
def test_processes_that_round_differently_end_alike(tmp_path):
    run_job(ROUNDING, tmp_path, threads=2)
    first, second = (dict(np.load(tmp_path / f"found{rank}.npz")) for rank in range(2))
    if (first["alone"] == second["alone"]).all():
        pytest.skip("this processor rounds alike whatever it is told")
    for name in first.keys() - {"alone"}:
        assert np.isfinite(first[name]).all()
        assert_array_equal(first[name], second[name], err_msg=name)


def test_without_torchrun_it_is_one_process():
    X, y, _ = job.interleaved(None, job.N)
    with data_parallel() as processes:
        assert (processes.rank, processes.size) == (0, 1)
        shared = job.learned(job.network().fit(X, y))
    assert_array_equal(shared, job.learned(job.network().fit(X, y)))
