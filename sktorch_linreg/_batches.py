"""Rows as tensors, and the batches of an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ._data import scaled_block
from ._types import FitSpec, Scaling, TrainingData


class TabularDataset(Dataset[Any]):
    """Rows as tensors in the compute dtype; sparse rows stay a CSR matrix until they are a batch.

    `weight` is relative to its mean over the training set, so that the mean over a batch of
    `weight * loss` estimates the weighted mean over all rows without bias.
    """

    def __init__(self, data: TrainingData, scaling: Scaling, spec: FitSpec) -> None:
        numpy_dtype = torch.empty(0, dtype=spec.dtype).numpy().dtype
        self.sparse = sp.issparse(data.X)
        self.X: Any
        if self.sparse:
            self.X = data.X.astype(numpy_dtype)
        else:
            block = scaled_block(data.X, scaling.x_offset, scaling.x_factor, numpy_dtype)
            self.X = torch.from_numpy(block).to(spec.device)
        target = scaled_block(data.y, scaling.y_offset, 1.0 / scaling.y_scale, numpy_dtype)
        self.y = torch.from_numpy(target).to(spec.device)
        self.weight: Tensor | None = None
        if data.weight is not None:
            relative = (data.weight / data.weight.mean()).astype(numpy_dtype)
            self.weight = torch.from_numpy(relative).to(spec.device)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        x = self.to_batch(self.X[index]) if self.sparse else self.X[index]
        y = self.y[index]
        return x, y if self.weight is None else (y, self.weight[index])

    def to_batch(self, rows: Any) -> Tensor:
        """A CSR matrix as a sparse tensor on the device of the targets."""
        return torch.sparse_csr_tensor(
            torch.from_numpy(rows.indptr.astype(np.int64)),
            torch.from_numpy(rows.indices.astype(np.int64)),
            torch.from_numpy(rows.data),
            size=rows.shape,
            check_invariants=False,
        ).to(self.y.device)


class BatchIterator:
    """Batches of a `TabularDataset` as contiguous slices, of a permuted copy where shuffled."""

    def __init__(
        self,
        dataset: TabularDataset,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.dataset = dataset
        self.batch_size = min(batch_size or len(dataset), len(dataset))
        # the order of rows within a full batch changes nothing
        self.generator = generator if self.batch_size < len(dataset) else None
        self._whole = dataset[:] if self.batch_size == len(dataset) else None

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        if self._whole is not None:
            yield self._whole
            return
        rows = self.dataset
        if self.generator is not None:
            order = torch.randperm(len(rows), generator=self.generator)
            rows = self._permuted(order)
        for start in range(0, len(rows), self.batch_size):
            yield rows[start : start + self.batch_size]

    def _permuted(self, order: Tensor) -> TabularDataset:
        source = self.dataset
        out = TabularDataset.__new__(TabularDataset)
        out.sparse = source.sparse
        on_device = order.to(source.y.device)
        out.X = source.X[order.numpy()] if source.sparse else source.X[on_device]
        out.y = source.y[on_device]
        out.weight = None if source.weight is None else source.weight[on_device]
        return out
