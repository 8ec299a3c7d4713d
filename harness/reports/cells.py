"""Measures of records to the cells, rows, sections and notes of a leaderboard, and numbers to words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.exam import chance
from harness.exam.prompting import told
from harness.exam.statistics import agreeing, significant
from harness.io.files import json_sha256
from harness.reports.table import AT_CHANCE, MISSING, TableCell, TableColumn, TableRow, Verdict, text_cells
from harness.runs.record import Record

__all__ = [
    "CHANCE",
    "CHECKED",
    "EDIT_METRICS",
    "LEGEND",
    "PUBLISHED",
    "RESCORED",
    "STANDINGS",
    "VARIANTS",
    "BoardRow",
    "MeasuredCell",
    "MeasuredSection",
    "Metric",
    "brackets",
    "caveat_notes",
    "headline_deviation",
    "number",
    "published_by",
    "published_notes",
    "shown_interval",
    "shown_metrics",
    "shown_row",
    "signed",
    "significant_change",
    "standing_of",
    "unedited_at_chance",
    "variant",
    "verdict",
]

Json = dict[str, Any]

EDIT_METRICS = ("score", "efficacy", "paraphrase", "neighborhood", "locality_accuracy", "locality_agreement")
"""What stands for an edit set: the score S, and what it is made of.  A task with an efficacy is an edit set."""
LEGEND = (
    "Each cell: the value, and edited minus unedited on the same documents with its 95 % interval; "
    "the unedited row: the value with its own 95 % interval.",
    "Green and red, where there are colours: better and worse than unedited, where the interval of the difference "
    "excludes zero. A difference without an interval has no test: one document, or all of them change alike.",
    "↑: higher is better; ↓: lower is better.",
    "Bold: significantly better than the second best of the column, paired by document.",
    "Tables are told apart by what makes numbers incomparable: the model, the edits, how they were made, how many.",
    "Several seeds: the mean over runs that differ in the seed alone; intervals are over documents under these seeds, "
    "sd is the standard deviation over the seeds, the largest of the row's headline metrics.",
    "Seconds and peak memory are those of the whole run, measuring included.",
)
VARIANTS = "@: columns of one task that were measured on other documents or with another prompt."
CHANCE = (
    f"{AT_CHANCE}: the unedited model cannot be told from one that knows nothing. Its 95 % interval contains what "
    "guessing gives (one over the number of choices; 0 for free text), or lies below it: a difference there shows "
    "nothing."
)
PUBLISHED = (
    "Published, not run here: rows that were brought in from the files of their authors, in tables of their own; what "
    "those files do not tell is missing."
)
CHECKED = "checked"
"""Of a row that others gave: its files are whole, and its numbers follow from its documents."""
RESCORED = "re-scored here"
"""Of a row that others gave: its plan was carried out again, with the same numbers."""
STANDINGS = (
    "Below an editor, how far its row was checked. Run here: by this project. As published: what its authors say. "
    "Checked: given by others; files, hashes and versions are whole, and its numbers follow from its documents. "
    "Re-scored here: given by others, and its plan was carried out again with the same numbers."
)
COST = (("seconds",), ("peak", "MiB"))


# --- numbers in words -------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """A value with as many decimals as it deserves; a dash where there is none."""
    if value is None:
        return MISSING
    size = abs(value)
    return f"{value:.{3 if size < 10 else 2 if size < 100 else 1}f}"


def signed(value: float | None) -> str:
    """A difference with its sign; a difference that rounds to zero has none."""
    text = number(value)
    if value is None:
        return text
    return text.removeprefix("-") if float(text) == 0 else text if value < 0 else f"+{text}"


def brackets(interval: Sequence[float] | None, sign: bool = False) -> str:
    """An interval as ``[low, high]``; nothing where there is none."""
    return "" if interval is None else f"[{', '.join((signed if sign else number)(limit) for limit in interval)}]"


def headline_deviation(record: Record, edits: int) -> float | None:
    """The largest standard deviation over seeds of the headline metrics of a mean of runs; None where none has one.

    Args:
        record: the mean of runs that differ in their seed alone.
        edits: after how many edits.
    """
    named = record.headlines
    headlines = [m for task, table in record.tasks(edits).items() for k, m in table.items() if named.get(task) == k]
    return max((m["deviation"] for m in headlines if m.get("deviation") is not None), default=None)


# --- what is marked ---------------------------------------------------------------------------------------------------


def shown_interval(difference: Mapping[str, Any]) -> tuple[float, float] | None:
    """The interval of a difference in a record, so that it agrees with the test; None where there is none.

    Args:
        difference: its ``interval`` and its ``p``.
    """
    limits = difference.get("interval")
    return None if limits is None else agreeing(difference.get("p"), *limits)


def significant_change(difference: Mapping[str, Any], p: float | None = None) -> bool:
    """Whether a difference, as it stands in a record, is significant.  All that any table marks is decided here.

    It is where the interval excludes zero in the digits that are shown, so that no reader sees a mark at an interval
    that holds zero, nor none at one that does not.

    Args:
        difference: its ``interval`` and its ``p``.
        p: what takes the place of its own p value, such as one adjusted for many comparisons.
    """
    limits = shown_interval(difference)
    if limits is None:
        return False
    low, high = (float(number(limit)) for limit in limits)
    return significant(difference.get("p") if p is None else p, low, high)


def verdict(difference: Mapping[str, Any], higher_is_better: bool | None) -> Verdict | None:
    """Which way a difference went, where it is significant and the metric has a better direction."""
    if higher_is_better is None or not significant_change(difference):
        return None
    return "better" if (difference["value"] > 0) == higher_is_better else "worse"


def unedited_at_chance(record: Record, task: str, metric: str) -> bool:
    """Whether the unedited model of a record cannot be told, by a metric, from one that knows nothing of the task.

    Args:
        record: of a run.
        task: the name of the task.
        metric: one of its metrics.
    """
    measure = record.tasks(0).get(task, {}).get(metric)
    if measure is None:
        return False
    # A record that is older than this field says nothing; what the task says now holds for it too.
    levels = chance.named_levels(task) if record.chance is None else record.chance.get(task, {})
    level = levels.get(metric.partition(",")[0])
    low = (measure.get("interval") or [None])[0]
    return level is not None and chance.at_chance(level, measure["value"], None if low is None else float(number(low)))


# --- the parts of a leaderboard ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """One metric of one task, measured in one way: what may stand in one column.

    Attributes:
        task: the task.
        metric: its metric.
        variant: a hash of the documents and prompts; what differs in it is not comparable.
        higher_is_better: its direction; None where it has none.
    """

    task: str
    metric: str
    variant: str
    higher_is_better: bool | None


@dataclass
class MeasuredCell:
    """What a record has of a metric, or the reason why it has nothing; the others as in a cell of a table."""

    measure: Json | None
    reason: str | None = None
    best: bool = False
    at_chance: bool = False

    @property
    def value(self) -> float | None:
        """The value of the metric."""
        return None if self.measure is None else self.measure["value"]


@dataclass
class BoardRow:
    """A record after so many edits; without a record, the unedited model."""

    label: str
    cells: list[MeasuredCell]
    record: Record | None = None
    edits: int = 0
    standing: str | None = None
    """How far its numbers were checked, where tables say so."""

    @property
    def seconds(self) -> float | None:
        """The whole run, all phases."""
        return self.record.seconds if self.record and self.record.cost else None

    @property
    def memory(self) -> float | None:
        """The peak over all phases, in MiB."""
        peaks = [phase.get("peak_memory_mib") for phase in self.record.cost] if self.record else []
        known = [float(peak) for peak in peaks if peak is not None]
        return max(known) if known else None


@dataclass
class MeasuredSection:
    """Rows that may be compared with one another.

    Attributes:
        protocol: what they have in common.
        metrics: the columns.
        rows: the unedited model, then the editors, best first.
    """

    protocol: Json
    metrics: list[Metric]
    rows: list[BoardRow] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What all rows of the table have in common, in words."""
        p = self.protocol
        batch = f", {p['edit_batch_size']} at a time" if p["edit_batch_size"] else ""
        limit = f"at most {p['limit']} documents a task" if p["limit"] else ""
        rows = f"{p['edits']} edit{'s' if p['edits'] != 1 else ''} of {p['edit_set']}"
        data = f"data: {p['data']}" if p["data"] else ""
        parts = [
            p["model"],
            rows,
            f"{p['mode']}{batch}",
            p["dtype"],
            data,
            limit,
            *told(p.get("prompting", {})),
            p.get("published"),
        ]
        return " · ".join(str(part) for part in parts if part)

    @property
    def labels(self) -> list[str]:
        """A heading for every column: the task, with the metric, and with the variant where there are several."""
        plain = [f"{m.task} {m.metric}" for m in self.metrics]
        return [
            f"{text}{f' @{m.variant}' if plain.count(text) > 1 else ''}"
            for m, text in zip(self.metrics, plain, strict=True)
        ]

    @property
    def columns(self) -> tuple[TableColumn, ...]:
        """The heads: the editor, the metrics with their directions, the cost."""
        arrows = {True: " ↑", False: " ↓", None: ""}
        heads = [f"{label}{arrows[m.higher_is_better]}" for label, m in zip(self.labels, self.metrics, strict=True)]
        return (
            TableColumn(("editor",), left=True),
            *(TableColumn(tuple(head.split(" ", 1))) for head in heads),
            *(TableColumn(lines) for lines in COST),
        )


def shown_metrics(record: Record, task: str, measures: Mapping[str, Json]) -> list[str]:
    """The metrics of a task that a leaderboard shows: those of edits, or its headline, and what its YAML names.

    Args:
        record: what was measured.
        task: one of its tasks.
        measures: metric -> numbers, of that task.
    """
    wanted = EDIT_METRICS if "efficacy" in measures else (record.headlines.get(task, ""),)
    return [metric for metric in (*wanted, *record.shown.get(task, ())) if metric in measures]


def variant(record: Record, task: str) -> str:
    """A hash of the documents and the prompts that a task, or the members of a group, were measured with."""
    prompts = {k: v for k, v in record.templates.items() if k == task or k.startswith(f"{task}_")}
    what = [(record.data.get(task) or {}).get("sha256"), prompts]
    return json_sha256(what)[:6]


# --- runs that were not made here -------------------------------------------------------------------------------------


def published_by(record: Record) -> str:
    """Whose numbers a record holds that was not made here, for the title of a section."""
    named = "@".join(str(record.published[key]) for key in ("repository", "commit") if record.published.get(key))
    label = str(record.published.get("label", "published"))
    return f"{label}: {named}" if named else label


def caveat_notes(section: MeasuredSection) -> list[str]:
    """What the YAMLs of the tasks of a table want a reader to know beside their numbers."""
    shown = dict.fromkeys(metric.task for metric in section.metrics)
    records = [row.record for row in section.rows if row.record]
    return list(dict.fromkeys(f"{task}: {r.caveats[task]}" for task in shown for r in records if task in r.caveats))


def published_notes(section: MeasuredSection) -> list[str]:
    """What a reader is told below a table of published rows: how they were measured, and what is not known of them."""
    sources = [row.record.published for row in section.rows if row.record and row.record.published]
    if not sources:
        return []
    said = [str(source.get(key) or "") for key in ("protocol", "citation") for source in sources]
    notes = [str(note) for source in sources for note in source.get("notes") or []]
    unknown = dict.fromkeys(str(one) for source in sources for one in source.get("unknown", []))
    lacking = [f"Not known of some or all rows: {', '.join(unknown)}."] if unknown else []
    return [text for text in dict.fromkeys([*said, *notes, *lacking]) if text]


def standing_of(record: Record) -> str:
    """How far the numbers of a row were checked, in words."""
    return record.standing or ("as published" if record.published else "run here")


# --- what is shown of them --------------------------------------------------------------------------------------------


def shown_row(row: BoardRow, metrics: Sequence[Metric]) -> TableRow:
    """A row of the leaderboard as the row of a table."""
    cells = [_cell(cell, metric.higher_is_better) for cell, metric in zip(row.cells, metrics, strict=True)]
    seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
    memory = "" if row.memory is None else f"{row.memory:.0f}"
    label = TableCell(row.label, below=(row.standing,) if row.standing else ())
    return TableRow((label, *cells, *text_cells([seconds, memory])), "base" if row.record is None else "plain")


def _cell(cell: MeasuredCell, higher_is_better: bool | None) -> TableCell:
    if cell.reason is not None:
        return TableCell(MISSING, note=cell.reason)
    way = verdict((cell.measure or {}).get("difference") or {}, higher_is_better)
    return TableCell(
        number(cell.value), cell.value, _below(cell.measure or {}), cell.best, way, at_chance=cell.at_chance
    )


def _below(measure: Mapping[str, Any]) -> tuple[str, ...]:
    """The difference and its interval, or the interval of an unedited value."""
    difference = measure.get("difference")
    if difference is None:
        parts = [brackets(measure.get("interval"))]
    else:
        value = difference["value"]
        parts = ["" if value is None else signed(value), brackets(shown_interval(difference), sign=True)]
    return tuple(part for part in parts if part)
