"""The objective of one module: its values and gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from .._modules.network import MLPModule
from .._modules.scaled import ScaledModule
from .._objective.losses import Loss, blamed_on
from .._objective.penalty import Penalty, PenaltySum
from .._objective.projection import Projection
from .._runtime.devices import DEVICES
from .._runtime.processes import raise_first
from .batches import Batch, Block
from .flat_parameters import FlatParameters
from .gradients import Backprop
from .model_numbers import ONE
from .training_objective import MeanLoss, TrainingObjective

# width of the first envelope that L-BFGS minimises for a loss with kinks, then reduced tenfold
FIRST_WIDTH = 0.1


class ModuleObjective(TrainingObjective):
    """Loss and penalty of a module.

    Dense rows of a network use the written-out gradients of `Backprop`. Modules of the user's,
    sparse rows, frozen parameters, modules with hooks, other activations, and devices other than
    `DEVICES` use autograd.

    Parameters
    ----------
    module : ScaledModule
        The module to train; its parameters become views of one vector.
    loss : Loss
        The requested loss.
    penalty : Penalty
        The elastic-net term and the sign constraint.
    own_penalty : bool
        Whether the optimizer handles the L1 term and the constraint itself, so that it is given
        only the smooth part.
    transposed : bool, default=True
        Whether the optimizer supports weights stored column-major.
    with_frozen : bool, default=False
        Whether callbacks may unfreeze parameters.
    """

    numbers = ONE

    def __init__(
        self,
        module: ScaledModule,
        loss: Loss,
        penalty: Penalty,
        own_penalty: bool,
        transposed: bool = True,
        *,
        with_frozen: bool = False,
    ) -> None:
        self.module, self.loss, self.penalty = module, loss, penalty
        self._smooth_penalty = Penalty(l2=penalty.l2)
        self.projects = penalty.projects and not own_penalty
        # torch's own layout where torch multiplies
        transposed = transposed and module.by_hand
        self.flat = FlatParameters(module, loss.module, transposed, with_frozen=with_frozen)
        self.penalties = PenaltySum(self.flat.weights, penalty.l1, penalty.l2, torch.sum)
        self.width: float | None = None
        self.minimised = loss
        self.backprop: Backprop | None = None
        # the loss of each batch before its update; one of the user's may change with each call
        self.keeps_losses = loss.own
        self.batch_losses: list[Tensor] = []
        self.configure()

    def configure(self) -> bool:
        """Set up for the trainable parameters; returns whether these are the same as at first."""
        flat, module = self.flat, self.module
        flat.take_parameters()
        flat.offer_gradients()
        n_trained = len(flat.trained.parameters)
        whole = all(p.requires_grad == (i < n_trained) for i, p in enumerate(flat.parameters))
        by_hand = (
            whole
            and flat.values.device.type in DEVICES
            and not module.scale_input
            and module.by_hand
            and not any(map(_has_hooks, module.modules()))
        )
        if not by_hand:
            self.backprop = None
        elif self.backprop is None:
            self.backprop = Backprop(cast(MLPModule, module), flat, self.penalty.l2)
        # the trainable penalised weights, and their gradients
        self.weights = [(flat.weights, flat.weights_gradient)]
        if not whole:
            self.weights = [(w.detach(), w.grad) for w in module.weights if w.grad is not None]
        l1, positive = self.penalty.l1, self.penalty.positive
        pairs = self.weights if self.projects else []
        self.projections = [Projection(w, grad, l1, positive) for w, grad in pairs]
        return whole

    # -- envelopes of losses with kinks ---------------------------------------------------------

    def smooth_at(self, width: float | None) -> None:
        """Minimise the envelope of this width, or the loss itself if None."""
        if width is None or self.loss.smoothed is None:
            self.width, self.minimised = None, self.loss
            return
        self.width = width
        self.minimised = replace(self.loss, pointwise=self.loss.smoothed(width), slope=None)

    def sharpen(self) -> bool:
        """Narrow the envelope; returns False if it is already narrow enough."""
        eps = torch.finfo(self.flat.values.dtype).eps
        if self.width is None or self.width <= 10 * eps**0.5:
            return False
        self.smooth_at(0.1 * self.width)
        return True

    # -- called during an epoch -----------------------------------------------------------------

    def n_rows_of(self, batch: Batch) -> int:
        """Number of rows by which the penalty before an update is weighted."""
        return batch.n_all

    # -- gradients ------------------------------------------------------------------------------

    def gradient_(self, batch: Batch) -> None:
        """Write outputs into `batch.out`, and the gradient of the minimised function into `flat`.

        It is the gradient of the smooth part if the optimizer handles the rest of the penalty, and
        the pseudo-gradient where weights are projected.
        """
        if self.group.size == 1:
            self._own_gradient_(batch)
        else:
            self._shared_gradient_(batch)
        for projection in self.projections:
            projection.pseudo_()

    def _own_gradient_(self, batch: Batch) -> None:
        """The gradient for the rows of this process."""
        mean = None
        if not batch.n_rows:
            self.flat.gradient.zero_()
        elif self.backprop is not None:
            mean = self.backprop.gradient_(batch, self.minimised)
        else:
            mean = self._by_autograd(batch)
        if self.keeps_losses and mean is not None:
            self.batch_losses.append(mean)

    def _shared_gradient_(self, batch: Batch) -> None:
        """The gradient for the rows of all processes; an error on one is raised on all."""
        gradient, failure = self.flat.gradient, []
        try:
            self._own_gradient_(batch)
        except Exception as error:
            failure.append(error)
            gradient.zero_()
        # the penalty is also weighted by rows, which sum to those of the batch
        gradient.mul_(batch.n_rows / batch.n_all)
        # the last entry counts errors
        together = torch.cat([gradient, gradient.new_full((1,), float(len(failure)))])
        self.group.sum_(together)
        if not torch.isfinite(together[-1]) or together[-1] > 0:
            self.group.run(lambda: raise_first(failure))
        gradient.copy_(together[:-1])

    def _by_autograd(self, batch: Batch) -> Tensor:
        """As `gradient_`; returns the mean loss."""
        self.flat.gradient.zero_()
        if not any(p.requires_grad for p in self.flat.parameters):
            batch.out.copy_(self.module.outputs(batch.x))
            return self.minimised.mean(batch.out, batch.y, batch.row_weight)
        with torch.inference_mode(False), torch.enable_grad():
            output = self.module.outputs(batch.x)
            with blamed_on(self.minimised):
                mean = self.minimised.mean(output, batch.y, batch.row_weight)
            # a loss of the user's is to blame only where there is no module of the user's
            with self.module.blamed() or blamed_on(self.minimised):
                mean.backward()  # type: ignore[no-untyped-call]
        self.flat.take_gradients()
        batch.out.copy_(output.detach())
        if self.penalty.l2:
            for w, grad in self.weights:
                grad.add_(w, alpha=self.penalty.l2)
        return mean.detach()

    def outputs_(self, batch: Batch) -> None:
        """Write outputs into `batch.out`, without dropout."""
        if self.backprop is not None:
            self.backprop.outputs_(batch)
        else:
            batch.out.copy_(self.module.outputs(batch.x))

    def add_loss(self, mean: MeanLoss, block: Block) -> None:
        """Add the loss of a block, as it was before each update."""
        if not self.keeps_losses:
            mean.add(block)
            return
        rows = [batch.n_rows for batch in block.batches if batch.n_rows]
        for n_rows, value in zip(rows, self.batch_losses, strict=True):
            mean.add_sum(value * n_rows, n_rows)
        self.batch_losses.clear()

    # -- values ---------------------------------------------------------------------------------

    def values(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """For the current outputs: penalised loss, minimised function and the latter's smooth part.

        All three are means over the rows of the batch.
        """
        loss = minimised = self._mean(self.loss, batch)
        self.batch_losses.clear()
        if self.minimised is not self.loss:
            minimised = self._mean(self.minimised, batch)
        if not (self.penalty.l1 or self.penalty.l2):
            return loss, minimised, minimised
        # frozen weights are penalised too
        weights = [self.flat.weights]
        added = self.penalty.value(weights)
        smooth = minimised + self._smooth_penalty.value(weights)
        return loss + added, minimised + added, smooth

    def _mean(self, loss: Loss, batch: Batch) -> Tensor:
        """Mean of a loss over the rows of a batch in all processes."""

        def local() -> Tensor:
            if self.batch_losses:
                # evaluated once, since that may change its state
                return self.batch_losses[-1]
            return loss.mean(batch.out, batch.y, batch.row_weight)

        if self.group.size == 1:
            return local()
        mean = torch.zeros((), dtype=torch.float64, device=batch.out.device)
        if batch.n_rows:
            part = local()
            mean += part * (batch.n_rows / batch.n_all)
        self.group.sum_(mean)
        return mean.to(batch.out.dtype)

    def penalty_value(self) -> float:
        """The penalty at the current weights."""
        return float(self.penalty.value([self.flat.weights]))


def _has_hooks(module: torch.nn.Module) -> bool:
    """Whether the module has forward or backward hooks."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name, None) for name in names)
