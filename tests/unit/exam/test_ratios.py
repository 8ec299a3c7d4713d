"""Samples by column: the same numbers, to the last digit, as a ratio for each document."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.exam.ratios import Columns, Ratio, layout_of
from harness.exam.statistics import difference, estimate, harmonic, harmonic_difference
from harness.reports.seeds import _mean_over_runs  # type: ignore[attr-defined]
from harness.runs.ties import _value

NUMBERS = st.sampled_from([0.0, 1.0, 0.1, 1 / 3, 2.5, math.nan])


@st.composite
def samples(draw: st.DrawFn, count: int) -> list[Columns]:
    """Samples of the same documents; sometimes in clusters, in strata, or of another layout each."""
    n = draw(st.integers(0, 12))
    label = st.sampled_from(["a", "b", "c"]) | st.none()
    made = []
    shared = draw(st.booleans())
    layout = None
    for which in range(count):
        if layout is None or not shared:
            labels = [
                tuple(draw(st.lists(label, min_size=n, max_size=n))) if draw(st.booleans()) else None for _ in "cs"
            ]
            cluster, stratum = (one if one and any(one) else None for one in labels)
            ids = tuple(f"{i + which * (not shared)}" for i in range(n))
            layout = layout_of(ids, cluster, stratum)
        num = np.array(draw(st.lists(NUMBERS, min_size=n, max_size=n)), np.float64)
        den = np.array(draw(st.lists(st.sampled_from([1.0, 1.0, 0.0, 2.0]), min_size=n, max_size=n)), np.float64)
        made.append(Columns(layout, num, den))
    return made


@settings(max_examples=150)
@given(samples(4))
def test_columns_give_the_numbers_of_rows(found: list[Columns]) -> None:
    rows = [dict(one) for one in found]
    assert repr(estimate(found[0], 0, 50)) == repr(estimate(rows[0], 0, 50))
    assert repr(difference(found[0], found[1], seed=0, resamples=50)) == repr(
        difference(rows[0], rows[1], seed=0, resamples=50)
    )
    assert repr(harmonic(found[:2], 0, 50)) == repr(harmonic(rows[:2], 0, 50))
    assert repr(harmonic_difference(found[:2], found[2:], seed=0, resamples=50)) == repr(
        harmonic_difference(rows[:2], rows[2:], seed=0, resamples=50)
    )
    assert repr(dict(_mean_over_runs(found[:3]))) == repr(dict(_mean_over_runs(rows[:3])))
    by_column, by_row = _value(found[0]), _value(rows[0])
    assert by_column == (None if by_row is None else pytest.approx(by_row, rel=1e-12))


def test_columns_are_a_mapping() -> None:
    found = Columns(layout_of(("x", "y"), ("c", "c"), None), np.array([1.0, 0.5]), np.array([1.0, 2.0]))
    assert found == {"x": Ratio(1.0, 1.0, "c"), "y": Ratio(0.5, 2.0, "c")}
    assert "y" in found and "z" not in found and len(found) == 2


def test_a_document_stands_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        layout_of(("x", "x"), None, None)
    assert layout_of(("x", "y"), None, None) is layout_of(("x", "y"), None, None)


@settings(max_examples=40)
@given(samples(2))
def test_columns_are_equal_where_their_rows_are(both: list[Columns]) -> None:
    first, second = both
    if not all(np.isfinite(one.num).all() for one in both):
        return
    assert (first == second) == (dict(first) == dict(second))
    assert first == dict(first) and dict(first) == first
    assert first == Columns(first.layout, first.num.copy(), first.den.copy())
    if len(first):
        assert first != Columns(first.layout, first.num + 1, first.den)
