"""What is left of edits: the half-life and the area in closed form, intervals that cover, collapses between stops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from synthetic import record

from harness.exam.ratios import Ratio
from harness.exam.statistics import weighted_sum
from harness.exam.survival import half_life
from harness.reports.retention import lost_after, retention

Held = dict[str, dict[str, Ratio]]
STOPS = (10, 20, 50)


def outcomes(*held: str) -> dict[str, Ratio]:
    """Documents, each a case: ``a`` holds, ``-a`` does not."""
    return {name.lstrip("-"): Ratio(float(not name.startswith("-")), 1.0, name.lstrip("-")) for name in held}


def test_a_case_is_lost_between_two_numbers_of_further_edits() -> None:
    """Counted from the stop at which it was first measured; one that never held says nothing."""
    stops = [
        (10, outcomes("a", "b", "-never")),
        (20, outcomes("a", "-b", "-never", "c", "d")),
        (50, outcomes("-a", "-b", "-never", "c", "-d", "last")),
    ]
    assert sorted(lost_after(stops)) == [(0.0, 10.0), (0.0, 30.0), (10.0, 40.0), (30.0, math.inf)]


def test_the_half_life_of_cases_that_were_watched_for_other_times() -> None:
    """Most were made near the end: that they are there says little, and the rate says when half would be gone."""
    rng = np.random.default_rng(0)
    gone, watched = rng.exponential(20 / math.log(2), 4000), rng.choice([5.0, 10.0, 100.0], 4000, p=[0.6, 0.3, 0.1])
    lost = []
    for after, end in zip(gone, watched, strict=True):
        before = 0.0 if after < 5 else 5.0
        lost.append((before, 5.0 if after < 5 else float(end)) if after < end else (float(end), math.inf))
    found = half_life(lost)
    assert sum(math.isfinite(high) for _, high in lost) < len(lost) / 2
    assert found.value is not None and found.low is not None and found.high is not None
    assert found.low < 20 < found.high and found.value == pytest.approx(20, rel=0.1)


def test_the_area_and_the_numbers_of_a_record() -> None:
    made = record("rome", 0.8, mode="sequential", counts=(0, *STOPS))
    made.points[2]["latest"] = {"counterfact": {"efficacy": {"value": 0.9}}}
    found = retention(replace(made, collapse={"norm": 20}))
    assert found is not None
    heights = [point["tasks"]["counterfact"]["efficacy"]["value"] for point in made.points[1:]]
    assert found.area.value == pytest.approx(np.trapezoid(heights, STOPS) / 40)
    assert found.area.low is not None and found.area.high is not None
    assert found.area.low < found.area.value < found.area.high  # type: ignore[operator]
    assert [row[:2] for row in found.rows] == list(zip(STOPS, heights, strict=True))
    assert (found.latest, found.collapse, found.task) == (((20, 0.9),), {"norm": (10, 20)}, "counterfact")
    assert found.facts["collapse"] == "norm: between 10 and 20 edits"
    bare = retention(replace(made, values=None))
    assert bare is not None and bare.area.value == pytest.approx(found.area.value)
    assert (bare.area.low, bare.half_life.text) == (None, "nothing held")
    assert bare.facts["collapse"] == "no sign up to 50 edits"


def test_what_has_no_curve() -> None:
    assert retention(record("rome", 0.8, mode="batch", counts=(0, *STOPS))) is None
    assert retention(record("rome", 0.8, mode="sequential")) is None


def test_the_interval_of_an_area_covers_it() -> None:
    """Cases decay with one rate; later stops have more of them. 300 samples, of which 95 % are to cover."""
    rng, weights, covered = np.random.default_rng(1), [0.125, 0.5, 0.375], 0
    rates = [0.9, 0.7, 0.5]
    truth = float(np.dot(weights, rates))
    for _ in range(300):
        luck = rng.random(50)
        stops = [
            {str(i): Ratio(float(luck[i] < rate), 1.0, str(i)) for i in range(count)}
            for rate, count in zip(rates, STOPS, strict=True)
        ]
        one = weighted_sum(stops, weights, seed=0, resamples=400)
        assert one.low is not None and one.high is not None
        covered += one.low <= truth <= one.high
    assert 0.91 <= covered / 300 <= 0.985


def test_a_sum_of_one_metric_is_that_metric() -> None:
    values = {str(i): Ratio(float(i % 3 == 0), 1.0) for i in range(30)}
    assert weighted_sum([values, values], [0.25, 0.75], seed=0).value == pytest.approx(1 / 3)
    assert weighted_sum([values, {}], [0.5, 0.5], seed=0).reason == "a component has no value"
