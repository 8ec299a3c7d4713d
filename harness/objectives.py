"""The old place of what :mod:`harness.editor_kit` offers."""

from __future__ import annotations

import warnings

from harness.editor_kit import DIRECTIONS, LIKELIHOOD, PAIRED, Direction, Normalisation, floor, losses, nll

__all__ = ["DIRECTIONS", "LIKELIHOOD", "PAIRED", "Direction", "Normalisation", "floor", "losses", "nll"]

warnings.warn(
    "harness.objectives is an old place; write: from harness.editor_kit import DIRECTIONS, LIKELIHOOD, ...",
    DeprecationWarning,
    stacklevel=2,
)
