"""A new format of tables is one file: nothing else is touched, and the command line offers it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harness.reports.formats as folder

LINES = '''
"""A JSON object a line."""

import json
from collections.abc import Sequence

from harness.reports.registry import Format
from harness.reports.table import Page


class JsonLines(Format):
    """JSON, a row a line."""

    name = "jsonl"
    ending = ".jsonl"

    def write(self, pages: Sequence[Page]) -> str:
        rows = [dict(zip(page.data.fields, row, strict=True)) for page in pages for row in page.data.rows]
        return "".join(json.dumps(row) + "\\n" for row in rows)
'''


@pytest.fixture
def one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file, as if it lay in the folder of formats."""
    (tmp_path / "json_lines.py").write_text(LINES)
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "harness.reports.formats.json_lines", raising=False)


def test_json_is_offered_and_written(harness: Callable[..., Any], records: dict[str, Path]) -> None:
    found = harness("leaderboard", records["weak"].parent, "--format", "json")
    assert (found.code, found.err) == (0, "")
    rows = json.loads(found.out)["Leaderboard"]
    assert len(rows) == 3
    assert rows[0]["editor"] == "unedited" and rows[1]["NLI.accuracy"] is not None


@pytest.mark.usefixtures("one_file")
def test_a_file_in_the_folder_is_a_format(harness: Callable[..., Any], records: dict[str, Path]) -> None:
    assert "|jsonl|" in harness("leaderboard", "--help").out
    found = harness("leaderboard", records["weak"].parent, "--format", "jsonl")
    assert (found.code, found.err) == (0, "")
    lines = [json.loads(line) for line in found.out.splitlines()]
    whole = harness("leaderboard", records["weak"].parent, "--format", "json")
    assert lines == json.loads(whole.out)["Leaderboard"]


def test_without_the_file_it_is_none(harness: Callable[..., Any], records: dict[str, Path]) -> None:
    found = harness("leaderboard", records["weak"].parent, "--format", "jsonl")
    assert found.code == 2
    assert "'jsonl' is not one of 'csv', 'html', 'json', 'latex', 'md'" in found.err
