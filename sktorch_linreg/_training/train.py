"""Training by gradient descent: from rows and a specification to fitted layers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import scipy.sparse as sp
from sklearn.exceptions import ConvergenceWarning

from .._data.rows import TrainingData
from .._errors import TrainingDivergedError
from .._optim.state import schedule_state
from .._optim.updates import rate_of
from .._runtime.aliases import Layers
from .._runtime.identity import fingerprint, identify
from .._runtime.seeds import torch_draws_from
from .._runtime.threads import threads_for
from .._spec import FitResult, FitSpec, RunContext, Start
from .begin import Beginning, agree_on_module, begin_network, begin_user_module, runs_code
from .duality_gap import check_minimum
from .lbfgs_convergence import LbfgsConvergence
from .module_objective import FIRST_WIDTH
from .one_model import OneModel, RunState
from .prepare import Prepared, prepare
from .skorch_net import NetDataset, make_net
from .stopping import Monitor


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
    fits, rates = _kept_for(spec, context)
    state = None if start is None else start.state
    if state is not None:
        same_rates = state["rates"] == rates
        state = {**state, "same_rates": same_rates} if state["fits"] == fits else None
    if spec.shape.module is None:
        result = _train(data, spec, context, start, state, None)
    else:
        begun = context.group.run(partial(begin_user_module, data, spec, context, start))
        begun = agree_on_module(begun, context.group)
        result = _train(data, begun.spec, context, start, state, begun)
        result.seed = spec.training.seed if start is None else start.seed
    result.state = {"fits": fits, "rates": rates, **(result.state or {})}
    return result


def _train(
    data: TrainingData,
    spec: FitSpec,
    context: RunContext,
    start: Start | None,
    state: Mapping[str, Any] | None,
    begun: Beginning | None,
) -> FitResult:
    """As `train`, from the `state` of an earlier run; a network begins after its rows."""
    prepared = prepare(data, spec, context, start)
    rows, scaling, group = prepared.rows, prepared.scaling, context.group
    training, validation = prepared.datasets(spec, context, NetDataset)
    if begun is None:
        begun = begin_network(prepared, training, spec, context, start)
    else:
        begun.module.set_scaling_(scaling)
    begun.restore(state, group.rank)
    spec, module = begun.spec, begun.module
    module.scale_input = sp.issparse(rows.X) and prepared.stats is None
    # constructors of optimizers, schedules and callbacks may draw
    code = runs_code(spec) or context.callbacks
    with torch_draws_from(begun.of_code, spec.device) if code else nullcontext():
        net = group.run(lambda: make_net(module, spec, context, state))
    objective, flat = net.objective_, net.objective_.flat
    monitor = Monitor.of_one(spec, validation is not None)
    run = RunState(
        LbfgsConvergence(monitor.rounding) if spec.training.is_lbfgs else None,
        validation,
        order=begun.order if spec.training.shuffle else None,
        of_code=begun.of_code,
        generators=list(begun.generators.values()),
        path=[flat.values.cpu().clone()] if spec.training.record_path else None,
        shown=_rows_to_show(prepared, spec, context),
        rows=training,
        share=prepared.share,
        scaling=scaling,
        moments=prepared.moments,
    )
    if prepared.stats is None:
        # condensed rows, where stats is set, already cover all processes
        objective.group = group
    # line searches fail at kinks, so L-BFGS minimises a sequence of ever narrower envelopes
    objective.smooth_at(FIRST_WIDTH if spec.training.is_lbfgs else None)
    loop = OneModel(spec, context, module, objective, net.stepper, net, monitor, run)
    batch = _rows_per_step(prepared, spec)
    with threads_for(batch * flat.weights.numel()):
        net.train(loop)
    # with condensed rows each process trains independently
    group.broadcast_(flat.values)
    _check_finite(loop)
    result = loop.so_far()
    result.warnings += _check_minimum(loop, result.trained)
    result.state = _state_of(loop, begun)
    result.net = net
    flat.release()
    net.let_go()
    module.finish_()
    return result


def _state_of(loop: OneModel, begun: Beginning) -> dict[str, Any]:
    """The state that a later run needs to continue from this one."""
    states = {
        name: None if generator is None else generator.get_state().cpu().numpy().copy()
        for name, generator in begun.generators.items()
    }
    return {
        "optimizer": loop.stepper.updates.state(),
        "schedule": schedule_state(loop.stepper.schedule),
        "rank": loop.context.group.rank,
        "shapes": loop.weights.trained.shapes,
        **states,
    }


def _check_minimum(loop: OneModel, trained: Layers) -> list[tuple[str, type[Warning]]]:
    """A warning if L-BFGS stopped far above the minimum of a loss with kinks."""
    spec, run, width = loop.spec, loop.state, loop.objective.width
    warned = any(category is ConvergenceWarning for _, category in run.warnings)
    has_kinks = spec.objective.loss.branches is not None
    convex = spec.training.is_lbfgs and spec.shape.is_linear and has_kinks
    all_rows = run.validation is None and loop.context.group.size == 1
    if not convex or width is None or warned or not all_rows:
        return []
    return check_minimum(run.rows, trained, run.scaling, spec.objective, width)


def _rows_per_step(prepared: Prepared, spec: FitSpec) -> int:
    """Approximate rows per update in this process, the same for all processes of a group."""
    share = prepared.share
    return min(spec.training.batch_size, share.n_samples) // share.group.size


def _rows_to_show(
    prepared: Prepared, spec: FitSpec, context: RunContext
) -> dict[str, NetDataset | None]:
    """Rows in the user's units, for callbacks."""
    rows, held_out = prepared.rows, prepared.held_out
    if not context.callbacks:
        return {"dataset_train": None, "dataset_valid": None}

    def in_their_shape(data: TrainingData) -> NetDataset:
        X = data.X
        if spec.shape.module is not None and not sp.issparse(X):
            X = X.reshape(-1, *spec.shape.module.row_shape)
        return NetDataset.raw(X, data.y)

    return {
        "dataset_train": in_their_shape(rows),
        "dataset_valid": None if held_out is None else in_their_shape(held_out),
    }


def _check_finite(loop: OneModel) -> None:
    """Raise if the last update diverged, after the last loss was computed."""
    if not loop.weights.finite():
        lr = rate_of(loop.stepper.updates.group)
        raise TrainingDivergedError(len(loop.state.loss_curve), lr)
