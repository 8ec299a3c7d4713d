"""A plan and what it names, looked up once and without a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from harness.editing import registry
from harness.editing.registry import compose
from harness.errors import HarnessError, UsageError
from harness.exam import tasks
from harness.models.lm import LM, load
from harness.runs.folder import exclusive
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.record_file import read_record
from harness.runs.resolve import resolve
from harness.runs.runner import finished, run_plan
from harness.runs.several import run_each

PLAN = Plan(editor="memit+rect", num_edits=5, tasks=("NLI",), text="mini")


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
    assert list(found.edits) == tasks.read_edits("counterfact", data_dir="mini", count=5)
    assert (found.rows, found.stops, found.text, found.about) == ((0, 1, 2, 3, 4), (0, 5), "mini", {})
    assert resolve(found.plan).id == found.id  # a plan that is whole stands for itself
    every = resolve(replace(PLAN, num_edits=None))
    assert every.plan.num_edits == len(every.edits) == len(tasks.read_edits("counterfact", data_dir="mini"))
    one = resolve(replace(PLAN, editor="rome", mode="instance-sequential", eval_at="every:2"))
    assert (one.plan.mode, one.plan.edit_batch_size, one.stops) == ("sequential", 1, (0, 2, 4, 5))
    assert resolve(Plan()).stops == (0,)  # the unedited model


@pytest.mark.usefixtures("no_model")
def test_committed_records_of_the_unedited_model_name_the_edits_that_they_are_asked_about() -> None:
    folder = Path(__file__).parents[3] / "results" / "records"
    kept = [read_record(path) for path in sorted(folder.glob("*--none--*[0-9a-f].json"))]
    assert len(kept) == 5
    for record in kept:
        found = resolve(Plan.from_json(record.plan))
        assert (found.id, len(found.edits), found.plan.exam) == (record.id, 50, ())
        assert record.edits["ids"] == [edit.id for edit in found.edits]


def test_a_random_order_says_which_row_each_edit_was() -> None:
    found = resolve(replace(PLAN, order="random", seed=1))
    rows = tasks.read_edits("counterfact", data_dir="mini", count=5)
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
    assert resolve(replace(plan, text="wikitext")).text == "wikitext"


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
        ({"mode": "batch-sequential"}, "batch-sequential needs --edit-batch-size"),
        ({"editor": "rome", "mode": "batch"}, "rome edits one fact at a time"),
        ({"eval_at": "6"}, "--eval-at 6: there are only 5 edits"),
        ({"num_edits": 100_000}, "100000 were asked for"),
        ({"text": "no.txt"}, "no.txt: no such text"),
        ({"dtype": "fp32"}, "dtype 'fp32' does not exist (did you mean float32"),
        ({"fitted": "no.safetensors"}, "memit learns nothing before its first edit"),
        ({"editor": "mend", "fitted": "no.safetensors"}, "no.safetensors: not a readable fitted editor"),
        ({"editor": "none", "edits": "none", "tasks": ()}, "nothing is asked of the model; name tasks with --tasks"),
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
    made = compose(f"{nudge}+rect").build(lm, {"scale": 2.0}, seed=0)
    found = resolve(replace(PLAN, editor="nudge+rect", settings=made.hyperparameters()), lm=lm, editor=made)
    assert found.recipe.parts == (type(made.root), type(made))
    assert found.recipe.name == "nudge+rect"
    assert (found.lm, found.editor) == (lm, made)


# --- one object for all that is done with a plan ----------------------------------------------------------------------


ROW = '{"prompt": "{} was born in", "subject": "Ada Velmont", "target": "Rome", "target_old": "Oslo"}\n'


@pytest.fixture
def small(checkpoint: Callable[..., Path], nudge: str, tmp_path: Path) -> Plan:
    """One edit by an editor that is quick."""
    rows = tmp_path / "my.jsonl"
    rows.write_text(ROW)
    return Plan(str(checkpoint("gpt2")), nudge, {"scale": 3.0}, str(rows), mode="batch", text="mini")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often an editor's name is composed, an editor's class is looked up, and edits are read."""
    found = dict.fromkeys(("compose", "find", "read_edits"), 0)

    def count(module: Any, name: str) -> None:
        original = getattr(module, name)

        def counting(*given: Any, **named: Any) -> Any:
            found[name] += 1
            return original(*given, **named)

        monkeypatch.setattr(module, name, counting)

    count(registry, "find")
    count(tasks, "read_edits")
    for module in [one for name, one in sys.modules.items() if name.startswith("harness.") and hasattr(one, "compose")]:
        count(module, "compose")
    return found


def test_a_run_looks_up_what_its_plan_names_once(small: Plan, counted: dict[str, int], tmp_path: Path) -> None:
    resolved = resolve(small)
    assert finished(resolved, tmp_path / "out") is None
    kept = run_plan(resolved, RunOptions(tmp_path / "out", device="cpu", save_edits=True))
    again = finished(resolved, tmp_path / "out")
    assert again is not None
    assert again.id == kept.id == resolved.id
    assert counted == {"compose": 1, "find": 1, "read_edits": 1}


def test_many_plans_are_each_looked_up_once(small: Plan, counted: dict[str, int], tmp_path: Path) -> None:
    plans = [small, replace(small, seed=1)]
    for known in (False, True):
        done = list(run_each(plans, RunOptions(tmp_path / "out", device="cpu")))
        assert [one.known for one in done] == [known] * 2
    assert counted == {"compose": 4, "find": 4, "read_edits": 4}  # two plans, twice


def test_the_last_of_many_plans_is_looked_up_before_the_first_is_run(small: Plan, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="editor 'memt' does not exist"):
        list(run_each([small, replace(small, editor="memt")], RunOptions(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_model")
def test_a_record_in_use_is_refused_before_the_model_is_loaded(small: Plan, tmp_path: Path) -> None:
    resolved = resolve(small)
    with exclusive(tmp_path, resolved.id), pytest.raises(UsageError, match=f"is writing the record {resolved.id[:8]}"):
        run_plan(resolved, RunOptions(tmp_path, device="cpu"))


@pytest.mark.usefixtures("no_model")
def test_a_device_is_looked_for_before_the_model_is_loaded(small: Plan, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="device 'nope' cannot be used"):
        run_plan(resolve(small), RunOptions(tmp_path / "out", device="nope"))


def test_a_model_and_an_editor_in_memory_are_run_as_they_are(small: Plan, nudge: str, tmp_path: Path) -> None:
    lm = load(small.model, device="cpu", text="mini")
    made = compose(nudge).build(lm, {"scale": 3.0}, seed=0)
    named = run_plan(resolve(small), RunOptions(tmp_path / "named", device="cpu", cache=False))
    given = resolve(replace(small, editor="nudge", settings=made.hyperparameters()), lm=lm, editor=made)
    kept = run_plan(given, RunOptions(tmp_path / "given", device="cpu", cache=False, save_edits=True))
    assert kept.model["sha256"] == named.model["sha256"] == lm.fingerprint()
    assert kept.points == named.points
    assert kept.editor == named.editor


# --- a newcomer's change ----------------------------------------------------------------------------------------------


def test_a_new_hyperparameter_of_rome_reaches_the_record_from_its_one_file(small: Plan, tmp_path: Path) -> None:
    """One field in a copy of ``editors/rome.py``: it can be set, it is checked, and its value stands in the record."""
    source = (Path(__file__).parents[3] / "editors" / "rome.py").read_text(encoding="utf-8")
    changed = source.replace('    name = "rome"\n', '    name = "rome"\n    warmth: Positive = 1.5\n')
    changed = changed.replace(
        "from harness.methods.keys",
        "from harness.editing.hyperparameters import Positive\nfrom harness.methods.keys",
        1,
    )
    assert changed.count("warmth") == 1
    mine = tmp_path / "rome.py"
    mine.write_text(changed, encoding="utf-8")
    settings = {"v_steps": 2, "cov_tokens": 2000, "layers": [0], "contexts": ["{}"]}
    plan = replace(small, editor=str(mine), settings=settings, mode="isolated", text=None, tasks=())
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"The {word} of Ada stood in Rome near the river." for word in "abcdefgh") * 40)
    plan = replace(plan, text=str(text))
    usual = run_plan(resolve(plan), RunOptions(tmp_path / "usual", device="cpu"))
    assert usual.editor["hyperparameters"]["warmth"] == 1.5
    set_by_hand = resolve(replace(plan, settings={**settings, "warmth": 2.5}))
    kept = run_plan(set_by_hand, RunOptions(tmp_path / "set", device="cpu"))
    assert kept.editor["hyperparameters"]["warmth"] == 2.5
    assert kept.plan["settings"]["warmth"] == 2.5
    with pytest.raises(UsageError, match="'warmth' is -1"):
        resolve(replace(plan, settings={**settings, "warmth": -1.0}))


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("edits", "asked"),
    [("counterfact", "zsre"), ("zsre", "counterfact"), ("counterfact", "zsre_generation"), ("own.jsonl", "zsre")],
)
def test_isolated_edits_are_not_asked_about_another_sets_and_no_model_is_loaded(
    edits: str, asked: str, tmp_path: Path
) -> None:
    (tmp_path / "own.jsonl").write_text('{"prompt": "{} was born in", "subject": "Ada", "target": "Rome"}\n')
    named = str(tmp_path / edits) if edits.endswith("jsonl") else edits
    plan = Plan(editor="memit", edits=named, num_edits=1, tasks=("NLI", asked), mode="isolated")
    with pytest.raises(UsageError, match=r"asks about edits of another set than .*use --mode batch"):
        resolve(plan)
    assert resolve(replace(plan, mode="batch")).plan.tasks == ("NLI", asked)
    assert resolve(replace(plan, tasks=("NLI", edits))) if edits == "zsre" else resolve(replace(plan, tasks=("NLI",)))
