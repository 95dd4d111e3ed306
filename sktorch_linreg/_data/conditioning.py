"""How much rounding errors are amplified, and which decomposition and refinement that requires.

A Gram matrix squares the condition number of its columns. Whether it is accurate enough, whether
columns are independent, and how far a solution has to be refined is decided only here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from scipy.linalg import lapack

from .._runtime.aliases import FloatArray
from .statistics import EPS, Statistics

# cut-off of LinearRegression: no column that it keeps is dropped here
COARSEST_TOL = 1e-6
# safety factor: estimated condition numbers may be too small by a factor of about three
CERTAINLY = 10.0
# condition number of rows up to which their Gram matrix shows whether they are independent ...
INDEPENDENT_ROWS = 1e6
# ... and that of their Gram matrix up to which two refinements reach machine precision
TWICE_REFINABLE = 1e8
# rounding errors in units of X's precision: up to this size no refinement is needed ...
NEGLIGIBLE = 10.0
NEGLIGIBLE_SINGLE = 0.1
# ... and up to this size a gradient in float64 is accurate enough
MODERATE = 1e6
# up to this many entries a long double gradient costs no more than the checks of a fit ...
FEW_ENTRIES = 2**11
# ... and is accurate enough for rounding errors up to this size
LITTLE = 1e3
# residual share of a target's squares below which the residual is not taken from sums ...
SMALL_RESIDUAL = 1e-6
# ... and below which rounding of the target itself would change the coefficients
TINY_RESIDUAL = 1e-10


@dataclass(frozen=True)
class GramRequirement:
    """Requirements on a Gram matrix to be used instead of a QR decomposition.

    It must amplify rounding errors by less than `growth`, and the residual share of each target's
    squares must be at least `least_residual`, since rounding would show in smaller residuals.
    """

    growth: float
    least_residual: float = 0.0

    def is_met(self, condition: float, cancellation: float, stats: Statistics) -> bool:
        """Whether columns with this condition number and cancellation meet the requirements."""
        enough = bool((stats.residual_ss >= self.least_residual * stats.target_squares).all())
        return enough and condition**2 * cancellation < self.growth


# where the solution is refined on the rows ...
REFINED_ON_ROWS = GramRequirement(1e6)
# ... where it is not, because of a constraint or an L1 penalty ...
NOT_REFINED = GramRequirement(1e4)
# ... where later batches are merged in, and residuals come from the statistics alone ...
MERGED = GramRequirement(1e4, least_residual=1e-4)
# ... and where a few rows replace all rows in training
CONDENSED = GramRequirement(1e4, least_residual=1e-6)


class Refinement(Enum):
    """How a solution from statistics is refined on the rows."""

    NONE = ""
    ONCE = ", refined"
    EXTENDED = ", refined in extended precision"


def condition_number(R: FloatArray) -> float:
    """Estimated bound on the spectral condition number of an upper triangle (Hager, 1984).

    Its square is at most the product of the condition numbers in the 1-norm and infinity norm.
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
    """Whether columns with this estimated condition number have full rank at the cut-off `tol`."""
    return CERTAINLY * condition * tol <= 1.0


def residual_share(stats: Statistics) -> float:
    """The smallest residual share of the squares, over all targets."""
    varying = stats.target_squares > 0
    return float(np.min(stats.residual_ss[varying] / stats.target_squares[varying], initial=1.0))


def is_cheap(n_entries: int, stats: Statistics, *, sparse: bool) -> bool:
    """Whether X is small enough for a more accurate gradient at almost no cost."""
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
