"""What our own checks say of runs that others made: a finding is one line, with the name of its check.

Looked at are result files of any format that can be imported, records, and tables of published values. A check finds
something that a reader of the numbers must know, not something that is wrong for certain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from harness.errors import DataError
from harness.exam.statistics import Difference, agreeing, holm
from harness.reports.cells import BoardRow, MeasuredSection, number, signed, significant_change
from harness.reports.comparison import pair_difference
from harness.reports.importing import Told, find_reader, read_published, reader_names
from harness.reports.leaderboard import measured_sections
from harness.reports.published_values import UNEDITED, PublishedValue, alike, is_table, read_published_values
from harness.runs.record import Record, record_name
from harness.runs.record_file import read_records, record_paths

__all__ = ["CHECKS", "Finding", "audit_path", "audit_records", "audit_values"]

TELLING = 0.05
"""A difference that a table should be able to tell: five points."""
FEW = 0.5
"""Of the cases of the largest run of a set; a run of fewer is another exam."""
LEAST = 6
"""Cases: fewer cannot differ significantly, whatever they give (McNemar's exact test)."""
ORDERED_BY = ("score", "efficacy", "generalization", "paraphrase", "neighborhood", "locality_agreement")
"""The metrics whose order of editors is looked at."""


@dataclass(frozen=True)
class Finding:
    """Something that a reader of numbers must know.

    Attributes:
        check: the name of the check.
        where: the run, the table or the file.
        text: what was found, in one line.
    """

    check: str
    where: str
    text: str

    def __str__(self) -> str:
        """The finding as a line."""
        return f"{self.where}: {self.check}: {self.text}"


Check: TypeAlias = Callable[[Sequence[Record], Sequence[MeasuredSection]], Iterable[Finding]]


def audit_path(path: Path, told: Told | None = None, form: str | None = None) -> list[Finding]:
    """What is to be said of a file or a folder: records, result files that can be imported, or a table of values.

    Args:
        path: the file or the folder.
        told: what result files do not say themselves.
        form: the format of result files; None where it is to be seen from their names.

    Raises:
        DataError: there is nothing there that can be looked at.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give result files, records, or a table of published values")
    if is_table(path):
        return audit_values(read_published_values(path))
    if form is None and path.is_dir() and record_paths(path):
        return audit_records(read_records(path, values=True))
    found = [form] if form else [name for name in reader_names() if find_reader(name).reads(path)]
    if not found:
        raise DataError(
            f"{path}: neither records nor results of {', '.join(reader_names())}; name the program with --format"
        )
    return [finding for name in found for finding in _audit_files(name, path, told)]


def _audit_files(form: str, path: Path, told: Told | None) -> list[Finding]:
    """What is to be said of result files; what cannot be read as it stands is what an audit is for."""
    try:
        return audit_records(read_published(form, path, told))
    except DataError as error:
        return [Finding("unreadable", form, str(error))]


def audit_records(records: Sequence[Record]) -> list[Finding]:
    """What every check says of records.

    Args:
        records: with the values of their documents; without them nothing is paired.
    """
    whole = [record for record in records if record.status == "complete"]
    sections = measured_sections(whole)
    return [finding for check in CHECKS.values() for finding in check(whole, sections)]


# --- the checks of records --------------------------------------------------------------------------------------------


def _protocols(records: Sequence[Record], sections: Sequence[MeasuredSection]) -> Iterator[Finding]:
    """Rows of one table that were measured, or edited, in two ways."""
    for section in sections:
        rows = _rows(section)
        said: dict[str, list[str]] = {}
        for row, record in rows:
            said.setdefault(str(record.published.get("protocol", "")), []).append(row.label)
        usual = max(said, key=lambda text: len(said[text]), default="")
        for protocol, editors in said.items():
            if protocol != usual:
                others = f"{len(rows) - len(editors)} other rows"
                yield Finding("protocols", _title(section), f"{_names(editors)}, but not {others}: {protocol}")
    yield from _ways(records)


def _ways(records: Sequence[Record]) -> Iterator[Finding]:
    """Runs on one set that were edited in different ways: isolated, piled up, or so many at a time."""
    ways: dict[tuple[str, str], dict[str, list[str]]] = {}
    for record in records:
        mode = record.edits.get("mode") or "no edits"
        size = record.plan.get("edit_batch_size")
        batch = f" ({size} at a time)" if size else ""
        each = ways.setdefault((_model(record), str(record.edits.get("dataset"))), {})
        each.setdefault(f"{mode}{batch}", []).append(str(record.editor.get("name")))
    for (model, edit_set), found in ways.items():
        if len(found) > 1:
            text = "; ".join(f"{way}: {_names(list(dict.fromkeys(editors)))}" for way, editors in found.items())
            yield Finding(
                "protocols", f"{model}, {edit_set}", f"edited in {len(found)} ways that do not compare: {text}"
            )


def _covariance(records: Sequence[Record], sections: Sequence[MeasuredSection]) -> Iterator[Finding]:  # noqa: ARG001
    """ROME without the second moments of its keys, which is another method than the paper's."""
    for record in records:
        settings = record.editor.get("hyperparameters") or {}
        if str(record.editor.get("name", "")).upper() not in ("ROME", "R-ROME") or not record.published:
            continue
        if settings.get("mom2_adjustment") is False:
            text = "edited without the covariance of keys (mom2_adjustment: false): not the update of the paper"
            yield Finding("covariance", record_name(record), text)
        elif "mom2_adjustment" not in settings:
            hint = "; EasyEdit's own settings do not use it" if record.published.get("format") == "easyedit" else ""
            yield Finding("covariance", record_name(record), f"not told whether the covariance of keys was used{hint}")


def _unedited(records: Sequence[Record], sections: Sequence[MeasuredSection]) -> Iterator[Finding]:  # noqa: ARG001
    """Rows of one table whose unedited model answers otherwise."""
    for section in sections:
        rows = _rows(section)
        for (row, record), others in ((rows[i], rows[:i] + rows[i + 1 :]) for i in range(len(rows))):
            cases = _answered_otherwise(record, [other for _, other in others])
            if cases and len(others) > 1:
                text = f"under {row.label} the unedited model answers otherwise than under all others in {cases} cases"
                yield Finding(
                    "unedited", _title(section), f"{text}: it is another run, or the answers are not repeatable"
                )


def _answered_otherwise(record: Record, others: Sequence[Record]) -> int:
    """The cases in which a record's unedited model differs from that of all other records, which agree."""
    mine, theirs = (record.values or {}).get(0, {}), [(other.values or {}).get(0, {}) for other in others]
    found: set[str] = set()
    for task, metrics in mine.items():
        for metric, values in metrics.items():
            columns = [one.get(task, {}).get(metric, {}) for one in theirs]
            found |= {case for case, ratio in values.items() if _alone(ratio, [one.get(case) for one in columns])}
    return len(found)


def _alone(ratio: object, others: Sequence[object]) -> bool:
    return bool(others) and None not in others and len(set(others)) == 1 and others[0] != ratio


def _few(records: Sequence[Record], sections: Sequence[MeasuredSection]) -> Iterator[Finding]:  # noqa: ARG001
    """A mean over a few of the cases that others are the mean of, such as over two rows."""
    sets: dict[tuple[str, str], list[tuple[Record, int]]] = {}
    for record in records:
        if n := _cases(record):
            sets.setdefault((_model(record), str(record.edits.get("dataset"))), []).append((record, n))
    for (_, edit_set), each in sets.items():
        most = max(n for _, n in each)
        for record, n in each:
            if n < FEW * most:
                text = f"a mean over {n} case{'s' if n != 1 else ''} of {edit_set}, where others have {most}"
                yield Finding("few", record_name(record), text)


def _power(records: Sequence[Record], sections: Sequence[MeasuredSection]) -> Iterator[Finding]:  # noqa: ARG001
    """Too few cases to tell a difference of five points."""
    for record in records:
        task, metric, measure = _headline(record)
        change = measure.get("difference") or {}
        detectable = change.get("detectable")
        if detectable is None and 0 < _cases(record) < LEAST:
            yield Finding(
                "power", record_name(record), f"{task} {metric}: {_cases(record)} cases can show no difference"
            )
        if detectable is not None and detectable > TELLING and not significant_change(change):
            text = (
                f"{task} {metric}: {change['n']} cases would show {number(100 * detectable)} points or more, not less"
            )
            yield Finding("power", record_name(record), text)


def _none(records: Sequence[Record], sections: Sequence[MeasuredSection]) -> Iterator[Finding]:  # noqa: ARG001
    """Rows whose order says nothing: the paired difference of one and the next holds zero."""
    for section in sections:
        for place, metric in enumerate(section.metrics):
            if metric.metric in ORDERED_BY and metric.higher_is_better is not None:
                yield from _ties(section, place)


def _ties(section: MeasuredSection, place: int) -> Iterator[Finding]:
    """The neighbours in the order of one metric that no test tells apart; p values are adjusted (Holm)."""
    metric = section.metrics[place]
    rows = [(row, record) for row, record in _rows(section) if row.cells[place].value is not None]
    sign = -1 if metric.higher_is_better else 1
    rows.sort(key=lambda pair: sign * float(pair[0].cells[place].value or 0.0))
    found = [(ahead, behind, _paired(behind, ahead, metric.task, metric.metric)) for ahead, behind in pairwise(rows)]
    tested = [(a, b, change) for a, b, change in found if change is not None and change.value is not None]
    adjusted = holm([1.0 if change.p is None else change.p for *_, change in tested])
    for ((first, _), (second, _), change), p in zip(tested, adjusted, strict=True):
        said = {"value": 100 * (change.value or 0.0), "interval": _points(change), "p": change.p}
        if change.low is not None and not significant_change(said, p):
            low, high = (signed(100 * end) for end in agreeing(change.p, change.low, change.high or 0.0))
            points = signed(100 * (change.value or 0.0))
            text = f"{first.label} before {second.label} by {metric.metric}: {points} points [{low}, {high}], p {p:.2g}"
            missed = f"; less than {number(100 * change.detectable)} are likely missed" if change.detectable else ""
            yield Finding("no difference", _title(section), f"{text}: no test tells them apart{missed}")


def _paired(
    first: tuple[BoardRow, Record], second: tuple[BoardRow, Record], task: str, metric: str
) -> Difference | None:
    (one, record), (other, edited) = first, second
    return pair_difference((record, one.edits), (edited, other.edits), task=task, metric=metric)


def _points(change: Difference) -> list[float] | None:
    """The interval of a difference in points."""
    return None if change.low is None or change.high is None else [100 * change.low, 100 * change.high]


def _seeds(records: Sequence[Record], sections: Sequence[MeasuredSection]) -> Iterator[Finding]:  # noqa: ARG001
    """Published runs whose seed is not told."""
    where: dict[str, list[Record]] = {}
    for record in records:
        if record.published and record.seed is None:
            where.setdefault(str(record.published.get("repository") or record.published.get("format")), []).append(
                record
            )
    for source, each in where.items():
        text = f"of {len(each)} runs no seed is told, and each was made once: how far seeds lie apart is not known"
        yield Finding("seeds", source, text)


CHECKS: Mapping[str, Check] = {
    "protocols": _protocols,
    "covariance": _covariance,
    "unedited": _unedited,
    "few": _few,
    "power": _power,
    "no difference": _none,
    "seeds": _seeds,
}
"""Name -> what looks at records."""


def _rows(section: MeasuredSection) -> list[tuple[BoardRow, Record]]:
    return [(row, row.record) for row in section.rows if row.record is not None]


def _title(section: MeasuredSection) -> str:
    protocol = section.protocol
    return f"{protocol['model']}, {protocol['edits']} edits of {protocol['edit_set']}"


def _names(editors: Sequence[str]) -> str:
    return ", ".join(editors)


def _model(record: Record) -> str:
    return str(record.model.get("name", "model"))


def _headline(record: Record) -> tuple[str, str, Mapping[str, Any]]:
    """The task, the metric and the numbers that stand for a record."""
    last = max((int(point["edits"]) for point in record.points), default=0)
    for task, measures in record.tasks(last).items():
        metric = record.headlines.get(task, "")
        if metric in measures:
            return task, metric, measures[metric]
    return "", "", {}


def _cases(record: Record) -> int:
    """How many cases the headline of a record is the mean of; 0 where that is not told."""
    return int(_headline(record)[2].get("n") or 0)


# --- tables of published values ---------------------------------------------------------------------------------------


def audit_values(values: Sequence[PublishedValue]) -> list[Finding]:
    """What is to be said of a table of published values.

    Args:
        values: of any papers.
    """
    tables: dict[str, list[PublishedValue]] = {}
    for one in values:
        tables.setdefault(", ".join(part for part in (one.paper, one.table) if part), []).append(one)
    return [finding for where, each in tables.items() for finding in _of_a_table(where, each)]


def _of_a_table(where: str, values: Sequence[PublishedValue]) -> Iterator[Finding]:
    yield from _mixed(where, values)
    counts = [one.n_edits for one in values]
    unsaid = sum(not count or not count[0].isdigit() for count in counts)
    if unsaid:
        yield Finding("n", where, f"the number of edits of {unsaid} of {len(values)} values is not told, or only about")
    if not any(one.sd for one in values):
        yield Finding(
            "seeds", where, f"none of {len(values)} values has a deviation: made once, or over seeds not told"
        )
    if quoted := sum(one.quoted for one in values):
        yield Finding("quoted", where, f"{quoted} of {len(values)} values were only quoted; read them in the paper")


def _mixed(where: str, values: Sequence[PublishedValue]) -> Iterator[Finding]:
    """Columns of one table under several protocols, and cells with two values."""
    ways: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    cells: dict[tuple[str, ...], dict[str, tuple[str, ...]]] = {}  # as all spell it -> value -> as it is spelled
    for one in values:
        way = ", ".join(part for part in (one.protocol, f"{one.n_edits} edits" if one.n_edits else "") if part)
        if alike(one.method) not in UNEDITED:
            ways.setdefault((one.model, one.data, one.metric), {}).setdefault(way, []).append(one.method)
        cell = (one.model, one.data, one.method, one.metric, way, one.batch)
        cells.setdefault((*cell[:2], alike(one.method), *cell[3:]), {}).setdefault(one.value, cell)
    for (model, data, metric), found in ways.items():
        shared = [set(methods) for methods in found.values()]
        if len(found) > 1 and not set.intersection(*shared):  # a method under each of them is a curve, not a mixture
            text = "; ".join(f"{way or 'not told'}: {_names(list(dict.fromkeys(m)))}" for way, m in found.items())
            yield Finding("protocols", where, f"{model}, {data}, {metric}: {text}")
    for spelled in (cell for cell in cells.values() if len(cell) > 1):
        named = next(iter(spelled.values()))
        yield Finding("double", where, f"{', '.join(part for part in named if part)}: {' and '.join(sorted(spelled))}")
