"""Pages as comma-separated values: one line for each row of any table, in full precision."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import ClassVar

from harness.io.spreadsheet import cell_text, csv_rows
from harness.reports.registry import Format
from harness.reports.table import Page

__all__ = ["CommaSeparated"]


class CommaSeparated(Format):
    """Comma-separated values in full precision, empty where there is none."""

    name: ClassVar[str] = "csv"
    ending: ClassVar[str] = ".csv"

    def write(self, pages: Sequence[Page]) -> str:
        """The numbers of each page under their heads; an empty line stands between two pages."""
        return "\n".join(_one(page) for page in pages)


def _one(page: Page) -> str:
    out = io.StringIO()
    csv_rows(out).writerows([map(_cell, row) for row in (page.data.fields, *page.data.rows)])
    return out.getvalue()


def _cell(value: object) -> object:
    """A value; of text that a spreadsheet would run as a formula, the text."""
    if isinstance(value, bool):
        return int(value)
    return cell_text(value) if isinstance(value, str) and value else value
