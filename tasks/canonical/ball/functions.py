"""The general text of the ball, and that of the regulariser (Hewitt et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.task_kit import DataError, Ratio, data, general_text

if TYPE_CHECKING:
    import datasets

_CUT = general_text.COUNT
"""Of the stand-in the first 3,000 documents are the general text, and the rest is the regulariser's."""


def texts(data_dir: str | None = None, part: str = "general") -> list[str]:
    """The chunks of ``general`` or ``regularisation`` text of a source.

    In a data folder those of the published recipe, where they were built; elsewhere the stand-in.

    Raises:
        DataError: the stand-in has too few documents to leave any to the regulariser.
    """
    if data_dir in (None, "mini"):
        return [row["text"] for row in data.load("ball", "test" if part == "general" else part, data_dir)]
    built = general_text.published(str(data_dir), part)
    if built.is_file():
        return [row["text"] for row in data.read_jsonl(built, {"text": "str"})]
    rows = data.load("ball", "test", data_dir)
    chosen = rows[:_CUT] if part == "general" else rows[_CUT:]
    if not chosen:
        raise DataError(
            f"{data_dir}: the general text has {len(rows)} documents, and the first {_CUT} are the ball's; give more, "
            f"or the regulariser's own in {built}"
        )
    return [row["text"] for row in chosen]


def dataset(data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """One document for each chunk of general text."""
    import datasets

    rows = [
        {"id": f"general/{i}", "kind": "general", "prefix": "", "suffix": text, "other": ""}
        for i, text in enumerate(texts(data_dir))
    ]
    return {"test": datasets.Dataset.from_list(rows)}


def results(_doc: Mapping[str, Any], nll: Sequence[float], tokens: int) -> dict[str, Ratio]:
    """The general loss: a mean over tokens."""
    return {"general": Ratio(nll[0], float(tokens))}
