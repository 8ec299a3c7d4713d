"""The records that may share a table, read together: their pages, and the data of their tables.

A family is worked on by itself, so that a board of many records holds the values of one family at a time, and one that
did not change is not read again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.exam.numbers import TaskValues
from harness.io.collector import collect_new
from harness.reports.board.cards import card_of
from harness.reports.board.chunks import Whose, chunks_of, section_head, section_slug
from harness.reports.board.figures import figures_of
from harness.reports.board.index import RecordSource
from harness.reports.board.pages import Pages, script_of
from harness.reports.board.record_view import record_view
from harness.reports.cells import (
    EDIT_METRICS,
    BoardRow,
    MeasuredSection,
    Metric,
    caveat_notes,
    number,
    published_by,
    published_notes,
    signed,
    standing_of,
)
from harness.reports.comparison import mean_difference, tested_by
from harness.reports.leaderboard import measured_sections, shown_and_headline
from harness.reports.published_values import PublishedValue
from harness.reports.reference_columns import QUOTED, Reference, reference_columns
from harness.reports.seeds import order_notes, pooled_id, seed_groups
from harness.reports.standings import Compared, Standings, standings
from harness.runs.record import Record, record_name
from harness.runs.record_file import read_record
from harness.runs.ties import require_tied

__all__ = ["Family", "family_key", "make_family"]

Json = dict[str, Any]

ABILITIES = "abilities"
"""The mean change of the tasks that are not about the edits, as the name of an axis."""


def family_key(record: Record) -> str:
    """What records share that may stand in one table; those of several numbers of edits are one family."""
    plan = record.plan
    data = str(plan.get("data_dir") or "mini").rstrip("/").rsplit("/", 1)[-1]
    model = [record.model.get(key) for key in ("name", "sha256", "dtype")]
    how = [record.edits.get("dataset"), record.edits.get("mode") or plan.get("mode")]
    by = published_by(record) if record.published else None
    return json.dumps([*model, *how, plan.get("edit_batch_size"), data, plan.get("limit"), by])


@dataclass(frozen=True)
class Family:
    """What the pages of all families together are made from, as plain data.

    Attributes:
        sections: the head of each table.
        records: a line for each record.
        rows: a line for each row of a table.
        figures: of each record of which a page shows figures, what they are drawn from.
    """

    sections: list[Json]
    records: list[Json]
    rows: list[Json]
    figures: list[Json]


def make_family(sources: Sequence[RecordSource], pages: Pages, published: Sequence[PublishedValue] = ()) -> Family:
    """Read the records of a family, and write their pages and the data of their tables.

    Args:
        sources: the records.
        pages: what writes pages.
        published: values of papers, which stand beside the rows that they belong to.

    Raises:
        DataError: one cannot be read, or says something else than its documents.
    """
    figures: list[Json] = []
    records = []
    for source in sources:
        records.append(_read(source, pages, figures))
        collect_new()  # a page that was rendered stays in circles with its template
    sections = measured_sections(records)
    members = _members(records)
    lines: list[Json] = []
    heads = [
        _write_section(section, members, pages, lines=lines, references=reference_columns(section, published))
        for section in sections
    ]
    return Family(heads, [_record_line(record) for record in records], lines, figures)


def _read(source: RecordSource, pages: Pages, figures: list[Json]) -> Record:
    """A record, its page written, without what no table shows: a family can have thousands."""
    record, given = _looked_at(source)
    pages.record(record_view(record, given), source)
    drawn = figures_of(record)
    if drawn is not None:
        figures.append({**_record_line(record), **drawn, "label": _differing(record)})
    points = [{"edits": point["edits"], "tasks": dict(_shown_tasks(record, point))} for point in record.points]
    values = {point["edits"]: dict(_shown_values(record, point)) for point in points}
    return replace(
        record,
        points=points,
        values=values if record.values else None,
        editor={key: value for key, value in record.editor.items() if key != "notes"},
        weights={},
        delta={},
        versions={},
    )


def _looked_at(source: RecordSource) -> tuple[Record, Mapping[str, str]]:
    """A record whose numbers are those of its documents, and who gave it."""
    if source.given:
        from harness.reports.submissions import read_submission

        found = read_submission(source.path.parent)
        about = {"given by": found.contact, "hardware": found.hardware, "notes": "; ".join(found.notes)}
        return found.record, {"checked": standing_of(found.record), **about}
    record = read_record(source.path, values=True)
    require_tied([record], shown_and_headline, intervals=False)
    return record, {}


def _shown_tasks(record: Record, point: Json) -> Iterator[tuple[str, Json]]:
    for task, measures in point["tasks"].items():
        yield task, {metric: measures[metric] for metric in shown_and_headline(record, task, measures)}


def _shown_values(record: Record, point: Json) -> Iterator[tuple[str, TaskValues]]:
    """Of each task what documents contribute to the metrics that are shown, and to the parts of scores."""
    known = (record.values or {}).get(point["edits"], {})
    for task, measures in point["tasks"].items():
        derived = record.derived.get(task, {})
        needed = {*measures, *(part for score in measures for part in derived.get(score, ()))}
        yield task, {metric: known[task][metric] for metric in known.get(task, {}) if metric in needed}


def _record_line(record: Record) -> Json:
    last = record.points[-1]["edits"] if record.points else 0
    return {
        "name": record_name(record),
        "id": record.id,
        "editor": str(record.editor.get("name", "editor")),
        "model": str(record.model.get("name", "model")),
        "edit_set": str(record.edits.get("dataset", "no edits")),
        "mode": str(record.edits.get("mode") or record.plan.get("mode") or ""),
        "edits": last,
        "seed": record.seed,
        "status": record.status,
        "tasks": sorted(record.tasks(last)),
    }


def _members(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The runs behind a row, by the id of the row's record."""
    found = {record.id: [record] for record in records}
    for group in seed_groups(sorted((r for r in records if r.status == "complete"), key=record_name)):
        if len(group) > 1:
            found[pooled_id(group)] = sorted(group, key=lambda record: record.seed or 0)
    return found


def _write_section(
    section: MeasuredSection,
    members: Mapping[str, Sequence[Record]],
    pages: Pages,
    *,
    lines: list[Json],
    references: Sequence[Reference],
) -> Json:
    """Write the data of a table, add its rows to the lines, and give its head.

    Args:
        section: the table.
        members: the runs behind a row, by the id of the row's record.
        pages: what writes pages.
        lines: of all tables.
        references: the columns of published values.
    """
    slug = section_slug(section.protocol)
    told = [_told(section, metric) for metric in section.metrics]
    quoted = [QUOTED] if references else []
    notes = [*caveat_notes(section), *published_notes(section), *quoted, *(one.note for one in references)]
    head = section_head(section, told, notes) | {"orders": order_notes(section)}
    abilities = [place for place, metric in enumerate(section.metrics) if _is_ability(metric, section.metrics)]
    head |= {"gain": 0, "cost": ABILITIES if abilities else _locality(section.metrics), "abilities": len(abilities)}
    head["references"] = [
        {"name": one.name, "metric": one.first.metric, "note": one.note, "base": _reference(one, section.rows[0])}
        for one in references
    ]
    whose = _whose(section, members)
    rows = section.rows[1:]
    changes = [mean_difference([row.cells[place].measure for place in abilities]) for row in rows]
    more: list[Json] = [{ABILITIES: change and [round(one, 6) for one in change]} for change in changes]
    for row, also in zip(rows, more, strict=True):
        also["references"] = [_reference(one, row) for one in references]
    every = {place: standings(rows, metric) for place, metric in enumerate(section.metrics)}
    among = {place: found for place, found in every.items() if found}
    for one in among.get(0, _NOBODY).rows:
        more[one.place] |= {"rank": [one.best, one.worst], "group": one.group}
    head["compared"] = list(among)
    if among:
        pages.write(f"data/{slug}.pairs.js", script_of("pairs", f"{slug}.pairs", _pairs(among)))
    for number_, chunk in enumerate(chunks_of(section, whose, more)):
        pages.write(f"data/{slug}.{number_}.js", script_of("rows", f"{slug}.{number_}", chunk))
    pages.write(f"data/{slug}.js", script_of("section", slug, head))
    lines += [
        _line(slug, section, row, whose=one, change=change) | {"place": place}
        for place, (row, one, change) in enumerate(zip(rows, whose, changes, strict=True))
    ]
    return {key: head[key] for key in ("slug", "title", "protocol", "count", "chunks")}


_NOBODY = Standings(0, False, (), ())


def _reference(column: Reference, row: BoardRow) -> list[Any] | None:
    """A published value: as it is printed, as a number, and what stands below it; None where there is none."""
    found = column.of(row)
    return None if found is None else [found.value, found.number, " ".join(column.cell(row).below)]


def _pairs(among: Mapping[int, Standings]) -> Json:
    """What every two rows of each column differ by, and how sure their order is."""
    return {
        str(place): {
            "n": one.n,
            "test": "McNemar's exact test" if one.exact else "paired bootstrap",
            "pairs": [_pair(pair) for pair in one.pairs],
            "rows": [[r.place, r.best, r.worst, *r.drawn, round(r.first, 4), r.group] for r in one.rows],
        }
        for place, one in among.items()
    }


def _pair(pair: Compared) -> list[float | None]:
    numbers = (pair.value, pair.low, pair.high, pair.p, pair.adjusted)
    return [pair.first, pair.second, *(float(f"{one:.4g}") for one in numbers), int(pair.apart), pair.needed]


def _told(section: MeasuredSection, metric: Metric) -> dict[str, str]:
    """What a column is, and how its differences are tested."""
    rows = (row for row in section.rows if row.record is not None)
    tests = (tested_by(row.record, row.edits, task=metric.task, metric=metric.metric) for row in rows if row.record)
    return {
        "definition": card_of(metric.task).definition(metric.metric),
        "test": next((test for test in tests if test), ""),
    }


def _is_ability(metric: Metric, metrics: Sequence[Metric]) -> bool:
    """Whether a column is about what a model could do before: of another task than the edits, and no loss."""
    exams = {m.task for m in metrics if m.metric in EDIT_METRICS}
    return metric.task not in exams and metric.higher_is_better is True


def _locality(metrics: Sequence[Metric]) -> int:
    """The column that says what else an edit changed; the last one where none does."""
    names = [metric.metric for metric in metrics]
    found = (names.index(name) for name in ("neighborhood", "locality_accuracy", "locality_agreement") if name in names)
    return next(found, len(names) - 1)


# --- rows -------------------------------------------------------------------------------------------------------------


def _whose(section: MeasuredSection, members: Mapping[str, Sequence[Record]]) -> list[Whose]:
    """What stands beside the numbers of each row but the unedited one."""
    rows = [row for row in section.rows if row.record is not None]
    names = [str(row.record.editor.get("name", "editor")) for row in rows if row.record]
    said = [_differing(row.record) for row in rows if row.record]
    count = Counter(zip(names, said, strict=True))
    found = []
    for row, name, text in zip(rows, names, said, strict=True):
        assert row.record is not None
        runs = members.get(row.record.id, [row.record])
        ambiguous = count[name, text] > 1
        label = " ".join(part for part in (text, f"({row.record.id[:8]})" if ambiguous else "") if part)
        seeds = tuple(one.seed for one in runs if one.seed is not None)
        found.append(Whose(name, label, seeds, tuple(map(record_name, runs)), standing_of(row.record)))
    return found


def _differing(record: Record) -> str:
    """What of a plan tells runs of one editor apart."""
    settings = [f"{key}={json.dumps(value)}" for key, value in (record.plan.get("settings") or {}).items()]
    named = [f"{key}={record.plan[key]}" for key in ("order", "patch", "fitted") if record.plan.get(key)]
    return ", ".join([*settings, *(text for text in named if text != "order=file")])


def _line(
    slug: str, section: MeasuredSection, row: BoardRow, *, whose: Whose, change: tuple[float, float, float] | None
) -> Json:
    """A row as the pages of editors and tasks show it."""
    assert row.record is not None
    first = row.cells[0].measure if row.cells else None
    difference = (first or {}).get("difference") or {}
    return {
        "section": slug,
        "title": section.title,
        "editor": whose.editor,
        "label": whose.label,
        "badge": whose.badge,
        "seeds": list(whose.seeds),
        "records": list(whose.records),
        "metric": section.labels[0] if section.labels else "",
        "value": number((first or {}).get("value")),
        "gain": signed(difference["value"]) if difference.get("value") is not None else "",
        "cost": "" if change is None else signed(change[0]),
        "seconds": "" if row.seconds is None else f"{row.seconds:.1f}",
        "mib": "" if row.memory is None else f"{row.memory:.0f}",
        "hyperparameters": {
            key: json.dumps(value, ensure_ascii=False)
            for key, value in (row.record.editor.get("hyperparameters") or {}).items()
        },
        "model": str(row.record.model.get("name", "model")),
        "tasks": sorted({metric.task for metric in section.metrics}),
    }
