"""Layers that earlier rows have trained, in the units of later ones."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ._batches import TabularDataset
from ._modules import ACTIVATIONS, MLPModule
from ._types import FitSpec, FloatArray, Layers, Scaling, reciprocal

# growth of a column's scale that says nothing, and that up to which earlier rows have shown what it
# is, so that sizes have to be many times as large as else to be too large
NO_GROWTH, USUAL_GROWTH, MANY_TIMES = 1.02, 1.25, 5.0
# rows that are looked at
ROWS = 4096
# median size of what goes into an activation as fresh weights have it
FRESH = 0.4
# and what is too large: the first scale along with what goes in, so that nothing is lost, and no
# input makes the last large
LARGE = {"relu": 1.5, "leaky_relu": 1.5, "identity": 1.5, "tanh": 4.0, "logistic": 8.0}
LARGE_ELSE = 2.0
BOUNDED = {"tanh", "logistic"}
# outputs, in units of the targets' deviation, that no earlier target can account for
LARGE_OUTPUT = 1.5
# logarithms of rates, relative to the mean, of which the same is to be said
LARGE_LOG = 15.0


def rewrite_layers(layers: Layers, old: Scaling, new: Scaling) -> Layers:
    """Layers over the units of `old` as layers over those of `new`, with the same predictions.

    Weights of a column that has had one value so far have never been used, and stay as they are.
    So do those of a column, or target, that has one value now.
    """
    out = [(w.astype(np.float64), None if b is None else b.astype(np.float64)) for w, b in layers]
    weight, bias = out[0]
    seen, used = old.x_scale > 0, new.x_scale > 0
    weight = weight * np.where(seen & used, new.x_scale * old.x_factor, 1.0)
    shift = (new.x_offset - old.x_offset) * np.where(used, new.x_factor, old.x_factor)
    out[0] = weight, None if bias is None else bias + weight @ shift
    weight, bias = out[-1]
    used, factor = new.y_scale > 0, reciprocal(new.y_scale)
    ratio = np.where(used, old.y_scale * factor, 1.0)
    if bias is not None:
        bias = bias * ratio + (old.y_offset - new.y_offset) * factor
    out[-1] = weight * ratio[:, None], bias
    return out


@torch.no_grad()
def calm_(
    module: MLPModule, values: Tensor, rows: TabularDataset, growth: FloatArray, spec: FitSpec
) -> None:
    """Bring units to sizes that can be trained, where rows are far from all that came before.

    Weights that were drawn for a narrow first batch are steep in the units of a wide one: rewritten
    with the same predictions they are too large to be trained, and outputs explode. What goes
    into a unit is made as small as with fresh weights; where its activation is straight on both
    sides of 0 the next layer makes up for it, and predictions stay. `values` are all parameters as
    one vector, `growth` the scales of the columns as multiples of what they were.
    """
    most = float(growth.max(initial=0.0))
    if most <= NO_GROWTH:
        return
    patience = MANY_TIMES if most <= USUAL_GROWTH else 1.0
    step = -(-len(rows) // ROWS)
    x, y, _ = rows.batch(slice(None, None, step))
    name, linears = module.activation, module.linears
    activation = ACTIVATIONS[name].make()
    limit = patience * LARGE.get(name, LARGE_ELSE)
    for layer, after in pairwise(linears):
        z = _apply(module, layer, x)
        size = z.abs().median(dim=0).values
        by = torch.where(size > limit, size / FRESH, torch.ones_like(size))
        layer.weight.div_(by[:, None])
        if layer.bias is not None:
            layer.bias.div_(by)
        if name not in BOUNDED:
            after.weight.mul_(by)
        x = activation(z / by)
    last = linears[-1]
    size = _apply(module, last, x).abs().median(dim=0).values
    usual = _usual_size(y, spec)
    least = LARGE_LOG / LARGE_OUTPUT if spec.loss.log_link else 0.0
    large = size > patience * LARGE_OUTPUT * usual.clamp(min=least)
    by = torch.where(large, usual / size, torch.ones_like(size))
    last.weight.mul_(by[:, None])
    if last.bias is not None:
        last.bias.mul_(by)
    if spec.processes is not None:
        # which have looked at rows of their own
        spec.processes.from_first_(values)


def _apply(module: MLPModule, layer: torch.nn.Linear, x: Tensor) -> Tensor:
    if layer is module.linears[0]:
        return module.first(x)
    out: Tensor = layer(x)
    return out


def _usual_size(y: Tensor, spec: FitSpec) -> Tensor:
    """The size of outputs that targets like these, or earlier ones, ask for."""
    if spec.loss.log_link:
        return y.amax(dim=0).log().clamp(min=1.0)
    size = y.abs().median(dim=0).values
    return size.clamp(min=1.0) if spec.loss.scales_target else size
