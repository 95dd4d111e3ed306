"""The elastic-net penalty and its gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .._runtime.aliases import FloatArray

# penalties that are added up in the compute dtype before they go into a longer sum
SHORT_SUM = 256


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


def longer(total: Any, part: Tensor) -> Any:
    """A sum gone on with, in double precision on the CPU; other devices are not waited for."""
    return total + (float(part) if part.device.type == "cpu" else part)


class PenaltySum:
    """The penalty summed over updates, each weighed by the rows of its batch."""

    def __init__(self, penalty: Penalty, weights: Tensor) -> None:
        self.l1, self.l2 = penalty.l1, penalty.l2
        self.counts = bool(self.l1 or self.l2)
        self.total: Any = 0.0
        if not self.counts:
            return
        self.weights = weights
        self.row = self.weights.view(1, -1)
        self.sum = torch.zeros_like(self.weights[:1])
        self.n_summed = 0

    def add(self, n_rows: int) -> None:
        """Count the penalty as it is before an update by so many rows."""
        if self.l2:
            self.sum.addmv_(self.row, self.weights, alpha=0.5 * self.l2 * n_rows)
        if self.l1:
            self.sum.add_(self.weights.abs().sum(), alpha=self.l1 * n_rows)
        self.n_summed += 1
        if self.n_summed % SHORT_SUM == 0:
            # many small numbers on top of a large one would round away
            self._move()

    def _move(self) -> None:
        self.total = longer(self.total, self.sum.clone())
        self.sum.zero_()

    def value(self) -> float:
        """The sum."""
        if self.counts:
            self._move()
        return float(self.total)


class StackedWeights(Protocol):
    """Parameters of several models, some of which are penalised."""

    n_groups: int
    n_each: int
    values: Tensor
    gradient: Tensor

    def expand(self, per_model: Tensor) -> Tensor:
        """One number per model as a number per parameter."""

    def penalised(self, per_model: Tensor) -> Tensor:
        """As `expand`, and 0 at the intercepts."""

    def per_model(self, flat: Tensor) -> Tensor:
        """Sums over the parameters of each model."""


class StackedPenalties:
    """The penalty of each model, summed over updates that are weighed by their rows."""

    def __init__(self, weights: StackedWeights, l1: FloatArray, l2: FloatArray) -> None:
        self.weights = weights
        device = weights.values.device
        self.has_l1, self.has_l2 = bool(l1.any()), bool(l2.any())
        if self.has_l1:
            self.full_l1 = weights.penalised(torch.from_numpy(l1).to(device))
            self.sizes = torch.zeros_like(weights.values)
        if self.has_l2:
            self.full_l2 = weights.penalised(torch.from_numpy(l2).to(device))
            self.squares = torch.zeros_like(weights.values)
        self.total: Any = 0.0
        self.n_summed = 0

    def add(self, counts: Sequence[int]) -> None:
        """Count the penalty as it is before an update by so many rows of each group."""
        values = self.weights.values
        n: Any = counts[0]
        if len(set(counts)) > 1:
            own = torch.tensor(counts, dtype=torch.float64, device=values.device)
            n = self.weights.expand(own[:, None].expand(-1, self.weights.n_each))
        if self.has_l1:
            _accumulate_(self.sizes, values.abs(), n)
        if self.has_l2:
            if isinstance(n, Tensor):
                self.squares.add_(values.square().mul_(n))
            else:
                self.squares.addcmul_(values, values, value=n)
        self.n_summed += 1
        if self.n_summed % SHORT_SUM == 0:
            # many small numbers on top of a large one would round away
            self._move()

    def _move(self) -> None:
        """Add what was summed in the compute dtype to the sums in double precision."""
        if self.has_l1:
            sizes = self.weights.per_model(self.sizes.mul_(self.full_l1))
            self.total = self.total + sizes.double()
            self.sizes.zero_()
        if self.has_l2:
            squares = self.weights.per_model(self.squares.mul_(self.full_l2))
            self.total = self.total + squares.double().mul_(0.5)
            self.squares.zero_()

    def add_gradient_(self) -> None:
        """Add the gradient of the L2 terms."""
        if self.has_l2:
            self.weights.gradient.addcmul_(self.weights.values, self.full_l2)

    def sums(self) -> Any:
        """The sums since the last call, of shape (n_groups, n_each)."""
        self._move()
        total, self.total = self.total, 0.0
        return total


def _accumulate_(total: Tensor, values: Tensor, n: Any) -> None:
    if isinstance(n, Tensor):
        total.addcmul_(values, n)
    else:
        total.add_(values, alpha=n)
