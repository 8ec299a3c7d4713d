"""A tracing study: facts in, a record of where they are recalled out.

``<name>.json`` holds the plan, the averages with their intervals, who was skipped and why; ``<name>.values.json.xz``
what tracing found about every fact. A study that was stopped leaves both with ``.partial`` in their names, and goes
on from there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.errors import DataError, UsageError
from harness.exam import tasks
from harness.exam.statistics import Estimate, Ratio, estimate
from harness.io.files import json_text, pack_json, require_writable, unpack_json, values_path, write_whole
from harness.io.nobody import tell_nobody
from harness.io.schema import parsed
from harness.models.lm import LM, load
from harness.models.placement import Where
from harness.patches.delta import double
from harness.reports.cells import brackets, number
from harness.reports.table import MISSING
from harness.runs.crew.cells import ALONE, Cell, Crew, portions_of, require_all, require_named
from harness.runs.crew.dispatch import run_cells
from harness.runs.identity import record_id
from harness.runs.loaded import kept_model
from harness.runs.versions import versions
from harness.studies.causal.facts import Skipped, TracedFact, read_facts
from harness.studies.causal.trace import (
    ROLES,
    Selection,
    Traced,
    TraceSettings,
    concentrated,
    layer_window,
    require_traceable,
    roles,
    select_facts,
    side_by_side,
    trace_each,
)

__all__ = [
    "KNOWN_1000",
    "SCHEMA",
    "TracePlan",
    "TracingStudy",
    "facts_of",
    "read_study",
    "run_traces",
    "study_name",
    "study_table",
    "summarise_traces",
]

log = logging.getLogger(__name__)

SCHEMA = 2
KNOWN_1000 = "known_1000"
"""The facts of Meng et al.: ``counterfact/known_1000.json`` of a data folder."""

_EVERY = 20.0
"""Seconds between two writings of what is known so far."""
_UNTOLD = ("unknown to the model", "improbable")
"""Reasons that need no detail in the record; it stands in the file of values."""

Json = dict[str, Any]


@dataclass(frozen=True)
class TracePlan:
    """Everything that the numbers of a study depend on.

    Attributes:
        settings: how facts are traced.
        model: a shipped model, a folder, or a Hub repository.
        edits: an edit set, whose old targets are what is true; ``known_1000``; or a file of facts.
        num_edits: how many of its rows, from the first; None for all.
        split: the split of the edit set.
        data_dir: where the rows come from: ``mini``, a folder, or ``hub``.
        dtype: of the model.
        arch: parts of the architecture named by hand.
    """

    settings: TraceSettings = field(default_factory=TraceSettings)
    model: str = "mini"
    edits: str = "counterfact"
    num_edits: int | None = None
    split: str = "test"
    data_dir: str = "mini"
    dtype: str = "float32"
    arch: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class TracingStudy:
    """What a study found.

    Attributes:
        record: the JSON of the record.
        traced: what tracing found about each fact.
    """

    record: Json
    traced: tuple[Traced, ...]


Report = Callable[[str, int, int], None]


def facts_of(plan: TracePlan) -> list[TracedFact]:
    """The facts that a plan names.

    Raises:
        UsageError, DataError: there are none, or fewer than asked for.
    """
    path = _file(plan)
    if path is None:
        return [
            TracedFact.of(edit)
            for edit in tasks.read_edits(plan.edits, data_dir=plan.data_dir, split=plan.split, count=plan.num_edits)
        ]
    found = read_facts(path)
    if plan.num_edits is not None and plan.num_edits > len(found):
        raise UsageError(f"{path}: has {len(found)} facts, {plan.num_edits} were asked for; ask for fewer")
    return found[: plan.num_edits]


def _file(plan: TracePlan) -> Path | None:
    """The file of facts that a plan names; None where it names an edit set."""
    if plan.edits != KNOWN_1000:
        return Path(plan.edits) if Path(plan.edits).suffix in (".json", ".jsonl", ".gz", ".xz") else None
    if plan.data_dir in ("mini", "hub"):
        raise UsageError(
            f"{KNOWN_1000} does not ship with the package; name a folder with counterfact/{KNOWN_1000}.json with "
            "--data-dir, or the file with --edits"
        )
    return Path(plan.data_dir) / "counterfact" / f"{KNOWN_1000}.json"


def run_traces(
    plans: Sequence[TracePlan],
    folder: Path,
    *,
    device: Where = None,
    fresh: bool = False,
    report: Report = tell_nobody,
    budget: int = 4096,
    lm: LM | None = None,
    crew: Crew = ALONE,
) -> Iterator[TracingStudy]:
    """Carry out studies that differ in the kind and the window alone; the record of each is on disk when it is yielded.

    Args:
        plans: what is traced, and how.
        folder: where the records go.
        device: where the model goes.
        fresh: whether to start anew where an earlier study of a plan was stopped.
        report: told what is done, how far it is, and how much there is.
        budget: tokens that go through a block at once.
        lm: the model that the plans name, where it is loaded already.
        crew: who traces; by default this process. Which facts the model knows is found out in this process.

    Raises:
        HarnessError: a plan cannot be carried out; nothing has been traced by then.
        CheckFailed: some facts could not be traced by a crew; the others stand in records that are not complete.
    """
    require_named(lm, crew)
    require_writable(folder)
    facts, first = facts_of(plans[0]), plans[0]
    lm = lm or load(first.model, dtype=first.dtype, device=device, names=dict(first.arch) or None)
    for plan in plans:
        require_traceable(lm, plan.settings)
    chosen = select_facts(
        lm, facts, first.settings, progress=lambda done, total: report("which facts the model knows", done, total)
    )
    if not crew.here:
        begun = [_Begun.of(plan, lm, facts, chosen=chosen, folder=folder, fresh=fresh) for plan in plans]
        job = _Portion(first, replace(chosen, skipped=()), budget, device)
        layers, lm = lm.arch.layers, None  # there may be no room for it and for those of the workers
        yield from _by_crew(begun, job, crew, layers=layers, report=report)
        return
    for plan in plans:
        yield _one(plan, lm, facts, chosen, folder, fresh, report, budget)


def _one(
    plan: TracePlan,
    lm: LM,
    facts: Sequence[TracedFact],
    chosen: Selection,
    folder: Path,
    fresh: bool,
    report: Report,
    budget: int,
) -> TracingStudy:
    begun = _Begun.of(plan, lm, facts, chosen=chosen, folder=folder, fresh=fresh)
    try:
        for one in trace_each(lm, chosen, plan.settings, budget=budget, done=tuple(begun.done)):
            begun.add([_row(one)], report)
    finally:
        if begun.left:
            begun.writer.write(complete=False)
    return begun.study()


def _said(plan: TracePlan) -> str:
    """What is traced, in words."""
    return f"trace {plan.settings.kind}, window {plan.settings.window}"


@dataclass(frozen=True, eq=False)
class _Begun:
    """A study under way.

    Attributes:
        plan: what is traced, and how.
        chosen: the facts.
        done: id of a fact -> what was found about it.
        writer: of what is known so far.
    """

    plan: TracePlan
    chosen: Selection
    done: dict[str, Json]
    writer: _Writer

    @classmethod
    def of(
        cls, plan: TracePlan, lm: LM, facts: Sequence[TracedFact], *, chosen: Selection, folder: Path, fresh: bool
    ) -> _Begun:
        """A study, with what an earlier one of the same plan found.

        Args:
            plan: what is traced, and how.
            lm: the model.
            facts: the facts that were looked at.
            chosen: those that are traced.
            folder: where the record goes.
            fresh: whether to start anew.
        """
        record = _new(plan, lm, facts, chosen)
        path = folder / f"{study_name(record)}.json"
        done = {} if fresh else _resumed(path, record)
        return cls(plan, chosen, done, _Writer(path, record, chosen, done))

    @property
    def left(self) -> int:
        """How many facts are not traced yet."""
        return len(self.chosen.asked) - len(self.done)

    def add(self, rows: Sequence[Json], report: Report) -> None:
        """Note what was found about some facts."""
        self.done.update({row["fact"]["id"]: row for row in rows})
        report(_said(self.plan), len(self.done), len(self.chosen.asked))
        self.writer.now_and_then()

    def study(self) -> TracingStudy:
        """The whole, which is written."""
        self.writer.write(complete=True)
        return TracingStudy(self.writer.record, tuple(_from_row(self.done[one.fact.id]) for one in self.chosen.asked))


# --- by a crew --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Portion:
    """Facts that are traced, wherever that is.

    Attributes:
        plan: what is traced, and how.
        chosen: all facts, in whose company these are traced.
        budget: tokens that go through a block at once.
        device: where the model goes.
        place: of the study among those that are under way.
        todo: the ids of the facts that are traced.
    """

    plan: TracePlan
    chosen: Selection
    budget: int
    device: Where
    place: int = 0
    todo: tuple[str, ...] = ()


def _traced_portion(job: _Portion, report: Report) -> list[Json]:
    """Trace some facts, with the model of the portion before."""
    plan = job.plan
    lm = kept_model(plan.model, dtype=plan.dtype, device=job.device, names=plan.arch)
    others = tuple(one.fact.id for one in job.chosen.asked if one.fact.id not in job.todo)
    found = trace_each(
        lm, job.chosen, plan.settings, budget=job.budget, done=others, progress=lambda *far: report(_said(plan), *far)
    )
    return [_row(one) for one in found]


def _by_crew(
    begun: Sequence[_Begun], job: _Portion, crew: Crew, *, layers: int, report: Report
) -> Iterator[TracingStudy]:
    """Studies whose facts are traced side by side; each is yielded as soon as it is whole.

    Args:
        begun: the studies.
        job: what all portions share.
        crew: who traces.
        layers: how many layers the model has.
        report: told how many facts are traced.
    """
    cells = [cell for place in range(len(begun)) for cell in _cells(begun, place, layers, job, crew)]
    failed = []
    try:
        yield from (one.study() for one in begun if not one.left)
        for ended in run_cells(cells, _traced_portion, crew):
            one = begun[ended.cell.job.place]
            if ended.error is not None:
                log.warning("%s: %s", ended.cell.shown, ended.error)
                failed.append(ended)
            one.add(ended.done or [], report)
            if ended.done and not one.left:
                yield one.study()
    finally:
        for one in begun:
            if one.left:
                one.writer.write(complete=False)
    require_all(failed, len(cells), "portions of facts")


def _cells(begun: Sequence[_Begun], place: int, layers: int, job: _Portion, crew: Crew) -> Iterator[Cell[_Portion]]:
    """The portions of a study; facts that go through the model together are in one.

    Args:
        begun: the studies.
        place: of the study among them.
        layers: how many layers the model has.
        job: what all portions share.
        crew: who traces.
    """
    study, ids = begun[place], [one.fact.id for one in job.chosen.asked]
    together = side_by_side(job.chosen, study.plan.settings, layers=layers, budget=job.budget)
    left = [found for places in together if (found := [ids[i] for i in places if ids[i] not in study.done])]
    for part, portion in enumerate(portions_of(left, crew), start=1):
        todo = tuple(identity for some in portion for identity in some)
        name = f"{study_name(study.writer.record)}, portion {part}"
        one = replace(job, plan=study.plan, place=place, todo=todo)
        yield Cell(name, one, name, f"{job.plan.model} {job.plan.dtype}")


class _Writer:
    """Writes what is known so far, and the whole in the end."""

    def __init__(self, path: Path, record: Json, chosen: Selection, done: Mapping[str, Json]) -> None:
        self.path, self.record, self.chosen, self.done = path, record, chosen, done
        self.begun = self.last = time.monotonic()

    def now_and_then(self) -> None:
        """Write if the last writing is some time ago."""
        if time.monotonic() - self.last >= _EVERY:
            self.write(complete=False)

    def write(self, complete: bool) -> None:
        """Write the values first, then the record; where it is complete, what was partial goes."""
        rows = [self.done[one.fact.id] for one in self.chosen.asked if one.fact.id in self.done]
        self.record["status"] = "complete" if complete else "interrupted"
        self.record["seconds"] = round(time.monotonic() - self.begun, 1)
        self.record["facts"]["traced"] = len(rows)
        self.record.update(summarise_traces([_from_row(row) for row in rows]) if rows else {})
        skipped = [_skipped(one) for one in self.chosen.skipped]
        values = {"study": "trace", "schema": SCHEMA, "id": self.record["id"], "facts": rows, "skipped": skipped}
        path = self.path if complete else _partial(self.path)
        content = pack_json(values, small=complete)
        write_whole(values_path(path), content)
        write_whole(path, (json_text(self.record) + "\n").encode())
        if complete:
            for leftover in (_partial(self.path), values_path(_partial(self.path))):
                leftover.unlink(missing_ok=True)
        self.last = time.monotonic()


def _partial(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".json") + ".partial.json")


def study_name(record: Json) -> str:
    """The file name of a record without its ending, such as ``mini--trace-mlp-5--counterfact-200--1a2b3c4d``."""
    settings = record["plan"]["settings"]
    parts = [Path(record["model"]["name"]).name, f"trace-{settings['kind']}-{settings['window']}"]
    parts += [f"{Path(record['plan']['edits']).name}-{record['facts']['asked']}", record["id"][:8]]
    return "--".join(re.sub(r"[^A-Za-z0-9+._]+", "-", part).strip("-.") for part in parts)


def _new(plan: TracePlan, lm: LM, facts: Sequence[TracedFact], chosen: Selection) -> Json:
    settings = plan.settings
    counts = {reason: list(group) for reason, group in groupby(sorted(chosen.skipped, key=_reason), key=_reason)}
    text = json.dumps([asdict(fact) for fact in facts], sort_keys=True, ensure_ascii=False)
    same = len({layer_window(i, settings.window, lm.arch.layers) for i in range(lm.arch.layers)})
    return {
        "study": "trace",
        "schema": SCHEMA,
        "id": record_id(plan, SCHEMA),
        "status": "interrupted",
        "plan": asdict(plan),
        "model": {
            "name": lm.name,
            "sha256": lm.fingerprint(),
            "layers": lm.arch.layers,
            "windows": same,
            "device": lm.device.type,
        },
        "noise": {"sigma": chosen.sigma, "rule": settings.sigma, "samples": settings.samples, "seed": settings.seed},
        "facts": {
            "asked": len(facts),
            "traced": 0,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        },
        "skipped": [
            {
                "reason": reason,
                "count": len(group),
                "facts": [{"id": one.fact.id} | ({} if reason in _UNTOLD else {"detail": one.detail}) for one in group],
            }
            for reason, group in counts.items()
        ],
        "versions": versions(),
        "seconds": 0.0,
    }


def _reason(one: Skipped) -> str:
    return one.reason


def _skipped(one: Skipped) -> Json:
    return {"fact": asdict(one.fact), "reason": one.reason, "detail": one.detail}


def _resumed(path: Path, record: Json) -> dict[str, Json]:
    """What an earlier study of the same plan, model, facts and versions found before it was stopped."""
    try:
        known = _json(_partial(path), _partial(path).read_bytes())
        rows = unpack_json(values_path(_partial(path)).read_bytes())["facts"]
    except (OSError, ValueError, DataError, KeyError, TypeError):
        return {}
    same = ("id", "plan", "model", "noise", "versions")
    mine = json.loads(json.dumps(record))
    if any(known.get(key) != mine[key] for key in same) or known["facts"]["sha256"] != record["facts"]["sha256"]:
        return {}
    return {row["fact"]["id"]: row for row in rows}


# --- one fact ---------------------------------------------------------------------------------------------------------


def _row(one: Traced) -> Json:
    """What was found about one fact, six digits of each probability."""
    return {
        "fact": asdict(one.fact),
        "tokens": list(one.tokens),
        "span": list(one.span),
        "answer": one.answer,
        "clean": _short(one.clean),
        "low": _short(one.low),
        "high": _short(one.high),
        "restored": [[_short(value) for value in row] for row in one.restored[one.span[0] :].tolist()],
        "removed": [_short(value) for value in one.removed.tolist()],
    }


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _from_row(row: Json) -> Traced:
    begin, end = row["span"]
    layers = len(row["removed"])
    front = [[row["low"]] * layers for _ in range(begin)]
    removed = [math.nan if value is None else value for value in row["removed"]]
    return Traced(
        TracedFact(**row["fact"]),
        tuple(row["tokens"]),
        (begin, end),
        row["answer"],
        row["clean"],
        row["low"],
        row["high"],
        torch.tensor(front + row["restored"], dtype=torch.float64),
        torch.tensor(removed, dtype=torch.float64),
    )


# --- averages ---------------------------------------------------------------------------------------------------------


def summarise_traces(traced: Sequence[Traced]) -> Json:
    """The averages over facts, each with n and its 95 % interval (facts are resampled).

    ``layers``: of each layer the mean tracing effect as a fraction and as a difference of probabilities, the greatest
    over tokens and that of the last subject token; the share of facts whose greatest effect is there; the share of
    the clean probability that is lost where outputs at the subject are zero.
    ``roles``: the average indirect effect, over all tokens that play a role (Meng et al.).
    ``concentrated``: the share of facts whose effect sits in few layers (Hase et al., section 5.2).
    """
    layers = len(traced[0].removed)
    effects = {
        "fraction": [one.layer_effect() for one in traced],
        "effect": [one.layer_effect(scaled=False) for one in traced],
        "fraction_last_subject": [one.layer_effect("last_subject") for one in traced],
        "effect_last_subject": [one.layer_effect("last_subject", scaled=False) for one in traced],
        "greatest": [_greatest(one.layer_effect()) for one in traced],
        "removed": [one.removed for one in traced],
    }
    table = {
        name: [_estimate([Ratio(float(row[layer])) for row in rows]) for layer in range(layers)]
        for name, rows in effects.items()
    }
    narrow = [concentrated(one.layer_effect()) for one in traced]
    return {
        "probability": {
            "clean": _estimate([Ratio(one.clean) for one in traced]),
            "low": _estimate([Ratio(one.low) for one in traced]),
            "total_effect": _estimate([Ratio(one.clean - one.low) for one in traced]),
        },
        "layers": table,
        "roles": {role: _role(traced, role, layers) for role in ROLES},
        "concentrated": _estimate([Ratio(math.nan if one is None else float(one)) for one in narrow]),
    }


def _greatest(effects: torch.Tensor) -> torch.Tensor:
    """1 at the layer of the greatest effect, shared where several have it; NaN where there is none."""
    if not (bool(effects.isfinite().all()) and float(effects.max()) > 0):
        return torch.full_like(effects, torch.nan)
    most = double(effects == effects.max())
    return most / most.sum()


def _role(traced: Sequence[Traced], role: str, layers: int) -> Json:
    places = [roles(len(one.tokens), one.span)[role] for one in traced]
    sums = [one.effects[at].sum(0) for one, at in zip(traced, places, strict=True)]
    effects = [
        _estimate([Ratio(float(row[layer]), len(at)) for row, at in zip(sums, places, strict=True)])
        for layer in range(layers)
    ]
    return {"tokens": sum(map(len, places)), "effects": effects}


def _estimate(rows: Sequence[Ratio]) -> Json:
    found: Estimate = estimate({str(i): row for i, row in enumerate(rows)}, seed=0)
    interval = None if found.low is None or found.high is None else [_short(found.low), _short(found.high)]
    value = None if found.value is None else _short(found.value)
    return {"value": value, "n": found.n, "interval": interval, "reason": found.reason}


# --- reading and showing ----------------------------------------------------------------------------------------------


def read_study(path: Path) -> TracingStudy:
    """The study in a file, with what lies beside it.

    Raises:
        DataError: there is no such file, or it is no record of a tracing study.
    """
    try:
        record = _json(path, path.read_bytes())
        values = unpack_json(values_path(path).read_bytes())
    except (OSError, ValueError) as error:
        reason, where = getattr(error, "strerror", None) or "not whole", getattr(error, "filename", None) or path
        raise DataError(
            f"{where}: cannot be read ({reason}); give the JSON of `harness trace`, with its values beside it"
        ) from error
    if not isinstance(record, dict) or record.get("study") != "trace":
        raise DataError(f"{path}: not a record of `harness trace`; give one")
    if record.get("schema") == 1:
        raise DataError(f"{path}: record schema 1, this version reads {SCHEMA}; repeat the study")
    if record.get("schema") != SCHEMA or values.get("id") != record["id"]:
        raise DataError(f"{path}: of another version, or not of the values beside it; repeat the study")
    return TracingStudy(record, tuple(_from_row(row) for row in values["facts"]))


def _json(path: Path, content: bytes) -> Any:
    try:
        return parsed(content)
    except ValueError as error:
        raise DataError(f"{path}: not whole JSON; repeat the study") from error


def study_table(record: Json) -> RenderableType:
    """What a terminal shows of a record."""
    settings, facts, shown = record["plan"]["settings"], record["facts"], [Text(_title(record), style="bold")]
    for group in record["skipped"]:
        named = ", ".join(one["id"] for one in group["facts"][:5]) + (", ..." if group["count"] > 5 else "")
        shown.append(Text(f"left out: {group['count']} of {facts['asked']}, {group['reason']} ({named})"))
    if not facts["traced"]:
        return Group(*shown, Text("no fact was traced; --known all traces those that the model does not know too"))
    chance = record["probability"]
    shown.append(
        Text(
            f"probability of the answer {_cell(chance['clean'])}, with noise {_cell(chance['low'])}; "
            f"noise {record['noise']['sigma']:.4g} x {settings['samples']}, seed {settings['seed']}"
        )
    )
    note = (
        "[ ]: 95 % interval over facts. restored: share of what the noise took, the greatest over tokens (Hase et al.)."
    )
    return Group(*shown, Text(), _layers(record), Text(), _roles(record), Text(), Text(note, style="dim"))


def _title(record: Json) -> str:
    settings, facts = record["plan"]["settings"], record["facts"]
    window = "one layer" if settings["window"] == 1 else f"{settings['window']} layers"
    return (
        f"trace of {settings['kind']} outputs, {window} · {Path(record['model']['name']).name} · "
        f"{facts['traced']} of {facts['asked']} facts of {Path(record['plan']['edits']).name}"
    )


def _cell(found: Json) -> str:
    if found["value"] is None:
        return MISSING
    return f"{number(found['value'])} {brackets(found['interval'])}".strip()


def _layers(record: Json) -> Table:
    columns = {
        "restored": "fraction",
        "at the last subject token": "fraction_last_subject",
        "greatest here": "greatest",
        "lost if zero": "removed",
    }
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("layer", *columns):
        table.add_column(name, justify="left")
    for layer in range(record["model"]["layers"]):
        table.add_row(str(layer), *(_cell(record["layers"][key][layer]) for key in columns.values()))
    return table


def _roles(record: Json) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("token", "n", "best layer", "average indirect effect there"):
        table.add_column(name)
    for role, found in record["roles"].items():
        known = [(e["value"], -i) for i, e in enumerate(found["effects"]) if e["value"] is not None]
        best = -max(known)[1] if known else None
        cells = (MISSING, MISSING) if best is None else (str(best), _cell(found["effects"][best]))
        table.add_row(role, str(found["tokens"]), *cells)
    return table
