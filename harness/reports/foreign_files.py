"""What the readers of other people's files share: rows held to a type, cases that occur once, and names of models."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.errors import DataError
from harness.exam.data import read_text
from harness.exam.statistics import Ratio
from harness.io.schema import checked, parsed

__all__ = ["MODELS", "Once", "all_files", "mean_answer", "model_name", "read_json", "require_shape"]

MODELS: Mapping[str, str] = {
    "llama_2_7b_chat_hf": "meta-llama/Llama-2-7b-chat-hf",
    "llama2": "meta-llama/Llama-2-7b-chat-hf",
    "meta_llama_3_8b_instruct": "meta-llama/Meta-Llama-3-8B-Instruct",
    "mistral_7b_instruct_v0.3": "mistralai/Mistral-7B-Instruct-v0.3",
    "llama-2-7b-chat-hf": "meta-llama/Llama-2-7b-chat-hf",
}
"""How files call a model -> its name on the Hub, where the authors' code says which it is."""


def model_name(short: str) -> str:
    """The Hub's name of a model that files call by a shorter one; the name itself where none is known."""
    return MODELS.get(short.lower(), short)


def read_json(path: Path) -> Any:
    """The value in a JSON file, ``.gz`` too.

    Raises:
        DataError: it is missing, cut, or no JSON.
    """
    try:
        return parsed(read_text(path))
    except ValueError as error:
        broken = "is no number" in str(error)  # a program of Python wrote NaN, and the file is whole
        cure = "leave out the cases for which its model gave none" if broken else "copy the file again"
        raise DataError(f"{path}: {error}; {cure}") from error


def require_shape(kind: Any, value: object, *, where: str, what: str) -> None:
    """See that a row is what a format says.

    Args:
        kind: a ``TypedDict``.
        value: the row.
        where: the file and the row, for the message.
        what: the format, with what is known of its versions.

    Raises:
        DataError: it is not.
    """
    try:
        checked(kind, value)
    except ValueError as error:
        raise DataError(
            f"{where}: not a row of {what} ({error}); is it of another version or of another program?"
        ) from error


class Once:
    """Sees that no case of a run occurs twice: then two runs are mixed."""

    def __init__(self) -> None:
        self._known: dict[Hashable, str] = {}

    def __call__(self, case: Hashable, where: str, said: str) -> None:
        """Note a case.

        Args:
            case: what names it, with its run.
            where: the file and the row.
            said: the case in words.

        Raises:
            DataError: it was there before.
        """
        first = self._known.setdefault(case, where)
        if first != where:
            raise DataError(f"{where}: {said} was there before ({first}): runs are mixed; give the files of one run")


def all_files(path: Path, *patterns: str) -> list[Path]:
    """The file itself, or the files below a folder that match a pattern, in the order of their names."""
    if path.is_file():
        return [path]
    return sorted({found for pattern in patterns for found in path.rglob(pattern) if found.is_file()})


def mean_answer(values: Iterable[float | bool | None]) -> Ratio | None:
    """What a case contributes that is asked several times: the mean of its answers; None where there is none."""
    known = [float(value) for value in values if value is not None]
    return Ratio(sum(known) / len(known)) if known else None
