"""Choosing the next turn of a dialogue by its letter: rows, the plain score and the two released ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.task_kit import DataError, Ratio, answer_scores, data

if TYPE_CHECKING:
    import datasets

LETTERS = "ABCD"


def rows(path: Path) -> list[dict[str, Any]]:
    """JSON lines with four options and a gold letter; DataError for a row without (MuTual's test has no answers)."""
    found = data.read_jsonl(path, ("article", "options", "answers"))
    for number, row in enumerate(found, start=1):
        if (
            row["answers"] not in tuple(LETTERS)
            or not isinstance(row["options"], list)
            or len(row["options"]) != len(LETTERS)
        ):
            raise DataError(
                f"{path}, row {number}: expected four options and an answer A, B, C or D, found {row['answers']!r}"
            )
    return found


def dataset(data_dir: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """What lm-eval reads."""
    return data.splits("dialogue", data_dir)


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Ratio]:
    """``accuracy``, ``invalid_rate`` (first word is a letter) and the released rules: a letter anywhere in the text.

    Case matters: `` a`` is an article, not option A.  ``accuracy_released`` is the rule used after editing, where a
    text with "Chi" (from the prompt's "Chioces") is no answer; ``accuracy_released_chi`` the one used before, where
    it is C.
    """
    gold = doc["answers"]
    plain = answer_scores.choice(results[0], gold, tuple(LETTERS), fold_case=False)
    text = answer_scores.after_cue(results[0], "the answer is")
    before = answer_scores.two_way(*released(text, gold))
    after = answer_scores.two_way(*((0, 0) if "Chi" in text else released(text, gold)))
    return plain | after | {"accuracy_released_chi": before["accuracy_released"]}


def released(text: str, gold: str) -> tuple[int, int]:
    """(correct, answered): any capital A to D in the text is an answer, right where the gold letter is among them."""
    if not any(letter in text for letter in LETTERS):
        return 0, 0
    return int(gold in text), 1
