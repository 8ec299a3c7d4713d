"""Where this project keeps what it computed or fetched once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["cache_apart", "cache_folder"]


def cache_folder() -> Path:
    """Where downloaded files are kept."""
    return Path(os.environ.get("HARNESS_CACHE") or Path.home() / ".cache" / "lm-edit-harness")


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
