"""What documents contribute to a metric: one :class:`Ratio` each, or many of them by column.

:class:`Columns` is a mapping of documents to ratios like any other; where a sample is made of it, its numbers are
added up without a tuple for each of hundreds of thousands of documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Columns", "Layout", "Ratio", "Values", "layout_of"]


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

Name = TypeVar("Name")
Labels = tuple[str | None, ...]
Unit = tuple[bool, str]
"""Whether it is a cluster, and the name of it or of the document."""


@dataclass(frozen=True, eq=False)
class Layout:
    """The documents of a metric, and how they belong together; records of one exam share one.

    Attributes:
        ids: the documents.
        cluster: of each document; None where none has one.
        stratum: of each document; None where none has one.
    """

    ids: tuple[str, ...]
    cluster: Labels | None
    stratum: Labels | None

    @cached_property
    def coded_units(self) -> tuple[list[Unit], NDArray[np.intp]]:
        """What is drawn in a resample, in the order of appearance, and the place of each document among them."""
        names = self.ids if self.cluster is None else self.cluster
        units = [
            (False, doc) if name is None or self.cluster is None else (True, name)
            for doc, name in zip(self.ids, names, strict=True)
        ]
        return _coded(units)

    @cached_property
    def coded_strata(self) -> tuple[list[str | None], NDArray[np.intp]]:
        """The strata, in the order of appearance, and the place of each document among them."""
        return _coded(self.stratum or (None,) * len(self.ids))

    @cached_property
    def membership(self) -> list[tuple[int, str | None]]:
        """Each unit with each stratum that it lies in, once."""
        (_, units), (strata, places) = self.coded_units, self.coded_strata
        return list(
            dict.fromkeys((unit, strata[place]) for unit, place in zip(units.tolist(), places.tolist(), strict=True))
        )


def _coded(names: Sequence[Name]) -> tuple[list[Name], NDArray[np.intp]]:
    known: dict[Name, int] = {}
    places = [known.setdefault(name, len(known)) for name in names]
    return list(known), np.array(places, np.intp)


@lru_cache(maxsize=256)
def layout_of(ids: tuple[str, ...], cluster: Labels | None, stratum: Labels | None) -> Layout:
    """The layout of some documents, the same one for the same contents.

    Args:
        ids: the documents.
        cluster: of each document.
        stratum: of each document.

    Raises:
        ValueError: a document stands there twice.
    """
    if len(set(ids)) < len(ids):
        raise ValueError("a document twice")
    return Layout(ids, cluster, stratum)


class Columns(Mapping[str, Ratio]):
    """What documents contribute to one metric, by column.

    Attributes:
        layout: the documents.
        num: of each document.
        den: of each document.
        whole: whether every number is finite and no ``den`` is negative, so that no document is left out.
    """

    def __init__(self, layout: Layout, num: NDArray[np.float64], den: NDArray[np.float64]) -> None:
        """Columns of equal length."""
        self.layout, self.num, self.den = layout, num, den
        self.whole = bool(np.isfinite(num).all() and np.isfinite(den).all() and (den >= 0).all())
        self._rows: dict[str, Ratio] | None = None

    def __getitem__(self, document: str) -> Ratio:
        return self._as_rows()[document]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.ids)

    def __len__(self) -> int:
        return len(self.layout.ids)

    def __eq__(self, other: object) -> bool:
        """By column where the documents are the same ones; row by row, as any mapping, otherwise."""
        if isinstance(other, Columns) and other.layout is self.layout:
            return np.array_equal(self.num, other.num) and np.array_equal(self.den, other.den)
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]

    def _as_rows(self) -> dict[str, Ratio]:
        if self._rows is None:
            count = len(self.layout.ids)
            labels = (self.layout.cluster or (None,) * count, self.layout.stratum or (None,) * count)
            rows = zip(self.num.tolist(), self.den.tolist(), *labels, strict=True)
            self._rows = {doc: Ratio(*row) for doc, row in zip(self.layout.ids, rows, strict=True)}
        return self._rows
