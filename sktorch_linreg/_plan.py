"""Which fits of a search can be trained together, and why others cannot."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from ._backprop import DEVICES
from ._base import BaseTorchRegressor
from ._batched import steps_per_epoch
from ._compat import check_method_params, safe_split
from ._data import resolve_seed, validate_rows
from ._modules import ACTIVATIONS
from ._optimizers import SCHEDULES, construct, defaults_of
from ._types import Array, FitSpec, TrainingData
from ._updates import has_rule
from .linear import TorchLinearRegressor
from .mlp import TorchMLPRegressor

# numbers that a stack works on at a time, so that they stay in the cache
STACK_ENTRIES = 2**20
# vectors of parameters that an update reads and writes
VECTORS = 8


class CannotStack(Exception):
    """A fit has to be run alone; the message says why, after "because"."""


@dataclass
class Candidate:
    """A candidate of a search: the estimator with its parameters."""

    index: int
    whole: Any
    last: BaseTorchRegressor
    seed: int
    before: Pipeline | None
    # equal for candidates whose steps before the last are the same
    before_key: Any


@dataclass(frozen=True)
class Cell:
    """The rows of a fold, as they come out of the steps before the last."""

    split: int
    train: TrainingData
    n_dim: int
    # what scorers are given
    X_train: Any
    y_train: Any
    X_test: Any
    y_test: Any
    score_params: tuple[Mapping[str, Any], Mapping[str, Any]]
    # for the last step alone
    inner_train: Any
    inner_test: Any
    weight: Any
    before: Pipeline | None
    # an estimator that has seen the rows
    template: BaseTorchRegressor


@dataclass
class Stack:
    """Fits of one shape; `lanes[g]` are candidates that see the rows of `cells[g]`."""

    cells: list[Cell]
    lanes: list[list[Candidate]]
    specs: list[list[FitSpec]]
    # whether they are solved from one decomposition instead of trained
    exact: bool = False

    @property
    def n_fits(self) -> int:
        return sum(len(row) for row in self.lanes)


@dataclass
class Plan:
    """Stacks, and what is fitted alone as (candidate, split) pairs, with the reasons."""

    stacks: list[Stack]
    alone: list[tuple[int, int]]
    reasons: Counter[str]


def make_candidate(base: Any, index: int, params: Mapping[str, Any], seed: int) -> Candidate:
    """The estimator of a candidate; raises CannotStack where it is not one of ours."""
    whole = clone(base).set_params(**clone(params, safe=False))
    last, before, key = whole, None, None
    if type(whole) is Pipeline:
        last = whole.steps[-1][1]
        if len(whole.steps) > 1:
            before = whole[:-1]
            mine = f"{whole.steps[-1][0]}__"
            key = tuple(
                (k, _identity(v)) for k, v in sorted(params.items()) if not k.startswith(mine)
            )
    if type(last) not in (TorchLinearRegressor, TorchMLPRegressor):
        raise CannotStack(f"{type(last).__name__} is not an estimator of this package")
    if last.callbacks or getattr(last, "_skl_callbacks", None):
        raise CannotStack("callbacks want to see each fit")
    if getattr(last, "record_path", False):
        raise CannotStack("record_path=True keeps what stacks do not")
    last._validate_params()
    if last.random_state is not None:
        seed = resolve_seed(last.random_state)
    return Candidate(index, whole, last, seed, before, key)


def _identity(value: Any) -> Any:
    plain = isinstance(value, str | int | float | bool | type(None))
    return (type(value).__name__, value) if plain else id(value)


def make_cell(
    c: Candidate,
    split: int,
    rows: tuple[Any, Any],
    parts: tuple[Array, Array],
    fit_params: Mapping[str, Any],
    score_params: Mapping[str, Any],
) -> Cell:
    """The rows of a fold for candidates with the same steps before the last."""
    X, y = rows
    train, test = parts
    X_train, y_train = safe_split(c.whole, X, y, train)
    X_test, y_test = safe_split(c.whole, X, y, test, train)
    inner_train, inner_test, before = X_train, X_test, None
    if c.before is not None:
        before = clone(c.before)
        inner_train = before.fit_transform(X_train, y_train)
        inner_test = before.transform(X_test)
    weight = _weight_of(c, check_method_params(X, params=fit_params, indices=train))
    template = clone(c.last)
    data, n_dim = validate_rows(template, inner_train, y_train, weight, reset=True)
    if data.verify is not None:
        data.verify()
    scored = tuple(check_method_params(X, params=score_params, indices=i) for i in (train, test))
    return Cell(
        split, data, n_dim, X_train, y_train, X_test, y_test,
        (scored[0], scored[1]), inner_train, inner_test, weight, before, template,
    )  # fmt: skip


def _weight_of(c: Candidate, fit_params: Mapping[str, Any]) -> Any:
    prefix = f"{c.whole.steps[-1][0]}__" if type(c.whole) is Pipeline else ""
    others = [k for k in fit_params if k != f"{prefix}sample_weight"]
    if others:
        raise CannotStack(f"fit is given {', '.join(others)}")
    return fit_params.get(f"{prefix}sample_weight")


def _spec(c: Candidate, cell: Cell, known_scorer: bool) -> FitSpec:
    """What is to be fitted; raises CannotStack where that is not done together."""
    data, last = cell.train, c.last
    if not hasattr(data.X, "strides"):
        raise CannotStack("X is sparse")
    spec = replace(last._make_spec(data, False), seed=c.seed, verbose=0)
    cls: Any = spec.optimizer_class
    if cls is None:
        if not known_scorer:
            raise CannotStack("it is solved exactly, and the scorer wants to see each estimator")
        return spec
    if not has_rule(cls, spec.optimizer_options, spec.device):
        raise CannotStack(f"the optimizer {spec.optimizer!r} is torch's own")
    if spec.loss.slope is None:
        raise CannotStack(f"the loss {spec.loss.name!r} is left to autograd")
    if spec.device.type not in DEVICES or not ACTIVATIONS[spec.activation].by_hand:
        raise CannotStack(f"{spec.activation!r} on {spec.device} is left to autograd")
    known = {schedule for schedule, _ in SCHEDULES.values()}
    if spec.schedule_class is not None and spec.schedule_class not in known:
        raise CannotStack(f"the schedule {spec.schedule_class.__name__} is torch's own")
    last._check_targets(data, spec)
    if spec.optimizer_options.keys() > {"lr"}:
        construct("optimizer", cls, [torch.zeros(1)], spec.optimizer_options)
    return spec


def _shape(spec: FitSpec, cell: Cell) -> Any:
    """What the lanes of a stack have in common."""
    if spec.optimizer_class is None:
        settings = spec.fit_intercept, spec.standardize, spec.tol, spec.dtype, str(spec.device)
        # each fold is decomposed on its own
        return id(cell), settings
    data = cell.train
    known = {**defaults_of(spec.optimizer_class), **spec.optimizer_options}  # type: ignore[arg-type]
    flags = {k: v for k, v in known.items() if not _is_number(v)}
    pointwise: Any = spec.loss.pointwise
    whole = spec.batch_size >= data.n_samples
    schedule = {k: v for k, v in spec.schedule_options.items() if k != "max_lr"}
    return (
        data.n_features,
        data.n_targets,
        (spec.loss.name, repr(sorted(pointwise.keywords.items()))),
        spec.standardize,
        spec.dtype,
        str(spec.device),
        spec.optimizer_class,
        repr(sorted(flags.items())),
        spec.schedule_class,
        repr(sorted(schedule.items())),
        (spec.positive, spec.l1 > 0),
        spec.fit_intercept,
        (spec.hidden, spec.activation, spec.dropout > 0),
        spec.max_epochs,
        None if whole else spec.batch_size,
        steps_per_epoch(data.n_samples, spec),
        spec.shuffle,
        spec.validation_fraction,
    )


def _is_number(option: Any) -> bool:
    """Whether lanes of one stack may differ in it."""
    return isinstance(option, float | int | tuple) and not isinstance(option, bool)


def _entries(spec: FitSpec, data: TrainingData) -> int:
    """Numbers that a step of one lane works on."""
    sizes = (data.n_features, *spec.hidden, data.n_targets)
    n_parameters = sum((a + 1) * b for a, b in pairwise(sizes))
    batch = min(spec.batch_size, data.n_samples)
    return VECTORS * n_parameters + 2 * batch * sum(sizes[1:])


def _one_group(stack: Stack) -> list[Stack]:
    """The groups of a stack, each as a stack of its own."""
    parts = zip(stack.cells, stack.lanes, stack.specs, strict=True)
    return [Stack([cell], [lanes], [specs]) for cell, lanes, specs in parts]


def _cut(stack: Stack, limit: float) -> list[Stack]:
    """Pieces of a stack that each stay within a number of entries, as even as possible."""
    each = max(_entries(stack.specs[0][0], cell.train) for cell in stack.cells)
    n_groups, n_each = len(stack.lanes), len(stack.lanes[0])
    most = max(1, int(limit // each))
    groups = min(n_groups, most)
    pieces = -(-n_each * groups // max(most, 1))
    out = []
    for first in range(0, n_groups, groups):
        at = slice(first, first + groups)
        for i in range(pieces):
            part = slice(n_each * i // pieces, n_each * (i + 1) // pieces)
            lanes = [row[part] for row in stack.lanes[at]]
            if lanes[0]:
                specs = [row[part] for row in stack.specs[at]]
                out.append(Stack(stack.cells[at], lanes, specs))
    return out


def make_plan(
    base: Any,
    candidates: Sequence[Mapping[str, Any]],
    rows: tuple[Any, Any],
    splits: Sequence[tuple[Array, Array]],
    fit_params: Mapping[str, Any],
    score_params: Mapping[str, Any],
    *,
    known_scorer: bool,
    limit: float = STACK_ENTRIES,
) -> Plan:
    """Sort the fits of a search into stacks and what is left.

    Anything that goes wrong here goes wrong again, and is reported, where the fit is run alone.
    """
    alone: list[tuple[int, int]] = []
    reasons: Counter[str] = Counter()
    seed = resolve_seed(None)
    cells: dict[Any, Cell | str] = {}
    sorted_by: dict[Any, dict[Any, tuple[Cell, list[Any]]]] = defaultdict(dict)
    for index, params in enumerate(candidates):
        c: Any = _tried(lambda p=params, i=index: make_candidate(base, i, p, seed))  # type: ignore[misc]
        specs: dict[Any, Any] = {}
        for split, parts in enumerate(splits):
            found = c
            if isinstance(c, Candidate):
                key = split, c.before_key
                if key not in cells:
                    cells[key] = _tried(
                        lambda c=c, s=split, p=parts: make_cell(  # type: ignore[misc]
                            c, s, rows, p, fit_params, score_params
                        )
                    )
                found = cells[key]
            if isinstance(found, Cell):
                cell = found
                looks = cell.train.n_samples, cell.train.n_features, cell.train.X.dtype
                if looks not in specs:
                    specs[looks] = _tried(lambda c=c, cell=cell: _spec(c, cell, known_scorer))  # type: ignore[misc]
                found = specs[looks]
            if isinstance(found, str):
                alone.append((index, split))
                reasons[found] += 1
                continue
            group = sorted_by[_shape(found, cell)]
            group.setdefault((key, c.seed), (cell, []))[1].append((c, found))
    stacks = []
    for groups in sorted_by.values():
        by_length: dict[int, list[tuple[Cell, list[Any]]]] = defaultdict(list)
        for cell, lanes in groups.values():
            by_length[len(lanes)].append((cell, lanes))
        for same in by_length.values():
            stack = Stack(
                [cell for cell, _ in same],
                [[c for c, _ in lanes] for _, lanes in same],
                [[spec for _, spec in lanes] for _, lanes in same],
            )
            if stack.specs[0][0].optimizer_class is None:
                stacks += [replace(s, exact=True) for s in _one_group(stack)]
            else:
                stacks += _cut(stack, limit)
    return Plan(stacks, alone, reasons)


def _tried(make: Callable[[], Any]) -> Any:
    """What comes out, or the reason why there is nothing."""
    try:
        return make()
    except CannotStack as reason:
        return str(reason)
    except Exception as error:
        return f"its preparation failed with {type(error).__name__}"
