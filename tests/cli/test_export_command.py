"""``harness export``: what a user types, and what is said of what cannot be."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harness.reports.exports as folder_of_exports

LINES = '''
"""A JSON object a line."""

import json

from harness.reports.export import Export


class Names(Export):
    """The ids of records."""

    name = "ids"

    def write(self, records, folder, asked):
        (folder / "ids.json").write_text(json.dumps([record.id for record in records]))
'''


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_exported_tables_give_the_same_leaderboard(
    form: str, harness: Callable[..., Any], records: dict[str, Path], tmp_path: Path
) -> None:
    found = harness("export", "--format", form, *records.values(), "--to", tmp_path / "tables")
    assert (found.code, found.err) == (0, "") and found.out.startswith("3 files written to ")
    told = [harness("leaderboard", place).out for place in (records["weak"].parent, tmp_path / "tables")]
    assert told[0] == told[1] != ""
    again = harness("export", "--format", "csv", tmp_path / "tables", "--to", tmp_path / "again")
    assert again.code == 0 and harness("leaderboard", tmp_path / "again" / "values.csv").out == told[0]


def test_a_file_in_the_folder_is_a_format(
    harness: Callable[..., Any], records: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "ids.py").write_text(LINES)
    monkeypatch.setattr(folder_of_exports, "__path__", [*folder_of_exports.__path__, str(tmp_path / "more")])
    monkeypatch.delitem(sys.modules, "harness.reports.exports.ids", raising=False)
    assert "ids" in harness("export", "--help").out
    assert harness("export", "--format", "ids", records["weak"], "--to", tmp_path / "out").code == 0
    assert json.loads((tmp_path / "out" / "ids.json").read_text()) == [json.loads(records["weak"].read_text())["id"]]


def changed_by_hand(place: Path) -> None:
    for path in place.glob("*[0-9a-f].json"):
        text = path.read_text()
        value = json.loads(text)["points"][1]["tasks"]["NLI"]["accuracy"]["value"]
        path.write_text(text.replace(f'"accuracy": {{"value": {value}', '"accuracy": {"value": 0.123'))


def emptied(place: Path) -> None:
    for path in place.iterdir():
        path.unlink()


BAD = [
    (["--format", "csx"], None, "'csx' is not one of"),
    ([], None, "Missing option '--format'"),
    (["--format", "csv"], emptied, "holds no record"),
    (["--format", "eee"], changed_by_hand, "but its documents give"),
    (["--format", "csv", "--documents", "some"], None, "'some' is not one of 'shown', 'all', 'none'"),
    (["--format", "csv", "nowhere"], None, "nowhere: no such folder"),
    (["--format", "csv", "nowhere.csv"], None, "nowhere.csv: no such file"),
]


@pytest.mark.parametrize(("arguments", "damage", "said"), BAD)
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments: list[str],
    damage: Callable[[Path], None] | None,
    said: str,
    harness: Callable[..., Any],
    records: dict[str, Path],
    tmp_path: Path,
) -> None:
    place = shutil.copytree(records["weak"].parent, tmp_path / "records")
    if damage is not None:
        damage(place)
    found = harness("export", *arguments, place, "--to", tmp_path / "out")
    assert found.code == 2 and said in found.err and len(found.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["records"]
