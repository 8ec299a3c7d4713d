"""A record to tables of two languages: that of the edit, a row each, and that of the question, a column each.

Metrics that say both have them behind a dot, such as ``rewrite_success.en-de``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.reports.cells import number
from harness.reports.table import MISSING
from harness.runs.record import Record

__all__ = ["language_matrices", "language_tables"]

_PAIR = re.compile(r"(?P<metric>.+)\.(?P<edited>[A-Za-z_]+)-(?P<asked>[A-Za-z_]+)")

Matrix = dict[tuple[str, str], float | None]
"""The value by the language of the edit and that of the question."""


def language_matrices(table: Mapping[str, Mapping[str, Any]]) -> dict[str, Matrix]:
    """The values of metrics in two languages, by metric.

    Args:
        table: the metrics of a task, as a record has them.
    """
    found: dict[str, Matrix] = {}
    for name, one in table.items():
        pair = _PAIR.fullmatch(name)
        if pair is not None:
            found.setdefault(pair["metric"], {})[pair["edited"], pair["asked"]] = one["value"]
    # Languages such as zh-cn are no pairs: no edit is asked in its own among them.
    return {metric: matrix for metric, matrix in found.items() if any(edited == asked for edited, asked in matrix)}


def language_tables(record: Record) -> Iterator[RenderableType]:
    """A table for each metric of the last stop that is asked in two languages.

    Args:
        record: the record.
    """
    for task, metrics in record.points[-1]["tasks"].items():
        for metric, matrix in language_matrices(metrics).items():
            yield Group(Text(f"{task} {metric}: edited in (row), asked in (column)", style="bold"), _table(matrix))


def _table(matrix: Matrix) -> Table:
    languages = list(dict.fromkeys(language for pair in sorted(matrix) for language in pair))
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for language in languages:
        table.add_column(language, justify="right")
    for edited in languages:
        cells = [matrix.get((edited, asked)) for asked in languages]
        table.add_row(edited, *(MISSING if one is None else number(one) for one in cells))
    return table
