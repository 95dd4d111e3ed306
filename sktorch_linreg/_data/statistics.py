"""Sufficient statistics of least squares, with a numerically stable merge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from .._runtime.aliases import FloatArray
from .moments import Moments

EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Statistics:
    """Sufficient statistics of weighted least squares.

    `factor`, of shape (m, n_features + n_targets) with m at most n_features, holds the triangle R
    and Q^T y; `residual_ss`, of shape (n_targets,), is the residual sum of squares not contained
    in its rows. Means are ``shift + offset``, kept apart because adding the offset to a large shift
    would round it away. Weights are in units of ``2**exponent``; the exponent is even.
    """

    factor: FloatArray
    residual_ss: FloatArray
    shift: FloatArray
    offset: FloatArray
    n_samples: int
    n_features: int
    weight: float
    intercept: bool
    eps: float
    exponent: int = 0

    @property
    def mean(self) -> FloatArray:
        """Weighted means of features and targets, 0 without an intercept."""
        return self.shift + self.offset

    @cached_property
    def target_squares(self) -> FloatArray:
        """Weighted sums of squares of the centred targets."""
        qt_y = self.factor[:, self.n_features :]
        out: FloatArray = self.residual_ss + np.einsum("ij,ij->j", qt_y, qt_y)
        return out

    def moments(self) -> tuple[Moments, Moments]:
        """Means and squared deviations of features and of targets."""
        d, mean = self.n_features, self.mean
        squares = np.einsum("ij,ij->j", self.factor, self.factor)
        return (
            Moments(self.weight, mean[:d], squares[:d], self.exponent),
            Moments(self.weight, mean[d:], squares[d:] + self.residual_ss, self.exponent),
        )

    def to_state(self) -> dict[str, Any]:
        """Plain numbers and arrays, for pickling."""
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        # the name used in files since the first version
        state["rest"] = state.pop("residual_ss")
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Statistics:
        """Inverse of `to_state`."""
        return cls(**{("residual_ss" if k == "rest" else k): v for k, v in state.items()})

    @staticmethod
    def pack(state: dict[str, Any]) -> dict[str, Any]:
        """The result of `to_state`, without the zeros below the diagonal of a triangular factor."""
        out = dict(state)
        factor = out.pop("factor")
        if np.tril(factor, -1).any():
            # not triangular: the few rows themselves
            return state
        at = np.triu_indices(len(factor), m=factor.shape[1])
        return {**out, "triangle": factor[at], "shape": factor.shape}

    @staticmethod
    def unpack(state: dict[str, Any]) -> dict[str, Any]:
        """Inverse of `pack`."""
        out = dict(state)
        shape = out.pop("shape")
        triangle, (n_rows, n_columns) = out.pop("triangle"), shape
        full = n_rows * n_columns - n_rows * (n_rows - 1) // 2
        if n_rows > n_columns or triangle.shape != (full,):
            raise ValueError("the shape of the statistics does not match their triangle")
        out["factor"] = np.zeros(shape)
        out["factor"][np.triu_indices(n_rows, m=n_columns)] = triangle
        return out

    def in_units_of(self, exponent: int) -> Statistics:
        """The same statistics with weights in units of ``2**exponent``."""
        by = self.exponent - exponent
        return replace(
            self,
            factor=np.ldexp(self.factor, by // 2),
            residual_ss=np.ldexp(self.residual_ss, by),
            weight=math.ldexp(self.weight, by),
            exponent=exponent,
        )

    def merge(self, other: Statistics) -> Statistics:
        """Statistics of the rows of both, from one QR decomposition of the stacked factors."""
        if self.exponent != other.exponent:
            exponent = max(self.exponent, other.exponent)
            return self.in_units_of(exponent).merge(other.in_units_of(exponent))
        weight = self.weight + other.weight
        parts = [self.factor, other.factor]
        offset = self.offset
        if self.intercept:
            # the difference of the means (Chan, Golub and LeVeque, 1983)
            step = (other.shift - self.shift) + other.offset - self.offset
            parts.append(np.sqrt(self.weight / weight * other.weight) * step[None])
            offset = offset + step * (other.weight / weight)
        factor, rest = split(triangle(np.concatenate(parts)), self.n_features)
        return replace(
            self,
            factor=factor,
            residual_ss=self.residual_ss + other.residual_ss + rest,
            offset=offset,
            n_samples=self.n_samples + other.n_samples,
            weight=weight,
            eps=max(self.eps, other.eps),
        )


def triangle(rows: FloatArray) -> FloatArray:
    out: FloatArray = torch.linalg.qr(torch.from_numpy(rows), mode="r").R.numpy()
    return out


def split(body: FloatArray, n_features: int) -> tuple[FloatArray, FloatArray]:
    """The rows of the features, and the targets' sums of squares below them."""
    below = body[n_features:, n_features:]
    return body[:n_features], np.einsum("ij,ij->j", below, below)


def unit_columns(A: FloatArray) -> tuple[FloatArray, FloatArray]:
    """A with columns of norm one, and the norms; zero columns stay zero."""
    norms = np.sqrt(np.einsum("ij,ij->j", A, A))
    return A / np.where(norms > 0, norms, 1.0), norms
