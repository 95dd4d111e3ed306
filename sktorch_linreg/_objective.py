"""The objective at one batch, its gradients, and its smooth stand-in for losses with kinks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ._losses import Penalty
from ._modules import MLPModule
from ._types import Loss

# L-BFGS follows a loss with kinks from this width of its envelope down, tenfold at a time
FIRST_WIDTH = 0.1


class TrainingObjective:
    """Loss and penalty of a module, as the optimizer sees them.

    Parameters
    ----------
    module : MLPModule
        What is trained.
    loss : Loss
        The loss that was asked for.
    penalty : Penalty
        The elastic-net term and the sign constraint.
    own_penalty : bool
        Whether the optimizer keeps the L1 term and the constraint by itself, so that it has to be
        given the smooth part alone.
    """

    def __init__(self, module: MLPModule, loss: Loss, penalty: Penalty, own_penalty: bool) -> None:
        self.module, self.loss, self.penalty = module, loss, penalty
        self.own_penalty = own_penalty
        self.width: float | None = None
        self.surrogate: Loss | None = None

    @property
    def weights(self) -> list[Tensor]:
        """The penalised weights that are trained."""
        return [w for w in self.module.weights if w.requires_grad]

    @property
    def projected(self) -> list[Tensor]:
        """The weights that are projected after an update."""
        return self.weights if self.penalty.projects and not self.own_penalty else []

    def smooth_at(self, width: float | None) -> None:
        """Minimise the envelope of this width, or the loss itself."""
        self.width = width
        if width is None or self.loss.smoothed is None:
            self.width, self.surrogate = None, None
        else:
            self.surrogate = replace(self.loss, pointwise=self.loss.smoothed(width))

    def sharpen(self) -> bool:
        """Bring the envelope closer to the loss; False if it is close enough."""
        eps = torch.finfo(self.module.x_offset.dtype).eps
        if self.width is None or self.width <= 10 * eps**0.5:
            return False
        self.smooth_at(0.1 * self.width)
        return True

    def gradients(self, x: Tensor, y: Tensor, weight: Tensor | None) -> Mapping[str, Any]:
        """Fill in the gradients; returns the loss asked for and what is minimised, with penalty.

        ``"smooth"`` is what the optimizer has to be told: all of it, or all but the L1 term.
        """
        output = self.module(x)
        loss = minimised = self.loss.mean(output, y, weight)
        if self.surrogate is not None:
            minimised = self.surrogate.mean(output, y, weight)
        minimised.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            weights = self.weights
            self.penalty.add_smooth_gradient_(weights)
            added = self.penalty.value(weights)
            value = minimised.detach() + added
            smooth = value
            if self.own_penalty:
                smooth = minimised.detach() + Penalty(l2=self.penalty.l2).value(weights)
            for w in self.projected:
                w.grad = self.penalty.pseudo_gradient(w, w.grad)  # type: ignore[arg-type]
            return {
                "loss": loss.detach() + added,
                "y_pred": output.detach(),
                "minimised": value,
                "smooth": smooth,
            }

    @torch.no_grad()
    def project_(self, before: list[Tensor]) -> None:
        """Put the projected weights, which were `before` the update, back where they may be."""
        for w, old in zip(self.projected, before, strict=True):
            self.penalty.project_(w, old)
