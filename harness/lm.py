"""The old place of what :mod:`harness.editor_kit` offers."""

from __future__ import annotations

import warnings

from harness.editor_kit import LM, Batch
from harness.models.lm import load, shipped

__all__ = ["LM", "Batch", "load", "shipped"]

warnings.warn(
    "harness.lm is an old place; write: from harness.editor_kit import LM, Batch, ... (load is harness.load)",
    DeprecationWarning,
    stacklevel=2,
)
