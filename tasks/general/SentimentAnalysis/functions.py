"""Sentiment of film reviews: rows, and the plain and the released score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.task_kit import DataError, Ratio, answer_scores, data

if TYPE_CHECKING:
    import datasets

LABELS = ("negative", "positive")


def rows(path: Path) -> list[dict[str, Any]]:
    """Tab-separated ``sentence label`` with labels 0 (negative) and 1 (positive); DataError for another label."""
    found = []
    for number, row in enumerate(data.read_table(path, ["sentence", "label"]), start=1):
        if row["label"] not in ("0", "1"):
            raise DataError(f"{path}, row {number}: label {row['label']!r}, expected 0 (negative) or 1 (positive)")
        found.append({"sentence": row["sentence"], "label": int(row["label"])})
    return found


def dataset(data_dir: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """What lm-eval reads."""
    return data.splits("SentimentAnalysis", data_dir)


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Ratio]:
    """``accuracy``, ``invalid_rate`` (first word), the released counts ("positive" anywhere wins over "negative")."""
    plain = answer_scores.choice(results[0], LABELS[doc["label"]], LABELS)
    text = answer_scores.after_cue(results[0], "answer:")
    return plain | answer_scores.two_way(*answer_scores.yes_no(text, "positive", "negative", gold=doc["label"] == 1))
