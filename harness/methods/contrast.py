"""An edit as a pair of answers, the new and the old one: what methods that compare the two share."""

from __future__ import annotations

from dataclasses import replace

from harness.editing.edit import Edit
from harness.errors import DataError

__all__ = ["as_contrast"]


def as_contrast(edit: Edit) -> Edit:
    """The edit as one that contrasts its target with the old answer.

    Raises:
        DataError: it names no old answer, or its target is the old one.
    """
    if edit.direction == "contrast":
        return edit
    if edit.target_old is None:
        raise DataError(f"edit {edit.id}: it names no old answer to compare the target with; give 'target_old'")
    return replace(edit, direction="contrast", against=edit.target_old)
