"""What was asked of each document and what the model replied after so many edits, from the samples beside a record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.exam.samples import Reply, Sample
from harness.runs.sample_file import iterate_samples

__all__ = ["AskedAndSaid", "asked_and_said"]


@dataclass(frozen=True)
class AskedAndSaid:
    """A question of a document, and the reply of one model.

    Attributes:
        sample: the question; its replies are those of both models.
        reply: of the model that is looked at.
    """

    sample: Sample
    reply: Reply

    @property
    def answer(self) -> str | None:
        """What the model wrote, or the likeliest of several choices; None where a text was rated alone."""
        if self.reply.text is not None:
            return self.reply.text
        place = self.reply.likeliest
        return self.sample.choices[place] if place is not None and place < len(self.sample.choices) else None


def asked_and_said(path: Path | None, edits: int) -> dict[str, list[AskedAndSaid]]:
    """Document -> its questions with their replies after so many edits.

    Args:
        path: the file of samples; nothing is known where there is none.
        edits: the number of edits; 0 is the unedited model.

    Raises:
        DataError: the file is not what a run writes.
    """
    found: dict[str, dict[int, AskedAndSaid]] = {}
    for sample in iterate_samples(path) if path else ():
        reply = sample.before if not edits else sample.after if sample.at == edits else None
        if reply is not None:  # of the unedited model every stop says the same
            found.setdefault(f"{sample.task}/{sample.doc_id}", {}).setdefault(
                sample.question, AskedAndSaid(sample, reply)
            )
    return {document: list(questions.values()) for document, questions in found.items()}
