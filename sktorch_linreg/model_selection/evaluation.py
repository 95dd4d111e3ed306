"""Running a search: stacks and individual fits."""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from joblib import effective_n_jobs
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.parallel import Parallel, delayed

from .._data.scaling import identity_scaling
from .._errors import collect_convergence_warnings
from .._exact import solve
from .._runtime.sklearn_private import (
    NoCallbackContext,
    fit_and_score,
    insert_error_scores,
    num_samples,
    tell_fit_failures,
)
from .._runtime.threads import in_threads
from .._runtime.torch_modes import own_torch_settings
from .._spec import FitSpec
from .._training.many_modules import train_modules
from .._training.many_networks import train_models
from .._training.stacked_parameters import StackedLayers
from .._training.stacked_result import NetworksResult, StackResult
from .candidates import Fold, whole_of
from .scoring import Outcome, Scoring, asked, failed, known_scores, score_stack
from .stacks import Plan, Stack, make_plans

# multiplications per step from which running stacks in parallel threads pays off
THREADED_STACK = 10_000_000


def describe(plan: Plan) -> str:
    """How many fits were stacked, and why the others were not."""
    together = plan.n_fits - len(plan.alone)
    n = len(plan.stacks)
    stacks = f"{n} stack{'' if n == 1 else 's'}"
    text = f"{together} of {plan.n_fits} fits run in {stacks}"
    if not plan.alone:
        return f"{text}."
    listed = "; ".join(f"{n}: {reason}" for reason, n in plan.reasons.most_common())
    return f"{text}; {len(plan.alone)} run individually ({listed})."


class Evaluation:
    """The candidates of a search so far, and their outcomes."""

    def __init__(
        self, search: Any, X: Any, y: Any, scorers: Any, splitter: Any, routed: Any
    ) -> None:
        self.search, self.X, self.y = search, X, y
        self.splitter, self.routed = splitter, routed
        error_score, with_train = search.error_score, search.return_train_score
        self.scoring = Scoring(scorers, error_score, with_train)
        self.base = clone(search.estimator)
        self.candidates: list[Mapping[str, Any]] = []
        self.outcomes: list[Outcome] = []
        self.more: dict[str, list[Any]] = defaultdict(list)
        self.results: dict[str, Any] = {}
        self.n_fits = self.n_unfinished = 0

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
        splitter = cv or self.splitter
        splits = list(splitter.split(self.X, self.y, **self.routed.splitter.split))
        if len(splits) != n_splits:
            raise ValueError(
                f"The splitter announced {n_splits} splits in get_n_splits, but split yielded "
                f"{len(splits)}. They must match."
            )
        out = self._run(candidates, splits, callback_ctx)
        if not out:
            raise ValueError(
                "No fits were performed: there are no candidates, or the splitter gave no splits. "
                "Check the parameter grid and cv."
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
        search, routed = self.search, self.routed
        n_fits = len(candidates) * len(splits)
        if search.verbose > 0:
            print(
                f"Fitting {len(splits)} folds for each of {len(candidates)} candidates, "
                f"totalling {n_fits} fits"
            )
        plans = make_plans(
            self.base,
            candidates,
            (self.X, self.y),
            splits,
            (routed.estimator.fit, routed.scorer.score),
            known_scorer=known_scores(self.scoring.scorer) is not None,
            with_train=search.return_train_score,
            max_memory=search.max_memory,
        )
        plan = next(plans)
        about = (
            (context or NoCallbackContext())
            .subcontext(
                task_name="search",
                max_subtasks=len(plan.stacks) + len(plan.alone) if plan.last else None,
                sequential_subtasks=False,
            )
            .call_on_fit_task_begin(estimator=search)
        )
        found: list[Any] = [None] * n_fits
        n_tasks = 0
        self.n_fits += n_fits
        with Parallel(n_jobs=search.n_jobs, pre_dispatch=search.pre_dispatch) as parallel:
            while True:
                if search.verbose > 0:
                    print(describe(plan))
                self.n_unfinished += self._run_stacks(plan, parallel, (about, n_tasks), found)
                n_tasks += len(plan.stacks)
                grid = candidates, splits
                self.n_unfinished += self._run_alone(plan, parallel, (about, n_tasks), found, grid)
                n_tasks += len(plan.alone)
                if plan.last:
                    break
                plan = next(plans)
        about.call_on_fit_task_end(estimator=search)
        return found

    def refit(self, best: Any, X: Any, y: Any) -> None:
        """Fit the best candidate to all rows."""
        params = self.routed.estimator.fit
        with collect_convergence_warnings() as messages:
            best.fit(X, **params) if y is None else best.fit(X, y, **params)
        self.n_fits += 1
        self.n_unfinished += bool(messages)

    def warn_unfinished(self) -> None:
        """Warn once for all fits that did not converge; called from the `fit` of the search."""
        if self.n_unfinished:
            refit = ", counting the refit," if self.search.refit else ""
            message = (
                f"{self.n_unfinished} of {self.n_fits} fits{refit} stopped at max_epochs before "
                "they converged. Raise max_epochs, lr or tol, or set tol=None to run a fixed "
                "number of epochs."
            )
            # skips fit and scikit-learn's wrapper, to point to the caller's line
            warnings.warn(message, ConvergenceWarning, stacklevel=4)

    def _run_stacks(
        self, plan: Plan, parallel: Any, tasks: tuple[Any, int], found: list[Any]
    ) -> int:
        """Fill in the outcomes of stacked fits; returns how many of them did not converge."""
        (about, first), search, stacks = tasks, self.search, plan.stacks
        contexts = [
            about.subcontext(task_name="stack", task_id=first + i, max_subtasks=_n_epochs(s))
            for i, s in enumerate(stacks)
        ]
        known = known_scores(self.scoring.scorer) is not None
        n_splits, n_unfinished = search.n_splits_, 0

        def take(i: int, outcomes: list[Outcome], unfinished: int) -> None:
            nonlocal n_unfinished
            n_unfinished += unfinished
            for (index, split), outcome in zip(stacks[i].fits(), outcomes, strict=True):
                found[index * n_splits + split] = outcome

        if effective_n_jobs(search.n_jobs) > 1:
            parts = parallel(
                delayed(_run_stack)(stack, self.scoring, known, search, context)
                for stack, context in zip(stacks, contexts, strict=True)
            )
            for i, part in enumerate(parts):
                take(i, *part)
            return n_unfinished
        threads = torch.get_num_threads() if _gains_by_threads(stacks) else 1
        work = [
            partial(_train_told, stack, known, search, context)
            for stack, context in zip(stacks, contexts, strict=True)
        ]
        for i, (trained, seconds) in enumerate(in_threads(work, threads)):
            take(i, *_scored(stacks[i], trained, seconds, self.scoring))
        return n_unfinished

    def _run_alone(
        self,
        plan: Plan,
        parallel: Any,
        tasks: tuple[Any, int],
        found: list[Any],
        grid: tuple[list[Any], list[Any]],
    ) -> int:
        """Fill in the outcomes of fits that are not stacked, as scikit-learn runs them.

        Returns how many of them did not converge.
        """
        search, (candidates, splits), (about, first) = self.search, grid, tasks
        contexts = [
            about.subcontext(task_name="candidate-split-evaluation", task_id=first + i)
            for i in range(len(plan.alone))
        ]
        outcomes = parallel(
            delayed(_fit_alone)(
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
        n_unfinished = 0
        for (index, split), (outcome, unfinished) in zip(plan.alone, outcomes, strict=True):
            found[index * len(splits) + split] = outcome
            n_unfinished += unfinished
        return n_unfinished


def _fit_alone(*args: Any, **options: Any) -> tuple[Outcome, bool]:
    """The outcome of a fit by scikit-learn, and whether it did not converge."""
    with collect_convergence_warnings() as messages:
        outcome = fit_and_score(*args, **options)
    return outcome, bool(messages)


def _n_epochs(stack: Stack) -> int:
    return 0 if stack.exact else stack.specs[0][0].training.max_epochs


def _gains_by_threads(stacks: list[Stack]) -> bool:
    """Whether steps are long enough that threads do not wait for each other."""
    return all(s.by_vmap is None and s.work_per_step >= THREADED_STACK for s in stacks)


def train_stack(
    stack: Stack, known: bool, tell: Callable[[int], None] | None = None
) -> StackResult:
    """Train a stack; loss curves are only kept if the scorer is not a known one."""
    if stack.exact:
        return _solve_stack(stack.folds[0], stack.specs[0])
    # groups that differ only in their seed use the same rows
    folds = list({id(fold): fold for fold in stack.folds}.values())
    place = {id(fold): i for i, fold in enumerate(folds)}
    owner = [place[id(fold)] for fold in stack.folds]
    data = [fold.train for fold in folds]
    if stack.by_vmap is not None:
        in_eval, specs = stack.by_vmap.in_eval, stack.specs
        return train_modules(data, owner, specs, in_eval=in_eval, curves=not known, tell=tell)
    return train_models(data, owner, stack.specs, curves=not known, tell=tell)


def _solve_stack(fold: Fold, specs: list[FitSpec]) -> StackResult:
    """Exact solutions for all penalties, as one group of models."""
    data, n = fold.train, len(specs)
    sizes = data.n_features, data.n_targets
    bias = specs[0].shape.fit_intercept
    parameters = StackedLayers(sizes, bias, 1, n, torch.float64, torch.device("cpu"))
    with own_torch_settings(specs[0].device, grad=False):
        for i, layers in enumerate(solve.fit_path(data, specs)):
            parameters.set_layers((torch.tensor(0), torch.tensor(i)), layers)
    nothing = np.full((1, n), np.nan)
    ones, done = np.ones((1, n), dtype=np.int64), np.zeros((1, n), dtype=bool)
    return NetworksResult(parameters, [identity_scaling(*sizes)], ones, nothing, nothing, done)


def _train_told(
    stack: Stack, known: bool, search: Any, context: Any
) -> tuple[StackResult | None, float]:
    """Train a stack and report its epochs to callbacks; also returns the seconds it took.

    The result is None if the fits must be run individually, to succeed or to report their errors:
    rows that must be rescaled, or options that only turn out to be invalid in training.
    """
    context.call_on_fit_task_begin(estimator=search)

    def tell(epoch: int) -> None:
        part = context.subcontext(task_name="epoch")
        part.call_on_fit_task_begin(estimator=search)
        part.call_on_fit_task_end(estimator=search)

    begin = time.perf_counter()
    trained = None
    try:
        with suppress(Exception):
            trained = train_stack(stack, known, tell if context._callbacks else None)
    finally:
        context.call_on_fit_task_end(estimator=search)
    seconds = time.perf_counter() - begin
    if search.verbose > 1:
        print(f"[stack {context.task_id + 1}] END {stack.n_fits} fits; total time={seconds:6.1f}s")
    return trained, seconds


def _run_stack(
    stack: Stack, scoring: Scoring, known: bool, search: Any, context: Any
) -> tuple[list[Outcome], int]:
    """Train and score a stack in a worker; also returns how many fits did not converge."""
    trained, seconds = _train_told(stack, known, search, context)
    return _scored(stack, trained, seconds, scoring)


def _scored(
    stack: Stack, trained: StackResult | None, seconds: float, scoring: Scoring
) -> tuple[list[Outcome], int]:
    if trained is None:
        return _fit_one_by_one(stack, scoring)
    return score_stack(stack, trained, seconds, scoring), trained.n_unfinished


def _fit_one_by_one(stack: Stack, s: Scoring) -> tuple[list[Outcome], int]:
    """Outcomes of all fits of a stack, run individually because stacked training failed.

    Also returns how many of them did not converge.
    """
    out: list[Outcome] = []
    n_unfinished = 0
    for fold, row in zip(stack.folds, stack.candidates, strict=True):
        for c in row:
            begin = time.perf_counter()
            try:
                last = clone(c.last).set_params(random_state=c.seed)
                with collect_convergence_warnings() as messages:
                    last.fit(fold.inner_train, fold.train_side.y, fold.weight, **fold.validation)
                n_unfinished += bool(messages)
            except Exception as error:
                outcome = failed(error, s)
                outcome["score_time"], scored = 0.0, time.perf_counter()
            else:
                model, scored = whole_of(c, fold, last), time.perf_counter()
                outcome = {"fit_error": None, "test_scores": asked(model, fold.test_side, s)}
                if s.return_train_score:
                    outcome["train_scores"] = asked(model, fold.train_side, s)
                outcome["score_time"] = time.perf_counter() - scored
            outcome["fit_time"] = scored - begin
            outcome["n_test_samples"] = num_samples(fold.test_side.y)
            out.append(outcome)
    return out, n_unfinished
