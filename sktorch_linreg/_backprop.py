"""Parameters as one vector, and the gradients of a stack of linear layers written out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._batches import Batch
from ._modules import ACTIVATIONS, MLPModule
from ._types import Layers, Loss

# devices whose kernels were looked at; on others autograd does the work
DEVICES = ("cpu", "cuda")


class FlatParameters:
    """All weights, then all intercepts of a module as one vector, with one for the gradient.

    The parameters of the module and their `.grad` become views, so that one update moves all of
    them, and torch's optimizers and skorch's callbacks see what they always see.

    Parameters
    ----------
    module : MLPModule
        Its parameters move into `values`.

    Attributes
    ----------
    values, gradient : torch.Tensor of shape (n_parameters,)
        Parameters and gradient.
    weights, weights_gradient : torch.Tensor of shape (n_weights,)
        The part that is penalised.
    """

    def __init__(self, module: MLPModule) -> None:
        biases = [layer.bias for layer in module.linears if layer.bias is not None]
        self.n_layers = len(module.weights)
        self.parameters = [*module.weights, *biases]
        like = self.parameters[0].detach()
        sizes = [p.numel() for p in self.parameters]
        self.values = like.new_empty(sum(sizes))
        self.gradient = torch.zeros_like(self.values)
        for p, part in zip(self.parameters, self.values.split_with_sizes(sizes), strict=True):
            view = part.view(p.shape)
            p.data = view.copy_(p.detach())
        n_weights = sum(w.numel() for w in module.weights)
        self.weights = self.values[:n_weights]
        self.weights_gradient = self.gradient[:n_weights]

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of the shapes of the parameters into a vector as long as `values`."""
        parts = flat.split_with_sizes([p.numel() for p in self.parameters])
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def layers(self, flat: Tensor) -> Layers:
        """Weights and intercepts of each layer as arrays over a vector as long as `values`."""
        arrays = [part.cpu().numpy() for part in self.split(flat)]
        n = self.n_layers
        return [(w, arrays[n + i] if len(arrays) > n else None) for i, w in enumerate(arrays[:n])]

    def offer_gradients(self) -> None:
        """Make `gradient` the `.grad` of the parameters that are trained."""
        for p, grad in zip(self.parameters, self.split(self.gradient), strict=True):
            p.grad = grad if p.requires_grad else None

    def keep(self, room: Tensor | None) -> Tensor:
        """A copy of the parameters, in `room` if there is some."""
        return self.values.clone() if room is None else room.copy_(self.values)

    def release(self) -> None:
        """Let go of the gradients."""
        for p in self.parameters:
            p.grad = None


class _Layer(NamedTuple):
    """Views of one layer's parameters and gradients."""

    weight: Tensor  # n_out, n_in
    weight_T: Tensor
    weight_gradient: Tensor
    bias: Tensor | None  # n_out
    bias_gradient: Tensor | None


class _Hidden(NamedTuple):
    """Work space of a hidden layer for batches of one size, all of shape (n_rows, n_units)."""

    z: Tensor  # before the activation, and in its place after it where that is enough
    a: Tensor  # after the activation
    h: Tensor  # after dropout
    mask: Tensor | None
    d: Tensor  # derivative of the loss with respect to z
    d_T: Tensor


class _Space(NamedTuple):
    """Work space for batches of one size."""

    hidden: list[_Hidden]
    ones: Tensor
    d: Tensor  # n_rows, n_targets
    d_T: Tensor
    n_entries: int


class Backprop:
    """Outputs and gradients of an `MLPModule` on dense rows, without autograd.

    The derivative of the loss is carried back without its constant factor (two over the number of
    entries for the mean squared error), which the products that give the gradients apply, as they
    apply the squared norm's share of the gradient.

    Parameters
    ----------
    module : MLPModule
        What is trained; it has to be on one of `DEVICES`.
    flat : FlatParameters
        Its parameters.
    l2 : float
        Weight of half the squared norm of the weights.
    """

    def __init__(self, module: MLPModule, flat: FlatParameters, l2: float) -> None:
        self.l2 = l2
        self.activation = ACTIVATIONS[module.activation]
        self.dropout = module.dropout
        biased = module.linears[0].bias is not None
        values, grads = flat.split(flat.values), flat.split(flat.gradient)
        n = len(module.linears)
        self.layers = [
            _Layer(
                values[i],
                values[i].T,
                grads[i],
                values[n + i] if biased else None,
                grads[n + i] if biased else None,
            )
            for i in range(n)
        ]
        self._spaces: dict[int, _Space] = {}

    def _space(self, n_rows: int) -> _Space:
        """Work space for this many rows; a run has full batches and at most one smaller one."""
        like = self.layers[0].weight
        hidden = []
        for layer, _ in pairwise(self.layers):
            z, d = like.new_empty(2, n_rows, len(layer.weight)).unbind()
            a = torch.empty_like(z) if self.activation.needs_input else z
            mask, h = None, a
            if self.dropout.p:
                mask, h = torch.empty_like(z), torch.empty_like(z)
            hidden.append(_Hidden(z, a, h, mask, d, d.T))
        d = like.new_empty(n_rows, len(self.layers[-1].weight))
        space = _Space(hidden, like.new_ones(n_rows), d, d.T, d.numel())
        self._spaces[n_rows] = space
        return space

    def outputs_(self, batch: Batch, training: bool = False) -> _Space:
        """Write the outputs of the last layer into `batch.out`."""
        space = self._spaces.get(batch.n_rows) or self._space(batch.n_rows)
        x, out = batch.x, batch.out
        apply_, h = self.activation.apply_, x
        for layer, room in zip(self.layers, space.hidden, strict=False):
            if layer.bias is None:
                torch.mm(h, layer.weight_T, out=room.z)
            else:
                torch.addmm(layer.bias, h, layer.weight_T, out=room.z)
            if apply_ is not None:
                apply_(room.z, room.a)
            h = room.a
            if training and room.mask is not None:
                keep = 1.0 - self.dropout.p
                room.mask.bernoulli_(keep, generator=self.dropout.generator).div_(keep)
                h = torch.mul(room.a, room.mask, out=room.h)
        layer = self.layers[-1]
        if layer.bias is None:
            torch.mm(h, layer.weight_T, out=out)
        else:
            torch.addmm(layer.bias, h, layer.weight_T, out=out)
        return space

    def gradient_(self, batch: Batch, loss: Loss) -> None:
        """Write outputs into `batch.out`, the gradient of loss and squared norm into `flat`."""
        space = self.outputs_(batch, training=True)
        _, x, y, weight, out = batch
        d, d_T, ones = space.d, space.d_T, space.ones
        if loss.slope is None:
            scale = 1.0
            _slope_by_autograd(loss, out, y, weight, d)
        else:
            scale = loss.slope_factor / space.n_entries
            loss.slope(out, y, d)
            if weight is not None:
                d.mul_(weight)
        backward_, saved_input = self.activation.backward_, self.activation.needs_input
        for i in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[i]
            below: Any = space.hidden[i - 1] if i else None
            h = below.h if i else x
            torch.addmm(layer.weight, d_T, h, beta=self.l2, alpha=scale, out=layer.weight_gradient)
            if layer.bias_gradient is not None:
                grad = layer.bias_gradient
                torch.addmv(grad, d_T, ones, beta=0.0, alpha=scale, out=grad)
            if i:
                torch.mm(d, layer.weight, out=below.d)
                d, d_T = below.d, below.d_T
                if below.mask is not None:
                    d.mul_(below.mask)
                if backward_ is not None:
                    backward_(d, below.z if saved_input else below.a)


def _slope_by_autograd(
    loss: Loss, prediction: Tensor, target: Tensor, weight: Tensor | None, out: Tensor
) -> None:
    """The derivative of the mean loss, for a loss whose derivative is not written out."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = prediction.detach().clone().requires_grad_()
        mean = loss.mean(leaf, target, None if weight is None else weight[:, 0])
        (gradient,) = torch.autograd.grad(mean, leaf)
    out.copy_(gradient)
