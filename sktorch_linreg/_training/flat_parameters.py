"""All parameters of a module as one vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._modules.scaled import ScaledModule
from .._modules.user_module import set_buffer_
from .._runtime.aliases import Array, Layers


class Snapshot(NamedTuple):
    """A copy of the parameters and of the buffers that training changes, by name."""

    values: Tensor
    buffers: dict[str, Tensor]


class Splitter(NamedTuple):
    """Cuts a vector into views in the shapes of some parameters."""

    sizes: list[int]
    shapes: list[torch.Size]
    # whether a weight of shape (n_out, n_in) is stored column-major
    transposed: bool

    @classmethod
    def of(cls, parameters: Sequence[Tensor], transposed: bool) -> Splitter:
        return cls([p.numel() for p in parameters], [p.shape for p in parameters], transposed)

    def __call__(self, flat: Tensor) -> list[Tensor]:
        parts = zip(flat.split_with_sizes(self.sizes), self.shapes, strict=True)
        return [
            part.view(shape[::-1]).T if self.transposed and len(shape) == 2 else part.view(shape)
            for part, shape in parts
        ]


class TrainedParameters(NamedTuple):
    """The parameters that an optimizer updates, as one vector, and another for the gradient."""

    values: Tensor
    gradient: Tensor
    parameters: list[nn.Parameter]
    split: Splitter

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the parameters."""
        return [tuple(p.shape) for p in self.parameters]


class FlatParameters:
    """All parameters of a module as one vector, and another for the gradient.

    Penalised parameters come first and frozen ones last; those of a loss precede the latter. The
    parameters of the module and their `.grad` become views, so that one update moves all of
    them, while torch's optimizers and skorch's callbacks see ordinary parameters.

    Parameters
    ----------
    module : ScaledModule
        Its parameters move into `values`.
    loss : torch.nn.Module, optional
        The user's loss, whose parameters are trained too.
    transposed : bool, default=True
        Whether weights are stored column-major, which is faster here but not supported by some
        torch optimizers.
    with_frozen : bool, default=False
        Whether frozen parameters are included, since a callback may unfreeze them.

    Attributes
    ----------
    values, gradient : torch.Tensor of shape (n_parameters,)
        Parameters and gradient.
    weights, weights_gradient : torch.Tensor of shape (n_weights,)
        The penalised part.
    trained : TrainedParameters
        The part that is not frozen.
    frozen : list of torch.nn.Parameter
        The parameters that are frozen, whether they are included or not.
    views, gradients : list of torch.Tensor
        Views of both vectors in the shapes of the parameters.
    """

    def __init__(
        self,
        module: ScaledModule,
        loss: nn.Module | None = None,
        transposed: bool = True,
        *,
        with_frozen: bool = False,
    ) -> None:
        self.module, self.loss, self.transposed = module, loss, transposed
        weights, others = module.weights, module.others
        of_loss = list(loss.parameters()) if loss is not None else []
        self.of_loss = [p for p in of_loss if p.requires_grad]
        self.frozen = [*module.frozen, *(p for p in of_loss if not p.requires_grad)]
        frozen = self.frozen if with_frozen else []
        self.parameters = [*weights, *others, *self.of_loss, *frozen]
        self.n_of_module = len(weights) + len(others)
        self._split = Splitter.of(self.parameters, transposed)
        n_entries = sum(p.numel() for p in self.parameters)
        self.values = self.parameters[0].new_empty(n_entries, requires_grad=False)
        self.gradient = torch.zeros_like(self.values)
        self.views, self.gradients = self.split(self.values), self.split(self.gradient)
        for p, view in zip(self.parameters, self.views, strict=True):
            p.data = view.copy_(p.detach())
        n_weights = sum(p.numel() for p in weights)
        self.weights = self.values[:n_weights]
        self.weights_gradient = self.gradient[:n_weights]
        trained = self.parameters[: len(self.parameters) - len(frozen)]
        size = sum(p.numel() for p in trained)
        self.trained = TrainedParameters(
            self.values[:size], self.gradient[:size], trained, Splitter.of(trained, transposed)
        )

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of a vector as long as `values`, in the shapes of the parameters."""
        return self._split(flat)

    def _owner(self, name: str) -> nn.Module | None:
        """The module to which a name with its prefix belongs."""
        return self.loss if name.startswith("loss.") else self.module.user_module

    # -- copies ---------------------------------------------------------------------------------

    def buffers(self) -> dict[str, Tensor]:
        """The buffers that training changes, with the prefix ``module.`` or ``loss.``."""
        found = {f"module.{name}": b for name, b in self.module.kept_buffers().items()}
        if self.loss is not None:
            found |= {f"loss.{name}": b for name, b in self.loss.named_buffers()}
        return found

    def keep(self, kept: Snapshot | None, which: Any = True) -> Snapshot:
        """A copy of parameters and buffers, whose vector is written to that of `kept` if given."""
        values = self.values.clone() if kept is None else kept.values.copy_(self.values)
        return Snapshot(values, {name: b.clone() for name, b in self.buffers().items()})

    def restore(self, kept: Snapshot) -> None:
        """Return to the parameters and buffers of a snapshot."""
        self.values.copy_(kept.values)
        self.set_buffers_(kept.buffers)

    def set_buffers_(self, buffers: Mapping[str, Tensor]) -> None:
        """Set buffers to copies of these, whose names are those of `buffers`."""
        for name, values in buffers.items():
            owner = self._owner(name)
            if owner is not None:
                copied = values.to(self.values.device, copy=True)
                set_buffer_(owner, name.partition(".")[2], copied)

    def layers(self, flat: Tensor) -> Layers:
        """Weights and intercepts of each layer as arrays, from a vector as long as `values`."""
        parts = self.split(flat)[: self.n_of_module]
        return self.module.layers_of([_array(part) for part in parts])

    def arrays(self, kept: Snapshot, of: str) -> dict[str, Array]:
        """Parameters and buffers of the ``"module"`` or the ``"loss"`` as arrays, by name."""
        owner = self._owner(f"{of}.")
        if owner is None:
            return {}
        pairs = zip(self.parameters, self.split(kept.values), strict=True)
        known = {id(p): part for p, part in pairs}
        found = {name: _array(known.get(id(p), p)) for name, p in owner.named_parameters()}
        prefix = f"{of}."
        for name, values in kept.buffers.items():
            if name.startswith(prefix):
                found[name.removeprefix(prefix)] = _array(values)
        return found

    def fitted(self, values: Tensor) -> Tensor:
        """A vector as long as `values`, from one with frozen parameters or without.

        Raises
        ------
        ValueError
            If the number of parameters does not match.
        """
        n_trained = len(self.trained.values)
        if len(values) not in (n_trained, n_trained + sum(p.numel() for p in self.frozen)):
            raise ValueError("the number of parameters does not match")
        n = min(len(values), len(self.values))
        out = self.values.clone()
        out[:n] = values[:n]
        return out

    def set_frozen_(self, values: Tensor) -> None:
        """Set frozen parameters that are not included here from a vector that includes them."""
        n = len(self.values)
        if len(values) > n:
            parts = Splitter.of(self.frozen, self.transposed)(values[n:])
            for p, part in zip(self.frozen, parts, strict=True):
                p.data.copy_(part)

    # -- during training ------------------------------------------------------------------------

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


def _array(values: Tensor) -> Array:
    array: Array = values.detach().cpu().contiguous().numpy()
    return array
