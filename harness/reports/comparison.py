"""Two records, paired by document; and what may be said of several tasks at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.exam.statistics import Difference, difference, harmonic_difference, is_exact
from harness.runs.record import Record

__all__ = ["mean_difference", "pair_difference", "tested_by"]


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


def tested_by(record: Record, edits: int, *, task: str, metric: str) -> str:
    """How the difference from the unedited model is tested, in words; empty where a record has no values to test.

    Args:
        record: with the values of its documents.
        edits: after how many edits.
        task: the task.
        metric: one of its metrics, or a score derived from several.
    """
    sides = [(record.values or {}).get(count, {}).get(task, {}) for count in (0, edits)]
    parts = record.derived.get(task, {}).get(metric)
    if not all(part in side for side in sides for part in parts or [metric]):
        return ""
    if parts:
        return f"paired bootstrap of the harmonic mean of {', '.join(parts)}"
    return "McNemar's exact test" if is_exact(sides[0][metric], sides[1][metric]) else "paired bootstrap"


def mean_difference(measures: Sequence[Mapping[str, Any] | None]) -> tuple[float, float, float] | None:
    """The mean of the differences of several tasks, with its 95 % interval; None where one has no difference.

    The documents of one task say nothing of those of another, so that the squares of the distances to the ends of the
    intervals add up (G. Y. Zou and A. Donner, 2008, "Construction of confidence limits about effect measures").

    Args:
        measures: of each task, as a record keeps them.
    """
    found = [(measure or {}).get("difference") or {} for measure in measures]
    if not found or any(one.get("value") is None or one.get("interval") is None for one in found):
        return None
    value = sum(one["value"] for one in found) / len(found)
    below, above = (
        math.sqrt(sum((one["interval"][end] - one["value"]) ** 2 for one in found)) / len(found) for end in (0, 1)
    )
    return value, value - below, value + above
