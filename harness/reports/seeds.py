"""Several runs that differ in their seed alone, as one, and how far the order of editors depends on the seed.

What each document contributes is averaged over the runs.  Intervals and tests then speak of documents, under these
seeds; how far the seeds lie apart stands beside each value.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.exam.numbers import TaskValues, summarise
from harness.exam.ratios import Columns, Ratio, Values
from harness.reports.cells import CHECKED, BoardRow, MeasuredSection
from harness.reports.table import MISSING
from harness.runs.identity import digest
from harness.runs.record import PointValues, Record

__all__ = ["Stability", "order_notes", "pool", "pooled_id", "seed_groups", "stability"]

Json = dict[str, Any]


# --- the order of editors over seeds ----------------------------------------------------------------------------------


def order_notes(section: MeasuredSection) -> list[str]:
    """How stable the order of the editors is over seeds, in words; nothing where fewer than two share two seeds."""
    groups: dict[tuple[int, ...], list[BoardRow]] = {}
    for row in section.rows:
        if row.record and row.record.plan.get("seeds"):
            groups.setdefault(tuple(row.record.plan["seeds"]), []).append(row)
    return [_order_note(seeds, rows, section) for seeds, rows in groups.items() if len(rows) > 1]


def _order_note(seeds: Sequence[int], rows: Sequence[BoardRow], section: MeasuredSection) -> str:
    names = [row.label.partition(" (")[0] for row in rows]
    names = names if len(set(names)) == len(names) else [row.label for row in rows]  # one editor in several settings
    found = []
    for place, (metric, label) in enumerate(zip(section.metrics, section.labels, strict=True)):
        known = {name: (row.cells[place].measure or {}).get("each") for name, row in zip(names, rows, strict=True)}
        each: dict[str, list[float]] = {editor: values for editor, values in known.items() if values}
        if metric.higher_is_better is not None and len(each) == len(rows):
            found.append((label, stability(each, metric.higher_is_better)))
    taus = ", ".join(f"{label} {MISSING if one.tau is None else f'{one.tau:.2f}'}" for label, one in found)
    steps = "; ".join(f"{a} ahead of {b} in {count}" for a, b, count in found[0][1].steps) if found else ""
    says = f" By {found[0][0]}, of {len(seeds)} seeds: {steps}." if found else ""
    return f"Order of {len(rows)} editors under seeds {', '.join(map(str, seeds))}, Kendall's tau: {taus}.{says}"


@dataclass(frozen=True)
class Stability:
    """How far the order of some editors depends on the seed.

    Attributes:
        tau: Kendall's tau-b of the orders under two seeds, the mean over all pairs of seeds; None where an order is
            none, as all are equal.
        seeds: how many seeds.
        steps: each editor and the next one in the order of their means, and under how many seeds it is ahead of it.
    """

    tau: float | None
    seeds: int
    steps: tuple[tuple[str, str, int], ...]


def stability(each: Mapping[str, Sequence[float]], higher_is_better: bool) -> Stability:
    """How stable the order of editors is.

    Args:
        each: editor -> its values under each seed, the same seeds for all.
        higher_is_better: the direction of the metric.

    Raises:
        ValueError: there are fewer than two editors or two seeds.
    """
    seeds = {len(values) for values in each.values()}
    if len(each) < 2 or len(seeds) != 1 or min(seeds) < 2:
        raise ValueError(f"an order needs two editors under the same two seeds, not {len(each)} under {sorted(seeds)}")
    columns = list(zip(*each.values(), strict=True))
    taus = [_tau_b(np.array(a), np.array(b)) for a, b in combinations(columns, 2)]
    sign = 1 if higher_is_better else -1
    order = sorted(each, key=lambda editor: -sign * statistics.fmean(each[editor]))
    ahead = [sum(sign * a > sign * b for a, b in zip(each[x], each[y], strict=True)) for x, y in pairwise(order)]
    steps = tuple((x, y, count) for (x, y), count in zip(pairwise(order), ahead, strict=True))
    known = [tau for tau in taus if tau is not None]
    return Stability(statistics.fmean(known) if len(known) == len(taus) else None, min(seeds), steps)


def _tau_b(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Kendall's tau-b of two orders of the same editors (M. G. Kendall, 1945); None where one of them is all ties.

    ``scipy.stats`` has it too, but takes a second to import, which is a fifth of what a leaderboard takes.
    """
    first, second = (np.sign(np.subtract.outer(x, x)) for x in (a, b))
    scale = math.sqrt(float((first**2).sum()) * float((second**2).sum()))
    return float((first * second).sum()) / scale if scale else None


# --- runs that differ in their seed alone -----------------------------------------------------------------------------


Shown = Callable[[Record, str, Mapping[str, Json]], Sequence[str]]
"""The metrics, of a record's task and its numbers, that are wanted."""


def pool(records: Sequence[Record], shown: Shown | None = None) -> list[Record]:
    """One record for each group of records that differ in their seed alone; the others as they are.

    A group needs the values of its documents (``read_records(folder, values=True)``); without them it stays apart.
    ``plan["seeds"]`` lists the seeds of a pooled record, and each of its metrics has the values of ``each`` of them, in
    that order, and their standard ``deviation``.

    Args:
        records: the records.
        shown: which metrics of a task are wanted, as each is resampled; by default all.
    """
    unedited = _Unedited()
    groups = seed_groups(records)
    return [one for group in groups for one in ([_pooled(group, shown, unedited)] if _can(group) else group)]


def seed_groups(records: Sequence[Record]) -> list[list[Record]]:
    """Records that differ in their seed alone, together, in the order in which they come."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(_key(record), []).append(record)
    return list(groups.values())


def pooled_id(group: Sequence[Record]) -> str:
    """The id of the mean of some records that differ in their seed alone."""
    return digest({"seeds": [record.id for record in _by_seed(group)]})


def _by_seed(group: Sequence[Record]) -> list[Record]:
    return sorted(group, key=lambda record: record.seed or 0)


def _key(record: Record) -> str:
    # What is empty is left at its default; records of earlier versions do not name fields that came later.
    shared = {k: v for k, v in record.plan.items() if k != "seed" and v}
    named = {k: v for k, v in record.editor.get("hyperparameters", {}).items() if k.rpartition(".")[2] != "seed"}
    what = [shared, named, record.editor.get("name"), record.model.get("sha256"), _edits(record), bool(record.standing)]
    return json.dumps([*what, record.data, record.templates], sort_keys=True)


def _edits(record: Record) -> object:
    """What was edited; where the order was drawn from the seed, whatever the order."""
    drawn = record.plan.get("order") == "random"
    return sorted(record.edits["ids"]) if drawn else record.edits.get("sha256")


def _can(group: Sequence[Record]) -> bool:
    counts = [[point["edits"] for point in record.points] for record in group]
    return (
        len({record.seed for record in group} - {None}) == len(group) > 1
        and all(record.status == "complete" and record.values for record in group)
        and all(count == counts[0] for count in counts)
    )


_Means = dict[str, Values]


class _Unedited:
    """Pooled numbers of unedited models: those that many editors are compared with are made once."""

    def __init__(self) -> None:
        self._known: dict[str, list[tuple[object, tuple[_Means, dict[str, Json]]]]] = {}

    def of(self, group: Sequence[Record], task: str, wanted: Sequence[str]) -> tuple[_Means, dict[str, Json]]:
        """The means and the numbers of a task before any edit, taken from others of which all contents are equal."""
        values = [(record.values or {}).get(0, {}).get(task, {}) for record in group]
        derived = group[0].derived.get(task, {})
        contents = (list(wanted), derived, [record.tasks(0).get(task, {}) for record in group], values)
        known = self._known.setdefault(task, [])
        found = next((made for kept, made in known if kept == contents), None)
        if found is None:
            means = _means(group, 0, task, wanted)
            found = means, _numbers(group, 0, task, wanted=wanted, means=means, base=None)
            known.append((contents, found))
        return found


def _pooled(group: Sequence[Record], shown: Shown | None, unedited: _Unedited) -> Record:
    group = _by_seed(group)
    first, seeds = group[0], [record.seed for record in group]
    plan = {**first.plan, "seeds": seeds}
    points = [{"edits": point["edits"], "tasks": {}} for point in first.points]
    values: PointValues = {}
    for point in points:
        edits, found = point["edits"], values.setdefault(point["edits"], {})
        for task, measures in first.tasks(edits).items():
            wanted = list(measures) if shown is None else list(shown(first, task, measures))
            if not edits:
                found[task], point["tasks"][task] = unedited.of(group, task, wanted)
                continue
            means = found[task] = _means(group, edits, task, wanted)
            base = values.get(0, {}).get(task)
            point["tasks"][task] = _numbers(group, edits, task, wanted=wanted, means=means, base=base)
    cost = [{"phase": "mean over seeds", **_cost(group)}]
    return replace(
        first, id=pooled_id(group), plan=plan, points=points, values=values, cost=cost, standing=_standing(group)
    )


def _standing(group: Sequence[Record]) -> str | None:
    """How far all runs of a row were checked: as far as the least checked one."""
    found = {record.standing for record in group}
    return CHECKED if CHECKED in found else group[0].standing


def _means(group: Sequence[Record], edits: int, task: str, wanted: Sequence[str]) -> _Means:
    """Metric -> document -> the mean of what it contributed in each run that has it; also of parts of derived ones."""
    tables = [(record.values or {}).get(edits, {}).get(task, {}) for record in group]
    derived = group[0].derived.get(task, {})
    needed = {*wanted, *(part for score in wanted for part in derived.get(score, ()))}
    metrics = [m for m in dict.fromkeys(metric for table in tables for metric in table) if m in needed]
    return {metric: _mean_over_runs([table.get(metric, {}) for table in tables]) for metric in metrics}


def _mean_over_runs(sides: Sequence[Values]) -> Values:
    """Of each document the mean over the runs that have it: in another order, other edits come first."""
    columns = [side for side in sides if isinstance(side, Columns) and side.whole]
    if len(columns) == len(sides) and all(side.layout is columns[0].layout for side in columns):
        nums, dens = ([side.num.tolist() for side in columns], [side.den.tolist() for side in columns])
        return Columns(columns[0].layout, _means_across(nums), _means_across(dens))
    if all(side.keys() == sides[0].keys() for side in sides):
        return {document: _average([side[document] for side in sides]) for document in sides[0]}
    documents = dict.fromkeys(document for side in sides for document in side)
    return {document: _average([side[document] for side in sides if document in side]) for document in documents}


def _means_across(rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    # Rounded once, as `_average` rounds; a mean of numpy rounds at each step.
    return np.array([math.fsum(each) / len(rows) for each in zip(*rows, strict=True)], np.float64)


def _average(ratios: Sequence[Ratio]) -> Ratio:
    # What `statistics.fmean` gives, at a fifth of its cost: there are hundreds of thousands of documents.
    count = len(ratios)
    num, den = math.fsum([r[0] for r in ratios]) / count, math.fsum([r[1] for r in ratios]) / count
    return Ratio(num, den, ratios[0].cluster, ratios[0].stratum)


def _numbers(
    group: Sequence[Record],
    edits: int,
    task: str,
    *,
    wanted: Sequence[str],
    means: TaskValues,
    base: TaskValues | None,
) -> dict[str, Json]:
    """The metrics of one task, with their deviation over the seeds.

    Args:
        group: records that differ in their seed alone.
        edits: after how many edits.
        task: the task.
        wanted: its metrics that are to be known.
        means: metric -> document -> the mean of what it contributed.
        base: the same of the unedited model; None where this is the unedited model.
    """
    tables = [record.tasks(edits).get(task, {}) for record in group]
    derived = {score: parts for score, parts in group[0].derived.get(task, {}).items() if score in wanted}
    directions = {metric: measure.get("higher_is_better") for metric, measure in tables[0].items()}
    known: dict[str, list[float]] = {m: _values(tables, m) for m in tables[0]}
    single = {m: v for m, v in known.items() if m in wanted and m not in means and m not in derived}
    plain = {m: statistics.fmean(v) if len(v) == len(group) else None for m, v in single.items()}
    found = summarise(means, base, directions, seed=0, derived=derived, plain=plain)
    for metric, measure in found.items():
        each = known.get(metric, [])
        if measure["value"] is None and metric in single:
            measure["reason"] = tables[0][metric]["reason"]
        measure["deviation"] = statistics.stdev(each) if len(each) == len(group) else None
        measure["each"] = each if len(each) == len(group) else None
    return found


def _values(tables: Sequence[Mapping[str, Json]], metric: str) -> list[float]:
    """The values of a metric in those runs that have one."""
    found = (table.get(metric, {}).get("value") for table in tables)
    return [float(value) for value in found if value is not None]


def _cost(group: Sequence[Record]) -> Json:
    """Mean seconds of a whole run, and the largest peak of memory."""
    seconds = statistics.fmean(record.seconds for record in group)
    peaks = [phase["peak_memory_mib"] for record in group for phase in record.cost if phase.get("peak_memory_mib")]
    return {"seconds": round(seconds, 3), "peak_memory_mib": max(peaks, default=None)}
