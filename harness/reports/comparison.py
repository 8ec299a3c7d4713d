"""Two records, paired by document."""

from __future__ import annotations

from harness.exam.statistics import Difference, difference, harmonic_difference
from harness.runs.record import Record

__all__ = ["pair_difference"]


def pair_difference(
    first: tuple[Record, int], second: tuple[Record, int], *, task: str, metric: str, seed: int = 0
) -> Difference | None:
    """Second minus first, paired by document; ``None`` where either has no values to pair.

    Args:
        first: a record, and the number of edits at which it is looked at.
        second: the same.
        task: the task.
        metric: one of its metrics, or a score derived from several.
        seed: of the bootstrap.
    """
    sides = [(record.values or {}).get(edits, {}).get(task, {}) for record, edits in (first, second)]
    parts = first[0].derived.get(task, {}).get(metric)
    needed = parts or [metric]
    if not all(part in side for side in sides for part in needed):
        return None
    if parts:
        return harmonic_difference([sides[0][p] for p in parts], [sides[1][p] for p in parts], seed=seed)
    return difference(sides[0][metric], sides[1][metric], seed=seed)
