"""Records as three flat tables that any program reads, and back.

``records``: a row for each record, with all that is no number of a metric as JSON. ``values``: a row for each number.
``documents``: what each document contributed to a metric. What is missing is empty, never zero; what was written is
read again without loss, so that a leaderboard of the tables is that of the records.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from harness.errors import DataError, UsageError
from harness.exam.statistics import Ratio
from harness.io.schema import checked, parsed
from harness.reports.leaderboard import shown_and_headline
from harness.runs.frame import COLUMNS, number_row
from harness.runs.identity import SCHEMA
from harness.runs.record import Record, record_name
from harness.runs.record_schema import RecordFile

__all__ = ["TABLES", "Documents", "TidyColumn", "document_metrics", "records_of", "require_documents", "rows_of_table"]

Json = dict[str, Any]
Row = Mapping[str, Any]

Documents = Literal["shown", "all", "none"]
"""Whose documents are exported: of the metrics that a leaderboard shows, of all, or of none."""


Kind = Literal["text", "number", "count", "truth"]


@dataclass(frozen=True)
class TidyColumn:
    """A column of a table.

    Attributes:
        name: its head.
        kind: of its values, each of which may be missing.
    """

    name: str
    kind: Kind


_TEXTS = ("record", "model", "editor", "edit_set", "mode", "task", "metric", "reason")
_COUNTS = ("seed", "edits", "n")


def _number_column(name: str) -> TidyColumn:
    if name in _TEXTS:
        return TidyColumn(name, "text")
    return TidyColumn(name, "count" if name in _COUNTS else "truth" if name == "higher_is_better" else "number")


TABLES: Mapping[str, tuple[TidyColumn, ...]] = {
    "records": tuple(
        TidyColumn(name, "count" if name == "seed" else "text")
        for name in (
            "record",
            "name",
            "model",
            "editor",
            "edit_set",
            "mode",
            "seed",
            "status",
            "sealed",
            "standing",
            "head",
        )
    ),
    "values": (
        *map(_number_column, COLUMNS),
        TidyColumn("kind", "text"),
        TidyColumn("clusters", "count"),
        TidyColumn("difference_n", "count"),
        TidyColumn("difference_reason", "text"),
    ),
    "documents": (
        *map(_number_column, ("record", "edits", "task", "metric")),
        TidyColumn("document", "text"),
        TidyColumn("num", "number"),
        TidyColumn("den", "number"),
        TidyColumn("cluster", "text"),
        TidyColumn("stratum", "text"),
    ),
}
"""Table -> its columns.

``kind`` of a value: of the ``unedited`` model, of the ``edited`` one, or of the edits that were made ``latest``;
``num`` and ``den`` are what a document adds to the two sums whose ratio a metric is.
"""

_PARTS = ("tasks", "latest")


def require_documents(name: str) -> Documents:
    """The name as a choice of documents.

    Raises:
        UsageError: it is none.
    """
    for known in get_args(Documents):
        if name == known:
            return name  # type: ignore[return-value]
    raise UsageError(f"documents '{name}': choose {', '.join(get_args(Documents))}")


def document_metrics(record: Record, task: str, *, measures: Mapping[str, Json], documents: Documents) -> list[str]:
    """The metrics of a task whose documents are exported; of a score the metrics that it is made of.

    Args:
        record: a record.
        task: one of its tasks.
        measures: metric -> its numbers.
        documents: whose documents are asked for.
    """
    if documents == "none":
        return []
    wanted = list(measures) if documents == "all" else shown_and_headline(record, task, measures)
    derived = record.derived.get(task, {})
    return list(dict.fromkeys(part for metric in wanted for part in derived.get(metric, [metric])))


# --- records to rows --------------------------------------------------------------------------------------------------


def rows_of_table(table: str, records: Iterable[Record], documents: Documents) -> Iterator[Json]:
    """The rows of one of :data:`TABLES`, by the names of its columns.

    Args:
        table: its name.
        records: the records.
        documents: whose documents are asked for.
    """
    for record in records:
        if table == "records":
            yield _head_row(record)
        elif table == "values":
            yield from _value_rows(record)
        else:
            yield from _document_rows(record, documents)


def _head_row(record: Record) -> Json:
    return {
        "record": record.id,
        "name": record_name(record),
        "model": record.model.get("name"),
        "editor": record.editor.get("name"),
        "edit_set": record.edits.get("dataset"),
        "mode": record.plan.get("mode"),
        "seed": record.seed,
        "status": record.status,
        "sealed": record.sealed,
        "standing": record.standing,
        "head": json.dumps(_head(record), ensure_ascii=False, allow_nan=False),
    }


def _head(record: Record) -> Json:
    """All of a record that is no number of a metric; of each point what else is known, and the order of its tasks."""
    whole = record.to_json()
    whole["points"] = [{**point, **_named_metrics(point)} for point in whole["points"]]
    return whole


def _named_metrics(point: Json) -> Json:
    return {part: {task: list(found) for task, found in point[part].items()} for part in _PARTS if part in point}


def _value_rows(record: Record) -> Iterator[Json]:
    for point in record.points:
        edits = int(point["edits"])
        for part in _PARTS:
            kind = "latest" if part == "latest" else "edited" if edits else "unedited"
            for task, measures in point.get(part, {}).items():
                for metric, numbers in measures.items():
                    change = numbers.get("difference") or {}
                    yield {
                        **number_row(record, edits, task=task, metric=metric, numbers=numbers),
                        "kind": kind,
                        "clusters": numbers.get("clusters"),
                        "difference_n": change.get("n"),
                        "difference_reason": change.get("reason"),
                    }


def _document_rows(record: Record, documents: Documents) -> Iterator[Json]:
    for edits, tasks in (record.values or {}).items():
        for task, table in tasks.items():
            measures = record.tasks(edits).get(task, {})
            for metric in document_metrics(record, task, measures=measures, documents=documents):
                where = {"record": record.id, "edits": edits, "task": task, "metric": metric}
                for document, (num, den, cluster, stratum) in table.get(metric, {}).items():
                    yield {
                        **where,
                        "document": document,
                        "num": _finite(num),
                        "den": _finite(den),
                        "cluster": cluster,
                        "stratum": stratum,
                    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


# --- and back ---------------------------------------------------------------------------------------------------------


def records_of(read: Callable[[str], Iterable[Row]], where: str) -> list[Record]:
    """The records of three tables.

    Args:
        read: gives the rows of a table; none where it is not there.
        where: what the tables are called in an error.

    Raises:
        DataError: what is read is not what an export wrote.
    """
    found: dict[str, Record] = {}
    for row in read("records"):
        record = _record(row, where)
        if found.setdefault(record.id, record) is not record:
            raise DataError(f"{where}: record {record.id} stands in it twice; export its records again")
    for row in read("values"):
        _put_value(_owner(found, row, where), row, where)
    _require_whole(found.values(), where)
    for row in read("documents"):
        _put_document(_owner(found, row, where), row)
    return list(found.values())


def _record(row: Row, where: str) -> Record:
    """The record of a row, with its metrics named but without their numbers."""
    try:
        head = parsed(str(row["head"]))
        named = {**head, "points": [{**point, "tasks": {}, "latest": {}} for point in head["points"]]}
        checked(RecordFile, named)
        if head["schema"] != SCHEMA or head["id"] != row["record"]:
            raise ValueError(f"expected record {row['record']} of schema {SCHEMA}")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: a record is not what an export writes ({error}); export it again") from error
    record = Record.from_json(head)
    record.sealed, record.standing = row["sealed"], row["standing"]
    return record


def _owner(found: Mapping[str, Record], row: Row, where: str) -> Record:
    record = found.get(str(row["record"]))
    if record is None:
        raise DataError(f"{where}: a row is of record '{row['record']}', which is not in its records; export it again")
    return record


def _put_value(record: Record, row: Row, where: str) -> None:
    """Puts the numbers of a row in the place that its record's head has for them."""
    measures = record.point(row["edits"]).get("latest" if row["kind"] == "latest" else "tasks", {}).get(row["task"])
    if measures is None or row["metric"] not in measures:
        raise DataError(f"{where}: record {record.id} has no {row['task']} {row['metric']} after {row['edits']} edits")
    if isinstance(measures, list):
        measures = dict.fromkeys(measures)
        record.point(row["edits"])["latest" if row["kind"] == "latest" else "tasks"][row["task"]] = measures
    measures[row["metric"]] = _measure(row)


def _measure(row: Row) -> Json:
    measure = {
        "value": row["value"],
        "n": row["n"],
        "interval": _pair(row["low"], row["high"]),
        "reason": row["reason"],
        "higher_is_better": row["higher_is_better"],
        "difference": _change(row),
    }
    return measure if row["clusters"] is None else {**measure, "clusters": row["clusters"]}


def _change(row: Row) -> Json | None:
    if row["difference_n"] is None:
        return None
    return {
        "value": row["difference"],
        "interval": _pair(row["difference_low"], row["difference_high"]),
        "p": row["p"],
        "n": row["difference_n"],
        "detectable": row["detectable"],
        "reason": row["difference_reason"],
    }


def _pair(low: float | None, high: float | None) -> list[float] | None:
    return None if low is None or high is None else [low, high]


def _require_whole(records: Iterable[Record], where: str) -> None:
    """Each metric that a head names has its numbers: a table that was cut or filtered gives no leaderboard."""
    for record in records:
        for point in record.points:
            for part in _PARTS:
                for task, measures in point.get(part, {}).items():
                    absent = [m for m in measures if isinstance(measures, list) or measures[m] is None]
                    if absent:
                        raise DataError(
                            f"{where}: the values of record {record.id} lack {task} {absent[0]} after "
                            f"{point['edits']} edits; export it again"
                        )


def _put_document(record: Record, row: Row) -> None:
    record.values = record.values if record.values is not None else {}
    table: Any = record.values.setdefault(row["edits"], {}).setdefault(row["task"], {})
    num, den = (math.nan if row[side] is None else float(row[side]) for side in ("num", "den"))
    table.setdefault(row["metric"], {})[row["document"]] = Ratio(num, den, row["cluster"], row["stratum"])
