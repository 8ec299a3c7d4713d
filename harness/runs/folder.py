"""One run at a time writes to a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from harness.errors import UsageError
from harness.io.files import require_writable

__all__ = ["exclusive"]


@contextmanager
def exclusive(folder: str | Path) -> Iterator[None]:
    """Hold a folder, so that no other run writes to it; a process that is killed lets go of it.

    Raises:
        UsageError: the folder cannot be written to, or another run holds it.
    """
    folder = Path(folder)
    require_writable(folder)
    lock = FileLock(folder / ".harness.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UsageError(
            f"{folder}: another run is writing to this folder; wait for it to end or choose another --output"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # where a file that is open cannot be removed, it stays
            Path(lock.lock_file).unlink()
        lock.release()
