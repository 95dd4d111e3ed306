"""The training engine against its oracles: autograd, torch.optim, and loops written by hand."""

import copy
import inspect

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import optim

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor
from sktorch_linreg._modules.activations import ACTIVATIONS, Activation
from sktorch_linreg._modules.initialize import draw_weights_
from sktorch_linreg._modules.network import MLPModule
from sktorch_linreg._objective.losses import LOSSES, resolve_loss
from sktorch_linreg._objective.penalty import Penalty
from sktorch_linreg._optim.optimizers import OPTIMIZERS
from sktorch_linreg._optim.update_rules import RULES
from sktorch_linreg._optim.updates import RuleUpdates, has_rule
from sktorch_linreg._training.batches import BatchIterator, TabularDataset
from sktorch_linreg._training.flat_parameters import FlatParameters
from sktorch_linreg._training.gradients import Backprop
from sktorch_linreg._training.module_objective import ModuleObjective

OPTIONS = {"huber": {"delta": 0.7}, "quantile": {"quantile": 0.3}}
TIGHT = {"rtol": 1e-12, "atol": 1e-12}


def doubles(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(sizes=(5, 7, 6, 2), activation="relu", dropout=0.0, bias=True):
    module = MLPModule(sizes, activation, dropout, bias=bias).double()
    draw_weights_(module, torch.Generator().manual_seed(1))
    module.dropout.generator = torch.Generator().manual_seed(2)
    return module


def make_batch(n=11, d=5, k=2, weighted=False, seed=0):
    weight = doubles(n, seed=seed + 2).abs() if weighted else None
    rows = TabularDataset(doubles(n, d, seed=seed), doubles(n, k, seed=seed + 1).abs(), weight)
    ((batch,),) = (block.batches for block in BatchIterator(rows).blocks())
    return batch


def by_autograd(module, batch, loss, penalty):
    module.dropout.generator.manual_seed(2)
    module.zero_grad()
    out = module(batch.x)
    weight = None if batch.weight is None else batch.weight[:, 0]
    (loss.mean(out, batch.y, weight) + penalty.value(module.weights)).backward()
    return out.detach(), [p.grad.clone() for p in module.parameters()]


def compare(module, batch, loss, l2=0.0):
    out, expected = by_autograd(module, batch, loss, Penalty(l2=l2))
    module.dropout.generator.manual_seed(2)
    flat = FlatParameters(module)
    flat.gradient.fill_(float("nan"))
    Backprop(module, flat, l2).gradient_(batch, loss)
    flat.offer_gradients()
    torch.testing.assert_close(batch.out, out, **TIGHT)
    for p, gradient in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, **TIGHT)


# -- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if ACTIVATIONS[a].by_hand])
def test_gradients_of_every_activation(activation, weighted, dropout):
    module = make(activation=activation, dropout=dropout)
    compare(module, make_batch(weighted=weighted), resolve_loss("squared_error", {}), l2=0.3)


def test_an_activation_without_a_written_out_derivative_is_left_to_autograd(monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "softplus", Activation(torch.nn.Softplus))
    loss, penalty, batch = resolve_loss("squared_error", {}), Penalty(l2=0.3), make_batch()
    module = make(activation="softplus")
    out, expected = by_autograd(module, batch, loss, penalty)
    objective = ModuleObjective(module, loss, penalty, own_penalty=False)
    assert objective.backprop is None
    objective.gradient_(batch)
    torch.testing.assert_close(batch.out, out, **TIGHT)
    for p, gradient in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, **TIGHT)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("sizes", [(5, 2), (5, 4, 2)])
@pytest.mark.parametrize(
    "name", [*LOSSES, torch.nn.MSELoss, torch.nn.SmoothL1Loss, torch.nn.PoissonNLLLoss]
)
def test_gradients_of_every_loss(name, sizes, weighted):
    loss = resolve_loss(name, OPTIONS.get(name, {}))
    compare(make(sizes, "tanh"), make_batch(weighted=weighted), loss, l2=0.1)


@pytest.mark.parametrize("name", list(LOSSES))
def test_slopes_at_kinks_are_those_of_autograd(name):
    loss = resolve_loss(name, OPTIONS.get(name, {}))
    target = torch.tensor([[0.0], [1.0], [-0.5], [2.0]], dtype=torch.float64)
    at = (target + torch.tensor([[0.0], [0.0], [0.7], [-0.7]])).requires_grad_()
    (expected,) = torch.autograd.grad(loss.pointwise(at, target).sum(), at)
    out = torch.empty_like(expected)
    loss.slope(at.detach(), target, out)
    torch.testing.assert_close(loss.slope_factor * out, expected, **TIGHT)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(1, 1), (5, 3), (4, 1, 1), (3, 8, 8, 8, 1), (3, 2, 2, 2, 2, 2)])
def test_gradients_of_every_depth(sizes, bias):
    batch = make_batch(d=sizes[0], k=sizes[-1])
    compare(make(sizes, "gelu", bias=bias), batch, resolve_loss("squared_error", {}))


def test_gradients_of_a_users_loss_that_reduces():
    class LogCosh(torch.nn.Module):
        def forward(self, prediction, target):
            return torch.log(torch.cosh(prediction - target)).mean()

    loss = resolve_loss(LogCosh, {})
    assert loss.reduced
    compare(make(), make_batch(), loss, l2=0.2)


def test_batches_of_two_sizes_have_their_own_room():
    module, loss = make(), resolve_loss("squared_error", {})
    flat = FlatParameters(module)
    backprop = Backprop(module, flat, 0.0)
    for n in (11, 3, 11, 3):
        batch = make_batch(n, seed=n)
        _, expected = by_autograd(copy.deepcopy(module), batch, loss, Penalty())
        backprop.gradient_(batch, loss)
        flat.offer_gradients()
        for p, gradient in zip(module.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, gradient, **TIGHT)


@pytest.mark.parametrize("l1", [0.0, 0.2])
@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("positive", [True, False])
def test_by_hand_and_by_autograd_the_objective_is_one(l1, l2, positive):
    """The pseudo-gradient, the projection and the values, with and without a frozen parameter."""
    results = []
    for frozen in (False, True):
        module = make((5, 4, 2))
        module.linears[0].bias.requires_grad_(not frozen)
        objective = ModuleObjective(
            module, resolve_loss("huber", {}), Penalty(l1, l2, positive), own_penalty=False
        )
        assert (objective.backprop is None) == frozen
        batch = make_batch(weighted=True)
        objective.gradient_(batch)
        values = objective.values(batch)
        grads = [w.grad.clone() for w in module.weights]
        with torch.no_grad():
            for w in module.weights:
                w.sub_(0.5 * w.grad)
            objective.project_()
        results.append((values, grads, [w.detach().clone() for w in module.weights]))
    for hand, auto in zip(*results, strict=True):
        for a, b in zip(hand, auto, strict=True):
            torch.testing.assert_close(a, b, **TIGHT)


# -- updates --------------------------------------------------------------------------------------

SETTINGS = {
    optim.SGD: [{"lr": 0.1}, {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1},
                {"lr": 0.1, "momentum": 0.9, "nesterov": True}],
    optim.Adam: [{}, {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1},
                 {"amsgrad": True}, {"decoupled_weight_decay": True, "weight_decay": 0.1}],
    optim.AdamW: [{}, {"lr": 0.1, "weight_decay": 0.3, "amsgrad": True}],
    optim.NAdam: [{}, {"lr": 0.1, "weight_decay": 0.1, "momentum_decay": 0.1},
                  {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    optim.RAdam: [{}, {"lr": 0.1, "weight_decay": 0.1, "eps": 1e-2},
                  {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    optim.RMSprop: [{}, {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1},
                    {"centered": True, "alpha": 0.9}, {"centered": True, "momentum": 0.5}],
    optim.Adagrad: [{}, {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1},
                    {"initial_accumulator_value": 0.5}],
    optim.Adadelta: [{}, {"lr": 0.1, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.1}],
    optim.Adamax: [{}, {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.1}],
}  # fmt: skip
CASES = [
    (cls, options)
    for cls, all_options in SETTINGS.items()
    for options in all_options
    # decoupled_weight_decay of Adam came with torch 2.7
    if options.keys() <= inspect.signature(cls).parameters.keys()
]


def close_to(cls):
    # torch keeps the product of NAdam's momenta in float32
    return {"rtol": 1e-6 if cls is optim.NAdam else 1e-11, "atol": 1e-9}


def gradients_for(module, step):
    for i, p in enumerate(module.parameters()):
        p.grad.copy_(doubles(*p.shape, seed=100 * step + i))


def side_by_side(cls, options):
    """Two equal modules, the rule over one and torch's class over the other."""
    module, reference = make(), make()
    theirs = cls(reference.parameters(), **options)
    flat = FlatParameters(module)
    flat.offer_gradients()
    ours = RuleUpdates(flat, cls, options, list(module.parameters()))
    for p in reference.parameters():
        p.grad = torch.zeros_like(p)
    return module, reference, ours, theirs


def test_every_rule_is_compared():
    assert set(SETTINGS) == set(RULES)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("cls", "options"), CASES)
def test_rules_do_what_torch_does(monkeypatch, cls, options, fused):
    if not fused:
        from sktorch_linreg._optim import update_rules

        monkeypatch.setattr(update_rules, "FUSED_ADAM", None)
        monkeypatch.setattr(update_rules, "FUSED_ADAMW", None)
    module, reference, ours, theirs = side_by_side(cls, options)
    for step in range(12):
        gradients_for(module, step)
        gradients_for(reference, step)
        ours.step()
        theirs.step()
        if step == 6:
            # schedules write into the group
            ours.optimizer.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 0.03
        for p, q in zip(module.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(p.detach(), q.detach(), **close_to(cls))
    mine, its = ours.optimizer.state_dict(), theirs.state_dict()
    assert mine["param_groups"][0].keys() == its["param_groups"][0].keys()
    for key, state in its["state"].items():
        wanted = {k: v for k, v in state.items() if v is not None}
        assert wanted.keys() == mine["state"].get(key, {}).keys()
        for name, value in wanted.items():
            torch.testing.assert_close(mine["state"][key][name], value, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("cls", "options"), CASES)
def test_a_rule_and_torch_hand_over_to_each_other(cls, options):
    """Steps by the rule, by its torch optimizer from there, and by the rule again."""
    module, reference, ours, theirs = side_by_side(cls, options)
    optimizer = None
    for step in range(9):
        gradients_for(module, step)
        gradients_for(reference, step)
        theirs.step()
        if 3 <= step < 6:
            optimizer = ours.optimizer if step == 3 else optimizer
            optimizer.step()
        elif step == 6:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer.load_state_dict(state)
            assert ours.in_step()
            ours.step()
        else:
            ours.step()
        for p, q in zip(module.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(p.detach(), q.detach(), **close_to(cls))


@pytest.mark.parametrize(("cls", "options"), CASES)
def test_state_goes_on_in_another_object(cls, options):
    module, other = make(), make()
    updates = []
    for m in (module, other):
        flat = FlatParameters(m)
        flat.offer_gradients()
        updates.append(RuleUpdates(flat, cls, options, list(m.parameters())))
    for step in range(8):
        gradients_for(module, step)
        updates[0].step()
        if step == 3:
            updates[1].load(updates[0].state())
            updates[1].flat.values.copy_(updates[0].flat.values)
        elif step > 3:
            gradients_for(other, step)
            updates[1].step()
    torch.testing.assert_close(updates[1].flat.values, updates[0].flat.values, rtol=0, atol=0)


def test_unusual_options_are_left_to_torch():
    cpu = torch.device("cpu")
    assert has_rule(optim.Adam, {"lr": 0.1, "maximize": False}, cpu)
    for name in ("maximize", "capturable", "differentiable", "foreach", "fused"):
        assert not has_rule(optim.Adam, {name: True}, cpu)
    assert not has_rule(optim.Rprop, {}, cpu)
    assert not has_rule(optim.Adam, {}, torch.device("mps"))

    class Mine(optim.Adam):
        pass

    assert not has_rule(Mine, {}, cpu)


# -- whole fits -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(230, 5))
    return X, np.c_[np.sin(X[:, 0]) + X[:, 1], X[:, 2] * X[:, 3]]


class MyAdam(optim.Adam):
    """Unknown to the package, so that torch makes the updates."""


@pytest.mark.parametrize("cls", [TorchLinearRegressor, TorchMLPRegressor])
@pytest.mark.parametrize("batch_size", [None, 50])
@pytest.mark.parametrize("penalty", [{}, {"alpha": 0.01}, {"alpha": 0.01, "l1_ratio": 0.5}])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_fast_loop_and_the_told_loop_are_one(rows, cls, batch_size, penalty, weighted):
    """Same losses and weights with a callback that listens to batches, or torch's updates."""
    from skorch.callbacks import Callback

    class Listener(Callback):
        def on_batch_end(self, net, **kwargs):
            pass

    X, Y = rows
    w = np.random.default_rng(1).uniform(0.5, 2, len(X)) if weighted else None
    settings = {
        "lr": 0.01, "max_epochs": 4, "batch_size": batch_size, "random_state": 0, "tol": None,
        "dtype": "float64", **penalty,
    }  # fmt: skip
    models = [
        cls(optimizer=optimizer, callbacks=callbacks, **settings).fit(X, Y, sample_weight=w)
        for optimizer, callbacks in [("adam", None), ("adam", [Listener()]), (MyAdam, None)]
    ]
    for other in models[1:]:
        np.testing.assert_allclose(other.loss_curve_, models[0].loss_curve_, rtol=1e-10)
        np.testing.assert_allclose(other.predict(X), models[0].predict(X), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("batch_size", [None, 32])
def test_float32_fits_equal_a_loop_written_by_hand(rows, batch_size):
    X, y = rows[0].astype(np.float32), rows[1][:, 0].astype(np.float32)
    model = TorchMLPRegressor(
        hidden_layer_sizes=(16,), batch_size=batch_size, lr=0.01, max_epochs=5, alpha=0.0,
        standardize=False, tol=None, random_state=3,
    ).fit(X, y)  # fmt: skip
    torch.manual_seed(3)
    module = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = optim.Adam(module.parameters(), lr=0.01)
    inputs, target = torch.from_numpy(X), torch.from_numpy(y)[:, None]
    for epoch in range(5):
        order = torch.randperm(len(X)) if batch_size else torch.arange(len(X))
        total = 0.0
        for index in order.split(batch_size or len(X)):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(module(inputs[index]), target[index])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(index)
        assert model.loss_curve_[epoch] == pytest.approx(total / len(X), rel=1e-4)
    np.testing.assert_allclose(
        model.predict(X), module(inputs).detach().numpy()[:, 0], rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("n", [1, 7, 64, 65])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("entries", [0, 60, 2**18])
@pytest.mark.parametrize("shuffle", [True, False])
def test_blocks_hold_every_row_once_in_seeded_order(n, batch_size, entries, shuffle):
    X = torch.arange(3.0 * n).reshape(n, 3)
    rows = TabularDataset(X, X[:, :1].clone(), X[:, 0].clone())
    generator = torch.Generator().manual_seed(4) if shuffle else None
    iterator = BatchIterator(rows, batch_size, generator, entries)
    expected = torch.Generator().manual_seed(4)
    for _ in range(2):
        order = torch.arange(n)
        if shuffle and batch_size < n:
            order = torch.randperm(n, generator=expected)
        seen, sizes = [], []
        for block in iterator.blocks():
            assert len(block.y) == sum(batch.n_rows for batch in block.batches)
            for batch in block.batches:
                torch.testing.assert_close(batch.x[:, :1], batch.y)
                torch.testing.assert_close(batch.weight, batch.y)
                assert batch.out.shape == batch.y.shape
                seen.append(batch.x.clone())
                sizes.append(batch.n_rows)
        torch.testing.assert_close(torch.cat(seen), X[order])
        assert sizes == [len(part) for part in order.split(min(batch_size, n))]
        assert len(sizes) == len(iterator)


def test_rows_are_neither_copied_nor_changed_where_nothing_is_to_be_done(rows):
    X = rows[0].copy()
    dataset = TabularDataset.raw(X, rows[1])
    assert np.shares_memory(dataset.X.numpy(), X)
    before = X.copy()
    X.flags.writeable = False
    TorchLinearRegressor(
        optimizer="sgd", lr=0.1, standardize=False, batch_size=32, max_epochs=3
    ).fit(X, rows[1])
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize("told", [True, False])
def test_history_does_not_grow_faster_than_the_epochs(rows, monkeypatch, told):
    """skorch's history copies all of itself where it is indexed, which is quadratic in epochs."""
    from skorch.callbacks import Callback
    from skorch.history import History

    class Listener(Callback):
        def on_batch_end(self, net, **kwargs):
            pass

    indexed = []
    original = History.__getitem__
    monkeypatch.setattr(
        History, "__getitem__", lambda self, i: indexed.append(i) or original(self, i)
    )
    callbacks = [Listener()] if told else None
    settings = {"optimizer": "sgd", "lr": 0.01, "max_epochs": 50, "batch_size": 100}
    model = TorchLinearRegressor(callbacks=callbacks, random_state=0, **settings).fit(*rows)
    assert len(model.history_) == 50
    assert indexed == []


# -- rows that stand for others -------------------------------------------------------------------


def without_condensing(monkeypatch):
    from sktorch_linreg._training import prepare

    monkeypatch.setattr(prepare, "can_condense", lambda *args: False)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("penalty", [{}, {"alpha": 0.05}, {"alpha": 0.05, "l1_ratio": 0.7}])
@pytest.mark.parametrize("many", [True, False])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_condensed_rows_give_the_same_fit(
    monkeypatch, rows, optimizer, weighted, fit_intercept, standardize, penalty, many
):
    X, y = rows[0] + [0, 5, -3, 100, 0], rows[1] if many else rows[1][:, 0]
    X = X.copy()
    X[:, 4] = 2.0  # a constant column
    w = np.random.default_rng(1).uniform(0.2, 2, len(X)) if weighted else None
    lr = {"sgd": 1e-4 if not standardize else 0.1, "adam": 0.01, "lbfgs": None}[optimizer]
    settings = {
        "optimizer": optimizer, "lr": lr, "fit_intercept": fit_intercept, "random_state": 0,
        "standardize": standardize, "max_epochs": 40, **penalty,
    }  # fmt: skip
    if optimizer == "lbfgs":
        settings |= {"max_epochs": 5, "optimizer__max_iter": 2}
    model = TorchLinearRegressor(**settings)
    condensed, plain = clone(model), clone(model)
    condensed.fit(X, y, sample_weight=w)
    without_condensing(monkeypatch)
    plain.fit(X, y, sample_weight=w)
    if optimizer == "lbfgs" and not standardize:
        # ill-conditioned line searches multiply rounding errors
        np.testing.assert_allclose(condensed.loss_curve_, plain.loss_curve_, rtol=1e-3)
        return
    np.testing.assert_allclose(condensed.loss_curve_, plain.loss_curve_, rtol=1e-8, atol=1e-13)
    np.testing.assert_allclose(condensed.predict(X), plain.predict(X), rtol=1e-6, atol=1e-6)


def test_condensed_rows_in_float32_early_stopping_paths_and_sparse_rows(monkeypatch, rows):
    import scipy.sparse as sp

    X, y = rows[0], rows[1][:, 0]
    S = sp.random(230, 5, density=0.5, random_state=0, format="csr")
    cases = [
        (X.astype(np.float32), {}, 1e-4),
        (X, {"early_stopping": True, "max_epochs": 60}, 1e-9),
        (X, {"record_path": True}, 1e-9),
        (S, {}, 1e-9),
    ]
    models = []
    for attempt in range(2):
        if attempt:
            without_condensing(monkeypatch)
        settings = [{"lr": 0.02, "max_epochs": 30, "random_state": 0} | s for _, s, _ in cases]
        fits = zip(settings, cases, strict=True)
        models.append([TorchLinearRegressor(**s).fit(A, y) for s, (A, _, _) in fits])
    for ours, plain, (A, _, tol) in zip(*models, cases, strict=True):
        np.testing.assert_allclose(ours.loss_curve_, plain.loss_curve_, rtol=tol)
        np.testing.assert_allclose(
            ours.validation_loss_curve_, plain.validation_loss_curve_, rtol=tol
        )
        np.testing.assert_allclose(ours.predict(A), plain.predict(A), rtol=10 * tol, atol=tol)
    np.testing.assert_allclose(models[0][2].coef_path_, models[1][2].coef_path_, rtol=1e-8)


def test_epochs_of_a_full_batch_do_not_pass_over_the_rows():
    """Counted in the engine: what an epoch multiplies is as large as the columns, not the rows."""
    X = np.random.default_rng(0).normal(size=(5000, 4))
    sizes = set()
    original = Backprop.gradient_

    def spy(self, batch, loss):
        sizes.add(batch.n_rows)
        original(self, batch, loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backprop, "gradient_", spy)
        TorchLinearRegressor(lr=0.1, max_epochs=20).fit(X, X[:, 0])
        assert sizes == {6}
        TorchLinearRegressor(lr=0.1, max_epochs=20, loss="huber").fit(X, X[:, 0])
        TorchLinearRegressor(lr=0.1, max_epochs=20, batch_size=100).fit(X, X[:, 0])
    assert sizes == {6, 5000, 100}


# -- losses, optimizers and callbacks that do the unexpected --------------------------------------


class PerRow(torch.nn.Module):
    def __init__(self, reduction="mean"):
        super().__init__()

    def forward(self, prediction, target):
        return (prediction - target).pow(4).mean(1)


@pytest.mark.parametrize("loss", [torch.nn.SmoothL1Loss, torch.nn.MSELoss, torch.nn.L1Loss, PerRow])
@pytest.mark.parametrize("weighted", [True, False])
def test_losses_that_autograd_differentiates_on_shuffled_batches(rows, loss, weighted):
    X, Y = rows
    w = np.random.default_rng(1).uniform(0.5, 2, len(X)) if weighted else None
    settings = {"batch_size": 50, "max_epochs": 3, "tol": None, "random_state": 0}
    model = TorchMLPRegressor(loss=loss, dtype="float64", **settings).fit(X, Y, sample_weight=w)
    told = TorchMLPRegressor(loss=loss, dtype="float64", optimizer=MyAdam, **settings)
    told.fit(X, Y, sample_weight=w)
    np.testing.assert_allclose(model.loss_curve_, told.loss_curve_, rtol=1e-10)
    np.testing.assert_allclose(model.predict(X), told.predict(X), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("cls", "options"), CASES)
@pytest.mark.parametrize("penalty", [{"l1_ratio": 1.0}, {"positive": True}])
def test_penalties_under_every_rule_and_option_are_those_under_torch(rows, cls, options, penalty):
    X, y = rows[0], rows[1][:, 0]
    options = {f"optimizer__{k}": v for k, v in options.items() if k != "lr"} | {"lr": 0.02}
    settings = {"alpha": 0.2, "max_epochs": 60, "random_state": 0, **penalty, **options}
    by_rule = TorchLinearRegressor(optimizer=cls, **settings).fit(X, y)
    by_torch = TorchLinearRegressor(optimizer=type("Mine", (cls,), {}), **settings).fit(X, y)
    np.testing.assert_allclose(by_rule.coef_, by_torch.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(by_rule.coef_ == 0, by_torch.coef_ == 0)


class Assigning(optim.Optimizer):
    """Gives parameters new memory, and clears gradients."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        closure()
        for p in self.param_groups[0]["params"]:
            p.data = p.data - self.param_groups[0]["lr"] * p.grad
            p.grad = None


class Sharpness(optim.SGD):
    """Two gradients per step, the second one uphill (as in sharpness-aware minimisation)."""

    @torch.no_grad()
    def step(self, closure=None):
        closure()
        before = {}
        for p in self.param_groups[0]["params"]:
            before[p] = p.data.clone()
            p.add_(p.grad, alpha=0.05)
        self.zero_grad()
        closure()
        for p, data in before.items():
            p.data = data
        super().step()


@pytest.mark.parametrize("cls", [Assigning, Sharpness])
@pytest.mark.parametrize("batch_size", [None, 50])
def test_optimizers_that_replace_parameters(rows, cls, batch_size):
    X, y = rows[0], rows[1][:, 0]
    settings = {"lr": 0.1, "max_epochs": 6, "batch_size": batch_size, "random_state": 0}
    model = TorchLinearRegressor(optimizer=cls, standardize=False, **settings).fit(X, y)
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 1)
    order = [torch.randperm(len(X)) for _ in range(6)] if batch_size else [torch.arange(len(X))] * 6
    torch.set_rng_state(torch_state)
    layer = layer.double()
    optimizer = cls(layer.parameters(), lr=0.1)
    inputs, target = torch.from_numpy(X), torch.from_numpy(y)[:, None]
    for epoch in range(6):
        for index in order[epoch].split(batch_size or len(X)):

            def closure(index=index):
                optimizer.zero_grad()
                with torch.enable_grad():
                    loss = (layer(inputs[index]) - target[index]).square().mean()
                    loss.backward()
                return loss

            optimizer.step(closure)
    np.testing.assert_allclose(model.coef_, layer.weight.detach()[0], rtol=1e-8)
    np.testing.assert_allclose(model.intercept_, layer.bias.detach()[0], rtol=1e-8)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "nadam", "rmsprop"])
@pytest.mark.parametrize("then", ["frozen first", "frozen later"])
def test_partial_fit_across_engines_keeps_the_state(rows, optimizer, then):
    from skorch.callbacks import Freezer

    X, y = rows[0], rows[1][:, 0]
    frozen, free = [Freezer("*bias")], None
    first, second = (frozen, free) if then == "frozen first" else (free, frozen)
    cls = type("Mine", (OPTIMIZERS[optimizer],), {})
    extra = {"optimizer__momentum": 0.9} if optimizer == "sgd" else {}
    models = []
    for o in (optimizer, cls):
        model = TorchLinearRegressor(optimizer=o, lr=0.05, batch_size=50, random_state=0, **extra)
        for callbacks in (first, second, second):
            model.set_params(callbacks=callbacks).partial_fit(X, y)
        models.append(model)
    # the bias is at rest while it is frozen, and its history differs from that of the weight
    np.testing.assert_allclose(models[0].coef_, models[1].coef_, rtol=1e-5)


def test_every_parameter_frozen_changes_nothing(rows):
    from skorch.callbacks import Freezer

    model = TorchMLPRegressor(max_epochs=2, tol=None, random_state=0, callbacks=[Freezer("*")])
    curve = model.fit(*rows).loss_curve_
    assert curve[0] == pytest.approx(curve[1], rel=1e-6)


def test_module_after_a_fit_has_memory_of_its_own(rows):
    module = TorchMLPRegressor(max_epochs=1, tol=None).fit(*rows).module_
    torch.nn.utils.parameters_to_vector(module.parameters())
    assert all(p.is_contiguous() for p in module.parameters())
    assert len({p.untyped_storage().data_ptr() for p in module.parameters()}) == 4
    optimizer = optim.LBFGS(module.parameters())
    x = torch.from_numpy(rows[0]).float()

    def closure():
        optimizer.zero_grad()
        loss = module(x).square().mean()
        loss.backward()
        return loss

    before = closure().item()
    optimizer.step(closure)
    assert closure().item() < before


@pytest.mark.slow
def test_sums_of_many_small_penalties_do_not_round_away():
    X = np.random.default_rng(0).normal(size=(200_000, 1)).astype(np.float32)
    model = TorchLinearRegressor(
        optimizer="sgd", lr=1e-30, batch_size=1, shuffle=False, max_epochs=1, alpha=1.0,
        standardize=False, random_state=0, record_path=True,
    ).fit(X, np.zeros(len(X), dtype=np.float32))  # fmt: skip
    residual = X.astype(float)[:, 0] * model.coef_path_[0, 0] + model.intercept_path_[0]
    expected = np.mean(residual**2) + 0.5 * float(model.coef_path_[0, 0]) ** 2
    assert model.loss_ == pytest.approx(expected, rel=2e-6)


def test_condensing_has_to_pay(rows):
    from sktorch_linreg._training.condense import can_condense

    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sktorch_linreg._training.prepare.can_condense",
            lambda *args: asked.append(can_condense(*args)) or asked[-1],
        )
        for n_columns, epochs in [(5, 4), (5, 5), (200, 20), (200, 30)]:
            X = np.random.default_rng(0).normal(size=(2000, n_columns))
            TorchLinearRegressor(lr=0.01, max_epochs=epochs).fit(X, X[:, 0])
    assert asked == [False, True, False, True]


def test_adam_counts_in_float32_whatever_the_default_dtype(rows):
    X, Y = rows
    settings = {"max_epochs": 300, "tol": None, "random_state": 0, "batch_size": None}
    plain = TorchMLPRegressor(hidden_layer_sizes=(4,), **settings).fit(X, Y)
    torch.set_default_dtype(torch.bfloat16)
    try:
        other = TorchMLPRegressor(hidden_layer_sizes=(4,), **settings).fit(X, Y)
    finally:
        torch.set_default_dtype(torch.float32)
    assert other.loss_curve_ == plain.loss_curve_


# -- on a GPU -------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_gradients_on_a_gpu(activation):
    module = make(activation=activation).cuda()
    loss = resolve_loss("squared_error", {})
    batch = make_batch(weighted=True)
    rows = TabularDataset(batch.x.cuda(), batch.y.cuda(), batch.row_weight.cuda())
    ((batch,),) = (block.batches for block in BatchIterator(rows).blocks())
    out, expected = by_autograd(module, batch, loss, Penalty(l2=0.3))
    flat = FlatParameters(module)
    Backprop(module, flat, 0.3).gradient_(batch, loss)
    flat.offer_gradients()
    torch.testing.assert_close(batch.out, out, rtol=1e-10, atol=1e-10)
    for p, gradient in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [None, 50])
@pytest.mark.parametrize("cls", [TorchLinearRegressor, TorchMLPRegressor])
@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "lbfgs"])
def test_fits_on_a_gpu_equal_those_on_the_cpu(rows, cls, batch_size, optimizer):
    settings = {
        "optimizer": optimizer, "lr": 0.01, "max_epochs": 5, "batch_size": batch_size,
        "random_state": 0, "dtype": "float64", "tol": None, "alpha": 0.01,
    }  # fmt: skip
    on_gpu = cls(device="cuda", **settings).fit(*rows)
    on_cpu = cls(**settings).fit(*rows)
    np.testing.assert_allclose(on_gpu.loss_curve_, on_cpu.loss_curve_, rtol=1e-8)
    np.testing.assert_allclose(on_gpu.predict(rows[0]), on_cpu.predict(rows[0]), rtol=1e-6)
