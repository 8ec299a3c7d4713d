"""Trials to tables and figures: hand-made logs, and the numbers that they must give."""

from __future__ import annotations

import csv
import io
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import DataError
from harness.exam.canonical import SETS
from harness.reports.registry import format_names
from harness.studies.sweeps import sweep_figures, trial
from harness.studies.sweeps.ball import Epoch
from harness.studies.sweeps.sweep_tables import (
    RULES,
    best_anywhere,
    best_configuration,
    cells,
    chosen_trials,
    format_tables,
    groups,
    states,
)
from harness.studies.sweeps.trial import Job, Trial

BALLS = (1e-3, 1e-5)


def log(*epochs: tuple[float, float]) -> tuple[Epoch, ...]:
    """Hard negatives of the split fall by one a pass, those of the validation pair rise by one."""
    return tuple(Epoch(g, f, 4.0 - i, 2.0 + i, 3.0, None) for i, (g, f) in enumerate(epochs))


def made(*logs: tuple[Epoch, ...], method: str = "full", task: str = "temporal", **other: Any) -> list[Trial]:
    """One trial for each log, on the validation pair; the learning rate is the position."""
    return [Trial(Job("mini", task, method, "none", {"lr": i}, **other), one) for i, one in enumerate(logs)]


def at_test(one: Trial, *logs: tuple[Epoch, ...]) -> list[Trial]:
    """The trainings of a configuration on the test pair, a seed each."""
    return [Trial(replace(one.job, split="test", seed=seed), found) for seed, found in enumerate(logs)]


@pytest.fixture
def sweep() -> list[Trial]:
    """One cell: two configurations, and two repetitions of the one that the wide ball chooses."""
    validated = made(log((3.0, 0.9), (3.0001, 0.8), (3.0002, 0.7)), log((3.0, 0.9), (3.0001, 0.85), (3.1, 0.0)))
    tested = at_test(
        validated[0], log((3.0, 0.92), (3.0001, 0.80), (3.0002, 0.72)), log((3.0, 0.92), (3.0001, 0.84), (3.01, 0.50))
    )
    return [*validated, *tested]


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_the_winner_gains_most_inside_the_ball() -> None:
    found = made(
        log((3.0, 0.9), (3.0001, 0.8), (3.1, 0.1)),
        log((3.0, 0.9), (3.0200, 0.5)),
        log((3.0, 0.9), (3.0002, 0.7), (3.0001, 0.75)),
    )
    assert [
        (one.job.settings["lr"], epoch) for one, epoch in (best_configuration(found, 1e-3, rule) for rule in RULES)
    ] == [
        (2, 2),
        (2, 1),
    ]
    assert best_configuration(found, 1e-5, "released")[1] == 0  # whatever leaves the ball is refused
    assert best_configuration(found, 1.0, "released")[0].job.settings["lr"] == 0


def test_equals_are_told_apart_by_general_text_and_then_by_name() -> None:
    better = made(log((3.0, 0.9), (3.0002, 0.7)), log((3.0, 0.9), (3.0001, 0.7)))
    assert best_configuration(better, 1e-3, "plain")[0].job.settings["lr"] == 1
    alike = made(*[log((3.0, 0.9), (3.0001, 0.7))] * 5)
    first = best_configuration(alike, 1e-3, "plain")[0]
    assert all(best_configuration(random.Random(i).sample(alike, 5), 1e-3, "plain")[0] is first for i in range(9))


def test_chosen_are_the_winners_of_all_balls_and_rules_that_are_edited() -> None:
    found = made(
        log((3.0, 0.9), (3.001, 0.5), (3.0005, 0.8)),  # the best epoch in the wide ball
        log((3.0, 0.9), (3.001, 0.6)),  # the last one in it
        log((3.0, 0.9), (3.00001, 0.85)),  # the narrow ball
        log((3.0, 0.9), (3.0, 0.9)),
    )
    assert {one.job.settings["lr"] for one in chosen_trials(found, BALLS)} == {0, 1, 2}
    assert {one.job.settings["lr"] for one in chosen_trials(found, [1e-9])} == {
        best_configuration(found, 1e-9, "plain")[0].job.settings["lr"]
    }
    assert len(chosen_trials(found[3:], BALLS)) == 1


# --- cells ------------------------------------------------------------------------------------------------------------


def test_cells_report_what_was_chosen_and_fall_back_to_no_edit(sweep: list[Trial]) -> None:
    released, strict = cells(sweep, "released", BALLS)
    assert (released.change, released.initial, released.success) == pytest.approx(((20 + 8) / 2, 8.0, 22.0))
    assert released.error == pytest.approx(6 / math.sqrt(2))
    assert (released.runs, released.of) == (2, 2)
    assert (strict.change, strict.error, strict.runs, strict.of, strict.hard_change) == (0.0, 0.0, 0, 2, 0.0)
    assert released.hard_change == pytest.approx((2 + 1) / 2)  # those of the validation pair rise
    plain, _ = cells(sweep, "plain", BALLS)
    assert plain.change == pytest.approx((20 + 0) / 2)  # the second run left the ball at the chosen epoch
    assert (plain.runs, plain.of) == (1, 2)
    assert (plain.hard_initial, plain.hard_change) == pytest.approx((4.0, (-2 + 0) / 2))


def test_a_configuration_that_was_not_trained_at_test_has_no_value(sweep: list[Trial]) -> None:
    validated = [one for one in sweep if one.job.split == "val"]
    for cell in cells(validated, "plain", BALLS):
        assert (cell.change, cell.success, cell.runs, cell.of) == (None, None, 0, 0)
    assert "| temporal | - | - (0/0) | - (0/0) |" in format_tables(validated, "md", BALLS)
    better = made(*[log((3.0, 0.9), (3.0, 0.5))] * 3)[2:]
    wide, narrow = cells([*sweep, *better], "plain", BALLS)
    assert (wide.change, wide.of, narrow.change, narrow.of) == (None, 0, None, 0)


def test_methods_tasks_and_models_do_not_mix(sweep: list[Trial]) -> None:
    other = [replace(one, job=replace(one.job, model="some/where/mini", data_dir="/data/own")) for one in sweep]
    third = [replace(one, job=replace(one.job, task=SETS[0])) for one in sweep]
    found = groups([*sweep, *other, *third])
    assert {key: len(some) for key, some in found.items()} == {
        ("mini (mini, float32)", SETS[0], "full"): 4,
        ("mini (mini, float32)", "temporal", "full"): 4,
        ("mini (own, float32)", "temporal", "full"): 4,
    }
    assert list(groups([*sweep, *third])) == [("mini", SETS[0], "full"), ("mini", "temporal", "full")]


def test_models_of_one_name_do_not_mix(sweep: list[Trial]) -> None:
    first, second = ([replace(one, job=replace(one.job, model=f"/{at}/final")) for one in sweep] for at in "ab")
    third = [replace(one, job=replace(one.job, dtype="bfloat16")) for one in second]
    assert {key[0]: len(some) for key, some in groups([*first, *second, *third]).items()} == {
        "/a/final (mini, float32)": 4,
        "/b/final (mini, float32)": 4,
        "final (mini, bfloat16)": 4,
    }
    assert {cell.of for cell in cells([*first, *second], "plain", BALLS)} == {2}


def test_a_training_that_ended_early_at_test_is_reported_by_its_last_epoch() -> None:
    (chosen,) = made(log((3.0, 0.9), (3.0, 0.8), (3.0, 0.7), (3.0, 0.6)))
    (ended,) = at_test(chosen, log((3.0, 0.9), (3.0, 0.5)))
    for rule in RULES:
        (cell,) = cells([chosen, ended], rule, [1e-3])
        assert (cell.change, cell.runs, cell.hard_change) == (pytest.approx(40.0), 1, 1 if rule == "released" else -1)
    broken = replace(ended, reason="a loss is not finite")
    assert [cells([chosen, broken], rule, [1e-3])[0].change for rule in RULES] == pytest.approx([40.0, 0.0])


def test_a_companion_is_reported_in_each_ball_by_what_was_examined_for_it() -> None:
    where = {"method": "ensemble", "beside": "large"}
    (alone,) = made(log((2.0, 0.9), (2.0, 0.5)), **where)
    logs = {1e-3: log((3.0, 0.8), (3.002, 0.2)), 1e-5: log((3.0, 0.8), (3.0, 0.7))}
    tested = [Trial(replace(alone.job, split="test", ball=ball), found) for ball, found in logs.items()]
    trials = [alone, *tested]
    assert list(groups(trials)) == [("large", "temporal", "ensemble")]
    for rule in RULES:
        found = [(cell.initial, cell.change, cell.of) for cell in cells(trials, rule, BALLS)]
        assert found == [pytest.approx((20.0, 60.0, 1)), pytest.approx((20.0, 10.0, 1))]


# --- what the balls refuse --------------------------------------------------------------------------------------------


def test_epochs_inside_and_the_best_one_anywhere() -> None:
    found = made(log((3.0, 0.9), (3.0001, 0.8), (3.1, 0.1)), log((3.0, 0.9), (2.9, 0.95), (math.inf, 1.0)))
    assert states(found, 1e-3) == (2, 4)
    assert states(found, 1e-5) == (1, 4)
    assert best_anywhere(found) == pytest.approx(80.0)
    assert best_anywhere(made(log((3.0, 0.9), (3.0, 0.95)))) == 0.0


# --- tables -----------------------------------------------------------------------------------------------------------


def board(sweep: list[Trial]) -> list[Trial]:
    """The cell beside one of another method, another task where nothing was gained, and another model."""
    still = log((3.0, 0.5), (3.0, 0.5))
    lora = made(log((3.0, 0.92), (3.0, 0.82)), method="lora")
    rest = [made(still, method=method, task="stereoset") for method in ("full", "lora")]
    more = [one for (some,) in [lora, *rest] for one in (some, *at_test(some, some.log, some.log))]
    senses = made(log((5.0, 1.0), (5.0, 0.6)), method="senses")
    senses = [replace(one, job=replace(one.job, model="mini-backpack")) for one in senses]
    return [*sweep, *more, *senses, *at_test(senses[0], log((5.0, 1.0), (5.0, 0.75)))]


def test_the_tables_in_markdown(sweep: list[Trial]) -> None:
    parts = re.split(r"^## ", format_tables(board(sweep), "md", BALLS), flags=re.MULTILINE)
    change = parts[1]
    assert change.startswith("Change in success, percentage points (released)\n")
    assert "| task | unedited | full 0.001 | lora 0.001 | full 1e-05 | lora 1e-05 |" in change
    assert "| temporal | 8.0 | +14.0 ± 4.2 | +10.0 ± 0.0 | +0.0 ± 0.0 (0/2) | +10.0 ± 0.0 |" in change
    assert "| stereoset | 50.0 | +0.0 ± 0.0 | +0.0 ± 0.0 | +0.0 ± 0.0 | +0.0 ± 0.0 |" in change
    assert "| average | 29.0 | +7.0 | +5.0 | +0.0 | +5.0 |" in change
    assert "### mini-backpack\n\n| task | unedited | senses 0.001 | senses 1e-05 |" in change
    assert "| temporal | 0.0 | +25.0 ± 0.0 | +25.0 ± 0.0 |" in change
    hard = parts[2]
    assert hard.startswith("Hard negatives, nats (released)\n")
    assert "| temporal | 2.0 | +1.5 | +1.0 | +0.0 (0/2) | +1.0 |" in hard
    assert [part.splitlines()[0] for part in parts[3:5]] == [
        "Change in success, percentage points (plain)",
        "Hard negatives, nats (plain)",
    ]
    refused = parts[5]
    assert "| temporal | 3/4 | 1/1 | 0/4 | 1/1 | +90.0 | +10.0 |" in refused
    assert "| all | 4/5 | 2/2 | 1/5 | 2/2 | +45.0 | +5.0 |" in refused


def test_the_order_of_the_trials_does_not_matter(sweep: list[Trial]) -> None:
    trials = board(sweep)
    for kind in format_names():
        shuffled = random.Random(1).sample(trials, len(trials))
        assert format_tables(shuffled, kind, BALLS) == format_tables(trials, kind, BALLS)


def test_the_tables_as_values(sweep: list[Trial]) -> None:
    rows = list(csv.DictReader(io.StringIO(format_tables(board(sweep), "csv", BALLS))))
    assert len(rows) == len(RULES) * (4 + 1) * len(BALLS)
    (row,) = [
        r
        for r in rows
        if (r["rule"], r["model"], r["task"], r["method"], r["tolerance"])
        == ("plain", "mini", "temporal", "full", "0.001")
    ]
    assert [float(row[k]) for k in ("initial", "change", "error", "hard_initial", "hard_change")] == pytest.approx(
        [8.0, 10.0, 10 / math.sqrt(2), 4.0, -1.0]
    )
    assert (row["runs"], row["of"]) == ("1", "2")


def test_the_tables_in_latex_and_html(sweep: list[Trial]) -> None:
    text = format_tables(board(sweep), "latex", BALLS)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2 * 5
    assert r"temporal & $8.0$ & $+14.0 \pm 4.2$ & $+10.0 \pm 0.0$ & $+0.0 \pm 0.0 (0/2)$ & $+10.0 \pm 0.0$ \\" in text
    assert r"\caption{Change in success, percentage points (plain): mini-backpack}" in text
    page = format_tables(board(sweep), "html", BALLS)
    assert page.count("<table>") == page.count("</table>") == 2 * 5
    row = re.search(r"<tr>(<td[^>]*>temporal.*)</tr>", page)
    assert row is not None
    assert re.findall(r">([^<>]+)</td>", row[1])[:3] == ["temporal", "8.0", "+14.0 ± 4.2"]
    assert [float(value) for value in re.findall(r'data-v="([^"]+)"', row[1])[1:3]] == pytest.approx([8.0, 14.0])


def test_records_are_found_wherever_a_sweep_puts_them(sweep: list[Trial], tmp_path: Path) -> None:
    for one in sweep:
        trial.write_trial(tmp_path / "one" / "runs", one)
    (tmp_path / "one" / "other.json").write_text('{"schema": 1}')
    for place in (tmp_path, tmp_path / "one", tmp_path / "one" / "runs"):
        assert format_tables(trial.read_trials(place)) == format_tables(sweep)
    assert trial.read_trials(tmp_path / "one" / "runs" / "deeper") == []


# --- figures ----------------------------------------------------------------------------------------------------------


def test_bars_are_the_changes_and_lines_their_standard_errors(sweep: list[Trial]) -> None:
    trials = board(sweep)
    figure = sweep_figures._figure(sweep_figures.bars(trials, BALLS), BALLS)
    panels = [axis for axis in figure.axes if axis.get_title("left")]
    assert [axis.get_title("left") for axis in panels] == [
        "temporal\nunedited: mini 8.0 %, mini-backpack 0.0 %",
        "stereoset\nunedited: 50.0 %",
    ]
    temporal = panels[0]
    assert [text.get_text() for text in temporal.get_xticklabels()] == ["0.001", "1e-05"]
    heights = [[bar.get_height() for bar in group] for group in temporal.containers if hasattr(group[0], "get_height")]
    wanted = {(c.method, c.tolerance): c for c in cells(trials, "plain", BALLS) if c.task == "temporal"}
    assert heights == [[wanted[method, ball].change for ball in BALLS] for method in ("full", "lora", "senses")]
    assert heights[0] == pytest.approx([10.0, 0.0])
    reach = [half_lengths(group) for group in temporal.containers if not hasattr(group[0], "get_height")]
    assert reach[0] == pytest.approx([10 / math.sqrt(2), 0.0])
    assert [(text.get_text(), round(text.get_position()[0], 2)) for text in temporal.texts] == [("0", 0.73)]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["full (mini)", "lora (mini)", "senses (mini-backpack)"]


def half_lengths(group: Any) -> list[float]:
    """Of the error bars of a container."""
    (lines,) = group[2]
    return [float(segment[1][1] - segment[0][1]) / 2 for segment in lines.get_segments()]


def test_bars_are_told_apart_without_colour(sweep: list[Trial]) -> None:
    many = [replace(one, job=replace(one.job, method=f"m{i}")) for i in range(7) for one in sweep]
    figure = sweep_figures._figure(sweep_figures.bars(many, BALLS), BALLS)
    (axis,) = figure.axes
    looks = {
        (bar.get_hatch(), str(bar.get_facecolor()))
        for group in axis.containers
        if hasattr(group[0], "get_height")
        for bar in group
    }
    assert len(looks) == len({hatch for hatch, _ in looks}) == len({colour for _, colour in looks}) == 7


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_the_same_trials_give_the_same_file(sweep: list[Trial], ending: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        sweep_figures.draw_sweep(sweep, tmp_path / f"{name}{ending}", BALLS)
    first, second = ((tmp_path / f"{name}{ending}").read_bytes() for name in ("a", "b"))
    assert first == second


def test_a_sweep_that_has_not_come_to_the_test_pairs_has_no_figure(sweep: list[Trial]) -> None:
    with pytest.raises(DataError, match="no training was on a test pair; let `harness sweep` come to its end"):
        sweep_figures.bars([one for one in sweep if one.job.split == "val"])
