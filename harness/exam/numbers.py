"""What documents contribute, turned into the numbers of a record: value, n, interval, reason, difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from harness.exam.statistics import (
    Difference,
    Estimate,
    Values,
    difference,
    estimate,
    harmonic,
    harmonic_difference,
)

__all__ = ["Json", "TaskValues", "interval_of", "missing", "summarise"]


Json: TypeAlias = dict[str, Any]


TaskValues: TypeAlias = Mapping[str, Values]


"""Of one task: metric -> document id -> contribution."""


def summarise(
    values: TaskValues,
    base: TaskValues | None,
    higher_is_better: Mapping[str, bool | None],
    *,
    seed: int,
    derived: Mapping[str, Sequence[str]] | None = None,
    plain: Mapping[str, float | None] | None = None,
) -> dict[str, Json]:
    """The numbers of one task, as they stand in the record: metric -> value, n, interval, reason, difference.

    Args:
        values: what each document contributed to each metric.
        base: the same of the unedited model; ``None`` where this is the unedited model.
        higher_is_better: by metric; a metric that is not named has no better direction.
        seed: of the bootstrap.
        derived: scores that are the harmonic mean of metrics.
        plain: metrics that are no ratio of sums: their values, without interval.
    """
    out: dict[str, Json] = {}
    for metric, contributions in values.items():
        change = None if base is None else difference(base.get(metric, {}), contributions, seed=seed)
        out[metric] = _measure(estimate(contributions, seed), change, higher_is_better.get(metric))
    for score, parts in (derived or {}).items():
        own = [values.get(part, {}) for part in parts]
        change = None if base is None else harmonic_difference([base.get(part, {}) for part in parts], own, seed=seed)
        out[score] = _measure(harmonic(own, seed), change, higher_is_better.get(score, True))
    for metric, value in (plain or {}).items():
        finite = value is not None and math.isfinite(value)
        reason = "no interval: not a mean over documents" if finite else "not a finite value"
        out[metric] = _measure(
            Estimate(value if finite else None, 0, reason=reason), None, higher_is_better.get(metric)
        )
    return out


def _measure(found: Estimate, change: Difference | None, higher_is_better: bool | None) -> Json:
    measure: Json = {
        "value": found.value,
        "n": found.n,
        "interval": interval_of(found.low, found.high),
        "reason": found.reason,
        "higher_is_better": higher_is_better,
        "difference": None,
    }
    if found.clusters is not None:
        measure["clusters"] = found.clusters
    if change is not None:
        measure["difference"] = {
            "value": change.value,
            "interval": interval_of(change.low, change.high),
            "p": change.p,
            "n": change.n,
            "detectable": change.detectable,
            "reason": change.reason,
        }
    return measure


def missing(reason: str) -> Json:
    """The numbers of a metric that has no value, as they stand in the record."""
    return _measure(Estimate(None, 0, reason=reason), None, True)


def interval_of(low: float | None, high: float | None) -> list[float] | None:
    """The two ends of an interval as a record holds them; None where there is no interval."""
    return None if low is None or high is None else [low, high]
