"""The old place of what :mod:`harness.task_kit` offers."""

from __future__ import annotations

import warnings

from harness.task_kit import Ratio, aggregate

__all__ = ["Ratio", "aggregate"]

warnings.warn(
    "harness.metrics is an old place; write: from harness.task_kit import Ratio, aggregate, ...",
    DeprecationWarning,
    stacklevel=2,
)
