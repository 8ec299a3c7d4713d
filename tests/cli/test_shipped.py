"""The first command of the README, on the model and the rows that ship."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.runs.record_file import read_record


@pytest.mark.parametrize("llama", [False, True])
def test_the_main_job(harness: Callable[..., Any], mini: str, tmp_path: Path, llama: bool) -> None:
    model = ["--model", f"{mini}-llama"] if llama else []
    found = harness(
        "run", *model, "--editor", "memit", "--edits", "counterfact:5", "--tasks", "NER,NLI", "--limit", "20",
        "--device", "cpu", "--output", tmp_path,
    )  # fmt: skip
    assert (found.code, found.err) == (0, "")
    (path,) = tmp_path.glob("*.json")
    kept = read_record(path, values=True)
    before, after = kept.tasks(0), kept.tasks(5)
    assert set(before) == set(after) == {"counterfact", "NER", "NLI", "neutral_text"}
    assert after["counterfact"]["efficacy"]["value"] > before["counterfact"]["efficacy"]["value"]
    assert after["NLI"]["accuracy"]["n"] == 20
    assert before["NLI"]["accuracy"]["value"] > 0.7  # the shipped model can do what it is examined on


def test_the_shipped_models_are_listed(harness: Callable[..., Any], mini: str) -> None:
    found = harness("models")
    assert found.code == 0
    assert [line.split()[:2] for line in found.out.splitlines() if line.startswith(mini)] == [
        ["mini", "gpt2"], ["mini-backpack", "backpack"], ["mini-llama", "llama"],
    ]  # fmt: skip
