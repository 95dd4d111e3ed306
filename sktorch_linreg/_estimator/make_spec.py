"""Make the spec of a fit from an estimator's parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .._data.overflow import check_penalty
from .._data.rows import TrainingData
from .._errors import check_options
from .._exact import solve
from .._objective.losses import resolve_loss
from .._optim.optimizers import optimizers_with, resolve_optimizer
from .._optim.schedules import resolve_schedule
from .._runtime.devices import resolve_device, resolve_dtype
from .._runtime.python_numbers import as_python
from .._runtime.seeds import resolve_seed
from .._spec import FitSpec, ModelShape, Objective, RunContext, TrainingOptions
from .._training.skorch_net import check_callbacks


def make_spec(
    estimator: Any,
    data: TrainingData,
    shape: ModelShape,
    context: RunContext,
    *,
    is_linear: bool = False,
) -> FitSpec:
    """Resolve the parameters of an estimator for these rows.

    Raises
    ------
    ValueError
        If a parameter is invalid, or two of them cannot be combined.
    """
    device = resolve_device(estimator.device)
    check_callbacks(estimator.callbacks)
    dtype = resolve_dtype(estimator.dtype, data.X, device)
    options = estimator._options_of("loss__")
    objective = Objective(
        resolve_loss(estimator.loss, options, data.n_targets, dtype, device),
        alpha=float(estimator.alpha),
        l1_ratio=float(estimator.l1_ratio),
        positive=is_linear and bool(estimator.positive),
    )
    if is_linear:
        training = _of_linear(estimator, data, objective, context)
    else:
        training = _training_options(estimator, estimator.optimizer, context)
    if data.held_out is not None:
        if not estimator.early_stopping:
            raise ValueError(
                "X_val and y_val were passed to fit, but early_stopping is False. Set "
                "early_stopping=True to monitor them and restore the best weights."
            )
        # no rows of the training set are held out
        training = replace(training, validation_fraction=None)
    spec = FitSpec(
        objective,
        shape,
        training,
        standardize=_standardize(estimator.standardize),
        tol=None if estimator.tol is None else float(estimator.tol),
        dtype=dtype,
        device=device,
    )
    if not spec.is_exact:
        check_penalty(objective.alpha, dtype)
    return with_batch_size(spec, estimator.batch_size, data.n_samples)


def _standardize(given: Any) -> bool | str:
    return str(given) if isinstance(given, str) else bool(given)


def with_batch_size(spec: FitSpec, batch_size: Any, n_samples: int) -> FitSpec:
    """Fill in the number of rows per update, given the total number."""
    sizes: dict[Any, int] = {None: n_samples, "auto": min(200, n_samples)}
    # L-BFGS needs the same objective in every step
    size = n_samples if spec.training.is_lbfgs else sizes.get(batch_size)
    return spec.with_training(batch_size=int(batch_size) if size is None else size)


def _asks_for_training(estimator: Any) -> bool:
    """Whether a linear model sets a parameter that only applies to gradient training."""
    values = estimator.lr, estimator.lr_schedule, estimator.batch_size, estimator.callbacks
    return any(v is not None for v in values) or estimator.early_stopping or estimator.record_path


def _of_linear(
    estimator: Any, data: TrainingData, objective: Objective, context: RunContext
) -> TrainingOptions:
    """Training options of a linear model, or those of an exact solver if one is used."""
    can_be_exact = solve.handles(data, objective, context)
    optimizer, starts_at_zero, chosen = estimator.optimizer, False, ""
    if isinstance(optimizer, str) and optimizer == "auto":
        chosen = ", chosen by optimizer='auto',"
        if _asks_for_training(estimator):
            optimizer = "adam"
        elif can_be_exact:
            optimizer = "lstsq"
        else:
            starts_at_zero = not context.incremental
            optimizer = "lbfgs" if starts_at_zero else "adam"
    if not (isinstance(optimizer, str) and optimizer == "lstsq"):
        names = ("auto", "lstsq")
        return _training_options(
            estimator, optimizer, context, names, chosen, starts_at_zero=starts_at_zero
        )
    if not can_be_exact:
        reason = f"only solves squared error, not loss={objective.loss.name!r}"
        if objective.loss.name == "squared_error":
            reason = (
                f"supports {data.n_features} columns only in fit, and not with an L1 penalty, "
                "with positive=True and sparse X, or within data_parallel()"
            )
        raise ValueError(
            f"optimizer='lstsq' {reason}. Choose optimizer='auto', 'lbfgs' or, in partial_fit, "
            "'adam'."
        )
    options = estimator._options_of("optimizer__")
    check_options("optimizer", "lstsq", options, (), optimizers_with, chosen)
    _schedule(estimator, 0.0)  # an unknown name is an error even if no schedule is used
    return TrainingOptions()


def _training_options(
    estimator: Any,
    optimizer: Any,
    context: RunContext,
    other_names: tuple[str, ...] = (),
    chosen: str = "",
    *,
    starts_at_zero: bool = False,
) -> TrainingOptions:
    """Options of an optimizer; error messages also list `other_names`."""
    given = estimator._options_of("optimizer__")
    name, cls, options = resolve_optimizer(optimizer, estimator.lr, given, other_names, chosen)
    schedule_class, schedule_options = _schedule(estimator, float(options.get("lr", 0.0)))
    fraction = float(estimator.validation_fraction) if estimator.early_stopping else None
    return TrainingOptions(
        optimizer=name,
        optimizer_class=cls,
        optimizer_options=options,
        schedule_class=schedule_class,
        schedule_options=schedule_options,
        max_epochs=1 if context.incremental else int(estimator.max_epochs),
        shuffle=bool(estimator.shuffle),
        n_iter_no_change=as_python(estimator.n_iter_no_change),
        validation_fraction=fraction,
        # if nothing is drawn, do not advance a RandomState that the user may share
        seed=0 if starts_at_zero else resolve_seed(estimator.random_state),
        starts_at_zero=starts_at_zero,
        record_path=bool(getattr(estimator, "record_path", False)) and not context.incremental,
    )


def _schedule(estimator: Any, lr: float) -> tuple[type[Any] | None, dict[str, Any]]:
    """Class and options of the learning-rate schedule."""
    options = estimator._options_of("lr_schedule__")
    tol = None if estimator.tol is None else float(estimator.tol)
    patience = as_python(estimator.n_iter_no_change)
    n_epochs = int(estimator.max_epochs)
    return resolve_schedule(estimator.lr_schedule, options, n_epochs, lr, tol, patience)
