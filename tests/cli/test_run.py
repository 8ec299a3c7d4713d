"""``harness run`` as a user types it, in this process and as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_calls import without_progress

from harness.runs.record_file import read_record

ROOT = Path(__file__).parents[2]

SLOW = '''
import time
from dataclasses import dataclass
from pathlib import Path
from harness.editing.editor import Editor

@dataclass(frozen=True)
class Slow(Editor):
    """Says that it is at work, and then takes its time."""
    name = "slow"
    marker: str = ""

    def edit(self, lm, edits, memory=None):
        Path(self.marker).touch()
        time.sleep(300)
'''


def process(arguments: list[str], **options: Any) -> subprocess.Popen[str]:
    """The command line as a process."""
    command = [sys.executable, "-m", "harness.cli", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ), **options
    )


def test_a_run_prints_a_table_and_writes_one_record(
    harness: Callable[..., Any], arguments: list[str], tmp_path: Path
) -> None:
    found = harness(*arguments, "--output", tmp_path)
    assert (found.code, found.err) == (0, "")
    (path,) = tmp_path.glob("*.json")
    kept = read_record(path, values=True)
    assert f"record: {path}" in found.out
    for word in ("unedited", "edited", "difference", "own", "NLI accuracy"):
        assert word in found.out
    assert kept.status == "complete"
    assert kept.edits["count"] == 2
    assert [point["edits"] for point in kept.points] == [0, 2]


def test_the_command_line_reaches_the_plan(harness: Callable[..., Any], arguments: list[str], tmp_path: Path) -> None:
    config = tmp_path / "plan.yaml"
    config.write_text("seed: 4\nmode: sequential\nsettings: {layer: 2}\n")
    found = harness(
        *arguments[:-2], "--config", config, "--eval-at", "1,final", "--seed", "5", "--output", tmp_path / "o"
    )
    assert found.code == 0, found.err
    (path,) = (tmp_path / "o").glob("*.json")
    kept = read_record(path)
    assert (kept.plan["seed"], kept.plan["mode"], kept.plan["eval_at"], kept.plan["limit"]) == (
        5, "sequential", "1,final", 3,
    )  # fmt: skip
    assert kept.plan["settings"] == {"layer": 2, "scale": 6.0}
    assert kept.editor["hyperparameters"]["seed"] == 5
    assert [point["edits"] for point in kept.points] == [0, 1, 2]
    assert list(kept.delta) == ["transformer.h.2.mlp.c_proj.weight"]


def test_warnings_about_the_edits_are_shown(harness: Callable[..., Any], arguments: list[str], tmp_path: Path) -> None:
    rows = tmp_path / "twice.jsonl"
    rows.write_text('{"prefix": "It rains in", "suffix": "Rome"}\n' * 2)
    at = arguments.index("--edits")
    found = harness(
        *arguments[:at], "--edits", rows, "--device", "cpu", "--set", "scale=6.0", "--output", tmp_path / "o"
    )
    assert found.code == 0, found.err
    assert "warning: edit 2 repeats edit 1 ('It rains in' -> 'Rome')" in found.out


def test_a_process_of_its_own_ends_with_a_record_and_is_silent_otherwise(arguments: list[str], tmp_path: Path) -> None:
    out, err = process([*arguments, "--output", str(tmp_path)]).communicate(timeout=1800)
    (path,) = tmp_path.glob("*.json")
    assert without_progress(err.splitlines()) == []
    assert "NLI accuracy" in out
    assert read_record(path).status == "complete"


def test_without_a_terminal_each_phase_and_each_task_with_its_number_is_a_line(
    arguments: list[str], tmp_path: Path
) -> None:
    out, err = process([*arguments, "--output", str(tmp_path)]).communicate(timeout=1800)
    said = [line[len("[00:00:00] ") :] for line in err.splitlines()]
    (path,) = tmp_path.glob("*.json")
    kept = read_record(path)
    phases = ["load", "measure unedited", "edit", "measure after 2 edits", "check"]
    assert [line for line in said if line in phases] == phases
    for state, edits in (("unedited", 0), ("after 2 edits", 2)):
        for shown in ("own", "NLI"):
            metric = kept.headlines[shown]
            assert f"{shown}, {state}: {metric} {kept.tasks(edits)[shown][metric]['value']:.3f}" in said
    assert without_progress(out.splitlines()) == [line for line in out.splitlines() if line.strip()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_ctrl_c_leaves_what_was_measured(arguments: list[str], tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    at, marker = arguments.index("--editor"), tmp_path / "editing"
    slow = [*arguments[: at + 1], str(tmp_path / "slow.py"), *arguments[at + 2 : -4], "--mode", "batch"]
    running = process([*slow, "--set", f"marker={marker}", "--output", str(tmp_path / "o")])
    try:
        _wait(lambda: marker.exists() or running.poll() is not None)
        running.send_signal(number)
        out, err = running.communicate(timeout=1800)
    finally:
        running.kill()
    assert (running.returncode, out) == (130, "")
    assert without_progress(err.strip().splitlines()) == [
        "error: interrupted; what was measured is in the *.partial.json of the output folder"
    ]
    (path,) = (tmp_path / "o").glob("*.json")
    kept = read_record(path, values=True)
    assert path.name.endswith(".partial.json")
    assert kept.status == "interrupted"
    assert set(kept.tasks(0)) == {"own", "NLI"}
    assert kept.values is not None
    assert len(kept.values[0]["NLI"]["accuracy"]) == 3


def _wait(ready: Callable[[], bool], seconds: float = 1800) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            pytest.fail(f"nothing happened in {seconds} seconds")
        time.sleep(0.1)
