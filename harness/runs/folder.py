"""One run at a time writes a record; several may write to one folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from harness.errors import UsageError
from harness.io.files import require_writable

__all__ = ["exclusive"]


@contextmanager
def exclusive(folder: str | Path, record: str) -> Iterator[None]:
    """Hold the record of a plan, so that no other run writes it; a process that is killed lets go of it.

    Args:
        folder: where records lie.
        record: the id of the record.

    Raises:
        UsageError: the folder cannot be written to, has no locks, or another run holds the record.
    """
    folder = Path(folder)
    require_writable(folder)
    lock = FileLock(folder / f".{record[:8]}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UsageError(
            f"{folder}: another run is writing the record {record[:8]} of this plan; wait for it to end or choose "
            "another --output"
        ) from error
    except (OSError, NotImplementedError) as error:  # of a file system without locks, or of a file of another user
        reason = getattr(error, "strerror", None) or "no locks"
        raise UsageError(
            f"{folder}: the record {record[:8]} cannot be held ({reason}); choose a folder of your own, on a file "
            "system that has locks, with --output"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # where a file that is open cannot be removed, it stays
            Path(lock.lock_file).unlink()
        lock.release()
