"""Every two rows of a section, paired by document: which of them a test tells apart."""

from __future__ import annotations

from itertools import combinations

from harness.exam.statistics import Difference, agreeing, holm
from harness.reports.cells import BoardRow, MeasuredSection, Metric, brackets, signed, significant_change
from harness.reports.comparison import pair_difference
from harness.reports.table import MISSING, Table, TableCell, TableColumn, TableRow, text_cells

__all__ = ["pairs_table"]

MOST = 12
"""Rows; a square of more is read by nobody."""

_Pairs = dict[tuple[int, int], tuple[Difference, float]]
"""Places of two rows, the first before the second -> second minus first, and its p value, adjusted."""


def pairs_table(section: MeasuredSection) -> Table | None:
    """Row minus column of the first metric, with intervals; None where there is nothing to pair, or too much.

    Bold where the row is better than the column and the test, adjusted over all pairs of the table (Holm), says so.
    """
    rows = [row for row in section.rows if row.record is not None]
    metric = next(iter(section.metrics), None)
    if metric is None or metric.higher_is_better is None or not 2 <= len(rows) <= MOST:
        return None
    found = _paired(rows, metric)
    if not found:
        return None
    columns = (TableColumn(("row minus column",), left=True), *(TableColumn((row.label,)) for row in rows))
    shown = tuple(
        TableRow((*text_cells([row.label]), *_cells(i, len(rows), found, metric))) for i, row in enumerate(rows)
    )
    note = (
        "Paired by case. Bold: the row is better than the column, by a test whose p value is adjusted for all pairs of "
        "this table (Holm)."
    )
    return Table(f"{metric.task} {metric.metric}, every two editors", columns, shown, (note,))


def _paired(rows: list[BoardRow], metric: Metric) -> _Pairs:
    known: dict[tuple[int, int], Difference] = {}
    for i, j in combinations(range(len(rows)), 2):
        first, second = ((row.record, row.edits) for row in (rows[i], rows[j]))
        assert first[0] is not None and second[0] is not None
        change = pair_difference((first[0], first[1]), (second[0], second[1]), task=metric.task, metric=metric.metric)
        if change is not None and change.value is not None and change.p is not None:
            known[i, j] = change
    adjusted = holm([change.p or 0.0 for change in known.values()])
    return {pair: (change, p) for (pair, change), p in zip(known.items(), adjusted, strict=True)}


def _cells(i: int, count: int, found: _Pairs, metric: Metric) -> list[TableCell]:
    return [_cell(i, j, found, metric) for j in range(count)]


def _cell(i: int, j: int, found: _Pairs, metric: Metric) -> TableCell:
    """Row ``i`` minus column ``j``."""
    pair = found.get((min(i, j), max(i, j)))
    if pair is None:
        return TableCell("" if i == j else MISSING)
    change, p = pair
    if change.value is None or change.low is None or change.high is None:
        return TableCell(MISSING)
    sign = -1.0 if i < j else 1.0  # what is known is the later row minus the earlier one
    value = sign * change.value
    low, high = sorted(sign * end for end in agreeing(change.p, change.low, change.high))
    told = significant_change({"value": value, "interval": [low, high], "p": change.p}, p)
    better = told and (value > 0) == metric.higher_is_better
    return TableCell(signed(value), value, (brackets((low, high), sign=True),), best=better)
