"""Sufficient statistics of least squares, gathered in one pass over the rows.

They are one triangular factor R of the weighted, centred rows ``sqrt(w) * (X - mean)``, with the
targets turned by the same rotation. Where the columns are far from collinear R comes from the Gram
matrix, by a Cholesky decomposition; else from a tree of QR decompositions, which costs several
times as much and loses no digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np
import scipy.sparse as sp
import torch
from scipy.linalg import lapack

from ._arrays import as_tensor
from ._data import column_scale
from ._statistics import EPS, Statistics, condition, split, triangle
from ._threads import n_spans, over_spans
from ._types import ExtremeScales, FloatArray, Mask, Moments, TrainingData

# entries of float64 work space per thread; they have to stay in the cache of a core
BLOCK_ENTRIES = 2**17
# rows per column of a block that is a view, since products of few rows are slow to add up
VIEWED_COLUMNS = 8
# up to this many entries a second pass costs next to nothing
SMALL_ENTRIES = 2**16
# a sparse X with more columns has no factor made of it, which would be dense
MAX_FACTOR_FEATURES = 2000
# rows that are looked at before the pass, to judge means against spreads
SAMPLED_ROWS = 512
# share of stored entries from which on dense products are faster than sparse ones
SPARSE_SHARE = 1 / 16
# squared mean over variance from which on columns are shifted
LARGE_MEAN = 4.0
# share of a squared column that centring may cancel before the pass is made once more
LARGE_CANCELLATION = 100.0


# -- rows, block by block -----------------------------------------------------------------------


def blocks(
    data: TrainingData,
    shift: FloatArray,
    start: int,
    stop: int,
    *,
    rooted: bool,
    least: int = 2,
) -> Iterator[tuple[slice, FloatArray]]:
    """Rows as float64 blocks, less `shift`, and times the root of their weights if `rooted`.

    A block fits the cache, but has at least `least` times as many rows as columns. It is a view of
    X where nothing has to be done to it, and else lies in a buffer that the next one overwrites.
    """
    d = data.n_features
    weight = data.weight if rooted else None
    step = max(BLOCK_ENTRIES // d, least * d)
    by = as_tensor(shift[:d]) if shift[:d].any() else None
    plain = by is None and weight is None and data.X.dtype == np.float64
    dense = not sp.issparse(data.X)
    if dense and plain:
        step = max(step, VIEWED_COLUMNS * d)
        for i in range(start, stop, step):
            part = slice(i, min(i + step, stop))
            yield part, np.asarray(data.X[part])
        return
    buffer = np.empty((min(step, stop - start), d))
    for i in range(start, stop, step):
        part = slice(i, min(i + step, stop))
        rows = data.X[part]
        out = buffer[: part.stop - part.start]
        root = None if weight is None else np.sqrt(weight[part])
        _write(as_tensor(rows if dense else rows.toarray()), by, root, torch.from_numpy(out))
        yield part, out


def _write(
    rows: torch.Tensor, shift: torch.Tensor | None, root: FloatArray | None, out: torch.Tensor
) -> None:
    # torch casts and broadcasts in one go, where numpy's loops are as short as a row
    factor = None if root is None else torch.from_numpy(root)[:, None]
    if rows.dtype != out.dtype or (shift is None and factor is None):
        # a cast of its own is faster than one inside of the arithmetic
        rows = out.copy_(rows)
    if shift is not None:
        rows = torch.sub(rows, shift, out=out)
    if factor is not None:
        torch.mul(rows, factor, out=out)


def beside(data: TrainingData, shift: FloatArray, part: slice) -> FloatArray:
    """The columns [y - shift, 1] of some rows times the root of their weights, as rows."""
    y = data.y[part]
    out = np.empty((y.shape[1] + 1, len(y)))
    np.subtract(y.T, shift[data.n_features :, None], out=out[:-1])
    out[-1] = 1.0
    if data.weight is not None:
        out *= np.sqrt(data.weight[part])
    return out


# -- from the Gram matrix -----------------------------------------------------------------------


def _span_gram(
    data: TrainingData, shift: FloatArray, device: torch.device, start: int, stop: int
) -> FloatArray:
    """Products of the columns [X, y, 1] over a span of rows; of X with X the others' rows alone."""
    d, m = data.n_features, data.n_targets + 1
    G = np.zeros((d + m, d + m))
    square, cross = np.empty((d, d)), np.empty((m, d))
    on_device = device.type != "cpu"
    sums = torch.zeros((d, d), dtype=torch.float64, device=device) if on_device else None
    for part, x in blocks(data, shift, start, stop, rooted=True):
        z = beside(data, shift, part)
        if sums is None:
            # np.dot and not @, which holds the interpreter's lock where the result is small
            G[:d, :d] += np.dot(x.T, x, out=square)
        else:
            moved = as_tensor(x).to(device)
            sums.addmm_(moved.T, moved)
        G[d:, :d] += np.dot(z, x, out=cross)
        G[d:, d:] += np.dot(z, z.T)
    if sums is not None:
        G[:d, :d] = sums.cpu().numpy()
    return G


def _sparse_gram(data: TrainingData, shift: FloatArray) -> FloatArray:
    """The same of all rows of a sparse X, by sparse products."""
    d = data.n_features
    X, z = data.X.astype(np.float64, copy=False), beside(data, shift, slice(None))
    if data.weight is not None:
        X = sp.csr_array(X.multiply(np.sqrt(data.weight)[:, None]))
    G = np.zeros((d + len(z),) * 2)
    G[:d, :d] = (X.T @ X).toarray()
    G[d:, :d] = (X.T @ z.T).T
    G[d:, d:] = z @ z.T
    return G


def _gram(data: TrainingData, shift: FloatArray, device: torch.device) -> FloatArray:
    d, sparse = data.n_features, sp.issparse(data.X)
    if sparse and not shift[:d].any() and data.X.nnz < SPARSE_SHARE * data.n_samples * d:
        return _sparse_gram(data, shift)
    if data.n_samples * d <= SMALL_ENTRIES and device.type == "cpu" and not sparse:
        rows = np.empty((data.n_samples, d + data.n_targets + 1))
        np.subtract(data.X, shift[:d], out=rows[:, :d])
        rows[:, d:] = beside(data, shift, slice(None)).T
        if data.weight is not None:
            rows[:, :d] *= np.sqrt(data.weight)[:, None]
        out: FloatArray = rows.T @ rows
        return out
    spans = n_spans(data.n_samples, d * (d + 8), 4 * d) if device.type == "cpu" else 1

    def work(start: int, stop: int) -> FloatArray:
        return _span_gram(data, shift, device, start, stop)

    return reduce(np.add, over_spans(work, data.n_samples, spans))


def _statistics(
    data: TrainingData,
    factor: FloatArray,
    rest: FloatArray,
    shift: FloatArray,
    offset: FloatArray,
    weight: float,
    intercept: bool,
) -> Statistics:
    eps = float(np.finfo(data.X.dtype).eps)
    shape = data.n_samples, data.n_features
    return Statistics(factor, rest, shift, offset, *shape, weight, intercept, eps)


@dataclass(frozen=True)
class _Centred:
    """A Gram matrix about the means, and how much of its diagonal centring cancelled."""

    squares: FloatArray  # n_features + n_targets
    products: FloatArray  # n_features + n_targets, n_features
    offset: FloatArray
    weight: float
    cancellation: float


def _centre(G: FloatArray, shift: FloatArray, n_features: int, intercept: bool) -> _Centred:
    weight, sums, raw = float(G[-1, -1]), G[-1, :-1], np.diagonal(G)[:-1]
    products = G[:-1, :n_features]
    if not intercept:
        return _Centred(raw, products, np.zeros(len(raw)), weight, 1.0)
    # the last row holds the sums of the features, the last column those of the targets
    sums = np.concatenate([sums[:n_features], G[n_features:-1, -1]])
    offset = sums / weight
    squares = raw - offset * sums
    products = products - offset[:, None] * sums[:n_features]
    if squares.min() > 0:
        cancellation = float((raw / squares).max())
    else:
        squares, cancellation = np.maximum(squares, 0.0), np.inf
    if cancellation > LARGE_CANCELLATION:
        # what is rounding about a constant column's value is not looked at
        told = np.sqrt(raw / weight) > 4 * EPS * np.abs(shift)
        lost = raw[told] / np.maximum(squares[told], EPS**2 * raw[told])
        cancellation = float(lost.max(initial=1.0))
    return _Centred(squares, products, offset, weight, cancellation)


@dataclass(frozen=True)
class Unit:
    """The triangle of the `live` columns, scaled to unit length, and the targets turned by it."""

    triangle: FloatArray
    turned: FloatArray
    norms: FloatArray
    live: Mask
    condition: float


def _cholesky(
    c: _Centred, data: TrainingData, shift: FloatArray, intercept: bool
) -> tuple[Statistics, Unit] | None:
    """Statistics and their decomposition, or None of a singular Gram matrix."""
    d = data.n_features
    mean = shift + c.offset
    live = column_scale(Moments(c.weight, mean[:d], c.squares[:d]), intercept) > 0
    squares, products = c.squares[:d], c.products
    if not live.all():
        squares = squares[live]
        products = np.concatenate([products[:d][live], products[d:]])[:, live]
    norms, n_live = np.sqrt(squares), len(squares)
    if n_live == 0:
        return None
    products = products / norms
    U, info = lapack.dpotrf(products[:n_live] / norms[:, None], lower=0, clean=1)
    if info != 0:
        return None
    turned = lapack.dtrtrs(U, products[n_live:].T, lower=0, trans=1)[0]
    body = np.concatenate([U * norms, turned], axis=1)
    factor = body
    if n_live < d:
        # rows and columns of nothing for the columns that are constant
        factor = np.zeros((d, len(mean)))
        factor[np.ix_(live, np.append(live, np.ones(len(mean) - d, dtype=bool)))] = body
    rest = np.maximum(c.squares[d:] - np.einsum("ij,ij->j", turned, turned), 0.0)
    stats = _statistics(data, factor, rest, shift, c.offset, c.weight, intercept)
    return stats, Unit(U, turned, norms, live, condition(U))


# -- from QR decompositions ---------------------------------------------------------------------


def _span_qr(
    data: TrainingData, shift: FloatArray, device: torch.device, start: int, stop: int
) -> FloatArray:
    """Triangular factor of the columns [1, X, y] over one span of rows."""
    d, k = data.n_features, data.n_targets
    factor = torch.zeros((0, 1 + d + k), dtype=torch.float64, device=device)
    for part, x in blocks(data, shift, start, stop, rooted=True, least=4):
        rows = np.empty((len(x), 1 + d + k))
        z = beside(data, shift, part)
        rows[:, 0], rows[:, 1 : 1 + d], rows[:, 1 + d :] = z[-1], x, z[:-1].T
        stacked = torch.cat([factor, torch.from_numpy(rows).to(device)])
        factor = torch.linalg.qr(stacked, mode="r").R
    return np.asarray(factor.cpu().numpy())


def _from_qr(
    data: TrainingData, shift: FloatArray, intercept: bool, device: torch.device
) -> Statistics:
    d = data.n_features
    spans = n_spans(data.n_samples, 2 * d * (d + 8), 8 * d) if device.type == "cpu" else 1

    def work(start: int, stop: int) -> FloatArray:
        return _span_qr(data, shift, device, start, stop)

    parts = over_spans(work, data.n_samples, spans)
    body = parts[0] if spans == 1 else triangle(np.concatenate(parts))
    offset = np.zeros(len(shift))
    if intercept:
        offset = body[0, 1:] / body[0, 0]
        body = body[1:]
    body = np.ascontiguousarray(body[:, 1:])
    if not intercept:
        body = triangle(body)
    factor, rest = split(body, d)
    weight = float(data.n_samples if data.weight is None else data.weight.sum())
    return _statistics(data, factor.copy(), rest, shift, offset, weight, intercept)


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
        # the Householder reflection that turns the roots of the weights into one number
        length = np.sqrt(root @ root)
        v = root.copy()
        v[0] += length
        rows -= np.outer(v * (2.0 / (v @ v)), v @ rows)
        offset = -rows[0] / length
        rows = rows[1:]
    rest = np.zeros(data.n_targets)
    return _statistics(data, rows, rest, shift, offset, float(root @ root), intercept)


# -- the choice between them --------------------------------------------------------------------


@dataclass(frozen=True)
class Gathered:
    """Statistics, the decomposition they come from, and its parts where they are at hand.

    `cancellation` is what rounding errors of the sums were multiplied by when they were centred.
    """

    stats: Statistics
    path: str
    cancellation: float = 1.0
    unit: Unit | None = None


def _sampled_shift(data: TrainingData, intercept: bool) -> FloatArray:
    """Rough means of the targets, and of the features where these need to be shifted, else 0."""
    d = data.n_features
    if not intercept:
        return np.zeros(d + data.n_targets)
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


def gather(
    data: TrainingData,
    *,
    intercept: bool,
    device: torch.device,
    limit: float,
    least_rest: float = 0.0,
) -> Gathered:
    """Statistics of `data`, from its Gram matrix if that multiplies rounding errors by < `limit`.

    The residuals, too, have to be `least_rest` of the squares of each target at least, below which
    rounding would show in them. Raises ValueError if the rows are not finite, which sums tell.
    """
    d = data.n_features
    # there is no float64 on that device
    device = torch.device("cpu") if device.type == "mps" else device
    with np.errstate(invalid="ignore", over="ignore"):
        shift = _sampled_shift(data, intercept)
    finite = True
    if data.n_samples >= d + intercept:
        for last in (False, True):
            with np.errstate(invalid="ignore", over="ignore"):
                G = _gram(data, shift, device)
                finite = bool(np.isfinite(G.sum()))
            if not finite:
                break
            c = _centre(G, shift, d, intercept)
            if c.cancellation > LARGE_CANCELLATION and not last:
                shift = shift + c.offset
                continue
            found = _cholesky(c, data, shift, intercept)
            if found is not None:
                stats, unit = found
                told = bool((stats.rest >= least_rest * stats.target_squares).all())
                if told and unit.condition**2 * c.cancellation < limit:
                    return Gathered(stats, "cholesky", c.cancellation, unit)
            break
    if data.verify is not None:
        data.verify()
    if not (finite and np.isfinite(shift).all()):
        # sums of finite numbers overflow
        raise ExtremeScales
    if data.n_samples < d + intercept:
        return Gathered(_from_rows(data, shift, intercept), "qr")
    return Gathered(_from_qr(data, shift, intercept, device), "qr")
