"""Canonical examples against the authors' evaluation: losses, failure rates, hard negatives, texts, general loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from harness.canonical import failed, loss, read_rows
from harness.lm import LM
from harness.spans import mean_nll, score, span

CASE = "I_canonical_examples"
TASKS = {
    "country": "country_capital",
    "stereoset": "stereoset",
    "verb": "verb_conjugation",
}
REL = {"fp64": 1e-6, "fp32": 1e-4}
ABS = {"fp64": 5e-6, "fp32": 2e-3}
"""A loss of a pair is the difference of two sums of some hundred nats; NeoX's rotary tables stay float32."""


@pytest.fixture(scope="module")
def expected(golden: Any) -> Any:
    return golden.json(f"{CASE}/expected.json")


@pytest.fixture(scope="module")
def given(golden: Any) -> Any:
    return golden.json(f"{CASE}/inputs.json")


@pytest.fixture(scope="module")
def rows(golden: Any, given: Any) -> Callable[[str, str], list[dict[str, Any]]]:
    """The rows of one part of a task: ``rows("country", "eval")``."""

    def read(task: str, part: str) -> list[dict[str, Any]]:
        named = given["tasks"][task]["rows"][part]
        files = {entry["file"]: read_rows(golden.root.parent / entry["file"]) for entry in named}
        return [files[entry["file"]][entry["row"]] for entry in named]

    return read


def nll(lm: LM, rows: list[dict[str, Any]], suffix: str = "suffix") -> list[float]:
    return [-v for v, _ in score(lm, [span(lm.tokenizer, row["prefix"], row[suffix]) for row in rows])]


def near(precision: str, value: Any, pair: bool = False) -> Any:
    return pytest.approx(value, rel=REL[precision], abs=ABS[precision] if pair else 0.0)


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("task", TASKS)
def test_losses_of_the_evaluation_set(
    task: str, precision: str, golden: Any, given: Any, expected: Any, rows: Callable[..., Any]
) -> None:
    lm, found, said = golden.lm("tiny-neox", precision), rows(task, "eval"), given["tasks"][task]
    mine = nll(lm, found)
    other = nll(lm, found, "other") if said["pair"] else [0.0] * len(found)
    losses = [loss(said["loss_type"], a, b) for a, b in zip(mine, other, strict=True)]
    wanted = expected["tasks"][task][precision]
    assert losses == near(precision, wanted["eval_loss_per_row"], said["pair"])
    for name, threshold in (
        ("eval_failure_rate", said["threshold"]),
        ("eval_failure_rate_mid", wanted["mid_threshold"]),
    ):
        assert sum(failed(value, threshold) for value in losses) / len(losses) == wanted[name]


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("task", TASKS)
def test_tokens_are_those_of_prefix_and_suffix_apart(
    task: str, precision: str, golden: Any, given: Any, expected: Any, rows: Callable[..., Any]
) -> None:
    lm = golden.lm("tiny-neox", precision)
    names = ("suffix", "other") if given["tasks"][task]["pair"] else ("suffix",)
    counts = [[span(lm.tokenizer, row["prefix"], row[name]).scored for name in names] for row in rows(task, "eval")]
    wanted = expected["tasks"][task][precision]["n_tokens"]
    assert counts == (wanted if len(names) == 2 else [[n] for n in wanted])


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("task", TASKS)
def test_hard_negatives_and_texts(
    task: str, precision: str, golden: Any, expected: Any, rows: Callable[..., Any]
) -> None:
    lm, wanted = golden.lm("tiny-neox", precision), expected["tasks"][task][precision]
    hard = nll(lm, rows(task, "hard"))
    assert sum(hard) / len(hard) == near(precision, wanted["hard_negative"])
    texts = [row["suffix"] for row in rows(task, "uncond")]
    assert mean_nll(lm, texts) == near(precision, wanted["unconditional_token_mean"])


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
def test_the_general_loss_is_weighted_by_tokens(precision: str, golden: Any, given: Any, expected: Any) -> None:
    lm = golden.lm("tiny-neox", precision)
    assert mean_nll(lm, given["general_texts"]) == near(precision, expected["general_token_mean"][precision])


def test_the_rows_are_those_that_the_authors_were_given(golden: Any, given: Any) -> None:
    import hashlib

    for task in TASKS:
        for part in given["tasks"][task]["rows"].values():
            for entry in part:
                line = (golden.root.parent / entry["file"]).read_text(encoding="utf-8").split("\n")[entry["row"]]
                assert hashlib.sha256(line.encode()).hexdigest()[:16] == entry["sha256_16"]
                assert isinstance(json.loads(line), dict)
