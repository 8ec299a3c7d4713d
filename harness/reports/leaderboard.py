"""Records to leaderboards.  Pure: the same records give the same page.

Only what is comparable shares a table: one model, one edit set, one way of editing, one number of edits, one limit.
Only what is measured alike shares a column: one task, one metric, one set of documents, one prompt.  A value is bold
only where it is significantly better than the second best, paired by document.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from harness.exam.exam_parts import OWN
from harness.exam.prompting import worded
from harness.io.collector import without_collector
from harness.reports.cells import (
    CHANCE,
    EDIT_METRICS,
    LEGEND,
    PUBLISHED,
    STANDINGS,
    VARIANTS,
    BoardRow,
    MeasuredCell,
    MeasuredSection,
    Metric,
    caveat_notes,
    headline_deviation,
    number,
    published_by,
    published_notes,
    shown_metrics,
    shown_row,
    standing_of,
    unedited_at_chance,
    variant,
)
from harness.reports.comparison import pair_difference
from harness.reports.pairs import pairs_table
from harness.reports.published_values import PublishedValue
from harness.reports.reference_columns import QUOTED, UNMATCHED, reference_columns, with_reference_data, with_references
from harness.reports.registry import find_format
from harness.reports.seeds import order_notes, pool
from harness.reports.table import Data, Page, Section, Table
from harness.runs.judged_file import judged_notes, with_verdicts
from harness.runs.record import Record, record_name

__all__ = ["leaderboard", "leaderboard_page", "measured_sections", "section_order", "shown_and_headline"]

Json = dict[str, Any]
Member = tuple[Record, int]
"""A record, and the number of edits at which it is looked at."""

UNEDITED = "unedited"
_PROTOCOL = ("model", "edit_set", "edits", "mode", "edit_batch_size", "dtype", "data", "limit")
_MEASURE = (
    "",
    ".n",
    ".low",
    ".high",
    ".difference",
    ".difference_low",
    ".difference_high",
    ".p",
    ".best",
    ".at_chance",
)


def leaderboard(records: Sequence[Record], fmt: str = "md", published: Sequence[PublishedValue] = ()) -> str:
    """The leaderboard of records in a format, such as ``md``, ``csv``, ``html``, ``json`` or ``latex``.

    Args:
        records: the records.
        fmt: the name of the format.
        published: values of papers, which stand beside the rows that they belong to.

    Raises:
        UsageError: there is no such format.
    """
    return find_format(fmt).write([leaderboard_page(records, published)])


def leaderboard_page(records: Sequence[Record], published: Sequence[PublishedValue] = ()) -> Page:
    """The leaderboard of records, before any format.

    Records that differ in their seed alone are one row, their mean.  Records that are not complete are left out and
    named.  What is best of a column is marked only where the records have the values of their documents
    (``read_records(folder, values=True)``).

    Args:
        records: the records.
        published: values of papers, which stand in columns of their own beside the rows that they belong to.
    """
    left_out = sorted(f"{record_name(r)} is left out: {r.status}" for r in records if r.status != "complete")
    sections = measured_sections(records)
    left_out += [] if sections else _without_edits(records)
    split = any(" @" in label for section in sections for label in section.labels)
    marked = any(cell.at_chance for section in sections for row in section.rows for cell in row.cells)
    brought = any(record.published for record in records if record.status == "complete")
    beside = any(reference_columns(section, published) for section in sections)
    given = any(row.standing for section in sections for row in section.rows)
    cases = (
        (CHANCE, marked),
        (VARIANTS, split),
        (PUBLISHED, brought),
        (QUOTED, beside),
        (UNMATCHED, bool(published) and not beside),
        (STANDINGS, given),
    )
    introduction = (*LEGEND, *(text for text, wanted in cases if wanted), *left_out)
    shown = tuple(_shown(section, published) for section in sections)
    return Page("Leaderboard", introduction, shown, data=with_reference_data(_data(sections), sections, published))


def _without_edits(records: Sequence[Record]) -> list[str]:
    """How many records have no row, as they are of the unedited model alone, which stands above the rows of others."""
    count = sum(r.status == "complete" and not any(point["edits"] for point in r.points) for r in records)
    told = "1 record edits nothing and has" if count == 1 else f"{count} records edit nothing and have"
    return [f"{told} no row; `harness show` tells what it measured"] if count else []


def measured_sections(records: Sequence[Record]) -> list[MeasuredSection]:
    """The tables of records that are complete; those that differ in their seed alone are one row, their mean."""
    whole = sorted((r for r in records if r.status == "complete"), key=lambda r: (record_name(r), r.id))
    whole = [with_verdicts(record) for record in whole]
    with without_collector():
        sections = _sections(pool(whole, shown_and_headline))
    # Where all were run here, nobody asks.
    if any(record.standing or record.published for record in whole):
        for row in (row for section in sections for row in section.rows):
            row.standing = standing_of(row.record) if row.record else None
    return sections


def shown_and_headline(record: Record, task: str, measures: Mapping[str, Json]) -> list[str]:
    """What is shown of a task, and its headline, whose deviation over seeds is told.

    Args:
        record: of a run.
        task: the name of the task.
        measures: metric -> its numbers.
    """
    headline = [metric for metric in measures if metric == record.headlines.get(task)]
    return list(dict.fromkeys([*shown_metrics(record, task, measures), *headline]))


def _shown(section: MeasuredSection, published: Sequence[PublishedValue]) -> Section:
    """The table of a section; of published rows, where nothing can be run again, every two are compared as well."""
    rows = tuple(shown_row(row, section.metrics) for row in section.rows)
    judges = {name: said for row in section.rows if row.record for name, said in row.record.judges.items()}
    notes = (*caveat_notes(section), *order_notes(section), *published_notes(section), *judged_notes(judges))
    table = Table("", section.columns, rows, notes)
    pairs = pairs_table(section) if "published" in section.protocol else None
    return Section(section.title, (with_references(table, section, published), *([pairs] if pairs else [])))


# --- what may be compared ---------------------------------------------------------------------------------------------


def _sections(records: Sequence[Record]) -> list[MeasuredSection]:
    groups: dict[str, list[Member]] = {}
    for record in records:
        for point in record.points:
            if point["edits"]:
                groups.setdefault(json.dumps(_protocol(record, point["edits"])), []).append((record, point["edits"]))
    found = [_section(json.loads(key), members) for key, members in groups.items()]
    return sorted(found, key=lambda section: section_order(section.protocol))


def section_order(protocol: Json) -> tuple[Any, ...]:
    """What the tables of a page are sorted by.

    Args:
        protocol: what the rows of a table have in common.
    """
    p = protocol
    order = (
        p["model"],
        p["edit_set"],
        p["mode"],
        p["edits"],
        p["edit_batch_size"] or 0,
        bool(p["prompting"]),
        json.dumps(p),
    )
    return ("published" in p, *order)


def _protocol(record: Record, edits: int) -> Json:
    """What two records must share to stand in one table."""
    plan = record.plan
    return {
        "model": record.model.get("name", "model"),
        "edit_set": record.edits.get("dataset", "no edits"),
        "edits": edits,
        "mode": record.edits.get("mode") or plan.get("mode") or "",
        "edit_batch_size": plan.get("edit_batch_size"),
        "dtype": record.model.get("dtype", ""),
        "data": "" if record.published else str(plan.get("data_dir") or "mini").rstrip("/").rsplit("/", 1)[-1],
        "limit": plan.get("limit"),
        "prompting": _prompting(record),
        "weights": record.model.get("sha256"),
        "ids": record.edits.get("sha256"),
        **({"published": published_by(record)} if record.published else {}),
    }


def _prompting(record: Record) -> Json:
    """How the model was asked, and by which chat template; empty where that was as the tasks say."""
    template = record.model.get("chat_template")
    return {**worded(record.plan), **({"chat_template": template} if template else {})}


def _section(protocol: Json, members: Sequence[Member]) -> MeasuredSection:
    metrics = _metrics(members)
    rows = [BoardRow(label, [], record, edits) for label, (record, edits) in zip(_names(members), members, strict=True)]
    for row in rows:
        row.cells = [_measured(row.record, row.edits, metric) for metric in metrics]
    rows.sort(key=lambda row: _rank(row, metrics))
    for place, metric in enumerate(metrics):
        _mark_best(rows, place, metric)
    base = BoardRow(UNEDITED, [_unedited(members, metric) for metric in metrics])
    return MeasuredSection(protocol, metrics, [base, *rows])


def _place(metric: str) -> tuple[int, str]:
    """Where a metric of edits stands: the usual ones in their order, then those that a task names."""
    return (EDIT_METRICS.index(metric) if metric in EDIT_METRICS else len(EDIT_METRICS), metric)


def _metrics(members: Sequence[Member]) -> list[Metric]:
    """Edit metrics first, then the headline of every other task, each in the order of first appearance."""
    exams: dict[tuple[str, str, str], Metric] = {}
    others: dict[tuple[str, str, str], Metric] = {}
    for record, edits in members:
        for task, measures in record.tasks(edits).items():
            for metric in shown_metrics(record, task, measures):
                key = (task, metric, variant(record, task))
                found = Metric(*key, measures[metric].get("higher_is_better"))
                (exams if "efficacy" in measures else others).setdefault(key, found)
    ordered = sorted(others.values(), key=lambda m: (m.task.lower(), m.metric, m.variant))
    return [*sorted(exams.values(), key=lambda m: (m.task, _place(m.metric), m.variant)), *ordered]


def _names(members: Sequence[Member]) -> list[str]:
    """The editors with their number of seeds, told apart by seed or by record where the name alone does not."""
    names = [f"{record.editor.get('name', 'editor')}{_seeds(record, edits)}" for record, edits in members]
    seeded = [f"{n} (seed {r.seed})" for n, (r, _) in zip(names, members, strict=True)]
    unique = [f"{n} ({r.id[:8]})" for n, (r, _) in zip(names, members, strict=True)]
    count = Counter(names)
    best = [s if count[n] > 1 else n for n, s in zip(names, seeded, strict=True)]
    count = Counter(best)
    return [u if count[b] > 1 else b for b, u in zip(best, unique, strict=True)]


def _seeds(record: Record, edits: int) -> str:
    """How many runs a row is the mean of, and how far their headlines lie apart at most."""
    seeds = record.plan.get("seeds")
    if not seeds:
        return ""
    widest = headline_deviation(record, edits)
    return f" ({len(seeds)} seeds{'' if widest is None else f', sd at most {number(widest)}'})"


def _measured(record: Record | None, edits: int, metric: Metric) -> MeasuredCell:
    measures = record.tasks(edits).get(metric.task, {}) if record else {}
    if record is None or metric.metric not in measures or variant(record, metric.task) != metric.variant:
        return MeasuredCell(None, "not asked" if record and _left_out(record, metric.task) else "not measured")
    measure = measures[metric.metric]
    reason = None if measure["value"] is not None else str(measure["reason"] or "no value")
    return MeasuredCell(measure, reason, at_chance=unedited_at_chance(record, metric.task, metric.metric))


def _left_out(record: Record, task: str) -> bool:
    """Whether the plan of a record asks only parts of the exam of an edit set."""
    return bool(record.plan.get("exam")) and task in (record.plan.get("edits"), OWN)


def _unedited(members: Sequence[Member], metric: Metric) -> MeasuredCell:
    cells = [_measured(record, 0, metric) for record, _ in members]
    return next((cell for cell in cells if cell.measure is not None), MeasuredCell(None, "not measured"))


def _rank(row: BoardRow, metrics: Sequence[Metric]) -> tuple[float, str]:
    """By the first column (the score S, or the efficacy) where it has a better direction, then by name."""
    if not metrics or metrics[0].higher_is_better is None:
        return (0.0, row.label)
    value = row.cells[0].value
    sign = -1.0 if metrics[0].higher_is_better else 1.0
    return (float("inf") if value is None else sign * value, row.label)


def _mark_best(rows: Sequence[BoardRow], place: int, metric: Metric) -> None:
    """Marks the best cell of a column where it is significantly better than the second best."""
    valued = [(v, row) for row in rows if (v := row.cells[place].value) is not None]
    if metric.higher_is_better is None or len(valued) < 2:
        return
    ordered = sorted(valued, key=lambda pair: pair[0], reverse=metric.higher_is_better)
    (top, best), (runner_up, second) = ordered[:2]
    if top == runner_up or best.record is None or second.record is None:
        return
    found = pair_difference(
        (second.record, second.edits), (best.record, best.edits), task=metric.task, metric=metric.metric
    )
    best.cells[place].best = found is not None and found.significant


# --- for machines -----------------------------------------------------------------------------------------------------


def _data(sections: Sequence[MeasuredSection]) -> Data:
    """One line a row of any table, what makes it comparable first."""
    keys = list(dict.fromkeys((m.task, m.metric, m.variant) for section in sections for m in section.metrics))
    heads = [column + part for column in _data_names(keys) for part in _MEASURE]
    rows = [_data_row(section, row, keys) for section in sections for row in section.rows]
    fields = (*_PROTOCOL, "editor", "seed", "record", *heads, "seconds", "mib")
    protocols = [section.protocol for section in sections for _ in section.rows]
    # What few tables are told apart by has a column where there are such tables.
    for field, said in (("published", _published_cell), ("prompting", _prompting_cell)):
        cells = [said(protocol) for protocol in protocols]
        if any(cell is not None for cell in cells):
            fields, rows = (*fields, field), [(*row, cell) for row, cell in zip(rows, cells, strict=True)]
    standings = [row.standing for section in sections for row in section.rows]
    if any(standings):
        fields, rows = (*fields, "standing"), [(*row, cell) for row, cell in zip(rows, standings, strict=True)]
    return Data(fields, tuple(rows))


def _published_cell(protocol: Json) -> object:
    return protocol.get("published")


def _prompting_cell(protocol: Json) -> object:
    """How tasks are asked, as JSON; None where that is as they say."""
    return json.dumps(protocol["prompting"], sort_keys=True) if protocol["prompting"] else None


def _data_names(keys: Sequence[tuple[str, str, str]]) -> list[str]:
    plain = [f"{task}.{metric}" for task, metric, _ in keys]
    return [f"{p}@{key[2]}" if plain.count(p) > 1 else p for p, key in zip(plain, keys, strict=True)]


def _data_row(section: MeasuredSection, row: BoardRow, keys: Sequence[tuple[str, str, str]]) -> tuple[object, ...]:
    cells = {(m.task, m.metric, m.variant): cell for m, cell in zip(section.metrics, row.cells, strict=True)}
    who = (row.label, row.record.seed if row.record else None, row.record.id if row.record else None)
    numbers = (value for key in keys for value in _data_cell(cells.get(key)))
    return (*(section.protocol[key] for key in _PROTOCOL), *who, *numbers, row.seconds, row.memory)


def _data_cell(cell: MeasuredCell | None) -> list[object]:
    if cell is None or cell.measure is None:
        return [None] * len(_MEASURE)
    measure, change = cell.measure, cell.measure.get("difference") or {}
    own, paired = measure.get("interval") or [None, None], change.get("interval") or [None, None]
    return [
        measure["value"],
        measure["n"],
        *own,
        change.get("value"),
        *paired,
        change.get("p"),
        cell.best,
        cell.at_chance,
    ]
