"""The old place of what :mod:`harness.editor_kit` offers."""

from __future__ import annotations

import warnings

from harness.editor_kit import LM, Batch

__all__ = ["LM", "Batch"]

warnings.warn(
    "harness.lm is an old place; write: from harness.editor_kit import LM, Batch, ...",
    DeprecationWarning,
    stacklevel=2,
)
