"""Searches over hyperparameters that train candidates and folds together."""

from __future__ import annotations

import time
from collections.abc import Mapping
from inspect import signature
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.model_selection import (
    GridSearchCV,
    ParameterGrid,
    ParameterSampler,
    RandomizedSearchCV,
    check_cv,
)
from sklearn.utils import get_tags, indexable

from .._data.validation import VALIDATION_SET, Unsplit
from .._runtime.processes import current_group
from .._runtime.sklearn_private import (
    CallbackSupportMixin,
    Interval,
    MultimetricScorer,
    check_method_params,
    keep_splitter,
    nested_fit_context,
    num_samples,
)
from .candidates import OURS
from .evaluation import Evaluation


def refuse_sharing(name: str) -> None:
    """Raise within data_parallel, where each process would only see its own rows."""
    if current_group().size > 1:
        raise ValueError(
            f"{name} cannot be combined with data_parallel(): each process would score only its "
            "own rows. Search outside of it, on several processes through n_jobs or dask, and fit "
            "the best estimator inside."
        )


# bytes that a search may use
MAX_MEMORY: dict[str, Any] = {"max_memory": [None, Interval(Integral, 1, None, closed="left")]}


def _as_long_as(value: Any, X: Any) -> bool:
    """Whether scikit-learn would split a parameter of fit along with the rows."""
    # a number of NumPy has the shape ()
    is_array = bool(getattr(value, "shape", hasattr(value, "__len__")))
    return is_array and num_samples(value) == num_samples(X)


def unsplit(estimator: Any, X: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of fit, with a validation set kept from being split along with the rows.

    scikit-learn splits any parameter that has as many rows as X.
    """
    out = dict(params)
    for name, value in params.items():
        last = name.split("__")[-1]
        if last not in VALIDATION_SET or not _as_long_as(value, X):
            continue
        # other classes need not know how it is kept
        if name != last or type(estimator) not in OURS:
            raise ValueError(
                f"{name} has as many rows as X, so scikit-learn would split it along with X. Leave "
                "out one of its rows."
            )
        out[name] = Unsplit(value)
    return out


class _BatchedSearch(CallbackSupportMixin):  # type: ignore[misc]
    """The `fit` of both searches; everything else is scikit-learn's."""

    # provided by the searches of scikit-learn
    estimator: Any
    scoring: Any
    cv: Any
    refit: Any
    n_jobs: Any
    pre_dispatch: Any
    verbose: int
    error_score: Any
    return_train_score: bool
    max_memory: int | None
    best_estimator_: Any
    _get_scorers: Any
    _get_routed_params_for_fit: Any
    _check_input_parameters: Any
    _check_refit_for_multimetric: Any
    _select_best_index: Any
    _format_results: Any
    _init_callback_context: Any
    _run_search: Any

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # scikit-learn's searches do not pass this tag on
        tags.target_tags.multi_output = get_tags(self.estimator).target_tags.multi_output
        return tags

    @nested_fit_context
    def fit(self, X: Any, y: Any = None, **params: Any) -> Self:
        """Run the search.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Features.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets.
        **params : dict of str to object
            Parameters of the estimator's `fit`, such as `sample_weight` (split along with the
            rows), and of the scorer, and `groups` for the splitter.

        Returns
        -------
        self : object
            The fitted search.

        Raises
        ------
        ValueError
            If all fits failed, or the input or a parameter is invalid.

        Examples
        --------
        >>> from sklearn.datasets import load_diabetes
        >>> from sktorch_linreg import BatchedGridSearchCV, TorchLinearRegressor
        >>> X, y = load_diabetes(return_X_y=True)
        >>> model = TorchLinearRegressor(optimizer="adam", batch_size=64, max_epochs=20)
        >>> search = BatchedGridSearchCV(model, {"lr": [1e-4, 0.1]}).fit(X, y)
        >>> search.best_params_
        {'lr': 0.1}
        """
        refuse_sharing(type(self).__name__)
        scorers, refit_metric = self._get_scorers()
        X, y = indexable(X, y)
        params = check_method_params(X, params=params)
        routed = self._get_routed_params_for_fit(params)
        routed.estimator.fit = unsplit(self.estimator, X, routed.estimator.fit)
        weight = params.get("sample_weight")
        about = {"estimator": self, "X": X, "y": y}
        about["metadata"] = None if weight is None else {"sample_weight": weight}
        # a user's subclass may evaluate candidates several times
        own = type(self)._run_search in (
            BatchedGridSearchCV._run_search,
            BatchedRandomizedSearchCV._run_search,
        )
        n_tasks = 1 + (self.refit is not False) if own else None
        context = self._init_callback_context(max_subtasks=n_tasks)
        context.call_on_fit_task_begin(**about)
        splitter = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        keep_splitter(self, splitter)
        self._check_input_parameters(X=X, y=y, split_params=routed.splitter.split)
        self.n_splits_ = splitter.get_n_splits(X, y, **routed.splitter.split)
        tried = Evaluation(self, X, y, scorers, splitter, routed)
        told = "callback_ctx" in signature(self._run_search).parameters
        self._run_search(tried.evaluate, **({"callback_ctx": context} if told else {}))
        results = tried.results
        first = tried.outcomes[0]["test_scores"]
        self.multimetric_ = isinstance(first, dict)
        if callable(self.scoring) and self.multimetric_:
            self._check_refit_for_multimetric(first)
            refit_metric = self.refit
        if self.refit or not self.multimetric_:
            self.best_index_ = self._select_best_index(self.refit, refit_metric, results)
            if not callable(self.refit):
                self.best_score_ = results[f"mean_test_{refit_metric}"][self.best_index_]
            self.best_params_ = results["params"][self.best_index_]
        if self.refit:
            self._refit(tried, X, y, context, about)
        tried.warn_unfinished()
        one_of_many = isinstance(scorers, MultimetricScorer)
        self.scorer_ = scorers._scorers if one_of_many else scorers
        self.cv_results_ = results
        context.call_on_fit_task_end(**about)
        return self

    def _refit(
        self, tried: Evaluation, X: Any, y: Any, context: Any, about: dict[str, Any]
    ) -> None:
        """Fit the best candidate to all rows."""
        best = clone(self.estimator).set_params(**clone(self.best_params_, safe=False))
        part = context.subcontext(task_name="refit-with-best-params")
        with part.propagate_callback_context(best):
            part.call_on_fit_task_begin(**about)
            begin = time.time()
            tried.refit(best, X, y)
            self.refit_time_ = time.time() - begin
        self.best_estimator_ = best
        if hasattr(best, "feature_names_in_"):
            self.feature_names_in_ = best.feature_names_in_
        part.call_on_fit_task_end(**about)


class BatchedGridSearchCV(_BatchedSearch, GridSearchCV):  # type: ignore[misc]
    """Exhaustive search like `GridSearchCV`, with candidates and folds trained together.

    A drop-in replacement for `sklearn.model_selection.GridSearchCV`: parameters, methods and
    attributes are the same, and so are the scores, up to rounding. Fits of a
    `TorchLinearRegressor` or `TorchMLPRegressor`, alone or as the last step of a `Pipeline`, are
    stacked if they differ only in numbers: `lr`, `alpha`, `l1_ratio`, `dropout`,
    `random_state`, `tol`, `n_iter_no_change` and the numbers among ``optimizer__*``. Other shapes,
    optimizers, losses, batch sizes or epochs form separate stacks. The steps of a pipeline
    before the estimator are fitted once per fold and setting of their own parameters.

    Exact solutions of a fold share one decomposition.

    Fits that cannot be stacked run as in `GridSearchCV`: other estimators, L-BFGS, custom
    optimizers and losses, sparse rows, and estimators with callbacks. ``verbose=1`` reports how
    many there were, and why.

    Parameters
    ----------
    estimator : estimator object
        Estimator to fit.
    param_grid : dict or list of dict
        Names of parameters, each with the values to try, or several such grids.
    scoring : str, callable, list, tuple or dict, default=None
        As in `GridSearchCV`. Common regression scores are computed for many models at once, others
        model by model.
    n_jobs : int, default=None
        Number of workers for stacks and individual fits.
    refit : bool, str or callable, default=True
        Whether to fit the best candidate to all rows, or the score or rule to choose it by.
    cv : int, splitter or iterable, default=None
        The splits; None uses five folds.
    verbose : int, default=0
        1: how the fits are run; 2 or more: also a line per stack, and what `GridSearchCV` prints
        for individual fits.
    pre_dispatch : int or str, default="2*n_jobs"
        As in `GridSearchCV`.
    error_score : "raise" or numeric, default=np.nan
        The score of a fit that fails, such as one that diverges.
    return_train_score : bool, default=False
        Whether to also score on the training rows.
    max_memory : int, default=None
        Memory in bytes that a search may use beyond its input. Larger searches are split into
        smaller stacks, and folds are trained one after the other; the rows of one fold and the
        parameters of one model are always needed. None is a quarter of the memory that is free
        when `fit` is called.

    Attributes
    ----------
    cv_results_ : dict of ndarrays
        As in `GridSearchCV`. Times are each fit's share of the time of its stack.
    best_estimator_ : estimator
        Fitted to all rows, if `refit` is set.
    best_score_ : float
        Mean score of the best candidate.
    best_params_ : dict
        Its parameters.
    best_index_ : int
        Its index in `cv_results_`.
    scorer_ : callable or dict
        The scorers.
    n_splits_ : int
        Number of splits.
    refit_time_ : float
        Seconds spent fitting the best candidate to all rows.
    multimetric_ : bool
        Whether there are several scores.

    See Also
    --------
    BatchedRandomizedSearchCV : Candidates drawn from distributions.
    sklearn.model_selection.GridSearchCV : The search with the same interface.

    Notes
    -----
    Without a `random_state`, all fits of a search use one fresh seed, so that candidates are
    compared on the same initial weights and batches. An estimator's own `verbose` is ignored in
    stacks.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import PolynomialFeatures
    >>> from sktorch_linreg import BatchedGridSearchCV, TorchLinearRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = TorchLinearRegressor(optimizer="adam", max_epochs=50, random_state=0)
    >>> pipeline = make_pipeline(PolynomialFeatures(2, include_bias=False), model)
    >>> grid = {"torchlinearregressor__lr": [1e-4, 0.03], "torchlinearregressor__alpha": [0, 0.1]}
    >>> search = BatchedGridSearchCV(pipeline, grid).fit(X, y)
    >>> search.best_params_["torchlinearregressor__lr"]
    0.03
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **GridSearchCV._parameter_constraints,
        **MAX_MEMORY,
    }

    def __init__(
        self,
        estimator: Any,
        param_grid: Any,
        *,
        scoring: Any = None,
        n_jobs: int | None = None,
        refit: Any = True,
        cv: Any = None,
        verbose: int = 0,
        pre_dispatch: int | str = "2*n_jobs",
        error_score: Any = np.nan,
        return_train_score: bool = False,
        max_memory: int | None = None,
    ) -> None:
        super().__init__(
            estimator,
            param_grid,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.max_memory = max_memory

    def _run_search(self, evaluate_candidates: Any, *, callback_ctx: Any = None) -> None:
        evaluate_candidates(ParameterGrid(self.param_grid), callback_ctx=callback_ctx)


class BatchedRandomizedSearchCV(_BatchedSearch, RandomizedSearchCV):  # type: ignore[misc]
    """Random search like `RandomizedSearchCV`, with candidates and folds trained together.

    See `BatchedGridSearchCV` for which fits are stacked.

    Parameters
    ----------
    estimator : estimator object
        Estimator to fit.
    param_distributions : dict or list of dict
        Names of parameters, each with a distribution or a list of values.
    n_iter : int, default=10
        Number of candidates.
    scoring : str, callable, list, tuple or dict, default=None
        As in `RandomizedSearchCV`.
    n_jobs : int, default=None
        Number of workers.
    refit : bool, str or callable, default=True
        Whether to fit the best candidate to all rows, or the score or rule to choose it by.
    cv : int, splitter or iterable, default=None
        The splits; None uses five folds.
    verbose : int, default=0
        1: how the fits are run; 2 or more: also a line per stack.
    pre_dispatch : int or str, default="2*n_jobs"
        As in `RandomizedSearchCV`.
    random_state : int, RandomState instance or None, default=None
        Seed of the candidates.
    error_score : "raise" or numeric, default=np.nan
        The score of a fit that fails.
    return_train_score : bool, default=False
        Whether to also score on the training rows.
    max_memory : int, default=None
        Memory in bytes that a search may use beyond its input. Larger searches are split into
        smaller stacks, and folds are trained one after the other; the rows of one fold and the
        parameters of one model are always needed. None is a quarter of the memory that is free
        when `fit` is called.

    Attributes
    ----------
    cv_results_ : dict of ndarrays
        As in `RandomizedSearchCV`.
    best_estimator_ : estimator
        Fitted to all rows, if `refit` is set.
    best_score_ : float
        Mean score of the best candidate.
    best_params_ : dict
        Its parameters.
    best_index_ : int
        Its index in `cv_results_`.
    scorer_ : callable or dict
        The scorers.
    n_splits_ : int
        Number of splits.
    refit_time_ : float
        Seconds spent fitting the best candidate to all rows.
    multimetric_ : bool
        Whether there are several scores.

    See Also
    --------
    BatchedGridSearchCV : All combinations of a grid.

    Examples
    --------
    >>> from scipy.stats import loguniform
    >>> from sklearn.datasets import load_diabetes
    >>> from sktorch_linreg import BatchedRandomizedSearchCV, TorchLinearRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = TorchLinearRegressor(optimizer="adam", batch_size=64, max_epochs=20)
    >>> rates = {"lr": loguniform(1e-4, 0.1)}
    >>> search = BatchedRandomizedSearchCV(model, rates, random_state=0).fit(X, y)
    >>> len(search.cv_results_["params"])
    10
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **RandomizedSearchCV._parameter_constraints,
        **MAX_MEMORY,
    }

    def __init__(
        self,
        estimator: Any,
        param_distributions: Any,
        *,
        n_iter: int = 10,
        scoring: Any = None,
        n_jobs: int | None = None,
        refit: Any = True,
        cv: Any = None,
        verbose: int = 0,
        pre_dispatch: int | str = "2*n_jobs",
        random_state: Any = None,
        error_score: Any = np.nan,
        return_train_score: bool = False,
        max_memory: int | None = None,
    ) -> None:
        super().__init__(
            estimator,
            param_distributions,
            n_iter=n_iter,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            random_state=random_state,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.max_memory = max_memory

    def _run_search(self, evaluate_candidates: Any, *, callback_ctx: Any = None) -> None:
        drawn = ParameterSampler(
            self.param_distributions, self.n_iter, random_state=self.random_state
        )
        evaluate_candidates(drawn, callback_ctx=callback_ctx)
