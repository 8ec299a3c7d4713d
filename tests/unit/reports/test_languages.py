"""Metrics in two languages as a table: a row for the language of the edit, a column for that of the question."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from harness.reports.languages import language_matrices, language_tables
from harness.runs.record import Record

TABLE: dict[str, Any] = {
    "rewrite_success": {"value": 0.5, "n": 4},
    "rewrite_success.en-en": {"value": 1.0, "n": 1},
    "rewrite_success.en-de": {"value": 0.25, "n": 1},
    "rewrite_success.de-de": {"value": 0.75, "n": 1},
    "rewrite_success.fr": {"value": 0.1, "n": 1},
    "paraphrase_success.zh-cn": {"value": 0.1, "n": 1},
}


def test_values_stand_by_the_language_of_the_edit_and_of_the_question() -> None:
    assert language_matrices(TABLE) == {
        "rewrite_success": {("en", "en"): 1.0, ("en", "de"): 0.25, ("de", "de"): 0.75},
    }


def test_a_table_has_a_row_for_each_language_of_the_edit_and_what_is_not_asked_is_missing() -> None:
    record = Record.__new__(Record)
    object.__setattr__(record, "points", [{"edits": 0, "tasks": {}}, {"edits": 4, "tasks": {"mlake_matrix": TABLE}}])
    console = Console(width=80, record=True)
    for table in language_tables(record):
        console.print(table)
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines[0][:2] == ["mlake_matrix", "rewrite_success:"]
    assert [line for line in lines if line and line[0] in ("de", "en")] == [
        ["de", "en"],
        ["de", "0.750", "\u2013"],
        ["en", "0.250", "1.000"],
    ]
