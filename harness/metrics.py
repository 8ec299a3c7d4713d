"""Numbers with their uncertainty: what documents contribute, and what may be concluded from it.  Pure functions.

Every metric is a ratio of sums.  A document contributes a numerator and a denominator (:class:`Ratio`); accuracy is
``right / 1``, micro-F1 is ``2 tp / (predicted + gold)``.  Three things are built from that one form:

* :func:`estimate`, the value with a 95 % interval;
* :func:`difference`, edited minus unedited, paired by document, with a p value and the smallest effect that would show;
* :func:`harmonic` and :func:`harmonic_difference`, the same for a harmonic mean of several metrics (the score S).

What is not finite is left out and counted in the reason; what is empty has the value ``None``, never zero.

Sources: E. B. Wilson (1927), the interval of a proportion; Q. McNemar (1947), the exact test of paired proportions;
D. G. Bonett and R. M. Price (2012), the adjusted Wald interval of their difference; T. C. Hesterberg (2015), the bootstrap
and its expanded percentile interval, which corrects the percentile interval for few units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

__all__ = [
    "Difference",
    "Estimate",
    "Ratio",
    "Values",
    "aggregate",
    "difference",
    "estimate",
    "harmonic",
    "harmonic_difference",
    "holm",
]

CONFIDENCE = 0.95
POWER = 0.80
RESAMPLES = 2000
_BLOCK = 4_000_000  # resampling weights held at once: bounds the memory to some tens of MiB

Array = NDArray[np.float64]


class Ratio(NamedTuple):
    """What one document contributes to one metric.

    ``num`` / ``den``: added up over documents; ``den = 0`` says that the metric does not apply to this document.
    ``cluster``: the documents of one cluster (the probes of one edit) are averaged first and resampled together.
    ``stratum``: the value is the unweighted mean over strata (a macro average by type).
    """

    num: float
    den: float = 1.0
    cluster: str | None = None
    stratum: str | None = None


Values = Mapping[str, Ratio]
"""The contributions to one metric, by document id."""


@dataclass(frozen=True)
class Estimate:
    """A value, the number of documents behind it, its 95 % interval, and what is to be said about either."""

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    clusters: int | None = None
    """The number of clusters that were resampled, where documents are clustered."""


@dataclass(frozen=True)
class Difference:
    """Edited minus unedited on the documents that both have.

    ``p``: two-sided p value of no difference.  ``detectable``: the true difference that this many documents would show
    with a probability of 80 % (a smaller one is likely to be missed).
    """

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    p: float | None = None
    detectable: float | None = None
    reason: str | None = None

    @property
    def significant(self) -> bool:
        """Whether both the test and the interval exclude zero."""
        if self.p is None or self.low is None or self.high is None:
            return False
        return self.p < 1 - CONFIDENCE and not self.low <= 0 <= self.high


def aggregate(items: Iterable[float | Sequence[object]]) -> float:
    """The value of a metric, from numbers or :class:`Ratio` (or lists of their fields); not a number when nothing counts.

    This is what a task file names as its ``aggregation``.
    """
    values = {str(i): as_ratio(item) for i, item in enumerate(items)}
    value = _Units.of([values]).values()[0]
    return float(value)


def as_ratio(item: float | Sequence[object] | None) -> Ratio:
    """A contribution, from a number or from the fields of a :class:`Ratio`; ``None`` is not a number."""
    if item is None:
        return Ratio(math.nan)
    if isinstance(item, Ratio):
        return item
    if isinstance(item, (list, tuple)):
        num, den, cluster, stratum = [*item, *(None, 1.0, None, None)[len(item) :]]
        return Ratio(_number(num), _number(den), _label(cluster), _label(stratum))
    return Ratio(_number(item))


def _number(value: object) -> float:
    return math.nan if value is None else float(value)  # type: ignore[arg-type]


def _label(value: object) -> str | None:
    return None if value is None else str(value)
