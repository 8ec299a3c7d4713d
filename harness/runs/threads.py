"""How many threads a run computes with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from harness.models.lm import LM

__all__ = ["one_thread_if_small"]

_SMALL = 20_000_000  # parameters


@contextmanager
def one_thread_if_small(lm: LM) -> Iterator[None]:
    """One thread for a small model on a processor: threads would wait for one another longer than they compute.

    Its numbers are then the same to the last digit on any number of cores. ``OMP_NUM_THREADS`` overrules it.
    """
    before = torch.get_num_threads()
    small = lm.device.type == "cpu" and sum(p.numel() for p in lm.model.parameters()) < _SMALL
    try:
        if small and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)
