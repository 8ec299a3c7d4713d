"""The old place of what :mod:`harness.task_kit` offers as ``data``."""

from __future__ import annotations

import warnings

from harness.exam.data import TASKS, load, module, provenance, read_jsonl, read_table, read_text, splits

__all__ = ["TASKS", "load", "module", "provenance", "read_jsonl", "read_table", "read_text", "splits"]

warnings.warn(
    "harness.data is an old place; write: from harness.task_kit import data", DeprecationWarning, stacklevel=2
)
