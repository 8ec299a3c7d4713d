"""What a person reads in a terminal: widths and words."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import synthetic
from rich.console import Console, RenderableType
from synthetic import fixed

from harness.exam.statistics import Ratio
from harness.reports import terminal_tables
from harness.reports.comparison import pair_difference
from harness.reports.regressions import Moved, regressions
from harness.reports.seeds import pool
from harness.runs.record import Record

DASH = "\N{EN DASH}"


def text(renderable: RenderableType, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@cache
def made(editor: str, skill: float, **more: Any) -> Record:
    return synthetic.record(editor, skill, **more)


def row(output: str, label: str) -> str:
    (found,) = (line for line in output.splitlines() if line.strip().startswith(label))
    return re.sub(r"\s+", " ", found).strip()


# --- the table of a run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [100, 160])
@pytest.mark.parametrize("counts", [(0, 50), (0, 10, 20, 50)])
def test_the_table_of_ten_tasks_fits_the_terminal(width: int, counts: tuple[int, ...]) -> None:
    wide = made("rome+prune", 0.3, counts=counts)
    output = text(terminal_tables.run_table(wide), width)
    assert max(map(len, output.splitlines())) <= width
    for task, metric in synthetic.HEADLINES.items():
        assert output.count(f"{task} {metric}") == (2 if len(counts) > 2 else 1)
    first = output.split("after so many edits")[0]
    whole = r"^ .*\d +\d\.\d{3} +\d\.\d{3} +\S+ \[\S+, \S+\] +(▼ worse|▲ better|none \(±0\.\d{3}\)) *$"
    assert len(re.findall(whole, first, flags=re.M)) == 12


def test_a_row_says_what_was_measured() -> None:
    record = made("memit", 0.95)
    output = text(terminal_tables.run_table(record))
    measure = record.tasks(50)["reasoning"]["exact_match"]
    change = measure["difference"]
    low, high = change["interval"]
    expected = (
        f"reasoning exact_match 100 0.920 {measure['value']:.3f} {change['value']:+.3f} [{low:+.3f}, {high:+.3f}]"
    )
    assert row(output, "reasoning") == f"{expected} ▼ worse"
    assert change["p"] < 0.05
    assert "memit on mini · 50 edits of counterfact (batch) · seed 0" in output


def test_a_change_that_cannot_be_seen_says_how_large_one_would_have_to_be() -> None:
    record = made("memit", 0.95)
    detectable = record.tasks(50)["NLI"]["accuracy"]["difference"]["detectable"]
    assert row(text(terminal_tables.run_table(record)), "NLI").endswith(f"none (±{detectable:.3f})")


@pytest.mark.parametrize(
    ("value", "higher_is_better", "words"),
    [
        (0.2, True, "▲ better"),
        (-0.2, True, "▼ worse"),
        (0.2, False, "▲ worse"),
        (-0.2, False, "▼ better"),
        (0.2, None, "▲ higher"),
    ],
)
def test_the_direction_of_a_metric(value: float, higher_is_better: bool | None, words: str) -> None:
    record = fixed("x", 0.5, value)
    record.tasks(50)["NLI"]["accuracy"]["higher_is_better"] = higher_is_better
    assert row(text(terminal_tables.run_table(record)), "NLI").endswith(words)


def test_an_interval_that_holds_zero_is_no_change_whatever_p() -> None:
    record = fixed("x", 0.5, 0.2)
    record.tasks(50)["NLI"]["accuracy"]["difference"]["interval"] = [-0.01, 0.41]
    assert "none (±0.100)" in row(text(terminal_tables.run_table(record)), "NLI")


def test_what_has_no_value_is_a_dash_with_its_reason() -> None:
    record = fixed("x", 0.5, 0.2)
    record.points[1]["tasks"]["NLI"]["accuracy"] |= {
        "value": None,
        "n": 0,
        "reason": "no documents",
        "difference": None,
    }
    output = text(terminal_tables.run_table(record))
    assert row(output, "NLI accuracy  ") == f"NLI accuracy 0 0.300 {DASH}"
    assert "NLI accuracy: no documents" in output


def test_a_change_without_an_interval_is_not_called_none() -> None:
    record = fixed("x", 0.5, 0.2)
    record.tasks(50)["NLI"]["accuracy"]["difference"] |= {"interval": None, "p": None, "detectable": None}
    for width in (80, 120):
        assert row(text(terminal_tables.run_table(record), width), "NLI").endswith("+0.200 no test")


@pytest.mark.parametrize(
    ("level", "low", "mark"), [(0.2, 0.2, "†"), (0.25, 0.2, "†"), (0.19, 0.2, ""), (0.6, 0.2, "†")]
)
@pytest.mark.parametrize("table", [terminal_tables.run_table, terminal_tables.record_table])
def test_an_unedited_score_at_chance_is_marked_and_the_mark_explained(
    table: Any, level: float, low: float, mark: str
) -> None:
    record = replace(fixed("x", 0.5, 0.2), chance={"NLI": {"accuracy": level}})
    record.tasks(0)["NLI"]["accuracy"]["interval"] = [low, 0.4]
    output = text(table(record))
    assert f"accuracy 100 0.300{mark} 0.500 +0.200" in re.sub(r"\s+", " ", output)
    assert output.count("†") == (2 if mark else 0)  # one cell, one explanation
    assert ("a difference there shows nothing" in re.sub(r"\s+", " ", output)) is bool(mark)


def test_an_older_record_is_read_with_what_the_task_says_now() -> None:
    record = replace(fixed("x", 0.5, 0.2), chance=None)
    assert "0.300†" in text(terminal_tables.run_table(record))  # of two answers, 0.300 [0.200, 0.400]
    record.tasks(0)["NLI"]["accuracy"]["interval"] = [0.51, 0.7]
    assert "†" not in text(terminal_tables.run_table(record))


def test_on_the_way_the_unedited_score_alone_is_marked() -> None:
    record = replace(made("rome", 0.3, counts=(0, 10, 20)), chance={"NLI": {"accuracy": 1.0}})
    output = text(terminal_tables.run_table(record))
    (line,) = (line for line in output.split("after so many edits")[1].splitlines() if "NLI" in line)
    assert re.fullmatch(r" *NLI accuracy +\d\.\d+† +[^†]+", line)


def test_a_comparison_marks_the_side_whose_unedited_model_is_at_chance() -> None:
    a, b = fixed("a", 0.8, 0.5), replace(fixed("b", 0.4, 0.1), chance={"NLI": {"accuracy": 0.5}})
    output = text(terminal_tables.comparison_table(a, b), 120)
    assert " 0.800 0.400† " in re.sub(r"\s+", " ", output)
    assert output.count("†") == 2
    assert "†" not in text(terminal_tables.comparison_table(a, a), 120)


def test_the_mean_of_runs_names_its_seeds_and_how_far_they_lie_apart() -> None:
    (whole,) = pool([made("memit", 0.6 + 0.1 * seed, seed=seed) for seed in (0, 1)])
    output = re.sub(r"\s+", " ", text(terminal_tables.run_table(whole)))
    headlines = [whole.tasks(50)[task][metric] for task, metric in whole.headlines.items() if task in whole.tasks(50)]
    widest = max(measure["deviation"] for measure in headlines)
    assert widest > 0
    assert f" · mean of seeds 0, 1 (sd at most {widest:.3f})" in output
    assert "seed 0" not in output.replace("seeds 0", "")


def test_an_unfinished_run_says_so() -> None:
    record = replace(fixed("x", 0.5, 0.2), status="interrupted", reason="interrupted before the end")
    assert "interrupted: interrupted before the end" in text(terminal_tables.run_table(record))
    assert "nothing was measured" in text(terminal_tables.run_table(replace(record, points=[])))


def test_the_unedited_model_alone_has_its_own_interval() -> None:
    record = fixed("none", 0.5, 0.2)
    output = text(terminal_tables.run_table(replace(record, points=record.points[:1])))
    assert row(output, "NLI") == "NLI accuracy 100 0.300 [0.200, 0.400]"


def test_measurements_on_the_way_are_shown() -> None:
    output = text(terminal_tables.run_table(made("rome+prune", 0.3, counts=(0, 10, 20, 50))))
    assert row(output, "after so many edits") == "after so many edits 0 10 20 50"
    assert re.search(r"NLI accuracy +0\.900 +0\.590\* +0\.590\* +0\.590\*", output)


def test_prompts_that_were_cut_are_told() -> None:
    record = made("rome", 0.3)
    record.points[-1]["truncated"] = {"NLI": 7}
    assert "NLI: 7 requests were longer than the model's context and were cut from the left" in text(
        terminal_tables.run_table(record)
    )


def test_markup_in_a_name_is_text() -> None:
    record = fixed("x", 0.5, 0.2)
    record.model["name"] = "[bold]m[/bold]"
    record.edits["warnings"] = ["[red]careful[/red]"]
    output = text(terminal_tables.run_table(record))
    assert "[bold]m[/bold]" in output
    assert output.count("warning: [red]careful[/red]") == 1


# --- show -------------------------------------------------------------------------------------------------------------


def test_show_tells_everything() -> None:
    record = made("ft", 0.6)
    output = text(terminal_tables.record_table(record), 120)
    for wanted in (
        "3,600,000 parameters",
        "lr=0.5",
        "without covariance",
        "1 of 1 touched weights changed; restored bitwise",
        "torch=2.13.0",
    ):
        assert wanted in output
    assert row(output, "h.1.w") == "h.1.w 50 3.250 0.040 1.500"
    assert row(output, "tasks  ") == "tasks 20.00 640"
    assert max(map(len, output.splitlines())) <= 120


def test_show_tells_what_rounding_lost_where_the_record_does() -> None:
    record = made("ft", 0.6)
    assert "lost in rounding" not in text(terminal_tables.record_table(record), 120)
    record.delta["h.1.w"]["lost_in_rounding"] = 0.125
    record.points[-1]["lost_in_rounding"] = 0.25
    output = text(terminal_tables.record_table(record), 120)
    assert row(output, "change of").endswith("spectral lost in rounding")
    assert row(output, "h.1.w") == "h.1.w 50 3.250 0.040 1.500 0.125"
    assert row(output, "all of them") == "all of them 0.250"


def test_of_isolated_edits_no_weight_is_said_to_be_unchanged() -> None:
    record = replace(made("ft", 0.6), weights={"before": {"w": "a"}, "edited": {}, "restored": {"w": "a"}})
    assert "1 weights touched; restored bitwise" in text(terminal_tables.record_table(record))


def test_show_tells_when_weights_were_not_restored() -> None:
    record = replace(made("ft", 0.6), weights={"before": {"w": "a"}, "edited": {"w": "b"}, "restored": {"w": "b"}})
    assert "NOT RESTORED" in text(terminal_tables.record_table(record))


# --- compare ----------------------------------------------------------------------------------------------------------


def test_compare_is_paired_and_turns_with_its_sides() -> None:
    good, bad = made("memit", 0.95), made("ft", 0.6)
    output = text(terminal_tables.comparison_table(good, bad))
    change = pair_difference((good, 50), (bad, 50), task="NLI", metric="accuracy")
    assert change is not None and change.low is not None and change.high is not None
    shown = f"accuracy 100 0.880 0.780 -0.100 [{change.low:+.3f}, {change.high:+.3f}]"
    assert any(re.sub(r"\s+", " ", line).strip().startswith(shown) for line in output.splitlines())
    assert output.count("▼ worse") == 12
    assert text(terminal_tables.comparison_table(bad, good)).count("▲ better") == 12
    assert "editor: memit | ft" in output
    assert max(map(len, output.splitlines())) <= 100


def test_a_record_compared_with_itself_differs_in_nothing() -> None:
    record = made("memit", 0.95)
    output = text(terminal_tables.comparison_table(record, record))
    assert output.count("none (±") == 12 + 1  # the legend explains it once
    assert not re.search("[▲▼] (worse|better)", output)  # the legend explains the words


def test_many_comparisons_are_adjusted() -> None:
    """p = 0.031 alone would be significant; among three it is not."""
    a, b = fixed("a", 0.5, 0.1), fixed("b", 0.5, 0.1)
    one = {str(i): Ratio(1.0) for i in range(40)}
    other = {str(i): Ratio(float(i >= 6)) for i in range(40)}
    for record, values in ((a, one), (b, other)):
        measure = record.tasks(50)["NLI"]["accuracy"]
        record.points[1]["tasks"] = {"NLI": {f"m{k}": measure for k in range(3)}}
        record.values = {50: {"NLI": {f"m{k}": values if k == 0 else one for k in range(3)}}}
    assert row(text(terminal_tables.comparison_table(a, b)), "m0").endswith("0.094 none (adjusted)")


def test_compare_without_values_says_what_is_missing() -> None:
    a, b = made("memit", 0.95), made("ft", 0.6)
    output = text(terminal_tables.comparison_table(a, replace(b, values=None)), 160)
    assert re.search(rf"accuracy +{DASH} +0\.880 +0\.780 +-0\.100 +{DASH}", output)
    assert re.search(r"no intervals: .* are missing beside mini--ft--", output)


def test_table_of_a_run_fits_a_terminal_of_80_columns() -> None:
    record = made("memit", 0.9)
    wide, narrow = (text(terminal_tables.run_table(record), width).splitlines() for width in (100, 80))
    assert max(len(line.rstrip()) for line in narrow) <= 80
    assert "detectable change" in "".join(wide) and "detectable change " not in "".join(narrow)
    verdicts = [sum("better" in line or "worse" in line for line in lines) for lines in (wide, narrow)]
    assert verdicts[0] == verdicts[1] > 0


# --- what moved -------------------------------------------------------------------------------------------------------


def moved(before: float | None, after: float | None, n: tuple[int, int] = (100, 100), **clusters: int) -> list[Moved]:
    old, new = fixed("a", 0.5, 0.1), fixed("a", 0.5, 0.1)
    old.tasks(50)["NLI"]["accuracy"] |= {"value": before, "n": n[0]} | clusters
    new.tasks(50)["NLI"]["accuracy"] |= {"value": after, "n": n[1]} | clusters
    return regressions(old, new)


def test_the_table_of_what_moved() -> None:
    output = text(
        terminal_tables.moved_table({"mini--ft": [*moved(0.5, 0.3), *moved(0.5, None), *moved(0.5, 0.5, n=(9, 4))]}),
        120,
    )
    rows = [re.sub(r"\s+", " ", line).strip() for line in output.splitlines() if "mini--ft" in line]
    assert rows == [
        "mini--ft 50 NLI accuracy 0.500 0.300 -0.200 ±0.0110 value",
        f"mini--ft 50 NLI accuracy 0.500 {DASH} {DASH} missing",
        "mini--ft 50 NLI accuracy 9 4 -5 ±1 documents",
    ]
    assert text(terminal_tables.moved_table({"a": [], "b": []})) == "nothing moved in 2 records\n"


def test_a_comparison_tells_the_caveats_of_what_is_compared() -> None:
    a, b = (replace(synthetic.fixed(name, 0.5, 0.1), caveats={"counterfact": "beware", "MRPC": "no"}) for name in "ab")
    output = text(terminal_tables.comparison_table(a, b))
    assert output.count("counterfact: beware") == 1
    assert "MRPC" not in output
