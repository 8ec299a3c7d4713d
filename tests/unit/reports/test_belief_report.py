"""By which questions edits are believed: what stands for each, what is missing, tables and the radar."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.errors import DataError
from harness.reports.belief import Answered, _figure, belief_tables, beliefs, draw_beliefs
from harness.runs.record import Record


def measure(value: float | None, n: int = 4) -> dict[str, Any]:
    return {"value": value, "n": n, "interval": None if value is None else [value / 2, (1 + value) / 2]}


def record(edits: str, before: dict[str, Any], after: dict[str, Any], **tasks: Any) -> Record:
    points = [{"edits": 0, "tasks": {edits: before}}, {"edits": 4, "tasks": {edits: after, **tasks}}]
    about = {"id": "0123456789ab", "plan": {"edits": edits, "mode": "isolated"}, "model": {"name": "mini"}}
    return Record(**about, editor={"name": "rome"}, edits={"dataset": edits, "count": 4}, points=points, seed=0)  # type: ignore[arg-type]


MZSRE = record(
    "mzsre",
    {"paraphrase_exact_match": measure(0.0), "paraphrase_exact_match.de": measure(0.1)},
    {
        "rewrite_exact_match": measure(1.0),
        "paraphrase_exact_match": measure(0.75),
        **{f"paraphrase_exact_match.{one}": measure(v) for one, v in (("en", 1.0), ("de", 0.5), ("fr", 0.25))},
        "hop_exact_match": measure(None),
        "hop_2_exact_match": measure(0.25, 3),
    },
    belief={"bare_exact_match": measure(0.5), "negation_success": measure(None)},
)


def test_each_question_has_its_metric_and_what_is_lacking_is_missing() -> None:
    found = {one.question: one for one in beliefs(MZSRE)}
    assert list(found) == [
        *("bare", "paraphrase", "alias", "inverse", "hop", "negation", "language", "prefix", "thinking", "long answer")
    ]
    assert found["bare"] == Answered("bare", "belief bare_exact_match", None, 0.5, [0.25, 0.75], 4)
    assert found["paraphrase"].unedited == 0
    assert found["hop"] == Answered("hop", "mzsre hop_2_exact_match", None, 0.25, [0.125, 0.625], 3)
    assert found["language"] == Answered("language", "mzsre paraphrase_exact_match", 0.1, 0.375, None, 2)
    for name in ("alias", "inverse", "negation", "prefix", "thinking", "long answer"):
        assert found[name] == Answered(name)


def test_the_edit_sets_own_bare_question_stands_in() -> None:
    found = beliefs(record("zsre", {}, {"generation_exact_match": measure(1.0)}))
    assert found[0].metric == "zsre generation_exact_match"


def test_the_table_says_what_is_missing() -> None:
    console = Console(width=120, record=True)
    console.print(belief_tables([MZSRE]))
    lines = {line.split()[0]: line.split() for line in console.export_text().splitlines() if line.strip()}
    assert lines["bare"][1:] == ["belief", "bare_exact_match", "4", "–", "0.500", "[0.250,", "0.750]"]  # noqa: RUF001
    assert lines["alias"][1:] == ["–"] * 4  # noqa: RUF001


def test_a_record_without_edits_is_told() -> None:
    bare = record("zsre", {}, {})
    bare.points.pop()
    with pytest.raises(DataError, match="record 01234567: nothing was edited"):
        beliefs(bare)


def test_the_radar_is_broken_where_an_answer_is_missing(tmp_path: Path) -> None:
    figure = _figure([MZSRE, MZSRE], [beliefs(MZSRE)] * 2)
    (axis,) = figure.axes
    first, second = axis.get_lines()
    drawn = [float(value) for value in first.get_ydata()]
    assert drawn[:2] == [0.5, 0.75]
    assert [math.isnan(value) for value in drawn] == [
        False,
        False,
        True,
        True,
        False,
        True,
        False,
        True,
        True,
        True,
        False,
    ]
    assert first.get_color() != second.get_color()
    path = tmp_path / "radar.png"
    draw_beliefs([MZSRE], path)
    again = tmp_path / "again.png"
    draw_beliefs([MZSRE], again)
    assert path.read_bytes() == again.read_bytes()
    assert path.read_bytes()[:4] == b"\x89PNG"
