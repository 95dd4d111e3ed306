"""`module_` as other tools take it: a plain sequence that can be traced, exported and hooked."""

import copy
import io

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor
from sktorch_linreg._modules.activations import ACTIVATIONS

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 5)) * [1, 10, 0.1, 100, 1] + 3.0
Y = ((X - X.mean(axis=0)) / X.std(axis=0))[:, :2]
SETTINGS = {"max_epochs": 3, "tol": None, "random_state": 0, "dtype": "float64"}
MODELS = {
    **{
        name: TorchMLPRegressor(hidden_layer_sizes=(6, 4), activation=name, **SETTINGS)
        for name in ACTIVATIONS
    },
    "dropout": TorchMLPRegressor(hidden_layer_sizes=(6, 4), dropout=0.3, **SETTINGS),
    "poisson": TorchMLPRegressor(hidden_layer_sizes=(6,), loss="poisson", **SETTINGS),
    "raw": TorchMLPRegressor(hidden_layer_sizes=(6,), standardize=False, **SETTINGS),
    "no hidden layer": TorchMLPRegressor(hidden_layer_sizes=(), **SETTINGS),
    "linear": TorchLinearRegressor(),
    "linear, trained": TorchLinearRegressor(optimizer="adam", max_epochs=3, random_state=0),
    "linear, poisson": TorchLinearRegressor(loss="poisson"),
}


@pytest.fixture(params=MODELS)
def model(request):
    """A fitted model; Poisson needs counts."""
    y = np.abs(Y) if "poisson" in request.param else Y
    return copy.deepcopy(MODELS[request.param]).fit(X, y)


def rows(n=7):
    return torch.from_numpy(X[:n])


def plain(module):
    """The modules that do the work, in the order in which they are called."""
    children = list(module.children())
    return [leaf for child in children for leaf in plain(child)] if children else [module]


def test_it_is_a_plain_sequence(model):
    out = rows()
    for step in plain(model.module_):
        out = step(out)
    np.testing.assert_allclose(out.detach(), model.predict(X[:7]), rtol=1e-12)
    assert isinstance(model.module_, nn.Sequential)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_activation_is_a_module_of_its_own(name):
    kind = type(ACTIVATIONS[name].make())
    assert kind.__module__.startswith("torch.nn")
    module = copy.deepcopy(MODELS[name]).fit(X, Y).module_
    kinds = [type(step) for step in module.layers]
    assert kinds == [nn.Linear, kind, nn.Linear, kind, nn.Linear]
    assert len(set(map(id, module.layers))) == 5


def test_symbolic_trace(model):
    traced = torch.fx.symbolic_trace(model.module_)
    called = [node.op for node in traced.graph.nodes]
    assert called.count("placeholder") == 1
    torch.testing.assert_close(traced(rows()), model.module_(rows()))


@pytest.mark.since_torch_2_7("exports no more than a few modules in one process")
def test_export(model):
    n_rows = torch.export.Dim("n_rows", min=2)
    exported = torch.export.export(model.module_, (rows(),), dynamic_shapes=({0: n_rows},))
    torch.testing.assert_close(exported.module()(rows(9)), model.module_(rows(9)))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_jit_trace_and_save(model):
    traced = torch.jit.trace(model.module_, rows())
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(rows(9)), model.module_(rows(9)))


def test_state_dict_and_copies(model):
    module = model.module_
    assert "layers.0.weight" in module.state_dict()
    again = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    again.load_state_dict(module.state_dict())
    torch.testing.assert_close(again(rows()), module(rows()))
    # a change to a copy, or to what it was copied from, does not reach the other
    assert np.isfinite(model.predict(X)).all()


def test_vmap_and_jacobians(model):
    module = model.module_
    one_by_one = torch.func.vmap(lambda x: module(x[None])[0])(rows())
    torch.testing.assert_close(one_by_one, module(rows()))
    slopes = torch.func.vmap(torch.func.jacrev(lambda x: module(x[None])[0]))(rows())
    assert slopes.shape == (7, 2, 5)
    if isinstance(model, TorchLinearRegressor) and model.loss == "squared_error":
        np.testing.assert_allclose(slopes[0].detach(), model.coef_, rtol=1e-10)


@pytest.mark.parametrize("name", ["relu", "tanh", "logistic", "elu", "leaky_relu", "identity"])
def test_deep_lift_by_hooks(name):
    """Differences are explained in full by rescaled gradients (Shrikumar et al., 2017)."""
    model = copy.deepcopy(MODELS[name]).fit(X, Y)
    module = model.module_
    kind = type(ACTIVATIONS[name].make())
    handles = []

    def keep(step, args, out):
        step.seen = args[0], out

    def rescale(step, grad_in, grad_out):
        (x, reference), (out, base) = step.seen[0].chunk(2), step.seen[1].chunk(2)
        change = x - reference
        same = change.abs() < 1e-9
        ratio = torch.where(same, 1.0, (out - base) / torch.where(same, 1.0, change))
        exact = grad_in[0] if same.any() else ratio.repeat(2, 1) * grad_out[0]
        return (torch.where(same.repeat(2, 1), grad_in[0], exact),)

    for step in module.modules():
        if type(step) is kind:
            handles += [step.register_forward_hook(keep), step.register_full_backward_hook(rescale)]
    both = torch.cat([rows(4), rows(8)[4:]]).requires_grad_()
    out = module(both)
    out[:4, 0].sum().backward()
    explained = (both.grad[:4] * (both[:4] - both[4:])).sum(dim=1)
    torch.testing.assert_close(explained, (out[:4] - out[4:])[:, 0], rtol=1e-9, atol=1e-9)
    for handle in handles:
        handle.remove()


def test_hooks_hear_of_training_as_well():
    from skorch.callbacks import Callback

    heard = []

    class Listen(Callback):
        def on_train_begin(self, net, **kwargs):
            for name, step in net.module_.named_modules():
                step.register_forward_hook(lambda *args, name=name: heard.append(name))

    model = TorchMLPRegressor(hidden_layer_sizes=(6,), callbacks=[Listen()], **SETTINGS)
    model.fit(X, Y)
    assert {"", "standardize", "layers", "layers.0", "layers.1", "rescale"} <= set(heard)


@pytest.mark.parametrize("name", ["relu", "linear, trained", "dropout"])
def test_sparse_rows_train_the_same_module(name):
    dense = np.where(np.abs(X) > 3.0, X, 0.0)
    settings = {"batch_size": 16, "random_state": 0}
    one = copy.deepcopy(MODELS[name]).set_params(**settings).fit(dense, Y)
    other = copy.deepcopy(MODELS[name]).set_params(**settings).fit(sp.csr_array(dense), Y)
    x = torch.from_numpy(dense)
    torch.testing.assert_close(other.module_(x), one.module_(x), rtol=1e-7, atol=1e-9)
    sparse = x.to_sparse_coo()
    torch.testing.assert_close(one.module_.outputs(sparse), one.module_(x))
    np.testing.assert_allclose(
        other.net_.predict(sp.csr_array(dense)), one.predict(dense), rtol=1e-6
    )
