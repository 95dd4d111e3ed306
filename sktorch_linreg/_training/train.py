"""Training by gradient descent: from rows and a specification to fitted layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.exceptions import ConvergenceWarning

from .._data.rows import TrainingData
from .._data.scaling import Scaling, reciprocal, rewrite_layers
from .._errors import TrainingDivergedError
from .._modules.initialize import start_weights_
from .._modules.network import MLPModule, make_module
from .._objective.losses import untrained_parameters
from .._optim.state import schedule_state
from .._optim.updates import rate_of
from .._runtime.aliases import Layers
from .._runtime.identity import fingerprint, identify
from .._runtime.processes import ProcessGroup
from .._runtime.seeds import dropout_generator, main_generator
from .._runtime.threads import threads_for
from .._spec import FitResult, FitSpec, RunContext, Start
from .duality_gap import check_minimum
from .lbfgs_convergence import LbfgsConvergence
from .module_objective import FIRST_WIDTH
from .one_model import OneModel, RunState
from .prepare import Prepared, dropout_groups, prepare
from .skorch_net import NetDataset, make_net
from .stopping import Monitor
from .unit_sizes import shrink_large_units_


def _kept_for(spec: FitSpec, context: RunContext) -> tuple[dict[str, Any], str]:
    """What must be unchanged to reuse an optimizer's state, and to continue its learning rates.

    The learning rate and the schedule may change; they then start over.
    """
    options = dict(spec.training.optimizer_options)
    lr = options.pop("lr", None)

    def digest(parameter: str, cls: Any, given: Mapping[str, Any], what: str) -> str:
        anew = f"{what} is reset in each partial_fit" if context.incremental else ""
        parts = [(k, identify(v, f"{parameter}__{k}", anew).digest) for k, v in given.items()]
        return fingerprint((identify(cls, parameter, anew).digest, sorted(parts)))

    optimizer = digest("optimizer", spec.training.optimizer_class, options, "the optimizer's state")
    rates = {"lr": lr, **spec.training.schedule_options}
    schedule = digest("lr_schedule", spec.training.schedule_class, rates, "the schedule")
    fits = {
        "optimizer": spec.training.optimizer,
        "options": optimizer,
        "fit_intercept": spec.shape.fit_intercept,
        "standardize": spec.standardize,
    }
    return fits, schedule


def train(
    data: TrainingData,
    spec: FitSpec,
    context: RunContext,
    start: Start | None = None,
) -> FitResult:
    """Minimise the objective by gradient descent.

    Parameters
    ----------
    data : TrainingData
        Rows of the fit, or of one `partial_fit`.
    spec : FitSpec
        Objective, shape of the model, optimizer and schedule.
    context : RunContext
        Processes, callbacks, checkpoint.
    start : Start, optional
        Layers to continue from, with optimizer state and running moments for `partial_fit`.

    Returns
    -------
    FitResult
        Layers in the user's units, curves, and the net.

    Raises
    ------
    TrainingDivergedError
        If the loss of an epoch is not finite.
    """
    prepared = prepare(data, spec, context, None if start is None else start.moments)
    rows, scaling, group = prepared.rows, prepared.scaling, context.group
    generator = main_generator(spec.training.seed)
    module = _start_module(rows, spec, scaling, generator, start)
    module.scale_input = sp.issparse(rows.X) and prepared.stats is None
    state = None if start is None else start.state
    fits, rates = _kept_for(spec, context)
    if state is not None:
        same_rates = state["rates"] == rates
        state = {**state, "same_rates": same_rates} if state["fits"] == fits else None
    order, masks = _generators(spec, group, generator, state)
    module.dropout.begin(masks, dropout_groups(rows, spec, context))
    net = group.run(lambda: make_net(module, spec, context, state))
    objective, flat = net.objective_, net.objective_.flat
    training, validation = prepared.datasets(spec, context, NetDataset)
    if start is not None and start.x_scale is not None:
        growth = scaling.x_scale * reciprocal(start.x_scale)
        shrink_large_units_(
            module, flat.values, training, start.layers, growth, spec.objective, group
        )
    monitor = Monitor.of_one(spec, validation is not None)
    run = RunState(
        LbfgsConvergence(monitor.rounding) if spec.training.is_lbfgs else None,
        validation,
        order=order if spec.training.shuffle else None,
        path=[flat.values.cpu().clone()] if spec.training.record_path else None,
        shown=_rows_to_show(prepared, context),
        rows=training,
        share=prepared.share,
        scaling=scaling,
        moments=prepared.moments,
        warnings=untrained_parameters(spec.objective.loss),
    )
    if prepared.stats is None:
        # condensed rows, where stats is set, already cover all processes
        objective.group = group
    # line searches fail at kinks, so L-BFGS minimises a sequence of ever narrower envelopes
    objective.smooth_at(FIRST_WIDTH if spec.training.is_lbfgs else None)
    loop = OneModel(spec, context, module, objective, net.stepper, net, monitor, run)
    batch = _rows_per_step(prepared, spec)
    with threads_for(batch * sum(w.numel() for w in module.weights)):
        net.train(loop)
    # with condensed rows each process trains independently
    group.broadcast_(flat.values)
    _check_finite(loop)
    result = loop.so_far()
    result.warnings += _check_minimum(loop, result.trained)
    result.state = {"fits": fits, "rates": rates, **_state_of(loop, order)}
    result.net = net
    flat.release()
    net.let_go()
    module.finish_()
    return result


def _state_of(loop: OneModel, order: torch.Generator) -> dict[str, Any]:
    """The state that a later run needs to continue from this one."""
    masks = loop.module.dropout.generator
    return {
        "optimizer": loop.stepper.updates.state(),
        "schedule": schedule_state(loop.stepper.schedule),
        "rank": loop.context.group.rank,
        "generator": order.get_state().numpy().copy(),
        "dropout": None if masks is None else masks.get_state().cpu().numpy().copy(),
    }


def _check_minimum(loop: OneModel, trained: Layers) -> list[tuple[str, type[Warning]]]:
    """A warning if L-BFGS stopped far above the minimum of a loss with kinks."""
    spec, run, width = loop.spec, loop.state, loop.objective.width
    warned = any(category is ConvergenceWarning for _, category in run.warnings)
    has_kinks = spec.objective.loss.branches is not None
    convex = spec.training.is_lbfgs and not spec.shape.hidden and has_kinks
    all_rows = run.validation is None and loop.context.group.size == 1
    if not convex or width is None or warned or not all_rows:
        return []
    return check_minimum(run.rows, trained, run.scaling, spec.objective, width)


def _rows_per_step(prepared: Prepared, spec: FitSpec) -> int:
    """Approximate rows per update in this process, the same for all processes of a group."""
    share = prepared.share
    return min(spec.training.batch_size, share.n_samples) // share.group.size


def _generators(
    spec: FitSpec, group: ProcessGroup, first: torch.Generator, state: Mapping[str, Any] | None
) -> tuple[torch.Generator, torch.Generator]:
    """The generators of row orders and dropout masks; `first` has drawn the initial weights.

    All processes start from the same initial weights, but each draws its own row orders.
    """
    rank, seed = group.rank, spec.training.seed
    order = main_generator(seed, rank) if rank else first
    masks = dropout_generator(seed, spec.device, rank)
    if state is not None and state.get("rank", 0) == rank:
        order.set_state(torch.from_numpy(np.asarray(state["generator"]).copy()))
        if state.get("dropout") is not None:
            masks.set_state(torch.from_numpy(np.asarray(state["dropout"]).copy()))
    return order, masks


def _start_module(
    rows: TrainingData,
    spec: FitSpec,
    scaling: Scaling,
    generator: torch.Generator,
    start: Start | None,
) -> MLPModule:
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
    start_weights_(module, generator, layers, zero=zero, positive=positive)
    module.set_scaling_(scaling)
    return module


def _rows_to_show(prepared: Prepared, context: RunContext) -> dict[str, NetDataset | None]:
    """Rows in the user's units, for callbacks."""
    rows, held_out = prepared.rows, prepared.held_out
    if not context.callbacks:
        return {"dataset_train": None, "dataset_valid": None}
    return {
        "dataset_train": NetDataset.raw(rows.X, rows.y),
        "dataset_valid": None if held_out is None else NetDataset.raw(held_out.X, held_out.y),
    }


def _check_finite(loop: OneModel) -> None:
    """Raise if the last update diverged, after the last loss was computed."""
    if not loop.weights.finite():
        lr = rate_of(loop.stepper.updates.group)
        raise TrainingDivergedError(len(loop.state.loss_curve), lr)
