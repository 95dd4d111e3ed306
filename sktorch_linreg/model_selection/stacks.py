"""Which fits of a search are trained together, in which stacks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from .._estimator.checks import check_targets
from .._runtime.aliases import Array
from .._runtime.devices import resolve_device
from .._runtime.memory import budget
from .._runtime.seeds import resolve_seed
from .._spec import FitSpec
from .._training.many_modules import Stackable
from .candidates import (
    COPIES,
    Candidate,
    Fold,
    Trials,
    check_codes,
    make_candidate,
    make_fold,
    n_bytes_of,
    spec_and_shape,
    tried,
)

# array elements that a stack works on at a time, so that they stay in the cache
STACK_ENTRIES = 2**21
# vectorised calls cost so much by themselves that larger stacks are faster
VMAP_ENTRIES = 2**26
# parameter vectors that an update reads and writes
VECTORS = 8


@dataclass
class Stack:
    """Fits of one shape; `candidates[g]` are the candidates fitted to the rows of `folds[g]`.

    `by_vmap` is set if gradients are not written out, and says what a trial has found out.
    """

    folds: list[Fold]
    candidates: list[list[Candidate]]
    specs: list[list[FitSpec]]
    by_vmap: Stackable | None = None
    # whether they are solved from one decomposition instead of trained
    exact: bool = False

    @property
    def n_fits(self) -> int:
        """Number of fits in the stack."""
        return sum(len(row) for row in self.candidates)

    def fits(self) -> Iterator[tuple[int, int]]:
        """The candidate and split of each fit, group by group."""
        for fold, row in zip(self.folds, self.candidates, strict=True):
            yield from ((c.index, fold.split) for c in row)

    @property
    def work_per_step(self) -> int:
        """Multiplications of the forward pass of one batch, or of a decomposition."""
        spec, data = self.specs[0][0], self.folds[0].train
        if self.exact:
            return data.n_samples * data.n_features**2
        batch = min(spec.training.batch_size, data.n_samples)
        return self.n_parameters * batch * self.n_fits

    @property
    def n_parameters(self) -> int:
        """Numbers in the parameters of a model."""
        if self.by_vmap is not None:
            return self.by_vmap.n_parameters
        spec, data = self.specs[0][0], self.folds[0].train
        sizes = data.n_features, *spec.shape.hidden, data.n_targets
        return sum((a + 1) * b for a, b in pairwise(sizes))

    @property
    def n_entries(self) -> int:
        """Array elements that a step of one model works on."""
        spec = self.specs[0][0]
        per_row = 2 * (sum(spec.shape.hidden) + self.folds[0].train.n_targets)
        if self.by_vmap is not None:
            per_row = 2 * self.by_vmap.n_entries
        batch = min(spec.training.batch_size, max(fold.train.n_samples for fold in self.folds))
        return VECTORS * self.n_parameters + batch * per_row


@dataclass
class Plan:
    """Stacks, and individual fits as (candidate, split) pairs, with the reasons."""

    stacks: list[Stack]
    alone: list[tuple[int, int]]
    reasons: Counter[str]
    # whether no fits are left after this plan
    last: bool

    @property
    def n_fits(self) -> int:
        """Number of fits, stacked and individual."""
        return sum(stack.n_fits for stack in self.stacks) + len(self.alone)


def _one_group(stack: Stack) -> list[Stack]:
    """The groups of a stack, each as its own stack."""
    parts = zip(stack.folds, stack.candidates, stack.specs, strict=True)
    return [replace(stack, folds=[c], candidates=[row], specs=[specs]) for c, row, specs in parts]


def _cut(stack: Stack, n_bytes: float) -> list[Stack]:
    """Split a stack evenly into pieces that fit into the cache, or on other devices into memory."""
    spec = stack.specs[0][0]
    limit = n_bytes / spec.dtype.itemsize
    if spec.device.type == "cpu":
        limit = min(limit, STACK_ENTRIES if stack.by_vmap is None else VMAP_ENTRIES)
    each = stack.n_entries
    n_groups, n_each = len(stack.candidates), len(stack.candidates[0])
    most = max(1, int(limit // each))
    groups = min(n_groups, most)
    if spec.training.validation_fraction is not None:
        # each seed holds out different rows
        copies = COPIES * max(n_bytes_of(fold.train.X) for fold in stack.folds)
        groups = max(1, min(groups, int(n_bytes // copies)))
    pieces = -(-n_each * groups // most)
    out = []
    for first in range(0, n_groups, groups):
        at = slice(first, first + groups)
        for i in range(pieces):
            part = slice(n_each * i // pieces, n_each * (i + 1) // pieces)
            candidates = [row[part] for row in stack.candidates[at]]
            if candidates[0]:
                specs = [row[part] for row in stack.specs[at]]
                folds = stack.folds[at]
                out.append(replace(stack, folds=folds, candidates=candidates, specs=specs))
    return out


class _Sorter:
    """Sorts fits by what those of a stack have in common, until their rows fill the memory."""

    def __init__(self, known_scorer: bool) -> None:
        self.known_scorer, self.trials = known_scorer, Trials()
        self.start_anew()

    def start_anew(self) -> None:
        """Forget the fits, and the rows of their folds."""
        self.n_bytes = 0
        self.alone: list[tuple[int, int]] = []
        self.reasons: Counter[str] = Counter()
        self.groups: dict[Any, dict[Any, tuple[Fold, list[Any]]]] = defaultdict(dict)
        self.by_vmap: dict[Any, Stackable | None] = {}

    def leave(self, c: int, split: int, reason: str) -> None:
        """Add a fit that is run individually."""
        self.alone.append((c, split))
        self.reasons[reason] += 1

    def add(self, c: Candidate, fold: Fold, known: dict[Any, Any]) -> None:
        """Add a fit; `known` caches the specs of its candidate by size and dtype of the fold."""
        data = fold.train
        looks = data.n_samples, data.n_features, data.X.dtype
        if looks not in known:
            known[looks] = tried(spec_and_shape, c, data, self.known_scorer, self.trials)
        found = known[looks]
        if not isinstance(found, str):
            # targets differ from fold to fold
            found = tried(check_targets, data, found[0]) or found
        if not isinstance(found, str):
            found = tried(check_codes, data, found[0]) or found
        if isinstance(found, str):
            self.leave(c.index, fold.split, found)
            return
        spec, shape, self.by_vmap[shape] = found
        group = self.groups[shape].setdefault((id(fold), c.seed), (fold, []))
        group[1].append((c, spec))

    def plan(self, n_bytes: float, last: bool) -> Plan:
        """Stacks of the fits so far, each of which uses at most `n_bytes`."""
        stacks = []
        for shape, groups in self.groups.items():
            by_length: dict[int, list[tuple[Fold, list[Any]]]] = defaultdict(list)
            for fold, members in groups.values():
                by_length[len(members)].append((fold, members))
            for same in by_length.values():
                stack = Stack(
                    [fold for fold, _ in same],
                    [[c for c, _ in members] for _, members in same],
                    [[spec for _, spec in members] for _, members in same],
                    self.by_vmap[shape],
                )
                if stack.specs[0][0].is_exact:
                    # each fold is decomposed separately
                    stacks += _one_group(replace(stack, exact=True))
                else:
                    stacks += _cut(stack, n_bytes)
        return Plan(stacks, self.alone, self.reasons, last)


def make_plans(
    base: Any,
    candidates: Sequence[Mapping[str, Any]],
    rows: tuple[Any, Any],
    splits: Sequence[tuple[Array, Array]],
    params: tuple[Mapping[str, Any], Mapping[str, Any]],
    *,
    known_scorer: bool,
    with_train: bool,
    max_memory: int | None,
) -> Iterator[Plan]:
    """Sort the fits of a search into stacks and individual fits.

    There is a single plan if the rows of all folds fit into half of the memory, otherwise several;
    the fits of one must be finished before the next is requested. `params` are those of `fit` and
    of the scorer; `with_train` also requests scores on training rows. Any error here is raised
    again, and reported, when the fit is run individually.
    """
    # in the range that random_state accepts
    seed = resolve_seed(None) % 2**32
    sorter = _Sorter(known_scorer)
    by_key: dict[Any, list[Candidate]] = {}
    for index, settings in enumerate(candidates):
        c = tried(make_candidate, base, index, settings, seed)
        if isinstance(c, Candidate):
            by_key.setdefault(c.before_key, []).append(c)
            continue
        for split in range(len(splits)):
            sorter.leave(index, split, c)
    devices = {tried(resolve_device, c.last.device) for group in by_key.values() for c in group}
    most = budget(max_memory, {d for d in devices if not isinstance(d, str)}) / 2
    for group in by_key.values():
        known: list[dict[Any, Any]] = [{} for _ in group]
        for split, parts in enumerate(splits):
            fold = tried(make_fold, group[0], split, rows, parts, *params, with_train=with_train)
            if not isinstance(fold, Fold):
                for c in group:
                    sorter.leave(c.index, split, fold)
                continue
            if sorter.n_bytes and sorter.n_bytes + fold.n_bytes > most:
                yield sorter.plan(most, last=False)
                sorter.start_anew()
            sorter.n_bytes += fold.n_bytes
            for c, its in zip(group, known, strict=True):
                sorter.add(c, fold, its)
    yield sorter.plan(most, last=True)
