"""Many small values at once."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_collector"]


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
