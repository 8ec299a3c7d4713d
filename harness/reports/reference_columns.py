"""Published values beside the rows of a leaderboard: columns of their own, each with its paper, source and certainty.

A value stands in a row where model, data and method are alike (:func:`harness.reports.published_values.alike`). It is
never put into a column of ours: how it was measured is the paper's matter, and stands below the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from harness.reports.cells import BoardRow, MeasuredSection
from harness.reports.published_values import UNEDITED, PublishedValue, alike
from harness.reports.table import MISSING, Data, Table, TableCell, TableColumn

__all__ = ["QUOTED", "UNMATCHED", "Reference", "reference_columns", "with_reference_data", "with_references"]

QUOTED = (
    "Published: values of papers, as they print them, under the protocol that the note below says; (quoted): read only "
    "where others quote it."
)
UNMATCHED = "No published value that was given belongs to a model and an edit set of this page."
_Key: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Reference:
    """A column of published values that were measured alike.

    Attributes:
        name: a letter, by which the note below the table is found.
        values: method, as all spell it -> its value.
    """

    name: str
    values: Mapping[str, PublishedValue]

    @property
    def first(self) -> PublishedValue:
        """Any of the values: what they share is the same in all."""
        return next(iter(self.values.values()))

    @property
    def column(self) -> TableColumn:
        """The head."""
        return TableColumn(("published", f"{self.first.metric} [{self.name}]"))

    @property
    def note(self) -> str:
        """Where the column comes from, how it was measured, and how certain it is."""
        one = self.first
        edits = f"{one.n_edits} edits" if one.n_edits else ""
        batch = f"{one.batch} at a time" if one.batch else ""
        how = ", ".join(part for part in (one.protocol, edits, batch) if part) or "how it was measured is not told"
        paper = ", ".join(part for part in (one.paper, one.table) if part)
        source = f" Source: {one.source}." if one.source else ""
        return f"[{self.name}] {paper}: {how}.{source} Certainty: {one.certainty or 'not told'}."

    def of(self, row: BoardRow) -> PublishedValue | None:
        """The value of a row; None where none is published."""
        names = UNEDITED if row.record is None else (alike(str(row.record.editor.get("name", ""))),)
        return next((self.values[name] for name in names if name in self.values), None)

    def cell(self, row: BoardRow) -> TableCell:
        """The value of a row as it stands in a table, marked where it was only quoted."""
        found = self.of(row)
        if found is None:
            return TableCell(MISSING)
        return TableCell(found.value, found.number, tuple(part for part in (_sd(found), _quoted(found)) if part))


def _sd(value: PublishedValue) -> str:
    return f"±{value.sd}" if value.sd else ""


def _quoted(value: PublishedValue) -> str:
    return "(quoted)" if value.quoted else ""


def reference_columns(section: MeasuredSection, values: Sequence[PublishedValue]) -> list[Reference]:
    """The columns of published values that belong to a section: its model and its edit set.

    Args:
        section: of a leaderboard.
        values: of any papers.
    """
    model, data = alike(str(section.protocol["model"])), alike(str(section.protocol["edit_set"]))
    groups: dict[_Key, list[dict[str, PublishedValue]]] = {}
    for one in values:
        if one.data and (alike(one.model), alike(one.data)) == (model, data):
            _column_of(one, groups.setdefault(_measured_alike(one), [])).setdefault(alike(one.method), one)
    methods = {alike(str(row.record.editor.get("name", ""))) for row in section.rows if row.record} | set(UNEDITED)
    shown = [found for columns in groups.values() for found in columns if methods & found.keys()]
    return [Reference(_letter(place), found) for place, found in enumerate(shown)]


def _column_of(one: PublishedValue, columns: list[dict[str, PublishedValue]]) -> dict[str, PublishedValue]:
    """The first column with no other value of the method: of ``ROME`` and ``ROME*`` each keeps its own."""
    for column in columns:
        if column.get(alike(one.method), one).value == one.value:
            return column
    columns.append({})
    return columns[-1]


def _measured_alike(one: PublishedValue) -> _Key:
    return (one.paper, one.table, one.metric, one.protocol, one.n_edits, one.batch, one.source, one.certainty)


def _letter(place: int) -> str:
    """a, b, ..., z, then aa, ab, ..."""
    return (_letter(place // 26 - 1) if place >= 26 else "") + chr(ord("a") + place % 26)


def with_references(table: Table, section: MeasuredSection, values: Sequence[PublishedValue]) -> Table:
    """A table of a leaderboard with the published values of its rows, and their notes below it.

    Args:
        table: the table of the section.
        section: its rows, in the order of the table.
        values: of any papers.
    """
    found = reference_columns(section, values)
    if not found:
        return table
    rows = [
        replace(row, cells=(*row.cells, *(reference.cell(board) for reference in found)))
        for row, board in zip(table.rows, section.rows, strict=True)
    ]
    columns = (*table.columns, *(reference.column for reference in found))
    notes = (*table.notes, *(reference.note for reference in found))
    return replace(table, columns=columns, rows=tuple(rows), notes=notes)


def with_reference_data(data: Data, sections: Sequence[MeasuredSection], values: Sequence[PublishedValue]) -> Data:
    """The numbers of a page for a machine, with a column for each way in which published values were measured.

    Args:
        data: a line for each row of each section, in their order.
        sections: of the page.
        values: of any papers.
    """
    found = [_by_head(reference_columns(section, values)) for section in sections]
    heads = list(dict.fromkeys(head for each in found for head in each))
    if not heads:
        return data
    rows = [
        tuple(one for head in heads for one in _told(each.get(head), row))
        for section, each in zip(sections, found, strict=True)
        for row in section.rows
    ]
    fields = tuple(part for head in heads for part in (f"published: {head}", f"published: {head}, certainty"))
    return Data((*data.fields, *fields), tuple((*a, *b) for a, b in zip(data.rows, rows, strict=True)))


def _by_head(references: Sequence[Reference]) -> dict[str, Reference]:
    """Columns by what tells them apart; a number where only another value of one method does."""
    found: dict[str, Reference] = {}
    for reference in references:
        head = _head(reference)
        same = sum(_head(other) == head for other in found.values())
        found[f"{head} ({same + 1})" if same else head] = reference
    return found


def _head(reference: Reference) -> str:
    one = reference.first
    edits = f"{one.n_edits} edits" if one.n_edits else ""
    batch = f"{one.batch} at a time" if one.batch else ""
    told = (one.paper, one.table, one.metric, one.protocol, edits, batch, one.source)
    return ", ".join(part for part in told if part)


def _told(reference: Reference | None, row: BoardRow) -> tuple[float | None, str | None]:
    found = None if reference is None else reference.of(row)
    return (None, None) if found is None else (found.number, found.certainty or None)
