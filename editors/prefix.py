"""The whole prompt as the subject, for an editor that changes what is read at a subject's last token.

Source: Hewitt et al. 2024, "Model Editing with Canonical Examples", arXiv 2402.06155, appendix D, where MEMIT with
this subject is called standard, and with that of the fact itself (the entity) oracle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from harness.editing.edit import SLOT, Edit
from harness.editing.editor import Pass, Wrapper
from harness.models.lm import LM
from harness.patches.patch import Patch

__all__ = ["Prefix"]


@dataclass(frozen=True)
class Prefix(Wrapper):
    """Hands each edit on with its whole prompt as the subject."""

    name = "prefix"

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """The inner increment of the edits about their prompts."""
        return super().edit(lm, [_whole(edit) for edit in edits], memory)

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        """The inner patches of the edits about their prompts."""
        return super().edit_each(lm, [_whole(edit) for edit in edits])

    def passes(self, lm: LM, edits: Sequence[Edit]) -> Iterator[Pass]:
        """The inner changes after each pass over the edits about their prompts."""
        yield from super().passes(lm, [_whole(edit) for edit in edits])


def _whole(edit: Edit) -> Edit:
    return replace(edit, prompt=SLOT, subject=edit.question, slot=None)
