"""L1 terms and sign constraints, enforced exactly by a projection around each update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .penalty import Penalty


class Projection:
    """L1 terms and sign constraints of one model or many, enforced exactly around each update.

    Parameters
    ----------
    weight, gradient : torch.Tensor
        Of the same shape; modified in place.
    l1 : float or torch.Tensor
        Weight of the L1 term, or one weight per entry.
    positive : bool
        Whether weights must be non-negative.
    reached : torch.Tensor of bool, optional
        Which entries are penalised; None for all.
    """

    def __init__(
        self,
        weight: Tensor,
        gradient: Tensor,
        l1: float | Tensor,
        positive: bool,
        reached: Tensor | None = None,
    ) -> None:
        self.weight, self.gradient, self.reached = weight, gradient, reached
        self.before = torch.empty_like(weight)
        pull: Any = l1
        self.pulling = Penalty(pull, positive=positive)
        # the projection does not depend on the weight of the L1 term
        has_l1 = isinstance(l1, Tensor) or l1 > 0
        self.projecting = Penalty(1.0 if has_l1 else 0.0, positive=positive)

    def pseudo_(self) -> None:
        """Before an update: replace the gradient with the pseudo-gradient."""
        self.before.copy_(self.weight)
        pseudo = self.pulling.pseudo_gradient(self.weight, self.gradient)
        if self.reached is None:
            self.gradient.copy_(pseudo)
        else:
            torch.where(self.reached, pseudo, self.gradient, out=self.gradient)

    def project_(self) -> None:
        """After an update: zero the weights that crossed 0 or may not leave it."""
        if self.reached is None:
            self.projecting.project_(self.weight, self.gradient, self.before)
            return
        moved = self.weight.clone()
        self.projecting.project_(moved, self.gradient, self.before)
        torch.where(self.reached, moved, self.weight, out=self.weight)
