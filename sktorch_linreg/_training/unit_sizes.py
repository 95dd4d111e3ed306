"""Rescaling of units to trainable sizes where later rows are far from earlier ones."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .._modules.activations import ACTIVATIONS
from .._modules.network import MLPModule
from .._objective.losses import Loss
from .._runtime.aliases import Array, FloatArray, Layers
from .._runtime.processes import ProcessGroup
from .._spec import Objective
from .batches import TabularDataset

# growth of a column's scale, and so of a unit, that earlier rows do not explain
UNSEEN_GROWTH = 3.0
# maximum number of entries, and of rows, that are sampled
ENTRIES, ROWS = 2**22, 4096
# median absolute input of an activation under freshly drawn weights
FRESH = 0.4
# inputs that are too large: low where outputs scale with them, high where outputs are bounded
LARGE = {"relu": 1.5, "leaky_relu": 1.5, "identity": 1.5, "tanh": 4.0, "logistic": 8.0}
LARGE_ELSE = 2.0
BOUNDED = {"tanh", "logistic"}
# outputs, in standard deviations of the targets, that no earlier target explains
LARGE_OUTPUT = 1.5
# the same limit for logarithms of rates, relative to the mean
LARGE_LOG = 15.0


@torch.no_grad()
def shrink_large_units_(
    module: MLPModule,
    rows: TabularDataset,
    before: Layers,
    growth: FloatArray,
    objective: Objective,
    group: ProcessGroup,
) -> None:
    """Rescale units to trainable sizes where rows are far from all earlier ones.

    Weights drawn for a narrow first batch are steep in the units of a wide one: rewritten to give
    the same predictions, they are too large to train, and outputs explode. The input of such a
    unit's activation is scaled back to its earlier size; if the activation is linear on each side
    of 0, the next layer compensates and predictions are unchanged. `before` are the layers before
    rewriting, and `growth` the new scales of the columns relative to the old ones.
    """
    if float(growth.max(initial=0.0)) < UNSEEN_GROWTH:
        return
    x, y = _some_rows(module, rows)
    name, linears = module.activation, module.linears
    activation = ACTIVATIONS[name].make()
    limit = LARGE.get(name, LARGE_ELSE)
    # stands for the earlier rows in their own units
    earlier = x
    for (layer, after), old in zip(pairwise(linears), before, strict=False):
        z, z_before = layer(x), _apply(old, earlier)
        size, usual = _sizes(z), _sizes(z_before).clamp(min=FRESH)
        large = (size > limit) & (size > UNSEEN_GROWTH * usual)
        by = torch.where(large, size / usual, torch.ones_like(size))
        layer.weight.div_(by[:, None])
        if layer.bias is not None:
            layer.bias.div_(by)
        if name not in BOUNDED:
            after.weight.mul_(by)
        x, earlier = activation(z / by), activation(z_before)
    last = linears[-1]
    size, usual = _sizes(last(x)), _usual_size(y, objective.loss)
    least = LARGE_LOG / LARGE_OUTPUT if objective.loss.log_link else 0.0
    large = size > LARGE_OUTPUT * usual.clamp(min=least)
    if len(linears) > 1:
        large &= size > UNSEEN_GROWTH * _sizes(_apply(before[-1], earlier))
    by = torch.where(large, usual / size, torch.ones_like(size))
    last.weight.mul_(by[:, None])
    if last.bias is not None:
        last.bias.mul_(by)
    # each process sampled its own rows
    for parameter in module.parameters():
        group.broadcast_(parameter.data)


def _some_rows(module: MLPModule, rows: TabularDataset) -> tuple[Tensor, Tensor]:
    """A sample of the rows, dense and standardised, with their targets."""
    most = max(1, min(ROWS, ENTRIES // max(1, rows.X.shape[1])))
    x, y, _ = rows.batch(slice(None, None, -(-len(rows) // most)))
    if x.layout != torch.strided:
        x = (x.to_dense() - module.x_offset) * module.x_factor
    return x, y


def _apply(layer: tuple[Array, Array | None], x: Tensor) -> Tensor:
    weight, bias = layer
    out = x @ torch.as_tensor(weight, dtype=x.dtype, device=x.device).T
    return out if bias is None else out + torch.as_tensor(bias, dtype=x.dtype, device=x.device)


def _sizes(z: Tensor) -> Tensor:
    """Median absolute value of each unit, which is robust to outlying rows."""
    return z.abs().median(dim=0).values


def _usual_size(y: Tensor, loss: Loss) -> Tensor:
    """A typical size of the outputs for these targets and for earlier ones."""
    if loss.log_link:
        return y.amax(dim=0).log().clamp(min=1.0)
    size = _sizes(y)
    return size.clamp(min=1.0) if loss.scales_target else size
