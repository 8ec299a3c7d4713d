"""The general tasks that choose among the allowed answers: documents and prompts of the free form, lm-eval's scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from harness.exam import data
from harness.exam.quiet import quiet_lm_eval

LABELS = {
    "ClosedDomainQA": ["yes", "no"],
    "dialogue": ["A", "B", "C", "D"],
    "NLI": ["True", "False"],
    "SentimentAnalysis": ["positive", "negative"],
}


def _pair(name: str, data_dir: str) -> tuple[Any, Any]:
    """A task and its sibling that chooses."""
    manager = TaskManager(include_path=str(data.TASKS), include_defaults=False, metadata={"data_dir": data_dir})
    with quiet_lm_eval():
        found = manager.load([name, f"{name}_choice"])["tasks"]
    return found[name], found[f"{name}_choice"]


def _require_one_exam(free: Any, choice: Any, labels: list[str]) -> None:
    """The same documents, prompts and gold answers; every label is asked for once, after a space."""
    assert list(free.eval_docs) == list(choice.eval_docs)
    assert len(choice.eval_docs) > 100
    golds = set()
    for doc in choice.eval_docs:
        prompt = free.doc_to_text(doc)
        asked = choice.construct_requests(doc=doc, ctx=choice.doc_to_text(doc), metadata=("", 0, 1))
        assert [request.args for request in asked] == [(prompt, f" {label}") for label in labels]
        golds.add(choice.doc_to_target(doc))
        assert free.doc_to_target(doc) == choice.doc_to_target(doc)
    assert golds == set(labels)


@pytest.mark.parametrize("name", LABELS)
def test_shipped_rows(name: str) -> None:
    _require_one_exam(*_pair(name, "mini"), LABELS[name])


@pytest.mark.parametrize("name", LABELS)
def test_the_authors_files(name: str, shared: Path) -> None:
    _require_one_exam(*_pair(name, str(shared / "data")), LABELS[name])


def test_raw_and_by_length() -> None:
    """A longer answer is likelier by the character: -2.4 / 3 against -2.0 / 2."""
    _, choice = _pair("ClosedDomainQA", "mini")
    doc = next(doc for doc in choice.eval_docs if doc["answer"])
    likelihoods = [(-2.4, False), (-2.0, False)]
    assert {key: float(value) for key, value in choice.process_results(doc, likelihoods).items()} == {
        "acc": 0.0,
        "acc_norm": 1.0,
    }
