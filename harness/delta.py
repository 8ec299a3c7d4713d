"""The old place of what :mod:`harness.editor_kit` offers."""

from __future__ import annotations

import warnings

from harness.editor_kit import Delta, Dense, LowRank, double, numerical_rank

__all__ = ["Delta", "Dense", "LowRank", "double", "numerical_rank"]

warnings.warn(
    "harness.delta is an old place; write: from harness.editor_kit import Delta, Dense, ...",
    DeprecationWarning,
    stacklevel=2,
)
