"""A record as what its page shows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.reports.board.repeat import repeat_command
from harness.reports.cells import (
    EDIT_METRICS,
    brackets,
    number,
    shown_interval,
    shown_metrics,
    signed,
    unedited_at_chance,
    verdict,
)
from harness.reports.table import AT_CHANCE, MISSING
from harness.runs.record import Record, record_name

__all__ = ["Line", "RecordView", "StopView", "record_view"]

Json = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One metric of one task after so many edits, in words.

    Attributes:
        task: the task.
        metric: its metric.
        shown: whether leaderboards show it; the others stand behind a fold.
        before: the unedited value.
        after: the edited value.
        change: the difference.
        interval: of the difference, or of the value where nothing was edited.
        n: documents.
        p: of no difference.
        way: better or worse, where the difference is significant.
        note: why there is no value.
    """

    task: str
    metric: str
    shown: bool
    before: str
    after: str
    change: str
    interval: str
    n: int
    p: str
    way: str
    note: str


@dataclass(frozen=True)
class StopView:
    """What was measured after so many edits."""

    edits: int
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class RecordView:
    """What the page of a record shows.

    Attributes:
        name: the name of its file, without the ending.
        title: the editor and the model.
        subtitle: what was edited, and how.
        facts: what is short enough for one line each.
        stops: what was measured, the last stop first.
        command: repeats it; None where this version cannot.
        plan: the fields of its plan that say something.
        hyperparameters: of the editor.
        notes: what the editor or the run has to say.
        hashes: what it depends on.
        delta: weight -> what was done to it.
        routing: module of experts -> the share of tokens that are still sent to the same of them.
        versions: of programs.
        cost: phase, seconds, MiB.
        caveats: what tasks want a reader to know.
    """

    name: str
    title: str
    subtitle: str
    facts: Mapping[str, str]
    stops: tuple[StopView, ...]
    command: str | None
    plan: Mapping[str, str]
    hyperparameters: Mapping[str, str]
    notes: tuple[str, ...]
    hashes: Mapping[str, str]
    delta: Mapping[str, Mapping[str, str]]
    routing: Mapping[str, str]
    versions: Mapping[str, str]
    cost: tuple[tuple[str, str, str], ...]
    caveats: Mapping[str, str]


def record_view(record: Record, given: Mapping[str, str] | None = None) -> RecordView:
    """What a page shows of a record; the values of its documents are not needed.

    Args:
        record: the record.
        given: of one that others gave, who did, and how far it was checked.
    """
    edits, editor = record.edits, record.editor
    counted = f"{edits.get('count', 0)} edit{'s' if edits.get('count', 0) != 1 else ''}"
    mode = edits.get("mode") or record.plan.get("mode") or ""
    return RecordView(
        name=record_name(record),
        title=f"{editor.get('name', 'editor')} on {record.model.get('name', 'model')}",
        subtitle=" · ".join(part for part in (f"{counted} of {edits.get('dataset', 'no edits')}", mode) if part),
        facts={**dict(_facts(record)), **(given or {})},
        stops=tuple(_stop(record, point["edits"]) for point in reversed(record.points) if _worth(record, point)),
        command=None if record.published else repeat_command(record.plan),
        plan={key: _said(value) for key, value in record.plan.items() if value not in (None, [], {}, ())},
        hyperparameters={key: _said(value) for key, value in (editor.get("hyperparameters") or {}).items()},
        notes=tuple(_notes(record)),
        hashes=dict(_hashes(record)),
        delta={weight: _numbers(facts) for weight, facts in record.delta.items()},
        routing=_numbers(record.points[-1].get("routing", {}) if record.points else {}),
        versions=record.versions,
        cost=tuple(_phases(record)),
        caveats=record.caveats,
    )


def _worth(record: Record, point: Mapping[str, Any]) -> bool:
    """The unedited numbers stand beside the edited ones, and alone only where nothing was edited."""
    return bool(point["edits"]) or len(record.points) == 1


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    model = record.model
    size = f"{model['parameters']:,} parameters" if "parameters" in model else ""
    yield "status", record.status + (f": {record.reason}" if record.reason else "")
    for name, value in record.published.items():
        if isinstance(value, str | int):
            yield name.replace("_", " "), str(value)
    yield "model", " · ".join(str(p) for p in (model.get("architecture"), size, model.get("dtype")) if p)
    yield "device", str(model.get("device", ""))
    if record.seed is not None:
        yield "seed", str(record.seed)
    if record.cost:
        yield "seconds", f"{record.seconds:.1f}"
    if record.collapse:
        yield "collapse", ", ".join(f"{wire} after {edits} edits" for wire, edits in record.collapse.items())


def _stop(record: Record, edits: int) -> StopView:
    lines = [line for task in _tasks(record, edits) for line in _lines(record, edits, task)]
    return StopView(edits, tuple(sorted(lines, key=lambda line: not line.shown)))


def _tasks(record: Record, edits: int) -> list[str]:
    """Edits first, then abilities by name."""
    found = record.tasks(edits)
    return sorted(found, key=lambda task: ("efficacy" not in found[task], task.lower()))


def _lines(record: Record, edits: int, task: str) -> Iterator[Line]:
    measures, base = record.tasks(edits)[task], record.tasks(0).get(task, {})
    shown = shown_metrics(record, task, measures)
    order = [*shown, *(metric for metric in (*EDIT_METRICS, *measures) if metric in measures)]
    for metric in dict.fromkeys(order):
        measure = measures[metric]
        mark = AT_CHANCE if unedited_at_chance(record, task, metric) else ""
        yield _line(task, metric, metric in shown, measure, base.get(metric) if edits else None, mark)


def _line(task: str, metric: str, shown: bool, measure: Json, base: Json | None, mark: str) -> Line:
    change = measure.get("difference") or {}
    limits = shown_interval(change) if change else measure.get("interval")
    p = change.get("p")
    return Line(
        task,
        metric,
        shown,
        before=MISSING if base is None else number(base["value"]) + mark,
        after=number(measure["value"]),
        change=signed(change["value"]) if change.get("value") is not None else "",
        interval=brackets(limits, sign=bool(change)),
        n=measure["n"],
        p="" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}",
        way=verdict(change, measure.get("higher_is_better")) or "",
        note="" if measure["value"] is not None else str(measure.get("reason") or "no value"),
    )


def _notes(record: Record) -> Iterator[str]:
    for name, value in record.published.items():
        if isinstance(value, list):
            yield f"{name.replace('_', ' ')}: {'; '.join(map(str, value))}"
    notes = record.editor.get("notes") or []
    if isinstance(notes, Mapping):
        yield from (f"{key}: {_said(value)}" for key, value in notes.items())
    else:
        yield from map(str, notes)
    yield from map(str, record.edits.get("warnings", []))


def _hashes(record: Record) -> Iterator[tuple[str, str]]:
    yield "record", record.id
    for name, value in (("weights of the model", record.model.get("sha256")), ("edits", record.edits.get("sha256"))):
        if value:
            yield name, str(value)
    for name, value in (record.editor.get("sources") or {}).items():
        yield f"source of {name}", str(value)
    if record.editor.get("learned"):
        yield "what the editor learned", str(record.editor["learned"])
    for task, facts in record.data.items():
        if facts and facts.get("sha256"):
            yield f"rows of {task}", str(facts["sha256"])
    for task, prompt in record.templates.items():
        if prompt:
            yield f"prompts of {task}", str(prompt)
    before, restored = record.weights.get("before", {}), record.weights.get("restored", {})
    for weight, value in before.items():
        yield f"{weight}, before", value
        yield f"{weight}, restored", "the same" if restored.get(weight) == value else str(restored.get(weight))


def _numbers(facts: Mapping[str, Any]) -> dict[str, str]:
    return {key.replace("_", " "): number(value) for key, value in facts.items() if isinstance(value, int | float)}


def _phases(record: Record) -> Iterator[tuple[str, str, str]]:
    for phase in record.cost:
        peak = phase.get("peak_memory_mib")
        yield str(phase["phase"]), f"{phase['seconds']:.2f}", MISSING if peak is None else f"{peak:,.0f}"


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
