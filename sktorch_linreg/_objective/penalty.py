"""The elastic-net penalty and its gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Penalty:
    """The elastic-net term and the sign constraint, with their gradients written out.

    L1 and `positive` are kept by a projection after each update, so that zeros are exact: a weight
    that would cross zero stops there, and one at zero only leaves it where its (pseudo-)gradient
    says so (Andrew and Gao, 2007, "Scalable training of L1-regularized log-linear models"). The
    fixed points are the minimisers of the objective under any optimizer.
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
        """The steepest descent direction's negative, given the gradient of the smooth part."""
        right = gradient + self.l1  # derivative towards larger weights
        if self.positive:
            return torch.where(weight > 0, right, right.clamp(max=0.0))
        left = gradient - self.l1
        at_zero = right.clamp(max=0.0) + left.clamp(min=0.0)
        return torch.where(weight > 0, right, torch.where(weight < 0, left, at_zero))

    def project_(self, weight: Tensor, gradient: Tensor, before: Tensor) -> None:
        """After an update from `before`: what crossed zero, or may not leave it, becomes zero."""
        blocked = (before == 0) & (weight * gradient >= 0)
        if self.l1:
            blocked |= weight * before < 0
        weight.masked_fill_(blocked, 0.0)
        if self.positive:
            weight.clamp_(min=0.0)
