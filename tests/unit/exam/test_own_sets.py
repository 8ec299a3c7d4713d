"""Edit sets of one's own, whose rows have any shape, are one YAML outside the checkout and no Python."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.errors import DataError, UsageError
from harness.exam import data, tasks
from harness.models.lm import LM
from harness.reports.leaderboard import leaderboard
from harness.reports.terminal_tables import run_table
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.record import Record
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan

FLAT = """
task: capitals
class: !function harness.task_kit.CaseExam
metadata:
  version: 1.0
  headline: rewrite_success
  caveat: capitals move
  source: {files: {test: {path: capitals.json}}}
  case:
    edits: {prompt: ask, subject: land, target: now, target_old: before}
    probes:
      - {kind: rewrite, prompt: "fill(ask, land)", answers: now, rival: before, protocol: probability}
      - {kind: elsewhere, prompt: near, expect: unchanged}
"""
FACTS = [row["requested_rewrite"] for row in data.load("counterfact")[:3]]
"""Facts of the world that the shipped model knows."""
FLAT_ROWS: list[dict[str, Any]] = [
    {"ask": f["prompt"], "land": f["subject"], "now": f["target_new"]["str"], "before": f["target_true"]["str"],
     "near": "The sky is"}
    for f in FACTS
]  # fmt: skip
NESTED = """
task: nested
class: !function harness.task_kit.CaseExam
metadata:
  version: 1.0
  headline: rewrite_accuracy
  source: {files: {test: {path: rows/nested.jsonl}}}
  case:
    id: meta.key
    edits: {prompt: fact.sentence, subject: fact.entity.name, target: fact.entity.value}
    probes:
      - {kind: rewrite, prompt: fact.sentence, answers: fact.entity.value, protocol: [accuracy, generation]}
      - {kind: alias, each: "exam[?type=='alias']", prompt: q, answers: a, protocol: accuracy}
"""
NESTED_ROWS = [
    {
        "meta": {"key": f"n{i}"},
        "fact": {"sentence": f"Town {i} lies in", "entity": {"name": f"Town {i}", "value": "Oslo"}},
        "exam": [
            {"type": "alias", "q": f"Village {i} is in", "a": ["Oslo", "Kristiania"]},
            {"type": "other", "q": "x"},
        ],
    }
    for i in range(3)
]
LINKED = """
task: linked
class: !function harness.task_kit.CaseExam
metadata:
  version: 1.0
  headline: hop_any
  source: {files: {test: {path: linked.jsonl}}}
  case:
    id: name
    edits: {each: steps, prompt: said, subject: who, target: says}
    probes:
      - {kind: rewrite, each: steps, prompt: "fill(said, who)", answers: says}
      - {kind: hop, each: asked, prompt: value, answers: row.end}
    combine:
      hop_any: {kind: hop, how: any}
"""
LINKED_ROWS = [
    {
        "name": f"l{i}",
        "steps": [{"said": "{} met", "who": "Ada", "says": "Max"}, {"said": "{} saw", "who": "Max", "says": "Rome"}],
        "asked": ["Whom Ada met saw", "Ada met one who saw"],
        "end": "Rome",
    }
    for i in range(2)
]


def write(folder: Path, name: str, said: str, path: str, rows: list[dict[str, Any]]) -> None:
    """A set as a user keeps it: a YAML, and its file beside it."""
    (folder / f"{name}.yaml").write_text(said, encoding="utf-8")
    (folder / path).parent.mkdir(exist_ok=True)
    lines = json.dumps(rows) if path.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / path).write_text(lines, encoding="utf-8")


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """A folder with three sets: flat rows in an array, nested rows, and cases of two edits."""
    folder = tmp_path / "mine"
    folder.mkdir()
    write(folder, "capitals", FLAT, "capitals.json", FLAT_ROWS)
    write(folder, "nested", NESTED, "rows/nested.jsonl", NESTED_ROWS)
    write(folder, "linked", LINKED, "linked.jsonl", LINKED_ROWS)
    return folder


def measured(sets: Path, output: Path, **fields: Any) -> Record:
    plan = Plan(include_path=(str(sets),), **fields)
    return run_plan(resolve(plan), RunOptions(output=output, device="cpu"))


def test_flat_rows(sets: Path, tmp_path: Path) -> None:
    record = measured(sets, tmp_path / "out", editor="rome", edits="capitals", mode="isolated")
    before, after = (record.tasks(count)["capitals"] for count in (0, 3))
    assert after["rewrite_success"]["value"] == 1.0
    assert after["rewrite_success"]["n"] == before["rewrite_success"]["n"] == 3
    assert 0 <= after["elsewhere_agreement"]["value"] <= 1
    assert record.data["capitals"]["path"] == "capitals.json"
    assert record.headlines["capitals"] == "rewrite_success"
    assert "capitals" in leaderboard([record], "csv")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(run_table(record))
    assert "capitals: capitals move" in console.export_text()


def test_nested_rows(sets: Path, tmp_path: Path) -> None:
    record = measured(sets, tmp_path / "out", editor="ft_m", edits="nested", mode="batch")
    after = record.tasks(3)["nested"]
    assert after["rewrite_accuracy"]["value"] > record.tasks(0)["nested"]["rewrite_accuracy"]["value"]
    assert {"alias_accuracy", "rewrite_exact_match"} <= set(after)
    assert record.edits["ids"] == ["n0", "n1", "n2"]


def test_cases_of_several_edits(sets: Path, tmp_path: Path) -> None:
    record = measured(sets, tmp_path / "out", editor="rome", edits="linked", mode="isolated")
    assert (record.edits["count"], record.edits["ids"]) == (2, ["l0", "l1"])
    after = record.tasks(2)["linked"]
    assert after["rewrite_exact_match"]["n"] == 2  # a case is one document: both of its edits
    assert {"hop_exact_match", "hop_any"} <= set(after)


def test_cases_are_counted_and_not_edits(sets: Path) -> None:
    resolved = resolve(Plan(editor="memit", edits="linked", num_edits=1, include_path=(str(sets),)))
    assert (resolved.cases, len(resolved.edits), resolved.stops) == (("l0",), 2, (0, 1))
    with pytest.raises(UsageError, match="has 2 edits, 3 were asked for"):
        resolve(Plan(editor="memit", edits="linked", num_edits=3, include_path=(str(sets),)))


def test_a_set_that_is_not_there_is_refused_with_the_near_name(sets: Path) -> None:
    with pytest.raises(UsageError, match=r"'capital' does not exist \(did you mean capitals, "):
        tasks.read_edits("capital", data_dir="mini", include=[str(sets)])
    with pytest.raises(UsageError, match=r"--include-path .*nowhere: no such folder"):
        resolve(Plan(editor="none", edits="none", include_path=(str(sets / "nowhere"),)))


def test_a_file_that_is_not_there_is_named(sets: Path) -> None:
    (sets / "linked.jsonl").unlink()
    with pytest.raises(DataError, match="linked"):
        tasks.read_edits("linked", data_dir="mini", include=[str(sets)])


def test_a_set_may_show_what_no_document_of_a_run_asks(sets: Path, tiny: Callable[[str], LM]) -> None:
    """A misspelt metric is told; one of questions that the first cases do not have is none."""
    (sets / "capitals.yaml").unlink()
    (sets / "linked.yaml").unlink()
    rows = [{**NESTED_ROWS[0], "exam": []}, *NESTED_ROWS[1:]]

    def built(headline: str) -> tasks.Suite:
        write(sets, "nested", NESTED.replace("rewrite_accuracy", headline), "rows/nested.jsonl", rows)
        return tasks.load_suite(
            [], edit_set="nested", records=["n0"], data_dir="mini", tokenizer=tiny("gpt2").tokenizer,
            include=[str(sets)],
        )  # fmt: skip

    (task,) = built("alias_accuracy").tasks
    assert task.headline == "alias_accuracy"
    assert "alias_accuracy" not in task.task.aggregation()
    with pytest.raises(DataError, match=r"nested\.yaml: metadata\.headline names 'alias_acuracy', which is no"):
        built("alias_acuracy")


def test_groups_of_cases_are_edited_examined_and_taken_back(sets: Path, tmp_path: Path) -> None:
    def run(**options: Any) -> Record:
        plan = Plan(editor="ft_m", edits="capitals", include_path=(str(sets),), **options)
        return run_plan(resolve(plan), RunOptions(output=tmp_path / "out", device="cpu"))

    grouped = run(cases_at_once=2)
    alone = run(mode="isolated", cases_at_once=1)
    together = run(mode="batch", num_edits=2)
    assert grouped.plan["mode"] == "isolated"
    assert grouped.edits["mode"] == "isolated, 2 cases at once"
    assert "isolated, 2 cases at once" in leaderboard([grouped, alone])
    assert alone.id == resolve(Plan(editor="ft_m", edits="capitals", include_path=(str(sets),), mode="isolated")).id
    own = {record.id: record.values[record.edits["count"]]["capitals"] for record in (grouped, alone, together)
           if record.values}  # fmt: skip
    first, whole = own[grouped.id]["rewrite_success"], own[together.id]["rewrite_success"]
    assert len(first) == 3
    assert {doc: first[doc].num for doc in whole} == {doc: ratio.num for doc, ratio in whole.items()}
    assert grouped.delta != alone.delta
