"""Records to the questions by which an edit is believed or not: a table for each editor, and a radar of all.

Which metric answers which question says ``metadata.questions`` of the task ``belief``: of that task itself, and of the
edit set's own exam.  What a record lacks is missing, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.errors import DataError
from harness.exam import data
from harness.exam.tasks import BELIEF
from harness.reports.cells import brackets, number
from harness.reports.curves import COLOURS, MARKERS, save_figure
from harness.reports.table import MISSING
from harness.runs.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Answered", "belief_tables", "beliefs", "draw_beliefs"]

Json = Mapping[str, Any]

_EDITED_LANGUAGE = "en"
"""The language in which the edits of the sets of several languages are made."""


@dataclass(frozen=True)
class Answered:
    """What a record says to one question.

    Attributes:
        question: its name.
        metric: the task and metric that answer it; None where the record has none.
        unedited: the value of the unedited model.
        value: that of the edited model.
        interval: its 95 % interval.
        n: the documents behind it, or the languages.
    """

    question: str
    metric: str | None = None
    unedited: float | None = None
    value: float | None = None
    interval: Sequence[float] | None = None
    n: int = 0


def beliefs(record: Record) -> list[Answered]:
    """What a record says to each question, in their order.

    Raises:
        DataError: nothing was edited in it.
    """
    if len(record.points) < 2:
        raise DataError(f"record {record.id[:8]}: nothing was edited; give one of a run with --edits")
    said = data.read_yaml(data.TASKS / BELIEF / f"{BELIEF}.yaml")["metadata"]["questions"]
    return [_answered(record, question, names) for question, names in said.items()]


def _answered(record: Record, question: str, names: Sequence[str]) -> Answered:
    edited, before = record.points[-1]["tasks"], record.points[0]["tasks"]
    for name in names:
        task = BELIEF if name.startswith(f"{BELIEF}.") else _edit_set(record)
        metric = name.removeprefix(f"{BELIEF}.")
        found = edited.get(task, {})
        if metric.endswith(".*"):
            several = [m for m in found if m.startswith(metric[:-1]) and not _is_edited(m.removeprefix(metric[:-1]))]
            if several:
                first, value = (_mean([table.get(task, {}).get(m) for m in several]) for table in (before, edited))
                return Answered(question, f"{task} {metric[:-2]}", first, value, n=len(several))
        elif found.get(metric, {}).get("value") is not None:
            one = found[metric]
            first = (before.get(task, {}).get(metric) or {}).get("value")
            return Answered(question, f"{task} {metric}", first, one["value"], one["interval"], one["n"])
    return Answered(question)


def _is_edited(language: str) -> bool:
    """Whether a language, or that of the edit with that of the question, is the one in which the edit was made."""
    edited, pair, asked = language.partition("-")
    return edited == asked if pair else language == _EDITED_LANGUAGE


def _edit_set(record: Record) -> str:
    """The name under which the exam of the edits is reported."""
    return next((task for task in record.points[-1]["tasks"] if task in (record.plan.get("edits"), "own")), "")


def _mean(measures: Sequence[Json | None]) -> float | None:
    values = [one["value"] for one in measures if one and one["value"] is not None]
    return sum(values) / len(values) if values else None


# --- the tables -------------------------------------------------------------------------------------------------------


def belief_tables(records: Sequence[Record]) -> RenderableType:
    """A table for each record: a row a question."""
    tables: list[RenderableType] = [_table(record) for record in records]
    return Group(
        *tables, Text(f"[ ]: 95 % interval.  {MISSING}: neither the edit set nor the run asks it.", style="dim")
    )


def _table(record: Record) -> Table:
    made = f"{record.edits.get('count')} edits of {record.edits.get('dataset')} ({record.plan.get('mode')})"
    title = f"{record.editor.get('name')} on {record.model.get('name')} · {made} · seed {record.seed}"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name, side in (("question", "left"), ("asked by", "left"), ("n", "right"), ("unedited", "right")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    table.add_column("edited", justify="right")
    for one in beliefs(record):
        shown = f"{number(one.value)} {brackets(one.interval)}".rstrip()
        asked, count = one.metric or MISSING, str(one.n) if one.metric else MISSING
        table.add_row(one.question, asked, count, number(one.unedited), shown)
    return table


# --- the figure -------------------------------------------------------------------------------------------------------


def draw_beliefs(records: Sequence[Record], path: Path) -> None:
    """Draw a radar: a spoke a question, a line an editor; a line is broken where a record lacks an answer.

    Raises:
        UsageError: the file's ending is no format, it cannot be written, or matplotlib is not installed.
        DataError: nothing was edited in a record.
    """
    answered = [beliefs(record) for record in records]
    save_figure(lambda: _figure(records, answered), path)


def _figure(records: Sequence[Record], answered: Sequence[Sequence[Answered]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axis: Any = figure.add_subplot(projection="polar")
    names = [one.question for one in answered[0]]
    angles = [2 * math.pi * i / len(names) for i in range(len(names))]
    axis.set_theta_offset(math.pi / 2)
    axis.set_theta_direction(-1)
    axis.set_xticks(angles, names, fontsize=9)
    axis.tick_params(axis="x", pad=9)
    axis.set_ylim(0, 1)
    axis.set_yticks([0.25, 0.5, 0.75, 1.0], ["", "0.5", "", "1"], fontsize=7)
    for place, (record, ones) in enumerate(zip(records, answered, strict=True)):
        values = [math.nan if one.value is None else one.value for one in ones]
        look = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
        axis.plot(
            [*angles, angles[0]], [*values, values[0]], label=str(record.editor.get("name")), linewidth=1.4,
            markersize=4, **look,
        )  # fmt: skip
    figure.legend(loc="outside lower center", ncols=min(5, len(records)), frameon=False, fontsize=9)
    figure.suptitle(f"What is believed: {records[0].model.get('name')}, edits of {records[0].edits.get('dataset')}")
    return figure
