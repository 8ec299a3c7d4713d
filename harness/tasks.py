"""The old place of what :mod:`harness.task_kit` offers of edits."""

from __future__ import annotations

import warnings

from harness.exam.tasks import read_edits

__all__ = ["read_edits"]

warnings.warn(
    "harness.tasks is an old place; write: from harness.task_kit import read_edits", DeprecationWarning, stacklevel=2
)
