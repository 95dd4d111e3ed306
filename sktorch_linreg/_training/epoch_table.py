"""The table that `verbose` prints."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

# minimum seconds between lines
INTERVAL = 1.0
COLUMNS = ("epoch", "train loss", "validation loss", "lr", "seconds")


class EpochTable:
    """A table of epochs: at most one line per second, and the last epoch.

    Parameters
    ----------
    verbose : int
        0 prints nothing, 1 at most one line per second, 2 or more every epoch.
    """

    def __init__(self, verbose: int) -> None:
        self.verbose = verbose
        self._began = time.monotonic()
        self._printed: float | None = None
        self._waiting: Mapping[str, Any] | None = None

    def add(self, row: Mapping[str, Any]) -> None:
        """Add an epoch's row of the history."""
        if not self.verbose:
            return
        now = time.monotonic()
        if self.verbose > 1 or self._printed is None or now - self._printed >= INTERVAL:
            self._print(row, now)
        else:
            self._waiting = row

    def close(self) -> None:
        """Print the last epoch if it has not been printed yet."""
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
