"""Isolation of a fit from the caller's torch modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from .turns import Turns

# the flag is one for all threads
_mkldnn = Turns()


@contextmanager
def own_torch_settings(device: torch.device, *, grad: bool = True) -> Iterator[None]:
    """Override the caller's torch modes: inference, gradients, autocast and default device."""
    # small fits and predictions take microseconds, so settings that are already right are kept
    odd_mode = torch.is_inference_mode_enabled() or torch.is_grad_enabled() != grad
    autocast = torch.is_autocast_enabled(device.type)
    # a device context costs time in every call, so it is only entered if needed;
    # torch 2.6's get_default_device does not know of `with torch.device(...)`
    elsewhere = torch.empty(0).device.type != "cpu"
    if not (odd_mode or autocast or elsewhere):
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(grad))
        if autocast:
            stack.enter_context(torch.autocast(device.type, enabled=False))
        if elsewhere:
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def without_mkldnn() -> Iterator[None]:
    """Use no kernels of oneDNN inside this context, in which threads take turns."""
    with _mkldnn.held():
        before = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)
        try:
            yield
        finally:
            torch._C._set_mkldnn_enabled(before)
