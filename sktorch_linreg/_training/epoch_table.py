"""What `verbose` prints."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

# seconds between two lines
INTERVAL = 1.0
COLUMNS = ("epoch", "train loss", "validation loss", "lr", "seconds")


class EpochTable:
    """Epochs as lines of a table, one a second at most, and the last one.

    Parameters
    ----------
    verbose : int
        0 prints nothing, 1 a line a second at most, 2 and more every epoch.
    """

    def __init__(self, verbose: int) -> None:
        self.verbose = verbose
        self._began = time.monotonic()
        self._printed: float | None = None
        self._waiting: Mapping[str, Any] | None = None

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in an epoch's row of the history."""
        if not self.verbose:
            return
        now = time.monotonic()
        if self.verbose > 1 or self._printed is None or now - self._printed >= INTERVAL:
            self._print(row, now)
        else:
            self._waiting = row

    def close(self) -> None:
        """Print the last epoch, where that has not been done."""
        if self._waiting is not None:
            self._print(self._waiting, time.monotonic())

    def _print(self, row: Mapping[str, Any], now: float) -> None:
        if self._printed is None:
            print("  ".join(f"{name:>{max(10, len(name))}}" for name in COLUMNS))
        validation = "-" if "valid_loss" not in row else f"{row['valid_loss']:.6g}"
        cells = (
            str(row["epoch"]),
            f"{row['train_loss']:.6g}",
            validation,
            f"{row['lr']:.4g}",
            f"{now - self._began:.2f}",
        )
        width = (max(10, len(name)) for name in COLUMNS)
        print("  ".join(f"{c:>{w}}" for c, w in zip(cells, width, strict=True)), flush=True)
        self._printed, self._waiting = now, None
