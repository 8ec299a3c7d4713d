"""The standard error of a metric, for tools that show one where a record has an interval."""

from __future__ import annotations

import math
from collections import defaultdict

from harness.exam.statistics import Ratio, Values

__all__ = ["standard_error"]

_Unit = tuple[bool, str]


def standard_error(values: Values) -> float | None:
    """The standard error of a ratio of sums over documents, linearised; None where fewer than two contribute.

    Of a plain mean it is the sample standard deviation over the square root of n, as lm-eval has it. Documents of a
    cluster are averaged first; of a mean over strata the units of all strata are added up (Cochran 1977, section 2.11
    and chapter 6).

    Args:
        values: document -> what it contributes.
    """
    tables = _units(values)
    parts: dict[_Unit, float] = defaultdict(float)
    for units in tables.values():
        total = sum(den for _, den in units.values())
        ratio = sum(num for num, _ in units.values()) / total
        for unit, (num, den) in units.items():
            parts[unit] += (num - ratio * den) / total / len(tables)
    count = len(parts)
    return math.sqrt(count / (count - 1) * math.fsum(part**2 for part in parts.values())) if count > 1 else None


def _units(values: Values) -> dict[str | None, dict[_Unit, tuple[float, float]]]:
    """Stratum -> document or cluster -> its two sums; of a cluster the ratio, once."""
    sums: dict[str | None, dict[_Unit, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    kept = {doc: row for doc, row in values.items() if _counts(row)}
    for doc, row in kept.items():
        found = sums[row.stratum][(False, doc) if row.cluster is None else (True, row.cluster)]
        found[0] += row.num
        found[1] += row.den
    # One cluster makes every unit one, as in harness.exam.statistics.
    clustered = any(row.cluster is not None for row in kept.values())
    return {
        stratum: {unit: (num / den, 1.0) if clustered else (num, den) for unit, (num, den) in units.items()}
        for stratum, units in sums.items()
    }


def _counts(row: Ratio) -> bool:
    return math.isfinite(row.num) and math.isfinite(row.den) and row.den > 0
