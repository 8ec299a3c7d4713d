"""The one console on which progress is drawn, so that a bar inside a bar is drawn below it and not across it."""

from __future__ import annotations

from functools import lru_cache

from rich.console import Console

__all__ = ["progress_console"]


@lru_cache(maxsize=1)
def progress_console() -> Console:
    """The console of standard error, the same at every call."""
    return Console(stderr=True)
