"""How many edits survive, and how many further edits it takes until half of them are gone.

An answer *held* where a document contributed all that it could to a metric; it *survives* where it still does.  The
half-life is that of an exponential decay, fitted by maximum likelihood to what is known of each case: between which
two stops it was lost, or that it was not (interval and right censoring; ``scipy.stats.CensoredData``).  Its interval is
that of the likelihood ratio.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from harness.exam.statistics import CONFIDENCE, Estimate, Ratio, Values, estimate

__all__ = ["HalfLife", "TaskValues", "answers_held", "half_life", "lost_between", "surviving", "survivors"]

TaskValues: TypeAlias = Mapping[str, Values]
"""Metric -> document -> contribution."""

_HALF = math.log(2)


def answers_held(before: TaskValues, higher: Mapping[str, bool | None]) -> dict[str, dict[str, Ratio]]:
    """Metric -> the documents that held before; of metrics by which an answer is right or wrong, or right in part.

    Args:
        before: what each document contributed on the edited model.
        higher: by metric, whether higher is better; others are left out.
    """
    found = {}
    for metric, rows in before.items():
        known = {document: row for document, row in rows.items() if math.isfinite(row.num) and row.den > 0}
        shares = all(0 <= row.num <= row.den for row in known.values())
        whole = {document: row for document, row in known.items() if row.num == row.den}
        if higher.get(metric) and shares and whole:
            found[metric] = whole
    return found


def survivors(holding: Mapping[str, Ratio], after: Values) -> dict[str, Ratio]:
    """Of the documents that held: 1 where they still do, 0 where not, not a number where nothing was measured.

    Args:
        holding: the documents that held.
        after: what each document contributes now.
    """
    found = {}
    for document, row in holding.items():
        now = after.get(document, Ratio(math.nan))
        known = math.isfinite(now.num) and now.den > 0
        found[document] = Ratio(float(now.num == now.den) if known else math.nan, 1.0, row.cluster)
    return found


def surviving(holding: Mapping[str, Ratio], after: Values, seed: int) -> Estimate:
    """The share of the documents that held which still do, with its 95 % interval.

    Args:
        holding: the documents that held.
        after: what each document contributes now.
        seed: of the bootstrap.
    """
    return estimate(survivors(holding, after), seed)


# --- the half-life ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HalfLife:
    """After how many further edits half of what held is gone.

    Attributes:
        value: the number; None where it lies outside of what was tried, or nothing held.
        low: the lower end of its 95 % interval.
        high: its upper end; None where none can be told.
        n: the cases that it rests on.
        beyond: the last stop, where more than half survive it.
        reason: why there is no value.
    """

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    beyond: int | None = None
    reason: str | None = None

    @property
    def text(self) -> str:
        """In words."""
        if self.value is None:
            return f"> {self.beyond}" if self.beyond is not None else (self.reason or "")
        ends = [
            f"{self.low:.3g}" if self.low is not None else "0",
            f"{self.high:.3g}" if self.high is not None else "∞",
        ]
        return f"{self.value:.3g} [{ends[0]}, {ends[1]}]"


def lost_between(holding: Mapping[str, Ratio], after: Sequence[tuple[int, Values]]) -> list[tuple[float, float]]:
    """Of each case, the stops between which the first of its answers was lost; ``(last, inf)`` where none was.

    A stop at which some answer of a case was not measured says nothing of it.

    Args:
        holding: the documents that held, whose cluster is their case.
        after: the number of further edits, ascending, and what documents contribute after them.
    """
    cases: dict[str, list[str]] = defaultdict(list)
    for document, row in holding.items():
        cases[row.cluster or document].append(document)
    found = []
    for documents in cases.values():
        last = 0.0
        for count, values in after:
            still = [row.num for row in survivors({d: holding[d] for d in documents}, values).values()]
            if 0 in still:
                found.append((last, float(count)))
                break
            last = float(count) if all(map(math.isfinite, still)) else last
        else:
            found.append((last, math.inf))
    return found


def half_life(lost: Sequence[tuple[float, float]]) -> HalfLife:
    """The half-life of cases of which is known between which stops they were lost.

    Args:
        lost: from :func:`lost_between`.
    """
    n = len(lost)
    if not n:
        return HalfLife(None, 0, reason="nothing held")
    ends = np.array(lost, dtype=np.float64)
    gone = np.isfinite(ends[:, 1])
    last = ends[~gone, 0].max() if (~gone).any() else ends[:, 1].max()
    if not gone.any():
        return HalfLife(None, n, low=_bounds(ends, 0.0)[0], beyond=int(last), reason="no case was lost")
    if gone.all() and (ends[:, 0] == 0).all():
        return HalfLife(None, n, high=float(ends[:, 1].max()), reason=f"< {ends[:, 1].max():g}")
    data: Any = stats.CensoredData(interval=ends[gone], right=ends[~gone, 0])
    rate = 1 / float(stats.expon.fit(data, floc=0)[1])
    low, high = _bounds(ends, rate)
    # Where all were watched as long, it is seen whether half survive; else it follows from the rate.
    alike = bool((ends[~gone, 0] == last).all())
    if (2 * int(gone.sum()) < n) if alike else (_HALF / rate > last):
        return HalfLife(None, n, low, high, int(last), "more than half survive")
    return HalfLife(_HALF / rate, n, low, high)


def _likelihood(ends: NDArray[np.float64], rate: float) -> float:
    """The log-likelihood of a rate of loss: ``sum log(exp(-rate a) - exp(-rate b))`` over intervals ``(a, b]``."""
    width = ends[:, 1] - ends[:, 0]
    within = (
        np.log(-np.expm1(-rate * width[np.isfinite(width)])) if rate else np.full(np.isfinite(width).sum(), -np.inf)
    )
    return float(-rate * ends[:, 0].sum() + within.sum())


def _bounds(ends: NDArray[np.float64], rate: float) -> tuple[float | None, float | None]:
    """The half-lives at which the likelihood ratio to the best rate is that of the confidence."""
    drop = float(stats.chi2.ppf(CONFIDENCE, 1)) / 2
    level = _likelihood(ends, rate) - drop

    def above(other: float) -> float:
        return _likelihood(ends, other) - level

    top = max(rate, 1e-9)
    while above(top) > 0 and top < 1e6:
        top *= 2
    fast = optimize.brentq(above, max(rate, 0.0), top) if above(top) <= 0 else None
    bottom = rate
    while bottom > 1e-12 and above(bottom) > 0:
        bottom /= 2
    slow = optimize.brentq(above, bottom, rate) if rate and above(bottom) <= 0 else None
    return (None if fast is None else _HALF / fast), (None if slow is None else _HALF / slow)
