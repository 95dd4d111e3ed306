"""The elastic-net penalty and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# penalties summed in the compute dtype before they are added to the total in double precision
SHORT_SUM = 256


@dataclass(frozen=True)
class Penalty:
    """The elastic-net term and the sign constraint, with their gradients written out.

    L1 and `positive` are enforced by a projection after each update, so that zeros are exact: a
    weight that would cross zero stops there, and one at zero only leaves it in the direction of its
    negative (pseudo-)gradient (Andrew and Gao, 2007, "Scalable training of L1-regularized
    log-linear models"). The fixed points are the minimisers of the objective under any optimizer.
    """

    l1: float = 0.0
    l2: float = 0.0
    positive: bool = False

    @property
    def projects(self) -> bool:
        return self.l1 > 0 or self.positive

    def value(self, weights: Iterable[Tensor]) -> float | Tensor:
        """The penalty term of the objective."""
        total: float | Tensor = 0.0
        for w in weights:
            if self.l1:
                total = total + self.l1 * w.abs().sum()
            if self.l2:
                total = total + 0.5 * self.l2 * w.square().sum()
        return total

    def pseudo_gradient(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """The negative steepest-descent direction, given the gradient of the smooth part."""
        right = gradient + self.l1  # derivative towards larger weights
        if self.positive:
            return torch.where(weight > 0, right, right.clamp(max=0.0))
        left = gradient - self.l1
        at_zero = right.clamp(max=0.0) + left.clamp(min=0.0)
        return torch.where(weight > 0, right, torch.where(weight < 0, left, at_zero))

    def project_(self, weight: Tensor, gradient: Tensor, before: Tensor) -> None:
        """After an update from `before`: zero the weights that crossed 0 or may not leave it."""
        blocked = (before == 0) & (weight * gradient >= 0)
        if self.l1:
            blocked |= weight * before < 0
        weight.masked_fill_(blocked, 0.0)
        if self.positive:
            weight.clamp_(min=0.0)


def longer(total: Any, part: Tensor) -> Any:
    """Add to a running sum, in double precision where supported, without waiting for a device."""
    if part.ndim == 0 and part.device.type == "cpu":
        return total + float(part)
    return total + (part if part.device.type == "mps" else part.double())


class PenaltySum:
    """The penalty of one model or of many, summed over updates and weighted by their rows.

    Parameters
    ----------
    values : torch.Tensor of shape (n_parameters,)
        Parameters, which updates change in place.
    l1, l2 : float or torch.Tensor of shape (n_parameters,)
        Weights of the absolute values and of half the squares.
    per_model : callable
        Sums the entries of each model.
    """

    def __init__(
        self,
        values: Tensor,
        l1: float | Tensor,
        l2: float | Tensor,
        per_model: Callable[[Tensor], Tensor],
    ) -> None:
        self.values, self.per_model = values, per_model
        # (whether it is the L2 term, its weight, its sum in the compute dtype)
        self.terms = [
            (squares, weight, torch.zeros_like(values))
            for squares, weight in ((False, l1), (True, l2))
            if isinstance(weight, Tensor) or weight
        ]
        self.total: Any = 0.0
        self.n_summed = 0

    def add(self, n_rows: float | Tensor) -> None:
        """Add the penalty before an update, weighted by its rows (one number or one each)."""
        values = self.values
        for squares, _, total in self.terms:
            if isinstance(n_rows, Tensor):
                total.addcmul_(values.square() if squares else values.abs(), n_rows)
            elif squares:
                total.addcmul_(values, values, value=n_rows)
            else:
                total.add_(values.abs(), alpha=n_rows)
        self.n_summed += 1
        if self.n_summed % SHORT_SUM == 0:
            # small terms would be rounded away in a large sum
            self._move()

    def _move(self) -> None:
        """Add the sum in the compute dtype to the total in double precision."""
        for squares, weight, total in self.terms:
            part = self.per_model(total.mul_(0.5 * weight if squares else weight))
            self.total = longer(self.total, part)
            total.zero_()

    def take(self) -> Any:
        """The sum of each model since the last call."""
        self._move()
        total, self.total, self.n_summed = self.total, 0.0, 0
        return total
