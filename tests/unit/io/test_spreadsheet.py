"""Text in cells of a CSV: nothing that a spreadsheet runs, and the same text when it is read."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.io.spreadsheet import cell_text, csv_rows, text_of_cell


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_no_cell_begins_as_a_formula(start: str) -> None:
    assert cell_text(f"{start}1+1") == f"'{start}1+1"
    assert cell_text(f"a{start}1") == f"a{start}1"


def test_no_text_is_not_the_empty_text() -> None:
    assert [cell_text(None), cell_text(""), cell_text("'")] == ["", "'", "''"]
    assert [text_of_cell(cell) for cell in ("", "'", "''")] == [None, "", "'"]


@given(st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]))))
def test_what_was_written_is_read(text: str | None) -> None:
    out = io.StringIO(newline="")
    csv_rows(out).writerow([cell_text(text), "x"])
    [[cell, _]] = csv.reader(io.StringIO(out.getvalue(), newline=""))
    assert text_of_cell(cell) == text
    assert out.getvalue().endswith(",x\n")
