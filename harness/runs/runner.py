"""One run: load, measure unedited, edit, measure edited, restore, and keep a record of all of it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from harness.editing import learned_file, patch_file, schedule
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.registry import compose, find, names
from harness.editing.replay import replay
from harness.errors import HarnessError, ModelError, RestoreError, UsageError
from harness.exam import collapse, data, measure, neutral_text, numbers, tasks, weight_change
from harness.exam.adapter import EditedLM
from harness.exam.measure import Measured
from harness.io import files
from harness.io.hashes import combined_sha256
from harness.methods.keys import require_layers
from harness.models.lm import LM, load, shipped
from harness.patches.patch import Patch, patched, require_plain
from harness.runs import record
from harness.runs.plan import Plan
from harness.runs.record import Record, record_name
from harness.runs.record_file import read_record
from harness.runs.resume import Checkpoint
from harness.runs.versions import versions
from harness.runs.writer import RecordWriter

__all__ = ["Options", "Prepared", "finished", "patch_path", "prepare", "run", "settled"]

log = logging.getLogger(__name__)

_DIRECTED = ("direction", "against")  # the fields of an edit that a plain one leaves at their defaults
_SMALL = 20_000_000  # parameters


def _silent(phase: str, done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Options:
    """How a run is carried out; none of it changes what is measured beyond rounding.

    Attributes:
        output: the folder of the record.
        device: where the model goes; None for an accelerator where there is one.
        rows: rows of one forward pass.
        cache: whether the numbers of the unedited model may come from the cache.
        save_edits: whether the accumulated change goes to disk at each stop (not of isolated edits).
        fresh: whether to start anew where an earlier run of the plan was stopped.
        report: told what is done (``phase``), how far it is, and how much there is.
        lm: the model that the plan names, where it is loaded already.
    """

    output: Path
    device: str | None = None
    rows: int = 32
    cache: bool = True
    save_edits: bool = False
    fresh: bool = False
    report: Callable[[str, int, int], None] = _silent
    lm: LM | None = None


@dataclass(eq=False)
class Prepared:
    """What a run needs, loaded and checked, before anything is measured."""

    plan: Plan
    lm: LM
    editor: Editor
    edits: list[Edit]
    suite: tasks.Suite
    at: list[int]
    warnings: list[str] = field(default_factory=list)


def prepare(plan: Plan, device: str | None = None, lm: LM | None = None) -> Prepared:
    """Load and check everything that a plan names, cheap mistakes first; ``lm`` is its model where it is loaded.

    Raises:
        HarnessError: something does not exist or cannot be used.
    """
    _require_device(device)
    plan, drawn, at = _settled(plan)
    edits = [edit for _, edit in drawn]
    factory = compose(plan.editor)
    lm = lm or load(plan.model, plan.dtype, device, plan.arch or None, plan.text or _text_in(plan))
    editor: Editor = (
        replay(Path(plan.patch), lm)
        if plan.patch
        else factory.build(lm, plan.settings, plan.seed, lambda method: learned_file.require(method, lm, plan.fitted))
    )
    layers = getattr(editor.root, "layers", None)
    if layers:
        require_layers(lm, layers)  # tells of a layer that is not there, before anything is measured
    if max(at) and not plan.patch and "weights" in editor.root.seams:
        _require_plain(lm, editor)
    schedule.check(editor, lm, edits, str(plan.mode))
    own = plan.edits not in tasks.edit_sets()
    suite = tasks.load(
        plan.tasks,
        tasks.OWN if own else plan.edits,
        # In the order of the rows, so that a document is the same one whatever the order in which edits are made.
        [edit.id for _, edit in sorted(drawn, key=lambda one: one[0])],
        plan.data_dir,
        lm.tokenizer,
        own_file=plan.edits if own else None,
        split=plan.split,
    )
    return Prepared(plan, lm, editor, edits, suite, at, schedule.duplicates(edits))


def settled(plan: Plan) -> tuple[Plan, list[Edit], list[int]]:
    """The plan with what it leaves open filled in, its edits in their order, and where it stops; needs no model.

    Raises:
        HarnessError: the editor, the edits, the mode or a stop do not exist.
    """
    plan, drawn, at = _settled(plan)
    return plan, [edit for _, edit in drawn], at


def _settled(plan: Plan) -> tuple[Plan, list[tuple[int, Edit]], list[int]]:
    """As :func:`settled`, each edit with its place among the rows."""
    about = patch_file.manifest(Path(plan.patch))["about"] if plan.patch else {}
    plan = _replayed(plan, about) if plan.patch else plan
    method = compose(plan.editor).cls
    mode, size = schedule.plain_mode(plan.mode or schedule.default_mode(method), plan.batch_size)
    assert mode is not None
    # The order of saved edits was drawn of all rows of their run; a file of an earlier version does not say how many.
    rows = tasks.read_edits(plan.edits, plan.data_dir, plan.split, about.get("of", plan.num_edits))
    drawn = _ordered(rows, plan)[: plan.num_edits]
    unedited = plan.editor == "none" and not plan.patch
    at = [0] if unedited else schedule.stops(plan.eval_at, len(drawn), mode, size)
    return replace(plan, mode=mode, batch_size=size, num_edits=len(drawn)), drawn, at


def finished(plan: Plan, folder: Path) -> Record | None:
    """The complete record of a plan in a folder; None where there is none, or one of other edits or another editor.

    Other ones: the file that the plan names has changed since.

    Raises:
        HarnessError: the plan cannot be carried out; as :func:`settled`.
        DataError: the record cannot be read.
    """
    whole, edits, _ = settled(plan)
    name = record.identity(whole.to_json())
    for path in folder.glob(f"*--{name[:8]}.json"):
        found = read_record(path, values=True)
        same = found.id == name and found.editor.get("sources", {}) == compose(plan.editor).sources
        if same and found.edits.get("sha256") == _named(edits) and found.status == "complete":
            return found
    return None


def _require_plain(lm: LM, editor: Editor) -> None:
    """Refuse a quantised model for an editor of weights, and name the editors that work on one."""
    try:
        for layer in getattr(editor.root, "layers", None) or range(lm.arch.layers):
            require_plain(lm, lm.down(layer))
    except ModelError as error:
        others = ", ".join(name for name in names() if "weights" not in find(name).seams)
        raise ModelError(f"{error}: {others}") from error


def _ordered(edits: list[Edit], plan: Plan) -> list[tuple[int, Edit]]:
    """The edits in the order of the plan, each with its place among the rows."""
    rows = list(enumerate(edits))
    return random.Random(plan.seed).sample(rows, len(rows)) if plan.order == "random" else rows


def _replayed(plan: Plan, about: Mapping[str, Any]) -> Plan:
    """The plan that examines a saved patch: on the edits that the patch holds, in one operation.

    Raises:
        UsageError: the plan also names an editor.
    """
    if plan.editor != "none":
        raise UsageError(f"--patch puts saved edits back and --editor {plan.editor} makes new ones; give one of them")
    known = {key: about[key] for key in ("edits", "split", "num_edits", "data_dir", "order", "seed") if key in about}
    return replace(plan, mode="batch", batch_size=None, eval_at="final", **known)


def _text_in(plan: Plan) -> str | None:
    """The folder ``text`` of a data folder: plain text for second moments of a model that brings none."""
    folder = Path(plan.data_dir) / "text"
    return str(folder) if plan.model not in shipped() and folder.is_dir() else None


@contextlib.contextmanager
def _threads(lm: LM) -> Iterator[None]:
    """One thread for a small model on a processor: threads would wait for one another longer than they compute.

    Its numbers are then the same to the last digit on any number of cores. ``OMP_NUM_THREADS`` overrules it.
    """
    before = torch.get_num_threads()
    small = lm.device.type == "cpu" and sum(p.numel() for p in lm.model.parameters()) < _SMALL
    try:
        if small and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


def _require_device(device: str | None) -> None:
    try:
        torch.empty(0, device=None if device == "auto" else device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch that was built without the device
        reason = str(error).splitlines()[0]
        raise UsageError(f"device '{device}' cannot be used ({reason}); give cpu, cuda, mps or auto") from error


def run(plan: Plan, options: Options) -> Record:
    """Carry out a plan; the record is on disk when this returns, and as far as it came when this raises.

    Raises:
        HarnessError: the plan cannot be carried out; RestoreError if the model is not bitwise what it was.
    """
    files.require_writable(options.output)
    clock = _Clock(options.report, options.device)
    with clock.phase("load"):
        ready = prepare(plan, options.device, options.lm)
        hashes = ready.lm.state_hashes()
    kept = _new_record(ready, combined_sha256(hashes))
    texts = _neutral_texts(ready, kept)
    with RecordWriter(options.output, kept) as writer, _threads(ready.lm):
        resumed = not options.fresh and writer.resume()
        clock.take_over(kept.cost)
        kept.cost = clock.cost
        state = Checkpoint(writer.path.with_suffix(".state"), record.identity(kept.plan | kept.versions))
        runner = _Run(ready, options, writer, clock, hashes, state, texts)
        runner.go(state.read() if resumed else None)
        writer.complete()
        state.remove()
    return kept


def _neutral_texts(ready: Prepared, kept: Record) -> neutral_text.Texts | None:
    """Text that no edit is about; None for isolated edits and where there is none at hand, and the record says why.

    Nothing is downloaded for it unless the plan names it.
    """
    source = ready.lm.text
    if ready.plan.mode == "isolated":
        return None
    try:
        if source != "mini" and not Path(source).exists() and ready.plan.text is None:
            raise UsageError("there is no plain text on this machine; name one with --text")
        found = neutral_text.texts(ready.lm)
    except HarnessError as error:
        kept.data[neutral_text.NAME] = {"source": source, "reason": str(error)}
        return None
    kept.headlines[neutral_text.NAME] = "kl"
    kept.data[neutral_text.NAME] = {"source": source, "sha256": found.sha256, "rows": len(found.rows)}
    return found if found.rows else None


@dataclass(eq=False)
class _Run:
    """The state of a run under way."""

    ready: Prepared
    options: Options
    writer: RecordWriter
    clock: _Clock
    hashes: dict[str, str]
    """Of every parameter and buffer, before anything was edited."""
    state: Checkpoint
    texts: neutral_text.Texts | None
    """What is read at each stop besides the tasks; isolated edits are not."""
    base: dict[str, Measured] = field(default_factory=dict)
    reading: neutral_text.Reading | None = None
    """What the unedited model makes of the neutral texts."""

    def go(self, begun: schedule.Begun | None) -> None:
        """Measure unedited, then at each stop; check that nothing remains."""
        ready, plan = self.ready, self.ready.plan
        model = EditedLM(ready.lm, batch_size=self.options.rows)
        self._measure(model, None)
        if max(ready.at):
            steps = schedule.walk(
                ready.editor,
                ready.lm,
                ready.edits,
                str(plan.mode),
                plan.batch_size,
                ready.at,
                lambda done, total: self.options.report("edit", done, total),
                begun,
                self.state.keep,
            )
            while not (plan.stop_on_collapse and self.writer.record.collapse):
                with self.clock.phase("edit"):
                    stop = next(steps, None)
                if stop is None:
                    break
                self.state.now()
                self._describe(stop)
                self._measure(model, stop)
        with self.clock.phase("check"):
            self._restored()

    def _measure(self, model: EditedLM, stop: schedule.Stop | None) -> None:
        """Score every task at one stop; each reported name is saved as soon as it is complete."""
        ready, count = self.ready, stop.edits if stop else 0
        state = "unedited" if stop is None else f"after {count} edits"
        measured: dict[str, Measured] = {}
        made = {edit.id for edit in ready.edits[:count]} if stop else None
        with self.clock.phase(f"measure {state}"):
            with measure.hold(model, stop, [e.id for e in ready.edits], str(ready.plan.mode)):
                for name in ready.suite.shown:
                    if stop is not None and name in self.writer.record.tasks(count):
                        continue  # an earlier run that was stopped came this far
                    members = [t for t in ready.suite.tasks if t.shown == name]
                    for task in members:
                        model.progress = lambda done, total, n=task.name: self.options.report(
                            f"{n}, {state}", done, total
                        )
                        measured[task.name] = self._score(model, task, stop, made)
                    table = measure.summary(members, measured, self.base if stop else None, ready.plan.seed)
                    values = measure.contributions(members, measured)
                    if stop is None:
                        self.base |= {t.name: measured[t.name] for t in members}
                    elif stop.latest.start and self._examined(name):
                        self._latest(name, members, measured, stop)
                    self.writer.measured(count, name, table, values)
                    cut = sum(measured[task.name].truncated for task in members)
                    if cut:
                        earlier = self.writer.record.point(count).get("truncated", {})
                        self.writer.noted(count, truncated={**earlier, name: cut})
            if self.texts is not None:
                self._read_neutral(self.texts, stop)

    def _latest(
        self, name: str, members: Sequence[tasks.Task], measured: dict[str, Measured], stop: schedule.Stop
    ) -> None:
        """The numbers of the edits of the last operation alone, beside those of all edits so far."""
        mine = {self.ready.edits[i].id for i in stop.latest}
        part = {
            task.name: replace(
                measured[task.name],
                values={
                    metric: {document: ratio for document, ratio in values.items() if ratio.cluster in mine}
                    for metric, values in measured[task.name].values.items()
                },
            )
            for task in members
        }
        if any(values for one in part.values() for values in one.values.values()):
            table = measure.summary(members, part, None, self.ready.plan.seed)
            self.writer.noted(stop.edits, latest={name: table})

    def _read_neutral(self, texts: neutral_text.Texts, stop: schedule.Stop | None) -> None:
        """Perplexity, divergence and the tripwires on text that no edit is about."""
        lm, count = self.ready.lm, stop.edits if stop else 0
        patch = stop.patches[0] if stop else Patch()
        if stop is None and self.options.cache:
            found = neutral_text.unedited(lm, texts, (self._fingerprint, str(lm.device)))
        else:
            with patched(lm, patch):
                found = neutral_text.read(lm, texts, self.reading, patch.prompt)
        before = self.reading.values if self.reading and stop else None
        self.reading = self.reading or found
        table = numbers.summarise(
            found.values, before, {"nll": False, "kl": False}, seed=0, plain={"repetition": found.repetition}
        )
        self.writer.measured(count, neutral_text.NAME, table, found.values)
        if stop is None:
            return
        for name in collapse.fired(self.reading, found, self.writer.record.delta):
            self.writer.record.collapse.setdefault(name, count)
        self.writer.save()

    def _score(self, model: EditedLM, task: tasks.Task, stop: schedule.Stop | None, made: set[str] | None) -> Measured:
        """One task at one stop; of the edit set, the documents of the edits made so far."""
        examined = self._examined(task.shown)
        limit = None if examined else self.ready.plan.limit
        if stop is not None:
            chosen = measure.of_cases(task, made) if examined and made is not None else None
            found = measure.measure_task(model, task, limit, chosen)
            found.values = {metric: {} for metric in self.base[task.name].values} | found.values
            measure.agree(task, found, self.base[task.name])
            return found
        source = self.writer.record.data.get(task.shown)
        device = str(self.ready.lm.device)
        key = measure.base_key(self._fingerprint, task, limit, self.options.rows, source, device)
        cached = measure.load_base(key) if self.options.cache else None
        if cached is None:
            cached = measure.measure_task(model, task, limit)
            measure.save_base(key, cached)
        return cached

    @cached_property
    def _fingerprint(self) -> str:
        return measure.fingerprint(self.ready.lm, self.writer.record.model["sha256"])

    def _examined(self, shown: str) -> bool:
        """Whether a reported name is that of the edit set."""
        return shown in (self.ready.plan.edits, tasks.OWN)

    def _describe(self, stop: schedule.Stop) -> None:
        """Note which weights the stop changes, by how much, and their hashes with the change in place."""
        lm, kept = self.ready.lm, self.writer.record
        names = sorted({name for patch in stop.patches for name in patch.weights})
        _require_change(self.ready.editor, stop)
        kept.delta = weight_change.means([weight_change.describe(lm, patch) for patch in stop.patches])
        before = {**kept.weights.get("before", {}), **{name: self.hashes[name] for name in names}}
        kept.weights = {"before": before, "edited": {}, "restored": {}}
        if len(stop.patches) == 1:
            with patched(lm, stop.patches[0]):
                kept.weights["edited"] = lm.hashes(names)
            _require_written(self.ready.editor, stop.patches[0], kept.weights)
        self.writer.noted(stop.edits, weights=kept.delta)
        # Edits that were put back from a file stand in it already.
        if self.options.save_edits and len(stop.patches) == 1 and not self.ready.plan.patch:
            self._save_patch(stop)

    def _save_patch(self, stop: schedule.Stop) -> None:
        ready = self.ready
        about = {
            **{key: getattr(ready.plan, key) for key in ("edits", "split", "data_dir", "order", "seed", "mode")},
            "num_edits": stop.edits,
            "of": len(ready.edits),
            "ids": [edit.id for edit in ready.edits[: stop.edits]],
            "label": ready.editor.label(),
            "hyperparameters": ready.editor.hyperparameters(),
            "model": ready.plan.model,
            "dtype": ready.plan.dtype,
        }
        path = patch_path(self.options.output, self.writer.record, stop.edits)
        try:
            patch_file.save(stop.patches[0], ready.lm, path, compose(ready.plan.editor).method, about)
        except ModelError as error:
            log.warning("%s", error)

    def _restored(self) -> None:
        kept, now = self.writer.record, self.ready.lm.state_hashes()
        before = kept.weights.get("before", {})
        kept.weights = {**kept.weights, "before": before, "restored": {name: now[name] for name in before}}
        if now != self.hashes:
            named = ", ".join(name for name, digest in self.hashes.items() if now.get(name) != digest)
            raise RestoreError(f"{self.ready.lm.name}: {named} is not bitwise what it was; this run's numbers are void")


def _require_change(editor: Editor, stop: schedule.Stop) -> None:
    """A run whose edits changed nothing is a mistake, not a result."""
    if all(p.empty or (p.weights and not _moves(p)) for p in stop.patches):
        raise HarnessError(f"{editor.name}: the edits changed nothing; every target may already be what the model says")


def _require_written(editor: Editor, patch: Patch, weights: dict[str, dict[str, str]]) -> None:
    """A change that is lost in the rounding of the weights' own type is none."""
    if patch.only_weights and all(digest == weights["before"][name] for name, digest in weights["edited"].items()):
        raise HarnessError(f"{editor.name}: the edits are too small for the weights' type; use --dtype float32")


def _moves(patch: Patch) -> bool:
    return not patch.only_weights or any(bool((delta.dense() != 0).any()) for delta in patch.weights.values())


def patch_path(folder: Path, kept: Record, edits: int) -> Path:
    """Where the change after so many edits lies."""
    return folder / f"{record_name(kept)}.edits-{edits}.safetensors"


def _new_record(ready: Prepared, fingerprint: str) -> Record:
    plan, lm, editor = ready.plan, ready.lm, ready.editor
    values = plan.to_json()
    made = len(ready.edits) if max(ready.at) else 0
    said = {(edit.text, edit.continuation) for edit in ready.edits}
    return Record(
        id=record.identity(values),
        plan=values,
        model={
            "name": lm.name,
            "sha256": fingerprint,
            "parameters": sum(p.numel() for p in lm.model.parameters()),
            "dtype": plan.dtype,
            "architecture": type(lm.model).__name__,
            "device": lm.device.type,
        },
        editor={
            "name": editor.label(),
            "hyperparameters": editor.hyperparameters(),
            "notes": editor.notes(lm),
            "learned": learned_file.digest(editor.root),
            "sources": compose(plan.editor).sources,
        },
        edits={
            "dataset": Path(plan.edits).name if Path(plan.edits).is_file() else plan.edits,
            "count": made,
            "unique": len(said),
            "contradicting": len(said) - len({prompt for prompt, _ in said}),
            "ids": [e.id for e in ready.edits],
            "sha256": _named(ready.edits),
            "warnings": ready.warnings,
        },
        headlines=_headlines(ready.suite),
        derived=_derived(ready.suite),
        data=_provenance(ready),
        templates={t.name: t.template for t in ready.suite.tasks},
        versions=versions(),
        seed=plan.seed,
    )


def _named(edits: Sequence[Edit]) -> str:
    """The hash that names some edits in their order."""
    return record.identity({"edits": [_facts(edit) for edit in edits]})


def _facts(edit: Edit) -> dict[str, Any]:
    """What names an edit; a plain one has the name that it had before there were directions."""
    given = asdict(edit)
    return given if edit.direction != "likelihood" else {k: v for k, v in given.items() if k not in _DIRECTED}


def _headlines(suite: tasks.Suite) -> dict[str, str]:
    """The first member's headline stands for what is reported under one name."""
    found: dict[str, str] = {}
    for task in suite.tasks:
        if task.headline is not None:
            found.setdefault(task.shown, task.headline)
    return found


def _derived(suite: tasks.Suite) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    for task in suite.tasks:
        for score, rule in (task.metadata.get("derived") or {}).items():
            found.setdefault(task.shown, {})[score] = list(rule["harmonic"])
    return found


def _provenance(ready: Prepared) -> dict[str, Any]:
    plan = ready.plan
    known = data.find()
    found: dict[str, Any] = {}
    for name in ready.suite.shown:
        if name in known:
            split = plan.split if name == plan.edits else "test"
            found[name] = asdict(data.provenance(name, split, plan.data_dir))
        elif name == tasks.OWN:
            content = Path(plan.edits).read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            found[name] = asdict(data.Provenance("file", Path(plan.edits).name, digest, len(ready.edits), False))
    return found


class _Clock:
    """Seconds and peak memory of each phase."""

    def __init__(self, report: Callable[[str, int, int], None], device: str | None) -> None:
        self.cost: list[dict[str, Any]] = []
        self._report, self._accelerated = report, _accelerated(device)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase; phases of one name add up."""
        self._report(name, 0, 0)
        _reset_peak(self._accelerated)
        started = time.perf_counter()
        try:
            yield
        finally:
            self._add(name, time.perf_counter() - started, _peak_mib(self._accelerated))

    def take_over(self, rows: Sequence[dict[str, Any]]) -> None:
        """Count what an earlier run that was stopped has spent."""
        for row in rows:
            self._add(row["phase"], row["seconds"], row["peak_memory_mib"])

    def _add(self, name: str, seconds: float, peak: float) -> None:
        for row in self.cost:
            if row["phase"] == name:
                row["seconds"] = round(row["seconds"] + seconds, 3)
                row["peak_memory_mib"] = max(row["peak_memory_mib"], round(peak, 1))
                return
        self.cost.append({"phase": name, "seconds": round(seconds, 3), "peak_memory_mib": round(peak, 1)})


def _accelerated(device: str | None) -> bool:
    """Whether a run is on an accelerator that says how much of its memory is taken."""
    if not torch.accelerator.is_available() or (device or "").startswith("cpu"):
        return False
    try:
        torch.accelerator.max_memory_allocated()
    except RuntimeError:  # Apple's, in most versions of torch
        return False
    return True


def _reset_peak(accelerated: bool) -> None:
    if accelerated:
        torch.accelerator.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        # Linux forgets the high-water mark of resident memory; elsewhere the peak is that of the process so far.
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mib(accelerated: bool) -> float:
    """Peak memory: of the accelerator that the run is on, else resident memory of the process."""
    if accelerated:
        return float(torch.accelerator.max_memory_allocated() / 2**20)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
