"""No edit: the unedited model, as a row like every other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.editing.directions import DIRECTIONS
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.models.lm import LM
from harness.patches.patch import Patch

__all__ = ["Unchanged"]


@dataclass(frozen=True)
class Unchanged(Editor):
    """Changes nothing."""

    name = "none"
    directions = DIRECTIONS
    exceptions: ClassVar[Mapping[str, str]] = {"target": "it leaves the model as it is, to be compared with"}

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """The empty patch."""
        return Patch()
