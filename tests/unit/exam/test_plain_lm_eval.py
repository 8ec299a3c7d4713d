"""Tasks through the harness give the log-likelihoods, texts and metrics of plain lm-eval on the same documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import evaluate
from lm_eval.models.huggingface import HFLM
from transformers import LlamaConfig, LlamaForCausalLM

from harness.exam import passes, tasks
from harness.exam.adapter import EditedLM
from harness.exam.token_tasks import Tokenized
from harness.models import packing
from harness.models.lm import LM, load
from harness.patches.patch import Patch

GENERAL = [
    "dialogue",
    "NER",
    "NLI",
    "reasoning",
    "SentimentAnalysis",
    "ClosedDomainQA",
    "OpenDomainQA",
    "summarization",
]
DOCUMENTS = 4


@pytest.fixture(scope="module")
def smol() -> LM:
    """A random model of SmolLM2-135M's shape, but narrow, that reads with the tokenizer of ``mini``."""
    torch.manual_seed(0)
    tokenizer = load("mini").tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=36,
        intermediate_size=96,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LM.wrap(LlamaForCausalLM(config), tokenizer, name="smol")


@pytest.fixture(scope="module")
def stories(shared: Path) -> LM:
    """A real model of 260 thousand parameters."""
    return load(str(shared / "models" / "stories260K"))


@pytest.fixture(autouse=True)
def everything_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short fronts and few logits at once, so that small tasks take every way."""
    monkeypatch.setattr(packing, "_ROW", 64)
    monkeypatch.setattr(packing, "_STEM", 8)
    monkeypatch.setattr(passes, "_LOGITS", 2**15)


def answers(model: HFLM, task: tasks.Task, lm: LM) -> tuple[list[Any], dict[str, float]]:
    """What the model answered to each document, and the metrics."""
    if isinstance(task.task, Tokenized):
        task.task.bind(lm.tokenizer, exact=False)
    load_ = {"tasks": {task.name: task.task}, "groups": {}, "group_map": {}}
    found = evaluate(model, load_, limit=DOCUMENTS, bootstrap_iters=0)
    said = [answer for sample in found["samples"][task.name] for answer in sample["filtered_resps"]]
    return said, {k: v for k, v in found["results"][task.name].items() if isinstance(v, float)}


def same(lm: LM, task: tasks.Task) -> None:
    """The task through both."""
    expected, metrics = answers(HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=1), task, lm)
    model = EditedLM(lm)
    model.room.front = 500
    with model.holding(Patch()):
        found, ours = answers(model, task, lm)
    assert len(found) == len(expected) >= DOCUMENTS
    for a, b in zip(found, expected, strict=True):
        assert a == b if isinstance(b, str) else (a[0] == pytest.approx(b[0], abs=1e-4) and a[1] == b[1])
    assert ours == pytest.approx(metrics, abs=1e-4, nan_ok=True)


def suite(lm: LM, name: str, edit_set: str | None = None) -> list[tasks.Task]:
    """Shipped tasks."""
    records = [edit.id for edit in tasks.read_edits(edit_set, data_dir="mini")[:DOCUMENTS]] if edit_set else None
    names = [] if edit_set else [name]
    return tasks.load_suite(names, edit_set=edit_set, records=records, data_dir="mini", tokenizer=lm.tokenizer).tasks  # type: ignore[return-value]


@pytest.mark.parametrize("name", GENERAL)
def test_tasks_of_general_ability(smol: LM, name: str, small_index: None) -> None:
    (task,) = suite(smol, name)
    same(smol, task)


@pytest.mark.parametrize("edit_set", ["counterfact", "zsre"])
def test_exams_of_edit_sets(smol: LM, edit_set: str, small_index: None) -> None:
    for task in suite(smol, edit_set, edit_set):
        same(smol, task)


@pytest.mark.parametrize("name", ["NLI", "NER", "summarization"])
def test_a_real_model_with_tasks(stories: LM, name: str, small_index: None) -> None:
    (task,) = suite(stories, name)
    same(stories, task)


@pytest.mark.parametrize("edit_set", ["counterfact", "zsre"])
def test_a_real_model_with_exams(stories: LM, edit_set: str, small_index: None) -> None:
    for task in suite(stories, edit_set, edit_set):
        if not task.name.endswith("_text"):  # a hundred tokens each
            same(stories, task)
