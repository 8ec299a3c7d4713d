"""What a model knows before it is edited: by hand, and as plain transformers writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.editing.edit import Edit
from harness.exam.knowledge import continuations, known_edits, known_once, says
from harness.exam.tasks import read_edits
from harness.io.nobody import tell_nobody
from harness.models.lm import LM, load


@pytest.fixture(scope="module")
def mini() -> LM:
    return load("mini", device="cpu")


@pytest.mark.parametrize(
    ("text", "wanted", "continuation", "prediction"),
    [(" Paris", "Paris", True, True), (" the city of PARIS.", "Paris", True, False), (" Rome", "Paris", False, False)],
)
def test_the_two_rules(text: str, wanted: str, continuation: bool, prediction: bool) -> None:
    assert says(text, wanted, "continuation") is continuation
    assert says(text, wanted, "prediction") is prediction
    assert says(text, wanted, "all")


def test_continuations_are_those_of_transformers_one_by_one(mini: LM) -> None:
    edits = read_edits("counterfact", data_dir="mini", count=6)
    prompts = [tuple(mini.encode(edit.text)) for edit in edits]
    assert len({len(prompt) for prompt in prompts}) > 1  # so that several batches are made
    told: list[tuple[int, int]] = []
    found = continuations(mini, prompts, new_tokens=5, report=lambda *done: told.append(done), budget=40)
    for prompt, text in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        row = mini.model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=mini.pad
        )[0]
        assert text == mini.tokenizer.decode(row[len(prompt) :], skip_special_tokens=True)
    assert told[-1] == (6, 6)


def test_the_shipped_model_knows_its_world_and_no_other(mini: LM) -> None:
    edits = read_edits("counterfact", data_dir="mini", count=5)
    others = [
        Edit("false", edits[0].prompt, edits[0].subject, edits[0].target, edits[0].target),
        Edit("silent", edits[0].prompt, edits[0].subject, edits[0].target),
    ]
    found = known_edits(mini, [*edits, *others], tell_nobody)
    assert found.asked == 6 and found.known == tuple(edit.id for edit in edits)
    assert found.line == "the model knows 5 of 6 facts before any edit"


def test_a_prompt_that_fills_the_context_is_unknown(mini: LM) -> None:
    edit = Edit("long", "{}" + " Mikol" * 2 * mini.context, "Kido Mikol", "Rome", "Oslo")
    assert known_edits(mini, [edit], tell_nobody).known == ()


def test_what_a_model_knows_is_asked_once(
    mini: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And again where a question, an answer or a weight is another, or where the kept file is damaged."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    edits = read_edits("counterfact", data_dir="mini", count=3)
    asked: list[int] = []

    def told(done: int, _total: int) -> None:
        asked.append(done)

    def how_often(lm: LM, given: list[Edit]) -> int:
        asked.clear()
        assert known_once(lm, given, told) == known_edits(lm, given, tell_nobody)
        return len(asked)

    assert how_often(mini, edits)
    assert not how_often(mini, edits)
    assert how_often(mini, edits[:1])
    assert how_often(mini, [replace(edits[0], target_old="Somewhere")])
    for path in (tmp_path / "unedited").iterdir():
        path.write_bytes(path.read_bytes()[:-20])
    assert how_often(mini, edits)
    assert "measured again" in caplog.text
    weight = next(mini.model.parameters())
    with torch.no_grad():
        weight[0, 0] += 1
    assert how_often(mini, edits)
    with torch.no_grad():
        weight[0, 0] -= 1
