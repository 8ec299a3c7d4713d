"""Runs that differ in their seed alone become one row of their mean."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kendalltau
from synthetic import record

from harness.exam.statistics import Ratio
from harness.reports.leaderboard import leaderboard
from harness.reports.seeds import pool, stability
from harness.runs.record import Record


def runs(*seeds: int) -> list[Record]:
    return [record("memit", 0.6 + 0.1 * seed, seed=seed) for seed in seeds]


def test_values_are_means_over_the_seeds() -> None:
    single = runs(0, 1, 2)
    (one,) = pool(single)
    for task, table in one.tasks(50).items():
        for metric, measure in table.items():
            each = [r.tasks(50)[task][metric]["value"] for r in single]
            if metric not in one.derived.get(task, {}):
                assert measure["value"] == pytest.approx(sum(each) / 3), (task, metric)
    assert one.plan["seeds"] == [0, 1, 2]
    assert one.id not in {r.id for r in single}


def test_deviation_is_that_over_the_seeds() -> None:
    single = runs(0, 1, 2)
    (one,) = pool(single)
    each = [r.tasks(50)["NLI"]["accuracy"]["value"] for r in single]
    mean = sum(each) / 3
    wanted = (sum((value - mean) ** 2 for value in each) / 2) ** 0.5
    assert one.tasks(50)["NLI"]["accuracy"]["deviation"] == pytest.approx(wanted)
    assert wanted > 0


def test_differences_are_paired_with_the_mean_of_the_unedited() -> None:
    (one,) = pool(runs(0, 1))
    measure = one.tasks(50)["NLI"]["accuracy"]
    base = one.tasks(0)["NLI"]["accuracy"]["value"]
    assert measure["difference"]["value"] == pytest.approx(measure["value"] - base)
    assert one.tasks(0)["NLI"]["accuracy"]["difference"] is None


@pytest.mark.parametrize(("metric", "found"), [("score", 4), ("efficacy", 1)])
def test_only_what_is_wanted_is_pooled_and_in_the_same_numbers(metric: str, found: int) -> None:
    """A score that is derived needs the values of its three parts, wanted or not."""
    (whole,) = pool(runs(0, 1, 2))
    (some,) = pool(runs(0, 1, 2), lambda record, task, measures: [m for m in measures if m in (metric, "accuracy")])
    for edits in (0, 50):
        for task, table in some.tasks(edits).items():
            assert {name: whole.tasks(edits)[task][name] for name in table} == table
    assert len(some.tasks(50)["counterfact"]) == found and metric in some.tasks(50)["counterfact"]
    assert some.tasks(50)["NER"] == {}
    assert some.values is not None and whole.values is not None
    assert some.values[50]["NLI"] == whole.values[50]["NLI"]


def test_what_differs_in_more_than_the_seed_stays_apart() -> None:
    first, second = runs(0, 1)
    other = replace(second, editor={**second.editor, "hyperparameters": {"lr": 0.1}})
    assert len(pool([first, other])) == 2
    assert len(pool([first, replace(second, values=None)])) == 2
    assert len(pool([first, first])) == 2
    assert len(pool([first, replace(second, status="interrupted")])) == 2


def test_the_seed_among_the_hyperparameters_does_not_tell_runs_apart() -> None:
    made = [
        replace(r, editor={**r.editor, "hyperparameters": {"seed": r.seed, "rect.seed": r.seed}}) for r in runs(0, 1)
    ]
    assert len(pool(made)) == 1


def test_a_field_that_an_earlier_version_did_not_name_is_at_its_default() -> None:
    first, second, third = runs(0, 1, 2)
    second.plan["exam"], third.plan["exam"] = [], ["probability"]
    (one, alone) = pool([first, second, third])
    assert one.plan["seeds"] == [0, 1]
    assert alone is third


def test_the_leaderboard_shows_one_row_of_a_mean() -> None:
    text = leaderboard(runs(0, 1, 2), "md")
    assert text.count("| memit") == 1
    assert "memit (3 seeds, sd at most " in text


# --- the order of editors over seeds ----------------------------------------------------------------------------------


def test_stability_is_kendalls_tau_between_seeds_and_who_is_ahead_how_often() -> None:
    """Three seeds; the second turns the last two round: tau is 1/3 with it (2 of 3 pairs agree), 1 without."""
    each = {"a": [0.9, 0.8, 0.9], "b": [0.7, 0.5, 0.6], "c": [0.5, 0.6, 0.4]}
    found = stability(each, higher_is_better=True)
    assert found.tau == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    assert found.steps == (("a", "b", 3), ("b", "c", 2))
    assert found.seeds == 3
    down = stability(each, higher_is_better=False)
    assert down.tau == found.tau
    assert down.steps == (("c", "b", 2), ("b", "a", 3))


def test_tau_is_that_of_scipy_with_ties_too() -> None:
    draw = np.random.default_rng(0)
    for count in range(2, 30):
        a, b = draw.integers(0, 9, (2, count)).astype(float)
        found = stability({str(i): [x, y] for i, (x, y) in enumerate(zip(a, b, strict=True))}, True).tau
        assert found == pytest.approx(float(kendalltau(a, b).statistic), abs=1e-12)


def test_an_order_turned_round_is_minus_one_and_ties_are_no_order() -> None:
    assert stability({"a": [1.0, 0.0], "b": [0.0, 1.0]}, True).tau == -1.0
    tied = stability({"a": [0.5, 0.5], "b": [0.5, 0.5]}, True)
    assert (tied.tau, tied.steps) == (None, (("a", "b", 0),))
    for each in ({"a": [1.0, 2.0]}, {"a": [1.0], "b": [2.0]}, {"a": [1.0, 2.0], "b": [1.0]}):
        with pytest.raises(ValueError, match="two editors"):
            stability(each, True)


def test_the_leaderboard_says_how_stable_the_order_is() -> None:
    """Made so that memit is ahead under seeds 0 and 1 and rome under seed 2."""
    made = [record("memit", skill, seed=seed) for seed, skill in enumerate((0.9, 0.8, 0.2))]
    made += [record("rome", skill, seed=seed) for seed, skill in enumerate((0.5, 0.4, 0.6))]
    scores = {r.editor["name"]: [] for r in made}
    for r in made:
        scores[r.editor["name"]].append(r.tasks(50)["counterfact"]["score"]["value"])
    assert [a > b for a, b in zip(scores["memit"], scores["rome"], strict=True)] == [True, True, False]
    for fmt in ("md", "html", "latex"):
        text = leaderboard(made, fmt).replace("\\_", "_")
        assert "Order of 2 editors under seeds 0, 1, 2, Kendall's tau: counterfact score -0.33" in text.replace(
            "&#x27;", "'"
        )
        assert "By counterfact score, of 3 seeds: memit ahead of rome in 2." in text
    assert "Kendall" not in leaderboard(made[:3], "md")


def test_orders_that_were_drawn_from_the_seed_are_one_run_and_documents_of_any_run_count() -> None:
    """At an early stop each order has made other edits: the mean is over all that any run has made."""
    first, second = (
        replace(r, plan={**r.plan, "order": "random"}, edits={**r.edits, "ids": ids, "sha256": str(ids)})
        for r, ids in zip(runs(0, 1), (["x", "y"], ["y", "x"]), strict=True)
    )
    for r, case, num in ((first, "x", 1.0), (second, "y", 0.0)):
        assert r.values is not None
        r.values[50]["NLI"] = {"accuracy": {f"NLI/{case}": Ratio(num), "NLI/both": Ratio(num)}}
    (one,) = pool([first, second])
    assert one.values is not None
    assert {d: r.num for d, r in one.values[50]["NLI"]["accuracy"].items()} == {"NLI/x": 1, "NLI/both": 0.5, "NLI/y": 0}
    assert one.tasks(50)["NLI"]["accuracy"]["value"] == pytest.approx(0.5)
    fixed = replace(second, plan={**second.plan, "order": "file"})
    assert len(pool([first, fixed])) == 2
