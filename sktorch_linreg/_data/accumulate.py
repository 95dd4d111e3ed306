"""Sufficient statistics of least squares, accumulated in one pass over the rows.

They are the triangular factor R of the weighted, centred rows ``sqrt(w) * (X - mean)``, and the
targets under the same rotation. If the columns are far from collinear, R is the Cholesky factor of
the Gram matrix; otherwise it comes from a tree of QR decompositions, which costs several times as
much but loses no digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
import scipy.sparse as sp
import torch
from scipy.linalg import lapack

from .._errors import ExtremeScales
from .._runtime.aliases import FloatArray, Mask
from .._runtime.threads import n_spans, over_spans
from .arrays import as_tensor
from .blocks import beside, blocks
from .conditioning import GramRequirement, condition_number
from .moments import Moments
from .rows import TrainingData
from .scaling import column_scale, rounding_level
from .statistics import EPS, Statistics

# up to this many entries a second pass is almost free
SMALL_ENTRIES = 2**16
# a sparse X with more columns is not factorised, since the factor would be dense
MAX_FACTOR_FEATURES = 2000
# rows sampled before the pass, to compare means with spreads
SAMPLED_ROWS = 512
# up to this many columns besides those of X, their products with each other are almost free
FEW_TARGETS = 16
# density from which dense products are faster than sparse ones
SPARSE_SHARE = 1 / 16
# a row with more than this many times the median weight is used as the shift
HEAVY = 1e6
# ratio of squared mean to variance above which columns are shifted
LARGE_MEAN = 4.0
# cancellation by centring above which the pass is repeated with a better shift
LARGE_CANCELLATION = 100.0

# -- from the Gram matrix -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Sums:
    """Sums over weighted rows; of the products among targets, only the squares are needed."""

    products: FloatArray  # of the columns [X, y, 1] with those of X
    squares: FloatArray  # of the targets
    totals: FloatArray  # of the targets
    weight: float

    @classmethod
    def of(cls, products: FloatArray, z: FloatArray) -> _Sums:
        """From the products and the rows [y, 1]."""
        return cls(products, np.einsum("ij,ij->i", z[:-1], z[:-1]), z[:-1] @ z[-1], z[-1] @ z[-1])

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.products + other.products,
            self.squares + other.squares,
            self.totals + other.totals,
            self.weight + other.weight,
        )

    @property
    def is_finite(self) -> bool:
        """Whether all sums are finite; the totals of the targets are if their squares are."""
        return bool(np.isfinite(self.products.sum() + self.squares.sum()))


def _span_gram(
    data: TrainingData, shift: FloatArray, device: torch.device, start: int, stop: int
) -> _Sums:
    """The sums over a span of rows."""
    d, m = data.n_features, data.n_targets + 1
    G = np.zeros((d + m, d))
    squares, totals, weight = np.zeros(m - 1), np.zeros(m - 1), 0.0
    square, cross = np.empty((d, d)), np.empty((m, d))
    on_device = device.type != "cpu"
    sums = torch.zeros((d, d), dtype=torch.float64, device=device) if on_device else None
    for part, x in blocks(data, shift, start, stop, rooted=True):
        z = beside(data, shift, part)
        if sums is None:
            # np.dot instead of @, which holds the GIL if the result is small
            G[:d] += np.dot(x.T, x, out=square)
        else:
            moved = as_tensor(x).to(device)
            sums.addmm_(moved.T, moved)
        G[d:] += np.dot(z, x, out=cross)
        of_block = _Sums.of(G, z)
        squares += of_block.squares
        totals += of_block.totals
        weight += of_block.weight
    if sums is not None:
        G[:d] = sums.cpu().numpy()
    return _Sums(G, squares, totals, weight)


def _sparse_gram(data: TrainingData, shift: FloatArray) -> _Sums:
    """The sums over all rows of a sparse X, from sparse products."""
    d = data.n_features
    X, z = data.X.astype(np.float64, copy=False), beside(data, shift, slice(None))
    if data.weight is not None:
        X = sp.csr_array(X.multiply(np.sqrt(data.weight)[:, None]))
    G = np.empty((d + len(z), d))
    G[:d] = (X.T @ X).toarray()
    G[d:] = (X.T @ z.T).T
    return _Sums.of(G, z)


def _gram(data: TrainingData, shift: FloatArray, device: torch.device) -> _Sums:
    d, sparse = data.n_features, sp.issparse(data.X)
    if sparse and not shift[:d].any() and data.X.nnz < SPARSE_SHARE * data.n_samples * d:
        return _sparse_gram(data, shift)
    if data.n_samples * d <= SMALL_ENTRIES and device.type == "cpu" and not sparse:
        z = beside(data, shift, slice(None))
        rows = np.empty((data.n_samples, d + (len(z) if len(z) <= FEW_TARGETS else 0)))
        x = np.subtract(data.X, shift[:d], out=rows[:, :d])
        if data.weight is not None:
            x *= np.sqrt(data.weight)[:, None]
        if len(z) <= FEW_TARGETS:
            # one product is faster than several
            rows[:, d:] = z.T
            G = rows.T @ rows
            return _Sums(G[:, :d], np.diagonal(G)[d:-1], G[-1, d:-1], G[-1, -1])
        products = np.empty((d + len(z), d))
        np.dot(x.T, x, out=products[:d])
        np.dot(z, x, out=products[d:])
        return _Sums.of(products, z)
    spans = n_spans(data.n_samples, d * (d + 8), 4 * d) if device.type == "cpu" else 1

    def work(start: int, stop: int) -> _Sums:
        return _span_gram(data, shift, device, start, stop)

    return reduce(add, over_spans(work, data.n_samples, spans))


def _statistics(
    data: TrainingData,
    factor: FloatArray,
    residual_ss: FloatArray,
    shift: FloatArray,
    offset: FloatArray,
    weight: float,
    intercept: bool,
) -> Statistics:
    eps = float(np.finfo(data.X.dtype).eps)
    shape = data.n_samples, data.n_features
    about = *shape, weight, intercept, eps, data.exponent
    return Statistics(factor, residual_ss, shift, offset, *about)


@dataclass(frozen=True)
class _Centred:
    """A centred Gram matrix, and how much of its diagonal was cancelled by centring."""

    squares: FloatArray  # n_features + n_targets
    products: FloatArray  # n_features + n_targets, n_features
    offset: FloatArray
    weight: float
    cancellation: float


def _centre(s: _Sums, shift: FloatArray, intercept: bool) -> _Centred:
    weight, products = float(s.weight), s.products[:-1]
    raw = np.concatenate([np.diagonal(products), s.squares])
    if not intercept:
        return _Centred(raw, products, np.zeros(len(raw)), weight, 1.0)
    # the last row holds the sums of the features
    totals = np.concatenate([s.products[-1], s.totals])
    offset = totals / weight
    squares = raw - offset * totals
    products = products - offset[:, None] * s.products[-1]
    if squares.min() > 0:
        cancellation = float((raw / squares).max())
    else:
        squares, cancellation = np.maximum(squares, 0.0), np.inf
    if cancellation > LARGE_CANCELLATION:
        # ignore columns that are constant up to rounding
        significant = np.sqrt(raw / weight) > rounding_level(shift)
        significant &= raw > 0
        lost = raw[significant] / np.maximum(squares[significant], EPS**2 * raw[significant])
        cancellation = float(lost.max(initial=1.0))
    return _Centred(squares, products, offset, weight, cancellation)


@dataclass(frozen=True)
class Unit:
    """The triangle R of the `varying` columns, scaled to unit length, and Q^T y."""

    triangle: FloatArray
    qt_y: FloatArray
    norms: FloatArray
    varying: Mask
    condition: float


def _cholesky(
    c: _Centred, data: TrainingData, shift: FloatArray, intercept: bool
) -> tuple[Statistics, Unit] | None:
    """Statistics and their decomposition, or None if the Gram matrix is singular."""
    d = data.n_features
    mean = shift + c.offset
    varying = column_scale(Moments(c.weight, mean[:d], c.squares[:d]), intercept) > 0
    squares, products = c.squares[:d], c.products
    if not varying.all():
        squares = squares[varying]
        products = np.concatenate([products[:d][varying], products[d:]])[:, varying]
    norms, n_varying = np.sqrt(squares), len(squares)
    if n_varying == 0:
        return None
    products = products / norms
    U, info = lapack.dpotrf(products[:n_varying] / norms[:, None], lower=0, clean=1)
    if info != 0:
        return None
    qt_y = lapack.dtrtrs(U, products[n_varying:].T, lower=0, trans=1)[0]
    body = np.concatenate([U * norms, qt_y], axis=1)
    factor = body
    if n_varying < d:
        # zero rows and columns for the constant columns
        factor = np.zeros((d, len(mean)))
        factor[np.ix_(varying, np.append(varying, np.ones(len(mean) - d, dtype=bool)))] = body
    residual_ss = np.maximum(c.squares[d:] - np.einsum("ij,ij->j", qt_y, qt_y), 0.0)
    stats = _statistics(data, factor, residual_ss, shift, c.offset, c.weight, intercept)
    return stats, Unit(U, qt_y, norms, varying, condition_number(U))


# -- from QR decompositions ---------------------------------------------------------------------


# the triangle of [1, X] or X next to the rotated targets, and their residual sum of squares
Factored = tuple[torch.Tensor, FloatArray]


def _factored(rows: torch.Tensor, n_columns: int) -> Factored:
    """QR decomposition of the first columns; the remaining columns are only rotated."""
    body, tau = torch.geqrf(rows[:, :n_columns])
    qt_y = torch.ormqr(body, tau, rows[:, n_columns:], left=True, transpose=True)
    below = qt_y[n_columns:].square().sum(dim=0)
    top = body[:n_columns].triu(), qt_y[:n_columns]
    return torch.cat(top, dim=1), below.cpu().numpy()


def _span_qr(
    data: TrainingData,
    shift: FloatArray,
    intercept: bool,
    device: torch.device,
    start: int,
    stop: int,
) -> Factored:
    """The triangle of one span of rows."""
    d, k, n_ones = data.n_features, data.n_targets, int(intercept)
    n_columns = n_ones + d
    factor = torch.zeros((0, n_columns + k), dtype=torch.float64, device=device)
    residual_ss = np.zeros(k)
    for part, x in blocks(data, shift, start, stop, rooted=True, least=4):
        rows = np.empty((len(x), n_columns + k))
        z = beside(data, shift, part)
        rows[:, :n_ones] = z[-1:].T[:, :n_ones]
        rows[:, n_ones:n_columns], rows[:, n_columns:] = x, z[:-1].T
        stacked = torch.cat([factor, torch.from_numpy(rows).to(device)])
        factor, below = _factored(stacked, n_columns)
        residual_ss += below
    return factor, residual_ss


def _from_qr(
    data: TrainingData, shift: FloatArray, intercept: bool, device: torch.device
) -> Statistics:
    d = data.n_features
    spans = n_spans(data.n_samples, 2 * d * (d + 8), 8 * d) if device.type == "cpu" else 1

    def work(start: int, stop: int) -> Factored:
        return _span_qr(data, shift, intercept, device, start, stop)

    parts = over_spans(work, data.n_samples, spans)
    factor, residual_ss = parts[0]
    if spans > 1:
        factor, below = _factored(torch.cat([part for part, _ in parts]), d + intercept)
        residual_ss = below + sum(residual_ss for _, residual_ss in parts)
    body = factor.cpu().numpy()
    offset = np.zeros(len(shift))
    if intercept:
        offset = body[0, 1:] / body[0, 0]
        body = body[1:, 1:]
    weight = float(data.n_samples if data.weight is None else data.weight.sum())
    return _statistics(data, body.copy(), residual_ss, shift, offset, weight, intercept)


# -- few rows -----------------------------------------------------------------------------------


def _from_rows(data: TrainingData, shift: FloatArray, intercept: bool) -> Statistics:
    """Statistics of fewer rows than columns: the rows themselves, centred by a reflection."""
    d = data.n_features
    z = beside(data, shift, slice(None))
    rows = np.empty((data.n_samples, d + data.n_targets))
    for part, x in blocks(data, shift, 0, data.n_samples, rooted=True):
        rows[part, :d] = x
    rows[:, d:] = z[:-1].T
    offset, root = np.zeros(len(shift)), z[-1]
    if intercept:
        # the Householder reflection that maps the roots of the weights to a single entry
        length = np.sqrt(root @ root)
        v = root.copy()
        v[0] += length
        rows -= np.outer(v * (2.0 / (v @ v)), v @ rows)
        offset = -rows[0] / length
        rows = rows[1:]
    residual_ss = np.zeros(data.n_targets)
    return _statistics(data, rows, residual_ss, shift, offset, float(root @ root), intercept)


# -- the choice between them --------------------------------------------------------------------


@dataclass(frozen=True)
class Accumulated:
    """Statistics, the decomposition they come from, and its parts if available.

    `cancellation` is the factor by which centring amplified the rounding errors of the sums.
    """

    stats: Statistics
    path: str
    cancellation: float = 1.0
    unit: Unit | None = None


def _sampled_shift(data: TrainingData, intercept: bool) -> FloatArray:
    """Rough means of the targets, and of the features if these need a shift, else 0."""
    d = data.n_features
    if not intercept:
        return np.zeros(d + data.n_targets)
    if data.weight is not None and data.weight.max() > HEAVY * np.median(data.weight):
        # the mean is close to this row, and rounding of the difference would affect all others
        i = int(np.argmax(data.weight))
        row = data.X[[i]].toarray()[0] if sp.issparse(data.X) else data.X[i]
        heavy: FloatArray = np.concatenate([row, data.y[i]]).astype(np.float64)
        return heavy
    if data.n_samples * d <= SMALL_ENTRIES and not sp.issparse(data.X):
        sums = np.add.reduce(data.X, dtype=np.float64), np.add.reduce(data.y, dtype=np.float64)
        out: FloatArray = np.concatenate(sums) / data.n_samples
        return out
    step = -(-data.n_samples // SAMPLED_ROWS)
    X, y = data.X[::step], data.y[::step]
    if sp.issparse(X):
        mean = np.asarray(X.mean(axis=0), dtype=np.float64).ravel()
        square = np.asarray(X.multiply(X).mean(axis=0), dtype=np.float64).ravel()
        large = bool(np.any(mean**2 > LARGE_CANCELLATION * (square - mean**2)))
    else:
        with np.errstate(invalid="ignore", over="ignore"):
            mean = np.add.reduce(X, axis=0, dtype=np.float64) / len(X)
            centred = X - mean
            variance = np.einsum("ij,ij->j", centred, centred) / len(X)
            large = bool(np.any(mean**2 > LARGE_MEAN * variance))
    shift = mean if large else np.zeros(d)
    return np.concatenate([shift, np.add.reduce(y, axis=0, dtype=np.float64) / len(y)])


def accumulate(
    data: TrainingData,
    *,
    intercept: bool,
    device: torch.device,
    required: GramRequirement,
) -> Accumulated:
    """Statistics of `data`, from its Gram matrix if that is good enough, else from QR.

    Raises ValueError if the rows are not finite, as their sums show.
    """
    d = data.n_features
    # MPS does not support float64
    device = torch.device("cpu") if device.type == "mps" else device
    with np.errstate(invalid="ignore", over="ignore"):
        shift = _sampled_shift(data, intercept)
    finite = True
    if data.n_samples >= d + intercept:
        for last in (False, True):
            with np.errstate(invalid="ignore", over="ignore"):
                sums = _gram(data, shift, device)
                finite = sums.is_finite
            if not finite:
                break
            c = _centre(sums, shift, intercept)
            if c.cancellation > LARGE_CANCELLATION and not last:
                shift = shift + c.offset
                continue
            found = _cholesky(c, data, shift, intercept)
            if found is not None:
                stats, unit = found
                if required.is_met(unit.condition, c.cancellation, stats):
                    return Accumulated(stats, "cholesky", c.cancellation, unit)
            break
    if data.verify is not None:
        data.verify()
    if not (finite and np.isfinite(shift).all()):
        # the numbers are finite, but their sums overflow
        raise ExtremeScales
    if data.n_samples < d + intercept:
        return Accumulated(_from_rows(data, shift, intercept), "qr")
    return Accumulated(_from_qr(data, shift, intercept, device), "qr")
