"""Recognising textual entailment: rows, and the plain and the released score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.task_kit import DataError, Ratio, answer_scores, data

if TYPE_CHECKING:
    import datasets

LABELS = {"entailment": "true", "not_entailment": "false"}


def rows(path: Path) -> list[dict[str, Any]]:
    """Tab-separated ``sentence1 sentence2 label``; DataError for another label."""
    found: list[dict[str, Any]] = list(data.read_table(path, ["sentence1", "sentence2", "label"]))
    for number, row in enumerate(found, start=1):
        if row["label"] not in LABELS:
            raise DataError(f"{path}, row {number}: label {row['label']!r}, expected entailment or not_entailment")
    return found


def dataset(data_dir: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """What lm-eval reads."""
    return data.splits("NLI", data_dir)


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Ratio]:
    """``accuracy``, ``invalid_rate`` (first word) and the released counts (a label word anywhere)."""
    text = results[0]
    plain = answer_scores.choice(text, LABELS[doc["label"]], LABELS.values())
    return plain | answer_scores.two_way(*released(text, entailed=doc["label"] == "entailment"))


def released(text: str, entailed: bool) -> tuple[int, int]:
    """(correct, answered): "true" and "false" are counted one by one, so a text with both counts twice, once right."""
    folded = answer_scores.after_cue(text, "answer:").lower()
    says_true, says_false = "true" in folded, "false" in folded
    correct = (says_true and entailed) + (says_false and not entailed)
    return int(correct), int(says_true) + int(says_false)
