"""The ball: who is in it, which epoch is chosen and reported, how repetitions are summed up, and tables of cells."""

from __future__ import annotations

import math

import pytest

from harness.errors import DataError
from harness.reports.registry import find_format
from harness.reports.table import Page, Section
from harness.studies.sweeps.ball import (
    TOLERANCES,
    Epoch,
    change,
    chosen_epoch,
    cutoff,
    in_ball,
    mean_change,
    reported_epoch,
)
from harness.studies.sweeps.cells import Quantity, SweepCell, average, averages, find_cell, model_tables

VALIDATION = [Epoch(3.0, 0.90), Epoch(3.0002, 0.85), Epoch(3.0010, 0.70), Epoch(3.00025, 0.80)]
TEST = [Epoch(3.0, 0.92), Epoch(3.0001, 0.88), Epoch(3.0001, 0.80), Epoch(3.002, 0.50)]


def test_vector_11_the_ball_ends_at_the_initial_loss_times_one_plus_the_tolerance() -> None:
    initial = 2.385603089679371
    assert [cutoff(initial, t) for t in TOLERANCES] == pytest.approx([2.387988693, 2.385841650, 2.385626946], abs=1e-9)
    assert [in_ball(2.38577, initial, t) for t in TOLERANCES] == [True, True, False]


def test_the_edge_is_out_in_validation_and_in_at_test() -> None:
    edge = cutoff(3.0, 1e-3)
    assert (in_ball(edge, 3.0, 1e-3), in_ball(edge, 3.0, 1e-3, strict=False)) == (False, True)
    log = [Epoch(3.0, 0.9), Epoch(edge, 0.5)]
    assert chosen_epoch(log, 1e-3) == 0
    assert reported_epoch(log, tolerance=1e-3, chosen=1) == 1
    assert reported_epoch(log, tolerance=1e-3, chosen=1, rule="plain") == 0


def test_vector_12_validation_takes_the_last_epoch_in_the_ball() -> None:
    chosen = [chosen_epoch(VALIDATION, t) for t in TOLERANCES]
    assert chosen == [3, 3, 0]
    assert [VALIDATION[i].failure for i in chosen] == [0.80, 0.80, 0.90]


def test_the_plain_rule_takes_the_best_epoch_in_the_ball() -> None:
    assert [chosen_epoch(VALIDATION, t, "plain") for t in TOLERANCES] == [2, 3, 0]
    assert chosen_epoch([Epoch(3.0, 0.5), Epoch(2.9, 0.6)], 1e-3, "plain") == 0  # no epoch is better than no edit


def test_vector_13_test_reports_the_last_epoch_in_the_ball_up_to_the_chosen_one() -> None:
    reported = [reported_epoch(TEST, tolerance=1e-4, chosen=chosen) for chosen in (0, 1, 3)]
    assert [TEST[i].failure for i in reported] == [0.92, 0.88, 0.80]


def test_the_plain_rule_reports_the_chosen_epoch_or_no_edit() -> None:
    assert [reported_epoch(TEST, tolerance=1e-4, chosen=chosen, rule="plain") for chosen in (0, 1, 2, 3)] == [
        0,
        1,
        2,
        0,
    ]


def test_a_training_that_leaves_the_ball_is_refused() -> None:
    log = [Epoch(3.0, 0.9), Epoch(3.1, 0.1), Epoch(3.2, 0.0)]
    assert all(chosen_epoch(log, t, rule) == 0 for t in TOLERANCES for rule in ("released", "plain"))


@pytest.mark.parametrize("log", [[], [Epoch(math.nan, 0.5)], [Epoch(0.0, 0.5)]])
def test_without_a_loss_of_the_unedited_model_there_is_no_ball(log: list[Epoch]) -> None:
    with pytest.raises(DataError, match="unedited model's general loss"):
        chosen_epoch(log, 1e-3)


def test_validation_and_test_train_as_many_epochs() -> None:
    with pytest.raises(DataError, match="chose epoch 5, but the test run has 3"):
        reported_epoch(TEST, tolerance=1e-4, chosen=5)


def test_vector_22_changes_are_means_with_a_population_standard_error() -> None:
    found = change([0.90] * 5, [0.82, 0.80, 0.84, 0.81, 0.83])
    assert found.value == pytest.approx(8.0)
    assert found.error == pytest.approx(0.63246, abs=1e-5)
    assert found.n == 5


def test_no_repetition_is_no_change_and_not_zero() -> None:
    assert (change([], []).value, change([], []).error, change([], []).n) == (None, None, 0)
    assert mean_change([1.0], [3.0]).value == 2.0


CELLS = [
    SweepCell("m", "a", "full", 1e-3, 10.0, 15.0, 5.0, 0.25, 4.0, -0.1, 5, 5),
    SweepCell("m", "b_c", "full", 1e-3, 20.0, 23.0, 3.0, 0.5, 6.0, 0.3, 5, 5),
    SweepCell("m", "a", "lora", 1e-3, 10.0, 12.0, 2.0, 0.0, 4.0, 0.0, 2, 5),
    SweepCell("m", "b_c", "lora", 1e-3, runs=0, of=5),
]


def test_the_average_of_a_method_needs_a_value_of_every_task() -> None:
    found = averages(CELLS, lambda cell: cell.change)
    assert found == {("m", "full", 1e-3): 4.0, ("m", "lora", 1e-3): None}
    assert averages(CELLS, lambda cell: cell.change, empty_as_zero=True)["m", "lora", 1e-3] == 1.0
    assert average([]) is None
    assert find_cell(CELLS, model="m", task="a", method="lora", tolerance=1e-3) is CELLS[2]
    assert find_cell(CELLS, model="m", task="a", method="lora", tolerance=1e-4) is None


def written(quantity: Quantity = "change", kind: str = "md") -> str:
    return find_format(kind).write([Page("sweep", (), (Section("cells", model_tables(CELLS, quantity)),))])


def test_a_table_shows_errors_and_how_many_runs_lay_in_the_ball() -> None:
    assert written().partition("## cells\n\n")[2] == (
        "### m\n\n"
        "| task | unedited | full 0.001 | lora 0.001 |\n| :-- | --: | --: | --: |\n"
        "| a | 10.0 | +5.0 ± 0.2 | +2.0 ± 0.0 (2/5) |\n"
        "| b\\_c | 20.0 | +3.0 ± 0.5 | - (0/5) |\n"
        "| average | 15.0 | +4.0 | - |\n"
    )
    assert r"| b\_c | 6.0 | +0.3 | - (0/5) |" in written("hard_negative")
    assert "| a | 10.0 | 15.0 | 12.0 (2/5) |" in written("success")


def test_a_latex_table_is_one_that_latex_reads() -> None:
    text = written(kind="latex")
    assert text.count(r"\begin{tabular}{lrrr}") == text.count(r"\end{tabular}") == 1
    assert r"b\_c & $20.0$ & $+3.0 \pm 0.5$ & $- (0/5)$ \\" in text
    assert text.index(r"\midrule" + "\naverage") > 0
