"""Records on disk: one small JSON, and beside it the values of every document.

``<name>.json`` holds the plan, the numbers, hashes, versions and cost.  ``<name>.values.json.xz`` holds what every
document contributed, so that any two records can be compared document by document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError
from harness.exam.numbers import Json
from harness.exam.ratios import Columns, Values, layout_of
from harness.io.collector import without_collector
from harness.io.files import (
    compact_json,
    json_text,
    pack_json,
    pack_text,
    rounded,
    unpack_json,
    values_path,
    write_whole,
)
from harness.io.schema import checked, parsed
from harness.runs.identity import SCHEMA
from harness.runs.judged_file import read_judged
from harness.runs.record import PointValues, Record
from harness.runs.record_schema import RecordFile, ValuesColumn, ValuesFile

__all__ = ["PackedTables", "read_record", "read_records", "record_paths", "write_record"]


def read_record(path: str | Path, values: bool = False) -> Record:
    """The record in a file, with the values of its documents if they are wanted and there.

    Raises:
        DataError: there is no such file, it is truncated, it is no record, or it is of another schema version.
    """
    path = Path(path)
    data = _json(path, _bytes(path))
    if not isinstance(data, dict) or not {"schema", "id", "plan", "points"} <= data.keys():
        raise DataError(
            f"{path}: not a record (expected an object with schema, id, plan, points); give the JSON of a run"
        )
    if data["schema"] != SCHEMA:
        old = isinstance(data["schema"], int) and data["schema"] < SCHEMA
        cure = "repeat the run" if old else "install a newer version, or repeat the run"
        raise DataError(f"{path}: record schema {data['schema']}, this version reads {SCHEMA}; {cure}")
    try:
        checked(RecordFile, data)
    except ValueError as error:
        raise DataError(f"{path}: not what a run writes ({error}); repeat the run") from error
    record = Record.from_json(data)
    beside = values_path(path)
    if values and beside.exists():
        record.values, record.sealed = _read_values(beside, record.id)
        record.judged = read_judged(path, record.id) or None
    return record


def read_records(folder: str | Path, values: bool = False) -> list[Record]:
    """The records in a folder and its ``records`` folder, in the order of their names; other files are passed over.

    Raises:
        DataError: there is no such folder, it holds no record, or one of its records cannot be read.
    """
    folder = Path(folder)
    if folder.is_file():
        return [read_record(folder, values)]
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that --output named")
    with without_collector():
        found = [read_record(path, values) for path in record_paths(folder)]
    if not found:
        raise DataError(f"{folder}: holds no record (*.json); make one with: harness run --output {folder}")
    return found


def record_paths(folder: str | Path) -> list[Path]:
    """The records in a folder and its ``records`` folder, in the order of their names; only files are looked at.

    Raises:
        DataError: a file cannot be read.
    """
    found = sorted([*Path(folder).glob("*.json"), *Path(folder).glob("records/*.json")])
    return [path for path in found if path.is_file() and _looks_like_record(path)]


def _looks_like_record(path: Path) -> bool:
    """Whether the file starts as a record does: a truncated one is an error, a file of another kind is not."""
    try:
        with path.open("rb") as file:
            return re.match(rb'\s*\{\s*"schema"', file.read(64)) is not None
    except OSError as error:
        raise _unreadable(path, error) from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror}); give the JSON of a run")


def _json(path: Path, content: bytes) -> Any:
    try:
        return parsed(content)
    except ValueError as error:
        raise DataError(f"{path}: not whole JSON ({error}); repeat the run") from error


def _read_values(path: Path, owner: str) -> tuple[PointValues, str | None]:
    """The values, and the seal of the record that they were written with; files of earlier versions have none."""
    try:
        data = unpack_json(_bytes(path))
    except ValueError as error:
        raise DataError(f"{path}: not whole; repeat the run, or delete it to do without paired statistics") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or data.get("id") != owner:
        raise DataError(f"{path}: not the values of record {owner}; delete the file, or repeat the run")
    try:
        checked(ValuesFile, data)
        values: PointValues = {
            int(edits): {task: _Unpacked(table, path) for task, table in tasks.items()}
            for edits, tasks in data["points"].items()
        }
        return values, data.get("record")
    except ValueError as error:
        raise DataError(f"{path}: not what a run writes ({error}); repeat the run") from error


# --- writing ----------------------------------------------------------------------------------------------------------


PackedTables: TypeAlias = dict[tuple[int, str], bytes]
"""The values of each stop and task that were packed before."""


def write_record(path: Path, record: Record, small: bool, *, packed: PackedTables | None = None) -> None:
    """Write a record and the values of its documents, each whole or not at all.

    Args:
        path: the JSON; the values lie beside it.
        record: what is written.
        small: whether the values are packed as small as they can be, which takes longer.
        packed: what was packed before of a record that is not complete, so that only what is new takes time; None packs
            everything.

    Raises:
        UsageError: a file cannot be written.
    """
    # The values first: a record whose values are missing is worse than values whose record is missing.
    if record.values is not None:
        content = _packed_values(record, small) if small or packed is None else _appended_values(record, packed)
        write_whole(values_path(path), content)
    write_whole(path, (json_text(record.to_json()) + "\n").encode())


def _packed_values(record: Record, small: bool) -> bytes:
    points = {
        str(edits): {task: _pack(metrics) for task, metrics in measured.items()}
        for edits, measured in (record.values or {}).items()
    }
    return pack_json({"schema": SCHEMA, "id": record.id, "record": record.seal(), "points": points}, small)


def _appended_values(record: Record, packed: PackedTables) -> bytes:
    """As :func:`_packed_values`, in a stream for each stop and task, of which the known ones are taken as they are."""
    head = compact_json({"schema": SCHEMA, "id": record.id, "record": record.seal()})
    parts, between = [pack_text(f'{head[:-1]},"points":{{')], ""
    for edits, measured in (record.values or {}).items():
        parts.append(_glue(f'{between}"{edits}":{{'))
        for number, (task, metrics) in enumerate(measured.items()):
            if (edits, task) not in packed:
                packed[edits, task] = pack_text(f"{compact_json(task)}:{compact_json(_pack(metrics))}")
            parts += [*([_glue(",")] if number else []), packed[edits, task]]
        parts.append(_glue("}"))
        between = ","
    return b"".join([*parts, _glue("}}")])


@lru_cache(maxsize=4096)
def _glue(text: str) -> bytes:
    """What stands between tables: a stream of its own, which takes as long to pack as a small table."""
    return pack_text(text)


# --- values, by column ------------------------------------------------------------------------------------------------


def _pack(metrics: Mapping[str, Values]) -> Json:
    """The values of one task by column: the ids once, and only what differs from the default."""
    ids = list(dict.fromkeys(doc for values in metrics.values() for doc in values))
    place = {doc: i for i, doc in enumerate(ids)}
    return {"ids": ids, "metrics": {metric: _columns(values, place) for metric, values in metrics.items()}}


def _columns(values: Values, place: Mapping[str, int]) -> Json:
    at, rows = [place[doc] for doc in values], list(values.values())
    column: Json = {"num": [_short(row.num) for row in rows]}
    if at != list(range(len(place))):
        column["at"] = at
    if any(row.den != 1 for row in rows):
        column["den"] = [_short(row.den) for row in rows]
    for key in ("cluster", "stratum"):
        labels = [getattr(row, key) for row in rows]
        if any(label is not None for label in labels):
            column[key] = labels
    return column


def _short(number: float) -> float | None:
    """A number as it is written: the same bytes whether it was counted or was read from a file."""
    found = rounded(float(number))
    return int(found) if isinstance(found, float) and found.is_integer() and abs(found) < 2**53 else found


class _Unpacked(Mapping[str, Values]):
    """The values of one task: metric -> document -> contribution.

    A leaderboard needs a few metrics of hundreds of records, so that a metric is unpacked when it is asked for.
    """

    def __init__(self, table: Json, path: Path) -> None:
        self._path = path
        self._columns: Json = table["metrics"]
        self._ids: tuple[str, ...] = tuple(table["ids"])
        self._known: dict[str, Values] = {}

    def __getitem__(self, metric: str) -> Values:
        if metric not in self._known:
            try:
                checked(ValuesColumn, self._columns[metric])
                self._known[metric] = _rows(self._columns[metric], self._ids)
            except (ValueError, IndexError) as error:
                raise DataError(f"{self._path}: {metric} is not what a run writes ({error}); repeat the run") from error
        return self._known[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __contains__(self, metric: object) -> bool:
        return metric in self._columns  # without unpacking it

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Unpacked):
            return super().__eq__(other)
        return self._ids == other._ids and self._columns == other._columns

    __hash__ = None  # type: ignore[assignment]  # as of a dict


def _rows(column: Json, ids: tuple[str, ...]) -> Columns:
    num: list[float | None] = column["num"]
    docs = tuple(ids[i] for i in column["at"]) if "at" in column else ids
    cluster, stratum = (_labels(column.get(key)) for key in ("cluster", "stratum"))
    den = np.array(column["den"], np.float64) if column.get("den") else _ones(len(num))
    if {len(docs), len(den), *(len(label) for label in (cluster, stratum) if label)} != {len(num)}:
        raise ValueError("columns of several lengths")
    return Columns(layout_of(docs, cluster, stratum), np.array(num, np.float64), den)


@lru_cache(maxsize=256)
def _ones(count: int) -> NDArray[np.float64]:
    """The same for all metrics of so many documents, which nobody can change: a board holds thousands of them."""
    found = np.ones(count)
    found.flags.writeable = False
    return found


def _labels(column: Sequence[str | None] | None) -> tuple[str | None, ...] | None:
    """None where no document has one."""
    return tuple(column) if column and any(label is not None for label in column) else None
