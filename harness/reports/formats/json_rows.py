"""Pages as JSON: the rows of each page, in full precision, null where there is no value."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import ClassVar

from harness.reports.registry import Format
from harness.reports.table import Page

__all__ = ["JsonRows"]


class JsonRows(Format):
    """JSON: page -> its rows, each an object with the names of the CSV."""

    name: ClassVar[str] = "json"
    ending: ClassVar[str] = ".json"

    def write(self, pages: Sequence[Page]) -> str:
        """One object: the title of each page, and its rows."""
        found = {page.title: [_row(page, row) for row in page.data.rows] for page in pages}
        return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _row(page: Page, row: Sequence[object]) -> dict[str, object]:
    return {name: _finite(value) for name, value in zip(page.data.fields, row, strict=True)}


def _finite(value: object) -> object:
    """JSON has no infinity: what is no number has no value."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
