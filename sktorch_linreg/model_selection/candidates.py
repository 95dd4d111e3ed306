"""Candidates of a search, the rows of its folds, and the specs of its fits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from torch.optim import lr_scheduler

from .._data.rows import TrainingData, n_held_out
from .._data.validation import VALIDATION_SET, validate_held_out, validate_rows
from .._errors import public_name
from .._estimator.base import BaseTorchRegressor
from .._modules.activations import ACTIVATIONS
from .._objective.losses import OwnLoss
from .._optim.construct import construct, defaults_of
from .._optim.schedules import SCHEDULES
from .._optim.updates import has_rule
from .._runtime.aliases import Array
from .._runtime.devices import DEVICES
from .._runtime.identity import identify, key_of
from .._runtime.seeds import resolve_seed
from .._runtime.sklearn_private import check_method_params, num_samples, safe_indexing, safe_split
from .._spec import FitSpec, RunContext, TrainingOptions
from .._training.batches import n_batches
from .._training.many_modules import NotStackable, Stackable, examine_stack
from .._training.stacked_result import StackResult
from ..linear import TorchLinearRegressor
from ..mlp import TorchMLPRegressor
from ..module import TorchRegressor

OURS = TorchLinearRegressor, TorchMLPRegressor, TorchRegressor
# up to these, integers are exact in floating point
LARGEST_CODE = {torch.float32: 2**24, torch.float64: 2**53}
# immutable types
PLAIN = str, int, float, np.generic
# copies of the training rows: standardised, and packed
COPIES = 2


class CannotStack(Exception):
    """A fit must be run individually; the message is the reason."""


@dataclass
class Candidate:
    """A candidate of a search: the estimator with its parameters."""

    index: int
    whole: Any
    last: BaseTorchRegressor
    seed: int
    before: Pipeline | None
    # equal for candidates with the same steps before the last
    before_key: Any


@dataclass(frozen=True)
class Side:
    """Rows of a fold to score models on; training rows only if training scores are requested."""

    X: Any
    y: Any
    params: Mapping[str, Any]
    # X, transformed by the fitted steps
    inner: Any

    def for_one_model(self) -> tuple[Any, Any, dict[str, Any]]:
        """Copies of rows, targets and metadata, which a scorer or a step may change in place."""
        params = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in self.params.items()}
        return copy_of_rows(self.X), copy_of_rows(self.y), params


@dataclass(frozen=True)
class Fold:
    """The rows of a fold, transformed by the steps before the last."""

    split: int
    train: TrainingData
    n_dim: int
    # rows before the steps, as a fit leaves them; scorers get copies
    train_side: Side
    test_side: Side
    # what the last step is fitted to
    inner_train: Any
    weight: Any
    validation: Mapping[str, Any]
    before: Pipeline | None
    # an estimator that has validated the rows
    template: BaseTorchRegressor

    @property
    def n_bytes(self) -> int:
        """Memory of the rows, and of their copies in training."""
        sides = self.train_side, self.test_side
        rows = [self.inner_train, *(X for side in sides for X in (side.X, side.inner))]
        kept = {id(X): X for X in rows if X is not None}
        return sum(map(n_bytes_of, kept.values())) + COPIES * n_bytes_of(self.train.X)


def make_candidate(base: Any, index: int, params: Mapping[str, Any], seed: int) -> Candidate:
    """The estimator of a candidate; raises CannotStack if it cannot be stacked."""
    whole = _with_params(base, params)
    last, before, key = whole, None, None
    if type(whole) is Pipeline:
        last = whole.steps[-1][1]
        if len(whole.steps) > 1:
            before = whole[:-1]
            mine = f"{whole.steps[-1][0]}__"
            key = tuple(
                (k, identify(v, k, "the steps before the last are refitted for it"))
                for k, v in sorted(params.items())
                if not k.startswith(mine)
            )
    if type(last) not in OURS:
        # a pipeline of another package, such as imbalanced-learn's, may change the rows
        name = public_name(type(last)) if isinstance(last, Pipeline) else type(last).__name__
        raise CannotStack(f"{name} is not an estimator of this package")
    if last.callbacks or getattr(last, "_skl_callbacks", None):
        raise CannotStack("callbacks must observe each fit")
    if last.checkpoint_dir is not None:
        raise CannotStack("checkpoint_dir is not supported in stacked fits")
    if getattr(last, "record_path", False):
        raise CannotStack("record_path=True is not supported in stacked fits")
    last._validate_params()
    if last.random_state is not None:
        seed = resolve_seed(last.random_state)
    return Candidate(index, whole, last, seed, before, key)


def _with_params(base: Any, params: Mapping[str, Any]) -> Any:
    """A clone of the estimator with these parameters."""
    if type(base) in OURS and all(map(_is_plain, (*base.get_params().values(), *params.values()))):
        # immutable parameters need no deep copy
        return copy.copy(base).set_params(**params)
    return clone(base).set_params(**clone(params, safe=False))


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, PLAIN)


def n_bytes_of(rows: Any) -> int:
    """Memory of an array or a sparse matrix; an estimate for data frames and nested lists."""
    if isinstance(rows, np.ndarray | torch.Tensor):
        return int(rows.nbytes)
    if sp.issparse(rows):
        # values and their indices
        return int(2 * rows.nnz * rows.dtype.itemsize)
    # look at the class, since a column of a data frame may be named shape
    shape = rows.shape if hasattr(type(rows), "shape") else (len(rows), _width(rows))
    return int(8 * np.prod(shape))


def _width(rows: Any) -> int:
    """Length of the longest of some nested lists or strings."""
    return max((len(row) if hasattr(row, "__len__") else 1 for row in rows), default=0)


def copy_of_rows(rows: Any) -> Any:
    """A copy of the rows that may be changed in place, like the splits of scikit-learn."""
    if isinstance(rows, list | tuple):
        return copy.deepcopy(rows)
    for name in ("copy", "clone"):
        # copy of arrays, matrices and pandas; clone of polars and tensors
        if hasattr(type(rows), name):
            return getattr(rows, name)()
    # last, since selecting all rows of a data frame in order may not copy
    return None if rows is None else safe_indexing(rows, np.arange(num_samples(rows)))


def make_fold(
    c: Candidate,
    split: int,
    rows: tuple[Any, Any],
    parts: tuple[Array, Array],
    fit_params: Mapping[str, Any],
    score_params: Mapping[str, Any],
    *,
    with_train: bool,
) -> Fold:
    """The rows of a fold for candidates with the same steps before the last.

    Steps may change rows in place, so each call of a step gets its own copy. `with_train` requests
    training rows to score on; as in scikit-learn, these are the rows passed to the fit, including
    any changes that it made to them.
    """
    X, y = rows
    if c.whole is c.last and type(X) is type(y) is np.ndarray:
        # what scikit-learn does with plain arrays, without its many checks
        train, test = map(np.asarray, parts)
        X_train, y_train, X_test, y_test = X[train], y[train], X[test], y[test]
    else:
        train, test = parts
        X_train, y_train = safe_split(c.whole, X, y, train)
        X_test, y_test = safe_split(c.whole, X, y, test, train)
        if isinstance(X, list | tuple):
            # the rows in such a list are shared by all folds
            X_train, X_test = copy_of_rows(X_train), copy_of_rows(X_test)
    inner_train, inner_test, scored_train, before = X_train, X_test, X_train, None
    if c.before is not None:
        before = clone(c.before)
        inner_train = before.fit_transform(X_train, y_train)
        inner_test = _through(before, copy_of_rows(X_test))
        if with_train:
            # training may use these rows directly, so they must not change any more
            X_train = copy_of_rows(X_train)
            scored_train = _through(before, copy_of_rows(X_train))
    if not with_train:
        X_train = scored_train = None
    weight, validation = _weight_and_validation(
        c, check_method_params(X, params=fit_params, indices=train)
    )
    template = _with_params(c.last, {})
    data, n_dim = validate_rows(template, inner_train, y_train, weight, reset=True)
    data = validate_held_out(template, data, n_dim, [validation.get(k) for k in VALIDATION_SET])
    if data.verify is not None:
        data.verify()
    scored = tuple(check_method_params(X, params=score_params, indices=i) for i in (train, test))
    return Fold(
        split,
        data,
        n_dim,
        Side(X_train, y_train, scored[0], scored_train),
        Side(X_test, y_test, scored[1], inner_test),
        inner_train,
        weight,
        validation,
        before,
        template,
    )


def _through(before: Pipeline, X: Any) -> Any:
    """Rows transformed by the fitted steps."""
    for _, step in before.steps:
        # one by one, since a pipeline with a stateless last step may not count as fitted
        if step is not None and step != "passthrough":
            X = step.transform(X)
    return X


def _weight_and_validation(
    c: Candidate, fit_params: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Sample weights and validation set among the parameters of fit; CannotStack for others."""
    in_pipeline = type(c.whole) is Pipeline
    prefix = f"{c.whole.steps[-1][0]}__" if in_pipeline else ""
    # steps before the last would have to transform a validation set
    known = [f"{prefix}sample_weight", *(() if in_pipeline else VALIDATION_SET)]
    others = [k for k in fit_params if k not in known]
    if others:
        raise CannotStack(f"fit is passed {', '.join(others)}")
    return fit_params.get(known[0]), {k: fit_params[k] for k in known[1:] if k in fit_params}


class Trials:
    """What trials of stacks of modules have found out, so that each is made once."""

    def __init__(self) -> None:
        self.known: dict[Any, Stackable | str] = {}

    def of(self, key: Any, data: TrainingData, spec: FitSpec) -> Stackable:
        """The result for a key that is equal for equal stacks; raises CannotStack if it failed."""
        if key not in self.known:
            try:
                self.known[key] = examine_stack(data, spec)
            except NotStackable as reason:
                self.known[key] = f"{_culprit(spec)}: {reason}"
        found = self.known[key]
        if isinstance(found, str):
            raise CannotStack(found)
        return found


def spec_and_shape(
    c: Candidate, data: TrainingData, known_scorer: bool, trials: Trials
) -> tuple[FitSpec, Any, Stackable | None]:
    """The spec of a fit, and what it has in common with the others of its stack.

    For a stack of vectorised calls, also what a trial has found out.
    """
    spec = _spec(c, data, known_scorer)
    shape = _shape(spec, data)
    if spec.is_exact or not _by_vmap(spec):
        return spec, shape, None
    found = trials.of(shape, data, spec)
    return replace(spec, behaviour=found.behaviour), shape, found


def _spec(c: Candidate, data: TrainingData, known_scorer: bool) -> FitSpec:
    """The spec of a fit; raises CannotStack if it cannot be stacked."""
    last = c.last
    if not hasattr(data.X, "strides"):
        raise CannotStack("X is sparse")
    spec = last._make_spec(data, RunContext()).with_training(seed=c.seed)
    cls: Any = spec.training.optimizer_class
    if cls is None:
        if not known_scorer:
            raise CannotStack("solved exactly, and the scorer needs each fitted estimator")
        return spec
    if not has_rule(cls, spec.training.optimizer_options, spec.device):
        raise CannotStack(f"optimizer={spec.training.optimizer!r} has no stacked version")
    if spec.device.type not in DEVICES:
        raise CannotStack(f"there are no stacks on {spec.device}")
    known = {schedule for schedule, _ in SCHEDULES.values()}
    if spec.training.schedule_class is not None and spec.training.schedule_class not in known:
        raise CannotStack(
            f"lr_schedule={spec.training.schedule_class.__name__} has no stacked version"
        )
    if spec.training.optimizer_options.keys() > {"lr"}:
        construct("optimizer", cls, [torch.zeros(1)], spec.training.optimizer_options)
    return spec


def _shape(spec: FitSpec, data: TrainingData) -> Any:
    """What the models of a stack must have in common."""
    if spec.is_exact:
        return spec.shape.fit_intercept, spec.standardize, spec.tol, spec.dtype, str(spec.device)
    known = {**defaults_of(spec.training.optimizer_class), **spec.training.optimizer_options}  # type: ignore[arg-type]
    flags = {k: v for k, v in known.items() if not _is_number(v)}
    whole = spec.training.batch_size >= data.n_samples
    schedule = {k: v for k, v in spec.training.schedule_options.items() if k != "max_lr"}
    if spec.training.schedule_class is lr_scheduler.ReduceLROnPlateau:
        # each model has its own schedule
        schedule = {}
    pointwise: Any = spec.objective.loss.pointwise
    apart = "models that use it are not stacked"
    if isinstance(pointwise, OwnLoss):
        loss_key: Any = identify(pointwise.make, "loss", apart)
    else:
        loss_key = key_of(pointwise.keywords, "loss__*", apart)
    return (
        data.n_features,
        data.n_targets,
        (spec.objective.loss.name, loss_key),
        spec.standardize,
        spec.dtype,
        str(spec.device),
        spec.training.optimizer_class,
        key_of(flags, "optimizer__*", apart),
        spec.training.schedule_class,
        key_of(schedule, "lr_schedule__*", apart),
        (spec.objective.positive, spec.objective.l1 > 0),
        spec.shape.fit_intercept,
        (spec.shape.hidden, spec.shape.activation, spec.shape.dropout > 0),
        _module_key(spec, data),
        spec.training.max_epochs,
        None if whole else spec.training.batch_size,
        _n_updates(data.n_samples, spec.training),
        spec.training.shuffle,
        spec.training.validation_fraction,
    )


def check_codes(data: TrainingData, spec: FitSpec) -> None:
    """Raise CannotStack if integers of these rows would be rounded in a stack."""
    recipe = spec.shape.module
    if recipe is None or not recipe.integers:
        return
    for rows in (data, data.held_out):
        if rows is not None and np.abs(rows.X).max(initial=0) > LARGEST_CODE[spec.dtype]:
            raise CannotStack("integers too large for the dtype of the stack")


def _by_vmap(spec: FitSpec) -> bool:
    """Whether gradients are not written out, so that modules are called by `torch.func.vmap`."""
    by_hand = ACTIVATIONS[spec.shape.activation].by_hand and spec.objective.loss.slope is not None
    return spec.shape.module is not None or not by_hand


def _culprit(spec: FitSpec) -> str:
    """The parameter because of which a stack needs vectorised calls."""
    if spec.shape.module is not None:
        return f"module={spec.shape.module.name}"
    loss = spec.objective.loss
    return f"loss={loss.name}" if loss.slope is None else f"activation={spec.shape.activation!r}"


def _module_key(spec: FitSpec, data: TrainingData) -> Any:
    """What models in a stack of vectorised calls must have in common."""
    recipe = spec.shape.module
    if not _by_vmap(spec):
        return None
    # rows of zeros, which would fill up shorter folds, may be wrong for a module
    about = data.n_samples, spec.training.seed
    if recipe is None:
        return about
    apart = "models that use it are not stacked"
    options = key_of(recipe.options, "module__*", apart)
    given = identify(recipe.given, "module", apart)
    return given, options, recipe.row_shape, recipe.integers, about


def _n_updates(n_rows: int, training: TrainingOptions) -> int:
    """Updates per epoch, after early stopping has held out its rows."""
    if training.validation_fraction is not None and training.batch_size < n_rows:
        n_rows -= n_held_out(n_rows, training.validation_fraction)
    return n_batches(n_rows, training.batch_size)


def _is_number(option: Any) -> bool:
    """Whether models of one stack may differ in this option."""
    return isinstance(option, float | int | tuple) and not isinstance(option, bool)


def tried(make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The result of a call, or the reason, as a string, why it failed."""
    try:
        return make(*args, **options)
    except CannotStack as reason:
        return str(reason)
    except Exception as error:
        return f"preparation failed with {type(error).__name__}"


def fitted(c: Candidate, fold: Fold, trained: StackResult, at: tuple[int, int], spec: Any) -> Any:
    """The estimator of a candidate, as if it had been fitted individually."""
    last: BaseTorchRegressor = clone(c.last)
    if spec.is_exact:
        # a scorer may need more than the coefficients
        return whole_of(c, fold, last.fit(fold.inner_train, fold.train_side.y, fold.weight))
    for name in ("n_features_in_", "feature_names_in_"):
        if name in vars(fold.template):
            setattr(last, name, getattr(fold.template, name))
    result = trained.fit_result(*at, spec)
    # the linear model keeps statistics of exact fits only
    last._statistics = None
    last._adopt(result, fold.train, spec, fold.n_dim)
    last._incremental = False
    return whole_of(c, fold, last)


def whole_of(c: Candidate, fold: Fold, last: BaseTorchRegressor) -> Any:
    """The fitted estimator, with the steps before it if there are any."""
    if type(c.whole) is not Pipeline:
        return last
    whole = clone(c.whole)
    steps = [] if fold.before is None else list(fold.before.steps)
    whole.steps = [*steps, (c.whole.steps[-1][0], last)]
    return whole
