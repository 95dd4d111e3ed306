"""The result of training a stack: parameters, losses and predictions of its models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .._data.arrays import as_tensor, chunks
from .._data.scaling import Scaling
from .._objective.losses import inverse_link
from .._runtime.aliases import Array, FloatArray, Mask
from .._runtime.torch_modes import own_torch_settings
from .._spec import FitResult, FitSpec
from .batches import TabularDataset
from .stacked_batches import StackedBatches, StackedRows
from .stacked_gradients import StackedBackprop
from .stacked_parameters import StackedLayers

ALL = slice(None)


@dataclass
class StackResult(ABC):
    """The results of each model; arrays have the shape (n_groups, n_each).

    `errors` holds an exception, such as a `TrainingDivergedError`, for each model without usable
    parameters.
    """

    parameters: Any
    scalings: list[Scaling]
    n_iter: Array
    loss: FloatArray
    best_loss: FloatArray
    unfinished: Mask
    errors: dict[tuple[int, int], Exception] = field(default_factory=dict)
    loss_curves: list[FloatArray] = field(default_factory=list)
    validation_curves: list[FloatArray] = field(default_factory=list)

    @property
    def n_unfinished(self) -> int:
        """Number of models that did not converge within their tolerance."""
        return int(self.unfinished.sum())

    def curve(self, which: list[FloatArray], group: int, place: int) -> list[float]:
        """One loss curve of a model."""
        return [float(epoch[group, place]) for epoch in which[: self.n_iter[group, place]]]

    @abstractmethod
    def state(self, group: int, place: int) -> dict[str, Any]:
        """The trained state of a model, as fields of a `FitResult`."""

    def fit_result(self, group: int, place: int, spec: FitSpec) -> FitResult:
        """The result of training a model individually, without a net; requires the curves."""
        loss = self.curve(self.loss_curves, group, place)
        validation = self.curve(self.validation_curves, group, place)
        history = [{"epoch": i + 1, "train_loss": value} for i, value in enumerate(loss)]
        for row, value in zip(history, validation, strict=False):
            row["valid_loss"] = value
        return FitResult.of_training(
            spec,
            scaling=self.scalings[group],
            curves=(loss, validation),
            best_loss=float(self.best_loss[group, place]),
            history=history,
            **self.state(group, place),
        )

    @abstractmethod
    def representable(self, group: int, dtype: Any, places: slice = ALL) -> Mask:
        """Which models have coefficients representable in X's dtype."""

    @abstractmethod
    def predict(self, group: int, X: Array, spec: FitSpec, places: slice = ALL) -> Array:
        """Predictions of models of a group, in the precision of X.

        Parameters
        ----------
        group : int
            The group.
        X : ndarray of shape (n_rows, n_features)
            Raw features.
        spec : FitSpec
            Specification of the fit, for the loss's link, and a network's activation.
        places : slice, default=all
            Places of the models within the group.

        Returns
        -------
        ndarray of shape (n_models, n_targets, n_rows)
            Predictions in the user's units.
        """


class NetworksResult(StackResult):
    """The result of training networks."""

    parameters: StackedLayers

    def state(self, group: int, place: int) -> dict[str, Any]:
        """The layers of a model, in training units."""
        return {"trained": self.parameters.layers(group, place)}

    def representable(self, group: int, dtype: Any, places: slice = ALL) -> Mask:
        """Which models have coefficients representable in X's dtype; networks always do."""
        parameters, s = self.parameters, self.scalings[group]
        weight = parameters.views[0][group, places, :, : len(s.x_offset)].cpu().numpy()
        if len(parameters.sizes) > 2 or dtype != np.float32:
            return np.ones(len(weight), dtype=bool)
        coef = np.abs(weight * s.x_factor * s.y_scale[:, None])
        single = np.finfo(np.float32)
        # models with tiny ones are scored individually, since only some of these matter
        fine = (coef < single.max) & ((coef > 1e3 * single.tiny) | (weight == 0))
        out: Mask = fine.all(axis=(1, 2))
        return out

    def predict(self, group: int, X: Array, spec: FitSpec, places: slice = ALL) -> Array:
        """Predictions of models of a group, in the precision of X; see `StackResult`."""
        with own_torch_settings(torch.device("cpu")), torch.inference_mode():
            return self._predict(group, X, spec, places)

    def _predict(self, group: int, X: Array, spec: FitSpec, places: slice) -> Array:
        s, parameters = self.scalings[group], self.parameters
        n = len(range(*places.indices(parameters.n_each)))
        dtype = as_tensor(X).dtype
        one = StackedLayers(parameters.sizes, parameters.bias, 1, n, dtype, torch.device("cpu"))
        for mine, its in zip(one.views, parameters.views, strict=True):
            mine.copy_(its[group : group + 1, places])
        rows = (X - s.x_offset.astype(X.dtype)) * s.x_factor.astype(X.dtype)
        target = torch.empty(0, parameters.sizes[-1], dtype=one.values.dtype)
        out = np.empty((n, parameters.sizes[-1], len(X)), dtype=X.dtype)
        backprop = StackedBackprop(one, spec.shape.activation)
        widest = max(parameters.sizes) * n
        for part in chunks(len(X), widest):
            block = torch.from_numpy(np.ascontiguousarray(rows[part]))
            given = TabularDataset(block, target.new_zeros(len(block), parameters.sizes[-1]))
            batches = StackedBatches(StackedRows([given], parameters.bias), [0], n, len(block))
            for b in batches.blocks():
                for batch in b.batches:
                    backprop.outputs_(batch)
                    out[:, :, part] = batch.out[0].numpy()
        offset, scale = (a.astype(X.dtype)[:, None] for a in (s.y_offset, s.y_scale))
        out = out * scale + offset
        predictions: Array = inverse_link(out, spec.objective.loss.log_link)
        return predictions
