"""Free continuations are as long as the longest wanted answer needs; one's own rows are read as they are written."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.editing.edit import Edit
from harness.errors import DataError
from harness.exam import own_rows, tasks
from harness.models.lm import LM

LONG = "the kings need the car after lunch and a round museum stood in the garden on Monday so that it rains"


def task_of(lm: LM, path: Path, *rows: Mapping[str, object], limit: int = 256, least: int = 0) -> Any:
    path.write_text("".join(json.dumps({"id": str(i), **row}) + "\n" for i, row in enumerate(rows)), encoding="utf-8")
    ids = [str(i) for i in range(len(rows))]
    suite = tasks.load_suite(
        [], edit_set="own", records=ids, data_dir="mini", tokenizer=lm.tokenizer, own_file=str(path)
    )
    task = next(task.task for task in suite.tasks if task.name == "own_generation")
    assert task.config.generation_kwargs["max_gen_toks"] == 256
    assert task.config.metadata["least_tokens"] == 20
    task.config.generation_kwargs["max_gen_toks"], task.config.metadata["least_tokens"] = limit, least
    return task


def asked(task: Any) -> list[int]:
    """How many tokens each request asks for."""
    docs = list(task.eval_docs)
    requests = [task.construct_requests(doc, doc["prompt"], metadata=("own_generation", 0, 1)) for doc in docs]
    return [request.args[1]["max_gen_toks"] for (request,) in requests]


def row(target: str, **more: object) -> dict[str, object]:
    return {"prompt": "The song of {} is", "subject": "Ada", "target": target, **more}


def test_as_many_tokens_are_written_as_the_longest_answer_needs(tiny: Callable[[str], LM], tmp_path: Path) -> None:
    lm, path = tiny("gpt2"), tmp_path / "mine.jsonl"
    needed = len(lm.tokenizer(f" {LONG}")["input_ids"])
    assert needed > 24
    assert asked(task_of(lm, path, row("Rome"), row(LONG))) == [needed + 4] * 2
    assert asked(task_of(lm, path, row("Rome", aliases=[LONG]))) == [needed + 4]
    short = len(lm.tokenizer(" Rome")["input_ids"])
    assert asked(task_of(lm, path, row("Rome"))) == [short + 4]
    assert asked(task_of(lm, path, row("Rome"), least=20)) == [20]
    assert asked(task_of(lm, path, row("Rome"), row(LONG), limit=12)) == [12, 12]


def test_a_document_that_could_not_be_right_is_missing(tiny: Callable[[str], LM], tmp_path: Path) -> None:
    lm, path = tiny("gpt2"), tmp_path / "mine.jsonl"
    task = task_of(lm, path, row("Rome"), row(LONG), row(LONG, aliases=["Rome"]), limit=12)
    found = [task.process_results(doc, [" Rome."])["generation_exact_match"] for doc in task.eval_docs]
    assert [value.num for value in found[::2]] == [1.0, 1.0]
    assert math.isnan(found[1].num)
    assert found[1][1:] == (1.0, "1", None)
    long = task_of(lm, path, row(LONG))
    assert long.process_results(long.eval_docs[0], [f" {LONG}."])["generation_exact_match"].num == 1.0


def read(path: Path, *rows: Mapping[str, object]) -> list[Edit]:
    path.write_text("".join(json.dumps({"id": str(i), **row}) + "\n" for i, row in enumerate(rows)), encoding="utf-8")
    return tasks.read_edits(str(path), data_dir="mini")


def test_white_space_at_the_seam_is_taken_off_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompt = {"prompt": "The song of {} is", "subject": "Ada", "target": "soul"}
    with caplog.at_level(logging.WARNING):
        plain, *others = read(
            tmp_path / "mine.jsonl",
            prompt,
            prompt | {"prompt": "The song of {} is "},
            prompt | {"target": "soul "},
            prompt | {"prompt": "The song of {} is\t", "target": "  soul\n"},
            {"prefix": "The song of Ada is ", "suffix": " soul "},
        )
    assert {(edit.text, edit.continuation) for edit in others} == {(plain.text, " soul")}
    assert "taken off in 4 rows: 1, 2, 3, 4" in caplog.text


@pytest.mark.parametrize("more", [{}, {"target": " soul"}, {"prompt": "The song of {} is\n"}, {"target": "\nsoul"}])
def test_what_is_kept_is_not_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, more: Mapping[str, object]
) -> None:
    with caplog.at_level(logging.WARNING):
        (edit,) = read(
            tmp_path / "mine.jsonl", {"prompt": "The song of {} is", "subject": "Ada", "target": "soul", **more}
        )
    assert not caplog.text
    assert edit.text + edit.continuation in ("The song of Ada is soul", "The song of Ada is\nsoul")


def test_braces_are_text_where_the_subject_is_written_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": "In Python, {} is an empty dict; Ada prefers", "subject": "Ada", "target": "lists"},
        {"prompt": "The class Foo{} is written in", "subject": "Foo{}", "target": "C"},
        {"prompt": "{0} and {x} and {{}} of Ada are", "subject": "Ada", "target": "braces"},
        {"prompt": "The set {1, 2} of {} is", "subject": "Ada", "target": "small"},
    ]
    with caplog.at_level(logging.WARNING):
        found = read(tmp_path / "mine.jsonl", *rows)
    assert [edit.text for edit in found] == [
        "In Python, {} is an empty dict; Ada prefers",
        "The class Foo{} is written in",
        "{0} and {x} and {{}} of Ada are",
        "The set {1, 2} of Ada is",
    ]
    for edit in found:
        assert edit.text[edit.begins :].startswith(str(edit.subject))
    assert "is text in 2 rows: 0, 2" in caplog.text
    with pytest.raises(DataError, match=r"line 1.*has 2 slots"):
        read(tmp_path / "mine.jsonl", {"prompt": "{} or {} is", "subject": "Ada", "target": "it"})


def test_edits_that_are_kept_as_rows_read_as_the_same_edits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    given = [
        Edit("1", "In Python, {} is an empty dict; {} prefers", "Ada", "lists", slot=32),
        Edit("2", "a", None, "b", join=""),
        Edit("3", "{}的首都是", "中国", "上海"),
    ]
    assert tasks.read_edits(str(own_rows.keep_rows(given)), data_dir="mini") == given


def test_a_join_that_is_no_white_space_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: .*join is '-', expected white space or nothing"):
        read(tmp_path / "mine.jsonl", row("soul", join="-"))
