"""Passages and claims whose relation is labelled (LEME, D. Rosati et al. 2024): how far a judge can be trusted."""

from __future__ import annotations

import csv
import gzip
import random
from dataclasses import dataclass
from pathlib import Path

from harness.errors import DataError
from harness.exam.verdicts import Verdict, judge_prompt

__all__ = ["Claim", "read_claims"]

_FILE = Path("leme") / "annotations_dataset.csv.gz"
_LABELS: dict[str, Verdict] = {"supports": "right", "contradicts": "wrong", "neutral": "refused"}
"""What a passage is to a claim, as the verdict on it if it were a reply to which the claim is the right answer."""
_QUESTION = "What is true of this?"


@dataclass(frozen=True)
class Claim:
    """A passage and a claim.

    Attributes:
        id: its row in the file.
        cluster: passages about one subject.
        passage: a text, written by people or by a model.
        claim: a statement.
        label: what the passage is to the claim, as a verdict.
    """

    id: str
    cluster: str
    passage: str
    claim: str
    label: Verdict

    @property
    def prompt(self) -> str:
        """What a judge is asked."""
        return judge_prompt(_QUESTION, [self.claim], self.passage)


def read_claims(folder: Path, count: int | None, seed: int = 0) -> list[Claim]:
    """Some labelled claims of a data folder, drawn by a seed; none where it has no such file.

    Args:
        folder: the data folder, with ``leme/annotations_dataset.csv.gz``.
        count: how many at most; None for all.
        seed: of the draw.

    Raises:
        DataError: the file is not what it should be.
    """
    path = folder / _FILE
    if not path.is_file():
        return []
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            every = [_claim(number, row, path) for number, row in enumerate(csv.DictReader(file), 1)]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy it again") from error
    return every if count is None or count >= len(every) else random.Random(seed).sample(every, count)


def _claim(number: int, row: dict[str, str | None], path: Path) -> Claim:
    passage, found, claim = (row.get("content") or "").rpartition("Claim:")
    label = _LABELS.get(row.get("classification") or "")
    if not found or label is None:
        raise DataError(f"{path}, row {number}: expected 'Passage: ... Claim: ...' and a label; copy the file again")
    text = passage.strip().removeprefix("Passage:").strip()
    return Claim(str(number), row.get("sample_id") or str(number), text, claim.strip(), label)
