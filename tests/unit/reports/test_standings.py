"""Every pair of rows: the numbers of one comparison, errors kept, power as said, ranks that cover the true ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata
from statsmodels.stats.multitest import multipletests

from harness.exam.ratios import Columns, layout_of
from harness.exam.statistics import all_differences, difference, harmonic_difference
from harness.reports.cells import BoardRow, Metric
from harness.reports.standings import _ranks, needed, standings  # type: ignore[attr-defined]
from harness.runs.record import Record

METRIC = Metric("facts", "efficacy", "v", True)


def columns(values: np.ndarray, den: np.ndarray | None = None, each: int = 0) -> Columns:
    """A sample; each so many documents are a cluster."""
    ids = tuple(map(str, range(len(values))))
    cluster = tuple(f"c{i // each}" for i in range(len(values))) if each else None
    return Columns(layout_of(ids, cluster, None), values.astype(float), np.ones(len(values)) if den is None else den)


def row(name: str, sample: Columns) -> BoardRow:
    return BoardRow(name, [], Record(name, {}, values={5: {"facts": {"efficacy": sample}}}), 5)


def drawn(rng: np.random.Generator, n: int, *chances: float) -> list[Columns]:
    """Paired 0/1 samples: the same documents are hard for all."""
    hard = rng.random(n) < 0.5
    return [columns(np.where(hard, rng.random(n) < 2 * c - 0.95, rng.random(n) < 0.95)) for c in chances]


def test_a_resample_in_which_a_metric_applies_to_nothing_is_left_out() -> None:
    """Three of ten documents count: some resamples hold none of them, and say nothing of a difference."""
    counts = (np.arange(10) < 3).astype(float)
    rng = np.random.default_rng(1)
    samples = [columns(rng.random(10) * counts, counts) for _ in range(3)]
    found = all_differences([[one] for one in samples], seed=0)
    assert found is not None and 0 < len(found.draws) < 10_000 and np.isfinite(found.draws).all()
    for part in (found.value, found.low, found.high, found.p, found.detectable):
        assert np.isfinite(part).all()
    alone = difference(samples[0], samples[1], seed=0)
    assert (found.low[0, 1], found.high[0, 1]) == pytest.approx((alone.low, alone.high), abs=1e-9)
    shown = standings([row(name, one) for name, one in zip("abc", samples, strict=True)], METRIC, seed=0)
    assert shown is not None and all(0 <= one.first <= 1 for one in shown.rows)


def test_exact_pairs_are_those_of_one_comparison() -> None:
    samples = drawn(np.random.default_rng(0), 80, 0.9, 0.7, 0.7, 0.5)
    found = all_differences([[one] for one in samples], seed=0)
    assert found is not None and found.exact
    for i, first in enumerate(samples):
        for j, second in enumerate(samples):
            if i != j:
                one = difference(first, second, seed=0)
                said = (found.value[i, j], found.low[i, j], found.high[i, j], found.p[i, j], found.detectable[i, j])
                assert said == pytest.approx((one.value, one.low, one.high, one.p, one.detectable), abs=1e-12)
    assert (found.n, found.draws.shape) == (80, (2000, 4))


@pytest.mark.parametrize("each", [0, 3])
def test_drawn_pairs_are_those_of_one_comparison_but_for_what_was_drawn(each: int) -> None:
    rng = np.random.default_rng(1)
    den = rng.integers(1, 5, 150).astype(float)
    samples = [columns(den * np.clip(rng.normal(mean, 0.3, 150), 0, 1), den, each) for mean in (0.4, 0.45, 0.6)]
    found = all_differences([[one] for one in samples], seed=3)
    parts = all_differences([[one, samples[0]] for one in samples], seed=3)
    assert found is not None and parts is not None and not found.exact
    for i, j in ((0, 1), (1, 2), (2, 0)):
        one = difference(samples[i], samples[j], seed=0)
        score = harmonic_difference([samples[i], samples[0]], [samples[j], samples[0]], seed=0)
        for given, single in ((found, one), (parts, score)):
            assert single.low is not None and single.high is not None
            width = single.high - single.low
            assert given.value[i, j] == pytest.approx(single.value, abs=1e-12)
            assert given.low[i, j] == pytest.approx(single.low, abs=0.08 * width)
            assert given.high[i, j] == pytest.approx(single.high, abs=0.08 * width)
            assert given.p[i, j] == pytest.approx(single.p, rel=0.35, abs=0.03)
            assert given.low[j, i] == -given.high[i, j] and given.p[j, i] == given.p[i, j]


def test_samples_of_other_documents_are_not_compared() -> None:
    one, other = columns(np.ones(10)), columns(np.ones(11))
    assert all_differences([[one], [other]], seed=0) is None
    assert all_differences([[one], [dict(one)]], seed=0) is None
    assert standings([row("a", one)], METRIC) is None
    assert standings([row("a", one), BoardRow("b", [], Record("b", {}), 5)], METRIC) is None


def test_p_values_are_adjusted_as_statsmodels_does() -> None:
    rows = [row(str(i), one) for i, one in enumerate(drawn(np.random.default_rng(2), 100, 0.9, 0.8, 0.75, 0.5))]
    found = standings(rows, METRIC)
    assert found is not None and len(found.pairs) == 6
    expected = multipletests([pair.p for pair in found.pairs], method="holm")[1]
    assert [pair.adjusted for pair in found.pairs] == pytest.approx(list(expected))
    assert any(pair.p < 0.05 <= pair.adjusted for pair in found.pairs) or any(pair.apart for pair in found.pairs)


def test_the_order_and_its_groups() -> None:
    rng = np.random.default_rng(3)
    samples = drawn(rng, 400, 0.95, 0.94, 0.7, 0.5)
    found = standings([row(str(i), one) for i, one in enumerate(samples)], METRIC)
    assert found is not None
    assert [one.group for one in found.rows] == [1, 1, 2, 3]
    assert [(one.best, one.worst) for one in found.rows] == [(1, 2), (1, 2), (3, 3), (4, 4)]
    assert sum(one.first for one in found.rows) == pytest.approx(1)
    assert [one.drawn for one in found.rows[2:]] == [(3, 3), (4, 4)]
    lower = standings([row(str(i), one) for i, one in enumerate(samples)], Metric("facts", "efficacy", "v", False))
    assert lower is not None and [one.place for one in lower.rows] == [one.place for one in reversed(found.rows)]


def test_equal_rows_share_the_first_place() -> None:
    one = drawn(np.random.default_rng(4), 50, 0.8)[0]
    found = standings([row("a", one), row("b", one)], METRIC)
    assert found is not None
    assert [(r.best, r.worst, r.first, r.drawn, r.group) for r in found.rows] == [(1, 2, 0.5, (1.5, 1.5), 1)] * 2
    assert found.pairs[0].needed is None and not found.pairs[0].apart


# --- by simulation ----------------------------------------------------------------------------------------------------


def test_without_the_correction_of_the_exact_test_fewer_documents_are_needed() -> None:
    assert needed(0.1, 0.2, 49) == 196
    assert needed(0.1, 0.2, 49, exact=True) == 216
    assert needed(0.0, 0.2, 50) is None


def test_false_differences_are_as_rare_as_said() -> None:
    """200 tables of four equal editors: the chance of any difference in a table is at most 5 %."""
    rng = np.random.default_rng(5)
    tables = [standings([row(str(i), s) for i, s in enumerate(drawn(rng, 60, *[0.7] * 4))], METRIC) for _ in range(200)]
    false = sum(any(pair.apart for pair in found.pairs) for found in tables if found)
    assert false / 200 <= 0.06


def test_rank_intervals_cover_the_true_rank() -> None:
    """200 tables of three editors that differ: every true rank lies between best and worst 95 times in 100."""
    rng, hits = np.random.default_rng(6), 0
    for _ in range(200):
        found = standings([row(str(i), s) for i, s in enumerate(drawn(rng, 80, 0.85, 0.75, 0.65))], METRIC)
        assert found is not None
        hits += all(one.best <= one.place + 1 <= one.worst for one in found.rows)
    assert hits / 200 >= 0.95


def test_so_many_documents_show_it_four_times_in_five() -> None:
    """The n for a difference of 0.08, planned from a sample of 4,000, finds it in 74 to 86 % of 400 samples."""
    rng = np.random.default_rng(7)
    first, second = drawn(rng, 4000, 0.78, 0.7)
    large = all_differences([[first], [second]], seed=0)
    assert large is not None
    n = needed(-0.08, float(large.detectable[0, 1]), large.n, exact=True)
    assert n is not None and 100 < n < 1000
    found = sum(difference(*drawn(rng, n, 0.78, 0.7), seed=0).significant for _ in range(400))
    assert 0.74 <= found / 400 <= 0.86


def test_ranks_are_those_of_scipy() -> None:
    draws = np.random.default_rng(0).integers(0, 6, (200, 9)) / 5  # many ties
    ranks, first = _ranks(draws)
    assert (ranks == rankdata(-draws, axis=1)).all()
    assert first.sum() == pytest.approx(1)
    assert first[0] == pytest.approx(
        ((draws[:, 0] == draws.max(1)) / (draws == draws.max(1, keepdims=True)).sum(1)).mean()
    )
