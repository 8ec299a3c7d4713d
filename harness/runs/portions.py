"""Isolated edits in portions: each is made, scored and let go of, and what it gave lies in a file of its own.

The patches of thousands of edits are never held at once. A run that was killed goes on at the portion where it was, and
portions may be made by several workers (``--shards``): a run whose portions are there puts them together. A portion is
taken only if all that it depends on is what it was.
"""

from __future__ import annotations

import glob
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from harness.editing import schedule
from harness.editing.schedule import Stop
from harness.exam import measure, tasks, weight_change
from harness.exam.adapter import EditedLM
from harness.exam.measure import Measured, MeasuredFile, measured_from, measured_to
from harness.exam.spectra import Spectra
from harness.io import files
from harness.io.locks import made_once
from harness.io.schema import checked
from harness.methods.value_cache import ValueCache, values_folder, values_from
from harness.runs.changed_weights import changes_anything
from harness.runs.clock import Clock
from harness.runs.identity import digest
from harness.runs.options import RunOptions
from harness.runs.prepare import VOID, Prepared
from harness.runs.record import Record, record_name
from harness.runs.writer import depends_on

__all__ = ["PORTION", "Portion", "Portions", "count_portions", "is_divided", "patches_of", "remove_portions"]

log = logging.getLogger(__name__)

PORTION = 64
"""Patches of a portion; of no more than these an isolated run is not divided."""


class _PortionFile(TypedDict):
    key: str
    measured: dict[str, MeasuredFile]
    change: list[dict[str, dict[str, float | None]]]
    moves: bool
    cost: list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Portion:
    """What the edits of a portion gave.

    Attributes:
        measured: task -> what its documents of these edits gave.
        change: of each patch, how it changes each weight.
        moves: whether any of them changes anything.
        cost: the phases of making it.
    """

    measured: Mapping[str, Measured]
    change: Sequence[dict[str, dict[str, float | None]]]
    moves: bool
    cost: Sequence[dict[str, Any]]


def is_divided(patches: int, mode: str) -> bool:
    """Whether a run goes in portions.

    Args:
        patches: how many patches it makes.
        mode: how edits are made.
    """
    return mode == "isolated" and patches > PORTION


def count_portions(patches: int) -> int:
    """In how many portions so many patches are made."""
    return -(-patches // PORTION)


def remove_portions(folder: Path, record: str) -> None:
    """Remove what portions of a run gave.

    Args:
        folder: where its record lies.
        record: the id of the record.
    """
    for path in folder.glob(f"*--{glob.escape(record[:8])}.portion-*"):
        path.unlink(missing_ok=True)


@dataclass(eq=False)
class Portions:
    """The portions of a run.

    Attributes:
        ready: the run.
        options: how it is carried out.
        record: its record, as far as it is known before the first edit.
        model: what is measured.
    """

    ready: Prepared
    options: RunOptions
    record: Record
    model: EditedLM
    ranges: list[range] = field(init=False)

    def __post_init__(self) -> None:
        count = patches_of(len(self.ready.resolved.cases), self.ready.resolved.plan.cases_at_once)
        self.ranges = [range(start, min(start + PORTION, count)) for start in range(0, count, PORTION)]
        self._spectra = Spectra()
        self._values = ValueCache(values_folder() if self.options.cache else None)

    def each(self, numbers: Sequence[int] | None = None) -> Iterator[Portion]:
        """What portions gave: as it was kept, or now.

        Args:
            numbers: which portions; None for all.
        """
        for number in range(len(self.ranges)) if numbers is None else numbers:
            yield self._one(number)

    def _one(self, number: int) -> Portion:
        path = self._path(number)
        found = self._read(path, number)
        if found is not None:
            return found
        with made_once(path) as waited:
            found = self._read(path, number) if waited else None
            if found is None:
                self._write(path, number, self._made(number))
                found = self._read(path, number)
        assert found is not None
        return found

    # --- making -------------------------------------------------------------------------------------------------------

    def _made(self, number: int) -> Portion:
        """Make the edits of a portion, score the documents that are asked under them, and let them go."""
        clock = Clock(self.options.report, self.options.device)
        before = self._values.counts()
        with clock.phase("edit"), values_from(self._values):
            stop = self._edited(number)
            change = [weight_change.describe(self.ready.lm, patch, self._spectra) for patch in stop.patches]
        clock.values("edit", {name: count - before[name] for name, count in self._values.counts().items()})
        self.ready.guard.require(VOID, weights=False, before=f" before {self.ready.editor.name} edited")
        with clock.phase(f"measure after {len(self.ready.resolved.cases)} edits"):
            measured = self._measured(number, stop)
        return Portion(measured, change, any(changes_anything(patch) for patch in stop.patches), clock.cost)

    def _edited(self, number: int) -> Stop:
        resolved, which = self.ready.resolved, self.ranges[number]
        size = resolved.plan.cases_at_once or 1
        cases = schedule.cases_of(resolved.edits)[which.start * size : which.stop * size]
        (stop,) = schedule.walk(
            self.ready.editor,
            self.ready.lm,
            [edit for case in cases for edit in case],
            mode="isolated",
            batch_size=None,
            at=(len(cases),),
            progress=lambda done, _: self.options.report("edit", which.start * size + done, len(resolved.cases)),
            at_once=resolved.plan.cases_at_once,
            first=measure.asked_after(self.ready.suite.of(resolved.edit_set)),
        )
        return stop

    def _measured(self, number: int, stop: Stop) -> dict[str, Measured]:
        resolved, suite = self.ready.resolved, self.ready.suite
        own = [task.name for task in suite.of(resolved.edit_set)]
        which, at_once = self.ranges[number], resolved.plan.cases_at_once
        asked = {}
        for task in suite.tasks:
            limit = None if task.shown in (resolved.plan.edits, tasks.OWN) else resolved.plan.limit
            asked[task.name] = measure.documents_under(
                task,
                which,
                ids=resolved.cases,
                own=own,
                at_once=at_once,
                limit=limit,
                partial=bool(stop.partial),
            )
        found = {}
        with measure.hold(
            self.model, stop, ids=resolved.cases, mode="isolated", own=own, at_once=at_once, portion=which,
            documents=asked,
        ):  # fmt: skip
            for task in suite.tasks:
                said = f"{task.name}, portion {number + 1} of {len(self.ranges)}"
                self.model.progress = lambda done, total, said=said: self.options.report(said, done, total)
                found[task.name] = measure.measure_task(self.model, task, limit=None, documents=asked[task.name])
        return found

    # --- keeping ------------------------------------------------------------------------------------------------------

    def _path(self, number: int) -> Path:
        return self.options.output / f"{record_name(self.record)}.portion-{number:04d}.json.xz"

    @cached_property
    def _dependencies(self) -> dict[str, Any]:
        return {"record": depends_on(self.record), "rows": self.options.rows, "portion": PORTION}

    def _key(self, number: int) -> str:
        """What names all that a portion depends on."""
        return digest({**self._dependencies, "number": number})

    def _write(self, path: Path, number: int, made: Portion) -> None:
        measured = {name: measured_to(one) for name, one in made.measured.items()}
        body = {
            "key": self._key(number), "measured": measured, "change": list(made.change), "moves": made.moves,
            "cost": list(made.cost),
        }  # fmt: skip
        files.write_whole(path, files.pack_json(_plain(body), small=False))

    def _read(self, path: Path, number: int) -> Portion | None:
        """What a portion gave; None where there is none, or one that cannot be used, and a line says why."""
        try:
            kept = files.unpack_json(path.read_bytes())
            checked(_PortionFile, kept)
            if kept["key"] != self._key(number):
                raise ValueError("it is a portion of another plan, or of something that has changed since")
            measured = {name: measured_from(one) for name, one in kept["measured"].items()}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s: refused: %s; it is made again", path, error)
            return None
        return Portion(measured, kept["change"], kept["moves"], kept["cost"])


def _plain(value: Any) -> Any:
    """The value as JSON holds it: numbers that are not finite become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value


def patches_of(cases: int, at_once: int | None) -> int:
    """How many patches hold so many cases.

    Args:
        cases: how many cases there are.
        at_once: how many of them a patch holds; None for one.
    """
    return -(-cases // (at_once or 1))
