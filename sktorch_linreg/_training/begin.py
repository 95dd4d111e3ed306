"""Where training begins: the module, the loss and the generators, new or continued."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from .._data.rows import TrainingData
from .._data.scaling import identity_scaling, reciprocal, rewrite_layers
from .._modules.initialize import start_weights_
from .._modules.network import make_module
from .._modules.scaled import ScaledModule
from .._modules.user_module import (
    TRIED_ROWS,
    UnsuitableState,
    examine,
    load_arrays_,
    make_user_module,
)
from .._objective.losses import Loss
from .._runtime.seeds import (
    device_generator,
    dropout_generator,
    main_generator,
    seeded_torch,
)
from .._spec import FitSpec, RunContext, Start
from .batches import TabularDataset, scaled_rows
from .prepare import Prepared, dropout_groups, moments_of_rows
from .unit_sizes import shrink_large_units_

# rows whose statistics scale those on which a module is tried
SCALED_ROWS = 1000


@dataclass(frozen=True)
class Beginning:
    """The module to train, the spec with the loss to train, and the generators of the run.

    `order` draws the order of rows; `masks` is the generator of random layers, None if that is
    `order` too.
    """

    module: ScaledModule
    spec: FitSpec
    order: torch.Generator
    masks: torch.Generator | None

    def generators(self) -> tuple[torch.Generator | None, torch.Generator | None]:
        """The generators whose state a checkpoint keeps."""
        draws = self.spec.training.shuffle or self.spec.shape.module is not None
        return self.order if draws else None, self.masks

    def restore(self, state: Mapping[str, Any] | None, rank: int) -> None:
        """Continue with the generators of an earlier run of the same process."""
        if state is None or state.get("rank", 0) != rank:
            return
        self.order.set_state(torch.from_numpy(np.asarray(state["generator"]).copy()))
        if self.masks is not None and state.get("dropout") is not None:
            self.masks.set_state(torch.from_numpy(np.asarray(state["dropout"]).copy()))


def begin_network(
    prepared: Prepared,
    training: TabularDataset,
    spec: FitSpec,
    context: RunContext,
    start: Start | None,
) -> Beginning:
    """A network with new weights, or with those of `start` in the units of these rows."""
    rows, scaling, group = prepared.rows, prepared.scaling, context.group
    rank, seed = group.rank, spec.training.seed
    module = make_module(
        (rows.n_features, *spec.shape.hidden, rows.n_targets),
        spec.shape.activation,
        spec.shape.dropout,
        bias=spec.shape.fit_intercept,
        log_link=spec.objective.loss.log_link,
        dtype=spec.dtype,
        device=spec.device,
    )
    layers = None
    if start is not None:
        layers = rewrite_layers(start.layers, start.scaling, scaling)
    zero, positive = spec.training.starts_at_zero, spec.objective.positive
    generator = main_generator(seed)
    start_weights_(module, generator, layers, zero=zero, positive=positive)
    module.set_scaling_(scaling)
    if start is not None and start.x_scale is not None:
        growth = scaling.x_scale * reciprocal(start.x_scale)
        shrink_large_units_(module, training, start.layers, growth, spec.objective, group)
    if spec.objective.loss.has_state:
        # its constructor may draw, after that of the module
        with seeded_torch(generator, spec.device):
            spec = _with_loss(spec, start)
    # all processes start from the same initial weights, but each draws its own row orders
    order = main_generator(seed, rank) if rank else generator
    masks = dropout_generator(seed, spec.device, rank)
    module.dropout.begin(masks, dropout_groups(rows, spec, context))
    return Beginning(module, spec, order, masks)


def begin_user_module(
    data: TrainingData, spec: FitSpec, context: RunContext, start: Start | None
) -> Beginning:
    """A new module of the user's, or one in the state of `start`; in a context of `seeded_torch`.

    The spec says how the module behaves on a few of the rows. Unless the module draws in training,
    a generator of its own continues from where the constructors have left torch's.
    """
    recipe = spec.shape.module
    assert recipe is not None
    rows = _some_rows(data, spec)
    log_link = spec.objective.loss.log_link
    module = make_user_module(recipe, rows, spec.dtype, spec.device, log_link=log_link)
    spec = _with_loss(spec, start)
    seed, rank, order = spec.training.seed, context.group.rank, torch.default_generator
    if start is not None:
        load_arrays_(module.module, start.module_state)
    if start is not None or rank:
        # each process draws its own row orders
        order.set_state(main_generator(seed, rank).get_state())
    behaviour = examine(module, module.as_input(rows))
    shape = replace(spec.shape, **behaviour._asdict())
    masks = device_generator(spec.device)
    if not behaviour.draws:
        order, masks = torch.Generator(), None
        order.set_state(torch.default_generator.get_state())
    return Beginning(module, replace(spec, shape=shape), order, masks)


def _with_loss(spec: FitSpec, start: Start | None) -> FitSpec:
    """The spec with a new loss module, or one in the state of `start`."""
    loss: Loss = spec.objective.loss.anew()
    if loss.module is not None and start is not None and start.loss_state:
        # another loss starts from its own state
        with suppress(UnsuitableState):
            load_arrays_(loss.module, start.loss_state)
    return replace(spec, objective=replace(spec.objective, loss=loss))


def _some_rows(data: TrainingData, spec: FitSpec) -> torch.Tensor:
    """A few rows, spread over the data, dense and in about the units of training; on the CPU."""
    scaling = identity_scaling(data.n_features, data.n_targets)
    if spec.standardize:
        scaling = spec.scaling(*moments_of_rows(data.rows(slice(0, SCALED_ROWS))))
    index = np.unique(np.linspace(0, data.n_samples - 1, TRIED_ROWS).astype(np.int64))
    X = data.X[index]
    return scaled_rows(X.toarray() if sp.issparse(X) else X, scaling, spec)
