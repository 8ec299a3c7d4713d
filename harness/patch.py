"""The old place of what :mod:`harness.editor_kit` offers."""

from __future__ import annotations

import warnings

from harness.editor_kit import Hook, LogitRule, Part, Patch, PromptRule, Step, patched, require_plain

__all__ = ["Hook", "LogitRule", "Part", "Patch", "PromptRule", "Step", "patched", "require_plain"]

warnings.warn(
    "harness.patch is an old place; write: from harness.editor_kit import Hook, LogitRule, ...",
    DeprecationWarning,
    stacklevel=2,
)
