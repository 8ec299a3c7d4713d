"""What stands where nobody wants to be told how far something is."""

from __future__ import annotations

__all__ = ["tell_nobody"]


def tell_nobody(*_told: object) -> None:
    """Take whatever is told of progress, and tell nobody."""
