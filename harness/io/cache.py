"""Where this project keeps what it computed or fetched once."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.io.remote import Remote

__all__ = ["cache_apart", "cache_folder", "in_cache", "share"]

_USUAL = ".cache/lm-edit-harness"


def cache_folder() -> Path:
    """The folder of what is kept: ``$HARNESS_CACHE``, by default one of the user's.

    Where that is an address of fsspec such as ``s3://bucket/cache``, files of the folder are copies of what lies there,
    and the folder is ``$HARNESS_CACHE_COPIES``, by default one of the user's that is named by the address.

    Raises:
        UsageError: the address cannot be used.
    """
    said, usual = os.environ.get("HARNESS_CACHE"), Path.home() / _USUAL
    if _behind() is None:
        return Path(said) if said else usual
    copies = os.environ.get("HARNESS_CACHE_COPIES")
    return Path(copies) if copies else usual / "copies" / hashlib.sha256(str(said).encode()).hexdigest()[:16]


def in_cache(path: Path) -> bool:
    """Whether a file of the cache is there; what only the address behind the cache has is copied first.

    Args:
        path: the file, in any folder; outside the cache it is only looked at.
    """
    if path.is_file():
        return True
    remote = _behind()
    return remote is not None and path.is_relative_to(cache_folder()) and remote.fetch(_name(path), path)


def share(path: Path) -> None:
    """Copy a whole file of the cache to the address behind it; nothing where there is none, or for a file elsewhere.

    Args:
        path: the file.
    """
    remote = _behind()
    if remote is not None and path.is_relative_to(cache_folder()):
        remote.put(_name(path), path)


def _name(path: Path) -> str:
    return path.relative_to(cache_folder()).as_posix()


def _behind() -> Remote | None:
    """What the cache folder holds copies of; None where it stands alone."""
    said = os.environ.get("HARNESS_CACHE", "")
    return _remote(said) if "://" in said else None


@functools.cache
def _remote(address: str) -> Remote:
    # fsspec is imported where there is an address only.
    from harness.io.remote import Remote

    return Remote(address)


@contextmanager
def cache_apart() -> Iterator[Path]:
    """A cache that holds what the cache holds now; what is added to it goes when it is let go of.

    Yields:
        Its folder.
    """
    kept, before = cache_folder().resolve(), os.environ.get("HARNESS_CACHE")
    with TemporaryDirectory(prefix="harness-cache-") as name:
        for path in kept.rglob("*"):
            if path.is_file() and path.parent.name != "locks":
                link = Path(name) / path.relative_to(kept)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
        os.environ["HARNESS_CACHE"] = name
        try:
            yield Path(name)
        finally:
            os.environ.pop("HARNESS_CACHE")
            os.environ.update({} if before is None else {"HARNESS_CACHE": before})
