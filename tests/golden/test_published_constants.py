"""Every default and every preset of every editor against the table of what was published, or why it is our own."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

from harness.editing.hyperparameters import plain, settable
from harness.editing.registry import editor_names, find

TABLE = Path(__file__).with_name("data") / "published_constants.csv"
PUBLISHED = r"[\w.-]+/[\w.-]+( @ [0-9a-f]{7})?: \S|arXiv \d{4}\.\d{5}, "
"""A file of a repository, mostly at a commit, or a place in a paper, anywhere in a source."""

Place = tuple[str, str, str]
"""Editor, model (``default`` for a field's default), field."""


def rows() -> list[dict[str, str]]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def constants() -> dict[Place, object]:
    """What the code says, as JSON has it."""
    found: dict[Place, object] = {}
    for name in editor_names():
        editor = find(name)
        if editor.__module__.startswith("editors."):
            models = {"default": {key: field.default for key, field in settable(editor).items()}, **editor.presets}
            found |= {(name, model, key): plain(value) for model, said in models.items() for key, value in said.items()}
    return found


def test_the_code_says_what_the_table_says():
    """In both directions: neither a preset without a row nor a row without a preset."""
    table = {(row["method"], row["model"], row["field"]): json.loads(row["value"]) for row in rows()}
    code = constants()
    assert len(table) == len(rows()), "a constant stands in the table twice"
    assert code.keys() - table.keys() == set(), "add a row with the source"
    assert table.keys() - code.keys() == set(), "nothing in the code has these"
    differ = {place: (code[place], value) for place, value in table.items() if code[place] != value}
    assert not differ, "the code and the published value"


def test_the_walk_sees_every_editor():
    files = {path.stem for path in (Path(__file__).parents[2] / "editors").glob("*.py")} - {"__init__"}
    seen = {name for name, *_ in constants()}
    assert files - seen == {"none", "prefix"}, "these two have no hyperparameters"
    assert len(constants()) > 500


def test_every_row_says_where_it_is_from():
    for row in rows():
        own = row["source"].startswith("ours: ") and len(row["source"]) > len("ours: ") + 8
        assert own or re.search(PUBLISHED, row["source"]), row
        assert own or not row["model"].startswith("mini"), row
