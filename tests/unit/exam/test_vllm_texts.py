"""Texts of vLLM: of a checkpoint that `harness apply` wrote, and of nothing that acts while the model runs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

import harness
from harness.editing.checkpoint import export
from harness.errors import UsageError
from harness.exam import vllm_texts
from harness.exam.vllm_texts import VllmTexts
from harness.models.lm import LM
from harness.runs.plan import Plan
from harness.runs.resolve import resolve

STUB = Path(__file__).parents[2] / "vllm_stub"


@pytest.fixture(scope="module")
def package() -> Iterator[ModuleType]:
    """A package of vLLM's name that writes with transformers; gone again after these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STUB))
        yield import_module("vllm")
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm" or name.endswith("vllm_causallms")]:
        del sys.modules[name]


@pytest.fixture
def stub(package: ModuleType) -> list[dict[str, object]]:
    """What each model of vLLM is made with."""
    made: list[dict[str, object]] = package.MADE
    made.clear()
    return made


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model with an edit in its weights, as `harness apply` writes it."""
    folder = tmp_path_factory.mktemp("applied")
    lm = harness.load("mini", device="cpu")
    with harness.edit(lm, None, "ft_l", "counterfact:1") as edited:
        edited.save(folder / "patch.safetensors")
    export(folder / "patch.safetensors", lm, folder / "model")
    return folder / "model"


EXAM = ["probability", "generation"]
WORDS = {"edits": "counterfact:2", "exam": EXAM, "data_dir": "mini", "log_samples": False}


def test_texts_are_those_of_the_checkpoint(stub: list[dict[str, object]], applied: Path) -> None:
    plain, other = (harness.run(str(applied), "none", **WORDS, backend=backend) for backend in ("hf", "vllm"))
    (made,) = stub
    assert (made["model"], made["dtype"]) == (str(applied), "float32")
    assert plain.points == other.points
    assert (other.versions["vllm"], plain.versions.get("vllm")) == ("0.11.0", None)
    assert plain.id != other.id


def test_nothing_but_texts_comes_from_there(
    stub: list[dict[str, object]], applied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What vLLM gives is taken as it is, also where another backend's numbers are kept; likelihoods are the model's."""
    plain, rated = (harness.run(str(applied), "none", **{**WORDS, "exam": parts}) for parts in (EXAM, EXAM[:1]))
    monkeypatch.setattr("vllm.LLM._text", lambda *_: " nothing of the kind")
    monkeypatch.setattr(vllm_texts, "version", lambda _: "another")
    other = harness.run(str(applied), "none", **WORDS, backend="vllm")
    first, alone, second = (record.points[0]["tasks"]["counterfact"] for record in (plain, rated, other))
    changed = {metric for metric, value in first.items() if value != second[metric]}
    assert changed and not changed & alone.keys()


def test_vllm_is_begun_only_where_a_text_is_asked_for(stub: list[dict[str, object]], applied: Path) -> None:
    harness.run(str(applied), "none", **{**WORDS, "exam": ["probability"]}, backend="vllm")
    assert stub == []


@pytest.mark.parametrize("editor", ["memit", "grace", "prompt"])
def test_no_editor_goes_with_it(editor: str, applied: Path) -> None:
    with pytest.raises(UsageError, match=f"backend vllm: {editor} would change the model in this process"):
        resolve(Plan(model=str(applied), editor=editor, backend="vllm"))


def test_what_cannot_be_read_is_one_line(stub: list[dict[str, object]], applied: Path) -> None:
    with pytest.raises(UsageError, match="mini is no folder with a checkpoint; give --model one that `harness apply`"):
        resolve(Plan(backend="vllm"))
    with pytest.raises(UsageError, match="model_args go to transformers alone"):
        resolve(Plan(model=str(applied), backend="vllm", model_args={"subfolder": "x"}))
    with pytest.raises(UsageError, match="backend is 'tgi', expected hf or vllm"):
        resolve(Plan(backend="tgi"))
    lm = harness.load("mini", device="cpu")
    with pytest.raises(UsageError, match="it reads no model in memory"):
        harness.run(lm, "none", **WORDS, backend="vllm")


def test_vllm_that_is_not_there_is_one_line(applied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_texts, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"vLLM is not installed; pip install 'lm-edit-harness\[vllm\]'"):
        resolve(Plan(model=str(applied), backend="vllm"))


def test_a_checkpoint_that_writes_in_a_way_of_its_own_is_refused(
    stub: list[dict[str, object]], applied: Path, tmp_path: Path
) -> None:
    shutil.copytree(applied, tmp_path / "own")
    path = tmp_path / "own" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "repetition_penalty": 1.3}))
    with pytest.raises(UsageError, match=r"generation_config\.json asks for more than the likeliest token"):
        harness.run(str(tmp_path / "own"), "none", **WORDS, backend="vllm")


def test_vllm_takes_a_part_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the model that lies on the accelerator already."""
    lm = harness.load("mini", device="cpu")
    assert VllmTexts("x", lm)._memory() == {}
    monkeypatch.setattr(LM, "device", torch.device("cuda:0"))
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda _: (50, 100))
    assert VllmTexts("x", lm)._memory() == {"gpu_memory_utilization": 0.45}
