"""The command line inside the test process, and a small run for the commands that read records."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import transformers
from cli_calls import ROWS, Outcome, without_progress

from harness import cli
from harness.models.lm import shipped
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.record import record_name
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan


@pytest.fixture
def harness(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Outcome]]:
    """``harness("run", "--editor", "rome")``: the command as a user types it, in this process."""
    levels = {name: logging.getLogger(name).level for name in ("lm_eval", "datasets", "transformers", "evaluate")}

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["harness", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        found = capsys.readouterr()
        # Bars of libraries that this process imported before the command line could silence them.
        lines = [line for line in found.err.splitlines() if line.strip() and "it/s]" not in line]
        lines = without_progress(lines)
        return Outcome(code, found.out, "\n".join(lines))

    with mock.patch.dict(os.environ):
        yield call
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="session")
def own_rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of two edits."""
    path = tmp_path_factory.mktemp("rows") / "my.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.fixture(scope="session")
def arguments(checkpoint: Callable[..., Path], nudge: str, own_rows: str) -> list[str]:
    """A small run: two random edits of a tiny model, three documents of NLI."""
    model = str(checkpoint("gpt2"))
    return [
        "run", "--model", model, "--editor", nudge, "--edits", own_rows, "--tasks", "NLI", "--limit", "3",
        "--data-dir", "mini", "--device", "cpu", "--set", "scale=6.0", "--mode", "batch",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def records(
    checkpoint: Callable[..., Path], nudge: str, own_rows: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Two records in one folder: a weak and a strong change."""
    folder = tmp_path_factory.mktemp("results")
    found = {}
    for name, scale in (("weak", 0.5), ("strong", 20.0)):
        plan = Plan(str(checkpoint("gpt2")), nudge, {"scale": scale}, own_rows, mode="batch", tasks=("NLI",), limit=3)
        kept = run_plan(resolve(plan), RunOptions(folder, device="cpu"))
        found[name] = folder / f"{record_name(kept)}.json"
    return found


@pytest.fixture(scope="session")
def mini() -> str:
    """The name of the shipped model; the test fails where the package does not hold it."""
    assert {"mini", "mini-llama"} <= set(shipped()), "harness/mini lacks the shipped models; run scripts/make_mini.py"
    return "mini"


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a checkpoint fails."""

    def fail(source: str, **_: object) -> None:
        pytest.fail(f"{source} was opened")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
