"""Locks of what is kept in the cache: what several processes need at once is made by one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from harness.io.cache import cache_folder

__all__ = ["made_once"]


@contextmanager
def made_once(path: Path) -> Iterator[bool]:
    """Hold the making of a file of the cache, so that what several processes need at once is made by one of them.

    The operating system lets go of the lock of a process that is killed. Where no lock can be had, each makes its own.

    Args:
        path: the file, whose name says what it holds.

    Yields:
        Whether another process was at it, so that the file may be there now.
    """
    folder = cache_folder() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{path.name}.lock")
        waited = _acquired_late(lock)
    except (OSError, NotImplementedError):
        yield False
        return
    try:
        yield waited
    finally:
        # The file stays: were it removed, one who waits for it would hold another lock than one who comes later.
        lock.release()


def _acquired_late(lock: BaseFileLock) -> bool:
    """Acquire a lock; whether another process held it."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        lock.acquire()
        return True
    return False
