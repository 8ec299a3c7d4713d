"""A finished record is taken only while all that its plan names is what it was; what is not is named in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.editing.editor import Learned
from harness.editing.learned_file import default_path, save_learned
from harness.editing.registry import configure, find
from harness.models.lm import load
from harness.runs import changed_since as changes
from harness.runs.changed_since import changed_since
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.record import Record
from harness.runs.resolve import resolve
from harness.runs.runner import finished, run_plan

LEARNER = '''
from dataclasses import dataclass
import torch
from harness.editing.editor import Learned
from harness.patches.delta import Dense
from harness.patches.patch import Patch

@dataclass(frozen=True)
class Shift(Learned):
    """Adds what it has learned to one matrix."""
    name = "shift"
    batch = True

    def edit(self, lm, edits, memory=None):
        matrix = lm.matrix(lm.down(0))
        return Patch({lm.down(0): Dense(self.knowledge(lm)["size"] * torch.ones_like(matrix))})
'''
ROWS: list[dict[str, Any]] = [
    {"prompt": "{} was born in", "subject": "Ada Velmont", "target": "Rome", "target_old": "Oslo"},
    {"prompt": "The home of {} is", "subject": "Hugo Lantern", "target": "Paris", "target_old": "Oslo"},
]
ROWS[0]["paraphrases"] = ["Ada Velmont comes from"]
TASK = """task: capitals
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/capitals.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{country}} has the capital"
doc_to_choice: ["Rome", "Oslo"]
doc_to_target: capital
metric_list: [{metric: acc}]
"""
TABLE = "sentence1\tsentence2\tlabel\nAda is here.\tAda is there.\tnot_entailment\nAda is here.\tShe is.\tentailment\n"


@dataclass(frozen=True)
class World:
    """All that a plan names, as files of a folder, and the record of its run."""

    folder: Path
    plan: Plan
    kept: Record

    def file(self, name: str) -> Path:
        return self.folder / name


def learned(path: Path, plan: Plan, size: float) -> None:
    """What the editor of these tests has learned."""
    editor = configure(find(plan.editor), plan.model, {})
    assert isinstance(editor, Learned)
    lm = load(plan.model, device="cpu")
    save_learned(replace(editor, learned={"size": torch.tensor(size)}), lm, path, trained={})


@pytest.fixture(scope="module")
def whole(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(checkpoint("gpt2"), folder / "model")
    (folder / "shift.py").write_text(LEARNER)
    (folder / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "text.txt").write_text("Ada Velmont was born in Rome, and nobody has seen it.\n" * 9)
    (folder / "data" / "general").mkdir(parents=True)
    (folder / "data" / "general" / "test-NLI.tsv").write_text(TABLE)
    plan = Plan(
        str(folder / "model"), str(folder / "shift.py"), edits=str(folder / "my.jsonl"), mode="batch", tasks=("NLI",)
    )
    plan = replace(plan, data_dir=str(folder / "data"), text=str(folder / "text.txt"), limit=2)
    plan = replace(plan, fitted=str(folder / "shift.safetensors"))
    learned(folder / "shift.safetensors", plan, 0.01)
    return World(folder, plan, run_plan(resolve(plan), RunOptions(folder / "out", device="cpu")))


@pytest.fixture
def world(whole: World) -> World:
    """The files as they were, whatever a test before has done to them."""
    return whole


def weights(world: World) -> None:
    path = world.file("model/model.safetensors")
    tensors = load_file(path)
    tensors["transformer.ln_f.bias"][0] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})


def replaced(name: str, old: str, new: str) -> Callable[[World], None]:
    def change(world: World) -> None:
        path = world.file(name)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


CHANGES: dict[str, tuple[str, Callable[[World], None]]] = {
    "weights of the model": ("model/model.safetensors", weights),
    "edits": ("my.jsonl", replaced("my.jsonl", "Paris", "Vienna")),
    "files of editors": ("shift.py", replaced("shift.py", "torch.ones_like", "2 * torch.ones_like")),
    "knowledge of the editor": (
        "shift.safetensors",
        lambda world: learned(world.file("shift.safetensors"), world.plan, 0.02),
    ),
    "rows": ("data/general/test-NLI.tsv", replaced("data/general/test-NLI.tsv", "She is.", "He is.")),
    "text": ("text.txt", replaced("text.txt", "Rome", "Oslo")),
}


def test_nothing_has_changed(world: World) -> None:
    assert changed_since(world.kept, resolve(world.plan)) == []
    assert finished(resolve(world.plan), world.file("out")) == world.kept


@pytest.mark.parametrize("what", CHANGES)
def test_what_has_changed_is_named_in_one_line(world: World, caplog: pytest.LogCaptureFixture, what: str) -> None:
    name, change = CHANGES[what]
    before = world.file(name).read_bytes()
    try:
        change(world)
        assert changed_since(world.kept, resolve(world.plan)) == [what]
        assert finished(resolve(world.plan), world.file("out")) is None
        (said,) = [message for message in caplog.messages if "not taken" in message]
        assert said.endswith(f": is of other {what}; it is not taken")
        assert "\n" not in said
    finally:
        world.file(name).write_bytes(before)
    assert changed_since(world.kept, resolve(world.plan)) == []


def test_another_chat_template_is_named(world: World, tmp_path: Path) -> None:
    """The same weights that are asked by another template are another run."""
    shutil.copytree(world.file("model"), tmp_path / "model")
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text("{% for turn in messages %}[{{ turn['content'] }}]{% endfor %}")
    plan = Plan(
        str(tmp_path / "model"), edits="none", tasks=("NLI",), data_dir=str(world.file("data")), limit=2,
        apply_chat_template=True,
    )  # fmt: skip
    kept = run_plan(resolve(plan), RunOptions(tmp_path / "out", device="cpu"))
    assert changed_since(kept, resolve(plan)) == []
    template.write_text("{% for turn in messages %}<{{ turn['content'] }}>{% endfor %}")
    assert changed_since(kept, resolve(plan)) == ["chat template"]
    assert finished(resolve(plan), tmp_path / "out") is None
    assert changed_since(kept, resolve(plan), load_model=False) == []
    template.unlink()
    assert changed_since(kept, resolve(plan)) == ["chat template"]


def altered(path: Path, **fields: object) -> None:
    """Write other values into a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}),
        ("config.json", {"layer_norm_epsilon": 0.1}),
        ("generation_config.json", {"repetition_penalty": 1.5}),
    ],
)
def test_the_same_weights_that_are_read_otherwise_are_another_model(
    world: World, tmp_path: Path, name: str, fields: dict[str, object]
) -> None:
    shutil.copytree(world.file("model"), tmp_path / "model")
    plan = Plan(str(tmp_path / "model"), edits="none", tasks=("NLI",), data_dir=str(world.file("data")), limit=2)
    kept = run_plan(resolve(plan), RunOptions(tmp_path / "out", device="cpu"))
    assert changed_since(kept, resolve(plan)) == []
    altered(tmp_path / "model" / name, **fields)
    assert changed_since(kept, resolve(plan)) == ["configuration or tokenizer of the model"]
    early = replace(kept, model={key: value for key, value in kept.model.items() if key != "configuration"})
    assert changed_since(early, resolve(plan)) == []  # a record of before says nothing of it


def test_what_is_asked_about_the_same_edits_is_among_the_rows(world: World) -> None:
    path = world.file("my.jsonl")
    before = path.read_bytes()
    try:
        replaced("my.jsonl", "comes from", "was seen in")(world)
        assert changed_since(world.kept, resolve(world.plan), load_model=False) == ["rows"]
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("capitals.yaml", "has the capital", "is ruled from"), ("capitals.jsonl", "Italy", "Lazio")],
)
def test_another_task_of_ones_own_is_named(world: World, tmp_path: Path, name: str, old: str, new: str) -> None:
    (tmp_path / "capitals.yaml").write_text(TASK.replace("FOLDER", str(tmp_path)))
    rows = [{"country": "Italy", "capital": "Rome"}, {"country": "Norway", "capital": "Oslo"}]
    (tmp_path / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = replace(world.plan, tasks=(str(tmp_path / "capitals.yaml"),))
    kept = run_plan(resolve(plan), RunOptions(tmp_path / "out", device="cpu"))
    assert changed_since(kept, resolve(plan)) == []
    (tmp_path / name).write_text((tmp_path / name).read_text().replace(old, new))
    assert changed_since(kept, resolve(plan)) == ["tasks"]


def test_a_task_that_reads_the_rows_of_another_changes_with_them(world: World, tmp_path: Path) -> None:
    rows = tmp_path / "data" / "general" / "mutual" / "dev.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text(json.dumps({"article": "f : is Ada at home ?", "options": list("nyza"), "answers": "A", "id": "1"}))
    plan = Plan(str(world.file("model")), edits="none", tasks=("dialogue_choice",), data_dir=str(tmp_path / "data"))
    kept = run_plan(resolve(plan), RunOptions(tmp_path / "out", device="cpu"))
    assert changed_since(kept, resolve(plan)) == []
    altered(rows, article="f : is Ida at home ?")
    assert changed_since(kept, resolve(plan)) == ["rows"]


def test_another_file_of_saved_edits_is_named(world: World, tmp_path: Path) -> None:
    def saved(size: float, patch: Path) -> None:
        learned(tmp_path / "shift.safetensors", world.plan, size)
        plan = replace(world.plan, fitted=str(tmp_path / "shift.safetensors"))
        run_plan(resolve(plan), RunOptions(tmp_path / str(size), device="cpu", save_edits=True))
        (made,) = (tmp_path / str(size)).glob("*.edits-2.safetensors")
        shutil.copy(made, patch)

    saved(0.01, tmp_path / "mine.safetensors")
    patch = str(tmp_path / "mine.safetensors")
    plan = Plan(world.plan.model, edits="none", data_dir=world.plan.data_dir, patch=patch)
    kept = run_plan(resolve(plan), RunOptions(tmp_path / "out", device="cpu"))
    assert changed_since(kept, resolve(plan)) == []
    saved(0.02, tmp_path / "mine.safetensors")
    assert changed_since(kept, resolve(plan)) == ["saved edits"]


def test_what_is_learned_anew_where_a_run_looks_is_named(world: World, tmp_path: Path) -> None:
    plan = replace(world.plan, fitted=None)
    lm = load(plan.model, device="cpu")
    path = default_path(configure(find(plan.editor), plan.model, {}), lm)
    try:
        learned(path, plan, 0.01)
        kept = run_plan(resolve(plan), RunOptions(tmp_path, device="cpu"))
        assert changed_since(kept, resolve(plan)) == []
        learned(path, plan, 0.02)
        assert changed_since(kept, resolve(plan), load_model=False) == ["knowledge of the editor"]
    finally:
        path.unlink(missing_ok=True)
    assert changed_since(kept, resolve(plan)) == []  # nobody knows


def test_other_versions_are_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = changes.versions()
    monkeypatch.setattr(changes, "versions", lambda: {**now, "torch": "0.1"})
    assert changed_since(world.kept, resolve(world.plan)) == ["versions"]


def test_without_the_model_its_weights_are_not_looked_at(world: World) -> None:
    path = world.file("model/model.safetensors")
    before = path.read_bytes()
    try:
        weights(world)
        assert changed_since(world.kept, resolve(world.plan), load_model=False) == []
    finally:
        path.write_bytes(before)


def test_a_record_of_before_says_nothing_of_its_text(world: World) -> None:
    early = replace(world.kept, model={key: value for key, value in world.kept.model.items() if key != "text"})
    assert changed_since(early, resolve(world.plan)) == []


def test_a_run_that_was_stopped_does_not_go_on_with_another_text(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from harness.runs.writer import RecordWriter

    def stopped(writer: RecordWriter) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "complete", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_plan(resolve(world.plan), RunOptions(tmp_path, device="cpu"))
    before = world.file("text.txt").read_bytes()
    try:
        replaced("text.txt", "Rome", "Oslo")(world)
        run_plan(resolve(world.plan), RunOptions(tmp_path, device="cpu"))
    finally:
        world.file("text.txt").write_bytes(before)
    assert any("had another model or plain text" in message and "begins anew" in message for message in caplog.messages)
