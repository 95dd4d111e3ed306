"""L-BFGS for objectives with an L1 penalty or a sign constraint."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._objective.penalty import Penalty


class OrthantLBFGS(torch.optim.Optimizer):
    """L-BFGS for a smooth objective plus an L1 term, or under a sign constraint.

    Orthant-wise limited-memory quasi-Newton (Andrew and Gao, 2007, "Scalable training of
    L1-regularized log-linear models"): the direction comes from gradients of the smooth part, is
    kept in the orthant of the pseudo-gradient, and the line search projects onto that orthant.
    Two-dimensional parameters are penalised, others (intercepts) are not. The closure must return
    only the smooth part.

    Parameters
    ----------
    params : iterable of torch.nn.Parameter
        Parameters to optimise.
    penalty : Penalty
        The L1 term and the constraint; its L2 term is part of the smooth part.
    lr : float, default=1.0
        First step length tried.
    max_iter : int, default=20
        Iterations per call of `step`.
    history_size : int, default=20
        Number of curvature pairs kept.
    tolerance_grad : float, default=1e-12
        Stop when no entry of the pseudo-gradient is larger in absolute value.
    tolerance_change, max_eval, line_search_fn
        Accepted for compatibility with `torch.optim.LBFGS` and ignored: the line search always
        backtracks by halving.
    """

    def __init__(
        self,
        params: Any,
        penalty: Penalty,
        lr: float = 1.0,
        max_iter: int = 20,
        history_size: int = 20,
        tolerance_grad: float = 1e-12,
        tolerance_change: float = 0.0,
        max_eval: int | None = None,
        line_search_fn: str | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr})
        self.penalty = penalty
        self.max_iter = max_iter
        self.history_size = history_size
        self.tolerance_grad = tolerance_grad
        self._parameters = self.param_groups[0]["params"]
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def _flat(self, gradient: bool = False) -> Tensor:
        parts = [p.grad if gradient else p for p in self._parameters]
        return torch.cat([p.detach().reshape(-1) for p in parts])

    def _set(self, flat: Tensor) -> None:
        start = 0
        for p in self._parameters:
            p.copy_(flat[start : start + p.numel()].view_as(p))
            start += p.numel()

    def _direction(self, gradient: Tensor) -> Tensor:
        """The two-loop recursion."""
        q = gradient.clone()
        steps = []
        for s, y in reversed(self._pairs):
            a = s.dot(q) / y.dot(s)
            q.add_(y, alpha=-float(a))
            steps.append(a)
        if self._pairs:
            s, y = self._pairs[-1]
            q.mul_(s.dot(y) / y.dot(y))
        for (s, y), a in zip(self._pairs, reversed(steps), strict=True):
            q.add_(s, alpha=float(a - y.dot(q) / y.dot(s)))
        return -q

    def _objective(self, closure: Callable[[], Tensor], x: Tensor, mask: Tensor) -> float:
        self._set(x)
        with torch.enable_grad():
            smooth = float(closure().detach())
        return smooth + self.penalty.l1 * float(x[mask].abs().sum())

    def state_dict(self) -> dict[str, Any]:
        """The state, including the curvature pairs."""
        return {**super().state_dict(), "pairs": list(self._pairs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        state = dict(state_dict)
        self._pairs = [(s, y) for s, y in state.pop("pairs", [])]
        super().load_state_dict(state)

    def forget(self) -> None:
        """Drop the curvature pairs, for when the objective has changed."""
        self._pairs.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> float:  # type: ignore[override]
        """Run up to `max_iter` iterations; returns the objective before the first."""
        mask = torch.cat([torch.full((p.numel(),), p.ndim == 2) for p in self._parameters])
        x = self._flat()
        mask = mask.to(x.device)
        first = value = self._objective(closure, x, mask)
        gradient = self._flat(gradient=True)
        for _ in range(self.max_iter):
            pseudo = torch.where(mask, self.penalty.pseudo_gradient(x, gradient), gradient)
            if not math.isfinite(value) or float(pseudo.abs().max()) <= self.tolerance_grad:
                break
            found = self._search(closure, x, value, pseudo, mask)
            if found is None and self._pairs:
                self._pairs.clear()
                found = self._search(closure, x, value, pseudo, mask)
            if found is None:
                break
            moved, value = found
            new_gradient = self._flat(gradient=True)
            s, y = moved - x, new_gradient - gradient
            if float(s.dot(y)) > 1e-10 * float(s.norm() * y.norm()):
                self._pairs = [*self._pairs[1 - self.history_size :], (s, y)]
            x, gradient = moved, new_gradient
        self._set(x)
        return first

    def _search(
        self,
        closure: Callable[[], Tensor],
        x: Tensor,
        value: float,
        pseudo: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, float] | None:
        """Backtrack along the projected direction until the objective falls enough."""
        direction = self._direction(pseudo)
        direction[mask & (direction * pseudo >= 0)] = 0.0
        orthant = torch.where(x != 0, x.sign(), -pseudo.sign())
        step = self.param_groups[0]["lr"]
        if not self._pairs:
            step = min(step, 1.0 / max(float(pseudo.norm()), 1e-30))
        for _ in range(40):
            moved = x + step * direction
            moved[mask & (moved * orthant < 0)] = 0.0
            new_value = self._objective(closure, moved, mask)
            if new_value <= value + 1e-4 * float(pseudo.dot(moved - x)) and new_value < value:
                return moved, new_value
            step *= 0.5
        return None
