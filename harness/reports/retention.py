"""What is left of edits that were made one after the other: the curve, its area, the half-life, and the collapse.

The curve is the efficacy of all edits so far at each stop.  Its area is the mean height between the first stop and the
last (trapezia), with the interval of a bootstrap over cases.  The half-life counts further edits from the stop at which
a case was first measured (:mod:`harness.exam.survival`).  A collapse lies between the stop at which its sign was first
seen and the stop before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.exam.statistics import Estimate, Values, weighted_sum
from harness.exam.survival import HalfLife, half_life, lost_between
from harness.reports.cells import brackets, number
from harness.runs.record import Record

__all__ = ["Retention", "lost_after", "retention"]

METRIC = "efficacy"


@dataclass(frozen=True)
class Retention:
    """What is left of edits that were made one after the other.

    Attributes:
        task: the edit set.
        rows: edits so far, their efficacy, and the ends of its interval.
        latest: edits so far, and the efficacy of those made since the stop before.
        half_life: after how many further edits half of what held is lost.
        area: the mean height of the curve.
        collapse: sign -> the last stop without it, and the stop at which it was first seen.
    """

    task: str
    rows: tuple[tuple[int, float, float, float], ...]
    latest: tuple[tuple[int, float], ...]
    half_life: HalfLife
    area: Estimate
    collapse: Mapping[str, tuple[int, int]]

    @property
    def facts(self) -> dict[str, str]:
        """The numbers in words."""
        limits = None if self.area.low is None or self.area.high is None else (self.area.low, self.area.high)
        signs = (f"{sign}: between {low} and {high} edits" for sign, (low, high) in self.collapse.items())
        return {
            "half-life (further edits)": f"{self.half_life.text} (of {self.half_life.n} cases)",
            "area": f"{number(self.area.value)} {brackets(limits)}".rstrip(),
            "collapse": "; ".join(signs) or f"no sign up to {self.rows[-1][0]} edits",
        }


def retention(record: Record) -> Retention | None:
    """What is left of a record's edits; None where they were not made one after the other, with several stops.

    Args:
        record: with the values of its documents, without which there is neither half-life nor interval.
    """
    points = [point for point in record.points if point["edits"]]
    mode = record.edits.get("mode") or record.plan.get("mode")
    task = next((t for point in points[-1:] for t, table in point["tasks"].items() if METRIC in table), None)
    if mode != "sequential" or task is None:
        return None
    measured = [(int(point["edits"]), point["tasks"].get(task, {}).get(METRIC) or {}, point) for point in points]
    measured = [one for one in measured if one[1].get("value") is not None]
    if len(measured) < 2:
        return None
    rows = tuple((edits, m["value"], *(m["interval"] or (m["value"],) * 2)) for edits, m, _ in measured)
    found = [(edits, _latest(point, task)) for edits, _, point in measured]
    known = [(edits, (record.values or {}).get(edits, {}).get(task, {}).get(METRIC, {})) for edits, _, _ in measured]
    return Retention(
        task,
        rows,
        tuple((edits, value) for edits, value in found if value is not None),
        half_life(lost_after(known)),
        _area(rows, known),
        _collapse(record.collapse, [0, *(row[0] for row in rows)]),
    )


def _latest(point: Mapping[str, Any], task: str) -> float | None:
    value: float | None = ((point.get("latest") or {}).get(task, {}).get(METRIC) or {}).get("value")
    return value


def lost_after(stops: Sequence[tuple[int, Values]]) -> list[tuple[float, float]]:
    """Of each case that held when it was first measured, between which numbers of further edits it was lost.

    Args:
        stops: edits so far, ascending, and what the documents of all of them contribute.
    """
    found: list[tuple[float, float]] = []
    seen: set[str] = set()
    for place, (edits, values) in enumerate(stops[:-1]):
        holding = {doc: row for doc, row in values.items() if doc not in seen and row.num == row.den > 0}
        seen |= values.keys()
        found += lost_between(holding, [(later - edits, now) for later, now in stops[place + 1 :]])
    return found


def _area(rows: Sequence[tuple[int, float, float, float]], known: Sequence[tuple[int, Values]]) -> Estimate:
    """The mean height, by trapezia."""
    at = [row[0] for row in rows]
    sides = [at[0], *at, at[-1]]
    weights = [(sides[i + 2] - sides[i]) / 2 / (at[-1] - at[0]) for i in range(len(at))]
    if all(values for _, values in known):
        return weighted_sum([values for _, values in known], weights, seed=0)
    height = sum(weight * row[1] for weight, row in zip(weights, rows, strict=True))
    return Estimate(height, 0, reason="the values of its documents are missing")


def _collapse(signs: Mapping[str, int], stops: Sequence[int]) -> dict[str, tuple[int, int]]:
    return {sign: (max(stop for stop in stops if stop < edits), edits) for sign, edits in signs.items()}
