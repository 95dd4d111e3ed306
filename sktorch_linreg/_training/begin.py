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
    Behaviour,
    UnsuitableState,
    continue_from_,
    examine,
    keeping_originals,
    load_arrays_,
    make_user_module,
)
from .._objective.losses import Loss
from .._runtime.aliases import Array
from .._runtime.processes import ProcessGroup
from .._runtime.seeds import (
    code_generator,
    copy_generators,
    dropout_generator,
    main_generator,
    make_generator,
    seeded_torch,
    torch_draws_from,
)
from .._spec import FitSpec, RunContext, Start
from .batches import TabularDataset, scaled_rows
from .prepare import Prepared, dropout_groups, moments_of_rows
from .unit_sizes import shrink_large_units_

# rows whose statistics scale those on which a module is tried, and among which these are chosen
SCALED_ROWS = 1000
# entries of the rows among which they are chosen
TRIED_ENTRIES = 2**20


@dataclass(frozen=True)
class Beginning:
    """The module to train, the spec with the loss to train, and the generators of the run.

    `order` draws the order of rows, and `masks` the dropout masks of a network. Where code of the
    user's runs, torch's global generators stand for `of_code`: one of the CPU, which is `order` if
    the module draws in training, and one of the device.
    """

    module: ScaledModule
    spec: FitSpec
    order: torch.Generator
    masks: torch.Generator | None
    of_code: list[torch.Generator]

    @property
    def generators(self) -> dict[str, torch.Generator | None]:
        """All generators, by the names under which their states are kept."""
        of_code = {f"code_{i}": generator for i, generator in enumerate(self.of_code)}
        return {"generator": self.order, "dropout": self.masks, **of_code}

    def restore(self, state: Mapping[str, Any] | None, rank: int) -> None:
        """Continue with the generators of an earlier run of the same process."""
        if state is None or state.get("rank", 0) != rank:
            return
        for name, generator in self.generators.items():
            if generator is not None and state.get(name) is not None:
                generator.set_state(torch.from_numpy(np.asarray(state[name]).copy()))


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
    if spec.objective.loss.own:
        # its constructor may draw, after that of the module
        with torch_draws_from([generator], spec.device):
            spec = _with_loss(spec, start)
    # all processes start from the same initial weights, but each draws its own row orders
    order = main_generator(seed, rank) if rank else generator
    masks = dropout_generator(seed, spec.device, rank)
    module.dropout.begin(masks, dropout_groups(rows, spec, context))
    return Beginning(module, spec, order, masks, _generators_of_code(spec, rank))


def _generators_of_code(spec: FitSpec, rank: int) -> list[torch.Generator]:
    devices = ["cpu", *([] if spec.device.type == "cpu" else [spec.device])]
    return [code_generator(spec.training.seed, device, rank) for device in devices]


def begin_user_module(
    data: TrainingData,
    spec: FitSpec,
    context: RunContext,
    start: Start | None,
    behaviour: Behaviour | None = None,
) -> Beginning:
    """A new module of the user's, or one in the state of `start`.

    The spec says how the module behaves on a few of the rows, unless `behaviour` is known. The
    generators continue from where the constructors of a new module and loss have left torch's.
    """
    recipe = spec.shape.module
    assert recipe is not None
    rows = some_rows(data, spec)
    seed, rank, device = spec.training.seed, context.group.rank, spec.device
    log_link = spec.objective.loss.log_link
    # what a constructor draws into attributes, which no state holds, stays as in the first fit
    with (
        seeded_torch(seed if start is None else start.seed, device),
        keeping_originals(recipe),
    ):
        module = make_user_module(recipe, rows, spec.dtype, device, log_link=log_link)
        spec = _with_loss(spec, start)
        generators = copy_generators(device)
        if start is not None:
            continue_from_(module, start.module_state)
        if behaviour is None:
            behaviour = examine(module, recipe, rows)
    if start is not None or rank:
        # each process draws its own row orders
        generators = [make_generator(seed, 3 * rank, g.device) for g in generators]
    order, of_code = generators[0], generators
    if not behaviour.draws:
        # draws that the trial did not see leave the order alone, as those of other threads do
        of_code = _generators_of_code(spec, rank)
    return Beginning(module, replace(spec, behaviour=behaviour), order, None, of_code)


def agree_on_module(begun: Beginning, group: ProcessGroup) -> Beginning:
    """What the module was seen to do in any of the processes, each of which tried its own rows.

    Raises
    ------
    ValueError
        If its parameters have other names or shapes on another process.
    """
    module = begun.module

    def facts() -> tuple[Behaviour, list[tuple[str, tuple[int, ...]]]]:
        return begun.spec.behaviour, [(n, tuple(p.shape)) for n, p in module.named_parameters()]

    found = group.gather(facts)
    shapes = [dict(part) for _, part in found]
    for rank, other in enumerate(shapes[1:], start=1):
        for name in {**shapes[0], **other}:
            mine, theirs = shapes[0].get(name), other.get(name)
            if mine != theirs:
                raise ValueError(
                    "The processes of data_parallel() are fitting different models: the shape of "
                    f"the parameter {name.removeprefix('module.')} is {mine} on process 0 and "
                    f"{theirs} on process {rank}."
                )
    behaviour = Behaviour(*map(any, zip(*(part for part, _ in found), strict=True)))
    return replace(begun, spec=replace(begun.spec, behaviour=behaviour))


def runs_code(spec: FitSpec) -> bool:
    """Whether code of the user's other than callbacks trains, and may draw random numbers."""
    optimizer: Any = spec.training.optimizer_class
    schedule: Any = spec.training.schedule_class
    classes = [cls for cls in (optimizer, schedule) if cls is not None]
    return (
        spec.shape.module is not None
        or spec.objective.loss.own
        or not all(cls.__module__.startswith("torch.") for cls in classes)
    )


def _with_loss(spec: FitSpec, start: Start | None) -> FitSpec:
    """The spec with a new loss module, or one in the state of `start`."""
    loss: Loss = spec.objective.loss.anew()
    if loss.module is not None and start is not None and start.loss_state:
        # another loss starts from its own state
        with suppress(UnsuitableState):
            load_arrays_(loss.module, start.loss_state)
    return replace(spec, objective=replace(spec.objective, loss=loss))


def some_rows(data: TrainingData, spec: FitSpec) -> torch.Tensor:
    """A few distinct rows, dense and in about the units of training; on the CPU."""
    scaling = identity_scaling(data.n_features, data.n_targets)
    if spec.standardize:
        scaling = spec.scaling(*moments_of_rows(data.rows(slice(0, SCALED_ROWS))))
    some = min(SCALED_ROWS, max(TRIED_ROWS, TRIED_ENTRIES // data.n_features))
    X = data.X[_spread(data.n_samples, some)]
    X = X.toarray() if sp.issparse(X) else X
    # equal rows would tell nothing
    _, first = np.unique(X, axis=0, return_index=True)
    X = X[np.sort(first)[_spread(len(first), TRIED_ROWS)]]
    return scaled_rows(X, scaling, spec)


def _spread(n: int, n_wanted: int) -> Array:
    """Up to so many of the numbers below `n`, spread evenly."""
    index: Array = np.unique(np.linspace(0, n - 1, n_wanted).astype(np.int64))
    return index
