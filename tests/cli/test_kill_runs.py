"""Commands that are killed and called again; `scripts/kill_runs.py` kills them more often."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.record import record_name
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan
from harness.runs.several import run_each
from harness.runs.writer import RecordWriter

ROOT = Path(__file__).parents[2]


def test_a_few_blows_leave_no_trace(tmp_path: Path) -> None:
    words = [sys.executable, ROOT / "scripts" / "kill_runs.py", "--kills", "8", "--seed", "3"]
    for name in ("fit", "cov make", "leaderboard", "localize"):
        words += ["--only", name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert all("killed 2 times" in line and line.endswith("each as if never killed") for line in lines)


@pytest.mark.parametrize("damage", ["half", "other", "remains"])
def test_what_differs_is_seen(tmp_path: Path, damage: str) -> None:
    """What the script compares, on a folder that somebody damaged."""
    code = (
        "import sys; sys.path.insert(0, 'scripts'); from pathlib import Path; import kill_runs as k; "
        "a, b = (k.contents(Path(sys.argv[1]) / name) for name in 'ab'); "
        "print(k.differences(a, b), k.not_whole(Path(sys.argv[1]) / 'b'))"
    )
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "r.json").write_text(json.dumps({"points": [1], "cost": name}))
    expected = "['r.json is another'] []"
    if damage == "half":
        (tmp_path / "b" / "x.safetensors").write_bytes(b"half")
        expected = "['x.safetensors remains'] ['x.safetensors is half-written']"
    elif damage == "other":
        (tmp_path / "b" / "r.json").write_text(json.dumps({"points": [2]}))
    else:
        (tmp_path / "b" / ".r.json.host.17").write_bytes(b"half")
        expected = "['.r.json.host.17 remains'] []"
    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


@pytest.fixture
def plan(checkpoint, nudge: str, own_rows: str) -> Plan:
    """Two random edits, one on top of the other."""
    return Plan(
        str(checkpoint("gpt2")), nudge, edits=own_rows, mode="sequential", eval_at="every:1", tasks=("NLI",), limit=3
    )


def test_a_state_that_an_earlier_run_left_is_not_taken_by_a_run_that_begins_anew(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run was killed when its record was complete and its state not yet gone; another is killed at once."""
    resolved, options = resolve(plan), RunOptions(tmp_path, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr("harness.runs.writer.remove_leftovers", lambda *_: None)
        alone = run_plan(resolved, options)
    partial = tmp_path / f"{record_name(alone)}.partial.json"
    assert partial.with_suffix(".state").exists()
    partial.unlink()

    def blow(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("harness.runs.runner._Run._edit", blow)
        with pytest.raises(KeyboardInterrupt):
            run_plan(resolved, options)
    again = run_plan(resolved, options)
    assert [point["edits"] for point in again.points] == [0, 1, 2]
    assert again.points == alone.points


def test_what_lies_beside_a_record_that_is_complete_goes(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [plan, Plan.from_json({**plan.to_json(), "seed": 1})]
    options = RunOptions(tmp_path, device="cpu")

    with monkeypatch.context() as patch:
        patch.setattr("harness.runs.writer.remove_leftovers", lambda *_: None)
        list(run_each(plans, options))
    assert len(list(tmp_path.glob("*.partial*"))) == 6
    found = list(run_each(plans, options))
    assert [one.known for one in found] == [True, True]
    assert list(tmp_path.glob("*.partial*")) == []


def test_a_partial_record_that_was_changed_is_not_gone_on_with(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    resolved, options = resolve(plan), RunOptions(tmp_path, device="cpu")
    done = RecordWriter.complete

    def stopped(writer: RecordWriter) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(RecordWriter, "complete", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_plan(resolved, options)
    (partial,) = tmp_path.glob("*.partial.json")
    said = json.loads(partial.read_text())
    value = said["points"][1]["tasks"]["NLI"]["accuracy"]["value"]
    said["points"][1]["tasks"]["NLI"]["accuracy"]["value"] = 0.999
    partial.write_text(json.dumps(said))
    monkeypatch.setattr(RecordWriter, "complete", done)
    kept = run_plan(resolved, options)
    assert kept.points[1]["tasks"]["NLI"]["accuracy"]["value"] == value
    assert "the value is 0.999, but its documents give" in caplog.text
