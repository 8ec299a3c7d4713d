"""Statistics against closed forms, published numbers and simulation."""

from __future__ import annotations

import math
import random
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from harness.exam import statistics
from harness.exam.statistics import Ratio, aggregate, difference, estimate, harmonic, harmonic_difference, holm, mcnemar


def outcomes(right: int, wrong: int) -> dict[str, Ratio]:
    return {str(i): Ratio(float(i < right)) for i in range(right + wrong)}


def normal(n: int, seed: int, shift: float = 0.0) -> dict[str, Ratio]:
    return {str(i): Ratio(float(x)) for i, x in enumerate(np.random.default_rng(seed).normal(shift, 1, n))}


# --- value ------------------------------------------------------------------------------------------------------------


def test_the_value_is_a_ratio_of_sums() -> None:
    assert aggregate([Ratio(2 * 3, 4 + 5), Ratio(2 * 0, 1 + 0)]) == pytest.approx(6 / 10)


def test_items_may_be_numbers_or_lists_of_fields() -> None:
    assert aggregate([1, 0.5, True, [0, 1], (3.0, 2.0, None, None)]) == pytest.approx(5.5 / 6)
    assert aggregate([["1", 1, "a"], [0.0, 1, "a"], [1.0, 1, "b"]]) == 0.75


def test_clusters_are_averaged_first() -> None:
    items = [Ratio(1, 1, "a"), Ratio(0, 1, "a"), Ratio(0, 1, "a"), Ratio(1, 1, "b")]
    assert aggregate(items) == pytest.approx((1 / 3 + 1) / 2)


def test_strata_are_averaged_last() -> None:
    items = [Ratio(1, 1, None, "PER"), Ratio(1, 1, None, "PER"), Ratio(0, 1, None, "LOC")]
    assert aggregate(items) == 0.5


def test_a_cluster_across_strata_is_averaged_within_each() -> None:
    items = [Ratio(1, 1, "a", "x"), Ratio(0, 1, "a", "x"), Ratio(1, 1, "a", "y"), Ratio(0, 1, "b", "x")]
    assert aggregate(items) == pytest.approx(((0.5 + 0) / 2 + 1) / 2)


def test_missing_is_not_zero() -> None:
    assert math.isnan(aggregate([]))
    assert math.isnan(aggregate([Ratio(0, 0)]))
    assert math.isnan(aggregate([math.nan, None]))  # type: ignore[list-item]
    assert aggregate([1.0, math.nan, math.inf, Ratio(0, 0)]) == 1.0


def test_a_stratum_without_documents_is_left_out() -> None:
    assert aggregate([Ratio(1, 2, None, "x"), Ratio(0, 0, None, "y")]) == 0.5


def test_v13_editing_metrics_over_records() -> None:
    """Mean over records of the mean over a record's probes; strict comparison, a tie fails."""
    nll = {
        "1": {"rewrite": [(1.2, 3.0)], "paraphrase": [(2.0, 1.0), (0.5, 0.6)], "near": [(4, 1), (2, 2.5), (1, 3)]},
        "2": {"rewrite": [(5.0, 0.7)], "paraphrase": [(0.2, 1), (0.3, 1)], "near": [(2, 1), (2, 1)]},
    }

    def share(kind: str, new_wins: bool) -> float:
        wins = [(case, (n < t) if new_wins else (n > t)) for case, rows in nll.items() for n, t in rows[kind]]
        return 100 * aggregate([Ratio(float(win), 1, case) for case, win in wins])

    assert share("rewrite", True) == pytest.approx(50.00)
    assert share("paraphrase", True) == pytest.approx(75.00)
    assert share("near", False) == pytest.approx(66.67, abs=0.005)


# --- interval ---------------------------------------------------------------------------------------------------------


def test_wilson_of_a_proportion() -> None:
    """15 of 148: 0.0624 to 0.1605 (Newcombe 1998, example (b))."""
    result = estimate({str(i): Ratio(float(i < 15)) for i in range(148)}, seed=0)
    assert (result.low, result.high) == (pytest.approx(0.0624, abs=5e-5), pytest.approx(0.1605, abs=5e-5))
    assert result.n == 148


@pytest.mark.parametrize("clustered", [False, True])
def test_all_right_is_not_certain(clustered: bool) -> None:
    values = {str(i): Ratio(1, 1, f"edit{i // 2}" if clustered else None) for i in range(100)}
    result = estimate(values, seed=0)
    units = 50 if clustered else 100
    assert (result.value, result.high) == (1.0, 1.0)
    assert result.low == pytest.approx(units / (units + 1.959964**2), abs=1e-6)


def test_a_perfect_f1_is_not_certain() -> None:
    result = estimate({str(i): Ratio(2.0 * i, 2.0 * i) for i in range(1, 31)}, seed=0)
    assert result.value == 1.0
    assert result.low == pytest.approx(30 / (30 + 1.959964**2), abs=1e-6)


def test_equal_values_have_no_interval_and_say_so() -> None:
    result = estimate({str(i): Ratio(0.3) for i in range(10)}, seed=0)
    assert (result.value, result.low, result.high) == (pytest.approx(0.3), None, None)
    assert result.reason == "no interval: all 10 documents have the same value"


@pytest.mark.parametrize("n", [20, 400])
def test_bootstrap_agrees_with_student(n: int) -> None:
    values = normal(n, seed=1)
    x = np.array([r.num for r in values.values()])
    half = {20: 2.0930, 400: 1.9659}[n] * x.std(ddof=1) / math.sqrt(n)
    result = estimate(values, seed=0, resamples=20_000)
    assert result.low == pytest.approx(x.mean() - half, abs=0.08 * half)
    assert result.high == pytest.approx(x.mean() + half, abs=0.08 * half)


def test_bootstrap_of_a_ratio_agrees_with_the_delta_method() -> None:
    rng = np.random.default_rng(5)
    den = rng.integers(1, 9, 500).astype(float)
    num = rng.binomial(den.astype(int), 0.7).astype(float)
    value = num.sum() / den.sum()
    error = math.sqrt(((num - value * den) ** 2).sum()) / den.sum()
    result = estimate({str(i): Ratio(a, b) for i, (a, b) in enumerate(zip(num, den, strict=True))}, 0, 20_000)
    assert result.value == pytest.approx(value)
    assert (result.high - result.low) / 2 == pytest.approx(1.96 * error, rel=0.05)


def test_strata_are_drawn_apart() -> None:
    """The variance of a macro average is the mean of the strata's own variances, not that of the mixture."""
    values = {
        f"{s}{i}": Ratio(float(x), 1, None, s)
        for s, shift in (("a", 0.0), ("b", 50.0))
        for i, x in enumerate(np.random.default_rng(ord(s)).normal(shift, 1, 200))
    }
    result = estimate(values, 0, 10_000)
    assert (result.high - result.low) / 2 == pytest.approx(1.96 * math.sqrt(2 / 200) / 2, rel=0.12)


def test_clusters_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    effect = rng.normal(0, 1, 40)
    free = {str(i): Ratio(float(effect[i // 10] + rng.normal(0, 0.1))) for i in range(400)}
    tied = {i: r._replace(cluster=str(int(i) // 10)) for i, r in free.items()}
    wide, narrow = estimate(tied, 0), estimate(free, 0)
    assert wide.value == pytest.approx(narrow.value)
    assert (wide.n, wide.clusters, narrow.clusters) == (400, 40, None)
    assert wide.high - wide.low > 2.5 * (narrow.high - narrow.low)


def _share_covered(draw: object, truth: float, runs: int) -> float:
    hits = 0
    for run in range(runs):
        result = draw(np.random.default_rng(run))  # type: ignore[operator]
        hits += result.low <= truth <= result.high
    return hits / runs


@pytest.mark.parametrize("n", [5, 12, 60])
def test_coverage_of_the_bootstrap(n: int) -> None:
    def draw(rng: np.random.Generator) -> statistics.Estimate:
        return estimate({str(i): Ratio(float(x)) for i, x in enumerate(rng.normal(0, 1, n))}, 0, 1000)

    assert 0.92 <= _share_covered(draw, 0.0, 300) <= 0.985


def test_coverage_with_clusters() -> None:
    def draw(rng: np.random.Generator) -> statistics.Estimate:
        share = rng.beta(2, 2, 30)
        return estimate(
            {str(i): Ratio(float(rng.random() < share[i // 5]), 1, str(i // 5)) for i in range(150)}, 0, 500
        )

    assert 0.91 <= _share_covered(draw, 0.5, 300) <= 0.985


def test_coverage_of_a_paired_difference_of_outcomes() -> None:
    def draw(rng: np.random.Generator) -> statistics.Difference:
        before = rng.random(40) < 0.8
        after = np.where(rng.random(40) < 0.2, rng.random(40) < 0.3, before)
        pair = [{str(i): Ratio(float(x)) for i, x in enumerate(side)} for side in (before, after)]
        return difference(*pair, seed=0)

    assert 0.92 <= _share_covered(draw, 0.2 * (0.3 - 0.8), 400) <= 0.985


# --- missing ----------------------------------------------------------------------------------------------------------


def test_what_is_not_finite_is_left_out_and_counted() -> None:
    values = {"a": Ratio(1), "b": Ratio(0), "c": Ratio(math.nan), "d": Ratio(math.inf)}
    result = estimate(values, 0)
    assert (result.value, result.n) == (0.5, 2)
    assert result.reason == "2 of 4 documents have no finite value"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "no documents"),
        ({"a": Ratio(0, 0)}, "applies to no document"),
        ({"a": Ratio(math.nan), "b": Ratio(math.nan)}, "none of 2 documents has a finite value"),
    ],
)
def test_nothing_to_measure_has_no_value(values: statistics.Values, reason: str) -> None:
    assert estimate(values, 0) == statistics.Estimate(None, 0, reason=reason)
    assert difference(values, values, seed=0).value is None


def test_a_negative_denominator_is_no_number() -> None:
    assert estimate({"a": Ratio(1, -1), "b": Ratio(1, 1)}, 0).reason == "1 of 2 documents have no finite value"


# --- difference -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gained", "lost", "p"), [(5, 15, 0.041389), (0, 6, 0.03125), (0, 5, 0.0625), (7, 7, 1.0), (0, 0, 1.0)]
)
def test_mcnemar_exact(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p, abs=5e-7)


def test_a_difference_of_outcomes_is_mcnemar_and_bonett_price() -> None:
    """n = 100, 5 gained, 15 lost: p+ = 6/102, p- = 16/102, so -10/102 -+ 1.96 sqrt((22/102 - (10/102)^2) / 102)."""
    base = {str(i): Ratio(float(i < 60)) for i in range(100)}
    edited = {str(i): Ratio(float(15 <= i < 65)) for i in range(100)}
    result = difference(base, edited, seed=0)
    half = 1.959964 * math.sqrt((22 / 102 - (10 / 102) ** 2) / 102)
    assert (result.value, result.n) == (pytest.approx(-0.1), 100)
    assert result.p == pytest.approx(0.041389, abs=5e-7)
    assert (result.low, result.high) == (pytest.approx(-10 / 102 - half), pytest.approx(-10 / 102 + half))
    assert result.detectable == pytest.approx((1.959964 + 0.841621) / 1.959964 * half, rel=1e-6)
    assert result.significant


def test_one_probe_an_edit_is_an_outcome_too() -> None:
    base = {str(i): Ratio(0.0, 1, f"edit{i}") for i in range(20)}
    edited = {str(i): Ratio(float(i < 8), 1, f"edit{i}") for i in range(20)}
    assert difference(base, edited, seed=0).p == pytest.approx(2 / 2**8)


def test_outcomes_that_count_on_one_side_only_are_no_pairs_of_mcnemar() -> None:
    """Ten right of ten that answer, then ten right of twenty: the accuracy over answers falls, by the bootstrap."""
    base = {str(i): Ratio(float(i < 10), float(i < 10)) for i in range(20)}
    edited = {str(i): Ratio(float(i < 10), 1.0) for i in range(20)}
    result = difference(base, edited, seed=0)
    assert result.value == pytest.approx(-0.5)
    assert (result.p, result.n) != (1.0, 20)
    assert result.significant


def test_a_clear_effect_survives_an_adjustment_for_many_comparisons() -> None:
    """Counting among 2000 resamples alone could not go below 0.001."""
    base = normal(60, seed=4)
    edited = {i: Ratio(r.num + 1 + 0.1 * math.sin(int(i))) for i, r in base.items()}
    assert difference(base, edited, seed=0).p < 1e-6


def test_pairing_narrows_the_interval() -> None:
    base = normal(100, seed=3, shift=10)
    edited = {i: Ratio(r.num - 0.1 + 0.01 * (int(i) % 3)) for i, r in base.items()}
    paired = difference(base, edited, seed=0)
    assert paired.value == pytest.approx(-0.09, abs=2e-3)
    assert paired.high - paired.low < 0.01
    assert paired.significant


def test_a_bootstrap_p_is_that_of_student() -> None:
    """The p value and the interval are two readings of one thing: both follow the paired t test."""
    rng = np.random.default_rng(11)
    d = rng.normal(0.45, 1, 25)
    base = {str(i): Ratio(float(i)) for i in range(25)}
    edited = {str(i): Ratio(float(i) + float(d[i])) for i in range(25)}
    from scipy import stats

    expected = stats.ttest_1samp(d, 0).pvalue
    result = difference(base, edited, seed=0, resamples=50_000)
    assert 0.01 < expected < 0.2
    assert result.p == pytest.approx(expected, rel=0.25)
    assert (result.p < 0.05) == (not result.low <= 0 <= result.high)


def test_only_documents_of_both_sides_are_compared() -> None:
    base = {"a": Ratio(1), "b": Ratio(1), "c": Ratio(0), "d": Ratio(math.nan)}
    edited = {"b": Ratio(0), "c": Ratio(0), "d": Ratio(1), "e": Ratio(1)}
    result = difference(base, edited, seed=0)
    assert (result.value, result.n) == (-0.5, 2)
    assert result.reason == "3 of 5 documents have no value on both sides"


def test_micro_f1_keeps_documents_that_become_countable() -> None:
    """A sentence without entities counts as soon as the edited model invents one."""
    base = {"a": Ratio(2, 2), "b": Ratio(0, 0)}
    edited = {"a": Ratio(2, 2), "b": Ratio(0, 2)}
    assert difference(base, edited, seed=0).value == pytest.approx(-0.5)


@pytest.mark.parametrize("value", [1.0, 0.37])
def test_no_change_is_not_certain(value: float) -> None:
    same = {str(i): Ratio(value, 1, str(i // 2)) for i in range(100)}
    result = difference(same, same, seed=0)
    assert (result.value, result.p, result.significant) == (0.0, 1.0, False)
    assert result.high == pytest.approx(1.959964 * math.sqrt(2 / 52 / 52), rel=1e-6)
    assert result.low == -result.high


def test_detectable_effect_has_the_power_it_claims() -> None:
    """One-way changes of the size that is called detectable are found in about 80 % of experiments."""
    effect = difference(outcomes(50, 0), outcomes(50, 0), seed=0).detectable
    changed = np.random.default_rng(0).binomial(50, effect, 4000)
    assert np.mean([mcnemar(0, int(c)) < 0.05 for c in changed]) == pytest.approx(0.8, abs=0.02)


def test_too_few_documents_can_show_nothing() -> None:
    result = difference(outcomes(5, 0), outcomes(0, 5), seed=0)
    assert (result.value, result.detectable, result.significant) == (-1.0, 1.0, False)


def test_a_constant_shift_of_unbounded_values_has_no_interval() -> None:
    base = {str(i): Ratio(5.0 + i) for i in range(4)}
    edited = {i: Ratio(r.num + 1) for i, r in base.items()}
    result = difference(base, edited, seed=0)
    assert (result.value, result.low, result.p) == (1.0, None, None)
    assert result.reason == "no interval: all 4 documents change by the same amount"


# --- harmonic ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "expected"),
    [((1.0, 0.964, 0.754), 0.891900), ((0.989, 0.886, 0.737), 0.857966), ((0.967, 0.897, 0.266), 0.507756)],
)
def test_tv_10_score(shares: tuple[float, ...], expected: float) -> None:
    parts = [
        {f"{k}{i}": Ratio(float(i < round(1000 * s)), 1, f"edit{i}") for i in range(1000)} for k, s in enumerate(shares)
    ]
    assert harmonic(parts, 0, 50).value == pytest.approx(expected, abs=5e-7)


def test_harmonic_interval_agrees_with_the_delta_method() -> None:
    """For independent shares: var S = sum (S^2 / (k v^2))^2 var v."""
    shares, n = (0.9, 0.7, 0.5), 400
    rng = np.random.default_rng(0)
    parts = [
        {f"{k}.{i}": Ratio(float(x), 1, str(i)) for i, x in enumerate(rng.permutation(n) < s * n)}
        for k, s in enumerate(shares)
    ]
    result = harmonic(parts, 0, 20_000)
    score = 3 / sum(1 / s for s in shares)
    error = math.sqrt(sum((score**2 / (3 * s * s)) ** 2 * s * (1 - s) / n for s in shares))
    assert result.value == pytest.approx(score)
    assert (result.high - result.low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert result.n == n


def test_harmonic_resamples_clusters_jointly() -> None:
    """Components that move together make a wider interval than components that compensate each other."""
    up = {f"u{i}": Ratio(float(i % 2), 1, str(i)) for i in range(100)}
    along = {f"a{i}": Ratio(float(i % 2), 1, str(i)) for i in range(100)}
    against = {f"x{i}": Ratio(float(1 - i % 2), 1, str(i)) for i in range(100)}
    joint, opposed = harmonic([up, along], 0), harmonic([up, against], 0)
    assert joint.value == opposed.value == pytest.approx(0.5)
    assert joint.high - joint.low > 5 * (opposed.high - opposed.low)


def test_a_component_of_zero_or_none() -> None:
    assert harmonic([outcomes(5, 5), outcomes(0, 10)], 0).value == 0.0
    assert harmonic([outcomes(5, 5), {}], 0) == statistics.Estimate(None, 0, reason="a component has no value")


def test_harmonic_difference_is_paired() -> None:
    base = [outcomes(20, 80), outcomes(80, 20)]
    edited = [outcomes(60, 40), outcomes(80, 20)]
    result = harmonic_difference(base, edited, seed=0)
    assert result.value == pytest.approx(2 / (1 / 0.6 + 1 / 0.8) - 2 / (1 / 0.2 + 1 / 0.8))
    assert result.significant
    same = harmonic_difference(base, base, seed=0)
    assert (same.value, same.p) == (0.0, 1.0)


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_holm() -> None:
    """Holm (1979): 0.01, 0.04, 0.03, 0.005 become 0.03, 0.06, 0.06, 0.02."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_resamples_are_drawn_side_by_side() -> None:
    """As many functions are called for ten times as many resamples."""
    before, after = normal(20, 0), normal(20, 1)

    def calls(resamples: int) -> int:
        called = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal called
            called += event in ("call", "c_call")

        for watch in (None, count):  # first once unwatched: what is drawn first is kept
            sys.setprofile(watch)
            try:
                estimate(before, 0, resamples)
                difference(before, after, seed=0, resamples=resamples)
            finally:
                sys.setprofile(None)
        return called

    assert calls(200) == calls(2000)


ratios = st.builds(
    Ratio,
    st.floats(-10, 10),
    st.sampled_from([0.0, 1.0, 1.0, 2.0]),
    st.sampled_from([None, "a", "b", "c"]),
    st.sampled_from([None, "x", "y"]),
)
tables = st.dictionaries(st.text("0123456789", min_size=1, max_size=4), ratios, max_size=15)


@settings(max_examples=60)
@given(tables, st.integers(0, 5))
def test_an_estimate_is_seeded_and_agrees_with_aggregate(values: dict[str, Ratio], seed: int) -> None:
    result = estimate(values, seed, 50)
    assert result == estimate(values, seed, 50)
    value = aggregate(values.values())
    assert (result.value is None) == math.isnan(value)
    assert result.value is None or result.value == pytest.approx(value)
    assert (result.low is None) == (result.high is None)
    assert result.low is None or result.low <= result.high


@settings(max_examples=60)
@given(tables, tables)
def test_a_difference_turns_its_sign_with_its_sides(base: dict[str, Ratio], edited: dict[str, Ratio]) -> None:
    there, back = difference(base, edited, seed=0, resamples=50), difference(edited, base, seed=0, resamples=50)
    assert (there.value is None) == (back.value is None)
    assert there.value is None or there.value == pytest.approx(-back.value)
    assert there.n == back.n


@settings(max_examples=60)
@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_wilson_contains_the_value_and_stays_within_zero_and_one(right: list[bool]) -> None:
    result = estimate({str(i): Ratio(float(r)) for i, r in enumerate(right)}, 0)
    assert 0 <= result.low <= result.value <= result.high <= 1
    assert result.high - result.low > 0.05


# --- the agreement of two raters --------------------------------------------------------------------------------------


def raters(n: int, labels: str, seed: int, same: float = 0.5) -> dict[str, tuple[str, str, str | None]]:
    """What two raters say of n units: alike as often as asked, else at random."""
    rng = random.Random(seed)
    first = [rng.choice(labels) for _ in range(n)]
    second = [one if rng.random() < same else rng.choice(labels) for one in first]
    return {str(i): (a, b, None) for i, (a, b) in enumerate(zip(first, second, strict=True))}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("labels", ["ab", "abc"])
def test_kappa_is_that_of_scikit_learn(labels: str, seed: int) -> None:
    pairs = raters(60, labels, seed)
    first, second = zip(*((a, b) for a, b, _ in pairs.values()), strict=True)
    found = statistics.kappa(pairs, seed=0)
    assert found.value == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)
    assert found.n == 60 and found.low is not None and found.high is not None
    assert found.low < found.value < found.high


def test_kappa_of_clusters_weighs_each_cluster_alike() -> None:
    pairs = {name: (a, b, f"c{int(name) % 7}") for name, (a, b, _) in raters(50, "ab", 5).items()}
    sizes = Counter(cluster for _, _, cluster in pairs.values())
    weights = [1 / sizes[cluster] for _, _, cluster in pairs.values()]
    first, second = zip(*((a, b) for a, b, _ in pairs.values()), strict=True)
    found = statistics.kappa(pairs, seed=0)
    assert found.value == pytest.approx(cohen_kappa_score(first, second, sample_weight=weights), abs=1e-12)
    assert (found.n, found.clusters) == (50, 7)


def test_the_interval_of_kappa_covers_the_truth() -> None:
    truth, covered = 0.5, 0
    for seed in range(200):  # alike half of the time, else at random: kappa is 0.5
        found = statistics.kappa(raters(80, "ab", seed), seed=0, resamples=400)
        assert found.low is not None and found.high is not None
        covered += found.low <= truth <= found.high
    assert 0.90 <= covered / 200 <= 0.985


def test_kappa_where_there_is_none() -> None:
    assert statistics.kappa({}, seed=0).reason == "no pair"
    alike = {str(i): ("a", "a", None) for i in range(5)}
    assert statistics.kappa(alike, seed=0).value is None
    assert "one and the same" in str(statistics.kappa(alike, seed=0).reason)
    perfect = {str(i): (label, label, None) for i, label in enumerate("abab")}
    assert statistics.kappa(perfect, seed=0).value == pytest.approx(1.0)
    constant = {str(i): ("a", label, None) for i, label in enumerate("abab")}
    assert (statistics.kappa(constant, seed=0).value, statistics.kappa(constant, seed=0).low) == (0.0, None)
