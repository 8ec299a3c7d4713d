"""A plan and what it names, looked up once and without a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from harness.editing.registry import compose
from harness.errors import HarnessError
from harness.exam import tasks
from harness.models.lm import LM
from harness.runs.plan import Plan
from harness.runs.resolve import resolve

PLAN = Plan(editor="memit+rect", num_edits=5, tasks=("NLI",), text="unused")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded")
    )
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("was loaded")
    )


@pytest.mark.usefixtures("no_model")
def test_what_a_plan_leaves_open_is_filled_in() -> None:
    found = resolve(PLAN)
    assert found.plan == replace(PLAN, mode="batch")
    assert [cls.name for cls in found.recipe.parts] == ["memit", "rect"]
    assert list(found.edits) == tasks.read_edits("counterfact", "mini", count=5)
    assert (found.rows, found.stops, found.text, found.about) == ((0, 1, 2, 3, 4), (0, 5), "unused", {})
    assert resolve(found.plan).id == found.id  # a plan that is whole stands for itself
    every = resolve(replace(PLAN, num_edits=None))
    assert every.plan.num_edits == len(every.edits) == len(tasks.read_edits("counterfact", "mini"))
    one = resolve(replace(PLAN, editor="rome", mode="instance-sequential", eval_at="every:2"))
    assert (one.plan.mode, one.plan.batch_size, one.stops) == ("sequential", 1, (0, 2, 4, 5))
    assert resolve(Plan()).stops == (0,)  # the unedited model


def test_a_random_order_says_which_row_each_edit_was() -> None:
    found = resolve(replace(PLAN, order="random", seed=1))
    rows = tasks.read_edits("counterfact", "mini", count=5)
    assert list(found.edits) != rows
    assert [rows[row] for row in found.rows] == list(found.edits)
    assert found.ids_in_order_of_rows() == [edit.id for edit in rows]


def test_text_that_lies_beside_the_rows_is_found(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    rows = tmp_path / "my.jsonl"
    rows.write_text(json.dumps({"prompt": "{} was born in", "subject": "Ada Velmont", "target": "Rome"}))
    plan = Plan("elsewhere/model", "ft", edits=str(rows), data_dir=str(tmp_path))
    assert resolve(plan).text == str(tmp_path / "text")
    assert resolve(replace(plan, model="mini")).text is None  # a shipped model brings its own
    assert resolve(replace(plan, text="mine")).text == "mine"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"editor": "memt"}, "editor 'memt' does not exist (did you mean memit"),
        ({"settings": {"lamm": 1}}, "has no hyperparameter 'lamm' (did you mean lam"),
        ({"settings": {"lam": -1}}, "'lam' is -1"),
        ({"tasks": ("NLI", "NIL")}, "task 'NIL' does not exist (did you mean NLI"),
        ({"tasks": ("hellaswg",)}, "task 'hellaswg' does not exist (did you mean hellaswag"),
        ({"edits": "counterfac"}, "edit set 'counterfac' does not exist (did you mean counterfact"),
        ({"edits": "no.jsonl"}, "no.jsonl: no such file"),
        ({"mode": "bach"}, "mode 'bach' does not exist; choose isolated, batch, sequential"),
        ({"mode": "batch-sequential"}, "batch-sequential needs --batch-size"),
        ({"editor": "rome", "mode": "batch"}, "rome edits one fact at a time"),
        ({"eval_at": "6"}, "--eval-at 6: there are only 5 edits"),
        ({"num_edits": 100_000}, "100000 were asked for"),
        ({"dtype": "fp32"}, "dtype 'fp32' does not exist (did you mean float32"),
        ({"fitted": "no.safetensors"}, "memit learns nothing before its first edit"),
        ({"editor": "mend", "fitted": "no.safetensors"}, "no.safetensors: not a readable fitted editor"),
        ({"editor": "none", "settings": {}, "patch": "no.safetensors"}, "no.safetensors: not a readable patch"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_a_name_that_does_not_exist_is_told_before_a_model_is_loaded(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(HarnessError) as caught:
        resolve(replace(PLAN, **changes))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_task_does_not_wait_for_the_index_of_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_every_task", lambda *_: pytest.fail("the index was made"))
    with pytest.raises(HarnessError, match="task 'hellaswg' does not exist"):
        resolve(replace(PLAN, tasks=("hellaswg",)))


def test_an_editor_at_hand_stands_for_its_name(nudge: str, tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    made = compose(f"{nudge}+rect").build(lm, {"scale": 2.0}, 0)
    found = resolve(replace(PLAN, editor="nudge+rect", settings=made.hyperparameters()), lm=lm, editor=made)
    assert found.recipe.parts == (type(made.root), type(made))
    assert found.recipe.name == "nudge+rect"
    assert (found.lm, found.editor) == (lm, made)
