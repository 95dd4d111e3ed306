"""All parameters of a module as one vector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._modules.network import MLPModule
from .._runtime.aliases import Layers


class FlatParameters:
    """All weights, then all intercepts of a module as one vector, and another for the gradient.

    The parameters of the module and their `.grad` become views, so that one update moves all of
    them, while torch's optimizers and skorch's callbacks see ordinary parameters.

    Parameters
    ----------
    module : MLPModule
        Its parameters move into `values`.
    transposed : bool, default=True
        Whether weights are stored column-major, which is faster here but not supported by some
        torch optimizers.

    Attributes
    ----------
    values, gradient : torch.Tensor of shape (n_parameters,)
        Parameters and gradient.
    weights, weights_gradient : torch.Tensor of shape (n_weights,)
        The penalised part.
    views, gradients : list of torch.Tensor
        Views of both vectors in the shapes of the parameters.
    """

    def __init__(self, module: MLPModule, transposed: bool = True) -> None:
        self.transposed = transposed
        biases = [layer.bias for layer in module.linears if layer.bias is not None]
        self.n_layers = len(module.weights)
        self.parameters = [*module.weights, *biases]
        self._shapes = [p.shape for p in self.parameters]
        self._sizes = [p.numel() for p in self.parameters]
        self.values = self.parameters[0].new_empty(sum(self._sizes), requires_grad=False)
        self.gradient = torch.zeros_like(self.values)
        self.views, self.gradients = self.split(self.values), self.split(self.gradient)
        for p, view in zip(self.parameters, self.views, strict=True):
            p.data = view.copy_(p.detach())
        n_weights = sum(self._sizes[: self.n_layers])
        self.weights = self.values[:n_weights]
        self.weights_gradient = self.gradient[:n_weights]

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of a vector as long as `values`, in the shapes of the parameters."""
        parts = flat.split_with_sizes(self._sizes)
        if not self.transposed:
            return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]
        # a weight of shape (n_out, n_in) is stored column-major
        return [
            part.view(shape[::-1]).T if len(shape) == 2 else part
            for part, shape in zip(parts, self._shapes, strict=True)
        ]

    def layers(self, flat: Tensor) -> Layers:
        """Weights and intercepts of each layer as arrays, from a vector as long as `values`."""
        arrays = [part.cpu().contiguous().numpy() for part in self.split(flat)]
        n = self.n_layers
        return [(w, arrays[n + i] if len(arrays) > n else None) for i, w in enumerate(arrays[:n])]

    def offer_gradients(self) -> None:
        """Set the `.grad` of trainable parameters to views of `gradient`."""
        for p, grad in zip(self.parameters, self.gradients, strict=True):
            p.grad = grad if p.requires_grad else None

    def take_gradients(self) -> None:
        """Copy gradients set from outside into `gradient`, and restore the views."""
        for p, grad in zip(self.parameters, self.gradients, strict=True):
            if p.grad is not grad and p.requires_grad:
                grad.zero_() if p.grad is None else grad.copy_(p.grad)
                p.grad = grad

    def take_parameters(self) -> None:
        """Copy parameters whose memory was replaced from outside, and restore the views."""
        for p, view in zip(self.parameters, self.views, strict=True):
            if p.data_ptr() != view.data_ptr():
                p.data = view.copy_(p.detach())

    def keep(self, kept: Tensor | None, which: Any = True) -> Tensor:
        """A copy of the parameters, written to `kept` if given."""
        return self.values.clone() if kept is None else kept.copy_(self.values)

    def finite(self) -> bool:
        """Whether all parameters are finite."""
        return bool(torch.isfinite(self.values).all())

    def release(self) -> None:
        """Give the parameters their own memory, and drop the gradients."""
        for p in self.parameters:
            p.data = p.detach().clone(memory_format=torch.contiguous_format)
            p.grad = None
        self.values = self.gradient = self.values.new_empty(0)
        self.weights = self.weights_gradient = self.values
        self.views = self.gradients = []
