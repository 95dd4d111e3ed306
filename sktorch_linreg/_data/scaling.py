"""The scaling between the user's units and those used in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._runtime.aliases import Array, FloatArray, Layers
from .blocks import over_blocks
from .moments import Moments


def reciprocal(scale: FloatArray) -> FloatArray:
    """1 / scale, and 0 where the scale is 0, as for a constant column."""
    factor = np.zeros_like(scale)
    np.divide(1.0, scale, out=factor, where=scale > 0)
    return factor


@dataclass(frozen=True)
class Scaling:
    """The affine maps between the user's units and those used in training.

    A constant column has `x_scale` 0: nothing is learned from it and its coefficient is 0. A
    constant target has `y_scale` 0: its predictions are that constant. `Loss.target_units` defines
    how targets are shifted and scaled.
    """

    x_offset: FloatArray
    x_scale: FloatArray
    y_offset: FloatArray
    y_scale: FloatArray

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Scaling:
        """Inverse of `vars`; version 0.1 also stored the link, which now belongs to the loss."""
        return cls(**{name: value for name, value in state.items() if name != "log_link"})

    def extended_by(self, later: Scaling) -> Scaling:
        """A copy with the later scaling of columns and targets that have been constant so far."""
        parts = {}
        for side in ("x", "y"):
            constant = getattr(self, f"{side}_scale") == 0
            for name in (f"{side}_offset", f"{side}_scale"):
                parts[name] = np.where(constant, getattr(later, name), getattr(self, name))
        return Scaling(**parts)

    @property
    def fits_single(self) -> bool:
        """Whether all of it fits float32 with headroom for the computation."""
        sizes = np.abs(np.concatenate([self.x_offset, self.x_factor, self.y_offset, self.y_scale]))
        return bool(sizes.max(initial=0.0) < 1e30)

    @property
    def x_factor(self) -> FloatArray:
        """Factor of each centred column: 1 / `x_scale`, and 0 for a constant column."""
        return reciprocal(self.x_scale)


def identity_scaling(n_features: int, n_targets: int) -> Scaling:
    """The scaling that leaves all units unchanged."""
    return Scaling(
        np.zeros(n_features), np.ones(n_features), np.zeros(n_targets), np.ones(n_targets)
    )


def rounding_level(mean: FloatArray) -> FloatArray:
    """Deviations up to which values around a mean count as constant."""
    level: FloatArray = 4 * np.finfo(np.float64).eps * np.abs(mean)
    return level


def column_scale(m: Moments, centred: bool) -> FloatArray:
    """Standard deviation of each column (its root mean square if not centred), 0 if constant."""
    deviation: FloatArray = np.sqrt(m.deviation / m.weight)
    if not centred:
        return np.hypot(deviation, m.mean)
    deviation[deviation <= rounding_level(m.mean)] = 0.0
    return deviation


def to_user_units(layers: Layers, scaling: Scaling) -> Layers:
    """Fold the scaling into the first and the last layer; float64 throughout."""
    out = [(w.astype(np.float64), None if b is None else b.astype(np.float64)) for w, b in layers]
    weight, bias = out[0]
    weight = weight * scaling.x_factor
    out[0] = weight, None if bias is None else bias - weight @ scaling.x_offset
    weight, bias = out[-1]
    weight = weight * scaling.y_scale[:, None]
    out[-1] = weight, None if bias is None else bias * scaling.y_scale + scaling.y_offset
    return out


def scaled(X: Array, offset: FloatArray, factor: FloatArray, dtype: Any) -> Array:
    """(X - offset) * factor in float64, then cast.

    Rows are contiguous. If there is nothing to do, the result may share the memory of `X`.
    """
    if not offset.any() and (factor == 1.0).all():
        return np.ascontiguousarray(X, dtype=dtype)
    out = np.empty(X.shape, dtype=dtype)

    def of_block(rows: slice, room: FloatArray) -> None:
        np.subtract(X[rows], offset, out=room)
        np.multiply(room, factor, out=out[rows], casting="same_kind")

    over_blocks(X, of_block)
    return out


def rewrite_layers(layers: Layers, old: Scaling, new: Scaling) -> Layers:
    """Convert layers from the units of `old` to those of `new`, with the same predictions.

    Weights of a column that was constant so far have never been used, and are left unchanged, as
    are those of a column or target that is constant now.
    """
    out = [(w.astype(np.float64), None if b is None else b.astype(np.float64)) for w, b in layers]
    weight, bias = out[0]
    seen, used = old.x_scale > 0, new.x_scale > 0
    weight = weight * np.where(seen & used, new.x_scale * old.x_factor, 1.0)
    shift = (new.x_offset - old.x_offset) * np.where(used, new.x_factor, old.x_factor)
    out[0] = weight, None if bias is None else bias + weight @ shift
    weight, bias = out[-1]
    used, factor = new.y_scale > 0, reciprocal(new.y_scale)
    ratio = np.where(used, old.y_scale * factor, 1.0)
    if bias is not None:
        bias = bias * ratio + (old.y_offset - new.y_offset) * factor
    out[-1] = weight * ratio[:, None], bias
    return out
