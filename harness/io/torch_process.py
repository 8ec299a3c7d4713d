"""What of torch and numpy is said once for a whole process, and decides what everything in it computes.

A caller may have turned gradients off, be in inference mode or under autocast, or have another default dtype or device;
an editor may turn gradients off, or seed the global generators. Neither is to decide what the other computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch

__all__ = ["plain_torch", "same_draws"]


@contextmanager
def plain_torch() -> Iterator[None]:
    """Compute as in a process where nothing of torch was set; afterwards everything is set as it was.

    Plain are gradients (on), inference mode and autocast (off), the default dtype (float32) and the default device (the
    CPU). Put back are these, the number of threads, and whether algorithms must be deterministic.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    cast = {kind: torch.is_autocast_enabled(kind) for kind in _kinds()}
    try:
        torch.set_default_dtype(torch.float32)
        for kind in cast:
            torch.set_autocast_enabled(kind, False)
        # A mode of torch functions slows every call, so it is entered only against another one.
        here = nullcontext() if device.type == "cpu" else torch.device("cpu")
        with torch.inference_mode(False), torch.enable_grad(), here:
            yield
    finally:
        torch.set_default_dtype(dtype)
        for kind, on in cast.items():
            torch.set_autocast_enabled(kind, on)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(exact, warn_only=warned)


@contextmanager
def same_draws() -> Iterator[None]:
    """Leave the global generators of numpy and torch as they were, those of accelerators too where they are in use."""
    numpy = np.random.get_state()
    try:
        with torch.random.fork_rng(_used(), device_type=_kinds()[-1]):
            yield
    finally:
        np.random.set_state(numpy)


def _used() -> list[int]:
    """The accelerators with generators of their own; none before the first use, which alone would start them."""
    started = getattr(torch.get_device_module(), "is_initialized", None)
    return list(range(torch.accelerator.device_count())) if started is not None and started() else []


def _kinds() -> list[str]:
    """The kinds of devices that there are here."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return ["cpu"] if found is None else ["cpu", found.type]
