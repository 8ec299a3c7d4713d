"""Cells and rows of a CSV: no spreadsheet runs them, and what was written is read again."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from typing import Any, Protocol, TextIO

__all__ = ["Rows", "cell_text", "csv_rows", "text_of_cell"]

_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20", "'")
"""What spreadsheets take for the start of a formula (OWASP, "CSV injection"), full-width forms too; and the mark."""


def cell_text(text: str | None) -> str:
    """A text as the cell that shows it: a ``'`` stands before what would be a formula, or would be read as nothing.

    None, where there is no text, is an empty cell.
    """
    if text is None:
        return ""
    return f"'{text}" if not text or text.startswith(_STARTS) else text


def text_of_cell(cell: str) -> str | None:
    """The text that :func:`cell_text` wrote; None where there was none."""
    return cell.removeprefix("'") if cell else None


class Rows(Protocol):
    """Writes rows of cells."""

    def writerow(self, row: Iterable[Any], /) -> object:
        """Write one."""

    def writerows(self, rows: Iterable[Iterable[Any]], /) -> None:
        """Write several."""


def csv_rows(file: TextIO) -> Rows:
    """What writes rows into a file, which was opened with ``newline=""``; each ends with a line feed."""
    return csv.writer(_LineFeeds(file), lineterminator="\r\n")


class _LineFeeds:
    """Rows that end with a line feed alone.

    The csv module puts only those line breaks of a cell between quotes that end its rows, and a reader takes either for
    the end of a row.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, row: str) -> int:
        return self._file.write(row.removesuffix("\r\n") + "\n")
