"""Tune an editor for a model: layers that causal tracing proposes, then one setting at a time, on tuning rows alone.

The first trial is the editor as it is. Then one is made with the scale of what is written (``lam``) as small models
need it, the layers are tried, and each setting in turn is drawn anew from around the editor's own value, while all
others stay as in the best trial so far; so trials that differ in how a value is written share the value. A trial edits
all the rows and is measured on their probabilities and on neutral text:

    objective = (score + strength / 10) exp(-KL)

``score`` is the harmonic mean that the edit set names (Meng et al. 2022: efficacy, paraphrase, neighborhood);
``strength`` how much likelier the new answer is than the old one (``efficacy_magnitude``), which tells apart what has
one score; ``KL`` the divergence from the unedited model on text that no edit is about, in nats a token. A trial whose
record is in the folder is never run again.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.editing import schedule
from harness.editing.editor import Editor, Learned
from harness.editing.registry import compose
from harness.errors import DataError, HarnessError, ModelError, NumericalError, RestoreError, UsageError
from harness.exam import measure, neutral_text, tasks
from harness.exam.adapter import EditedLM
from harness.io import files
from harness.io.nobody import tell_nobody
from harness.io.schema import parsed
from harness.methods.locate_then_edit import LocateThenEdit
from harness.methods.value_cache import ValueCache, values_folder, values_from
from harness.models.dequantised import dequantised
from harness.models.guard import Guard
from harness.models.lm import LM, load
from harness.models.naming import model_key
from harness.models.placement import Where
from harness.patches.patch import patched
from harness.runs.crew.cells import ALONE, Cell, Crew, Ended
from harness.runs.crew.dispatch import standing_crew
from harness.runs.identity import differing, digest
from harness.runs.loaded import kept_model
from harness.runs.new_record import edits_sha256
from harness.runs.plan import Plan
from harness.runs.resolve import Resolved, resolve
from harness.runs.versions import versions
from harness.studies.causal.trace import TraceSettings, select_facts, trace_each
from harness.studies.sweeps.draws import draw_settings
from harness.studies.sweeps.tune_space import (
    LAYER_FIELDS,
    layer_choices,
    portion,
    rises,
    scale_field,
    searched,
    width_of,
)

__all__ = ["Budget", "TuneTrial", "Tuned", "require_apart", "score_of", "tune", "tuned_name"]

log = logging.getLogger(__name__)

Report = Callable[[str, int, int], None]

_SAMPLES = 3
"""Noises of tracing, which has to find the best layers alone and no exact effects."""
_STRENGTH = "efficacy_magnitude"
_FAR = 64
"""How far ahead trials are looked for that a crew can make."""
_HELD = 2
"""Of isolated edits, those under which neutral text is read."""


@dataclass(frozen=True)
class Budget:
    """How much is spent.

    Attributes:
        trials: configurations, the untuned editor counted.
        probes: documents of each kind for each edit.
        texts: neutral documents.
        traced: facts that are traced at most; 0 for none.
    """

    trials: int = 12
    probes: int = 3
    texts: int = 10
    traced: int = 10

    def __post_init__(self) -> None:
        for name in ("trials", "probes", "texts"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, expected at least 1")


@dataclass(frozen=True)
class TuneTrial:
    """A configuration and what it gave.

    Attributes:
        stage: what was being looked for: ``untuned``, ``layers``, or the name of a field.
        settings: hyperparameters.
        metrics: what was measured; empty where it failed.
        objective: what is maximised; None where it failed.
        seconds: how long it took.
        reason: why it failed.
    """

    stage: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, float] = field(default_factory=dict)
    objective: float | None = None
    seconds: float = 0.0
    reason: str | None = None


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        plan: the plan of the untuned editor on the tuning rows.
        budget: what was spent.
        unedited: the metrics of the unedited model.
        trials: all that was tried, in order.
        effects: the mean tracing effect of each layer; None where no fact could be traced.
        untraced: why none could.
        traced: how many facts were traced.
        sha256: of the tuning rows.
    """

    plan: Plan
    budget: Budget
    unedited: Mapping[str, float]
    trials: tuple[TuneTrial, ...]
    effects: tuple[float, ...] | None
    untraced: str | None
    traced: int
    sha256: str

    @property
    def best(self) -> TuneTrial:
        """The trial of the greatest objective, of equal ones the first.

        Raises:
            NumericalError: every trial failed.
        """
        able = [one for one in self.trials if one.objective is not None]
        if not able:
            raise NumericalError(f"{self.plan.editor}: every trial failed; the last: {self.trials[-1].reason}")
        return max(able, key=lambda one: one.objective or 0.0)


def tune(
    plan: Plan,
    folder: Path,
    *,
    budget: Budget,
    against: str | None,
    device: Where,
    report: Report,
    crew: Crew = ALONE,
) -> Tuned:
    """Tune an editor; what has a record in the folder is not tried again.

    Args:
        plan: the editor, the model and the tuning rows; its settings are held fixed.
        folder: the records of single trials.
        budget: how much is spent.
        against: the edit set or file whose test rows the tuning rows must not hold; None for the set that is tuned on,
            of a file of one's own for nothing.
        device: where the model goes.
        report: told what is done, how far it is, and how much there is.
        crew: who makes trials; by default this process. Those that will come if the best one stays the best are made
            ahead, side by side: what is found does not depend on the crew.

    Raises:
        UsageError: the tuning rows overlap the test rows, or the editor learns or edits nothing.
        HarnessError: something else cannot be used; what was finished stays.
    """
    _require_tunable(plan)
    resolved = resolve(plan)
    tested = against or (plan.edits if plan.edits in tasks.edit_sets() else None)
    if tested is not None:
        require_apart(resolved, tested)
    files.require_writable(folder)
    lm = load(plan.model, dtype=plan.dtype, device=device, names=plan.arch or None, text=resolved.text)
    if crew.here:
        return _Tuning(resolved, lm, folder, budget, report).all()
    with standing_crew(_tried, crew, crew.size) as carry_out:
        ahead = _Ahead(crew.size, device, carry_out)
        return _Tuning(resolved, lm, folder, budget, report, ahead).all()


@dataclass(frozen=True)
class _TrialJob:
    """A trial that is made, wherever that is.

    Attributes:
        plan: the untuned editor on the tuning rows.
        budget: how much is spent.
        device: where the model goes.
        stage: what is tried.
        settings: hyperparameters.
    """

    plan: Plan
    budget: Budget
    device: Where
    stage: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class _Ahead:
    """Who makes trials ahead.

    Attributes:
        size: how many at a time.
        device: where their models go.
        carry_out: makes them, and gives what became of each.
    """

    size: int
    device: Where
    carry_out: Callable[[Sequence[Cell[_TrialJob]]], Iterator[Ended[_TrialJob, TuneTrial]]]


def _tried(job: _TrialJob, report: Report) -> TuneTrial:
    """Make a trial, with what this process has at hand from the one before."""
    tuning = _bench().of(job)
    tuning.report = report
    return tuning.measured(job.stage, job.settings)


class _Bench:
    """The tuning that this process makes trials of."""

    def __init__(self) -> None:
        self._key: object = None
        self._tuning: _Tuning | None = None

    def of(self, job: _TrialJob) -> _Tuning:
        """The tuning of a trial."""
        key = (digest(differing(job.plan)), job.budget, job.device)
        if self._tuning is None or key != self._key:
            plan, resolved = job.plan, resolve(job.plan)
            lm = kept_model(plan.model, dtype=plan.dtype, device=job.device, names=plan.arch, text=resolved.text)
            self._tuning, self._key = _Tuning(resolved, lm, Path(), job.budget, tell_nobody), key
        return self._tuning


@lru_cache(maxsize=1)
def _bench() -> _Bench:
    """The one of this process."""
    return _Bench()


def _require_tunable(plan: Plan) -> None:
    """Refuse editors with nothing to be tuned.

    Raises:
        UsageError: it is one.
    """
    recipe = compose(plan.editor)
    if plan.editor == "none" or issubclass(recipe.cls, Learned):
        cure = "its own training fits it: `harness fit`" if plan.editor != "none" else "name an editor, such as memit"
        raise UsageError(f"{plan.editor} cannot be tuned; {cure}")


def require_apart(resolved: Resolved, against: str) -> None:
    """See that no tuning row is a test row.

    Args:
        resolved: the tuning rows.
        against: the edit set or file of the test rows.

    Raises:
        UsageError: one is.
    """
    plan = resolved.plan
    tested = {edit.text for edit in tasks.read_edits(against, data_dir=plan.data_dir, split="test")}
    both = [edit.id for edit in resolved.edits if edit.text in tested]
    if both:
        raise UsageError(
            f"{len(both)} of the {len(resolved.edits)} tuning rows of {plan.edits} ({plan.split}) are test rows of "
            f"{against} (the first is {both[0]}); tune on other rows, for example --split train"
        )


def score_of(values: Sequence[float]) -> float:
    """The harmonic mean; 0 where a value is."""
    return 0.0 if not values or min(values) <= 0 else len(values) / math.fsum(1 / value for value in values)


def tuned_name(plan: Plan) -> str:
    """What the files of a tuning are called."""
    return f"{model_key(plan.model)}--{plan.editor}"


@dataclass(eq=False)
class _Tuning:
    """Tuning under way."""

    resolved: Resolved
    lm: LM
    folder: Path
    budget: Budget
    report: Report
    ahead: _Ahead | None = None

    def __post_init__(self) -> None:
        self.guard = Guard.of(self.lm)
        self.model = EditedLM(self.lm, batch_size=32)
        self.plan = self.resolved.plan
        self.exam = _exam(self.resolved, self.lm, self.budget.probes)
        self.texts = neutral_text.texts(self.lm, self.budget.texts)
        self.reading = neutral_text.read_neutral_text(self.lm, self.texts, None, writes=False)
        self.trials: list[TuneTrial] = []
        self.untuned = self._editor({})
        with self._plain(self.untuned):
            pass  # an editor that writes no quantised matrix is told before anything is tried

    def all(self) -> Tuned:
        """Every trial, in order."""
        unedited = self.exam.look(self.model)
        fields, scale = self._fields(), scale_field(self.untuned)
        first = [scale] if scale in fields else []
        self._make_ahead([("untuned", {}), *((name, self._drawn(name, fields[name], 0)) for name in first)])
        self._try("untuned", {})
        effects, untraced, traced = self._trace()
        for name in first:
            self._try(name, self._drawn(name, fields[name], 0))
        best = self._so_far()
        placed = [("layers", {**best, **layers}) for layers in self._layers(effects)]
        self._make_ahead(placed)
        for stage, settings in placed:
            self._try(stage, settings)
        # More turns than trials, as a value that has been tried already is no trial.
        turns = [(name, visit) for visit in range(3 * self.budget.trials) for name in fields][len(first) :]
        for place, (name, visit) in enumerate(turns):
            self._make_ahead((one, self._drawn(one, fields[one], n)) for one, n in turns[place : place + _FAR])
            self._try(name, self._drawn(name, fields[name], visit))
        sha256 = edits_sha256(self.resolved.edits)
        return Tuned(self.plan, self.budget, unedited, tuple(self.trials), effects, untraced, traced, sha256)

    def _drawn(self, name: str, distribution: Mapping[str, Any], visit: int) -> dict[str, Any]:
        """Another value of one field; all others as in the best trial so far."""
        best = self._so_far()
        now, rising = best.get(name, getattr(self.untuned, name)), name == "lr" and rises(self.untuned)
        part = portion(distribution, visit, now=now, rising=rising)
        drawn = draw_settings({name: part}, f"{self.plan.seed} {name} {visit}", self.lm.arch.layers, where=name)
        return {**best, **{key: _short(value) for key, value in drawn.items()}}

    def _so_far(self) -> Mapping[str, Any]:
        """The settings of the best trial so far."""
        able = [one for one in self.trials if one.objective is not None]
        return max(able, key=lambda one: one.objective or 0.0).settings if able else {}

    def _fields(self) -> dict[str, dict[str, Any]]:
        return {name: where for name, where in searched(self.untuned).items() if name not in self.plan.settings}

    # --- layers -------------------------------------------------------------------------------------------------------

    def _trace(self) -> tuple[tuple[float, ...] | None, str | None, int]:
        """The mean effect of each layer on the facts that the model knows, or why there is none; and their number."""
        if self._layer_field() is None or not self.budget.traced:
            return None, "it was not asked for" if self._layer_field() else "the layers of this editor are fixed", 0
        settings = TraceSettings(window=max(1, min(5, self.lm.arch.layers // 2)), samples=_SAMPLES)
        try:
            chosen = select_facts(
                self.lm, self.resolved.edits, settings,
                progress=lambda done, total: self.report("which facts the model knows", done, total),
            )  # fmt: skip
            chosen = replace(chosen, asked=chosen.asked[: self.budget.traced])
            known = trace_each(
                self.lm, chosen, settings,
                progress=lambda done, total: self.report("trace known facts", done, total),
            )  # fmt: skip
            found = list(known)
        except (DataError, ModelError, UsageError) as error:
            return None, str(error), 0
        rows = [one.layer_effect() for one in found]
        rows = [row for row in rows if bool(row.isfinite().all())]
        if not rows:
            return None, "the model knows none of the facts", 0
        return tuple(float(sum(row[i] for row in rows) / len(rows)) for i in range(len(rows[0]))), None, len(rows)

    def _layer_field(self) -> str | None:
        """The field that says where the editor edits; None where it has none, or the user has fixed it."""
        names = [name for name in LAYER_FIELDS if hasattr(self.untuned, name)]
        return None if not names or names[0] in self.plan.settings else names[0]

    def _layers(self, effects: Sequence[float] | None) -> list[dict[str, Any]]:
        """The layers that are tried; half of the budget at most."""
        name = self._layer_field()
        if name is None:
            return []
        own = self.untuned.edited_layers(self.lm) if isinstance(self.untuned, LocateThenEdit) else None
        width = 1 if name == "layer" else width_of(self.untuned, own)
        choices = [one for one in layer_choices(effects, width, self.lm.arch.layers) if one != own]
        values = [one[len(one) // 2] if name == "layer" else list(one) for one in choices]
        room = max(0, min(self.budget.trials - 1, self.budget.trials // 2))
        return [{name: value} for value in {str(value): value for value in values}.values()][:room]

    # --- one trial ----------------------------------------------------------------------------------------------------

    def _editor(self, settings: Mapping[str, Any]) -> Editor:
        chosen = {**settings, **self.plan.settings}
        return self.resolved.recipe.build(self.lm, chosen, seed=self.plan.seed).root

    def _try(self, stage: str, settings: Mapping[str, Any]) -> None:
        """Carry out one trial, or read what it gave; nothing where it has been made, or the budget is spent."""
        if len(self.trials) >= self.budget.trials or any(one.settings == settings for one in self.trials):
            return
        self.report(f"trial {len(self.trials) + 1} of {self.budget.trials}: {stage}", 0, 0)
        done = _read(self._path(settings), stage)
        if done is None:
            done = self.measured(stage, settings)
            self._write(settings, done)
        self.trials.append(done)
        if len(self.trials) == 1:
            left = self.budget.trials - 1
            self.report(f"{done.seconds:.0f} s; the other {left} trials take about {left * done.seconds:.0f} s", 0, 0)

    def _path(self, settings: Mapping[str, Any]) -> Path:
        """Where the record of a trial lies."""
        key = digest({**differing(replace(self.plan, settings={**settings, **self.plan.settings})), **self._identity()})
        return self.folder / f"{tuned_name(self.plan)}--{key}.json"

    def _make_ahead(self, coming: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Let a crew make the trials that come next, if the first of them is not there; as many as it has workers.

        Raises:
            HarnessError: the first one, which is needed in any case, failed; the others are made.
        """
        if self.ahead is None or len(self.trials) >= self.budget.trials:
            return
        new: list[tuple[str, Mapping[str, Any]]] = []
        for stage, settings in coming:
            if not any(settings == other for other in [one.settings for one in self.trials] + [one for _, one in new]):
                new.append((stage, settings))
        wanted = [one for one in new[: self.budget.trials - len(self.trials)] if not self._path(one[1]).is_file()]
        if not wanted or wanted[0] is not new[0]:
            return
        jobs = [_TrialJob(self.plan, self.budget, self.ahead.device, *one) for one in wanted[: self.ahead.size]]
        cells = [Cell(self._path(job.settings).name, job, f"{job.stage} {job.settings}") for job in jobs]
        failed: HarnessError | None = None
        for one in self.ahead.carry_out(cells):
            if one.done is not None:
                self._write(one.cell.job.settings, one.done)
            elif one.cell is cells[0]:
                failed = one.error
            else:
                log.warning("%s: %s", one.cell.shown, one.error)
        if failed is not None:
            raise failed

    def _write(self, settings: Mapping[str, Any], made: TuneTrial) -> None:
        files.write_whole(self._path(settings), (files.json_text(_row(made)) + "\n").encode())

    def _identity(self) -> dict[str, Any]:
        """What a trial depends on besides its plan."""
        return {
            "budget": [self.budget.probes, self.budget.texts],
            "weights": self._weights,
            "rows": edits_sha256(self.resolved.edits),
            "text": self.texts.sha256,
            "sources": self.resolved.recipe.sources,
            "versions": versions(),
        }

    @property
    def _weights(self) -> str:
        return digest(dict(self.guard.state))

    def measured(self, stage: str, settings: Mapping[str, Any]) -> TuneTrial:
        """Edit, and look at what came out."""
        started = time.perf_counter()
        try:
            editor = self._build(settings)
            with self._plain(editor.root):
                metrics = self._looked_at(editor)
        except RestoreError:
            raise
        except HarnessError as error:  # settings with which the method cannot edit this model are an answer too
            return TuneTrial(stage, settings, seconds=time.perf_counter() - started, reason=str(error))
        finally:
            self.guard.require("this tuning is void", before=f" before {self.plan.editor} edited")
        objective = (metrics["score"] + metrics.get("strength", 0.0) / 10) * math.exp(-metrics["kl"])
        if not math.isfinite(objective):
            return TuneTrial(stage, settings, metrics, None, time.perf_counter() - started, "a number is not finite")
        return TuneTrial(stage, settings, metrics, objective, time.perf_counter() - started)

    def _build(self, settings: Mapping[str, Any]) -> Editor:
        return self.resolved.recipe.build(self.lm, {**settings, **self.plan.settings}, seed=self.plan.seed)

    def _plain(self, editor: Editor) -> AbstractContextManager[object]:
        """The model of a trial: quantised matrices that the editor writes are plain numbers, if that is asked for."""
        if not self.plan.dequantise_edited:
            return nullcontext()
        return dequantised(self.lm, editor.edited_modules(self.lm), self.plan.editor)

    def _looked_at(self, editor: Editor) -> dict[str, float]:
        edits, cases, mode = self.resolved.edits, self.resolved.cases, self.resolved.mode
        with values_from(ValueCache(values_folder())):
            (stop,) = schedule.walk(
                editor, self.lm, edits, mode=mode, batch_size=self.plan.edit_batch_size, at=(len(cases),),
                progress=lambda done, total: self.report("edit", done, total),
            )  # fmt: skip
        with measure.hold(self.model, stop, ids=cases, mode=mode, own=[self.exam.task.name]):
            found = self.exam.look(self.model)
        found["kl"] = self._divergence(stop)
        return found

    def _divergence(self, stop: schedule.Stop) -> float:
        """The mean divergence from the unedited model, of a token of the neutral texts."""
        sums = [0.0, 0.0]
        for patch in stop.patches[:_HELD]:
            with patched(self.lm, patch):
                read = neutral_text.read_neutral_text(
                    self.lm, self.texts, self.reading, prompt=patch.prompt, writes=False
                )
            sums[0] += math.fsum(ratio.num for ratio in read.values["kl"].values())
            sums[1] += math.fsum(ratio.den for ratio in read.values["kl"].values())
        return max(0.0, sums[0] / sums[1]) if sums[1] else 0.0


@dataclass(frozen=True, eq=False)
class _Exam:
    """The probes of the tuning rows.

    Attributes:
        task: the set's task of probabilities.
        documents: which of its documents are asked.
        parts: the metrics whose harmonic mean is the score.
    """

    task: tasks.Task
    documents: tuple[int, ...]
    parts: tuple[str, ...]

    def look(self, model: EditedLM) -> dict[str, float]:
        """The parts of the score and the score, with whatever the model holds."""
        values = measure.measure_task(model, self.task, limit=None, documents=self.documents).values
        means = {}
        for name in (*self.parts, _STRENGTH):
            weight = math.fsum(ratio.den for ratio in values.get(name, {}).values())
            if weight:
                means[name] = math.fsum(ratio.num for ratio in values[name].values()) / weight
        strength = {"strength": means.pop(_STRENGTH)} if _STRENGTH in means else {}
        return {**means, "score": score_of(list(means.values())), **strength}


def _exam(resolved: Resolved, lm: LM, probes: int) -> _Exam:
    """The documents that are asked: of each edit and kind the first few."""
    plan, name = resolved.plan, str(resolved.edit_set)
    suite = tasks.load_suite(
        [], edit_set=name, records=resolved.ids_in_order_of_rows(), data_dir=plan.data_dir, tokenizer=lm.tokenizer,
        own_file=plan.edits if name == tasks.OWN else None, split=plan.split, exam=("probability",),
    )  # fmt: skip
    (task,) = suite.tasks
    seen: dict[tuple[str, str], int] = {}
    chosen: list[int] = []
    for i, row in enumerate(task.task.eval_docs):
        key = (str(row["case"]), str(row["kind"]))
        seen[key] = seen.get(key, 0) + 1
        if key[1] != "attribute" and seen[key] <= probes:
            chosen.append(i)
    known = set(task.task.aggregation())
    named = (task.metadata.get("derived") or {}).get("score", {}).get("harmonic")
    return _Exam(task, tuple(chosen), tuple(named or _parts(known)))


def _parts(known: set[str]) -> list[str]:
    """The parts of the score of a set that names none: one number for each kind of probe."""
    kinds = (("efficacy", "efficacy_accuracy"), ("paraphrase", "paraphrase_accuracy"), ("locality_accuracy",))
    return [next(name for name in names if name in known) for names in kinds if known & set(names)]


def _short(value: object) -> object:
    """A number as it will be written into a preset: three digits."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _row(trial: TuneTrial) -> dict[str, Any]:
    return {
        "settings": dict(trial.settings),
        "metrics": dict(trial.metrics),
        "objective": trial.objective,
        "seconds": round(trial.seconds, 2),
        "reason": trial.reason,
    }


def _read(path: Path, stage: str) -> TuneTrial | None:
    """A trial whose record is there; None where there is none.

    Raises:
        DataError: the record is damaged.
    """
    if not path.is_file():
        return None
    try:
        return TuneTrial(stage, **parsed(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: a damaged record ({str(error)[:80]}); remove it, and it is made again") from error
