"""Training that is cut off and goes on: to the same bits, or with an error that says why not."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor, TrainingDivergedError
from sktorch_linreg._training import checkpoint
from sktorch_linreg._training.checkpoint import FILE

RNG = np.random.default_rng(0)
X = RNG.normal(size=(150, 3)) * [1, 10, 0.1] + 2
y = X @ [1.0, 0.3, -2.0] + 0.1 * RNG.normal(size=150)
MLP = TorchMLPRegressor(
    hidden_layer_sizes=(8, 4), batch_size=32, max_epochs=20, tol=None, random_state=3
)
LINEAR = TorchLinearRegressor(optimizer="sgd", batch_size=32, max_epochs=20, random_state=3)
CASES = {
    "adam, dropout, early stopping": clone(MLP).set_params(
        dropout=0.2, early_stopping=True, n_iter_no_change=50
    ),
    "plateau": clone(MLP).set_params(tol=1e-3, n_iter_no_change=2, max_epochs=60, lr=0.01),
    "momentum, cosine": clone(LINEAR).set_params(
        optimizer__momentum=0.9, lr_schedule="cosine", record_path=True
    ),
    "nadam, one cycle": clone(LINEAR).set_params(
        optimizer="nadam", lr=0.05, lr_schedule="one_cycle"
    ),
    "plateau schedule": clone(LINEAR).set_params(lr_schedule="plateau", alpha=0.01, l1_ratio=1.0),
    "full batch": clone(LINEAR).set_params(batch_size=None, optimizer="adam"),
    "torch's own": clone(MLP).set_params(optimizer=torch.optim.ASGD, lr=0.01),
    "custom loss": clone(MLP).set_params(loss=torch.nn.SmoothL1Loss),
    "lbfgs": TorchLinearRegressor(loss="huber", optimizer="lbfgs", max_epochs=20, random_state=0),
    "kinks": TorchLinearRegressor(loss="absolute_error", optimizer="lbfgs", random_state=0),
    "orthants": TorchLinearRegressor(loss="huber", alpha=0.01, l1_ratio=0.9, random_state=0),
}


class Cut(Exception):
    """Stands for the end of the process."""


def cut_after(monkeypatch, n_saves):
    """Let training end right after a checkpoint was written."""
    save, left = checkpoint.Checkpoint.save, [n_saves]

    def saved(self, loop):
        save(self, loop)
        left[0] -= 1
        if not left[0]:
            raise Cut

    monkeypatch.setattr(checkpoint.Checkpoint, "save", saved)


def state_of(model):
    """All that was fitted, but for the time it took."""
    state = dict(model.__getstate__())
    for name in ("checkpoint_dir", "checkpoint_every", "history_"):
        state.pop(name)
    history = [{k: v for k, v in row.items() if k != "dur"} for row in model.history_]
    return pickle.dumps(state), history


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("n_saves", [1, 3])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_what_goes_on_ends_as_if_it_had_not_been_cut(name, n_saves, tmp_path, monkeypatch):
    whole = clone(CASES[name]).fit(X, y)
    model = clone(CASES[name]).set_params(checkpoint_dir=tmp_path / "new" / "folder")
    model.set_params(checkpoint_every=2 if name not in ("lbfgs", "kinks", "orthants") else 1)
    if whole.n_iter_ > model.checkpoint_every * n_saves:
        with monkeypatch.context() as patch:
            cut_after(patch, n_saves)
            with pytest.raises(Cut):
                model.fit(X, y)
        assert not hasattr(model, "n_iter_")
    # another process would make the estimator anew
    again = clone(model).fit(X, y)
    assert state_of(again) == state_of(whole)
    # and once more, now that it is done
    assert state_of(clone(model).fit(X, y)) == state_of(whole)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_without_a_seed_the_one_drawn_is_kept(tmp_path, monkeypatch):
    model = clone(CASES["adam, dropout, early stopping"])
    model.set_params(random_state=None, checkpoint_dir=str(tmp_path), checkpoint_every=3)
    whole = clone(model).fit(X, y)
    seed = checkpoint.files.read(tmp_path / FILE, "checkpoint")["seed"]
    (tmp_path / FILE).unlink()
    with monkeypatch.context() as patch:
        cut_after(patch, 2)
        patch.setattr("sktorch_linreg._estimator.make_spec.resolve_seed", lambda random_state: seed)
        with pytest.raises(Cut):
            clone(model).fit(X, y)
    resumed = clone(model).fit(X, y)
    np.testing.assert_array_equal(resumed.predict(X), whole.predict(X))


@pytest.mark.parametrize("layout", [np.asfortranarray, np.copy, lambda a: a[::-1][::-1]])
def test_the_layout_of_the_same_numbers_does_not_matter(layout, tmp_path):
    model = clone(LINEAR).set_params(checkpoint_dir=tmp_path)
    expected = clone(model).fit(X, y).coef_
    np.testing.assert_array_equal(clone(model).fit(layout(X), y).coef_, expected)


@pytest.mark.parametrize(
    ("params", "rows", "match"),
    [
        ({"optimizer__momentum": 0.5}, (X, y), "optimizer__momentum was not set, now 0.5"),
        ({"lr": 0.02, "alpha": 0.1}, (X, y), r"alpha was 0\.0, now 0\.1; lr was None"),
        ({"random_state": 4}, (X, y), "random_state was 3, now 4"),
        ({"max_epochs": 10}, (X, y), "max_epochs was 20, now 10"),
        ({}, (X[::-1], y), "the rows, weights"),
        ({}, (X, y + 1), "the rows, weights"),
        ({}, (X[:, :2], y), "the rows, weights"),
        ({}, (X, y, np.linspace(1, 2, 150)), "weights"),
    ],
)
def test_another_fit_is_refused_and_overwrites_nothing(params, rows, match, tmp_path):
    model = clone(LINEAR).set_params(checkpoint_dir=tmp_path).fit(X, y)
    before, coef = (tmp_path / FILE).read_bytes(), model.coef_.copy()
    with pytest.raises(ValueError, match=match):
        model.set_params(**params).fit(*rows)
    assert (tmp_path / FILE).read_bytes() == before
    np.testing.assert_array_equal(model.coef_, coef)


def test_what_changes_nothing_may_differ(tmp_path):
    model = clone(LINEAR).set_params(checkpoint_dir=tmp_path)
    coef = clone(model).fit(X, y).coef_
    other = clone(model).set_params(checkpoint_every=3, verbose=0, n_jobs=2, copy_X=False)
    np.testing.assert_array_equal(other.fit(X, y).coef_, coef)


def test_a_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / FILE).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"{FILE}.*another checkpoint_dir, or delete that file"):
        clone(LINEAR).set_params(checkpoint_dir=tmp_path).fit(X, y)
    assert (tmp_path / FILE).read_bytes() == b"damaged"


def test_where_it_has_no_effect(tmp_path):
    TorchLinearRegressor(checkpoint_dir=tmp_path / "a").fit(X, y)
    model = clone(LINEAR).set_params(checkpoint_dir=tmp_path / "b").partial_fit(X, y)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="checkpoint_every"):
        model.set_params(checkpoint_every=0).fit(X, y)
    with pytest.raises(ValueError, match="checkpoint_dir"):
        model.set_params(checkpoint_every=1, checkpoint_dir=3).fit(X, y)


def test_a_warm_start_is_part_of_the_fit(tmp_path):
    model = clone(LINEAR).set_params(warm_start=True).fit(X, y)
    model.set_params(checkpoint_dir=tmp_path).fit(X, y)
    with pytest.raises(ValueError, match="starting coefficients"):
        model.fit(X, y)


def test_a_run_that_diverges_keeps_its_last_checkpoint(tmp_path):
    model = clone(LINEAR).set_params(lr=1e20, checkpoint_dir=tmp_path, checkpoint_every=1)
    with pytest.raises(TrainingDivergedError):
        model.fit(X, y)
    with pytest.raises(TrainingDivergedError):
        model.fit(X, y)
    with pytest.raises(ValueError, match=r"lr was 1e\+20"):
        model.set_params(lr=0.1).fit(X, y)


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c.pop("about"),
        lambda c: c.pop("training"),
        lambda c: c.update(training=None),
        lambda c: c.update(seed="x"),
        lambda c: c["training"].update(values=np.zeros(3)),
        lambda c: c["training"].update(updates={}),
        lambda c: c["training"].update(generators=[]),
        lambda c: c["training"].update(history=[]),
        lambda c: c["training"]["monitor"].update(loss_curve=["a"] * 20),
        lambda c: c["training"]["monitor"].update(loss_curve=[1.0] * 50),
    ],
)
def test_contents_that_no_run_gives(edit, tmp_path):
    model = clone(LINEAR).set_params(checkpoint_dir=tmp_path).fit(X, y)
    content = checkpoint.files.read(tmp_path / FILE, "checkpoint")
    edit(content)
    checkpoint.files.write(tmp_path / FILE, "checkpoint", content)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(ValueError, match=FILE):
        model.fit(X, y)
    assert (tmp_path / FILE).read_bytes() == before


def test_a_run_that_a_callback_ended_has_ended(tmp_path):
    from skorch.callbacks import EarlyStopping

    stop = EarlyStopping(monitor="train_loss", patience=2, threshold=10.0)
    model = clone(LINEAR).set_params(
        callbacks=[stop], checkpoint_dir=tmp_path, checkpoint_every=1, optimizer="adam"
    )
    first = model.fit(X, y)
    n_iter, coef = first.n_iter_, first.coef_.copy()
    assert n_iter < 20
    for _ in range(2):
        assert model.fit(X, y).n_iter_ == n_iter
        np.testing.assert_array_equal(model.coef_, coef)


def test_functions_and_equal_values_are_the_same_fit(tmp_path):
    def halved(epoch):
        return 0.5**epoch

    model = clone(LINEAR).set_params(
        lr_schedule=torch.optim.lr_scheduler.LambdaLR, lr_schedule__lr_lambda=halved, lr=0.01,
        checkpoint_dir=tmp_path, device="cpu",
    )  # fmt: skip
    coef = clone(model).fit(X, y).coef_

    def halved(epoch):
        return 0.5**epoch

    again = clone(model).set_params(
        lr_schedule__lr_lambda=halved, lr=np.float64(0.01), device=torch.device("cpu"),
        max_epochs=np.int64(20),
    )  # fmt: skip
    np.testing.assert_array_equal(again.fit(X, y).coef_, coef)
    with pytest.raises(ValueError, match="lr_lambda"):
        again.set_params(lr_schedule__lr_lambda=lambda epoch: 0.9**epoch).fit(X, y)


def test_random_states_tell_fits_apart(tmp_path):
    model = clone(LINEAR).set_params(checkpoint_dir=tmp_path)
    coef = clone(model).set_params(random_state=np.random.RandomState(1)).fit(X, y).coef_
    again = clone(model).set_params(random_state=np.random.RandomState(1)).fit(X, y).coef_
    np.testing.assert_array_equal(again, coef)
    with pytest.raises(ValueError, match="random_state was a RandomState that drew seed"):
        clone(model).set_params(random_state=np.random.RandomState(2)).fit(X, y)


def test_a_missing_package_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    monkeypatch.setattr(
        "sktorch_linreg._estimator.base.train", lambda *args: pytest.fail("it trained")
    )
    with pytest.raises(ImportError, match=r"sktorch_linreg\[persist\]"):
        clone(LINEAR).set_params(checkpoint_dir=tmp_path).fit(X, y)


KILLED = """
import os, random, signal, sys
import numpy as np
from skorch.callbacks import Callback
from sktorch_linreg import TorchMLPRegressor

class Dies(Callback):
    # at the end of an epoch, or while the checkpoint after it is written
    def __init__(self, epoch, call):
        self.epoch, self.call = epoch, call

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == self.epoch:
            self.die() if self.call is None else setattr(os, self.call, self.die)

    def die(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

folder = sys.argv[1]
rng = np.random.default_rng(0)
X = rng.normal(size=(600, 5))
y = np.sin(X[:, 0]) + X[:, 1] + 0.1 * rng.normal(size=600)
settings = dict(
    hidden_layer_sizes=(16,), batch_size=32, dropout=0.1, early_stopping=True, tol=None,
    n_iter_no_change=200, max_epochs=120, random_state=0,
)
whole = TorchMLPRegressor(**settings).fit(X, y)

def state(model):
    history = [{k: v for k, v in row.items() if k != "dur"} for row in model.history_]
    return [w.tobytes() for w in model.coefs_ + model.intercepts_], history

moments = random.Random(0)
n_killed = n_resumed = 0
for i in range(20):
    where = f"{folder}/{i}"
    model = TorchMLPRegressor(checkpoint_dir=where, checkpoint_every=5, **settings)
    dies = Dies(moments.randint(1, 120), moments.choice([None, "fsync", "replace"]))
    child = os.fork()
    if not child:
        model.set_params(callbacks=[dies]).fit(X, y)
        os._exit(0)
    n_killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    n_resumed += os.path.exists(f"{where}/checkpoint.safetensors")
    assert state(model.fit(X, y)) == state(whole), i
print(n_killed, n_resumed)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, to be killed quickly")
def test_twenty_kills_change_nothing(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    n_killed, n_resumed = map(int, run.stdout.split())
    assert n_killed == 20
    assert n_resumed >= 10
