"""The old place of what :mod:`harness.editor_kit` offers."""

from __future__ import annotations

import warnings

from harness.editor_kit import (
    Count,
    Edit,
    Editor,
    Example,
    Learned,
    NotNegative,
    Pass,
    Positive,
    Probe,
    Range,
    Share,
    Wrapper,
    configure,
    find,
)

__all__ = [
    "Count",
    "Edit",
    "Editor",
    "Example",
    "Learned",
    "NotNegative",
    "Pass",
    "Positive",
    "Probe",
    "Range",
    "Share",
    "Wrapper",
    "configure",
    "find",
]

warnings.warn(
    "harness.editor is an old place; write: from harness.editor_kit import Count, Edit, ...",
    DeprecationWarning,
    stacklevel=2,
)
