"""Resolution of device and dtype names."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

# devices whose kernels have been checked; others use autograd
DEVICES = ("cpu", "cuda")


def available_devices() -> list[str]:
    """Names of the devices available on this machine."""
    names = ["cpu"]
    if torch.cuda.is_available():
        names += ["cuda"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def resolve_device(device: Any) -> torch.device:
    """The requested `torch.device`; raises ValueError listing those available."""
    if device == "cpu":
        return torch.device("cpu")
    known = available_devices()
    if device == "auto":
        return torch.device("cuda" if "cuda" in known else "mps" if "mps" in known else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        resolved = None
    if resolved is None or (resolved.type != "cpu" and str(resolved) not in known):
        raise ValueError(
            f"device={str(device)!r} is not available. Available devices: {', '.join(known)}. "
            "device='auto' picks the first available of cuda, mps and cpu."
        )
    return resolved


def resolve_dtype(dtype: Any, X: Any, device: torch.device) -> torch.dtype:
    """The compute dtype; raises ValueError for float64 on a device without it."""
    if dtype == "auto":
        dtype = "float32" if device.type == "mps" or X.dtype == np.float32 else "float64"
    resolved: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if resolved not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64; got {dtype}.")
    if device.type == "mps" and resolved == torch.float64:
        raise ValueError(
            "device='mps' does not support float64. Set dtype='float32' or device='cpu'."
        )
    return resolved
