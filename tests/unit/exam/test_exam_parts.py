"""The parts of the exam of an edit set: what a YAML names, what can be asked, what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import DataError, HarnessError, UsageError
from harness.exam import data, tasks
from harness.exam.exam_parts import asked_parts, exam_parts, part_names
from harness.models.lm import LM
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan

SETS = [path for path in (data.TASKS / "edits").glob("*/*.yaml") if path.stem == path.parent.name]
GROUPS = [path for path in SETS if "group" in data.read_yaml(path)]


@pytest.mark.parametrize("path", GROUPS, ids=lambda path: path.stem)
def test_the_parts_of_a_set_are_its_tasks(path: Path) -> None:
    found = exam_parts(path.stem)
    assert [part.task for part in found.values()] == data.read_yaml(path)["task"]
    assert all(part.task == f"{path.stem}_{name}" == f"{path.stem}_{part.name}" for name, part in found.items())
    card = (path.parent / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in card for name in found)


def test_what_counterfact_asks_is_what_its_yaml_says(tiny: Callable[[str], LM]) -> None:
    suite = tasks.load_suite(
        [], edit_set="counterfact", records=["0"], data_dir="mini", tokenizer=tiny("gpt2").tokenizer
    )
    docs = {task.name: task.task.eval_docs for task in suite.tasks}
    parts = exam_parts("counterfact")
    assert parts["probability"].asks == f"{len(docs['counterfact_probability'])} prompts with two answers each"
    assert parts["generation"].asks.startswith(f"{len(docs['counterfact_generation'])} prompts continued by 20 ")
    (text,) = docs["counterfact_text"]
    said = f"{len(text['order'])} prompts, of which some {len(text['prompts'])} differ, continued to 100 tokens"
    assert parts["text"].asks == said


def test_the_parts_that_there_are() -> None:
    assert part_names() == ["probability", "generation", "text"]
    assert list(exam_parts("zsre")) == ["probability", "generation"]
    assert exam_parts("country_capital") == exam_parts("no set") == {}


def test_all_parts_are_the_whole_exam_whose_name_is_no_other() -> None:
    assert asked_parts("counterfact", ()) == ()
    assert asked_parts("counterfact", ("text", "probability", "generation")) == ()
    assert asked_parts("counterfact", ("text", "probability", "text")) == ("probability", "text")
    plan = Plan(num_edits=2)
    whole = resolve(Plan(num_edits=2, exam=("generation", "text", "probability")))
    assert whole.id == resolve(plan).id != resolve(Plan(num_edits=2, exam=("text",))).id


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"exam": ("probabilty",)}, "--exam: part 'probabilty' does not exist (did you mean probability?)"),
        ({"exam": ("text",), "edits": "zsre"}, "--exam text: zsre lacks this part; the exam of zsre has probability, "),
        ({"exam": ("text",), "edits": "country_capital"}, "--exam text: the YAML of country_capital names no parts"),
        ({"exam": ("text",), "edits": "none"}, "--exam text: no edits are examined; name them with --edits"),
    ],
)
def test_what_cannot_be_asked_is_told_in_one_line(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(Plan(tasks=("NLI",), **changes))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("said", ["generation", {"task": "mine_generation"}, {"task": 1, "asks": "much"}])
def test_a_yaml_that_does_not_say_what_a_part_asks_is_refused(tmp_path: Path, said: object) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.yaml").write_text(
        json.dumps({"group": "mine", "metadata": {"exam": {"generation": said}}})
    )
    with pytest.raises(DataError, match=r"mine\.yaml: metadata\.exam\.generation is .*, expected"):
        exam_parts("mine", tmp_path)


def test_what_is_not_asked_has_no_number_and_is_not_built(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of a part are those of the whole exam; the tasks are named alike, so that columns are shared."""
    plan = Plan(str(checkpoint("gpt2")), edits="counterfact", num_edits=1, mode="isolated")
    options = RunOptions(tmp_path, device="cpu", cache=False)
    whole = run_plan(resolve(plan), options)
    text = data.module(data.TASKS / "edits" / "counterfact" / "functions.py")
    monkeypatch.setattr(text, "texts_of", lambda _: pytest.fail("the texts were built"))
    part = run_plan(resolve(Plan(**{**vars(plan), "exam": ("probability",)})), options)
    asked, all_of_it = part.tasks(0)["counterfact"], whole.tasks(0)["counterfact"]
    assert asked == {metric: all_of_it[metric] for metric in asked}
    assert set(all_of_it) - set(asked) == {
        "generation_exact_match", "paraphrase_exact_match", "neighborhood_exact_match",
        "generation_entropy", "reference_score",
    }  # fmt: skip
    assert part.templates == whole.templates
    assert part.plan["exam"] == ["probability"]


def test_a_finished_part_is_told_with_its_number(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    told: list[str] = []
    plan = Plan(str(checkpoint("gpt2")), num_edits=1, mode="isolated", exam=("generation", "text"))
    options = RunOptions(tmp_path, device="cpu", cache=False, report=lambda name, *_: told.append(name))
    run_plan(resolve(plan), options)
    (said,) = [line for line in told if line.startswith("counterfact, unedited: ")]
    assert re.fullmatch(r"counterfact, unedited: generation_exact_match \d\.\d{3}", said)
    assert not [line for line in told if "probability" in line]


def test_a_part_of_ones_own_rows(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    rows = tmp_path / "my.jsonl"
    rows.write_text(json.dumps({"prompt": "{} lives in", "subject": "Ann", "target": "Rome"}) + "\n")
    plan = Plan(str(checkpoint("gpt2")), edits=str(rows), exam=("generation",), mode="isolated")
    found = run_plan(resolve(plan), RunOptions(tmp_path / "out", device="cpu", cache=False))
    assert list(found.tasks(0)) == ["own"]
    assert list(found.tasks(0)["own"]) == ["generation_exact_match"]
    with pytest.raises(HarnessError, match="own lacks this part; the exam of own has probability, generation"):
        resolve(Plan(edits=str(rows), exam=("text",)))
