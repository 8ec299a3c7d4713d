"""Published values of papers, from a table that anybody can extend: one value a line, with its source and certainty.

The columns ``paper, model, data, method, metric, value`` are needed; ``table, protocol, n_edits, batch, sd, source,
certainty`` may stay empty. A value counts as read where its certainty begins with one of :data:`READ`; any other was
only quoted, and is marked wherever it stands.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import DataError, near
from harness.exam.data import read_text
from harness.reports.published_runs import one_line_name

__all__ = ["READ", "UNEDITED", "PublishedValue", "alike", "is_table", "read_published_values"]

READ = ("read in a stored file", "read in the paper", "recomputed")
NEEDED = ("paper", "model", "data", "method", "metric", "value")
FILLED = ("paper", "metric", "value")
"""What no line may leave empty: without a model or data a value stands beside no row."""
OPTIONAL = ("table", "protocol", "n_edits", "batch", "sd", "source", "certainty")
UNEDITED = ("unedited", "preedited", "base", "preedit", "noedit", "original")
"""What papers call the unedited model."""
_NUMBER = re.compile(r"[<>~\u2248]?\s*([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d{1,2})?)\s*[A-Za-z%]*")
_LEFT_OUT = {"meta", "hf"}
"""Parts of a model's name that papers leave out."""


@dataclass(frozen=True)
class PublishedValue:
    """One value of one table of a paper; the texts are as they stand in the table, empty where nothing is told."""

    paper: str
    model: str
    data: str
    method: str
    metric: str
    value: str
    table: str = ""
    protocol: str = ""
    n_edits: str = ""
    batch: str = ""
    sd: str = ""
    source: str = ""
    certainty: str = ""

    @property
    def number(self) -> float:
        """The value as a number, without what stands around it, such as ``>`` or a unit."""
        return float(_NUMBER.fullmatch(self.value)[1])  # type: ignore[index]

    @property
    def quoted(self) -> bool:
        """Whether nobody read it where it was published, but only where others quote it."""
        return not self.certainty.startswith(READ)


def alike(name: str) -> str:
    """A name as all spell it, such as ``Llama-2-7b-chat`` for ``meta-llama/Llama-2-7b-chat-hf``.

    Without the owner, what stands in brackets, capitals, and all that is neither letter nor digit.
    """
    words = re.split(r"[^a-z0-9]+", re.sub(r"\(.*?\)", "", name.rstrip("/").rsplit("/", 1)[-1]).lower())
    return "".join(word for word in words if word not in _LEFT_OUT)


def is_table(path: Path) -> bool:
    """Whether a file is named as a table of values is."""
    return path.is_file() and path.name.lower().endswith((".csv", ".csv.gz"))


def read_published_values(path: Path) -> list[PublishedValue]:
    """The values of a table, in its order.

    Raises:
        DataError: it is no such table, or a line cannot be used; names the line.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=None))  # whatever ends a line
    fields = list(reader.fieldnames or [])
    missing = [name for name in NEEDED if name not in fields]
    if missing:
        raise DataError(
            f"{path}: no column '{missing[0]}'{near(missing[0], fields)}; a table of published values has the columns "
            f"{', '.join(NEEDED)}, and may have {', '.join(OPTIONAL)}"
        )
    try:
        return [_value(row, f"{path}, line {reader.line_num}") for row in reader]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not a table of comma-separated values ({error})") from error


def _value(row: Mapping[str | None, str | list[str] | None], where: str) -> PublishedValue:
    texts = {name: str(row.get(name) or "").strip() for name in (*NEEDED, *OPTIONAL)}
    if None in row or None in row.values():
        raise DataError(f"{where}: another number of cells than the head has; put texts with commas into quotes")
    for name, text in texts.items():
        if name in FILLED and not text:
            raise DataError(f"{where}: '{name}' is empty; a value needs {', '.join(FILLED)}")
        if text:
            _require_text(text, name, where)
    for name in ("value", "sd"):
        if texts[name] and _NUMBER.fullmatch(texts[name]) is None:
            raise DataError(f"{where}: {name} {ascii(texts[name])[:40]} is no number; 0.26, >21000 and 12.29 h are")
    return PublishedValue(**texts)


def _require_text(text: str, name: str, where: str) -> None:
    try:
        one_line_name(text, f"'{name}'")
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
