"""Samples on disk, beside a record: packed JSON, one object a line.

``<name>.samples.jsonl.xz`` lies beside a complete record.  While a run is under way the folder
``<name>.partial.samples`` holds a file for each task and stop, each of which appears whole, so that a run that was
killed loses none.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.errors import DataError, near
from harness.exam.exam_parts import NEUTRAL_TEXT
from harness.exam.samples import Sample, SampleLine
from harness.io.files import discard, write_whole
from harness.io.schema import checked, parsed
from harness.runs.record import Record

__all__ = ["SampleParts", "chosen_samples", "iterate_samples", "last_stop", "samples_path"]

_ENDING = ".samples.jsonl.xz"
_LINE_AT_MOST = 2**26  # bytes
_SAID = {"task": "task", "kind": "kind", "at": "number of edits"}
_PRESET = 3
"""Of xz: what is packed as small as can be takes five times as long, and is a tenth smaller."""


def samples_path(path: str | Path) -> Path:
    """Where the samples of a record lie: a file beside it, or the folder of its parts while a run is under way."""
    path = Path(path)
    stem = path.name.removesuffix(".json")
    return path.with_name(f"{stem}.samples" if stem.endswith(".partial") else f"{stem}{_ENDING}")


class SampleParts:
    """The samples of a run under way, a file for each task and stop, which are joined when the run is complete."""

    def __init__(self, folder: Path) -> None:
        """Parts in a folder, which need not exist."""
        self.folder = folder

    def add(self, at: int, task: str, samples: Sequence[Sample]) -> None:
        """Write the samples of one reported name at one stop.

        Args:
            at: how many edits had been made.
            task: the name.
            samples: what was asked and replied.

        Raises:
            UsageError: they cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(one.to_json(), ensure_ascii=False, allow_nan=False) for one in samples)
        content = "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")
        write_whole(self._part(at, task), lzma.compress(content, preset=_PRESET))

    def join(self, record: Record, path: Path) -> list[str]:
        """Put the parts of a complete record together in the order of its numbers, and say what has none.

        Args:
            record: the record.
            path: the file, which replaces one of an earlier run.

        Returns:
            What was measured but has no samples, such as ``NLI after 10 edits``.

        Raises:
            UsageError: the file cannot be written.
        """
        every = [(int(point["edits"]), task) for point in record.points for task in point["tasks"]]
        last = last_stop(record)
        wanted = [(at, task) for at, task in every if task != NEUTRAL_TEXT and (at or not last)]
        found = {(at, task): part for at, task in wanted if (part := self._part(at, task)).is_file()}
        if found:
            write_whole(path, b"".join(part.read_bytes() for part in found.values()))
        else:
            path.unlink(missing_ok=True)  # of an earlier run, whose numbers these are not
        return [f"{task} after {at} edits" for at, task in wanted if (at, task) not in found] if found else []

    def remove(self) -> None:
        """Delete the parts."""
        discard(self.folder)

    def _part(self, at: int, task: str) -> Path:
        return self.folder / f"{at:08d}-{hashlib.sha256(task.encode()).hexdigest()[:16]}{_ENDING}"


def last_stop(record: Record) -> int:
    """The greatest number of edits after which something was asked."""
    return max((int(point["edits"]) for point in record.points if set(point["tasks"]) - {NEUTRAL_TEXT}), default=0)


# --- reading ----------------------------------------------------------------------------------------------------------


def iterate_samples(path: str | Path) -> Iterator[Sample]:
    """The samples beside a record, in the order in which they were measured.

    Args:
        path: the JSON of a record, also of one under way; or the file of samples itself.

    Raises:
        DataError: there are none, or the file is not what a run writes.
    """
    path = Path(path)
    beside = path if path.name.endswith(_ENDING) else samples_path(path)
    parts = sorted(beside.glob(f"*{_ENDING}")) if beside.is_dir() else [beside]
    if not (parts and parts[0].is_file()):
        raise DataError(
            f"{path}: no samples lie beside it ({beside.name}); keep them with: harness run --fresh --log-samples"
        )
    for part in parts:
        yield from _read(part)


def chosen_samples(
    path: str | Path, *, changed: bool = False, task: str | None = None, kind: str | None = None, at: int | None = None
) -> Iterator[Sample]:
    """Some of the samples beside a record.

    Args:
        path: as of :func:`iterate_samples`.
        changed: only those to which the edited model replies something else.
        task: only those of this task, or of the tasks that tables report under this name.
        kind: only questions of this kind.
        at: only those after so many edits.

    Raises:
        DataError: as of :func:`iterate_samples`; or no sample has that task, that kind, or was asked then.
    """
    seen: dict[str, set[Any]] = {"task": set(), "kind": set(), "at": set()}
    wanted = {name: value for name, value in (("task", task), ("kind", kind), ("at", at)) if value is not None}
    for one in iterate_samples(path):
        names: dict[str, set[Any]] = {"task": {one.task, one.group}, "kind": {one.kind}, "at": {one.at}}
        for name, values in names.items():
            seen[name] |= values
        if all(value in names[name] for name, value in wanted.items()) and (one.changed or not changed):
            yield one
    for name, value in wanted.items():
        there = {str(one) for one in seen[name] if one is not None}
        if str(value) not in there:
            raise DataError(f"{path}: no sample has the {_SAID[name]} '{value}'{near(str(value), there)}")


def _read(path: Path) -> Iterator[Sample]:
    try:
        with lzma.open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LINE_AT_MOST), b""), 1):
                yield _sample(line, f"{path}, line {number}")
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{path}: not whole ({error}); repeat the run, or delete it to do without samples") from error


def _sample(line: bytes, where: str) -> Sample:
    try:
        found = parsed(line)
        checked(SampleLine, found)
    except ValueError as error:
        raise DataError(f"{where}: not what a run writes ({error}); repeat the run") from error
    return Sample.from_json(found)
