"""How sure the order of the rows of a table is: every pair compared, and ranks with intervals.

The tests are those of :mod:`harness.exam.statistics`.  p values are adjusted by Holm's method (1979) over all pairs of
a column, so that the chance of any false difference in it is 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.exam.ratios import Values
from harness.exam.statistics import Pairs, agreeing, all_differences, holm
from harness.reports.cells import BoardRow, Metric, significant_change

__all__ = ["AT_MOST", "Compared", "Standing", "Standings", "needed", "standings"]

AT_MOST = 40
"""Rows that are compared with one another: the first of the table."""
_TAILS = (0.025, 0.975)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Compared:
    """Two rows of a column.

    Attributes:
        first: the place of one row.
        second: the place of the other.
        value: the second minus the first.
        low: the lower end of its 95 % interval.
        high: the upper end.
        p: the p value of no difference.
        adjusted: that p value after Holm's adjustment for all pairs of the column.
        apart: whether the two can be told apart.
        needed: the documents, or clusters of them, that would show a true difference of this size with a probability of
            80 %; None where there is no difference.
    """

    first: int
    second: int
    value: float
    low: float
    high: float
    p: float
    adjusted: float
    apart: bool
    needed: int | None


@dataclass(frozen=True)
class Standing:
    """One row among the others.

    Attributes:
        place: of the row.
        best: the best rank that it may have: one more than the rows that are better for sure.
        worst: the worst rank that it may have.
        drawn: the 95 % interval of its rank over the resamples.
        first: the share of the resamples in which it is first; rows that are first together share it.
        group: rows of one group cannot be told from its best row; 1 is the first group.
    """

    place: int
    best: int
    worst: int
    drawn: tuple[float, float]
    first: float
    group: int


@dataclass(frozen=True)
class Standings:
    """The rows of a column among one another.

    Attributes:
        n: the documents, or clusters of them.
        exact: whether the tests are McNemar's exact one.
        pairs: every two rows.
        rows: each row, in the order of its value.
    """

    n: int
    exact: bool
    pairs: tuple[Compared, ...]
    rows: tuple[Standing, ...]


def standings(rows: Sequence[BoardRow], metric: Metric, seed: int = 0) -> Standings | None:
    """The rows of a column among one another; None where fewer than two have values of the same documents.

    Args:
        rows: of a table, of which the first :data:`AT_MOST` are compared; the unedited model is none of them.
        metric: the column.
        seed: of the bootstrap's draws.
    """
    samples = {place: found for place, row in enumerate(rows[:AT_MOST]) if (found := _sample(row, metric))}
    if len(samples) < 2 or metric.higher_is_better is None:
        return None
    places = list(samples)
    every = all_differences(list(samples.values()), seed=seed)
    if every is None:
        return None
    pairs, sign = _compared(every, places), 1 if metric.higher_is_better else -1
    return Standings(every.n, every.exact, pairs, _standings(every, pairs, places, sign=sign))


def _sample(row: BoardRow, metric: Metric) -> list[Values] | None:
    """What documents contribute to the metric, or to the parts of a score; None where that is not known."""
    if row.record is None or not row.record.values:
        return None
    known = row.record.values.get(row.edits, {}).get(metric.task, {})
    parts = row.record.derived.get(metric.task, {}).get(metric.metric, [metric.metric])
    return [known[part] for part in parts] if all(part in known for part in parts) else None


def _compared(found: Pairs, places: Sequence[int]) -> tuple[Compared, ...]:
    at = [(i, j) for i in range(len(places)) for j in range(i + 1, len(places))]
    adjusted = holm([float(found.p[one]) for one in at])
    return tuple(_pair(found, one, places, p) for one, p in zip(at, adjusted, strict=True))


def _pair(found: Pairs, at: tuple[int, int], places: Sequence[int], adjusted: float) -> Compared:
    value, p, detectable = (float(one[at]) for one in (found.value, found.p, found.detectable))
    low, high = agreeing(p, float(found.low[at]), float(found.high[at]))
    apart = significant_change({"interval": (low, high), "p": p}, adjusted)
    count = needed(value, detectable, found.n, exact=found.exact)
    return Compared(places[at[0]], places[at[1]], value, low, high, p, adjusted, apart, count)


def needed(value: float, detectable: float, n: int, *, exact: bool = False) -> int | None:
    """How many documents would show a true difference of a size with a probability of 80 %.

    The standard error shrinks with the root of the number of documents.  McNemar's exact test asks for one document
    more than the normal distribution does (its continuity correction): ``value - 1 / m = detectable sqrt(n / m)``.

    Args:
        value: the difference.
        detectable: the difference that n documents would show with that probability.
        n: the documents that there are.
        exact: whether the test is McNemar's exact one.

    Returns:
        The number; None where there is no difference.
    """
    if not value:
        return None
    size, spread = abs(value), detectable * math.sqrt(n)
    return math.ceil(((spread + math.sqrt(spread**2 + 4 * size * exact)) / (2 * size)) ** 2)


def _standings(found: Pairs, pairs: Sequence[Compared], places: Sequence[int], sign: int) -> tuple[Standing, ...]:
    better: dict[int, set[int]] = {place: set() for place in places}
    worse: dict[int, set[int]] = {place: set() for place in places}
    for pair in (pair for pair in pairs if pair.apart):
        low, high = (pair.first, pair.second) if sign * pair.value > 0 else (pair.second, pair.first)
        better[low].add(high)
        worse[high].add(low)
    ranks, first = _ranks(sign * found.draws)
    limits = np.quantile(ranks, _TAILS, axis=0)
    # The row of samples that all others are compared with: how far each lies above the first sample.
    order = sorted(range(len(places)), key=lambda i: -sign * float(found.value[0, i]))
    groups = _groups([places[i] for i in order], better)
    return tuple(
        Standing(
            places[i],
            1 + len(better[places[i]]),
            len(places) - len(worse[places[i]]),
            (float(limits[0, i]), float(limits[1, i])),
            float(first[i]),
            groups[places[i]],
        )
        for i in order
    )


def _ranks(draws: Array) -> tuple[Array, Array]:
    """The rank of each sample in each resample, 1 the highest, ties their mean; and how often each is first."""
    top = draws == draws.max(axis=1, keepdims=True)
    # As scipy.stats.rankdata, which takes a second to import; small whole numbers are added up the fastest.
    above, tied = np.zeros((2, *draws.shape), np.int16)
    for other in draws.T[:, :, None]:
        above += other > draws
        tied += other == draws
    return above + (tied + 1) / 2, np.asarray((top / top.sum(axis=1, keepdims=True)).mean(axis=0))


def _groups(ordered: Sequence[int], better: dict[int, set[int]]) -> dict[int, int]:
    """From the best row on: a row that its group's best row is surely better than begins the next group."""
    found: dict[int, int] = {}
    head, group = ordered[0], 1
    for place in ordered:
        if head in better[place]:
            head, group = place, group + 1
        found[place] = group
    return found
