"""Training by gradient descent: from rows and a specification to fitted layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from .._data.rows import TrainingData
from .._data.scaling import Scaling, reciprocal, rewrite_layers, to_user_units
from .._errors import TrainingDivergedError
from .._modules.network import MLPModule, make_module
from .._objective.losses import untrained_parameters
from .._optim.state import schedule_state
from .._optim.updates import rate_of
from .._runtime.aliases import Layers
from .._runtime.identity import fingerprint, identify
from .._runtime.processes import safely
from .._runtime.seeds import make_generator
from .._runtime.threads import threads_for
from .._spec import FitResult, FitSpec, Start
from .duality_gap import check_minimum
from .flat_parameters import FlatParameters
from .loop import EpochListener, Run
from .prepare import Prepared, dropout_groups, prepare
from .skorch_net import NetDataset, RegressionNet, make_net
from .stopping import Monitor
from .unit_sizes import calm_


def _kept_for(spec: FitSpec) -> tuple[dict[str, Any], str]:
    """What has to be as it was for an optimizer's state to be of use, and for its rates to go on.

    The learning rate and the schedule may change; they then begin from their start.
    """
    options = dict(spec.optimizer_options)
    lr = options.pop("lr", None)

    def digest(parameter: str, cls: Any, given: Mapping[str, Any], what: str) -> str:
        anew = f"{what} begins anew in each partial_fit" if spec.incremental else ""
        parts = [(k, identify(v, f"{parameter}__{k}", anew).digest) for k, v in given.items()]
        return fingerprint((identify(cls, parameter, anew).digest, sorted(parts)))

    optimizer = digest("optimizer", spec.optimizer_class, options, "the optimizer's state")
    rates = {"lr": lr, **spec.schedule_options}
    schedule = digest("lr_schedule", spec.schedule_class, rates, "the schedule")
    fits = {
        "optimizer": spec.optimizer,
        "options": optimizer,
        "fit_intercept": spec.fit_intercept,
        "standardize": spec.standardize,
    }
    return fits, schedule


def train(
    data: TrainingData, spec: FitSpec, start: Start | None = None, task: EpochListener | None = None
) -> FitResult:
    """Minimise the objective by gradient descent.

    Parameters
    ----------
    data : TrainingData
        Rows of the fit, or of one `partial_fit`.
    spec : FitSpec
        Objective, optimizer and schedule.
    start : Start, optional
        Layers to go on from, with optimizer state and running moments for `partial_fit`.
    task : EpochListener, optional
        Is told of each epoch.

    Returns
    -------
    FitResult
        Layers in the user's units, curves, and the net.

    Raises
    ------
    TrainingDivergedError
        If the loss of an epoch is not finite.
    """
    prepared = prepare(data, spec, None if start is None else start.moments)
    rows, held_out, scaling = prepared.rows, prepared.held_out, prepared.scaling
    generator = make_generator(spec.seed)
    module = _start_module(rows, spec, scaling, generator, start)
    module.scale_input = sp.issparse(rows.X) and prepared.stats is None
    state = None if start is None else start.state
    fits, rates = _kept_for(spec)
    if state is not None:
        same_rates = state["rates"] == rates
        state = {**state, "same_rates": same_rates} if state["fits"] == fits else None
    generator, dropout_generator = _generators(spec, generator, state)
    module.dropout.begin(dropout_generator, dropout_groups(rows, spec))
    # a net that outlives the fit, or that a callback pickles, must not hold a process group
    alone = replace(spec, processes=None)
    net = safely(spec.processes, lambda: make_net(module, alone, state))
    training, validation = prepared.datasets(spec, NetDataset)
    if start is not None and start.x_scale is not None:
        growth = scaling.x_scale * reciprocal(start.x_scale)
        calm_(module, net.objective_.flat.values, training, start.layers, growth, spec)
    flat, monitor = net.objective_.flat, Monitor(spec, validation is not None)
    order = generator if spec.shuffle else None
    path = [flat.values.cpu().clone()] if spec.record_path else None
    run = Run(monitor, validation, order, path, _rows_to_show(rows, held_out, spec))
    run.task, run.checkpoint, run.share = task, spec.checkpoint, prepared.share
    run.warnings += untrained_parameters(spec.loss)
    if prepared.stats is None:
        # else the few rows stand for those of all processes
        net.objective_.processes = spec.processes

    def so_far() -> FitResult:
        """What the fit would be if it ended now."""
        best = monitor.best_values
        result = _result(flat.values if best is None else best, scaling, net, spec)
        result.moments, result.warnings = prepared.moments, run.warnings
        return result

    run.so_far = so_far
    batch = _rows_per_step(prepared, spec)
    with threads_for(batch * sum(w.numel() for w in module.weights)):
        net.train(training, run)
    if spec.processes is not None:
        # where a few rows stand for all each process trains for itself
        spec.processes.from_first_(flat.values)
    _check_finite(flat, monitor, net)
    result = so_far()
    result.warnings += _check_minimum(net, training, result.trained, scaling)
    result.state = {"fits": fits, "rates": rates, **_state_of(net, generator, spec)}
    result.net = net
    flat.release()
    net.run = net.start = net.objective_ = None
    module.finish_()
    return result


def _state_of(net: RegressionNet, generator: torch.Generator, spec: FitSpec) -> dict[str, Any]:
    """What a later run needs to go on from this one."""
    return {
        "optimizer": net.optimizer_updates.state(),
        "schedule": schedule_state(net.schedule_),
        "rank": 0 if spec.processes is None else spec.processes.rank,
        "generator": generator.get_state().numpy().copy(),
        "dropout": net.module_.dropout.generator.get_state().cpu().numpy().copy(),
    }


def _check_minimum(
    net: RegressionNet, rows: NetDataset, trained: Layers, scaling: Scaling
) -> list[tuple[str, type[Warning]]]:
    """A warning where L-BFGS has not come near the minimum of a loss with kinks."""
    spec, width = net.spec, net.objective_.width
    told = any(category is ConvergenceWarning for _, category in net.run.warnings)
    convex = spec.is_lbfgs and not spec.hidden and spec.loss.branches is not None
    if not convex or width is None or told or spec.processes or spec.validation_fraction:
        return []
    return check_minimum(rows, trained, scaling, spec, width)


def _rows_per_step(prepared: Prepared, spec: FitSpec) -> int:
    """Rows of an update in this process, or about so many, alike on all processes of a group."""
    share = prepared.share
    if share is None:
        return min(spec.batch_size, prepared.rows.n_samples)
    return min(spec.batch_size, share.n_samples) // share.processes.size


def _generators(
    spec: FitSpec, first: torch.Generator, state: Mapping[str, Any] | None
) -> tuple[torch.Generator, torch.Generator]:
    """Where orders and dropout masks come from: that of the initial weights, and another.

    Other processes have orders of their own, after the same initial weights.
    """
    rank = 0 if spec.processes is None else spec.processes.rank
    order = make_generator(spec.seed, stream=3 * rank) if rank else first
    masks = make_generator(spec.seed, stream=3 * rank + 2, device=spec.device)
    if state is not None and state.get("rank", 0) == rank:
        order.set_state(torch.from_numpy(np.asarray(state["generator"]).copy()))
        if state.get("dropout") is not None:
            masks.set_state(torch.from_numpy(np.asarray(state["dropout"]).copy()))
    return order, masks


def _result(values: Tensor, scaling: Scaling, net: RegressionNet, spec: FitSpec) -> FitResult:
    """The result of a run with these parameters."""
    run, flat = net.run, net.objective_.flat
    monitor: Monitor = run.monitor
    trained = flat.layers(values.clone())
    return FitResult(
        layers=to_user_units(trained, scaling),
        scaling=scaling,
        loss=monitor.loss_curve[-1] if monitor.loss_curve else np.nan,
        loss_curve=list(monitor.loss_curve),
        validation_loss_curve=list(monitor.validation_curve),
        best_loss=monitor.best,
        n_iter=len(monitor.loss_curve),
        optimizer=spec.optimizer,
        trained=trained,
        history=net.plain_history(),
        path=[to_user_units(flat.layers(values), scaling) for values in run.path or []],
    )


def _start_module(
    rows: TrainingData,
    spec: FitSpec,
    scaling: Scaling,
    generator: torch.Generator,
    start: Start | None,
) -> MLPModule:
    module = make_module(
        (rows.n_features, *spec.hidden, rows.n_targets),
        spec.activation,
        spec.dropout,
        bias=spec.fit_intercept,
        log_link=spec.loss.log_link,
        dtype=spec.dtype,
        device=spec.device,
    )
    if start is None and spec.starts_at_zero:
        module.zero_()
    elif start is None:
        module.initialize_(generator)
    else:
        module.load_(rewrite_layers(start.layers, start.scaling, scaling))
    module.set_scaling_(scaling)
    if spec.positive:
        with torch.no_grad():
            for weight in module.weights:
                weight.clamp_(min=0.0)
    return module


def _rows_to_show(
    rows: TrainingData, held_out: TrainingData | None, spec: FitSpec
) -> dict[str, NetDataset | None]:
    """Rows in the user's units, for callbacks."""
    if not spec.callbacks:
        return {"dataset_train": None, "dataset_valid": None}
    return {
        "dataset_train": NetDataset.raw(rows.X, rows.y),
        "dataset_valid": None if held_out is None else NetDataset.raw(held_out.X, held_out.y),
    }


def _check_finite(flat: FlatParameters, monitor: Monitor, net: RegressionNet) -> None:
    """The last update can diverge after the last loss was seen."""
    if not bool(torch.isfinite(flat.values).all()):
        lr = rate_of(net.optimizer_updates.group)
        raise TrainingDivergedError(len(monitor.loss_curve), lr)
