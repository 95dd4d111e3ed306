"""Running a search: stacks of fits and their scores, and the fits that are run alone."""

from __future__ import annotations

import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import Pipeline
from sklearn.utils.parallel import Parallel, delayed

from . import _exact
from ._base import BaseTorchRegressor
from ._batched import train_lanes
from ._compat import (
    MultimetricScorer,
    fit_and_score,
    insert_error_scores,
    score_estimator,
    tell_fit_failures,
)
from ._data import identity_scaling, own_torch_settings
from ._lanes import LaneParameters
from ._plan import Candidate, Cell, Plan, Stack, make_plan
from ._scoring import LEAST_ROWS, Score, known_scores, score_all
from ._trained import Trained
from ._types import Array, FitSpec, TrainingDivergedError

Outcome = dict[str, Any]


@dataclass(frozen=True)
class Scoring:
    """How fits are scored."""

    scorer: Any
    error_score: Any
    return_train_score: bool


def _failed(error: TrainingDivergedError, s: Scoring) -> Outcome:
    """The outcome of a fit that raised, as scikit-learn keeps it."""
    if s.error_score == "raise":
        raise error
    score: Any = s.error_score
    if isinstance(s.scorer, MultimetricScorer):
        score = dict.fromkeys(s.scorer._scorers, s.error_score)
    out: Outcome = {
        "fit_error": "".join(traceback.format_exception(error)),
        "test_scores": score,
    }
    if s.return_train_score:
        out["train_scores"] = dict(score) if isinstance(score, dict) else score
    return out


def solved(cell: Cell, specs: list[FitSpec]) -> Trained:
    """Exact solutions for all penalties, as one group of lanes."""
    data, n = cell.train, len(specs)
    sizes = data.n_features, data.n_targets
    bias = specs[0].fit_intercept
    lanes = LaneParameters(sizes, bias, 1, n, torch.float64, torch.device("cpu"))
    with own_torch_settings(specs[0].device, grad=False):
        for i, layers in enumerate(_exact.fit_path(data, specs)):
            lanes.set_layers((torch.tensor(0), torch.tensor(i)), layers)
    nothing = np.full((1, n), np.nan)
    ones, done = np.ones((1, n), dtype=np.int64), np.zeros((1, n), dtype=bool)
    return Trained(lanes, [identity_scaling(*sizes)], ones, nothing, nothing, done)


def fitted(c: Candidate, cell: Cell, trained: Trained, at: tuple[int, int], spec: Any) -> Any:
    """The estimator of a candidate, as it would be if it had been fitted alone."""
    last: BaseTorchRegressor = clone(c.last)
    if spec.optimizer_class is None:
        # what a scorer may ask of it is more than its coefficients
        return _whole(c, cell, last.fit(cell.inner_train, cell.y_train, cell.weight))
    for name in ("n_features_in_", "feature_names_in_"):
        if name in vars(cell.template):
            setattr(last, name, getattr(cell.template, name))
    result = trained.fit_result(*at, spec)
    # the linear model keeps statistics of exact fits only
    last._statistics = None
    last._adopt(result, cell.train, spec, cell.n_dim)
    last._incremental = False
    return _whole(c, cell, last)


def _whole(c: Candidate, cell: Cell, last: BaseTorchRegressor) -> Any:
    """The fitted estimator, with the steps before it if there are any."""
    if type(c.whole) is not Pipeline:
        return last
    whole = clone(c.whole)
    steps = [] if cell.before is None else list(cell.before.steps)
    whole.steps = [*steps, (c.whole.steps[-1][0], last)]
    return whole


def run_stack(
    stack: Stack, scoring: Scoring, tell: Callable[[int], None] | None = None
) -> tuple[list[list[Outcome]], int]:
    """Train and score a stack; outcomes by group and place, and how many had not settled.

    Raises
    ------
    TrainingDivergedError
        With ``error_score="raise"``.
    """
    begin = time.time()
    known = known_scores(scoring.scorer)
    if stack.exact:
        trained = solved(stack.cells[0], stack.specs[0])
    else:
        # groups that differ in their seed alone see the same rows
        cells = list({id(cell): cell for cell in stack.cells}.values())
        place = {id(cell): i for i, cell in enumerate(cells)}
        owner = [place[id(cell)] for cell in stack.cells]
        data = [cell.train for cell in cells]
        trained = train_lanes(data, owner, stack.specs, curves=True, tell=tell)
    fit_time = (time.time() - begin) / stack.n_fits
    out = [_score_group(stack, g, trained, scoring, known) for g in range(len(stack.cells))]
    for row in out:
        for outcome in row:
            outcome["fit_time"] = fit_time
    return out, int(trained.unfinished.sum())


def _score_group(
    stack: Stack, g: int, trained: Trained, s: Scoring, known: dict[str, Score] | None
) -> list[Outcome]:
    """Scores of the lanes of a group, all at once where the scorer is known."""
    cell, row = stack.cells[g], stack.lanes[g]
    begin = time.time()
    test = _scores(stack, g, trained, s, known, train=False)
    score_time = (time.time() - begin) / len(row)
    train = _scores(stack, g, trained, s, known, train=True) if s.return_train_score else test
    out = []
    for c in range(len(row)):
        error = trained.errors.get((g, c))
        if error is not None:
            outcome = _failed(error, s)
        else:
            outcome = {"fit_error": None, "test_scores": test[c]}
            if s.return_train_score:
                outcome["train_scores"] = train[c]
        outcome["n_test_samples"] = len(cell.y_test)
        outcome["score_time"] = 0.0 if error is not None else score_time
        out.append(outcome)
    return out


def _scores(
    stack: Stack,
    g: int,
    trained: Trained,
    s: Scoring,
    known: dict[str, Score] | None,
    *,
    train: bool,
) -> list[Any]:
    """The scores of each lane of a group on one side of its split."""
    cell, row = stack.cells[g], stack.lanes[g]
    params = cell.score_params[0 if train else 1]
    X, y = (cell.X_train, cell.y_train) if train else (cell.X_test, cell.y_test)
    table: dict[str, Any] = {}
    good = np.zeros(len(row), dtype=bool)
    if known is not None and params.keys() <= {"sample_weight"}:
        found = _all_at_once(stack, g, trained, known, params, train=train)
        if found is not None:
            table, good = found
    multiple = isinstance(s.scorer, MultimetricScorer)
    out: list[Any] = []
    for c in range(len(row)):
        if (g, c) in trained.errors:
            out.append(None)
        elif good[c]:
            scores = {name: float(values[c]) for name, values in table.items()}
            out.append(scores if multiple else scores["score"])
        else:
            model = fitted(row[c], cell, trained, (g, c), stack.specs[g][c])
            out.append(score_estimator(model, X, y, s.scorer, params, s.error_score))
    return out


def _all_at_once(
    stack: Stack,
    g: int,
    trained: Trained,
    known: dict[str, Score],
    params: Mapping[str, Any],
    *,
    train: bool,
) -> tuple[dict[str, Any], Array] | None:
    """Scores of all lanes, and which of them hold; None where scikit-learn has to be asked."""
    cell = stack.cells[g]
    X = cell.inner_train if train else cell.inner_test
    y = np.asarray(cell.y_train if train else cell.y_test)
    try:
        rows, verify = cell.template._validate_predict_rows(X)
        if verify is not None:
            verify()
    except ValueError:
        return None
    if len(y) < LEAST_ROWS or y.dtype.kind not in "fiu" or not np.isfinite(y).all():
        return None
    weight = params.get("sample_weight")
    if weight is not None:
        weight = np.asarray(weight, dtype=np.float64)
        if weight.shape != (len(y),) or not (np.isfinite(weight).all() and weight.sum() > 0):
            return None
    with np.errstate(all="ignore"):
        predicted = trained.predict(g, rows, stack.specs[g][0].activation)
        good = np.isfinite(predicted).all(axis=(1, 2))
        table = score_all(known, y.reshape(len(y), -1), predicted, weight)
    return table, good & np.all([np.isfinite(v) for v in table.values()], axis=0)


def describe(plan: Plan, n_fits: int) -> str:
    """How many fits were stacked, and why the others were not."""
    together = n_fits - len(plan.alone)
    text = f"{together} of {n_fits} fits are trained together in {len(plan.stacks)} stacks"
    if not plan.alone:
        return f"{text}."
    reasons: Counter[str] = plan.reasons
    listed = "; ".join(f"{n} because {reason}" for reason, n in reasons.most_common())
    return f"{text}, {len(plan.alone)} one by one: {listed}."


class Evaluation:
    """The candidates of a search so far, and what came out."""

    def __init__(self, search: Any, X: Any, y: Any, scorers: Any, routed: Any) -> None:
        self.search, self.X, self.y, self.routed = search, X, y, routed
        error_score, with_train = search.error_score, search.return_train_score
        self.scoring = Scoring(scorers, error_score, with_train)
        self.base = clone(search.estimator)
        self.candidates: list[Mapping[str, Any]] = []
        self.outcomes: list[Outcome] = []
        self.more: dict[str, list[Any]] = defaultdict(list)
        self.results: dict[str, Any] = {}

    def evaluate(
        self,
        candidate_params: Any,
        cv: Any = None,
        more_results: Mapping[str, Any] | None = None,
        callback_ctx: Any = None,
    ) -> dict[str, Any]:
        """Fit and score candidates on all splits; returns all results so far."""
        search, candidates = self.search, list(candidate_params)
        n_splits = search.n_splits_
        splitter = cv or search._checked_cv_orig
        splits = list(splitter.split(self.X, self.y, **self.routed.splitter.split))
        if len(splits) != n_splits:
            raise ValueError(
                f"The splitter announced {n_splits} splits in get_n_splits, but split gave "
                f"{len(splits)}. Both have to agree."
            )
        out = self._run(candidates, splits, callback_ctx)
        if not out:
            raise ValueError(
                "No fits were performed: there are no candidates, or the splitter gave no split. "
                "Look at the parameter grid and at cv."
            )
        tell_fit_failures(out, search.error_score)
        if callable(search.scoring):
            insert_error_scores(out, search.error_score)
        self.candidates += candidates
        self.outcomes += out
        for key, value in (more_results or {}).items():
            self.more[key].extend(value)
        format_results = search._format_results
        self.results = format_results(self.candidates, n_splits, self.outcomes, self.more)
        return self.results

    def _run(self, candidates: list[Any], splits: list[Any], context: Any) -> list[Outcome]:
        """Outcomes of all fits, candidate by candidate."""
        search, rows, routed = self.search, (self.X, self.y), self.routed
        given = routed.estimator.fit, routed.scorer.score
        n_fits = len(candidates) * len(splits)
        known = known_scores(self.scoring.scorer) is not None
        plan = make_plan(self.base, candidates, rows, splits, *given, known_scorer=known)
        if search.verbose > 0:
            print(
                f"Fitting {len(splits)} folds for each of {len(candidates)} candidates, "
                f"totalling {n_fits} fits"
            )
            print(describe(plan, n_fits))
        about = context.subcontext(
            task_name="search",
            max_subtasks=len(plan.stacks) + len(plan.alone),
            sequential_subtasks=False,
        ).call_on_fit_task_begin(estimator=search)
        found: list[Any] = [None] * n_fits
        with Parallel(n_jobs=search.n_jobs, pre_dispatch=search.pre_dispatch) as parallel:
            n_unfinished = self._run_stacks(plan, parallel, about, found, len(splits))
            self._run_alone(plan, parallel, about, found, (candidates, splits))
        about.call_on_fit_task_end(estimator=search)
        if n_unfinished:
            message = (
                f"{n_unfinished} of {n_fits} fits stopped at max_epochs before the loss settled "
                "within tol. Raise max_epochs, lr or tol, or set tol=None to run a fixed number of "
                "epochs."
            )
            warnings.warn(message, ConvergenceWarning, stacklevel=2)
        return found

    def _run_stacks(
        self, plan: Plan, parallel: Any, about: Any, found: list[Any], n_splits: int
    ) -> int:
        """Fill in the outcomes of stacked fits; returns how many of these had not settled."""
        contexts = [
            about.subcontext(task_name="stack", task_id=i, max_subtasks=_n_epochs(s))
            for i, s in enumerate(plan.stacks)
        ]
        parts = parallel(
            delayed(_run_told)(stack, self.scoring, self.search, context)
            for stack, context in zip(plan.stacks, contexts, strict=True)
        )
        for stack, (part, _) in zip(plan.stacks, parts, strict=True):
            for cell, row, outcomes in zip(stack.cells, stack.lanes, part, strict=True):
                for c, outcome in zip(row, outcomes, strict=True):
                    found[c.index * n_splits + cell.split] = outcome
        return sum(n for _, n in parts)

    def _run_alone(
        self,
        plan: Plan,
        parallel: Any,
        about: Any,
        found: list[Any],
        grid: tuple[list[Any], list[Any]],
    ) -> None:
        """Fill in the outcomes of fits that are not stacked, as scikit-learn runs them."""
        search, (candidates, splits) = self.search, grid
        first = len(plan.stacks)
        contexts = [
            about.subcontext(task_name="candidate-split-evaluation", task_id=first + i)
            for i in range(len(plan.alone))
        ]
        outcomes = parallel(
            delayed(fit_and_score)(
                clone(self.base),
                self.X,
                self.y,
                scorer=self.scoring.scorer,
                train=splits[split][0],
                test=splits[split][1],
                verbose=search.verbose,
                parameters=candidates[index],
                fit_params=self.routed.estimator.fit,
                score_params=self.routed.scorer.score,
                return_train_score=search.return_train_score,
                return_n_test_samples=True,
                return_times=True,
                error_score=search.error_score,
                split_progress=(split, len(splits)),
                candidate_progress=(index, len(candidates)),
                caller=search,
                callback_ctx=context,
            )
            for (index, split), context in zip(plan.alone, contexts, strict=True)
        )
        for (index, split), outcome in zip(plan.alone, outcomes, strict=True):
            found[index * len(splits) + split] = outcome


def _n_epochs(stack: Stack) -> int:
    return 0 if stack.exact else stack.specs[0][0].max_epochs


def _run_told(
    stack: Any, scoring: Scoring, search: Any, context: Any
) -> tuple[list[list[Outcome]], int]:
    """Run a stack, and let callbacks hear of its epochs."""
    context.call_on_fit_task_begin(estimator=search)

    def tell(epoch: int) -> None:
        part = context.subcontext(task_name="epoch")
        part.call_on_fit_task_begin(estimator=search)
        part.call_on_fit_task_end(estimator=search)

    try:
        return run_stack(stack, scoring, tell if context._callbacks else None)
    finally:
        context.call_on_fit_task_end(estimator=search)
