"""What a plan will take, told before it is carried out: counted from the plan, timed on a small part of it.

Documents and tokens are counted from the very requests that the run will make. Seconds and memory come from two
rehearsals, each on one item, then on more, until a second has gone by: some documents of each task are asked, and some
of the edits are made. What the rest takes is read off the line through the last two of these times.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from harness.editing import schedule
from harness.editing.editor import Editor
from harness.editing.schedule import Stop
from harness.exam import measure, neutral_text, tasks
from harness.exam.adapter import EditedLM
from harness.exam.asked import Asked, asked_by_document, asked_in_all
from harness.io.cache import cache_apart, cache_folder
from harness.methods import second_moments
from harness.models.lm import shipped
from harness.patches.patch import Part, Patch
from harness.runs.clock import Clock
from harness.runs.measuring import neutral_texts
from harness.runs.new_record import new_record
from harness.runs.options import RunOptions
from harness.runs.prepare import VOID, Prepared, prepare_run
from harness.runs.resolve import Resolved
from harness.runs.threads import one_thread_if_small

__all__ = ["CostEstimate", "Phase", "at_hand", "estimate_run"]

_ENOUGH = 1.0  # seconds of a rehearsal that tell how long the rest takes
_ALONE = 10.0  # seconds of the first one that do
_MORE = 4  # how many times as many items the next rehearsal has


@dataclass(frozen=True)
class Phase:
    """What a phase of a run will take.

    Attributes:
        name: as the record calls it.
        seconds: of wall clock.
        peak_memory_mib: of the process, or of the accelerator.
        asked: what is asked of the model; nothing where the phase asks nothing.
        parts: the same of each task, by lm-eval's name, in a phase that measures.
    """

    name: str
    seconds: float
    peak_memory_mib: float
    asked: Asked = field(default_factory=Asked)
    parts: tuple[Phase, ...] = ()


@dataclass(frozen=True)
class CostEstimate:
    """What a plan will take.

    Attributes:
        phases: in their order, named as in the record.
        edits: how many edits are made, each counted as often as it is made.
        patch_bytes: what the changes of the last stop hold.
        statistics_bytes: second moments that are to be made first, and kept.
    """

    phases: tuple[Phase, ...]
    edits: int
    patch_bytes: int
    statistics_bytes: int


def at_hand(resolved: Resolved) -> bool:
    """Whether the model of a plan is on this machine, so that it can be tried without a download."""
    name = resolved.plan.model
    if resolved.lm is not None or name in shipped() or Path(name).expanduser().is_dir():
        return True
    return "/" in name and isinstance(try_to_load_from_cache(name, "config.json"), str)


def estimate_run(resolved: Resolved, options: RunOptions) -> CostEstimate:
    """Load the model of a plan, try a little of the work, and tell what all of it will take; nothing is kept.

    Args:
        resolved: the plan, and what it names.
        options: how it would be carried out.

    Raises:
        HarnessError: the plan cannot be carried out.
        RestoreError: the model is not bitwise what it was.
    """
    with ExitStack() as held:
        return _estimated(resolved, options, held)


def _estimated(resolved: Resolved, options: RunOptions, held: ExitStack) -> CostEstimate:
    clock = Clock(options.report, options.device)
    cache_folder()  # an address that cannot be used is told before a model is loaded
    held.enter_context(cache_apart())  # what the model knows is asked for as a run asks, and kept by a run alone
    with clock.phase("load"):
        ready = prepare_run(resolved, options.placement, options.report, held=held, cache=options.cache)
    with one_thread_if_small(ready.lm):
        trial = _Trial(ready, options)
        unedited = trial.unedited()
        edited = trial.edited() if ready.resolved.edits_any else []
        spent = trial.timed("check", lambda: ready.guard.require(VOID))
    load = Phase("load", clock.cost[0]["seconds"], clock.cost[0]["peak_memory_mib"])
    phases = (load, unedited, *edited, Phase("check", spent.seconds, spent.peak))
    return CostEstimate(phases, trial.edits, trial.patch_bytes, trial.statistics_bytes)


# --- times and the lines through them ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Spent:
    """What some of the work took: its size, and its price."""

    size: float
    seconds: float
    peak: float


@dataclass(frozen=True)
class _Line:
    """What work of any size takes, by the last two of several trials, each larger than the one before."""

    trials: tuple[_Spent, ...]

    def seconds(self, size: float) -> float:
        """Of work of a size."""
        last = self.trials[-1]
        return max(0.0, last.seconds + self._slope(lambda spent: spent.seconds) * (size - last.size))

    def _slope(self, of: Callable[[_Spent], float]) -> float:
        last = self.trials[-1]
        for before, after in list(pairwise(self.trials))[-1:]:
            if after.size > before.size and of(after) > of(before):
                return (of(after) - of(before)) / (after.size - before.size)
        return of(last) / max(last.size, 1.0)

    @property
    def peak(self) -> float:
        """The most memory of any trial, in MiB."""
        return max(spent.peak for spent in self.trials)


@contextmanager
def _quiet(model: EditedLM) -> Iterator[None]:
    """Cut requests of a rehearsal are not counted."""
    cut = model.truncated
    try:
        yield
    finally:
        model.truncated = cut


# --- the rehearsals ---------------------------------------------------------------------------------------------------


class _Trial:
    """Rehearses the work of one plan."""

    def __init__(self, ready: Prepared, options: RunOptions) -> None:
        self.ready, self.options = ready, options
        self.edits = self.patch_bytes = self.statistics_bytes = 0
        self._record = new_record(ready, ready.lm.fingerprint())
        self._texts = neutral_texts(ready, self._record)
        plan = ready.resolved.plan
        self._model = EditedLM(ready.lm, batch_size=options.rows, prompting=plan.prompting)
        self._own = [task.name for task in ready.suite.of(ready.resolved.edit_set)]
        self._asked = {
            task.name: asked_by_document(task, self._model, None if task.name in self._own else plan.limit)
            for task in ready.suite.tasks
        }

    def timed(self, name: str, work: Callable[[], object], size: float = 1.0) -> _Spent:
        """What some work takes.

        Args:
            name: of the work.
            work: is done once.
            size: how large it is.
        """
        clock = Clock(self.options.report, self.options.device)
        with clock.phase(f"estimate: {name}"):
            work()
        return _Spent(size, clock.cost[0]["seconds"], clock.cost[0]["peak_memory_mib"])

    def _line(self, name: str, work: Callable[[int], object], size: Callable[[int], float], count: int) -> _Line:
        """The price of work on one item, on more, and so on, until a second has gone by or none is left."""
        found: list[_Spent] = []
        items = 1
        while True:
            items = min(items, count)
            found.append(self.timed(name, lambda items=items: work(items), size(items)))  # type: ignore[misc]
            enough = _ENOUGH if len(found) > 1 else _ALONE  # one time alone holds what is done once
            if items == count or found[-1].seconds >= enough:
                return _Line(tuple(found))
            items *= _MORE

    def unedited(self) -> Phase:
        """What it takes to measure the unedited model; what an earlier run has kept takes nothing."""
        self._warm_up()
        lines = {task.name: self._task_line(task, None, ()) for task in self.ready.suite.tasks}
        return self._measured("measure unedited", lines, None, cached=self.options.cache)

    def edited(self) -> list[Phase]:
        """What it takes to edit, and to measure at each stop."""
        missing = self._stand_in()
        resolved = self.ready.resolved
        stops = [count for count in resolved.stops if count]
        made: list[Stop] = []
        line = self._line("edit", lambda k: made.append(self._make(k)), float, self._portions(max(stops)))
        sequential = resolved.mode == "sequential"
        counts = [max(stops)] if sequential else stops
        self.edits = sum(counts)
        size = resolved.plan.edit_batch_size or 1
        seconds = sum(line.seconds(count / size if sequential else count) for count in counts)
        self._note_patches(made, max(stops))
        phases = [Phase("edit", seconds + missing.seconds, max(line.peak, missing.peak))]
        stop = made[-1]
        lines = {task.name: self._task_line(task, stop, resolved.made(stop.edits)) for task in self.ready.suite.tasks}
        return phases + [self._measured(f"measure after {count} edits", lines, count) for count in stops]

    # --- documents

    def _warm_up(self) -> None:
        """What is done for the first time takes longer than it will."""
        with _quiet(self._model):
            for task in self.ready.suite.tasks[:1]:
                measure.measure_task(self._model, task, limit=None, documents=list(self._asked[task.name])[:1])

    def _task_line(self, task: tasks.Task, stop: Stop | None, cases: Sequence[str]) -> _Line:
        """The price of the documents of a task, by their tokens; of the edit set's those of edits that were made."""
        asked = self._asked[task.name]
        places = self._documents(task, cases) if stop else list(asked)
        order = random.Random(0).sample(places, len(places))

        def ask(count: int) -> None:
            resolved = self.ready.resolved
            at_once = resolved.plan.cases_at_once
            held = measure.hold(self._model, stop, ids=cases, mode=resolved.mode, own=self._own, at_once=at_once)
            with _quiet(self._model), held:
                measure.measure_task(self._model, task, limit=None, documents=sorted(order[:count]))

        return self._line(
            task.name, ask, lambda count: asked_in_all(asked[i] for i in order[:count]).tokens, len(order)
        )

    def _documents(self, task: tasks.Task, cases: Sequence[str]) -> list[int]:
        """The documents of a task that are asked when some cases were made."""
        asked = self._asked[task.name]
        places = measure.of_cases(task, set(cases)) if task.name in self._own else None
        return list(asked) if places is None else [place for place in places if place in asked]

    def _measured(self, name: str, lines: dict[str, _Line], count: int | None, cached: bool = False) -> Phase:
        """A phase that asks every task, and reads the neutral texts."""
        cases = self.ready.resolved.made(count or 0)
        parts = []
        for task in self.ready.suite.tasks:
            places = list(self._asked[task.name]) if count is None else self._documents(task, cases)
            asked, line = asked_in_all(self._asked[task.name][place] for place in places), lines[task.name]
            taken = cached and self._known(task)
            spent = (0.0, 0.0) if taken else (line.seconds(asked.tokens), line.peak)
            parts.append(Phase(task.name, *spent, asked))
        read = self._neutral
        seconds = sum(part.seconds for part in parts) + read.seconds
        peak = max(read.peak, *(part.peak_memory_mib for part in parts), 0.0)
        return Phase(name, seconds, peak, asked_in_all(part.asked for part in parts), tuple(parts))

    def _known(self, task: tasks.Task) -> bool:
        """Whether an earlier run has kept what the unedited model makes of a task."""
        limit = None if task.name in self._own else self.ready.resolved.plan.limit
        fingerprint = measure.fingerprint(self.ready.lm, self._record.model["sha256"])
        source, device = self._record.data.get(task.shown), self.ready.lm.device
        key = measure.base_key(
            fingerprint, task, limit=limit, batch_size=self.options.rows, provenance=source, device=device,
            asked=self._model.asked,
        )  # fmt: skip
        return measure.load_base(key) is not None

    @cached_property
    def _neutral(self) -> _Spent:
        """What it takes to read the neutral texts."""
        texts, lm = self._texts, self.ready.lm
        if texts is None:
            return _Spent(0, 0.0, 0.0)

        def read(count: int) -> None:
            some = replace(texts, documents=texts.documents[:count], rows=texts.rows[:count])
            neutral_text.read_neutral_text(lm, some, None)

        line = self._line("neutral text", read, lambda k: sum(map(len, texts.rows[:k])), len(texts.rows))
        return _Spent(1, line.seconds(sum(map(len, texts.rows))), line.peak)

    # --- edits

    def _portions(self, count: int) -> int:
        """How many operations, or edits of one operation, a rehearsal can have."""
        resolved = self.ready.resolved
        if resolved.mode == "sequential":
            return len(schedule.operations(count, "sequential", resolved.plan.edit_batch_size))
        return count

    def _make(self, portions: int) -> Stop:
        """Make the first edits."""
        resolved = self.ready.resolved
        sequential = resolved.mode == "sequential"
        count = min(portions * (resolved.plan.edit_batch_size or 1) if sequential else portions, len(resolved.cases))
        walk = schedule.walk(
            self.ready.editor,
            self.ready.lm,
            [edit for case in schedule.cases_of(resolved.edits)[:count] for edit in case],
            mode=resolved.mode,
            batch_size=resolved.plan.edit_batch_size,
            at=[count],
            at_once=resolved.plan.cases_at_once,
        )
        return next(iter(walk))

    def _note_patches(self, made: Sequence[Stop], count: int) -> None:
        """The bytes of the changes at the last stop: of isolated edits as many as there are edits."""
        stop = made[-1]
        held = [sum(map(_bytes, one.patches)) for one in made]
        if stop.edits == count or len(made) == 1 or held[-1] == held[-2]:
            isolated = self.ready.resolved.mode == "isolated"
            self.patch_bytes = round(held[-1] * (count / stop.edits if isolated else 1))
            return
        slope = (held[-1] - held[-2]) / (made[-1].edits - made[-2].edits)
        self.patch_bytes = round(held[-1] + slope * (count - stop.edits))

    def _stand_in(self) -> _Spent:
        """What it takes to make the second moments that are missing; in the rehearsal small ones stand in for them."""
        lm, root = self.ready.lm, self.ready.editor.root
        layers, tokens = _moments_of(root, self.ready)
        missing = second_moments.missing_moments(lm, layers, tokens=tokens)
        if not missing:
            return _Spent(0, 0.0, 0.0)
        found: list[dict[int, second_moments.Moment]] = []
        texts = list(second_moments.first_documents(lm, tokens))
        sizes = [len(lm.encode(text)) for text in texts]

        def gather(count: int) -> None:
            found.append(second_moments.accumulate_moments(lm, missing, texts[:count], progress=_nothing))

        line = self._line("second moments", gather, lambda k: sum(sizes[:k]), len(texts))
        second_moments.keep_stand_ins(lm, found[-1], tokens=tokens)
        self.statistics_bytes = sum(
            moment.matrix.numel() * second_moments.moment_bytes(lm) for moment in found[-1].values()
        )
        return _Spent(1, line.seconds(min(tokens, sum(sizes))), line.peak)


def _moments_of(root: Editor, ready: Prepared) -> tuple[Sequence[int], int]:
    """The layers of which an editor needs second moments, and over how many tokens; none where it needs none."""
    tokens, layers = getattr(root, "cov_tokens", None), getattr(root, "layers", None)
    if tokens is None or not layers or not getattr(root, "covariance", True) or ready.resolved.plan.patch:
        return (), 0
    return list(layers), int(tokens)


def _nothing(_done: int, _total: int) -> None:
    """Show no bar."""


def _bytes(patch: Patch) -> int:
    """What a patch holds, as far as it could be saved."""
    rules: list[object] = [*patch.hooks.values(), patch.prompt, patch.logits]
    held = [tensor for delta in patch.weights.values() for tensor in delta.tensors().values()]
    held += [tensor for rule in rules if isinstance(rule, Part) for tensor in rule.tensors().values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)
