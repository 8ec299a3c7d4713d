"""A study of durability: edits, what the model then goes through, and which answers are left.

``<name>.json`` holds the plan, the numbers before and after each treatment, the share that survives, and half-lives;
``<name>.values.json.xz`` what each document contributed.  Both are written after each treatment; a study that was
stopped goes on with those that are not done.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.editing.made import finished_patch
from harness.editing.schedule import cases_of, default_mode, increment, operations, plain_mode
from harness.errors import HarnessError, RestoreError, UsageError
from harness.exam import measure, survival
from harness.exam.adapter import EditedLM
from harness.exam.measure import Measured
from harness.exam.numbers import interval_of
from harness.exam.prompting import Prompting
from harness.exam.statistics import Ratio, Values, as_ratio
from harness.exam.tasks import Task
from harness.io.files import json_text, pack_json, require_writable, unpack_json, values_path, write_whole
from harness.io.nobody import tell_nobody
from harness.models.lm import LM
from harness.patches.patch import Patch
from harness.reports.cells import brackets, number
from harness.reports.table import MISSING
from harness.runs.identity import record_id
from harness.runs.new_record import edits_sha256
from harness.runs.plan import Plan
from harness.runs.prepare import VOID, Prepared, prepare_run
from harness.runs.resolve import resolve
from harness.runs.threads import one_thread_if_small
from harness.runs.versions import versions
from harness.studies.durability.treatments import (
    TrainingSettings,
    Treatment,
    quantised,
    read_treatments,
    reloaded,
    trained_on_text,
)

__all__ = ["SCHEMA", "DurabilityPlan", "durability_name", "durability_table", "run_durability"]

SCHEMA = 1
_UNEDITED = "unedited"
_SHOWN = ("efficacy", "paraphrase", "neighborhood", "generation_exact_match", "paraphrase_exact_match")
"""What a table shows of a set that has these; of others the headline and what their YAML names."""

Json = dict[str, Any]
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DurabilityPlan:
    """Everything that the numbers of a study depend on.

    Attributes:
        after: what the edited model goes through, each on its own (:func:`read_treatments`).
        model: a shipped model, a folder, or a Hub repository.
        editor: the method, or several joined by ``+``.
        settings: hyperparameters that differ from the preset.
        edits: an edit set, or a file of one's own rows.
        num_edits: how many of its rows are followed, from the first; further edits are the rows behind them.
        split: the split of the edit set.
        mode: ``batch`` or ``sequential``; None for the editor's own.
        edit_batch_size: edits of one sequential operation.
        exam: the parts of the edit set's exam that are asked; none for all.
        data_dir: where the rows come from: ``mini``, a folder, or ``hub``.
        text: plain text for second moments, and what is trained on.
        lr: the learning rate of fine-tuning.
        seed: of everything random.
        dtype: of the model.
        arch: parts of the architecture named by hand.
        fitted: the file of what the editor has learned.
    """

    after: tuple[str, ...]
    model: str = "mini"
    editor: str = "memit"
    settings: Mapping[str, Any] = field(default_factory=dict)
    edits: str = "counterfact"
    num_edits: int | None = None
    split: str = "test"
    mode: str | None = None
    edit_batch_size: int | None = None
    exam: tuple[str, ...] = ()
    data_dir: str = "mini"
    text: str | None = None
    lr: float = TrainingSettings.lr
    seed: int = 0
    dtype: str = "float32"
    arch: Mapping[str, str] = field(default_factory=dict)
    fitted: str | None = None

    @property
    def treatments(self) -> tuple[Treatment, ...]:
        """What the edited model goes through."""
        return read_treatments(",".join(self.after))

    @property
    def further(self) -> tuple[int, ...]:
        """After how many further edits is measured, ascending."""
        return tuple(sorted(one.amount for one in self.treatments if one.kind == "further" and one.amount))


# --- the study --------------------------------------------------------------------------------------------------------


def run_durability(
    plan: DurabilityPlan,
    folder: Path,
    *,
    device: str | None = None,
    fresh: bool = False,
    rows: int | None = None,
    report: Report = tell_nobody,
) -> Json:
    """Carry out a study; its record is on disk when this returns, and as far as it came when this raises.

    Args:
        plan: what is edited, and what the model then goes through.
        folder: where the record goes.
        device: where the model goes.
        fresh: whether to start anew where an earlier study of the plan was stopped.
        rows: texts of one forward pass at most; None for as many as fit.
        report: told what is done, how far it is, and how much there is.

    Returns:
        The record.

    Raises:
        HarnessError: the plan cannot be carried out; nothing has been edited by then.
        RestoreError: the model is not bitwise what it was.
    """
    require_writable(folder)
    inner = _run_plan(plan)
    ready = prepare_run(resolve(inner), device, report)
    with one_thread_if_small(ready.lm):
        return _Study(plan, ready, folder, rows, report, fresh).go()


def _run_plan(plan: DurabilityPlan) -> Plan:
    """The plan of a run whose edits are those that are followed, and the further ones.

    Raises:
        UsageError: the edits would not be in one model, it is not said how many are followed, or the learning rate is
            no positive number.
    """
    if not 0 < plan.lr < math.inf:
        raise UsageError(f"--lr {plan.lr:g}: expected a positive learning rate, such as 5e-5")
    mode, size = plain_mode(plan.mode, plan.edit_batch_size)
    if mode == "isolated":
        raise UsageError("--mode isolated: durability is that of edits in one model; use batch or sequential")
    if plan.further and plan.num_edits is None:
        raise UsageError(
            f"--edits {plan.edits}: say how many edits are followed, such as {plan.edits}:20; the further ones are the "
            "rows behind them"
        )
    named = ("model", "editor", "settings", "edits", "split", "exam", "data_dir", "text", "seed", "dtype", "arch")
    fields = {name: getattr(plan, name) for name in (*named, "fitted")}
    mode = mode or _default_mode(plan.editor)
    total = None if plan.num_edits is None else plan.num_edits + max(plan.further, default=0)
    return Plan(**fields, num_edits=total, mode=mode, edit_batch_size=size)


def _default_mode(editor: str) -> str:
    from harness.editing.registry import compose

    return "batch" if default_mode(compose(editor).cls) == "batch" else "sequential"


@dataclass(eq=False)
class _Study:
    """The state of a study under way."""

    plan: DurabilityPlan
    ready: Prepared
    folder: Path
    rows: int | None
    report: Report
    fresh: bool
    values: dict[str, dict[str, Values]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    _bases: dict[bool | str, dict[str, Measured]] = field(default_factory=dict)

    def go(self) -> Json:
        """Edit, measure, and go through what is asked for."""
        if not self.fresh:
            self._resume()
        self._measured(_UNEDITED, self.ready.lm, Patch())
        stops = self._stops()
        _, edited = next(stops)
        self._measured("edited", self.ready.lm, edited)
        for count, patch in stops:
            self._measured(f"further={count}", self.ready.lm, patch)
        for one in self.plan.treatments:
            if one.kind != "further" and not self._done(str(one)):
                self._goes_through(one, edited)
        found = self.ready.guard.differing()
        if found:
            raise RestoreError(f"{', '.join(found[:3])} is not what it was before; {VOID}")
        self._write(complete=True)
        return self.record

    # --- edits --------------------------------------------------------------------------------------------------------

    @cached_property
    def _cases(self) -> list[Any]:
        return cases_of(self.ready.resolved.edits)

    @cached_property
    def _followed(self) -> int:
        return self.plan.num_edits or len(self._cases)

    def _stops(self) -> Iterator[tuple[int, Patch]]:
        """The edits that are followed, with 0 further ones, and then each number of further ones; none made in vain."""
        lm, editor, total, made = self.ready.lm, self.ready.editor, Patch(), 0
        wanted = [0, *self.plan.further]
        if all(self._done(str(one)) for one in self.plan.treatments if one.kind == "further"):
            wanted = [0]
        for count in wanted:
            end = self._followed + count
            for portion in self._portions(made, end):
                total += increment(editor, lm, list(chain(*(self._cases[i] for i in portion))), held=total)
                self.report("edit", portion.stop, self._followed + wanted[-1])
            made = end
            yield count, finished_patch(editor, lm, total)

    def _portions(self, start: int, end: int) -> Iterator[range]:
        """The operations between two counts: one of them, or portions of the batch size."""
        plan = self.ready.resolved.plan
        for portion in operations(end - start, str(plan.mode), plan.edit_batch_size):
            yield range(start + portion.start, start + portion.stop)

    # --- what it goes through -----------------------------------------------------------------------------------------

    def _goes_through(self, one: Treatment, edited: Patch) -> None:
        """One treatment of the edited model; what cannot be done is missing, with the reason."""
        began = time.monotonic()
        try:
            with self._treated(one, edited) as (lm, patch):
                self._measured(str(one), lm, patch)
        except RestoreError:
            raise
        except HarnessError as error:
            self.reasons[str(one)] = str(error)
            self._write(complete=False)
        self.seconds[str(one)] = round(time.monotonic() - began, 3)

    @contextmanager
    def _treated(self, one: Treatment, edited: Patch) -> Iterator[tuple[LM, Patch]]:
        lm = self.ready.lm
        if one.kind == "finetune":
            assert one.amount is not None
            settings = TrainingSettings(lr=self.plan.lr, seed=self.plan.seed)
            yield (
                lm,
                trained_on_text(
                    lm,
                    edited,
                    steps=one.amount,
                    settings=settings,
                    progress=lambda done, of: self.report(str(one), done, of),
                ),
            )
        elif one.kind == "reload":
            options = {"dtype": self.plan.dtype, "device": str(lm.device), "names": dict(self.plan.arch) or None}
            with reloaded(lm, edited, editor=self.ready.editor.root.name, options=options) as found:
                yield found
        elif one.kind == "chat":
            yield lm, edited  # the same model, which is asked otherwise
        else:
            yield lm, quantised(lm, edited, one.kind)

    # --- measuring ----------------------------------------------------------------------------------------------------

    @cached_property
    def _tasks(self) -> list[Task]:
        return self.ready.suite.of(self.ready.resolved.edit_set)

    def _base(self, asked: Prompting) -> dict[str, Measured]:
        """What the unedited model gives where it is asked in the same way, for agreement with it."""
        key = asked.apply_chat_template
        if key not in self._bases:
            self._bases[key] = self._scored(self._examined(self.ready.lm, asked), Patch())
        return self._bases[key]

    def _examined(self, lm: LM, asked: Prompting) -> EditedLM:
        return EditedLM(lm, batch_size=self.rows, prompting=asked)

    def _done(self, name: str) -> bool:
        return name in self.values

    def _measured(self, name: str, lm: LM, patch: Patch) -> None:
        """Ask the questions about the edits that are followed, unless they have been asked."""
        if self._done(name):
            return
        self.report(f"measure: {name}", 0, 0)
        asked = Prompting(apply_chat_template=name == "chat")
        base = self._base(asked)
        found = base if name == _UNEDITED else self._scored(self._examined(lm, asked), patch)
        if name != _UNEDITED:
            for task in self._tasks:
                measure.agree(task, found[task.name], base[task.name])
        self.values[name] = {m: rows for one in found.values() for m, rows in one.values.items()}
        self._write(complete=False)

    def _scored(self, model: EditedLM, patch: Patch) -> dict[str, Measured]:
        mine = set(self.ready.resolved.cases[: self._followed])
        with model.holding(patch):
            return {
                task.name: measure.measure_task(model, task, limit=None, documents=measure.of_cases(task, mine))
                for task in self._tasks
            }

    # --- the record ---------------------------------------------------------------------------------------------------

    @cached_property
    def _head(self) -> Json:
        """What the study depends on."""
        ready = self.ready
        return {
            "study": "durability",
            "schema": SCHEMA,
            "id": record_id(self.plan, SCHEMA),
            "plan": json.loads(json.dumps(asdict(self.plan))),
            "model": {"name": ready.lm.name, "sha256": ready.lm.fingerprint(), "device": ready.lm.device.type},
            "editor": {"name": ready.editor.label(), "hyperparameters": ready.editor.hyperparameters()},
            "edits": {
                "followed": self._followed,
                "mode": ready.resolved.mode,
                "sha256": edits_sha256(ready.resolved.edits),
            },
            "tasks": {task.name: task.identity for task in self._tasks},
            "shown": _shown(self._tasks),
            "versions": versions(),
        }

    @property
    def record(self) -> Json:
        """The record as far as the study has come."""
        return {
            **self._head,
            "status": "complete" if self._complete else "interrupted",
            **_numbers(self.values, self._order, self._higher, self.reasons, self.plan),
            "seconds": self.seconds,
        }

    @property
    def _complete(self) -> bool:
        return all(name in self.values or name in self.reasons for name in self._order)

    @cached_property
    def _order(self) -> list[str]:
        return [_UNEDITED, *map(str, self.plan.treatments)]

    @cached_property
    def _higher(self) -> dict[str, bool | None]:
        found: dict[str, bool | None] = {}
        for task in self._tasks:
            found |= task.directions
        return found

    @property
    def path(self) -> Path:
        """Where the record lies."""
        return self.folder / f"{durability_name(self._head)}.json"

    def _write(self, complete: bool) -> None:
        """Write the values first, then the record; where it is complete, what was partial goes."""
        path = self.path if complete else _partial(self.path)
        kept = {
            name: {metric: {d: _plain(row) for d, row in rows.items()} for metric, rows in table.items()}
            for name, table in self.values.items()
        }
        content = {"study": "durability", "schema": SCHEMA, "id": self._head["id"], "values": kept}
        write_whole(values_path(path), pack_json(content, small=complete))
        write_whole(path, (json_text(self.record) + "\n").encode())
        if complete:
            for leftover in (_partial(self.path), values_path(_partial(self.path))):
                leftover.unlink(missing_ok=True)

    def _resume(self) -> None:
        """Take what an earlier study of the same plan, model, edits, tasks and versions found before it was stopped."""
        try:
            known = json.loads(_partial(self.path).read_text(encoding="utf-8"))
            kept = unpack_json(values_path(_partial(self.path)).read_bytes())["values"]
            same = all(known.get(key) == json.loads(json.dumps(value)) for key, value in self._head.items())
            values: dict[str, dict[str, Values]] = {
                name: {m: {d: as_ratio(row) for d, row in rows.items()} for m, rows in table.items()}
                for name, table in kept.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, HarnessError):
            return
        if same:
            self.values = values
            self.seconds = dict(known.get("seconds", {}))


def _plain(row: Ratio) -> list[float | str | None]:
    return [row.num if math.isfinite(row.num) else None, row.den, row.cluster, row.stratum]


def _partial(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".json") + ".partial.json")


def durability_name(record: Json) -> str:
    """The file name of a record without its ending, such as ``mini--memit--durability--counterfact-20--1a2b3c4d``."""
    parts = [Path(record["model"]["name"]).name, record["editor"]["name"], "durability"]
    parts += [f"{Path(record['plan']['edits']).name}-{record['edits']['followed']}", record["id"][:8]]
    return "--".join(re.sub(r"[^A-Za-z0-9+._]+", "-", part).strip("-.") for part in parts)


def _shown(tasks: Sequence[Task]) -> list[str]:
    """The metrics that a table shows."""
    named: list[str] = []
    for task in tasks:
        named += [str(task.metadata.get("headline") or ""), *(task.metadata.get("shown") or [])]
    return [name for name in dict.fromkeys([*_SHOWN, *named]) if name]


# --- numbers ----------------------------------------------------------------------------------------------------------


def _numbers(
    values: Mapping[str, Mapping[str, Values]],
    order: Sequence[str],
    higher: Mapping[str, bool | None],
    reasons: Mapping[str, str],
    plan: DurabilityPlan,
) -> Json:
    """What held, what of it is left after each treatment, and half-lives.

    Args:
        values: what documents contributed, by treatment and metric.
        order: the treatments.
        higher: by metric, whether higher is better.
        reasons: why a treatment is missing.
        plan: the plan.
    """
    if "edited" not in values:
        return {"held": {}, "after": {}, "half_life": {}}
    holding = survival.answers_held(values["edited"], higher)
    after = {name: _after(name, values, holding, reasons, plan.seed) for name in order}
    stops = [(count, values[f"further={count}"]) for count in plan.further if f"further={count}" in values]
    return {
        "held": {metric: {"n": len(rows), "of": len(values["edited"][metric])} for metric, rows in holding.items()},
        "after": after,
        "half_life": {
            metric: asdict(survival.half_life(_lost(metric, rows, stops))) for metric, rows in holding.items() if stops
        },
    }


def _lost(
    metric: str, rows: Mapping[str, Ratio], stops: Sequence[tuple[int, Mapping[str, Values]]]
) -> list[tuple[float, float]]:
    return survival.lost_between(rows, [(count, table.get(metric, {})) for count, table in stops])


def _after(
    name: str,
    values: Mapping[str, Mapping[str, Values]],
    holding: Mapping[str, Mapping[str, Ratio]],
    reasons: Mapping[str, str],
    seed: int,
) -> Json:
    """What of each metric is left after a treatment; missing with its reason where it could not be done."""
    if name not in values:
        return {"reason": reasons.get(name, "not done yet"), "survive": {}}
    found = {}
    for metric, rows in holding.items():
        if metric in values[name]:
            one = survival.surviving(rows, values[name][metric], seed)
            interval = interval_of(one.low, one.high)
            found[metric] = {"value": one.value, "n": one.n, "interval": interval, "reason": one.reason}
    return {"reason": None, "survive": found}


# --- the table --------------------------------------------------------------------------------------------------------


def durability_table(record: Json) -> RenderableType:
    """The share of what held that is left after each treatment, with its interval, and half-lives."""
    shown = [metric for metric in record["shown"] if metric in record["held"]] or list(record["held"])[:5]
    made = f"{record['edits']['followed']} edits of {record['plan']['edits']} ({record['edits']['mode']})"
    title = f"{record['editor']['name']} on {record['model']['name']} · {made} · seed {record['plan']['seed']}"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("what survives")
    for metric in shown:
        table.add_column(metric, justify="right")
    table.add_row("held", *(f"{record['held'][m]['n']} of {record['held'][m]['of']}" for m in shown))
    for name, one in record["after"].items():
        table.add_row("as unedited" if name == _UNEDITED else f"after {name}", *(_cell(one, m) for m in shown))
    if record["half_life"]:
        table.add_row("half-life (edits)", *(_half_life(record["half_life"].get(m)) for m in shown))
    notes = [f"{name}: {one['reason']}" for name, one in record["after"].items() if one["reason"]]
    legend = (
        "Of what held right after the edits, the share that still holds, with its 95 % interval; 'as unedited' is what "
        "the unedited model says as well, which cannot be lost with an edit."
    )
    return Group(table, Text(legend, style="dim"), *(Text(note) for note in notes))


def _cell(one: Json, metric: str) -> str:
    found = one["survive"].get(metric)
    return MISSING if found is None else f"{number(found['value'])} {brackets(found['interval'])}".rstrip()


def _half_life(found: Json | None) -> str:
    return MISSING if found is None else survival.HalfLife(**found).text
