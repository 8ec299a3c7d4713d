"""Runs on the facts that a model knows alone, and where rows come from when nothing is said."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

import harness
from harness.errors import UsageError
from harness.runs.changed_since import changed_since
from harness.runs.defaults import rows_for, text_for
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.plan_grid import plans
from harness.runs.record import Record
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan
from harness.studies.localization.localize import Grid

FACTS = [
    {"prompt": "{} rents a room in", "subject": "Kido Mikol", "target": "Gimemes", "target_old": "Mofokor"},
    {"prompt": "{} rents a room in", "subject": "Lifi Rapas", "target": "Gimemes", "target_old": "Kodir"},  # Mofokor
    {"prompt": "{} is found in", "subject": "West Sisaria", "target": "Minirus", "target_old": "Kodir"},
]
QUICK = {"v_steps": 2, "cov_tokens": 12_000}


def written(folder: Path, rows: list[dict[str, str]]) -> str:
    path = folder / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def run(folder: Path, rows: list[dict[str, str]], **fields: object) -> tuple[Record, Plan]:
    values = {"editor": "memit", "settings": QUICK, "edits": written(folder, rows), **fields}
    (plan,) = plans(values)
    return run_plan(resolve(plan), RunOptions(folder / "out", device="cpu", save_edits=True)), plan


def test_what_the_model_does_not_know_is_told_and_edited(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    record, _ = run(tmp_path, FACTS)
    assert record.edits["known"] == {"rule": "in the greedy continuation of 36 tokens", "asked": 3, "count": 2}
    assert record.edits["ids"] == ["1", "2", "3"]
    assert "facts.jsonl: the model knows 2 of 3 facts before any edit" in caplog.text


def test_known_facts_alone_are_edited_and_examined(tmp_path: Path) -> None:
    record, plan = run(tmp_path, FACTS, known_only=True, mode="sequential", eval_at="1,final")
    assert record.edits["ids"] == ["1", "3"]
    assert (record.edits["count"], record.edits["known"]["asked"], record.edits["known"]["count"]) == (2, 3, 2)
    assert [point["edits"] for point in record.points] == [0, 1, 2]
    assert record.tasks(2)["own"]["efficacy"]["n"] == 2
    assert changed_since(record, resolve(plan)) == []
    written(tmp_path, FACTS[:2])
    assert changed_since(record, resolve(plan), load_model=False) == ["edits"]


def test_a_patch_of_known_facts_is_examined_on_them(tmp_path: Path) -> None:
    record, _ = run(tmp_path, FACTS, known_only=True, mode="batch")
    (patch,) = (tmp_path / "out").glob("*.safetensors")
    (again,) = plans({"patch": str(patch)})
    found = run_plan(resolve(again), RunOptions(tmp_path / "again", device="cpu"))
    assert found.edits["ids"] == ["1", "3"]
    efficacy = [one.tasks(2)["own"]["efficacy_accuracy"]["value"] for one in (record, found)]
    assert efficacy[0] == efficacy[1]


def test_nothing_known_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"mini knows none of the 1 facts of .*, so that known_only leaves nothing"):
        run(tmp_path, FACTS[1:2], known_only=True)


def test_rows_that_do_not_say_what_is_true(tmp_path: Path) -> None:
    silent = [{key: value for key, value in FACTS[0].items() if key != "target_old"}]
    (plan,) = plans({"editor": "memit", "edits": written(tmp_path, silent), "known_only": True})
    with pytest.raises(UsageError, match=r"no row of .* says what is true before the edit"):
        resolve(plan)


def test_a_plan_without_it_has_the_id_that_it_had() -> None:
    assert Plan(known_only=False).id == Plan().id != Plan(known_only=True).id


@pytest.mark.parametrize(
    ("model", "given", "rows"),
    [
        ("mini", None, "mini"),
        ("mini-llama", None, "mini"),
        ("./mini", None, "hub"),
        ("EleutherAI/gpt-j-6b", None, "hub"),
        ("EleutherAI/gpt-j-6b", "mini", "mini"),
        ("mini", "hub", "hub"),
        ("/models/x", Path("data"), "data"),
    ],
)
def test_rows_follow_the_model(model: str, given: str | Path | None, rows: str) -> None:
    assert rows_for(model, given) == rows
    fields = {"model": model} | ({} if given is None else {"data_dir": str(given)})
    assert [plan.data_dir for plan in plans(fields)] == [rows]


def test_rows_follow_each_model_of_a_study() -> None:
    assert [plan.data_dir for plan in plans({"model": ["mini", "gpt2"]})] == ["mini", "hub"]


def test_what_a_foreign_model_is_not_given_is_said(
    checkpoint: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    model = str(checkpoint("gpt2"))
    (plan,) = plans(
        {"model": model, "edits": "none", "mode": "batch", "tasks": ["NLI"], "limit": 2, "data_dir": "mini"}
    )
    record = run_plan(resolve(plan), RunOptions(tmp_path, device="cpu"))
    assert "the shipped rows of NLI are of an invented world, which only the shipped models have read" in caplog.text
    assert "neutral_text is not measured: there is no plain text on this machine; name one with --text" in caplog.text
    assert record.data["neutral_text"] == {
        "source": "wikitext",
        "reason": "there is no plain text on this machine; name one with --text",
    }


def test_neutral_text_lies_beside_the_rows(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "data" / "text").mkdir(parents=True)
    (tmp_path / "data" / "text" / "news.txt").write_text("The home of Ada Velmont is Rome.\n" * 3, encoding="utf-8")
    rows = [{"prompt": "{} was born in", "subject": "Ada Velmont", "target": "Rome"}]
    model, source = str(checkpoint("gpt2")), str(tmp_path / "data")
    fields = {"model": model, "editor": "none", "edits": written(tmp_path, rows), "mode": "batch", "data_dir": source}
    (plan,) = plans(fields)
    record = run_plan(resolve(plan), RunOptions(tmp_path / "out", device="cpu"))
    assert record.data["neutral_text"]["source"] == str(tmp_path / "data" / "text")
    assert record.tasks(0)["neutral_text"]["nll"]["n"] == 3
    assert "known" not in record.edits  # no row says what is true


def test_plain_text_lies_beside_the_rows_of_a_model_that_brings_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every command: what a plan reads, and a study of layers, is the folder ``text`` of the data folder."""
    (tmp_path / "none").mkdir()
    (tmp_path / "data" / "text").mkdir(parents=True)
    beside = str(tmp_path / "data" / "text")
    assert text_for("x/y", tmp_path / "data") == beside
    assert text_for("x/y", tmp_path / "data", "given.txt") == "given.txt"
    assert text_for("mini", tmp_path / "data") is None
    assert text_for(object(), tmp_path / "data") is None
    assert (
        text_for("x/y", tmp_path / "none") is None and text_for("x/y", None) is None and text_for("x/y", "hub") is None
    )
    asked: list[Grid] = []
    monkeypatch.setattr("harness.studies.localization.localize.run_grid", lambda grid, *_, **__: asked.append(grid))
    for model in ("x/y", "mini"):
        harness.localize(model, data_dir=tmp_path / "data", problems="error_injection", methods="rome@1")
    assert [one.text for one in asked] == [beside, None]
