"""Writes the record of a run under way, so that an interruption loses nothing.

After every measured task ``<name>.partial.json`` is written; an earlier complete record of the same plan stays until
the new one is complete.  Files appear whole or not at all.
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from harness.errors import DataError
from harness.exam.numbers import Json, TaskValues
from harness.exam.samples import Sample
from harness.io.files import discard, require_writable, rounded, values_path
from harness.runs.record import Record, record_name
from harness.runs.record_file import PackedTables, read_record, write_record
from harness.runs.sample_file import SampleParts, samples_path
from harness.runs.ties import untied

__all__ = ["RecordWriter", "depends_on", "remove_leftovers"]

log = logging.getLogger(__name__)

PARTIAL = ".partial"

_DEPENDS_ON = {
    "id": "plan",
    "plan": "plan",
    "model": "model or plain text",
    "editor": "editor",
    "edits": "edits",
    "data": "rows or text",
    "templates": "tasks",
    "versions": "versions",
    "seed": "seed",
}
"""The fields of a record that say what its numbers depend on, and how a person is told of them."""


def _remove_temporary(folder: Path, record: Record) -> None:
    for half in folder.glob(f".{glob.escape(record_name(record))}.*"):
        discard(half)


def remove_leftovers(folder: Path, record: Record) -> None:
    """Remove what a run that was killed just after its record was complete left beside it.

    Args:
        folder: the folder of the record, which is to be held.
        record: the complete record.
    """
    _remove_temporary(folder, record)
    partial = folder / f"{record_name(record)}{PARTIAL}.json"
    portions = folder.glob(f"{glob.escape(record_name(record))}.portion-*")
    for left in (partial, values_path(partial), partial.with_suffix(".state"), *portions):
        left.unlink(missing_ok=True)
    SampleParts(samples_path(partial)).remove()


def depends_on(record: Record) -> Json:
    """All that the numbers of a run depend on, as far as it is known before the first: hashes, settings, versions."""
    whole = record.to_json()
    return {key: whole[key] for key in _DEPENDS_ON}


class RecordWriter:
    """Writes the record of a run under way; the record is to be held (:func:`harness.runs.folder.exclusive`).

        with RecordWriter(folder, record) as writer:
            writer.measured(0, "NLI", summarise(...), values)
            writer.complete()

    An exception inside marks the record ``failed`` with its reason, Ctrl-C marks it ``interrupted``; both keep what was
    measured.

    Raises:
        UsageError: the folder cannot be written to.
    """

    def __init__(self, folder: str | Path, record: Record) -> None:
        self.folder = Path(folder)
        self.record = record
        self._done = False
        self._packed: PackedTables = {}
        self._samples = SampleParts(samples_path(self.path))
        require_writable(self.folder)

    def __enter__(self) -> RecordWriter:
        _remove_temporary(self.folder, self.record)  # a run of this plan was killed while it wrote
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._done:
            self._mark(error)
            self._save(PARTIAL)

    @property
    def path(self) -> Path:
        """Where the record lies: while the run is under way beside the place where it will lie."""
        return self.folder / f"{record_name(self.record)}{'' if self._done else PARTIAL}.json"

    def measured(
        self,
        edits: int,
        task: str,
        *,
        numbers: Mapping[str, Json],
        values: TaskValues,
        samples: Sequence[Sample] | None = None,
    ) -> None:
        """Adds what one task gave after so many edits, in nine significant digits, and saves.

        Args:
            edits: how many edits had been made.
            task: the name under which the numbers are reported.
            numbers: metric -> value, n, interval and difference, as :func:`harness.exam.numbers.summarise` gives them.
            values: metric -> document -> what it contributes.
            samples: what was asked and replied; None where it is not kept.

        Raises:
            UsageError: the record cannot be written.
        """
        record = self.record
        if samples is not None:  # first: what is in the record is not measured again after a kill
            self._samples.add(edits, task, samples)
        self._point(edits)["tasks"][task] = rounded(numbers)
        record.values = record.values if record.values is not None else {}
        self._packed.pop((edits, task), None)
        record.values.setdefault(edits, {})[task] = {metric: dict(rows) for metric, rows in values.items()}
        self.save()

    def noted(self, edits: int, **facts: Json) -> None:
        """Adds what else is known after so many edits, and saves.

        Args:
            edits: after how many.
            facts: ``weights``, ``lost_in_rounding``, ``routing``, ``latest``.
        """
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
            known = read_record(self.path, values=True)
        except DataError:
            return False
        mine, theirs = depends_on(self.record), depends_on(known)
        changed = list(dict.fromkeys(said for key, said in _DEPENDS_ON.items() if mine[key] != theirs[key]))
        if changed or known.values is None:
            what = f"another {' and another '.join(changed)}" if changed else "no values of documents"
            log.warning("%s: an earlier run that was stopped had %s; this one begins anew", self.path, what)
            return False
        other = next(untied(known), None)
        if other is not None:
            log.warning("%s: %s: it or its values were changed; this run begins anew", self.path, other)
            return False
        for key in ("points", "collapse", "weights", "delta", "cost", "values"):
            setattr(self.record, key, getattr(known, key))
        return True

    def save(self) -> None:
        """Writes what there is so far."""
        self._save("" if self._done else PARTIAL)

    def forget_samples(self) -> None:
        """Removes the samples of an earlier run, of a record that begins anew."""
        self._samples.remove()

    def complete(self) -> Path:
        """Marks the record complete, puts it and its samples in their places, and returns the path."""
        self.record.status, self.record.reason, self._done = "complete", None, True
        missing = self._samples.join(self.record, samples_path(self.path))
        if missing:
            log.warning("%s: the run that was stopped kept no samples of %s", self.path, ", ".join(missing))
        self._save("")
        remove_leftovers(self.folder, self.record)
        return self.path

    def _mark(self, error: BaseException | None) -> None:
        if error is None or isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.record.status, self.record.reason = "interrupted", "interrupted before the end"
        else:
            text = " ".join(str(error).split()) or "no message"
            self.record.status, self.record.reason = "failed", f"{type(error).__name__}: {text}"

    def _save(self, suffix: str) -> None:
        path = self.folder / f"{record_name(self.record)}{suffix}.json"
        write_record(path, self.record, small=self._done, packed=self._packed)
