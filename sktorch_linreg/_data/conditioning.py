"""What rounding errors are multiplied by, and which decomposition and refinement that asks for.

A Gram matrix squares the condition number of its columns. Whether one is good enough, whether
columns are independent, and how far a solution has to be refined is decided here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from scipy.linalg import lapack

from .._runtime.aliases import FloatArray
from .statistics import EPS, Statistics

# LinearRegression's own cut-off: no column that it keeps is dropped here
COARSEST_TOL = 1e-6
# estimated condition numbers may fall short by a factor of three or so
CERTAINLY = 10.0
# condition number up to which products of rows tell whether these are independent ...
INDEPENDENT_ROWS = 1e6
# ... and up to which two refinements of a Cholesky solution reach rounding
TWICE_REFINABLE = 1e8
# rounding errors in units of the precision of X: up to here there is nothing to refine ...
NEGLIGIBLE = 10.0
NEGLIGIBLE_SINGLE = 0.1
# ... and up to here a gradient in float64 is good enough
MODERATE = 1e6
# up to this many entries a gradient in longer floats costs no more than the checks of a fit,
FEW_ENTRIES = 2**11
# and is good enough up to here
LITTLE = 1e3
# shares of the squares of a target below which a residual is not taken from sums ...
SMALL_RESIDUAL = 1e-6
# ... and below which rounding of the target itself would move coefficients
TINY_RESIDUAL = 1e-10


@dataclass(frozen=True)
class GramRequirement:
    """What a Gram matrix has to keep to be used instead of a QR decomposition.

    It may multiply rounding errors by less than `growth`, and has to leave at least the share
    `least_residual` of the squares of each target as residuals, below which rounding would show in
    them.
    """

    growth: float
    least_residual: float = 0.0

    def is_met(self, condition: float, cancellation: float, stats: Statistics) -> bool:
        """Whether columns of this condition number, whose sums centring cancelled so much, do."""
        enough = bool((stats.residual_ss >= self.least_residual * stats.target_squares).all())
        return enough and condition**2 * cancellation < self.growth


# where the solution is refined on the rows ...
REFINED_ON_ROWS = GramRequirement(1e6)
# ... where it is not, since there is a constraint or an L1 penalty ...
NOT_REFINED = GramRequirement(1e4)
# ... where later batches are merged with the statistics, which have to tell the residual ...
MERGED = GramRequirement(1e4, least_residual=1e-4)
# ... and where a few rows are to stand for all in training
CONDENSED = GramRequirement(1e4, least_residual=1e-6)


class Refinement(Enum):
    """How a solution from statistics is refined on the rows."""

    NONE = ""
    ONCE = ", refined"
    EXTENDED = ", refined in extended precision"


def condition_number(R: FloatArray) -> float:
    """Bound on the condition number of an upper triangle, from estimates (Hager, 1984) of others.

    The square of the spectral one is at most that in the 1-norm times that in the maximum norm.
    """
    if not len(R):
        return 1.0
    rcond = [float(lapack.dtrcon(R, norm=norm, uplo="U", diag="N")[0]) for norm in "1I"]
    product = rcond[0] * rcond[1]
    return 1.0 / np.sqrt(product) if product > 0 else np.inf


def rank_tolerance(stats: Statistics, tol: float | None) -> float:
    """Relative singular-value cut-off: machine epsilon x max(shape), never coarser than 1e-6."""
    if tol is not None:
        return tol
    return min(stats.eps * max(stats.n_samples, stats.n_features), COARSEST_TOL)


def surely_independent(condition: float, tol: float) -> bool:
    """Whether columns of an estimated condition number have full rank at a relative cut-off."""
    return CERTAINLY * condition * tol <= 1.0


def residual_share(stats: Statistics) -> float:
    """The least share of its squares that the columns leave of a target."""
    varying = stats.target_squares > 0
    return float(np.min(stats.residual_ss[varying] / stats.target_squares[varying], initial=1.0))


def is_cheap(n_entries: int, stats: Statistics, *, sparse: bool) -> bool:
    """Whether a few rows cost so little that no digit is left to chance."""
    return n_entries <= FEW_ENTRIES and stats.eps == EPS and not sparse


def needed_refinement(
    condition: float, cancellation: float, stats: Statistics, *, cheap: bool
) -> Refinement:
    """How far the solution has to be refined on the rows."""
    double = stats.eps == EPS
    errors = condition**2 * cancellation * EPS / stats.eps
    share = residual_share(stats)
    negligible = errors <= (NEGLIGIBLE if double else NEGLIGIBLE_SINGLE)
    if negligible and not cheap and share >= SMALL_RESIDUAL:
        return Refinement.NONE
    if errors > (LITTLE if cheap else MODERATE) or (share < TINY_RESIDUAL and double):
        return Refinement.EXTENDED
    return Refinement.ONCE
