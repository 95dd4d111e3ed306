"""What is written by hand against autograd: penalties, envelopes, sparse layers, scaling."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sktorch_linreg._data.moments import Moments, moments
from sktorch_linreg._data.scaling import (
    Scaling,
    identity_scaling,
    rewrite_layers,
    scaled,
    to_user_units,
)
from sktorch_linreg._modules.activations import ACTIVATIONS
from sktorch_linreg._modules.dropout import Dropout, Masks
from sktorch_linreg._modules.initialize import draw_weights_
from sktorch_linreg._modules.network import MLPModule
from sktorch_linreg._objective.losses import LOSSES, resolve_loss
from sktorch_linreg._objective.penalty import Penalty
from sktorch_linreg._optim.orthant_lbfgs import OrthantLBFGS

OPTIONS = {"huber": {"delta": 0.7}, "quantile": {"quantile": 0.3}}


def doubles(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("l1", [0.0, 0.3])
@pytest.mark.parametrize("l2", [0.0, 0.7])
def test_penalty_gradients_equal_autograd(l1, l2):
    weight = doubles(3, 4).requires_grad_()
    penalty = Penalty(l1, l2)
    value = penalty.value([weight])
    expected = torch.zeros_like(weight)
    if l1 or l2:
        (expected,) = torch.autograd.grad(value, weight)
    with torch.no_grad():
        ours = penalty.pseudo_gradient(weight, l2 * weight)
    torch.testing.assert_close(ours, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("positive", [True, False])
def test_pseudo_gradient_at_zero_is_the_smallest_subgradient(positive):
    gradient = torch.tensor([-1.0, -0.2, 0.0, 0.2, 1.0])
    ours = Penalty(0.5, positive=positive).pseudo_gradient(torch.zeros(5), gradient)
    expected = [-0.5, 0.0, 0.0, 0.0, 0.0 if positive else 0.5]
    torch.testing.assert_close(ours, torch.tensor(expected))


def test_projection_stops_at_zero_and_leaves_it_downhill_only():
    before = torch.tensor([1.0, -1.0, 0.0, 0.0, 0.5])
    weight = torch.tensor([-0.1, -0.9, 0.3, -0.3, 0.4])
    gradient = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0])
    Penalty(0.1).project_(weight, gradient, before)
    torch.testing.assert_close(weight, torch.tensor([0.0, -0.9, 0.0, -0.3, 0.4]))


@pytest.mark.parametrize("name", list(LOSSES))
def test_losses_have_the_gradients_that_differences_give(name):
    loss = resolve_loss(name, OPTIONS.get(name, {}))
    prediction, target = doubles(6, 2, seed=1).requires_grad_(), doubles(6, 2, seed=2).abs()
    weight = doubles(6, seed=3).abs()
    assert torch.autograd.gradcheck(lambda p: loss.mean(p, target, weight), (prediction,))


@pytest.mark.parametrize("name", ["absolute_error", "quantile"])
def test_envelopes_are_moreau_envelopes(name):
    """min over u of loss(u) + (u - f)^2 / (2 width), by brute force."""
    loss = resolve_loss(name, OPTIONS.get(name, {}))
    prediction, target = doubles(40, seed=1).requires_grad_(), torch.zeros(40, dtype=torch.float64)
    width = 0.4
    smoothed = loss.smoothed(width)
    u = torch.linspace(-5, 5, 200_001, dtype=torch.float64)
    values = loss.pointwise(u, torch.zeros_like(u))
    brute = [(values + (u - f) ** 2 / (2 * width)).min() for f in prediction.detach()]
    torch.testing.assert_close(smoothed(prediction, target), torch.stack(brute), atol=1e-8, rtol=0)
    assert torch.autograd.gradcheck(lambda p: smoothed(p, target), (prediction,))


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("activation", ["identity", "tanh"])
def test_sparse_rows_give_the_gradients_of_centred_dense_ones(scaled, activation):
    dense = sp.random(20, 6, density=0.4, random_state=0).toarray()
    rows = torch.from_numpy(dense).to_sparse_coo()
    module = MLPModule((6, 4, 2), activation).double()
    draw_weights_(module, torch.Generator().manual_seed(0))
    scaling = Scaling(dense.mean(0), dense.std(0), np.zeros(2), np.ones(2))
    if scaled:
        module.set_scaling_(scaling)
        module.scale_input = True
    target = doubles(20, 2)
    (module.outputs(rows) - target).square().mean().backward()
    sparse = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    (module(torch.from_numpy(dense)) - target).square().mean().backward()
    for ours, expected in zip(sparse, module.parameters(), strict=True):
        torch.testing.assert_close(ours, expected.grad)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activations_have_the_gradients_that_differences_give(name):
    assert torch.autograd.gradcheck(ACTIVATIONS[name].make(), (doubles(50).requires_grad_(),))


def test_dropout_keeps_the_mean_and_draws_from_its_own_generator():
    layer = Dropout(Masks(0.25, torch.Generator().manual_seed(0)))
    ones = torch.ones(100_000)
    state = torch.get_rng_state()
    out = layer(ones)
    assert torch.equal(torch.get_rng_state(), state)
    assert out.mean().item() == pytest.approx(1.0, abs=0.01)
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(layer.eval()(ones), ones)


def test_folding_the_scaling_and_back():
    rng = np.random.default_rng(0)
    scaling = Scaling(
        rng.normal(size=3), rng.uniform(1, 2, 3), rng.normal(size=2), rng.uniform(1, 2, 2)
    )
    layers = [
        (rng.normal(size=(4, 3)), rng.normal(size=4)),
        (rng.normal(size=(2, 4)), rng.normal(size=2)),
    ]
    for some in (layers, [(rng.normal(size=(2, 3)), rng.normal(size=2))]):
        back = rewrite_layers(to_user_units(some, scaling), identity_scaling(3, 2), scaling)
        for (w, b), (w2, b2) in zip(some, back, strict=True):
            np.testing.assert_allclose(w, w2)
            np.testing.assert_allclose(b, b2)


@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
def test_moments_are_weighted_and_merge(container):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 3)) * [1, 1e-3, 1e3] + [1e6, 0, 0]
    X[:, 1] = np.where(rng.random(500) < 0.5, 0, X[:, 1])
    w = rng.uniform(0.1, 2, 500)
    unweighted, ones = moments(container(X), None), moments(container(X), np.ones(500))
    np.testing.assert_allclose(unweighted.mean, ones.mean, rtol=1e-15)
    np.testing.assert_allclose(unweighted.deviation, ones.deviation, rtol=1e-14)
    whole = moments(container(X), w)
    mean = np.average(X, axis=0, weights=w)
    np.testing.assert_allclose(whole.mean, mean, rtol=1e-14, atol=1e-16)
    deviation = (w[:, None] * (X - mean) ** 2).sum(axis=0)
    np.testing.assert_allclose(whole.deviation, deviation, rtol=1e-12)
    merged = moments(container(X[:30]), w[:30]).merge(moments(container(X[30:]), w[30:]))
    assert isinstance(merged, Moments)
    np.testing.assert_allclose(merged.mean, mean, rtol=1e-14, atol=1e-16)
    np.testing.assert_allclose(merged.deviation, deviation, rtol=1e-10)


def test_orthant_lbfgs_is_lbfgs_without_a_penalty():
    A, c = doubles(30, 5), doubles(30, 1, seed=1)
    weight = torch.nn.Parameter(torch.zeros(1, 5, dtype=torch.float64))
    optimizer = OrthantLBFGS([weight], Penalty())

    def closure():
        optimizer.zero_grad()
        loss = (A @ weight.T - c).square().mean()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    exact = torch.linalg.lstsq(A, c).solution.T
    torch.testing.assert_close(weight.detach(), exact, rtol=1e-8, atol=1e-8)
    optimizer.forget()
    assert optimizer.step(closure) == pytest.approx(closure().item())


@pytest.mark.parametrize("n_threads", [1, 2])
def test_moments_and_scaling_of_many_blocks(n_threads):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300_000, 9)) * np.logspace(-6, 6, 9) + 10.0 ** np.arange(-4, 5)
    X = np.sort(X, axis=0)[:, ::-1]
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        m = moments(X, None)
        out = scaled(X, m.mean, 1 / X.std(axis=0), np.float32)
    finally:
        torch.set_num_threads(before)
    assert m.weight == len(X)
    wide = X.astype(np.longdouble)
    mean, deviation = wide.mean(axis=0), len(X) * wide.var(axis=0)
    assert np.abs((m.mean - mean) / np.maximum(X.std(axis=0), mean)).max() < 5e-16
    np.testing.assert_allclose(m.deviation, deviation.astype(float), rtol=1e-12)
    assert out.dtype == np.float32
    assert out.flags.c_contiguous
    np.testing.assert_allclose(out, (X - X.mean(axis=0)) / X.std(axis=0), rtol=1e-5, atol=1e-6)
