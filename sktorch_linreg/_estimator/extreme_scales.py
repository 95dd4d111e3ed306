"""Fits of columns whose squares under- or overflow float64, rescaled by powers of two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from .._data.magnitudes import column_exponents
from .._data.rows import TrainingData
from .._data.scaling import Scaling
from .._errors import ExtremeScales
from .._runtime.aliases import Array, Layers
from .._spec import FitResult, FitSpec

# terms of a prediction below this share of the largest are lost to rounding
NEGLIGIBLE = 1e-12


@dataclass(frozen=True)
class Units:
    """The powers of two that columns were divided by, as their exponents."""

    x: Array
    y: Array

    @classmethod
    def of(cls, data: TrainingData, spec: FitSpec) -> Units:
        """Units in which the standardised columns are of order one."""
        x = np.zeros(data.n_features, dtype=np.int64)
        y = np.zeros(data.n_targets, dtype=np.int64)
        if spec.standardize != "target":
            x = column_exponents(data.X, data.weight)
        if spec.objective.loss.scales_target and spec.standardize != "features":
            y = column_exponents(data.y, data.weight)
        return cls(x, y)

    def rescale(self, data: TrainingData) -> TrainingData:
        """The rows in these units, in float64."""
        X: Any
        if sp.issparse(data.X):
            X = data.X.astype(np.float64, copy=True)
            X.data = np.ldexp(X.data, -self.x[X.indices])
        elif self.x.any():
            X = np.ldexp(np.asarray(data.X, dtype=np.float64), -self.x)
        else:
            # codes stay integers
            X = data.X if data.X.dtype.kind == "i" else np.asarray(data.X, dtype=np.float64)
        y = np.ldexp(np.asarray(data.y, dtype=np.float64), -self.y)
        held_out = None if data.held_out is None else self.rescale(data.held_out)
        return replace(data, X=X, y=y, held_out=held_out)

    def _layers(self, layers: Layers) -> Layers:
        out = list(layers)
        if not out:
            # a module of the user's predicts from the scaling
            return out
        weight, bias = out[0]
        out[0] = np.ldexp(weight, -self.x), bias
        weight, bias = out[-1]
        out[-1] = (
            np.ldexp(weight, self.y[:, None]),
            None if bias is None else np.ldexp(bias, self.y),
        )
        return out

    def _scaling(self, s: Scaling) -> Scaling:
        return replace(
            s,
            x_offset=np.ldexp(s.x_offset, self.x),
            x_scale=np.ldexp(s.x_scale, self.x),
            y_offset=np.ldexp(s.y_offset, self.y),
            y_scale=np.ldexp(s.y_scale, self.y),
        )

    @staticmethod
    def _vanish(before: Layers, after: Layers) -> bool:
        """Whether a coefficient that matters underflows float64."""
        if len(before) != 1:
            # a network predicts from its trained layers and their scaling
            return False
        scaled, restored = np.abs(before[0][0]), np.abs(after[0][0])
        counts = scaled > NEGLIGIBLE * scaled.max(axis=1, keepdims=True)
        # subnormal numbers lose digits
        return bool((counts & (restored < 1e-6 * np.finfo(np.float64).tiny)).any())

    def restore(self, result: FitResult) -> FitResult:
        """Convert the result of a fit in these units to the user's units.

        Raises
        ------
        ValueError
            If a coefficient overflows or underflows float64.
        """
        with np.errstate(over="ignore", under="ignore"):
            layers = self._layers(result.layers)
            path = [self._layers(entry) for entry in result.path]
            scaling = None if result.scaling is None else self._scaling(result.scaling)
            # the terms that predictions near the rows sum up
            terms = np.abs(layers[0][0]) @ np.ldexp(1.0, self.x) if len(layers) == 1 else 0.0
        arrays = [terms, *(a for layer in layers for a in layer if a is not None)]
        if not all(np.isfinite(a).all() for a in arrays) or self._vanish(result.layers, layers):
            raise ValueError(
                "The magnitudes of X and y are so far apart that the coefficients overflow or "
                "underflow float64. Multiply the columns of X, or y, by a power of ten."
            )
        out = replace(result, layers=layers, path=path, scaling=scaling)
        # the net and a continued fit would ignore these units
        out.state = out.moments = out.net = out.statistics = None
        return out

    def loss(self, data: TrainingData, layers: Layers) -> float:
        """The mean squared error, in the user's units, of a linear model on rescaled rows."""
        (weight, bias), *_ = layers
        residual = data.y - data.X @ weight.T
        residual = residual if bias is None else residual - bias
        squares = np.average(residual**2, axis=0, weights=data.weight)
        with np.errstate(over="ignore"):
            return float(np.mean(np.ldexp(squares, 2 * self.y)))


def fit_rescaled(
    fit: Callable[[TrainingData], FitResult], data: TrainingData, spec: FitSpec, *, allowed: bool
) -> FitResult:
    """Fit columns whose squares under- or overflow float64, rescaled by powers of two.

    This is `allowed` for a single-process fit that does not continue an earlier one: others cannot
    change their units.
    """
    refusal = ValueError(
        "X or y has magnitudes below 1e-140 or above 1e145, whose squares underflow or overflow "
        "float64. Only a plain, single-process fit can rescale such columns, without a warm start, "
        "and with standardize=True if there is an optimizer or a penalty. Otherwise multiply these "
        "columns by a power of ten."
    )
    free = spec.is_exact and not spec.objective.alpha
    if not allowed or not (spec.standardize or free):
        raise refusal
    units = Units.of(data, spec)
    rescaled = units.rescale(data)
    try:
        result = fit(rescaled)
    except ExtremeScales:
        # values within a single column may be that far apart
        raise refusal from None
    out = units.restore(result)
    if not spec.standardize:
        # this is least squares, the only objective allowed here without standardisation
        out.loss = out.best_loss = units.loss(rescaled, result.layers)
        out.loss_curve, out.history = [out.loss], [{"epoch": 1, "train_loss": out.loss}]
    return out
