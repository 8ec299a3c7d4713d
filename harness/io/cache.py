"""Where this project keeps what it computed or fetched once."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """Where downloaded files are kept."""
    return Path(os.environ.get("HARNESS_CACHE") or Path.home() / ".cache" / "lm-edit-harness")
