"""Many small values at once."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collect_new", "without_collector"]


@contextmanager
def without_collector() -> Iterator[None]:
    """Leaves the collector of circular references out while it lasts, and puts it back as it was.

    Reading the values of hundreds of records makes millions of tuples, in no circle; the collector would look through
    all of them again and again, which takes longer than the reading.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def collect_new() -> None:
    """Frees what is in circles of all that came since the last call; what was there before is not looked through.

    It is for a loop under :func:`without_collector` that leaves some circles each time.
    """
    gc.collect(0)
