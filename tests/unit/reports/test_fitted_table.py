"""Tables of a terminal: at no width is a number cut, and a mark agrees with the interval beside it."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from harness.exam.statistics import ALPHA, Ratio, agreeing, difference, mcnemar
from harness.reports import terminal_tables
from harness.reports.cells import brackets, number, shown_interval, significant_change, verdict
from harness.reports.fitted_table import FittedTable
from harness.reports.regressions import Moved
from harness.reports.table import MISSING
from harness.runs.record_file import read_records

RECORDS = Path(__file__).parents[3] / "results" / "records"
NUMBERS = re.compile(r"[+\-±]?\d+\.\d+")
WIDTHS = [40, 41, 47, 60, 79, 80, 99, 100, 120, 200]


def text(renderable: RenderableType, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def numbers(output: str) -> list[str]:
    return sorted(NUMBERS.findall(output))


def table(name: str) -> FittedTable:
    """Large numbers, intervals, a verdict, and a name that is as long as wanted."""
    made = terminal_tables._table("task", "n", "unedited", "edited", "difference", "detectable change")
    made.add_row(name, "12345", "6789.1", "-1234.5", "-8023.6 [-9000.1, -7000.2]", "▼ worse")
    made.add_row("short", "3", "0.123 [0.012, 0.345]", "0.456", "+0.333 [-0.111, +0.777]", "none (±0.987)")
    assert isinstance(made, FittedTable)
    return made


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "name", ["a", "counterfact_neighborhood_accuracy_of_the_released_code", "数" * 60, "two words"]
)
def test_no_number_is_cut_and_no_name(name: str, width: int) -> None:
    whole, shown = text(table(name), 500), text(table(name), width)
    assert numbers(shown) == numbers(whole) and len(numbers(whole)) == 13
    assert Counter(name.replace(" ", "")) <= Counter(shown)
    assert all(len(line.rstrip()) <= width for line in shown.splitlines())


def test_a_table_that_fits_is_as_wide_as_it_is() -> None:
    lines = text(table("short name"), 200).splitlines()
    assert max(map(len, map(str.rstrip, lines))) == 101
    shown = "short name 12345 6789.1 -1234.5 -8023.6 [-9000.1, -7000.2] ▼ worse"
    assert shown in [" ".join(line.split()) for line in lines]


@pytest.mark.parametrize("width", WIDTHS)
def test_no_number_of_committed_records_is_cut(width: int) -> None:
    records = [r for r in read_records(RECORDS) if r.status == "complete"]
    for record in records[:: max(1, len(records) // 12)]:
        whole = text(terminal_tables._results(record, everything=False, narrow=width < 100), 1000)
        assert numbers(text(terminal_tables.run_table(record), width)) == numbers(whole)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_number_of_a_comparison_or_a_check_is_cut(width: int) -> None:
    a, b = [r for r in read_records(RECORDS) if r.status == "complete"][:2]
    assert numbers(text(terminal_tables.comparison_table(a, b), width)) == numbers(
        text(terminal_tables.comparison_table(a, b), 1000)
    )
    moved = {"a-record-of-a-long-name--rome": [Moved(10, "counterfact", "score", "value", 6789.123, 1.5, 0.0123)]}
    assert numbers(text(terminal_tables.moved_table(moved), width)) == numbers(
        text(terminal_tables.moved_table(moved), 1000)
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_no_number_of_a_record_in_full_is_cut(width: int) -> None:
    for record in read_records(RECORDS)[::25]:
        table = terminal_tables.record_table(record)
        assert numbers(text(table, width)) == numbers(text(table, 3000)), record.id


# --- interval and verdict -------------------------------------------------------------------------------------------


def paired(gained: int, lost: int, n: int) -> dict[str, object]:
    """The difference of n documents as a record has it."""
    before = {str(i): Ratio(float(gained <= i < gained + lost)) for i in range(n)}
    after = {str(i): Ratio(float(i < gained)) for i in range(n)}
    found = difference(before, after, seed=0)
    return {"value": found.value, "interval": [found.low, found.high], "p": found.p}


def test_the_case_in_which_test_and_interval_disagree() -> None:
    change = paired(5, 0, 16)
    assert brackets(change["interval"], sign=True) == "[+0.020, +0.536]"  # type: ignore[arg-type]
    assert change["p"] == pytest.approx(0.0625)
    assert brackets(shown_interval(change), sign=True) == "[0.000, +0.536]"
    assert not significant_change(change)
    assert agreeing(0.0625, -0.536, -0.020) == (-0.536, 0.0)


@pytest.mark.parametrize("n", [1, 4, 5, 6, 9, 16, 40])
def test_a_mark_and_an_interval_that_excludes_zero_are_one(n: int) -> None:
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            change = paired(gained, lost, n)
            low, high = shown_interval(change)  # type: ignore[misc]
            excludes = not low <= 0 <= high
            assert significant_change(change) == excludes
            if mcnemar(gained, lost) < ALPHA:
                assert excludes, "the exact test rejects, and the interval must too"


def test_in_every_committed_record_a_mark_is_at_an_interval_that_excludes_zero() -> None:
    seen = {True: 0, False: 0}
    for record in read_records(RECORDS):
        for point in record.points:
            for measures in point["tasks"].values():
                for measure in measures.values():
                    change = measure.get("difference") or {}
                    shown = brackets(shown_interval(change), sign=True)
                    ends = [float(end) for end in NUMBERS.findall(shown)]
                    marked = significant_change(change)
                    assert marked == (bool(ends) and not ends[0] <= 0 <= ends[1]), change
                    seen[marked] += 1
    assert min(seen.values()) > 100


@pytest.mark.parametrize(
    ("value", "interval", "marked"),
    [
        (0.0003, [0.0002, 0.0004], False),  # 0.000 [0.000, 0.000]
        (-0.0004, [-0.0004, -0.0001], False),
        (0.01, [0.0004, 0.02], False),  # +0.010 [0.000, +0.020]
        (0.01, [0.0006, 0.02], True),
        (12.3, [10.01, 14.0], True),
        (6789.1, [0.04, 9000.0], True),
        (6789.1, [0.0004, 9000.0], False),
    ],
)
def test_a_change_that_is_shown_as_zero_is_not_marked(value: float, interval: list[float], marked: bool) -> None:
    change = {"value": value, "interval": interval, "p": 0.001}
    assert significant_change(change) is marked
    assert (verdict(change, True) is not None) is marked


def test_no_test_is_no_mark() -> None:
    assert shown_interval({"interval": None, "p": None}) is None
    assert not significant_change({"interval": None, "p": None})
    assert shown_interval({"interval": [0.1, 0.2], "p": None}) == (0.0, 0.2)  # nothing was tested: nothing is excluded
    assert number(0.1) == "0.100"


def test_the_legend_explains_every_mark() -> None:
    legend = terminal_tables._LEGEND + terminal_tables._ADJUSTED + terminal_tables._STARRED
    for mark in (
        "[ ]",
        "better",
        "worse",
        "higher",
        "lower",
        "none (±x)",
        "no test",
        "none (adjusted)",
        "*:",
        f"{MISSING}:",
    ):
        assert mark in legend, mark
