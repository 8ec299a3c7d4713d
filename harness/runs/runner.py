"""One run: load, measure unedited, edit, measure edited, restore, and keep a record of all of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.editing import schedule
from harness.exam.measure import asked_after
from harness.io.hashes import combined_sha256
from harness.methods.value_cache import ValueCache, values_folder, values_from
from harness.runs.changed_since import changed_since
from harness.runs.changed_weights import Routing, changes_anything, note_change, note_described, note_restored
from harness.runs.clock import Clock
from harness.runs.folder import exclusive
from harness.runs.identity import digest
from harness.runs.loaded import OneModel
from harness.runs.measuring import Measuring, examined, neutral_texts
from harness.runs.new_record import new_record
from harness.runs.options import RunOptions
from harness.runs.portions import Portions, is_divided, patches_of, remove_portions
from harness.runs.prepare import VOID, Prepared, prepare_run
from harness.runs.record import Record, record_name
from harness.runs.record_file import read_record
from harness.runs.resolve import Resolved
from harness.runs.resume import StateFile, packages_of
from harness.runs.saved_edits import save_edits
from harness.runs.threads import one_thread_if_small
from harness.runs.ties import untied
from harness.runs.writer import RecordWriter, depends_on

__all__ = ["finished", "run_plan", "run_shard"]

log = logging.getLogger(__name__)


def finished(resolved: Resolved, folder: Path, *, load_model: bool = True) -> Record | None:
    """The complete record of a plan in a folder; None where there is none, or one of something else, which a line says.

    Something else: the model's weights, the edits, the rows of a task, the editor's file, what it has learned, or a
    version have changed since, while the plan names the same; or the record was changed by hand. A copy of a record
    under another name is none.

    Args:
        resolved: the plan, and what it names.
        folder: where records lie.
        load_model: whether the weights are looked at, too, for which the model is loaded.

    Raises:
        HarnessError: the record or the model cannot be read.
    """
    for path in folder.glob(f"*--{resolved.id[:8]}.json"):
        found = read_record(path, values=True)
        if found.id != resolved.id or found.status != "complete" or path.stem != record_name(found):
            continue
        other = next(untied(found, intervals=False), None)
        if other is not None:
            log.warning("%s: %s: it or its values were changed after the run; it is not taken", path, other)
            continue
        changed = changed_since(found, resolved, load_model=load_model)
        if not changed:
            return found
        log.warning("%s: is of other %s; it is not taken", path, " and ".join(changed))
    return None


def run_plan(resolved: Resolved, options: RunOptions, models: OneModel | None = None) -> Record:
    """Carry out a plan; the record is on disk when this returns, and as far as it came when this raises.

    Args:
        resolved: the plan, and what it names.
        options: how it is carried out.
        models: keeps the model for the next plan; None to load it for this one alone.

    Raises:
        UsageError: the folder cannot be written to, another run holds the record, or the device cannot be used; told
            before anything is loaded.
        HarnessError: the plan cannot be carried out.
        RestoreError: the model is not bitwise what it was.
    """
    options.require_kept(resolved.plan)
    with exclusive(options.output, resolved.id), ExitStack() as held:
        place = options.placement
        clock = Clock(options.report, options.device)
        with clock.phase("load"):
            ready = prepare_run(resolved, place, options.report, models=models, held=held, cache=options.cache)
            hashes = ready.lm.state_hashes()
            record = new_record(ready, combined_sha256(hashes))
            texts = neutral_texts(ready, record)
        with RecordWriter(options.output, record) as writer, one_thread_if_small(ready.lm):
            resumed = not options.fresh and writer.resume()
            clock.take_over(record.cost)
            record.cost = clock.cost
            key = digest(depends_on(record))
            packages = packages_of(ready.editor)
            state = StateFile(writer.path.with_suffix(".state"), key, packages=packages, lm=ready.lm)
            if options.fresh and options.shards == 1:
                remove_portions(options.output, record.id)
            if not resumed:
                state.remove()  # one of an earlier run is further than a record that begins anew
                writer.forget_samples()
            measuring = Measuring(ready, options, writer, texts)
            under_way = _Run(ready, options, writer, clock, state, measuring, hashes)
            under_way.go(state.read() if resumed else None)
            writer.complete()
    return record


def run_shard(resolved: Resolved, options: RunOptions, shard: int, *, models: OneModel | None = None) -> None:
    """Make every n-th portion of isolated edits, for a run of the same plan that puts them together.

    Args:
        resolved: the plan, and what it names.
        options: how it is carried out, and in how many shards.
        shard: which of them, from 0.
        models: keeps the model for the next plan; None to load it for this one alone.

    Raises:
        HarnessError: the plan cannot be carried out.
        RestoreError: the model is not bitwise what it was.
    """
    with ExitStack() as held:
        ready = prepare_run(resolved, options.placement, options.report, models=models, held=held, cache=options.cache)
        record = new_record(ready, combined_sha256(ready.lm.state_hashes()))
        with one_thread_if_small(ready.lm):
            portions = Portions(ready, options, record, examined(ready, options))
            for _ in portions.each(range(shard, len(portions.ranges), options.shards)):
                pass
        ready.guard.require(VOID)


@dataclass(eq=False)
class _Run:
    """The state of a run under way."""

    ready: Prepared
    options: RunOptions
    writer: RecordWriter
    clock: Clock
    state: StateFile
    measuring: Measuring
    hashes: Mapping[str, str]

    def go(self, begun: schedule.Begun | None) -> None:
        """Measure unedited, then at each stop; check that nothing remains."""
        with self.clock.phase("measure unedited"):
            self.measuring.at(None)
        resolved = self.ready.resolved
        if is_divided(patches_of(len(resolved.cases), resolved.plan.cases_at_once), resolved.mode):
            if resolved.edits_any:
                self._edit_in_portions()
        elif resolved.edits_any:
            self._edit(begun)
        with self.clock.phase("check"):
            note_restored(self.writer.record, self.ready.guard)

    def _edit_in_portions(self) -> None:
        """Make isolated edits a portion at a time, and put together what they gave."""
        ready, count = self.ready, max(self.ready.resolved.stops)
        portions = list(Portions(ready, self.options, self.writer.record, self.measuring.model).each())
        for portion in portions:
            self.clock.take_over(portion.cost)
        rows = [row for portion in portions for row in portion.change]
        changed = any(portion.moves for portion in portions)
        if not changed:
            ready.guard.require(VOID)
        noted = note_described(self.writer.record, rows, editor=ready.editor, changed=changed, hashes=self.hashes)
        self.writer.noted(count, **noted)
        with self.clock.phase(f"measure after {count} edits"):
            self.measuring.join(portions)
            self.measuring.at(schedule.Stop(count, (), range(count)))

    def _edit(self, begun: schedule.Begun | None) -> None:
        """Make the edits, and measure at each stop."""
        stops = self._stops(begun)
        while not (self.ready.resolved.plan.stop_on_collapse and self.writer.record.collapse):
            stop = self._edited(stops)
            if stop is None:
                break
            with self.clock.phase("edit"):
                self.state.now()
                self._note(stop)
            with self.clock.phase(f"measure after {stop.edits} edits"):
                self.measuring.at(stop)
            if stop.edits == max(self.ready.resolved.stops):
                break  # to ask for one more would tell of a phase of editing that is none

    def _edited(self, stops: Iterator[schedule.Stop]) -> schedule.Stop | None:
        """The next stop; values of edits are kept, or taken from where they are kept."""
        values = self._values
        before = values.counts()
        try:
            with self.clock.phase("edit"), values_from(values):
                return next(stops, None)
        finally:
            now = values.counts()
            self.clock.values("edit", {name: count - before[name] for name, count in now.items()})

    @cached_property
    def _routing(self) -> Routing:
        return Routing(self.ready.lm)

    @cached_property
    def _values(self) -> ValueCache:
        return ValueCache(values_folder() if self.options.cache else None)

    def _stops(self, begun: schedule.Begun | None) -> Iterator[schedule.Stop]:
        resolved = self.ready.resolved
        return schedule.walk(
            self.ready.editor,
            self.ready.lm,
            resolved.edits,
            mode=resolved.mode,
            batch_size=resolved.plan.edit_batch_size,
            at=resolved.stops,
            progress=lambda done, total: self.options.report("edit", done, total),
            begun=begun,
            keep=self.state.keep,
            at_once=resolved.plan.cases_at_once,
            first=asked_after(self.ready.suite.of(resolved.edit_set)),
        )

    def _note(self, stop: schedule.Stop) -> None:
        """Note what a stop changes, and keep the change where that is asked for."""
        ready, record = self.ready, self.writer.record
        # The weights themselves are looked at once, at the end: reading all of them takes long.
        ready.guard.require(VOID, weights=False, before=f" before {ready.editor.name} edited")
        if not any(map(changes_anything, stop.patches)):
            ready.guard.require(VOID)  # an editor that writes into the model gives no change
        noted = note_change(record, lm=ready.lm, editor=ready.editor, stop=stop, hashes=self.hashes)
        self.writer.noted(stop.edits, **noted, **self._routing.after(stop))
        # Edits that were put back from a file stand in it already.
        if self.options.save_edits and len(stop.patches) == 1 and not ready.resolved.plan.patch:
            save_edits(self.options.output, record, ready=ready, stop=stop)
