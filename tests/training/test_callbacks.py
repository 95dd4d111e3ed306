"""skorch callbacks: they see the user's units, and do what they do in skorch."""

import copy
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.metrics import mean_squared_error, r2_score
from skorch.callbacks import (
    BatchScoring,
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    Freezer,
    GradientNormClipping,
    LoadInitState,
    LRScheduler,
    PassthroughScoring,
    PrintLog,
    ProgressBar,
    TrainEndCheckpoint,
    Unfreezer,
)

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor
from sktorch_linreg._optim.optimizers import OPTIMIZERS

RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 3)) * [1, 10, 100] + 5
y = 100 * (X @ [1.0, 0.2, -0.01]) + 700 + 10 * RNG.normal(size=90)
SETTINGS = {"optimizer": "adam", "lr": 0.05, "max_epochs": 6, "random_state": 0}


@pytest.mark.parametrize("use_caching", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("batch_size", [None, 20])
def test_scores_are_in_the_units_of_the_user(use_caching, weighted, batch_size):
    w = RNG.uniform(0.5, 2, 90) if weighted else None
    scoring = EpochScoring(
        "neg_mean_squared_error", on_train=True, name="mse", use_caching=use_caching
    )
    model = TorchLinearRegressor(callbacks=[scoring], batch_size=batch_size, **SETTINGS)
    model.fit(
        np.r_[X, X[:5]], np.r_[y, y[:5]], sample_weight=None if w is None else np.r_[w, w[:5]]
    )
    scores = [row["mse"] for row in model.history_]
    assert len(scores) == 6
    target = np.r_[y, y[:5]]
    if not use_caching:
        final = -mean_squared_error(target, model.predict(np.r_[X, X[:5]]))
        assert scores[-1] == pytest.approx(final, rel=1e-9)
    else:
        # of the predictions that the losses were taken from
        losses = [-row["train_loss"] * target.var() for row in model.history_]
        np.testing.assert_allclose(scores, losses, rtol=0.5 if weighted else 1e-9)


@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
def test_validation_scores(loss):
    target = np.round(np.exp(y / 700)) if loss == "poisson" else y
    scoring = EpochScoring("r2", name="r2", lower_is_better=False)
    model = TorchMLPRegressor(
        loss=loss, early_stopping=True, lr=0.01, max_epochs=60, tol=None, random_state=0,
        callbacks=[scoring],
    ).fit(X, target)  # fmt: skip
    assert model.history_[-1]["r2"] > 0.2
    assert model.history_[-1]["r2"] > model.history_[0]["r2"]
    assert "valid_loss" in model.history_[-1]


def test_everything_a_callback_is_handed():
    seen = []

    class Look(Callback):
        def on_epoch_begin(self, net, dataset_train, dataset_valid, **kwargs):
            assert dataset_valid is None
            np.testing.assert_array_equal(dataset_train.X, X)
            np.testing.assert_array_equal(dataset_train.y[:, 0], y)

        def on_batch_begin(self, net, batch, training, **kwargs):
            assert training

        def on_batch_end(self, net, batch, training, loss, y_pred, **kwargs):
            seen.append((batch[0].numpy(), batch[1].numpy(), y_pred.numpy(), float(loss)))

        def on_epoch_end(self, net, **kwargs):
            assert net.predict(X).shape == (90, 1)

        def on_train_end(self, net, **kwargs):
            seen.append(net.predict(X))

    model = TorchLinearRegressor(callbacks=[Look()], shuffle=False, batch_size=30, **SETTINGS)
    model.fit(X, y)
    np.testing.assert_allclose(seen[-1][:, 0], model.predict(X))
    assert len(seen) == 6 * 3 + 1
    np.testing.assert_allclose(seen[1][0], X[30:60], rtol=1e-12)
    np.testing.assert_allclose(seen[1][1][:, 0], y[30:60], rtol=1e-12)
    # the loss that was handed over is that of the predictions
    batch = seen[4]
    expected = np.mean((batch[1] - batch[2]) ** 2) / y.var()
    assert batch[3] == pytest.approx(expected, rel=1e-9)
    assert len(model.net_.history[0]["batches"]) == 3


def test_early_stopping_by_a_callback():
    stopping = EarlyStopping(monitor="train_loss", patience=3, threshold=1e-2, sink=lambda *a: None)
    settings = {**SETTINGS, "max_epochs": 500}
    model = TorchLinearRegressor(callbacks=[stopping], **settings).fit(X, y)
    assert 3 < model.n_iter_ < 500
    assert len(model.loss_curve_) == len(model.history_) == model.n_iter_


def test_gradient_clipping_bounds_the_step():
    model = TorchLinearRegressor(
        optimizer="sgd", lr=1.0, max_epochs=3, standardize=False, random_state=0,
        record_path=True, callbacks=[GradientNormClipping(1e-3)],
    ).fit(X, y)  # fmt: skip
    steps = np.diff(np.c_[model.coef_path_, model.intercept_path_], axis=0)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 1e-3, rtol=1e-3)


def test_rate_schedule_by_a_callback():
    schedule = LRScheduler(policy=torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.1)
    model = TorchLinearRegressor(callbacks=[schedule], **SETTINGS).fit(X, y)
    assert model.history_[-1]["lr"] == pytest.approx(0.05 * 0.01)


def test_checkpoint_writes_the_best_weights(tmp_path):
    checkpoint = Checkpoint(monitor="train_loss_best", dirname=tmp_path, f_pickle=None)
    model = TorchLinearRegressor(callbacks=[checkpoint], **SETTINGS).fit(X, y)
    state = torch.load(tmp_path / "params.pt", weights_only=True)
    torch.testing.assert_close(state["layers.0.weight"], model.net_.module_.layers[0].weight.data)


def test_progress_bar_and_print_log(capsys):
    TorchLinearRegressor(callbacks=[ProgressBar()], batch_size=30, **SETTINGS).fit(X, y)
    assert "/3" in capsys.readouterr().err
    TorchLinearRegressor(callbacks=[PrintLog()], **SETTINGS).fit(X, y)
    assert "train_loss" in capsys.readouterr().out
    TorchLinearRegressor(callbacks=[PrintLog()], verbose=1, **SETTINGS).fit(X, y)
    assert "validation loss" not in capsys.readouterr().out
    TorchLinearRegressor(**SETTINGS).fit(X, y)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.parametrize("verbose", [1, 2])
def test_verbose_prints_a_table_of_at_most_one_line_a_second(
    capsys, monkeypatch, early_stopping, verbose
):
    from sktorch_linreg._training import epoch_table

    # each epoch takes 0.3 seconds on this clock
    ticks = iter(np.arange(0.0, 100.0, 0.3))
    monkeypatch.setattr(epoch_table.time, "monotonic", lambda: next(ticks))
    settings = {**SETTINGS, "max_epochs": 12, "early_stopping": early_stopping}
    model = TorchLinearRegressor(verbose=verbose, **settings).fit(X, y)
    monkeypatch.undo()
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["epoch", "train", "loss", "validation", "loss", "lr", "seconds"]
    cells = [line.split() for line in lines]
    epochs = [int(c[0]) for c in cells]
    assert epochs == ([1, 5, 9, 12] if verbose == 1 else list(range(1, 13)))
    for epoch, train, validation, lr, seconds in cells:
        row = model.history_[int(epoch) - 1]
        assert float(train) == pytest.approx(row["train_loss"], rel=1e-5)
        assert float(lr) == 0.05
        assert float(seconds) > 0
        if early_stopping:
            assert float(validation) == pytest.approx(row["valid_loss"], rel=1e-5)
        else:
            assert validation == "-"


def test_freezer():
    start = TorchMLPRegressor(max_epochs=1, tol=None, random_state=0).fit(X, y)
    model = TorchMLPRegressor(
        max_epochs=5, tol=None, random_state=0, callbacks=[Freezer("layers.0.*")]
    ).fit(X, y)
    reference = TorchMLPRegressor(
        optimizer="sgd", lr=1e-30, max_epochs=1, tol=None, random_state=0
    ).fit(X, y)
    np.testing.assert_allclose(model.coefs_[0], reference.coefs_[0], rtol=1e-12)
    assert np.abs(start.coefs_[0] - reference.coefs_[0]).max() > 0


def test_named_callbacks_and_classes():
    model = TorchLinearRegressor(
        callbacks=[("scores", EpochScoring("r2", on_train=True)), PrintLog], **SETTINGS
    )
    model.fit(X, y)
    assert "r2" in model.history_[0]


def test_the_net_predicts_raw_rows_and_refuses_to_train():
    model = TorchLinearRegressor(**SETTINGS).fit(X, np.c_[y, y])
    assert model.net_.predict(X).shape == (90, 2)
    np.testing.assert_allclose(model.net_.predict(X), model.predict(X))
    assert r2_score(y, model.net_.predict(X)[:, 0]) == pytest.approx(
        r2_score(y, model.predict(X)[:, 0])
    )
    for method in ("fit", "partial_fit"):
        with pytest.raises(NotImplementedError, match="estimator's fit"):
            getattr(model.net_, method)(X, y)
    for other in (copy.deepcopy(model.net_), pickle.loads(pickle.dumps(model.net_))):
        np.testing.assert_array_equal(other.predict(X), model.net_.predict(X))
    exact = TorchLinearRegressor().fit(X, y)
    np.testing.assert_allclose(exact.net_.predict(X)[:, 0], exact.predict(X))
    rows = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    assert exact.net_.predict(rows).shape == (90, 1)


@pytest.mark.parametrize("use_caching", [True, False])
@pytest.mark.parametrize("cls", [TorchLinearRegressor, TorchMLPRegressor])
def test_sparse_rows(cls, use_caching):
    rows = sp.random(90, 8, density=0.4, random_state=0, format="csc")
    scoring = EpochScoring("r2", on_train=True, name="r2", use_caching=use_caching)
    settings = {**SETTINGS, "max_epochs": 40, "batch_size": 30, "dtype": "float64"}
    model = cls(callbacks=[scoring], **settings).fit(rows, y[: rows.shape[0]])
    if not use_caching:
        assert model.history_[-1]["r2"] == pytest.approx(model.score(rows, y), rel=1e-9)
    np.testing.assert_allclose(model.net_.predict(rows)[:, 0], model.predict(rows), rtol=1e-9)


# -- what callbacks change while training ---------------------------------------------------------


def by_hand(after_backward=None, after_step=None, epochs=4, freeze=None, rate=0.05):
    """The same training by a loop over torch's own pieces."""
    rows, target = torch.from_numpy(X), torch.from_numpy(y)[:, None]
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    order = torch.default_generator
    module = module.double()
    rows = (rows - rows.mean(0)) / rows.std(0, correction=0)
    target = (target - target.mean()) / target.std(correction=0)
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    for epoch in range(epochs):
        if freeze is not None:
            for p in module[0].parameters():
                p.requires_grad_(not freeze(epoch))
        for index in torch.randperm(90, generator=order).split(30):
            optimizer.zero_grad(set_to_none=True)
            (module(rows[index]) - target[index]).square().mean().backward()
            if after_backward:
                after_backward(module)
            optimizer.step()
            if after_step:
                after_step(optimizer)
    return [p.detach() for p in module.parameters()]


def ours(callbacks, **settings):
    settings = {"max_epochs": 4, "optimizer": "adam"} | settings
    return TorchMLPRegressor(
        hidden_layer_sizes=(8,), lr=0.05, tol=None, random_state=0, dtype="float64", alpha=0.0,
        batch_size=30, callbacks=callbacks, **settings,
    ).fit(X, y)  # fmt: skip


def same(model, parameters, rtol=1e-7):
    for p, q in zip(model.module_.parameters(), parameters, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=rtol, atol=1e-9)


@pytest.fixture(autouse=True)
def keep_the_global_generator():
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def test_training_without_callbacks_equals_the_loop():
    same(ours(None), by_hand())


def test_gradient_clipping_equals_the_loop():
    def clip(module):
        torch.nn.utils.clip_grad_norm_(module.parameters(), 0.2)

    same(ours([GradientNormClipping(0.2)]), by_hand(clip))


def test_a_rate_schedule_per_batch_equals_the_loop():
    def step(optimizer):
        optimizer.param_groups[0]["lr"] *= 0.9

    policy = torch.optim.lr_scheduler.ExponentialLR
    model = ours([LRScheduler(policy=policy, gamma=0.9, step_every="batch")])
    same(model, by_hand(after_step=step))


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "adamax"])
def test_freezing_and_unfreezing_in_the_middle(optimizer):
    class FreezeSecond(Callback):
        def on_epoch_begin(self, net, **kwargs):
            for p in net.module_.layers[0].parameters():
                p.requires_grad_(len(net.history) not in (2, 3))

    model = ours([FreezeSecond()], optimizer=optimizer)
    if optimizer == "adam":
        same(model, by_hand(freeze=lambda epoch: epoch in (1, 2)))
    again = ours([FreezeSecond()], optimizer=optimizer)
    same(again, [p.detach() for p in model.module_.parameters()], rtol=0)


def test_unfreezing_by_skorchs_own_callback():
    model = ours([Freezer("layers.0.*"), Unfreezer("layers.0.*", at=3)])
    same(model, by_hand(freeze=lambda epoch: epoch < 2))


def test_a_checkpoint_is_taken_up_by_another_fit(tmp_path):
    """Weights, optimizer and history: two fits of two epochs are one of four."""
    settings = {"shuffle": False, "optimizer": "adam"}
    checkpoint = Checkpoint(monitor=None, dirname=tmp_path, f_pickle=None)
    ours([checkpoint], max_epochs=2, **settings)
    both = ours([LoadInitState(checkpoint)], max_epochs=2, **settings)
    same(both, [p.detach() for p in ours(None, **settings).module_.parameters()])


def test_early_stopping_loads_the_best_weights():
    seen = []

    class Keep(Callback):
        def on_epoch_end(self, net, **kwargs):
            seen.append([p.detach().clone() for p in net.module_.parameters()])

    stopping = EarlyStopping("train_loss", patience=2, load_best=True, sink=lambda *a: None)
    model = ours([Keep(), stopping], max_epochs=500, optimizer="sgd")
    best = int(np.argmin(model.loss_curve_))
    assert best < model.n_iter_ - 1
    same(model, seen[best], rtol=0)


def test_callbacks_may_replace_the_state_of_the_optimizer():
    class Reload(Callback):
        def on_epoch_begin(self, net, **kwargs):
            net.optimizer_.load_state_dict(copy.deepcopy(net.optimizer_.state_dict()))

    same(ours([Reload()]), by_hand())


@pytest.mark.parametrize("per_batch", [True, False])
def test_a_rate_set_through_the_net(per_batch):
    class Set(Callback):
        def on_epoch_begin(self, net, **kwargs):
            net.set_params(lr=0.05 * 0.5 ** len(net.history))

        def on_batch_end(self, net, **kwargs):
            if per_batch:
                net.set_params(optimizer__lr=net.optimizer_.param_groups[0]["lr"] * 0.9)

    count = [0]

    def step(optimizer):
        count[0] += 1
        group = optimizer.param_groups[0]
        if per_batch:
            group["lr"] *= 0.9
        if count[0] % 3 == 0:
            group["lr"] = 0.05 * 0.5 ** (count[0] // 3 + 1)

    same(ours([Set()]), by_hand(after_step=step, rate=0.025))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop", "nadam"])
@pytest.mark.parametrize("name", ["one_cycle", "cyclic", "exponential", "cosine_restarts"])
@pytest.mark.parametrize("how", ["schedule", "callback per batch"])
def test_schedules_do_the_same_to_a_rule_as_to_torchs_optimizer(optimizer, name, how):
    """Also those that change the momentum; a subclass is unknown to the package."""
    cls = type("Mine", (OPTIMIZERS[optimizer],), {})
    policy = {
        "one_cycle": (torch.optim.lr_scheduler.OneCycleLR, {"max_lr": 0.05, "total_steps": 12}),
        "cyclic": (
            torch.optim.lr_scheduler.CyclicLR,
            {"base_lr": 0.001, "max_lr": 0.05, "step_size_up": 3},
        ),
        "exponential": (torch.optim.lr_scheduler.ExponentialLR, {"gamma": 0.8}),
        "cosine_restarts": (torch.optim.lr_scheduler.CosineAnnealingWarmRestarts, {"T_0": 2}),
    }[name]
    if optimizer in ("rmsprop",) and name in ("one_cycle", "cyclic"):
        policy[1]["cycle_momentum"] = False
    settings = {}
    callbacks = [None, None]
    if how == "schedule":
        settings = {"lr_schedule": policy[0]}
        settings |= {f"lr_schedule__{k}": v for k, v in policy[1].items()}
    else:
        callbacks = [
            [LRScheduler(policy=policy[0], step_every="batch", **policy[1])] for _ in range(2)
        ]
    by_rule = ours(callbacks[0], optimizer=optimizer, **settings)
    by_torch = ours(callbacks[1], optimizer=cls, **settings)
    same(by_rule, [p.detach() for p in by_torch.module_.parameters()], rtol=1e-5)
    np.testing.assert_allclose(by_rule.loss_curve_, by_torch.loss_curve_, rtol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("sgd", {"momentum": 0.9}), ("rmsprop", {"centered": True}), ("adam", {"amsgrad": True}),
        ("adam", {"maximize": True}), ("adam", {"betas": (0.5, 0.9), "eps": 0.1}),
    ],
)  # fmt: skip
def test_options_that_a_callback_sets_take_effect(optimizer, options):
    class Set(Callback):
        def on_train_begin(self, net, **kwargs):
            net.optimizer_.param_groups[0].update(options)

    by_rule = ours([Set()], optimizer=optimizer)
    by_torch = ours([Set()], optimizer=type("Mine", (OPTIMIZERS[optimizer],), {}))
    same(by_rule, [p.detach() for p in by_torch.module_.parameters()])
    assert any(
        not np.allclose(a, b)
        for a, b in zip(by_rule.coefs_, ours(None, optimizer=optimizer).coefs_, strict=True)
    )


@pytest.mark.parametrize("optimizer", ["adam", "mine"])
def test_gradients_that_a_callback_replaces(optimizer):
    class Double(Callback):
        def on_grad_computed(self, net, named_parameters, **kwargs):
            for _, p in named_parameters:
                p.grad = torch.sign(p.grad)

    def sign(module):
        for p in module.parameters():
            p.grad = torch.sign(p.grad)

    cls = torch.optim.Adam if optimizer == "adam" else type("Mine", (torch.optim.Adam,), {})
    same(ours([Double()], optimizer=cls), by_hand(sign))


@pytest.mark.parametrize("optimizer", ["adam", "mine"])
def test_gradients_that_a_callback_clears_and_parameters_that_it_replaces(optimizer):
    class Meddle(Callback):
        def on_batch_begin(self, net, **kwargs):
            net.optimizer_.zero_grad()

        def on_epoch_begin(self, net, **kwargs):
            for p in net.module_.parameters():
                p.data = p.data.clone()

    cls = torch.optim.Adam if optimizer == "adam" else type("Mine", (torch.optim.Adam,), {})
    same(ours([Meddle()], optimizer=cls), by_hand())


def test_hooks_on_the_module_and_the_optimizer_are_called():
    calls = []

    class Hook(Callback):
        def on_train_begin(self, net, **kwargs):
            net.module_.layers[0].register_forward_hook(lambda *args: calls.append("forward"))
            net.optimizer_.register_step_post_hook(lambda *args: calls.append("step"))

    same(ours([Hook()]), by_hand())
    assert calls.count("step") == 12
    assert calls.count("forward") >= 12


def test_what_on_train_begin_is_handed():
    seen = []

    class Look(Callback):
        def on_train_begin(self, net, X, y, **kwargs):
            seen.append((np.asarray(X), np.asarray(y)))

    ours([Look()])
    np.testing.assert_array_equal(seen[0][0], X)
    np.testing.assert_array_equal(seen[0][1][:, 0], y)


def test_a_checkpoint_pickles_the_net(tmp_path):
    checkpoint = Checkpoint(monitor=None, dirname=tmp_path, f_pickle="net.pkl")
    end = TrainEndCheckpoint(dirname=tmp_path, fn_prefix="end_", f_pickle="net.pkl")
    model = ours([checkpoint, end])
    with open(tmp_path / "net.pkl", "rb") as file:
        net = pickle.load(file)
    np.testing.assert_allclose(net.predict(X)[:, 0], model.predict(X), rtol=1e-6)


def test_history_after_a_checkpoint_is_that_of_the_fit(tmp_path):
    checkpoint = Checkpoint(monitor=None, dirname=tmp_path, f_pickle=None)
    ours([checkpoint], max_epochs=3)
    model = ours([LoadInitState(checkpoint)], max_epochs=2)
    assert [row["epoch"] for row in model.history_] == [1, 2]
    assert [row["train_loss"] for row in model.history_] == model.loss_curve_


def test_frozen_weights_stay_in_the_penalty():
    freezing = [Freezer("layers.0.*"), Unfreezer("layers.0.*", at=3)]
    settings = {"optimizer": "sgd", "max_epochs": 6}
    model = TorchMLPRegressor(
        hidden_layer_sizes=(8,), lr=1e-30, tol=None, random_state=0, alpha=1.0, callbacks=freezing,
        **settings,
    ).fit(X, y)  # fmt: skip
    np.testing.assert_allclose(model.loss_curve_, model.loss_curve_[0], rtol=1e-5)


def test_scores_per_batch_and_passed_through():
    seen = PassthroughScoring("train_loss", on_train=True)
    batch = BatchScoring("r2", on_train=True, name="batch_r2")
    for callbacks in ([seen], [seen, batch]):
        model = ours(callbacks)
        for row in model.history_:
            assert row["train_loss"] > 0
    assert "batch_r2" in model.history_[-1]


def test_a_method_of_the_callback_object_is_heard():
    calls = []
    callback = Callback()
    callback.on_batch_end = lambda net, **kwargs: calls.append(1)
    ours([callback])
    assert len(calls) == 12


def test_printing_by_a_pair_or_a_subclass(capsys):
    class Mine(PrintLog):
        pass

    for callback in (("printer", PrintLog()), Mine(), Mine):
        ours([callback])
        assert "train_loss" in capsys.readouterr().out


def test_the_net_says_that_it_does_not_train():
    net = ours(None).net_
    with pytest.raises(NotImplementedError, match="estimator's fit"):
        net.train_step((torch.zeros(1, 3), torch.zeros(1, 1)))


def test_what_is_handed_to_callbacks_can_be_differentiated():
    class Differentiate(Callback):
        def on_batch_end(self, net, batch, **kwargs):
            x = batch[0].clone().requires_grad_()
            with net.module_.raw():
                net.module_(x).sum().backward()
            assert x.grad.abs().sum() > 0

    model = ours([Differentiate()])
    out = model.module_(torch.ones(2, 3, dtype=torch.float64, requires_grad=True))
    out.sum().backward()


class Replace(Callback):
    """Changes the net when training, or an epoch, begins."""

    def __init__(self, change, epoch=0):
        self.change, self.epoch = change, epoch

    def on_train_begin(self, net, **kwargs):
        if not self.epoch:
            self.change(net)

    def on_epoch_begin(self, net, **kwargs):
        if self.epoch and len(net.history) == self.epoch:
            self.change(net)


def put_sgd(net):
    net.optimizer_ = torch.optim.SGD(net.module_.parameters(), lr=1e-9)


@pytest.mark.parametrize("epoch", [0, 3])
def test_an_optimizer_that_a_callback_puts_in_place_makes_the_updates(epoch):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 3))
    y = X @ [1.0, 2.0, 3.0]
    settings = {"optimizer": "sgd", "lr": 0.05, "batch_size": 10, "random_state": 0}
    model = TorchLinearRegressor(
        max_epochs=6, callbacks=[Replace(put_sgd, epoch)], record_path=True, **settings
    ).fit(X, y)
    # from there on next to nothing moves
    first = max(epoch - 1, 0)
    assert np.ptp(model.coef_path_[first:], axis=0).max() < 1e-6
    if epoch:
        assert np.abs(model.coef_path_[1] - model.coef_path_[0]).max() > 1e-3


def test_a_callback_may_set_the_batch_size_before_training():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 3))
    y = X @ [1.0, 2.0, 3.0]
    settings = {"optimizer": "sgd", "lr": 0.05, "max_epochs": 3, "random_state": 0}
    whole = Replace(lambda net: net.set_params(batch_size=100))
    mine = TorchLinearRegressor(batch_size=10, callbacks=[whole], **settings).fit(X, y)
    theirs = TorchLinearRegressor(batch_size=100, callbacks=[Callback()], **settings).fit(X, y)
    np.testing.assert_allclose(mine.coef_, theirs.coef_, rtol=1e-9)


def test_the_net_has_its_schedule():
    found = []
    seen = Replace(lambda net: found.append(net.schedule_))
    X, y = np.arange(20.0)[:, None], np.arange(20.0)
    settings = {"optimizer": "sgd", "lr": 0.01, "max_epochs": 3, "random_state": 0}
    TorchLinearRegressor(lr_schedule="cosine", callbacks=[seen], **settings).fit(X, y)
    TorchLinearRegressor(callbacks=[seen], **settings).fit(X, y)
    assert isinstance(found[0], torch.optim.lr_scheduler.CosineAnnealingLR)
    assert found[1] is None
