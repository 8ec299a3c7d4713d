"""Grade-school arithmetic whose rationale stands in the prompt: the plain and the released score."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.task_kit import DataError, Ratio, data

if TYPE_CHECKING:
    import datasets

MARK = "#### "  # before the final answer
NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")


def rows(path: Path) -> list[dict[str, Any]]:
    """JSON lines; DataError for an answer without the mark or without a number behind it."""
    found = data.read_jsonl(path, {"question": "str", "answer": "str"})
    for number, row in enumerate(found, start=1):
        if MARK not in row["answer"] or first_number(final(row["answer"])) is None:
            raise DataError(
                f"{path}, row {number}: expected an answer `rationale {MARK}number`, found {row['answer'][-40:]!r}"
            )
    return found


def dataset(data_dir: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """What lm-eval reads."""
    return data.splits("reasoning", data_dir)


def final(answer: str) -> str:
    """The final answer, which follows the rationale."""
    return answer.split(MARK)[1]


def first_number(text: str) -> Decimal | None:
    """The first number of a text, without dollar sign and thousands separators; None where there is none."""
    match = NUMBER.search(text)
    return Decimal(re.sub(r"[$,]", "", match[0])) if match else None


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Ratio]:
    """``exact_match``: the first number equals the gold one; ``solve_rate_released``: the text contains the gold."""
    gold, found = final(doc["answer"]), first_number(results[0])
    return {
        "exact_match": Ratio(float(found is not None and found == first_number(gold))),
        "invalid_rate": Ratio(float(found is None)),
        "solve_rate_released": Ratio(float(gold in results[0])),
    }
