"""A study is its plans: what lists and runs expand to, what is complete is kept, and the studies that ship."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from harness.cli.edit_and_measure import PlanOptions
from harness.editing.editor import Wrapper
from harness.editing.registry import compose, configure
from harness.editing.schedule import plain_mode, stops
from harness.errors import UsageError
from harness.exam import tasks
from harness.reports.plan_table import plan_table
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.plan_grid import expand
from harness.runs.record import record_name
from harness.runs.resolve import resolve
from harness.runs.runner import finished, run_plan

STUDIES = sorted((Path(__file__).parents[3] / "scripts" / "studies").glob("*.yaml"))
STOPS = [1, 5, 10, 20, 50, 100, 200, 500]
SEVEN = {"rome", "r_rome", "memit", "alphaedit", "ft_l", "mend", "kn"}


def test_lists_make_a_plan_for_each_choice_and_the_first_changes_slowest() -> None:
    found = expand({"editor": ["rome", "memit"], "seed": [0, 1], "tasks": ["NER", "NLI"]}, "x")
    assert [(one["editor"], one["seed"]) for one in found] == list(itertools.product(["rome", "memit"], [0, 1]))
    assert all(one["tasks"] == ["NER", "NLI"] for one in found)


def test_runs_are_laid_over_what_they_share() -> None:
    runs = [{"editor": "rome"}, {"editor": "ft", "settings": [{"lr": 0.1}, {"lr": 0.2}], "limit": 3}]
    found = expand({"limit": 9, "runs": runs}, "x")
    assert found == [
        {"limit": 9, "editor": "rome"},
        {"limit": 3, "editor": "ft", "settings": {"lr": 0.1}},
        {"limit": 3, "editor": "ft", "settings": {"lr": 0.2}},
    ]


def test_a_model_that_is_not_edited_is_asked_about_edits_only_where_they_are_named(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("editor: [none, rome]\n")

    def edits(**chosen: Any) -> list[tuple[str, int | None]]:
        return [(plan.edits, plan.num_edits) for plan in PlanOptions(config=path, **chosen).plans()]

    assert edits(tasks="NLI") == [("none", None), ("counterfact", 50)]
    assert edits(edits="zsre:5") == [("zsre", 5)] * 2
    assert edits(num_edits=5) == [("counterfact", 5)] * 2
    assert edits(edits="zsre:5", num_edits=5) == [("zsre", 5)] * 2
    assert edits(exam="probability") == [("counterfact", 50)] * 2


def test_two_numbers_of_edits_in_one_place_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("edits: counterfact:2\nnum_edits: 3\n")
    with pytest.raises(UsageError, match=r"^--edits 'zsre:2' and --num-edits 3: two numbers of edits; give one of"):
        PlanOptions(edits="zsre:2", num_edits=3).plans()
    with pytest.raises(UsageError, match=r"plan.yaml: edits 'counterfact:2' and num_edits 3: two numbers of edits"):
        PlanOptions(config=path).plans()
    path.write_text("edits: counterfact:2\n")
    assert PlanOptions(config=path, num_edits=3).plans()[0].num_edits == 3


def test_a_plan_without_lists_is_itself() -> None:
    assert expand({"editor": "rome", "tasks": ["NLI"]}, "x") == [{"editor": "rome", "tasks": ["NLI"]}]
    assert expand({}, "x") == [{}]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"runs": []}, "s.yaml: 'runs' is [], expected a list of fields of a plan"),
        ({"runs": ["rome"]}, "s.yaml: 'runs' is ['rome'], expected"),
        ({"runs": {"editor": "rome"}}, "s.yaml: 'runs' is {'editor': 'rome'}, expected"),
        ({"editor": []}, "s.yaml: 'editor' is an empty list"),
    ],
)
def test_a_study_that_cannot_be_read(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as told:
        expand(values, "s.yaml")
    assert str(told.value).startswith(message)


def test_a_field_that_a_run_misspells_is_told_by_the_file(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("runs:\n  - {editr: rome}\n")
    with pytest.raises(UsageError, match=r"study\.yaml: 'editr' is not a field of a plan \(did you mean editor"):
        PlanOptions(config=path).plans()


def test_options_are_laid_over_every_plan_and_equal_plans_are_one(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("edits: zsre:5\neditor: [rome, memit]\nseed: [0, 1]\n")
    found = PlanOptions(config=path, settings=("v_steps=3",), editor="ft", limit=2).plans()
    assert [(plan.editor, plan.seed, plan.limit, dict(plan.settings)) for plan in found] == [
        ("ft", 0, 2, {"v_steps": 3}),
        ("ft", 1, 2, {"v_steps": 3}),
    ]
    assert {(plan.edits, plan.num_edits) for plan in found} == {("zsre", 5)}


def test_several_seeds_draw_the_order_unless_one_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("seed: [5, 6]\n")
    found = PlanOptions(config=path).plans("0,1")
    assert [(plan.seed, plan.order) for plan in found] == [(0, "random"), (1, "random")]
    assert {plan.order for plan in PlanOptions(config=path, order="file").plans("0,1")} == {"file"}
    path.write_text("order: file\n")
    assert {plan.order for plan in PlanOptions(config=path).plans("0,1")} == {"file"}


# --- the studies that ship --------------------------------------------------------------------------------------------


def plans(path: Path) -> list[Plan]:
    return PlanOptions(config=path).plans()


def test_there_are_two_studies_at_two_scales() -> None:
    assert [path.stem for path in STUDIES] == ["prune-mini", "prune", "rect-mini", "rect"]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_each_plan_of_a_study_names_what_exists(path: Path) -> None:
    known = {*tasks.catalogue(), "general"}
    for plan in plans(path):
        recipe = compose(plan.editor)
        for key, value in plan.settings.items():
            part, _, name = key.rpartition(".")
            (cls,) = [one for one in recipe.parts if one.name == (part or recipe.cls.name)]
            inner = configure(recipe.cls, plan.model, {}) if issubclass(cls, Wrapper) else None
            assert configure(cls, plan.model, {name: value}, inner).hyperparameters()
        mode, size = plain_mode(plan.mode, plan.edit_batch_size)
        assert plan.num_edits is not None
        assert stops(plan.eval_at, plan.num_edits, mode=str(mode), batch_size=size)[-1] == plan.num_edits
        assert set(plan.tasks) <= known


def test_the_mini_studies_make_every_edit_that_they_name() -> None:
    found = [plan for path in STUDIES if path.stem.endswith("-mini") for plan in plans(path)]
    long = [plan for plan in found if plan.num_edits == 500]
    assert {plan.editor for plan in long} == {e + w for e in SEVEN for w in ("", "+rect", "+prune")}
    for plan in long:
        found_one = resolve(plan)
        edits, whole = found_one.edits, found_one.plan
        assert (len(edits), found_one.stops, whole.tasks, whole.model) == (500, (0, *STOPS), ("general",), "mini")
        assert len({edit.text for edit in edits}) == 500
    # The set holds 310 subjects; the first 310 edits have one each.
    assert len({edit.subject for edit in edits}) == len({edit.subject for edit in edits[:310]}) == 310
    shares = {(s.get("rect.keep", 0.4), s.get("rect.choose", "relative")) for s in (p.settings for p in found) if s}
    assert shares == {
        (0.8, "relative"),
        (0.6, "relative"),
        (0.2, "relative"),
        (0.4, "random"),
        (0.4, "pca"),
    }


def test_the_studies_at_paper_scale_stop_where_the_papers_do() -> None:
    rect, prune = (plans(path) for stem in ("rect", "prune") for path in STUDIES if path.stem == stem)
    rome = [p for p in rect if p.editor == "rome" and "gpt2-xl" in p.model]
    assert [(p.eval_at, p.num_edits) for p in rome] == [("5,10,15,final", 20)]
    operations = {
        (p.edit_batch_size, p.num_edits) for p in rect if p.mode == "batch-sequential" and "gpt2-xl" in p.model
    }
    assert operations == {(10, 500), (30, 1500), (50, 2500)}  # fifty operations each
    assert {p.tasks for p in rect} == {("general",)}
    assert {p.edits for p in rect} == {"zsre"}
    assert len(prune) == 3 * 2 * (3 + 3 * 3)
    assert {p.num_edits for p in prune} == {2000}


# --- a study that is run ----------------------------------------------------------------------------------------------


def test_what_is_complete_is_found_by_its_plan(checkpoint: Callable[..., Path], nudge: str, tmp_path: Path) -> None:
    rows = tmp_path / "my.jsonl"
    rows.write_text('{"prompt": "{} was born in", "subject": "Ada Velmont", "target": "Rome", "target_old": "Oslo"}\n')
    plan = Plan(str(checkpoint("gpt2")), nudge, {"scale": 3.0}, str(rows), mode="instance-sequential")
    out = tmp_path / "out"
    assert finished(resolve(plan), out) is None
    kept = run_plan(resolve(plan), RunOptions(out, device="cpu"))
    again = finished(resolve(plan), out)
    assert again is not None
    assert again == kept
    assert again.values is not None
    other = Plan(**{**plan.__dict__, "seed": 1})
    assert finished(resolve(other), out) is None
    rows.write_text(rows.read_text().replace("Rome", "Paris"))
    assert finished(resolve(plan), out) is None  # the plan names the file, and the file says something else
    rows.write_text(rows.read_text().replace("Paris", "Rome"))
    assert finished(resolve(plan), out) == kept
    path = out / f"{record_name(kept)}.json"
    (out / f"old--{path.name}").write_bytes(path.read_bytes())
    assert f"complete: {path}" in shown(plan_table(resolve(plan), out))  # a copy changes nothing
    whole = path.read_text()
    path.unlink()
    assert finished(resolve(plan), out) is None  # and is none itself
    path.write_text(whole.replace('"complete"', '"failed"'))
    assert finished(resolve(plan), out) is None


def test_what_was_changed_by_hand_is_told_and_made_again(
    checkpoint: Callable[..., Path], nudge: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = tmp_path / "my.jsonl"
    rows.write_text('{"prompt": "{} was born in", "subject": "Ada Velmont", "target": "Rome", "target_old": "Oslo"}\n')
    plan = Plan(str(checkpoint("gpt2")), nudge, {"scale": 3.0}, str(rows), mode="batch", exam=("probability",))
    kept = run_plan(resolve(plan), RunOptions(tmp_path, device="cpu"))
    kept.tasks(1)["own"]["efficacy_probability"]["value"] += 0.5
    (tmp_path / f"{record_name(kept)}.json").write_text(json.dumps(kept.to_json()))
    assert finished(resolve(plan), tmp_path) is None
    assert "own efficacy_probability after 1 edits, the value is" in caplog.messages[-1]
    assert caplog.messages[-1].endswith("changed after the run; it is not taken")


def shown(table: RenderableType) -> str:
    """What is printed of a table."""
    console = Console(width=1000)
    with console.capture() as captured:
        console.print(table)
    return captured.get()
