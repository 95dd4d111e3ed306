"""Outputs and gradients of fully connected layers, written out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._modules.activations import ACTIVATIONS
from .._modules.network import MLPModule
from .._objective.losses import Loss, blamed_on
from .batches import Batch
from .flat_parameters import FlatParameters


class _Layer(NamedTuple):
    """Views of one layer's parameters and gradients."""

    weight: Tensor  # n_out, n_in
    weight_T: Tensor
    gradient_T: Tensor
    bias: Tensor | None  # n_out, 1
    bias_gradient: Tensor | None  # n_out


class _Hidden(NamedTuple):
    """Workspace of a hidden layer for one batch size; all are of shape (n_units, n_rows)."""

    z: Tensor  # before the activation; overwritten by `a` unless needed for the gradient
    a: Tensor  # after the activation
    h: Tensor  # after dropout
    mask: Tensor | None
    d: Tensor  # derivative of the loss with respect to z
    d_T: Tensor


class _Space(NamedTuple):
    """Workspace for one batch size."""

    hidden: list[_Hidden]
    ones: Tensor
    d: Tensor  # n_targets, n_rows
    d_T: Tensor
    n_entries: int


class Backprop:
    """Outputs and gradients of an `MLPModule` on dense rows, without autograd.

    Units are rows and samples are columns, and weights are stored transposed: products of tall,
    narrow matrices are then several times faster. The derivative of the loss is propagated without
    its constant factor (two over the number of entries for the mean squared error); the products
    that compute the gradients apply it, and also add the gradient of the L2 penalty.

    Parameters
    ----------
    module : MLPModule
        The module to train, on one of `DEVICES`.
    flat : FlatParameters
        Its parameters.
    l2 : float
        Weight of half the squared norm of the weights.
    """

    def __init__(self, module: MLPModule, flat: FlatParameters, l2: float) -> None:
        self.l2 = l2
        self.activation = ACTIVATIONS[module.activation]
        self.dropout = module.dropout
        n, n_all = len(module.linears), flat.n_of_module
        values, grads = flat.views[:n_all], flat.gradients[:n_all]
        biases: list[Any] = [(b[:, None], g) for b, g in zip(values[n:], grads[n:], strict=True)]
        self.layers = [
            _Layer(w, w.T, g.T, *pair)
            for w, g, pair in zip(values, grads, biases or [(None, None)] * n, strict=False)
        ]
        self.last_bias = values[-1]
        # parameters of the loss, and their gradients
        own = slice(n_all, n_all + len(flat.of_loss))
        self.of_loss = flat.of_loss, flat.gradients[own]
        self._spaces: dict[int, _Space] = {}

    def _space(self, n_rows: int) -> _Space:
        """Workspace for this many rows: a full batch, a last batch or a validation batch."""
        like = self.layers[0].weight_T
        hidden = []
        for layer, _ in pairwise(self.layers):
            z, d = like.new_empty(2, len(layer.weight), n_rows).unbind()
            a = torch.empty_like(z) if self.activation.needs_input else z
            mask, h = None, a
            if self.dropout.p:
                mask, h = torch.empty_like(z), torch.empty_like(z)
            hidden.append(_Hidden(z, a, h, mask, d, d.T))
        d = like.new_empty(len(self.layers[-1].weight), n_rows)
        space = _Space(hidden, like.new_ones(n_rows), d, d.T, d.numel())
        self._spaces[n_rows] = space
        return space

    def outputs_(self, batch: Batch, training: bool = False) -> _Space:
        """Write the outputs of the last layer into `batch.out`."""
        space = self._spaces.get(batch.n_rows) or self._space(batch.n_rows)
        apply_, h = self.activation.apply_, batch.x_T
        for layer, room in zip(self.layers, space.hidden, strict=False):
            if layer.bias is None:
                torch.mm(layer.weight, h, out=room.z)
            else:
                torch.addmm(layer.bias, layer.weight, h, out=room.z)
            if apply_ is not None:
                apply_(room.z, room.a)
            h = room.a
            if training and room.mask is not None:
                h = torch.mul(room.a, self.dropout.draw_(room.mask), out=room.h)
        layer = self.layers[-1]
        if layer.bias is None:
            torch.mm(layer.weight, h, out=batch.out_T)
        elif batch.ones is None:
            torch.addmm(layer.bias, layer.weight, h, out=batch.out_T)
        else:
            torch.mm(layer.weight, h, out=batch.out_T)
            batch.out_T.addr_(self.last_bias, batch.ones)
        return space

    def gradient_(self, batch: Batch, loss: Loss) -> Tensor | None:
        """Write outputs into `batch.out`, and the gradient of loss and L2 penalty into `flat`.

        Returns the mean loss, if it had to be computed.
        """
        space = self.outputs_(batch, training=True)
        d, d_T = space.d, space.d_T
        ones = space.ones if batch.ones is None else batch.ones
        mean = None
        if loss.slope is None:
            scale = 1.0
            mean = self._slope_by_autograd(loss, batch, d_T)
        else:
            scale = loss.slope_factor / space.n_entries
            loss.slope(batch.out, batch.y, d_T)
            if batch.weight is not None:
                d_T.mul_(batch.weight)
        backward_, saves_input = self.activation.backward_, self.activation.needs_input
        for i in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[i]
            below: Any = space.hidden[i - 1] if i else None
            h = below.h if i else batch.x_T
            torch.addmm(layer.weight_T, h, d_T, beta=self.l2, alpha=scale, out=layer.gradient_T)
            if layer.bias_gradient is not None:
                grad = layer.bias_gradient
                torch.addmv(grad, d, ones, beta=0.0, alpha=scale, out=grad)
            if i:
                torch.mm(layer.weight_T, d, out=below.d)
                d, d_T = below.d, below.d_T
                if below.mask is not None:
                    d.mul_(below.mask)
                if backward_ is not None:
                    backward_(d, below.z if saves_input else below.a)
        return mean

    def _slope_by_autograd(self, loss: Loss, batch: Batch, out: Tensor) -> Tensor:
        """Write the derivative of the mean loss, which is returned, to `out`.

        Derivatives with respect to the loss's own parameters are written into `flat`.
        """
        parameters, gradients = self.of_loss
        with blamed_on(loss), torch.inference_mode(False), torch.enable_grad():
            leaf = batch.out.detach().clone().requires_grad_()
            mean = loss.mean(leaf, batch.y, batch.row_weight)
            found = torch.autograd.grad(
                mean, [leaf, *parameters], allow_unused=True, materialize_grads=True
            )
        for gradient, values in zip([out, *gradients], found, strict=True):
            gradient.copy_(values)
        return mean.detach()
