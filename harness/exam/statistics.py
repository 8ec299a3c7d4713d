"""Numbers with their uncertainty: what documents contribute, and what may be concluded from it.  Pure functions.

Every metric is a ratio of sums.  A document contributes a numerator and a denominator (:class:`Ratio`); accuracy is
``right / 1``, micro-F1 is ``2 tp / (predicted + gold)``.  Three things are built from that one form:

* :func:`estimate`, the value with a 95 % interval;
* :func:`difference`, edited minus unedited, paired by document, with a p value and the smallest effect that would show;
* :func:`harmonic` and :func:`harmonic_difference`, the same for a harmonic mean of several metrics (the score S).

What is not finite is left out and counted in the reason; what is empty has the value ``None``, never zero.

Sources: E. B. Wilson (1927), the interval of a proportion; Q. McNemar (1947), the exact test of paired proportions;
D. G. Bonett and R. M. Price (2012), the adjusted Wald interval of their difference; T. C. Hesterberg (2015), the
bootstrap and its expanded percentile interval, which corrects the percentile interval for few units; J. Cohen (1960),
the agreement of two raters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float64, Int
from numpy.typing import NDArray
from scipy import special

from harness.exam.ratios import Columns, Ratio, Values

__all__ = [
    "Difference",
    "Estimate",
    "Pairs",
    "Ratio",
    "Values",
    "aggregate",
    "agreeing",
    "all_differences",
    "as_ratio",
    "difference",
    "estimate",
    "harmonic",
    "harmonic_difference",
    "holm",
    "is_exact",
    "kappa",
    "mcnemar",
    "significant",
    "weighted_sum",
    "wilson",
]

CONFIDENCE = 0.95
ALPHA = 0.05  # a constant of its own: 1 - 0.95 is a little more, and p values of a bootstrap can be exactly 0.05
POWER = 0.80
RESAMPLES = 2000
_KEPT = 200_000  # resampling weights kept for the next metric: some hundred KiB at most, mostly ten
_BLOCK = 4_000_000  # resampling weights held at once: bounds the memory to some tens of MiB

Array = NDArray[np.float64]


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

    ``n``: the documents, or clusters of documents, that were compared.  ``p``: two-sided p value of no difference.
    ``detectable``: the true difference that this sample would show with a probability of 80 %; a smaller one is likely
    to be missed.
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
        return significant(self.p, self.low, self.high)


def significant(p: float | None, low: float | None, high: float | None) -> bool:
    """Whether a difference is to be called one; every table that marks differences asks here.

    Args:
        p: its p value; None where there was no test.
        low: the lower end of its interval; None where there is none.
        high: the upper end.
    """
    if p is None or low is None or high is None:
        return False
    return p < ALPHA and not low <= 0 <= high


def agreeing(p: float | None, low: float, high: float) -> tuple[float, float]:
    """The interval of the tests that decide on a difference: what none of them rejects.

    Zero is rejected where the test of no difference (McNemar's exact one, for 0/1 outcomes) and the interval (Bonett
    and Price's) both do; any other difference where the interval does.  Few documents that change can leave zero
    outside the interval although the exact test cannot reject it (five that change, all one way: p = 0.0625): the
    interval then reaches to zero.  It is never shorter than the one it is made from, so it keeps its coverage.

    Args:
        p: the p value of no difference; None where there was no test.
        low: the lower end of the interval.
        high: the upper end.
    """
    return (low, high) if p is not None and p < ALPHA else (min(low, 0.0), max(high, 0.0))


def aggregate(items: Iterable[float | Sequence[object] | None]) -> float:
    """The value of a metric, from numbers or :class:`Ratio` (or lists of their fields); NaN when nothing counts.

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
    if isinstance(item, Sequence):
        fields: list[object] = [*item, *(None, 1.0, None, None)[len(item) :]]
        num, den, cluster, stratum = fields
        return Ratio(_number(num), _number(den), _label(cluster), _label(stratum))
    return Ratio(_number(item))


def _number(value: object) -> float:
    return math.nan if value is None else float(value)  # type: ignore[arg-type]


def _label(value: object) -> str | None:
    return None if value is None else str(value)


def estimate(values: Values, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """The value of a metric with its 95 % interval.

    Outcomes of 0 or 1: Wilson's interval.  Anything else: the bootstrap over documents (over clusters where given,
    within strata), percentile interval expanded for few units.  Where every unit has the same value the bootstrap would
    claim certainty: 0 and 1 then get Wilson's interval, other values none, with the reason.

    Args:
        values: document -> what it contributes.
        seed: of the bootstrap's draws.
        resamples: how many draws.
    """
    kept, dropped = _finite(values)
    units = _Units.of([kept])
    value = _optional(units.values()[0])
    n, clusters = _applicable(kept), units.clusters
    if value is None:
        return Estimate(None, 0, reason=_empty(values, kept))
    interval, why = _interval(units, seed, resamples)
    return Estimate(value, n, *interval, reason=_join(_dropped(dropped, len(values)), why), clusters=clusters)


def difference(base: Values, edited: Values, *, seed: int, resamples: int = RESAMPLES) -> Difference:
    """Edited minus unedited over the documents that both have, paired.

    Outcomes of 0 or 1: McNemar's exact test and the interval of Bonett and Price.  Anything else: the paired bootstrap.

    Args:
        base: document -> what it contributes on the unedited model.
        edited: the same on the edited model.
        seed: of the bootstrap's draws.
        resamples: how many draws.
    """
    pairs, note = _paired([base], [edited])
    units = _Units.of(pairs)
    # McNemar in its exact form: an edit turns few answers over, and for few the chi-square form claims too much.
    binary = _binary_difference(units)
    if binary is not None:
        return _noted(binary, note)
    return _noted(_bootstrap_difference(units, _minus, seed=seed, resamples=resamples), note)


def is_exact(base: Values, edited: Values) -> bool:
    """Whether :func:`difference` tests two samples by McNemar's exact test, and not by the bootstrap."""
    return _binary_difference(_Units.of(_paired([base], [edited])[0])) is not None


def harmonic(components: Sequence[Values], seed: int, resamples: int = RESAMPLES) -> Estimate:
    """The harmonic mean of several metrics, resampled jointly: one draw of clusters serves all of them.

    A component of zero makes the mean zero; a component without a value leaves the mean without one.

    Args:
        components: for each metric, document -> what it contributes.
        seed: of the bootstrap's draws.
        resamples: how many draws.
    """
    kept = [_finite(component)[0] for component in components]
    units = _Units.of(kept)
    value = _optional(_harmonic_mean(units.values()))
    if value is None:
        return Estimate(None, 0, reason="a component has no value")
    clusters = units.clusters
    # The components come from the same records: drawn apart, what they have in common would be lost.
    draws = _harmonic_mean(units.resample(seed, resamples))
    if _constant(draws):
        interval, why = _constant_interval(units, value)
    else:
        interval, why = _percentiles(draws, units.freedom), None
    return Estimate(value, units.count, *interval, reason=why, clusters=clusters)


def weighted_sum(
    components: Sequence[Values], weights: Sequence[float], *, seed: int, resamples: int = RESAMPLES
) -> Estimate:
    """A weighted sum of several metrics, resampled jointly, such as the area under a curve of one metric.

    In a resample that draws no unit of a component, which has few, the component has its value.

    Args:
        components: for each metric, document -> what it contributes.
        weights: of each metric.
        seed: of the bootstrap's draws.
        resamples: how many draws.
    """
    units = _Units.of([_finite(component)[0] for component in components])
    values, by = units.values(), np.asarray(weights)
    value = _optional(values @ by)
    if value is None:
        return Estimate(None, 0, reason="a component has no value")
    drawn = units.resample(seed, resamples)
    draws = np.where(np.isnan(drawn), values, drawn) @ by
    if _constant(draws):
        interval, why = _constant_interval(units, value)
    else:
        interval, why = _percentiles(draws, units.freedom), None
    return Estimate(value, units.count, *interval, reason=why, clusters=units.clusters)


def harmonic_difference(
    base: Sequence[Values], edited: Sequence[Values], *, seed: int, resamples: int = RESAMPLES
) -> Difference:
    """Edited minus unedited of the harmonic mean of several metrics, paired and resampled jointly.

    Args:
        base: for each metric, document -> what it contributes on the unedited model.
        edited: the same on the edited model, in the same order of metrics.
        seed: of the bootstrap's draws.
        resamples: how many draws.
    """
    pairs, note = _paired(base, edited)
    units, k = _Units.of(pairs), len(base)

    def statistic(values: Array) -> Array:
        return np.asarray(_harmonic_mean(values[..., k:]) - _harmonic_mean(values[..., :k]))

    return _noted(_bootstrap_difference(units, statistic, seed=seed, resamples=resamples), note)


@dataclass(frozen=True)
class Pairs:
    """Every sample against every other: ``[i, j]`` is sample j minus sample i.

    Attributes:
        value: the difference, ``[samples, samples]``.
        low: the lower end of its interval, likewise.
        high: the upper end.
        p: the p value of no difference.
        detectable: the true difference that would be found with a probability of 80 %.
        n: the documents, or clusters of documents, that all samples have.
        draws: the value of each sample in each resample, ``[resamples, samples]``.
        exact: whether the tests are McNemar's exact one.
    """

    value: Float64[Array, "samples samples"]
    low: Float64[Array, "samples samples"]
    high: Float64[Array, "samples samples"]
    p: Float64[Array, "samples samples"]
    detectable: Float64[Array, "samples samples"]
    n: int
    draws: Float64[Array, "resamples samples"]
    exact: bool


def all_differences(samples: Sequence[Sequence[Values]], *, seed: int, resamples: int = RESAMPLES) -> Pairs | None:
    """What :func:`difference` and :func:`harmonic_difference` say of every pair, from one draw for all of them.

    Args:
        samples: of each the metrics whose harmonic mean is compared, or the one metric that is.
        seed: of the bootstrap's draws.
        resamples: how many draws.

    Returns:
        The differences; None where the samples are not of the same documents, or one has no value.
    """
    units, parts = _Units.of([one for sample in samples for one in sample]), len(samples[0])
    if not _of_the_same(samples):
        return None
    draws = _joined(units.resample(seed, resamples), parts)
    draws = draws[np.isfinite(draws).all(axis=1)]  # in a resample a metric may apply to no document
    values = _joined(units.values()[None], parts)[0]
    if not len(draws) or not np.isfinite(values).all():
        return None
    first, second = np.triu_indices(len(samples), 1)
    known = units.den > 0
    exact = (
        parts == 1
        and units.num.shape[1] == len(samples)
        and _is_binary(units.num, units.den)
        and bool((known == known[:, :1]).all())
    )
    if exact:
        found = _exact_pairs(units.num[known[:, 0]], first, second)
    else:
        by_sample = np.ascontiguousarray(draws.T)  # what is sorted and counted below lies together
        found = _drawn_pairs(by_sample[second] - by_sample[first], units.freedom)
    low, high, p, detectable = (_square(one, (first, second), len(samples)) for one in found)
    return Pairs(
        values[None] - values[:, None],
        low - high.T,
        high - low.T,
        p + p.T + np.eye(len(samples)),
        detectable + detectable.T,
        units.count,
        draws,
        exact,
    )


def _of_the_same(samples: Sequence[Sequence[Values]]) -> bool:
    """Whether each metric is of the same documents in every sample, all of which are numbers."""
    return all(
        isinstance(one, Columns) and isinstance(other, Columns) and one.whole and one.layout is other.layout
        for sample in samples
        for one, other in zip(sample, samples[0], strict=True)
    )


def _joined(values: Float64[Array, "resamples components"], parts: int) -> Float64[Array, "resamples samples"]:
    """The value of each sample: of its one metric, or the harmonic mean of several."""
    if parts == 1:
        return values
    return np.asarray(_harmonic_mean(values.reshape(len(values), -1, parts)))


def _square(
    found: Float64[Array, "pairs"], at: tuple[NDArray[np.intp], NDArray[np.intp]], size: int
) -> Float64[Array, "samples samples"]:
    out = np.zeros((size, size))
    out[at] = found
    return out


def _exact_pairs(
    outcomes: Float64[Array, "units samples"], first: NDArray[np.intp], second: NDArray[np.intp]
) -> tuple[Array, Array, Array, Array]:
    """Ends of the interval, p value and detectable difference of each pair of 0/1 samples, as of one pair."""
    n = len(outcomes)
    gained = ((1 - outcomes).T @ outcomes)[first, second]
    lost = ((1 - outcomes).T @ outcomes)[second, first]
    changed = (gained + lost).astype(np.intp)
    p = np.where(changed > 0, np.minimum(1.0, 2 * special.bdtr(np.minimum(gained, lost), changed, 0.5)), 1.0)
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    centre, error = up - down, np.sqrt((up + down - (up - down) ** 2) / (n + 2))
    detectable = np.minimum(1.0, np.maximum(_detectable(1.0) * error, _least(n)))
    return np.maximum(-1.0, centre - _Z * error), np.minimum(1.0, centre + _Z * error), p, detectable


def _drawn_pairs(draws: Float64[Array, "pairs resamples"], freedom: int) -> tuple[Array, Array, Array, Array]:
    """The same from what was drawn; a pair that no draw tells apart has the difference itself as its interval."""
    tail = _expanded_tail(freedom)
    pairs, size = draws.shape
    beyond = np.minimum(np.count_nonzero(draws <= 0, axis=1), np.count_nonzero(draws >= 0, axis=1))
    z = special.ndtri(np.minimum(0.5, (beyond + 1) / (size + 1)))
    spread, mean = draws.std(axis=1), draws.mean(axis=1)
    low, high = np.quantile(draws, [tail, 1 - tail], axis=1, overwrite_input=True)
    far = -np.abs(mean) / np.where(spread > 0, spread, 1.0)
    z = np.where((beyond == 0) & (spread > 0), np.minimum(z, far), z)
    if freedom < 1:
        return low, high, np.ones(pairs), high - low
    p = np.minimum(1.0, 2 * special.stdtr(freedom, z / math.sqrt((freedom + 1) / freedom)))
    return low, high, np.where(spread > 0, p, 1.0), _detectable(1.0) * (high - low) / (2 * _Z)


def kappa(pairs: Mapping[str, tuple[str, str, str | None]], seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Cohen's kappa of two raters (J. Cohen, 1960): their agreement beyond that of chance, 1 where they always agree.

    With p_ij the share of what one calls i and the other j: kappa = (sum_i p_ii - e) / (1 - e), e = sum_i p_i. p_.i.
    Of a cluster each member counts as a part of one.  The interval is that of the bootstrap over units.

    Args:
        pairs: unit -> what the first rater says, what the second says, and the cluster that it belongs to.
        seed: of the bootstrap's draws.
        resamples: how many draws.
    """
    if not pairs:
        return Estimate(None, 0, reason="no pair")
    labels = sorted({label for first, second, _ in pairs.values() for label in (first, second)})
    cells = [(a, b) for a in labels for b in labels]
    shares = [{name: Ratio(float(cell == (a, b)), 1.0, c) for name, (a, b, c) in pairs.items()} for cell in cells]
    units = _Units.of(shares)
    value = _optional(_kappa(units.values(), len(labels)))
    if value is None:
        return Estimate(None, len(pairs), reason="both raters say one and the same of all")
    draws = _kappa(units.resample(seed, resamples), len(labels))
    if _constant(draws):
        return Estimate(value, len(pairs), reason="no interval: resampling does not move it", clusters=units.clusters)
    return Estimate(value, len(pairs), *_percentiles(draws, units.freedom), clusters=units.clusters)


def _kappa(shares: Float64[Array, "*resamples cells"], labels: int) -> Float64[Array, "*resamples"]:
    """Kappa of a table of shares; not a number where chance alone gives agreement."""
    table = shares.reshape(*shares.shape[:-1], labels, labels)
    met = np.trace(table, axis1=-2, axis2=-1)
    chance = (table.sum(axis=-1) * table.sum(axis=-2)).sum(axis=-1)
    return np.asarray(np.divide(met - chance, 1 - chance, out=np.full_like(met, np.nan), where=chance < 1 - 1e-12))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values, adjusted so that together they keep the family-wise error rate (S. Holm, 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, (len(p_values) - rank) * p_values[i])
        adjusted[i] = min(1.0, running)
    return adjusted


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion."""
    z2, share = _Z**2, successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # The limits at 0 and at 1 are exact; rounding must not move them past the value itself.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


_Z = float(special.ndtri(0.5 + CONFIDENCE / 2))
_CHANGES = 6  # 2 / 2^6 < 5 %: the fewest changes, all one way, that are significant
_Interval = tuple[float | None, float | None]


# --- units: what is drawn in a resample -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Units:
    """Documents, or clusters of them, as a table of sums.

    ``num``, ``den``: ``[units, columns]``, one column for each stratum of each component.
    ``component``: ``[columns]``, the component that a column belongs to.
    ``group``: ``[units]``, units are drawn within a group (a stratum, where no unit lies in two).
    """

    num: Float64[Array, "units columns"]
    den: Float64[Array, "units columns"]
    component: Int[NDArray[np.intp], "columns"]
    group: Int[NDArray[np.intp], "units"]
    components: int
    clustered: bool

    @classmethod
    def of(cls, components: Sequence[Values]) -> _Units:
        """The table of several metrics over the same documents or clusters; what is not finite does not count."""
        columns = [one for one in components if isinstance(one, Columns) and one.whole]
        if len(columns) == len(components):
            return cls._of_columns(columns)
        row: dict[tuple[bool, str], int] = {}
        column: dict[tuple[int, str | None], int] = {}
        at: list[tuple[int, int, float, float]] = []
        membership: list[tuple[int, str | None]] = []
        for c, values in enumerate(components):
            for name, (n, d, cluster, stratum) in _finite(values)[0].items():
                i = row.setdefault((False, name) if cluster is None else (True, cluster), len(row))
                at.append((i, column.setdefault((c, stratum), len(column)), n, d))
                membership.append((i, stratum))
        num, den = np.zeros((2, len(row), len(column)))
        rows, places, nums, dens = zip(*at, strict=True) if at else ((), (), (), ())
        np.add.at(num, (np.array(rows, np.intp), np.array(places, np.intp)), nums)
        np.add.at(den, (np.array(rows, np.intp), np.array(places, np.intp)), dens)
        clustered = [any(r.cluster is not None for r in values.values()) for values in components]
        which = np.array([c for c, _ in column], dtype=np.intp)
        return cls._averaged(num, den, which, _groups(len(row), membership), clustered)

    @classmethod
    def _of_columns(cls, components: Sequence[Columns]) -> _Units:
        """The same, added up by column: in the same order, so to the same digits."""
        row: dict[tuple[bool, str], int] = {}
        sums: list[Array] = []
        which: list[int] = []
        membership: list[tuple[int, str | None]] = []
        layouts = {id(one.layout): one.layout for one in components}
        places = {
            key: np.array([row.setdefault(n, len(row)) for n in layout.coded_units[0]], np.intp)
            for key, layout in layouts.items()
        }
        for c, one in enumerate(components):
            layout, place = one.layout, places[id(one.layout)]
            strata, stratum = layout.coded_strata
            at = place[layout.coded_units[1]] * len(strata) + stratum
            size = len(row) * len(strata)
            both = [np.bincount(at, weights, size).reshape(len(row), len(strata)) for weights in (one.num, one.den)]
            sums.append(np.stack(both).astype(np.float64))  # of no documents they would be counts
            which += [c] * len(strata)
            membership += [(int(place[unit]), name) for unit, name in layout.membership]
        num, den = np.concatenate(sums, axis=2) if sums else np.zeros((2, 0, 0))
        clustered = [one.layout.cluster is not None for one in components]
        return cls._averaged(num, den, np.array(which, np.intp), _groups(len(row), membership), clustered)

    @classmethod
    def _averaged(
        cls,
        num: Float64[Array, "units columns"],
        den: Float64[Array, "units columns"],
        component: Int[NDArray[np.intp], "columns"],
        group: Int[NDArray[np.intp], "units"],
        clustered: Sequence[bool],
    ) -> _Units:
        """The table of sums, where clusters count as their mean."""
        for j, c in enumerate(component):
            if clustered[c]:
                num[:, j] = np.divide(num[:, j], den[:, j], out=np.zeros(len(num)), where=den[:, j] > 0)
                den[:, j] = den[:, j] > 0
        return cls(num, den, component, group, len(clustered), any(clustered))

    @property
    def count(self) -> int:
        """The number of units that contribute to any component."""
        return int((self.den > 0).any(axis=1).sum())

    @property
    def clusters(self) -> int | None:
        """The number of clusters, or nothing where single documents are drawn."""
        return self.count if self.clustered else None

    @property
    def freedom(self) -> int:
        """Units less groups: the degrees of freedom of the interval."""
        return self.count - len(np.unique(self.group))

    def values(self) -> Float64[Array, "components"]:
        """The value of every component, ``[components]``; not a number where nothing counts."""
        return self._values(self.num.sum(axis=0), self.den.sum(axis=0))

    def resample(self, seed: int, resamples: int) -> Float64[Array, "{resamples} components"]:
        """The values of every component in every resample, ``[resamples, components]``.

        Equal units are drawn together (with their multiplicity), so that 0/1 outcomes cost next to nothing.
        """
        table = np.hstack([self.num, self.den])
        found = [np.unique(table[self.group == g], axis=0, return_counts=True) for g in np.unique(self.group)]
        sums = np.zeros((resamples, table.shape[1]))
        for place, start, weights in _weights(seed, resamples, [counts for _, counts in found]):
            sums[start : start + len(weights)] += weights @ found[place][0]
        return self._values(*np.hsplit(sums, 2))

    def _values(
        self, num: Float64[Array, "*resamples columns"], den: Float64[Array, "*resamples columns"]
    ) -> Float64[Array, "*resamples components"]:
        """``num``, ``den`` of shape ``[..., columns]`` to ``[..., components]``: the mean over a component's strata."""
        ratio = np.divide(num, den, out=np.full_like(num, np.nan), where=den > 0)
        out = np.full((*num.shape[:-1], self.components), np.nan)
        for c in range(self.components):
            strata = ratio[..., (self.component == c) & ((self.den > 0).any(axis=0))]
            if strata.shape[-1]:
                out[..., c] = strata.mean(axis=-1)
        return out


def _groups(units: int, membership: Iterable[tuple[int, str | None]]) -> Int[NDArray[np.intp], "units"]:
    """The stratum of every unit, ``[units]``; one group for all of them where a unit lies in several strata."""
    strata: dict[int, str | None] = {}
    for unit, stratum in membership:
        if strata.setdefault(unit, stratum) != stratum:
            return np.zeros(units, dtype=np.intp)
    names = {name: i for i, name in enumerate(dict.fromkeys(strata.values()))}
    return np.array([names[strata[unit]] for unit in range(units)], dtype=np.intp)


def _weights(
    seed: int, resamples: int, counts: Sequence[NDArray[np.intp]]
) -> Iterator[tuple[int, int, NDArray[np.integer[Any]]]]:
    """How often each of the different units of each group is drawn: group, first resample, ``[resamples, units]``."""
    if len(counts) == 1 and resamples * len(counts[0]) <= _KEPT:
        yield 0, 0, _kept_weights(seed, resamples, tuple(counts[0].tolist()))
        return
    rng = np.random.default_rng(seed)
    for place, each in enumerate(counts):
        for start, stop in _blocks(resamples, len(each)):
            yield place, start, rng.multinomial(each.sum(), each / each.sum(), size=stop - start)


@lru_cache(maxsize=1024)
def _kept_weights(seed: int, resamples: int, counts: tuple[int, ...]) -> NDArray[np.integer[Any]]:
    """The weights of one group.  The metrics of a task often have units that differ alike, and are drawn alike."""
    each = np.array(counts)
    drawn = np.random.default_rng(seed).multinomial(each.sum(), each / each.sum(), size=resamples)
    return drawn.astype(np.min_scalar_type(each.sum()))  # hundreds are kept


def _blocks(resamples: int, rows: int) -> Iterable[tuple[int, int]]:
    step = max(1, _BLOCK // max(1, rows))
    return ((start, min(start + step, resamples)) for start in range(0, resamples, step))


def _applicable(kept: Values) -> int:
    """The documents that a metric applies to."""
    if isinstance(kept, Columns):
        return int((kept.den > 0).sum())
    return int(sum(row.den > 0 for row in kept.values()))


def _finite(values: Values) -> tuple[Values, int]:
    """The contributions that are numbers, and how many are not."""
    if isinstance(values, Columns) and values.whole:
        return values, 0
    finite = math.isfinite
    kept = {name: ratio for name, ratio in values.items() if finite(ratio[0]) and finite(ratio[1]) and ratio[1] >= 0}
    return kept, len(values) - len(kept)


# --- one sample -------------------------------------------------------------------------------------------------------


def _interval(units: _Units, seed: int, resamples: int) -> tuple[_Interval, str | None]:
    """The interval of a single metric, or the reason why there is none."""
    if units.num.shape[1] == 1 and _is_binary(units.num, units.den):
        return wilson(float(units.num.sum()), units.count), None
    draws = units.resample(seed, resamples)[:, 0]
    if _constant(draws):
        return _constant_interval(units, float(units.values()[0]))
    return _percentiles(draws, units.freedom), None


def _is_binary(num: Float64[Array, "units columns"], den: Float64[Array, "units columns"]) -> bool:
    """Whether every unit that counts is a single 0 or 1."""
    counts = den > 0
    return bool(np.isin(num[counts], (0.0, 1.0)).all() and (den[counts] == 1).all() and (num[~counts] == 0).all())


def _constant(draws: Float64[Array, "resamples"]) -> bool:
    """Whether resampling moves the value by no more than rounding does."""
    finite = draws[np.isfinite(draws)]
    return finite.size == 0 or float(np.ptp(finite)) <= 1e-12 * max(1.0, float(np.abs(finite).max()))


def _constant_interval(units: _Units, value: float) -> tuple[_Interval, str | None]:
    """Wilson's interval where all units are wholly right or wholly wrong; otherwise none."""
    smallest = min(int((units.den[:, j] > 0).sum()) for j in range(units.den.shape[1]) if units.den[:, j].any())
    extreme = math.isclose(value, 1.0, abs_tol=1e-12) or value == 0.0
    if extreme and (units.num >= 0).all() and (units.num <= units.den).all():
        return wilson(round(value) * smallest, smallest), None
    what = "clusters" if units.clustered else "documents"
    return (None, None), f"no interval: all {units.count} {what} have the same value"


def _percentiles(draws: Float64[Array, "resamples"], freedom: int) -> tuple[float, float]:
    """The percentile interval of a bootstrap, expanded so that few units keep their coverage (Hesterberg 2015)."""
    tail = _expanded_tail(freedom)
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _expanded_tail(freedom: int) -> float:
    """The share of the resamples beyond either limit: ``Phi(-t sqrt(n / (n - 1)))`` in place of 2.5 %."""
    if freedom < 1:
        return 0.0
    t = float(special.stdtrit(freedom, 0.5 + CONFIDENCE / 2))
    return float(special.ndtr(-t * math.sqrt((freedom + 1) / freedom)))


# --- two samples ------------------------------------------------------------------------------------------------------


def _paired(base: Sequence[Values], edited: Sequence[Values]) -> tuple[list[Values], str | None]:
    """Both samples, restricted to the documents that are numbers in both, and a note on the others."""
    if all(_alike(b, e) for b, e in zip(base, edited, strict=True)):
        return [*base, *edited], None
    before: list[Values] = []
    after: list[Values] = []
    lost = 0
    for b, e in zip(base, edited, strict=True):
        kept_b, kept_e = _finite(b)[0], _finite(e)[0]
        shared = [name for name in kept_b if name in kept_e]
        before.append({name: kept_b[name] for name in shared})
        after.append({name: kept_e[name] for name in shared})
        lost += len(b.keys() | e.keys()) - len(shared)
    total = sum(len(b.keys() | e.keys()) for b, e in zip(base, edited, strict=True))
    return before + after, f"{lost} of {total} documents have no value on both sides" if lost else None


def _alike(base: Values, edited: Values) -> bool:
    """Whether both are columns of the same documents, all of which are numbers."""
    if not (isinstance(base, Columns) and isinstance(edited, Columns)):
        return False
    return base.layout is edited.layout and base.whole and edited.whole


def _minus(values: Float64[Array, "*resamples 2"]) -> Float64[Array, "*resamples"]:
    # Of one pair of values numpy gives a number, not an array.
    return np.asarray(values[..., 1] - values[..., 0])


def _binary_difference(units: _Units) -> Difference | None:
    """McNemar's exact test, where both samples are 0/1 on the same units; otherwise nothing."""
    if units.num.shape[1] != 2 or not _is_binary(units.num, units.den):
        return None
    both = units.den > 0
    if not (both[:, 0] == both[:, 1]).all() or units.count == 0:
        return None
    gained = int(((units.num[:, 1] - units.num[:, 0]) == 1).sum())
    lost = int(((units.num[:, 1] - units.num[:, 0]) == -1).sum())
    n = units.count
    centre, error = _bonett_price(gained, lost, n)
    low, high = max(-1.0, centre - _Z * error), min(1.0, centre + _Z * error)
    detectable = max(_detectable(error), _least(n))
    return Difference((gained - lost) / n, n, low, high, mcnemar(gained, lost), min(1.0, detectable))


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p value of McNemar's test: a fair coin thrown once for every document that changed."""
    changed = gained + lost
    return min(1.0, 2 * float(special.bdtr(min(gained, lost), changed, 0.5))) if changed else 1.0


def _bonett_price(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Centre and standard error of the difference of paired proportions; never zero, also when nothing changed."""
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    return up - down, math.sqrt((up + down - (up - down) ** 2) / (n + 2))


def _detectable(error: float) -> float:
    """The true effect that a two-sided 5 % test finds with a power of 80 %, from the standard error."""
    return (_Z + float(special.ndtri(POWER))) * error


def _least(n: int) -> float:
    """The effect that McNemar's exact test finds with a power of 80 % if all changes go one way: it needs six of them.

    Solves ``P(X >= 6) = 0.8`` for ``X ~ Binomial(n, effect)``.  Below six documents nothing can show: 1.
    """
    return float(special.betaincinv(_CHANGES, n - _CHANGES + 1, POWER)) if n >= _CHANGES else 1.0


def _bootstrap_difference(
    units: _Units, statistic: Callable[[Array], Array], *, seed: int, resamples: int
) -> Difference:
    value = _optional(statistic(units.values()))
    if value is None:
        return Difference(None, 0, reason="no document has a value on both sides")
    draws = statistic(units.resample(seed, resamples))
    if _constant(draws):
        return _constant_difference(units, value)
    low, high = _percentiles(draws, units.freedom)
    p = _bootstrap_p(draws, units.freedom)
    return Difference(value, units.count, low, high, p, _detectable((high - low) / (2 * _Z)))


def _constant_difference(units: _Units, value: float) -> Difference:
    """Nothing changed in any unit: bounded as n unchanged 0/1 outcomes are, if the values are shares at all."""
    shares = bool((units.num >= 0).all() and (units.num <= units.den).all())
    if value == 0.0 and shares and units.count:
        _, error = _bonett_price(0, 0, units.count)
        return Difference(value, units.count, -_Z * error, _Z * error, 1.0, _least(units.count))
    what = "clusters" if units.clustered else "documents"
    return Difference(value, units.count, reason=f"no interval: all {units.count} {what} change by the same amount")


def _bootstrap_p(draws: Float64[Array, "resamples"], freedom: int) -> float:
    """Two-sided: 1 less the confidence at which the expanded percentile interval just reaches zero.

    Where no resample reaches zero the tail is that of the normal distribution of the resamples: counting alone could
    never go below 1 in the number of resamples, and an adjustment for many comparisons would wipe out any effect.
    """
    finite = draws[np.isfinite(draws)]
    if freedom < 1:
        return 1.0
    beyond = min(int((finite <= 0).sum()), int((finite >= 0).sum()))
    z = float(special.ndtri(min(0.5, (beyond + 1) / (finite.size + 1))))
    if beyond == 0:
        z = min(z, -abs(float(finite.mean())) / float(finite.std()))
    t = z / math.sqrt((freedom + 1) / freedom)
    return min(1.0, 2 * float(special.stdtr(freedom, t)))


def _harmonic_mean(values: Float64[Array, "*resamples components"]) -> Float64[Array, "*resamples"]:
    """Over the last axis; zero where a value is not positive, not a number where one is missing."""
    with np.errstate(divide="ignore"):
        inverse = 1.0 / np.where(values > 0, values, 0.0)
    mean: Array = values.shape[-1] / inverse.sum(axis=-1)
    return np.where(np.isnan(values).any(axis=-1), np.nan, mean)


# --- words ------------------------------------------------------------------------------------------------------------


def _optional(value: float | Array) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _empty(values: Values, kept: Values) -> str:
    if not values:
        return "no documents"
    return "applies to no document" if kept else f"none of {len(values)} documents has a finite value"


def _dropped(dropped: int, total: int) -> str | None:
    return f"{dropped} of {total} documents have no finite value" if dropped else None


def _join(*notes: str | None) -> str | None:
    return "; ".join(note for note in notes if note) or None


def _noted(result: Difference, note: str | None) -> Difference:
    return Difference(**{**result.__dict__, "reason": _join(result.reason, note)}) if note else result
