"""What a run measures at each stop: the tasks, and text that no edit is about."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from harness.editing.schedule import Stop
from harness.errors import HarnessError, UsageError
from harness.exam import collapse, data, measure, neutral_text, numbers, tasks
from harness.exam.adapter import EditedLM
from harness.exam.measure import Measured
from harness.exam.samples import Sample, pair_samples
from harness.exam.vllm_texts import VllmTexts
from harness.patches.patch import Patch, patched
from harness.runs.options import RunOptions
from harness.runs.portions import Portion
from harness.runs.prepare import Prepared
from harness.runs.record import Record
from harness.runs.writer import RecordWriter

__all__ = ["Measuring", "examined", "neutral_texts"]

log = logging.getLogger(__name__)


def neutral_texts(ready: Prepared, record: Record) -> neutral_text.Texts | None:
    """Text that no edit is about; None for isolated edits, and where there is none, which a line and the record say.

    It is downloaded only for a plan that names it, or whose rows come from the Hub too.

    Args:
        ready: the run.
        record: its record, which says where the text comes from.
    """
    source, plan = ready.lm.text, ready.resolved.plan
    if plan.mode == "isolated":
        return None
    try:
        if source != "mini" and plan.text is None and plan.data_dir != data.PUBLISHED and not Path(source).exists():
            raise UsageError("there is no plain text on this machine; name one with --text")
        found = neutral_text.texts(ready.lm)
    except HarnessError as error:
        record.data[neutral_text.NAME] = {"source": source, "reason": str(error)}
        log.warning("%s is not measured: %s", neutral_text.NAME, error)
        return None
    record.headlines[neutral_text.NAME] = "kl"
    record.data[neutral_text.NAME] = {"source": source, "sha256": found.sha256, "rows": len(found.rows)}
    return found if found.rows else None


def examined(ready: Prepared, options: RunOptions) -> EditedLM:
    """The model of a run as lm-eval sees it.

    Args:
        ready: the run.
        options: how it is carried out.
    """
    plan = ready.resolved.plan
    texts = VllmTexts(plan.model, ready.lm) if plan.backend == "vllm" else None
    return EditedLM(ready.lm, batch_size=options.rows, prompting=plan.prompting, texts=texts)


@dataclass(eq=False)
class Measuring:
    """Measures the unedited model first, and then each stop against it; every reported name is saved when complete.

    Attributes:
        ready: the run.
        options: how it is carried out.
        writer: what keeps the numbers.
        texts: what is read at each stop besides the tasks; isolated edits are not.
        base: what the unedited model gave, by lm-eval's name of the task.
        reading: what the unedited model makes of the neutral texts.
        joined: what portions of isolated edits gave, by lm-eval's name of the task.
    """

    ready: Prepared
    options: RunOptions
    writer: RecordWriter
    texts: neutral_text.Texts | None
    base: dict[str, Measured] = field(default_factory=dict)
    reading: neutral_text.TextReading | None = None
    joined: dict[str, Measured] = field(default_factory=dict)

    def join(self, portions: Sequence[Portion]) -> None:
        """Take what portions of isolated edits gave, by lm-eval's name of the task, for the stop after all of them."""
        self.joined = {
            task.name: measure.join_measured(task, [one.measured[task.name] for one in portions])
            for task in self.ready.suite.tasks
        }

    def at(self, stop: Stop | None) -> None:
        """Score every task, and read the neutral texts, at a stop; None is the unedited model."""
        ids = self.ready.resolved.cases
        own = [task.name for task in self.ready.suite.of(self.ready.resolved.edit_set)]
        resolved = self.ready.resolved
        at_once = resolved.plan.cases_at_once
        with measure.hold(self.model, stop, ids=ids, mode=resolved.mode, own=own, at_once=at_once):
            for shown in self.ready.suite.shown:
                # An earlier run that was stopped may have come this far; the unedited model is what others are held to.
                if stop is None or shown not in self.writer.record.tasks(stop.edits):
                    self._measure(shown, stop)
        if self.texts is not None:
            self._read_neutral(self.texts, stop)

    def _measure(self, shown: str, stop: Stop | None) -> None:
        """Score the tasks that are reported under one name."""
        count = stop.edits if stop else 0
        members = [task for task in self.ready.suite.tasks if task.shown == shown]
        measured = {task.name: self._score(task, stop) for task in members}
        table = measure.summarise_tasks(
            members, measured, base=self.base if stop else None, seed=self.ready.resolved.plan.seed
        )
        if stop is None:
            self.base |= measured
        elif stop.latest.start and self._is_edit_set(shown):
            self._note_latest(shown, members, measured, stop)
        self.writer.measured(
            count,
            shown,
            numbers=table,
            values=measure.contributions(members, measured),
            samples=self._samples(measured, stop),
        )
        self._tell(shown, count, table)
        cut = sum(one.truncated for one in measured.values())
        if cut:
            earlier = self.writer.record.point(count).get("truncated", {})
            self.writer.noted(count, truncated={**earlier, shown: cut})

    def _samples(self, measured: Mapping[str, Measured], stop: Stop | None) -> list[Sample] | None:
        """What is kept of what was asked and replied; the unedited model's replies stand beside the edited one's."""
        if not self.options.log_samples or (stop is None and self.ready.resolved.edits_any):
            return None
        if stop is None:
            return [sample for one in measured.values() for sample in one.samples]
        parts = (pair_samples(one.samples, self.base[name].samples, stop.edits) for name, one in measured.items())
        return [sample for part in parts for sample in part]

    def _tell(self, shown: str, count: int, table: Mapping[str, numbers.Json]) -> None:
        """Say the number that a table shows first."""
        metric = self.writer.record.headlines.get(shown)
        value = table.get(metric, {}).get("value") if metric else None
        if value is not None:
            state = f"after {count} edits" if count else "unedited"
            self.options.report(f"{shown}, {state}: {metric} {value:.3f}", 0, 0)

    def _score(self, task: tasks.Task, stop: Stop | None) -> Measured:
        """One task at one stop."""
        state = f"after {stop.edits} edits" if stop else "unedited"
        self.model.progress = lambda done, total: self.options.report(f"{task.name}, {state}", done, total)
        limit = None if self._is_edit_set(task.shown) else self.ready.resolved.plan.limit
        return self._score_unedited(task, limit) if stop is None else self._score_edited(task, limit, stop)

    def _score_edited(self, task: tasks.Task, limit: int | None, stop: Stop) -> Measured:
        """Of the edit set, the documents of the edits made so far alone."""
        made = set(self.ready.resolved.made(stop.edits))
        partial = bool(stop.partial)
        documents = measure.of_cases(task, made, partial=partial) if self._is_edit_set(task.shown) else None
        found = self.joined.get(task.name) or measure.measure_task(self.model, task, limit=limit, documents=documents)
        found.values = {metric: {} for metric in self.base[task.name].values} | found.values
        measure.agree(task, found, self.base[task.name])
        return found

    def _score_unedited(self, task: tasks.Task, limit: int | None) -> Measured:
        """As an earlier run has kept it, or anew."""
        source, device = self.writer.record.data.get(task.shown), self.ready.lm.device
        key = measure.base_key(
            self._fingerprint, task, limit=limit, batch_size=self.options.rows, provenance=source, device=device,
            asked=self.model.asked,
        )  # fmt: skip
        return measure.measured_once(
            key, lambda: measure.measure_task(self.model, task, limit=limit), cache=self.options.cache
        )

    def _note_latest(
        self, shown: str, members: Sequence[tasks.Task], measured: dict[str, Measured], stop: Stop
    ) -> None:
        """The numbers of the edits of the last operation alone, beside those of all edits so far."""
        mine = {self.ready.resolved.cases[i] for i in stop.latest}
        part = {name: _of_edits(one, mine) for name, one in measured.items()}
        if any(values for one in part.values() for values in one.values.values()):
            table = measure.summarise_tasks(members, part, base=None, seed=self.ready.resolved.plan.seed)
            self.writer.noted(stop.edits, latest={shown: table})

    def _read_neutral(self, texts: neutral_text.Texts, stop: Stop | None) -> None:
        """Perplexity, divergence and the signs of collapse on text that no edit is about."""
        lm, count = self.ready.lm, stop.edits if stop else 0
        patch = stop.patches[0] if stop else Patch()
        if stop is None and self.options.cache:
            found = neutral_text.unedited_reading(lm, texts, (self._fingerprint, str(lm.device)))
        else:
            with patched(lm, patch):
                found = neutral_text.read_neutral_text(lm, texts, self.reading, prompt=patch.prompt)
        before = self.reading.values if self.reading and stop else None
        self.reading = self.reading or found
        directions: dict[str, bool | None] = {"nll": False, "kl": False}
        table = numbers.summarise(found.values, before, directions, seed=0, plain={"repetition": found.repetition})
        self.writer.measured(count, neutral_text.NAME, numbers=table, values=found.values)
        if stop is None:
            return
        for name in collapse.fired(self.reading, found, self.writer.record.delta):
            self.writer.record.collapse.setdefault(name, count)
        self.writer.save()

    @cached_property
    def model(self) -> EditedLM:
        """The model as it is examined."""
        return examined(self.ready, self.options)

    @cached_property
    def _fingerprint(self) -> str:
        return measure.fingerprint(self.ready.lm, self.writer.record.model["sha256"])

    def _is_edit_set(self, shown: str) -> bool:
        """Whether a reported name is that of the edit set, or of the task that asks about its edits."""
        return shown in (self.ready.resolved.plan.edits, tasks.OWN, tasks.BELIEF)


def _of_edits(measured: Measured, ids: set[str]) -> Measured:
    """What the documents of some edits gave."""
    values = {
        metric: {document: ratio for document, ratio in rows.items() if ratio.cluster in ids}
        for metric, rows in measured.values.items()
    }
    return replace(measured, values=values)
