"""Rows as tensors, and the batches of an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ._data import scaled_block
from ._types import FitSpec, Scaling, TrainingData


class TabularDataset(Dataset[Any]):
    """Rows as tensors; sparse rows stay a CSR matrix until they are a batch.

    Parameters
    ----------
    X : torch.Tensor or CSR matrix of shape (n_samples, n_features)
        Features.
    y : torch.Tensor of shape (n_samples, n_targets), optional
        Targets.
    weight : torch.Tensor of shape (n_samples,), optional
        Weights relative to their mean over the training set, so that the mean over a batch of
        ``weight * loss`` estimates the weighted mean over all rows without bias.
    """

    def __init__(self, X: Any, y: Tensor | None = None, weight: Tensor | None = None) -> None:
        self.X, self.y, self.weight = X, y, weight

    @classmethod
    def for_training(cls, data: TrainingData, scaling: Scaling, spec: FitSpec) -> Self:
        """Scaled rows in the compute dtype, on the device."""
        dtype = torch.empty(0, dtype=spec.dtype).numpy().dtype
        X: Any
        if sp.issparse(data.X):
            X = data.X.astype(dtype)
        else:
            block = scaled_block(data.X, scaling.x_offset, scaling.x_factor, dtype)
            X = torch.from_numpy(block).to(spec.device)
        target = scaled_block(data.y, *scaling.y_shift_and_factor, dtype)
        weight = None
        if data.weight is not None:
            relative = (data.weight / data.weight.mean()).astype(dtype)
            weight = torch.from_numpy(relative).to(spec.device)
        return cls(X, torch.from_numpy(target).to(spec.device), weight)

    @classmethod
    def raw(cls, X: Any, y: Any = None) -> Self:
        """Rows as they are."""

        def as_tensor(values: Any) -> Any:
            if sp.issparse(values):
                return values.tocsr()
            return values if isinstance(values, Tensor) else torch.as_tensor(np.array(values))

        return cls(as_tensor(X), None if y is None else as_tensor(y))

    def __len__(self) -> int:
        return int(self.X.shape[0])

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        x, y, _ = self.batch(index)
        # torch's own loader cannot collate None
        return x, torch.tensor(0) if y is None else y

    def batch(self, index: Any) -> tuple[Any, Any, Any]:
        """Features, targets and weights of the rows that `index` names."""
        x = self.X[index] if isinstance(self.X, Tensor) else self._as_tensor(self.X[index])
        return (
            x,
            None if self.y is None else self.y[index],
            None if self.weight is None else self.weight[index],
        )

    def permuted(self, order: Tensor) -> TabularDataset:
        """A copy with rows in another order."""
        on_device = order if self.y is None else order.to(self.y.device)
        X = self.X[on_device] if isinstance(self.X, Tensor) else self.X[order.numpy()]
        return TabularDataset(
            X,
            None if self.y is None else self.y[on_device],
            None if self.weight is None else self.weight[on_device],
        )

    def _as_tensor(self, rows: Any) -> Tensor:
        row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
        tensor = torch.sparse_coo_tensor(
            torch.from_numpy(np.stack([row, rows.indices.astype(np.int64)])),
            torch.from_numpy(rows.data),
            size=rows.shape,
            is_coalesced=True,
            check_invariants=False,
        )
        return tensor if self.y is None else tensor.to(self.y.device)


class BatchIterator:
    """Batches of a `TabularDataset` as contiguous slices, of a permuted copy where shuffled."""

    def __init__(
        self,
        dataset: TabularDataset,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.dataset = dataset
        self.batch_size = max(1, min(batch_size or len(dataset), len(dataset)))
        # the order of rows within a full batch changes nothing
        self.generator = generator if self.batch_size < len(dataset) else None
        self._whole = dataset.batch(slice(None)) if self.batch_size == len(dataset) else None

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for x, y, _ in self.weighted():
            yield x, y

    def weighted(self) -> Iterator[tuple[Any, Any, Any]]:
        """Features, targets and weights (or None) of each batch."""
        if self._whole is not None:
            yield self._whole
            return
        rows = self.dataset
        if self.generator is not None:
            rows = rows.permuted(torch.randperm(len(rows), generator=self.generator))
        for start in range(0, len(rows), self.batch_size):
            yield rows.batch(slice(start, start + self.batch_size))
