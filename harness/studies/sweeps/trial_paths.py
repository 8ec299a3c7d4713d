"""Where the records of trials lie, without what a training needs."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["trial_paths"]


def trial_paths(folder: Path) -> list[Path]:
    """The records of trials in a folder, its ``runs``, or the ``runs`` of its folders; other files are left."""
    paths = [path for place in ("", "runs/", "*/runs/") for path in sorted(folder.glob(f"{place}*.json"))]
    return [path for path in paths if _looks_like_trial(path)]


def _looks_like_trial(path: Path) -> bool:
    with path.open("rb") as file:
        return re.match(rb'\s*\{\s*"job"', file.read(64)) is not None
