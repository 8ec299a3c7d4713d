"""A page of tables, before any format: what is shown to a person, and the same numbers for a machine.

A leaderboard, a sweep and a study of localisation build pages, and each file of ``harness/reports/formats`` writes any
page.  All of it is plain text: no builder knows a markup, and every format escapes what it writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "AT_CHANCE",
    "MISSING",
    "Data",
    "Footnotes",
    "Page",
    "Section",
    "Table",
    "TableCell",
    "TableColumn",
    "TableRow",
    "Verdict",
    "caption",
    "text_cells",
]

MISSING = "\N{EN DASH}"
"""What stands where there is no value."""
AT_CHANCE = "\N{DAGGER}"
"""What stands behind a value where the unedited model cannot be told from one that knows nothing."""

Verdict = Literal["better", "worse"]


@dataclass(frozen=True)
class TableCell:
    """What stands in one place of a table.

    Attributes:
        text: the value in words.
        value: what a page sorts by, in full precision; None where the text is all there is.
        below: smaller lines under it, such as a difference and its interval.
        best: whether it is significantly better than the second best of its column.
        verdict: whether it differs significantly from what it is compared with, and which way.
        note: why there is no value; becomes a footnote of the table.
        at_chance: whether the unedited model cannot be told from one that knows nothing; marked by ``AT_CHANCE``.
    """

    text: str
    value: float | None = None
    below: tuple[str, ...] = ()
    best: bool = False
    verdict: Verdict | None = None
    note: str | None = None
    at_chance: bool = False

    @property
    def mark(self) -> str:
        """What stands behind the text."""
        return AT_CHANCE if self.at_chance else ""


@dataclass(frozen=True)
class TableColumn:
    """The head of a column.

    Attributes:
        lines: its text; where it has two parts, the second may stand below the first.
        left: whether its cells are words rather than numbers.
    """

    lines: tuple[str, ...]
    left: bool = False


@dataclass(frozen=True)
class TableRow:
    """One line of a table; ``base`` is what the others are compared with, ``total`` sums them up."""

    cells: tuple[TableCell, ...]
    kind: Literal["plain", "base", "total"] = "plain"


@dataclass(frozen=True)
class Table:
    """Rows under columns.

    Attributes:
        title: what stands above it; empty where the title of its section says all.
        columns: the heads.
        rows: a cell for each column.
        notes: sentences below it.
    """

    title: str
    columns: tuple[TableColumn, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """Tables under one title."""

    title: str
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Data:
    """The numbers of a page for a machine: one table, in full precision, None where there is no value."""

    fields: tuple[str, ...] = ()
    rows: tuple[tuple[object, ...], ...] = ()


@dataclass(frozen=True)
class Page:
    """What a format writes.

    Attributes:
        title: what stands above all.
        introduction: how to read the tables, a sentence or paragraph each.
        sections: the tables.
        notes: what stands below all.
        data: the same numbers, and more digits, for formats that a machine reads.
    """

    title: str
    introduction: tuple[str, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()
    data: Data = field(default_factory=Data)


class Footnotes:
    """Numbered footnotes of one table; the same reason has one number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, text: str) -> int:
        """The number of a footnote."""
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


def caption(section: Section, table: Table) -> str:
    """The title of a table where it stands alone."""
    return ": ".join(text for text in (section.title, table.title) if text)


def text_cells(texts: Sequence[str]) -> tuple[TableCell, ...]:
    """Cells that are text alone."""
    return tuple(TableCell(text) for text in texts)
