"""A place of :mod:`fsspec`, such as ``s3://bucket/cache``, that holds what the cache folders of several machines share.

What is shared is a file of a cache folder first: whole there before it is copied here, and copied to there before it is
read. So a place that is lost, or full, takes nothing that was finished.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from harness.errors import UsageError
from harness.io.files import beside

__all__ = ["Remote"]

log = logging.getLogger(__name__)

_PAUSE = 300.0
"""For how many seconds a place that failed is left alone: the drivers of stores try for minutes before they give up."""


class Remote:
    """A place that files are copied to and from, by the names that they have below it.

    Args:
        address: of the place.

    Raises:
        UsageError: fsspec knows no such place, or its driver is not installed.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._waiting: dict[str, Path] = {}
        self._silent_until = {"read": 0.0, "written": 0.0}
        try:
            # What is listed once and remembered would hide what other machines have written since.
            files, root = url_to_fs(address, use_listings_cache=False)
        except Exception as error:  # drivers raise whatever the libraries below them raise
            raise UsageError(
                f"{address}: no place for a cache ({_said(error)}); install what is missing, or set HARNESS_CACHE to "
                "a folder"
            ) from error
        self._files: Any = files
        self._root = str(root).rstrip("/")

    def fetch(self, name: str, path: Path) -> bool:
        """Copy a file from here, whole or not at all; whether it is there now.

        A place that cannot be read is told in a line, and counts as one that does not have the file.

        Args:
            name: its name below the place.
            path: where to.
        """
        found = False

        def copy() -> None:
            nonlocal found
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside(path) as part, suppress(FileNotFoundError):
                self._files.get_file(f"{self._root}/{name}", str(part))
                part.replace(path)
                found = True

        self._tried("read", copy, path)
        return found

    def put(self, name: str, path: Path) -> None:
        """Copy a whole file to here, with those that could not be copied before.

        A place that cannot be written to is told in a line; its files wait until the next is put.

        Args:
            name: its name below the place.
            path: the file.
        """
        self._waiting[name] = path

        def copy() -> None:
            for waiting in reversed(list(self._waiting)):  # the one asked for before those that failed
                self._put_whole(waiting, self._waiting[waiting])
                del self._waiting[waiting]

        self._tried("written", copy, path)

    def _put_whole(self, name: str, path: Path) -> None:
        """Copy a file under a name of this process's own and move it: no reader finds half of it."""
        if not path.is_file():  # removed since
            return
        folder, _, last = f"{self._root}/{name}".rpartition("/")
        part = f"{folder}/.{last}.{socket.gethostname()}.{os.getpid()}"
        self._files.makedirs(folder, exist_ok=True)
        try:
            self._files.put_file(str(path), part)
            self._files.mv(part, f"{folder}/{last}")
        except BaseException:
            with suppress(Exception):
                self._files.rm_file(part)
            raise

    def _tried(self, what: str, copy: Callable[[], None], path: Path) -> None:
        """Copy; a failure is told, and nothing tried again for a while."""
        if time.monotonic() < self._silent_until[what]:
            return
        try:
            copy()
        except Exception as error:  # drivers raise whatever the libraries below them raise
            self._silent_until[what] = time.monotonic() + _PAUSE
            told = "%s: cannot be %s (%s); for now %s is used alone, and what is in it stays"
            log.warning(told, self.address, what, _said(error), path.parent)


def _said(error: Exception) -> str:
    """What an error says, in one line."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())[:200] or type(error).__name__
