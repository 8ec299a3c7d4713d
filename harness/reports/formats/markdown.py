"""Pages in Markdown, as GitHub shows it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

from harness.reports.registry import Format
from harness.reports.table import Footnotes, Page, Table, TableCell

__all__ = ["Markdown"]

_MARKUP = re.compile(r"[\\|*_`<&$~]|\](?=[(\[:])")
"""Of brackets only what could close the text of a link: intervals stay as they are."""


class Markdown(Format):
    """Markdown, as GitHub shows it."""

    name: ClassVar[str] = "md"
    ending: ClassVar[str] = ".md"

    def write(self, pages: Sequence[Page]) -> str:
        """The pages, one below the other."""
        return "\n".join("\n".join(_lines(page)) + "\n" for page in pages)


def _lines(page: Page) -> Iterator[str]:
    yield f"# {_escape(page.title)}"
    yield from _apart("\n".join(f"- {_escape(text)}" for text in page.introduction))
    for section in page.sections:
        yield from _apart(f"## {_escape(section.title)}")
        for table in section.tables:
            yield from _apart(f"### {_escape(table.title)}" if table.title else "")
            yield from _table(table)
    for text in page.notes:
        yield from _apart(_escape(text))


def _apart(text: str) -> tuple[str, ...]:
    """A block with an empty line above it; nothing where there is no text."""
    return ("", text) if text else ()


def _table(table: Table) -> Iterator[str]:
    notes = Footnotes()
    yield ""
    yield _row("<br>".join(map(_escape, column.lines)) for column in table.columns)
    yield _row(":--" if column.left else "--:" for column in table.columns)
    for row in table.rows:
        yield _row(_cell(cell, notes) for cell in row.cells)
    yield from _apart("<br>".join(f"<sup>{i}</sup> {_escape(text)}" for i, text in enumerate(notes.texts, start=1)))
    for text in table.notes:
        yield from _apart(_escape(text))


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(cell: TableCell, notes: Footnotes) -> str:
    text = _escape(cell.text)
    if cell.note is not None:
        return f"{text}<sup>{notes.mark(cell.note)}</sup>"
    below = _escape(" ".join(cell.below))
    return (f"**{text}**" if cell.best else text) + _escape(cell.mark) + (f"<br>{below}" if below else "")


def _escape(text: str) -> str:
    """The text on one line, with what Markdown or a table would take for markup escaped."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.splitlines()))
