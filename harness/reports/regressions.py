"""What moved from a committed record to a new one of the same plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.runs.record import Record

__all__ = ["Moved", "regressions"]

Json = dict[str, Any]


@dataclass(frozen=True)
class Moved:
    """A number that left its tolerance.  ``what``: ``value``, ``n``, or ``missing``."""

    edits: int
    task: str
    metric: str
    what: str
    before: float | None
    after: float | None
    allowed: float = 0.0


def regressions(baseline: Record, new: Record, *, tolerance: float = 1e-3, documents: float = 1.0) -> list[Moved]:
    """What moved from a committed record to a new one of the same plan, in either direction.

    A value may move by ``tolerance`` (relative where it is above 1: rounding differs between machines) and by what
    ``documents`` of its documents, or clusters, can move a mean of shares: a near tie may fall the other way.  The
    number of documents that count may move by as many.  A number may not go missing, and one that was may not appear.

    Args:
        baseline: the committed record; numbers that it does not have may be anything.
        new: the record of now.
        tolerance: how far a value may move for rounding.
        documents: how many documents, or clusters, may fall the other way.
    """
    moved: list[Moved] = []
    for point in baseline.points:
        edits = int(point["edits"])
        for task, measures in point["tasks"].items():
            found = new.tasks(edits).get(task, {})
            for metric, before in measures.items():
                at = Moved(edits, task, metric, "value", None, None)
                moved += _moved(at, before, found.get(metric), tolerance=tolerance, documents=documents)
    return moved


def _moved(at: Moved, before: Json, after: Json | None, *, tolerance: float, documents: float) -> list[Moved]:
    old, value = before["value"], None if after is None else after["value"]
    if (old is None) != (value is None) or after is None:
        return [Moved(at.edits, at.task, at.metric, "missing", old, value)]
    out = []
    if abs(before["n"] - after["n"]) > documents:
        out.append(Moved(at.edits, at.task, at.metric, "n", before["n"], after["n"], documents))
    if old is not None and value is not None:
        units = before.get("clusters") or before["n"]
        allowed = tolerance * max(1.0, abs(old)) + (documents / units if units else 0.0)
        # The last digit of a sum may differ: exactly one document must not fail by 1e-17.
        if abs(value - old) > allowed + 1e-12:
            out.append(Moved(at.edits, at.task, at.metric, "value", old, value, allowed))
    return out
