"""A section of a leaderboard as data that a page loads: its columns, and its rows in chunks.

All numbers are those of :mod:`harness.reports.leaderboard`, in the words of :mod:`harness.reports.cells`; the page
computes none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.io.files import json_sha256
from harness.reports.cells import (
    BoardRow,
    MeasuredCell,
    MeasuredSection,
    Metric,
    brackets,
    number,
    shown_interval,
    signed,
    verdict,
)
from harness.reports.table import MISSING

__all__ = ["ROWS_A_CHUNK", "Whose", "chunks_of", "section_head", "section_slug"]

Json = dict[str, Any]

ROWS_A_CHUNK = 400
BEST, BETTER, WORSE, AT_CHANCE = 1, 2, 4, 8
"""The marks of a cell, added up."""


@dataclass(frozen=True)
class Whose:
    """What stands beside the numbers of a row.

    Attributes:
        editor: its plain name.
        label: what tells it from other rows of the same editor.
        seeds: of the runs whose mean it is.
        records: the pages of these runs.
        badge: how far the numbers were checked.
    """

    editor: str
    label: str = ""
    seeds: tuple[int, ...] = ()
    records: tuple[str, ...] = ()
    badge: str = ""


def section_slug(protocol: Mapping[str, Any]) -> str:
    """The name of a section's files, which any file system takes."""
    named = [protocol["model"], f"{protocol['edit_set']}-{protocol['edits']}", protocol["mode"]]
    words = [re.sub(r"[^A-Za-z0-9+._]+", "-", str(part).rstrip("/").rsplit("/", 1)[-1]).strip("-.") for part in named]
    return "--".join([*(word[:60] for word in words if word), json_sha256(protocol)[:6]])


def section_head(section: MeasuredSection, told: Sequence[Mapping[str, str]], notes: Sequence[str]) -> Json:
    """What a page must know of a section before any row.

    Args:
        section: the table.
        told: of each metric its ``definition`` and its ``test``.
        notes: sentences below the table.
    """
    columns = [
        {"key": label, "task": m.task, "metric": m.metric, "variant": m.variant, "better": m.higher_is_better, **said}
        for label, m, said in zip(section.labels, section.metrics, told, strict=True)
    ]
    return {
        "slug": section_slug(section.protocol),
        "title": section.title,
        "protocol": section.protocol,
        "columns": columns,
        "rows_a_chunk": ROWS_A_CHUNK,
        "count": len(section.rows) - 1,
        "chunks": -(-(len(section.rows) - 1) // ROWS_A_CHUNK),
        "base": [_cell(cell, metric) for cell, metric in zip(section.rows[0].cells, section.metrics, strict=True)],
        "notes": list(notes),
    }


def chunks_of(
    section: MeasuredSection, whose: Sequence[Whose], more: Sequence[Mapping[str, Any]] = ()
) -> Iterator[list[Json]]:
    """The rows of a section without the unedited one, some hundred at a time.

    Args:
        section: the table.
        whose: of each of these rows what stands beside its numbers.
        more: of each of these rows what else is known.
    """
    rows = [_row(row, section.metrics, one) for row, one in zip(section.rows[1:], whose, strict=True)]
    for row, also in zip(rows, more, strict=False):
        row.update(also)
    for start in range(0, len(rows), ROWS_A_CHUNK):
        yield rows[start : start + ROWS_A_CHUNK]


def _row(row: BoardRow, metrics: Sequence[Metric], whose: Whose) -> Json:
    return {
        "editor": whose.editor,
        "label": whose.label,
        "seeds": list(whose.seeds),
        "records": list(whose.records),
        "badge": whose.badge,
        "seconds": _short(row.seconds),
        "mib": _short(row.memory),
        "cells": [_cell(cell, metric) for cell, metric in zip(row.cells, metrics, strict=True)],
    }


def _cell(cell: MeasuredCell, metric: Metric) -> list[Any]:
    """Text, difference and interval in words; value and its ends, n; difference, its ends, p; marks, or the reason.

    A cell without a value is a dash and the reason.
    """
    if cell.reason is not None or cell.measure is None:
        return [MISSING, cell.reason or "not measured"]
    measure, change = cell.measure, cell.measure.get("difference") or {}
    low, high = measure.get("interval") or (None, None)
    limits = shown_interval(change) if change else None
    below = (
        [signed(change["value"]), brackets(limits, sign=True)]
        if change.get("value") is not None
        else ["", brackets(measure.get("interval"))]
    )
    return [
        number(measure["value"]),
        *below,
        *(_short(one) for one in (measure["value"], low, high)),
        measure["n"],
        *(_short(one) for one in (change.get("value"), *(limits or (None, None)), change.get("p"))),
        _marks(cell, metric),
        _short(measure.get("deviation")),
    ]


def _marks(cell: MeasuredCell, metric: Metric) -> int:
    way = verdict((cell.measure or {}).get("difference") or {}, metric.higher_is_better)
    return BEST * cell.best + BETTER * (way == "better") + WORSE * (way == "worse") + AT_CHANCE * cell.at_chance


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
