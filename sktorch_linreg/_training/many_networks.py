"""Many networks of one shape, trained together as one stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .._data.rows import TrainingData
from .._modules.dropout import StackedMasks
from .._modules.initialize import start_weights_
from .._modules.network import make_module
from .._runtime.aliases import Layers
from .._runtime.seeds import dropout_generator, main_generator
from .._runtime.torch_modes import own_torch_settings
from .many_models import ManyModels, Specs
from .stacked_batches import Order
from .stacked_gradients import StackedBackprop
from .stacked_parameters import StackedLayers
from .stacked_result import NetworksResult, StackResult


class ManyNetworks(ManyModels):
    """Training of a stack of networks, with gradients written out."""

    parameters: StackedLayers
    result_class = NetworksResult

    @property
    def has_ones(self) -> bool:  # type: ignore[override]
        """Whether a column of ones follows the features, for the intercepts."""
        return self.spec.shape.fit_intercept

    @property
    def slope_factor(self) -> float:  # type: ignore[override]
        """Constant factor left out of the derivative of the loss."""
        return self.spec.objective.loss.slope_factor

    def make_parameters(self, n_groups: int, n_each: int) -> StackedLayers:
        """The parameters of all models, not yet initialised."""
        spec = self.spec
        sizes = (self.packed.n_features, *spec.shape.hidden, self.packed.n_targets)
        return StackedLayers(
            sizes, spec.shape.fit_intercept, n_groups, n_each, spec.dtype, spec.device
        )

    def draw_start(self) -> None:
        """Draw initial weights, row orders and dropout masks from the seeds."""
        spec, parameters = self.spec, self.parameters
        started: dict[int, tuple[Tensor, Layers]] = {}
        orders: dict[tuple[int, int], Order] = {}
        masks: dict[tuple[int, int, float], int] = {}
        generators: list[torch.Generator] = []
        keep: list[float] = []
        owner = np.zeros((parameters.n_groups, parameters.n_each), dtype=np.intp)
        for g, row in enumerate(self.specs):
            seed, n_rows = row[0].training.seed, self.packed.counts[self.owner[g]]
            if seed not in started:
                started[seed] = self._initial(seed)
            state, layers = started[seed]
            parameters.set_layers((torch.tensor(g), torch.arange(parameters.n_each)), layers)
            if (seed, n_rows) not in orders:
                generator = torch.Generator()
                generator.set_state(state)
                orders[seed, n_rows] = Order(generator, n_rows)
            self.orders.append(orders[seed, n_rows])
            for c, its in enumerate(row):
                mask = (seed, n_rows, its.shape.dropout)
                if mask not in masks:
                    masks[mask] = len(keep)
                    generators.append(dropout_generator(seed, spec.device))
                    keep.append(1.0 - its.shape.dropout)
                owner[g, c] = masks[mask]
        self.masks = (generators, keep, owner) if min(keep) < 1.0 else None

    def _initial(self, seed: int) -> tuple[Tensor, Layers]:
        """The generator state after drawing the initial weights, and these weights."""
        spec, generator = self.spec, main_generator(seed)
        module = make_module(
            self.parameters.sizes,
            spec.shape.activation,
            0.0,
            bias=spec.shape.fit_intercept,
            log_link=False,
            dtype=spec.dtype,
            device=torch.device("cpu"),
        )
        start_weights_(module, generator, positive=spec.objective.positive)
        arrays = [p.detach().numpy() for p in module.parameters()]
        layers: Layers = [(w, None) for w in arrays]
        if spec.shape.fit_intercept:
            layers = list(zip(arrays[::2], arrays[1::2], strict=True))
        return generator.get_state(), layers

    def make_gradients(self) -> StackedBackprop:
        """What computes outputs and gradients of the remaining models."""
        parameters = self.parameters
        masks = None
        if self.masks is not None:
            generators, keep, owner = self.masks
            # the masks still in use, each with a group that uses it
            used, first, which = np.unique(
                owner[tuple(self.origin)], return_index=True, return_inverse=True
            )
            masks = StackedMasks(
                [generators[i] for i in used],
                [keep[i] for i in used],
                [int(i) // parameters.n_each for i in first],
                torch.from_numpy(which.reshape(-1)),
            )
        return StackedBackprop(parameters, self.spec.shape.activation, masks)


def train_models(
    data: Sequence[TrainingData],
    owner: Sequence[int],
    specs: Specs,
    *,
    curves: bool = False,
    tell: Callable[[int], None] | None = None,
) -> StackResult:
    """Train a stack of models; see `ManyModels` for the parameters."""
    with own_torch_settings(specs[0][0].device), torch.inference_mode():
        return ManyNetworks(data, owner, specs, curves, tell).train()
