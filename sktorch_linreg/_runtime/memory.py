"""Memory budget for work that could also be done in smaller pieces."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch

# share of the free memory that is used by default
SHARE = 0.25
# bytes assumed to be free if the system does not report it
UNKNOWN = 2**31
CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Free bytes on a device; on the host, at most what the control group allows."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = UNKNOWN
    try:
        import psutil

        free = int(psutil.virtual_memory().available)
    except ImportError:
        with suppress(AttributeError, OSError, ValueError):
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):
        limit, used = (int((CGROUP / f"memory.{n}").read_text()) for n in ("max", "current"))
        free = min(free, max(0, limit - used))
    return free


def budget(max_memory: int | None, devices: set[torch.device]) -> int:
    """Bytes to use: `max_memory` if given, else a share of what is free on every device."""
    if max_memory is not None:
        return max_memory
    return int(SHARE * min(free_memory(d) for d in {torch.device("cpu"), *devices}))
