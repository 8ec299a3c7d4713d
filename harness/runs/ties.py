"""Whether the numbers of a record are those that its documents give.

A record says what came out, and what every document contributed lies beside it, with the sha256 of all that came out
(:meth:`harness.runs.record.Record.seal`). Values, counts and differences are computed from the documents again; where
they are not what the record says, or the sha256 is another, one of the two was changed by hand. Records of earlier
versions have no such sha256: their intervals and p values are computed again.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.errors import DataError
from harness.exam import numbers
from harness.exam.exam_parts import NEUTRAL_TEXT
from harness.exam.numbers import TaskValues
from harness.exam.ratios import Columns, Values
from harness.runs.record import Record, record_name

__all__ = ["require_one_each", "require_tied", "untied"]

Json = dict[str, Any]
Wanted = Callable[[Record, str, Mapping[str, Json]], Collection[str]]
"""The metrics, of a record's task and its numbers, that are looked at."""

TOLERANCE = 1e-6
"""Relative above 1: both are kept in nine significant digits."""
DRAWN = 0.25
"""Of what the bootstrap draws, in lengths of its interval: documents that differ by rounding alone are drawn apart, and
are one where they are read again."""


def require_tied(records: Iterable[Record], wanted: Wanted | None = None, *, intervals: bool = True) -> None:
    """See that records say what their documents give.

    Args:
        records: records that were read with their values; one without them says nothing against itself.
        wanted: which metrics are looked at; by default all.
        intervals: as of :func:`untied`.

    Raises:
        DataError: a number is another one; names the first.
    """
    for record in records:
        for found in untied(record, wanted, intervals=intervals):
            raise DataError(
                f"{record_name(record)}: {found}: the record or its values were changed after the run; repeat the run"
            )


def require_one_each(records: Iterable[Record], where: object) -> None:
    """See that no two records claim one id with other numbers.

    Args:
        records: records; copies of one are one.
        where: the folder, for the message.

    Raises:
        DataError: two do; names the id.
    """
    known: dict[str, Record] = {}
    for record in records:
        other = known.setdefault(record.id, record)
        if other is not record and record.status == other.status == "complete" and other.seal() != record.seal():
            raise DataError(
                f"{where}: two records claim the id {record.id} ({record_name(record)}) with other numbers; they are "
                "other runs: keep one of them, or put them into folders of their own"
            )


def untied(record: Record, wanted: Wanted | None = None, *, intervals: bool = True) -> Iterator[str]:
    """What a record says otherwise than its documents do, number by number.

    Args:
        record: a record with its values.
        wanted: which metrics are looked at; by default all.
        intervals: whether intervals and p values of a record without a seal are computed again, which takes a tenth of
            a second; those of one with a seal are always looked at.
    """
    told = False
    for said in _other_numbers(record, wanted):
        told = True
        yield said
    if record.values is None or (record.sealed is None and not intervals) or record.sealed == record.seal():
        return
    for said in _other_intervals(record, wanted):
        told = True
        yield said
    # Of a run that was killed between its two files the values are one task ahead.
    if record.sealed is not None and not told and record.status == "complete":
        yield "what came out is not what was written beside its documents"


@dataclass(frozen=True)
class _Place:
    """A metric of a task at a stop: what is said of it, and what its documents gave.

    Attributes:
        where: in words.
        task: the name of the task.
        said: the numbers of the record.
        parts: the metrics whose harmonic mean it is; itself where it is one.
        mine: metric -> what each document contributed.
        base: the same of the unedited model; None where this is the unedited model.
    """

    where: str
    task: str
    said: Json
    parts: list[str]
    mine: TaskValues
    base: TaskValues | None


def _places(record: Record, wanted: Wanted | None) -> Iterator[_Place]:
    values = record.values or {}
    for point in record.points:
        for task, measures in point["tasks"].items():
            mine = values.get(point["edits"], {}).get(task, {})
            base = values.get(0, {}).get(task, {}) if point["edits"] else None
            derived = record.derived.get(task, {})
            for metric in measures if wanted is None else wanted(record, task, measures):
                parts = derived.get(metric, [metric])
                if metric in measures and all(part in mine for part in parts):
                    where = f"{task} {metric} after {point['edits']} edits"
                    yield _Place(where, task, measures[metric], parts, mine, base)


def _other_numbers(record: Record, wanted: Wanted | None) -> Iterator[str]:
    """Values, counts and differences that are not those of the documents."""
    known = _Known()
    for place in _places(record, wanted):
        for what, said, given in _pairs(place.said, place.parts, place.mine, place.base, known):
            if not _agree(said, given):
                yield f"{place.where}, the {what} is {_said(said)}, but its documents give {_said(given)}"


def _other_intervals(record: Record, wanted: Wanted | None) -> Iterator[str]:
    """Intervals and p values that are not those of the documents."""
    for place in _places(record, wanted):
        seed = 0 if place.task == NEUTRAL_TEXT else record.seed or 0
        values = {part: place.mine[part] for part in place.parts}
        score = {"score": place.parts} if len(place.parts) > 1 else {}
        found = numbers.summarise(values, place.base, {}, seed=seed, derived=score)
        given = found["score" if score else place.parts[0]]
        slack = 0.0 if _exact(values) and _exact({part: (place.base or {}).get(part, {}) for part in values}) else DRAWN
        for of, one, other in (
            ("", place.said, given),
            ("difference's ", place.said["difference"], given["difference"]),
        ):
            if one is not None and other is not None:
                yield from (f"{place.where}, the {of}{what}" for what in _drawn_otherwise(one, other, slack))


def _exact(values: TaskValues) -> bool:
    """Whether documents contribute whole numbers, which no rounding changes."""
    return all(_whole(rows) and all(row[0] % 1 == row[1] % 1 == 0 for row in rows.values()) for rows in values.values())


def _drawn_otherwise(said: Json, given: Json, slack: float) -> Iterator[str]:
    """What an interval and its p value are, where they are not what is given."""
    mine, theirs = said["interval"], given["interval"]
    near = slack * (theirs[1] - theirs[0]) if theirs else 0.0
    if (mine is None) is not (theirs is None) or (
        theirs and not all(_agree(a, b, near) for a, b in zip(mine, theirs, strict=True))
    ):
        yield f"interval is {_ends(mine)}, but its documents give {_ends(theirs)}"
    p, again = said.get("p"), given.get("p")
    if not _agree(p, again, slack * min(1.0, again or 0.0) + slack / 10):
        yield f"p value is {_said(p)}, but its documents give {_said(again)}"


def _ends(interval: Sequence[float] | None) -> str:
    return "nothing" if interval is None else f"[{', '.join(map(_said, interval))}]"


class _Known:
    """The values of samples, each computed once."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Values, float | None]] = {}

    def __call__(self, values: Values) -> float | None:
        """The value of a sample; it is kept with it, so that no other sample takes its place in memory."""
        if id(values) not in self._found:
            self._found[id(values)] = values, _value(values)
        return self._found[id(values)][1]


def _pairs(
    measure: Json, parts: Collection[str], mine: TaskValues, base: TaskValues | None, known: _Known
) -> Iterator[tuple[str, float | None, float | None]]:
    """What a number is, what the record says of it, and what the documents give."""
    yield "value", measure["value"], _harmonic([known(mine[part]) for part in parts])
    if len(parts) == 1:
        yield "n", measure["n"], _count(mine[next(iter(parts))]) if measure["value"] is not None else 0
    change = measure.get("difference")
    if base is None or not isinstance(change, dict) or change.get("value") is None:
        return
    pairs = [_shared(base.get(part, {}), mine[part]) for part in parts]
    before, after = (_harmonic([known(pair[side]) for pair in pairs]) for side in (0, 1))
    yield "difference", change["value"], None if before is None or after is None else after - before


def _agree(said: float | None, given: float | None, near: float = 0.0) -> bool:
    if said is None or given is None:
        return said is given
    return abs(said - given) <= max(near, TOLERANCE * max(1.0, abs(given)))


def _said(number: float | None) -> str:
    return "nothing" if number is None else f"{number:.6g}"


def _counts(num: float, den: float) -> bool:
    return math.isfinite(num) and math.isfinite(den) and den >= 0


def _count(values: Values) -> int:
    if isinstance(values, Columns) and values.whole:
        return int((values.den > 0).sum())
    return sum(_counts(row[0], row[1]) and row[1] > 0 for row in values.values())


def _shared(base: Values, edited: Values) -> tuple[Values, Values]:
    """Both sides, restricted to the documents that are numbers in both."""
    if isinstance(base, Columns) and isinstance(edited, Columns) and base.layout is edited.layout:
        if base.whole and edited.whole:
            return base, edited
    elif base.keys() == edited.keys() and _whole(base) and _whole(edited):
        return base, edited
    both = [doc for doc, row in base.items() if _counts(row[0], row[1]) and doc in edited]
    both = [doc for doc in both if _counts(edited[doc][0], edited[doc][1])]
    return {doc: base[doc] for doc in both}, {doc: edited[doc] for doc in both}


def _whole(values: Values) -> bool:
    if isinstance(values, Columns):
        return values.whole
    return math.isfinite(sum(row[0] + row[1] for row in values.values()))


def _value(values: Values) -> float | None:
    """The mean over strata of the ratio of sums, where the documents of a cluster are averaged first.

    As :mod:`harness.exam.statistics` has it, without what only intervals need: this is asked of every number of
    hundreds of records.
    """
    if isinstance(values, Columns) and values.whole:
        return _of_columns(values)
    nums, dens, clusters, strata = zip(*values.values(), strict=True) if values else ((), (), (), ())
    if set(strata) == {None} and set(clusters) == {None} and _whole(values) and min(dens) >= 0:
        return sum(nums) / den if (den := sum(dens)) > 0 else None
    return _over_strata(values, clustered=set(clusters) != {None})


def _of_columns(values: Columns) -> float | None:
    """The same, added up by column."""
    layout = values.layout
    if layout.cluster is None and layout.stratum is None:
        den = float(values.den.sum())
        return float(values.num.sum()) / den if den > 0 else None
    (units, unit), (strata, stratum) = layout.coded_units, layout.coded_strata
    size = len(units) * len(strata)
    sums = (np.bincount(unit * len(strata) + stratum, weights, size) for weights in (values.num, values.den))
    nums, dens = (one.reshape(len(units), len(strata)) for one in sums)
    if layout.cluster is not None:
        nums = np.divide(nums, dens, out=np.zeros_like(nums), where=dens > 0)
        dens = np.where(dens > 0, 1.0, 0.0)
    totals = dens.sum(axis=0)
    known = totals > 0
    return float((nums.sum(axis=0)[known] / totals[known]).mean()) if known.any() else None


def _over_strata(values: Values, clustered: bool) -> float | None:
    sums: dict[str | None, dict[object, list[float]]] = {}
    for doc, (num, den, cluster, stratum) in values.items():
        if _counts(num, den):
            total = sums.setdefault(stratum, {}).setdefault(doc if cluster is None else (cluster,), [0.0, 0.0])
            total[0] += num
            total[1] += den
    ratios = []
    for units in sums.values():
        rows = [row for row in units.values() if row[1] > 0] if clustered else list(units.values())
        num = sum(row[0] / row[1] if clustered else row[0] for row in rows)
        den = len(rows) if clustered else sum(row[1] for row in rows)
        ratios += [num / den] if den > 0 else []
    return statistics.fmean(ratios) if ratios else None


def _harmonic(values: Collection[float | None]) -> float | None:
    """The value itself where there is one; of several the harmonic mean, zero where one is not positive."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    if len(known) == 1:
        return known[0]
    return len(known) / math.fsum(1 / value for value in known) if min(known) > 0 else 0.0
