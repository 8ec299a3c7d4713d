"""Oracle: answers from the table of edits, with no change of the model: what a metric can reach at best.

No method: the ceiling that others stand under, beside ``none``, the floor of most metrics.  What is missed even so asks
for more than the edits say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.methods.answer_table import AnswerTable, as_entry
from harness.models.lm import LM
from harness.patches.patch import Patch

__all__ = ["AnswerTable", "Oracle"]


@dataclass(frozen=True)
class Oracle(Editor):
    """Looks each text up among the edits.

    Attributes:
        answers: ``named`` answers wherever a text names the subject and has not said the target since, which no model
            has to know anything for, but which answers every question about a subject alike; ``known`` only where the
            unedited model is about to say the old answer, which leaves its other questions alone.
    """

    name = "oracle"
    seams = frozenset({"logits"})
    reference = True

    answers: Literal["named", "known"] = "named"

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """The edits as rows of a table; increments join."""
        if not edits:
            return Patch()
        rows = tuple(as_entry(lm, edit) for edit in edits)
        return Patch(logits=AnswerTable(rows, "named", known=self.answers == "known", lm=lm))

    def label(self) -> str:
        """The name, with how it answers where that is not the default."""
        return self.name if self.answers == "named" else f"{self.name}-{self.answers}"
