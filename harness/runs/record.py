"""The record of a run: one small JSON, and beside it the values of every document.

``<name>.json`` holds the plan, the numbers, hashes, versions and cost.  ``<name>.values.json.xz`` holds what every
document contributed, so that any two records can be compared document by document.

While a run is under way it writes ``<name>.partial.json`` after every measured task, so that an interruption loses
nothing and an earlier complete record of the same plan stays until the new one is complete.  Files appear whole or not
at all.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from filelock import FileLock, Timeout

from harness import __version__
from harness.errors import DataError, UsageError
from harness.exam.numbers import Json, TaskValues
from harness.exam.statistics import (
    Ratio,
    Values,
    as_ratio,
)
from harness.io.files import packed, require_writable, rounded, text, unpacked, values_path, write_whole

__all__ = ["Record", "RecordWriter", "identity", "name", "paths", "read", "read_all", "versions"]

SCHEMA = 1
PARTIAL = ".partial"
LIBRARIES = ("torch", "transformers", "lm_eval", "numpy", "scikit-learn")

PointValues: TypeAlias = dict[int, dict[str, dict[str, dict[str, Ratio]]]]
"""Number of edits -> task -> metric -> document id -> contribution."""


@dataclass
class Record:
    """What a run was, and what came out.  The fields are those of the JSON, in its order.

    ``status``: ``complete``, ``interrupted`` (also while the run is under way) or ``failed``, with the ``reason``.
    ``headlines``: the metric that stands for a task.  ``points``: what was measured, by number of edits; 0 is unedited;
    ``collapse``: tripwire -> the number of edits at which it was first set off.
    ``values``: per-document contributions, kept in the file beside the record; ``None`` where they were not read.
    """

    id: str
    plan: Json
    schema: int = SCHEMA
    status: str = "interrupted"
    reason: str | None = None
    model: Json = field(default_factory=dict)
    editor: Json = field(default_factory=dict)
    edits: Json = field(default_factory=dict)
    headlines: dict[str, str] = field(default_factory=dict)
    derived: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Task -> score -> the metrics whose harmonic mean it is."""
    points: list[Json] = field(default_factory=list)
    collapse: dict[str, int] = field(default_factory=dict)
    weights: Json = field(default_factory=dict)
    delta: Json = field(default_factory=dict)
    data: Json = field(default_factory=dict)
    templates: Json = field(default_factory=dict)
    cost: list[Json] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    values: PointValues | None = field(default=None, compare=False)

    def point(self, edits: int) -> Json:
        """All that is known after so many edits; empty where nothing is."""
        return next((point for point in self.points if point["edits"] == edits), {})

    def tasks(self, edits: int) -> dict[str, dict[str, Json]]:
        """What was measured after so many edits: task -> metric -> numbers; empty where nothing was."""
        return dict(self.point(edits).get("tasks", {}))

    def to_json(self) -> Json:
        """The JSON of the record, without the values of its documents.  Numbers that are not finite become null."""
        shown = {key: getattr(self, key) for key in _FIELDS}
        return {key: _plain(shown[key]) for key in _ORDER}

    @classmethod
    def from_json(cls, data: Json) -> Record:
        """The record that :meth:`to_json` wrote."""
        return cls(**{key: data[key] for key in _FIELDS if key in data})


_FIELDS = [f.name for f in fields(Record) if f.name != "values"]
_ORDER = ["schema", *(key for key in _FIELDS if key != "schema")]


def identity(plan: Mapping[str, Any]) -> str:
    """The id of the record of a plan: the first 16 hex digits of the sha256 of its canonical JSON.

    Raises:
        UsageError: a number in it is not finite.
    """
    try:
        text = json.dumps(plan, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise UsageError("a plan holds a NaN or an infinity, which no record can keep; give finite numbers") from error
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def name(record: Record) -> str:
    """The file name of a record without its ending, such as ``mini--memit--counterfact-50--batch--1a2b3c4d``."""
    edits = f"{record.edits.get('dataset') or 'no-edits'}-{record.edits.get('count', 0)}"
    parts = [record.model.get("name", "model"), record.editor.get("name", "editor"), edits, record.plan.get("mode", "")]
    return "--".join([*(_slug(str(part)) for part in parts if part), record.id[:8]])


def _slug(text: str) -> str:
    """The last part of a path or Hub name, in characters that every file system takes."""
    return re.sub(r"[^A-Za-z0-9+._]+", "-", text.rstrip("/").rsplit("/", 1)[-1]).strip("-.") or "unnamed"


def versions() -> dict[str, str]:
    """The versions of what computed the numbers; nothing is imported for it."""
    found = {"python": platform.python_version(), "harness": __version__}
    return found | {library: _version(library) for library in LIBRARIES}


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


# --- numbers ----------------------------------------------------------------------------------------------------------


# --- reading ----------------------------------------------------------------------------------------------------------


def read(path: str | Path, values: bool = False) -> Record:
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
        raise DataError(f"{path}: record schema {data['schema']}, this version reads {SCHEMA}; repeat the run")
    if not (isinstance(data["plan"], dict) and isinstance(data["points"], list) and all(map(_whole, data["points"]))):
        raise DataError(f"{path}: its plan or its points are not what a run writes; repeat the run")
    record = Record.from_json(data)
    beside = values_path(path)
    if values and beside.exists():
        record.values = _read_values(beside, record.id)
    return record


def _whole(point: object) -> bool:
    """Whether what was measured at a stop has the layout of a record."""
    if (
        not isinstance(point, dict)
        or not isinstance(point.get("edits"), int)
        or not isinstance(point.get("tasks"), dict)
    ):
        return False
    return all(
        isinstance(task, dict) and all(isinstance(n, dict) for n in task.values()) for task in point["tasks"].values()
    )


def read_all(folder: str | Path, values: bool = False) -> list[Record]:
    """The records in a folder and its ``records`` folder, in the order of their names; other files are passed over.

    Raises:
        DataError: there is no such folder, it holds no record, or one of its records cannot be read.
    """
    folder = Path(folder)
    if folder.is_file():
        return [read(folder, values)]
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that --output named")
    found = [read(path, values) for path in paths(folder)]
    if not found:
        raise DataError(f"{folder}: holds no record (*.json); make one with: harness run --output {folder}")
    return found


def paths(folder: str | Path) -> list[Path]:
    """The records in a folder and its ``records`` folder, in the order of their names."""
    found = sorted([*Path(folder).glob("*.json"), *Path(folder).glob("records/*.json")])
    return [path for path in found if _looks_like_record(path)]


def _looks_like_record(path: Path) -> bool:
    """Whether the file starts as a record does: a truncated one is an error, a file of another kind is not."""
    with path.open("rb") as file:
        return re.match(rb'\s*\{\s*"schema"', file.read(64)) is not None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the JSON of a run") from error


def _json(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        line = content.count(b"\n") + 1
        raise DataError(
            f"{path}: not whole JSON, it breaks off or is damaged by line {line}; repeat the run"
        ) from error


def _read_values(path: Path, owner: str) -> PointValues:
    try:
        data = unpacked(_bytes(path))
    except ValueError as error:
        raise DataError(f"{path}: not whole; repeat the run, or delete it to do without paired statistics") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or data.get("id") != owner:
        raise DataError(f"{path}: not the values of record {owner}; delete the file, or repeat the run")
    return {
        int(edits): {task: _unpack(table) for task, table in tasks.items()} for edits, tasks in data["points"].items()
    }


# --- values, by column ------------------------------------------------------------------------------------------------


def _pack(metrics: Mapping[str, Values]) -> Json:
    """The values of one task by column: the ids once, and only what differs from the default."""
    ids = list(dict.fromkeys(doc for values in metrics.values() for doc in values))
    place = {doc: i for i, doc in enumerate(ids)}
    return {"ids": ids, "metrics": {metric: _columns(values, place) for metric, values in metrics.items()}}


def _columns(values: Values, place: Mapping[str, int]) -> Json:
    at, rows = [place[doc] for doc in values], list(values.values())
    column: Json = {"num": [rounded(row.num) for row in rows]}
    if at != list(range(len(place))):
        column["at"] = at
    if any(row.den != 1 for row in rows):
        column["den"] = [rounded(row.den) for row in rows]
    for key in ("cluster", "stratum"):
        labels = [getattr(row, key) for row in rows]
        if any(label is not None for label in labels):
            column[key] = labels
    return column


def _unpack(table: Json) -> dict[str, dict[str, Ratio]]:
    return {metric: _rows(column, table["ids"]) for metric, column in table["metrics"].items()}


def _rows(column: Json, ids: Sequence[str]) -> dict[str, Ratio]:
    num: list[float | None] = column["num"]
    default: dict[str, list[Any]] = {
        "den": [1.0] * len(num),
        "cluster": [None] * len(num),
        "stratum": [None] * len(num),
    }
    den, cluster, stratum = (column.get(key, default[key]) for key in ("den", "cluster", "stratum"))
    docs = [ids[i] for i in column.get("at", range(len(num)))]
    return {doc: as_ratio(row) for doc, row in zip(docs, zip(num, den, cluster, stratum, strict=True), strict=True)}


# --- writing ----------------------------------------------------------------------------------------------------------


class RecordWriter:
    """Writes the record of a run under way, and sees to it that one run at a time writes to a folder.

        with RecordWriter(folder, record) as writer:
            writer.measured(0, "NLI", summarise(...), values)
            writer.complete()

    An exception inside marks the record ``failed`` with its reason, Ctrl-C marks it ``interrupted``; both keep what was
    measured.

    Raises:
        UsageError: the folder cannot be written to, or another run is writing to it; nothing has been computed by then.
    """

    def __init__(self, folder: str | Path, record: Record) -> None:
        self.folder = Path(folder)
        self.record = record
        self._done = False
        require_writable(self.folder)
        self._lock = FileLock(self.folder / ".harness.lock", timeout=0)

    def __enter__(self) -> RecordWriter:
        try:
            self._lock.acquire()
        except Timeout as error:
            raise UsageError(
                f"{self.folder}: another run is writing to this folder; wait for it to end or choose another --output"
            ) from error
        for half in self.folder.glob(f".{glob.escape(name(self.record))}.*"):
            half.unlink()  # a run of this plan was killed while it wrote
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._done:
                self._mark(error)
                self._save(PARTIAL)
        finally:
            with suppress(OSError):  # where a file that is open cannot be removed, it stays
                Path(self._lock.lock_file).unlink()
            self._lock.release()

    @property
    def path(self) -> Path:
        """Where the record lies: while the run is under way beside the place where it will lie."""
        return self.folder / f"{name(self.record)}{'' if self._done else PARTIAL}.json"

    def measured(self, edits: int, task: str, numbers: Mapping[str, Json], values: TaskValues) -> None:
        """Adds what one task gave after so many edits, in nine significant digits, and saves."""
        record = self.record
        self._point(edits)["tasks"][task] = rounded(numbers)
        record.values = record.values if record.values is not None else {}
        record.values.setdefault(edits, {})[task] = {metric: dict(rows) for metric, rows in values.items()}
        self.save()

    def noted(self, edits: int, **facts: Json) -> None:
        """Adds what else is known after so many edits (``weights``, ``latest``, ``truncated``), and saves."""
        self._point(edits).update(rounded(facts))
        self.save()

    def _point(self, edits: int) -> Json:
        points = self.record.points
        if not any(point["edits"] == edits for point in points):
            self.record.points = sorted([*points, {"edits": edits, "tasks": {}}], key=lambda point: int(point["edits"]))
        return next(point for point in self.record.points if point["edits"] == edits)

    def resume(self) -> bool:
        """Take over what an earlier run of the same plan has measured, if it was stopped and nothing else has changed.

        The model, the edits, the editor, the data, the prompts and the versions must be the same.
        """
        try:
            known = read(self.path, values=True)
        except DataError:
            return False
        same = ("id", "plan", "model", "editor", "edits", "data", "templates", "versions", "seed")
        mine, theirs = self.record.to_json(), known.to_json()
        if any(mine[key] != theirs[key] for key in same) or known.values is None:
            return False
        for key in ("points", "collapse", "weights", "delta", "cost", "values"):
            setattr(self.record, key, getattr(known, key))
        return True

    def save(self) -> None:
        """Writes what there is so far."""
        self._save("" if self._done else PARTIAL)

    def complete(self) -> Path:
        """Marks the record complete, puts it in its place, and returns the path."""
        stale = self.path
        self.record.status, self.record.reason, self._done = "complete", None, True
        self._save("")
        for leftover in (stale, values_path(stale)):
            leftover.unlink(missing_ok=True)
        return self.path

    def _mark(self, error: BaseException | None) -> None:
        if error is None or isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.record.status, self.record.reason = "interrupted", "interrupted before the end"
        else:
            text = " ".join(str(error).split()) or "no message"
            self.record.status, self.record.reason = "failed", f"{type(error).__name__}: {text}"

    def _save(self, suffix: str) -> None:
        """The values first: a record whose values are missing is worse than values whose record is missing."""
        path = self.folder / f"{name(self.record)}{suffix}.json"
        if self.record.values is not None:
            write_whole(values_path(path), _packed_values(self.record, self._done))
        write_whole(path, (text(self.record.to_json()) + "\n").encode())


def _packed_values(record: Record, small: bool) -> bytes:
    points = {
        str(edits): {task: _pack(metrics) for task, metrics in measured.items()}
        for edits, measured in (record.values or {}).items()
    }
    return packed({"schema": SCHEMA, "id": record.id, "points": points}, small)


def _plain(value: Any) -> Any:
    """The value as JSON takes it: numbers that are not finite become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value
