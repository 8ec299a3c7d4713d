"""What a dry run says that a plan will take is what the run then asks, and nothing of it is left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.exam.adapter import EditedLM
from harness.exam.asked import Asked, asked_in_all, asked_of
from harness.io.cache import cache_folder
from harness.methods import second_moments
from harness.models.lm import load
from harness.runs.estimate import _Line, _Spent, at_hand, estimate_run
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan

ROWS = [
    {"prompt": "{} was born in", "subject": f"Ada {name}", "target": "Rome", "paraphrases": [f"The home of {name} is"]}
    for name in ("Velmont", "Lantern", "Orden", "Malik")
]


@pytest.fixture
def plan(checkpoint: Callable[..., Path], nudge: str, tmp_path: Path) -> Plan:
    rows = tmp_path / "my.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return Plan(
        str(checkpoint("gpt2")), nudge, {"scale": 3.0}, str(rows), mode="sequential", edit_batch_size=1,
        eval_at="1,final", tasks=("NLI", "NLI_choice"), limit=7, text="mini",
    )  # fmt: skip


def asked_in(run: Plan, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Asked]:
    """What a run asks the model in each of its phases, counted where the model is asked."""
    found: dict[str, Asked] = {}
    phase = [""]

    def count(name: str) -> None:
        original = getattr(EditedLM, name)

        def counting(self: EditedLM, requests: list[Any], disable_tqdm: bool = True) -> Any:
            found[phase[0]] = found.get(phase[0], Asked()) + asked_of(requests, self)
            return original(self, requests, disable_tqdm)

        monkeypatch.setattr(EditedLM, name, counting)

    def report(name: str, _done: int, total: int) -> None:
        if total == 0 and name.startswith(("measure", "edit", "load", "check")):
            phase[0] = name

    with monkeypatch.context():
        for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            count(name)
        run_plan(resolve(run), RunOptions(folder, device="cpu", cache=False, report=report))
    return found


@pytest.mark.parametrize(
    "changes", [{}, {"mode": "isolated", "edit_batch_size": None, "eval_at": "final"}, {"limit": None}]
)
def test_documents_and_tokens_are_those_of_the_run(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    mine = replace(plan, **changes, tasks=("NLI",) if changes else plan.tasks)
    found = estimate_run(resolve(mine), RunOptions(tmp_path / "out", device="cpu", cache=False))
    assert not (tmp_path / "out").exists()
    told = {phase.name: phase.asked for phase in found.phases if phase.asked.documents}
    assert told == asked_in(mine, tmp_path / "out", monkeypatch)
    assert found.edits == len(ROWS)
    for phase in found.phases:
        assert asked_in_all(part.asked for part in phase.parts) == phase.asked
        assert sum(part.seconds for part in phase.parts) <= phase.seconds + 1e-9
    assert [part.name for part in found.phases[1].parts][:2] == ["own_probability", "own_generation"]
    assert all(phase.seconds >= 0 and phase.peak_memory_mib > 10 for phase in found.phases)


def test_phases_are_those_of_the_record(plan: Plan, tmp_path: Path) -> None:
    found = estimate_run(resolve(plan), RunOptions(tmp_path, device="cpu", cache=False))
    kept = run_plan(resolve(plan), RunOptions(tmp_path, device="cpu", cache=False))
    assert [phase.name for phase in found.phases] == [row["phase"] for row in kept.cost]


def test_what_an_earlier_run_has_kept_takes_no_time(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    once = replace(
        plan, editor="none", settings={}, mode="isolated", edit_batch_size=None, eval_at="final", edits="none"
    )
    run_plan(resolve(once), RunOptions(tmp_path / "out", device="cpu"))
    options = RunOptions(tmp_path / "out", device="cpu")
    before = sorted(cache_folder().rglob("*"))
    assert estimate_run(resolve(once), options).phases[1].seconds == 0
    assert estimate_run(resolve(once), replace(options, cache=False)).phases[1].seconds > 0
    assert sorted(cache_folder().rglob("*")) == before


def test_second_moments_that_are_missing_are_counted_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    plan = Plan("mini", "rome", {"cov_tokens": 3000, "v_steps": 2}, num_edits=3, exam=("probability",))
    options = RunOptions(tmp_path / "out", device="cpu", cache=False)
    found = estimate_run(resolve(plan), options)
    lm = load("mini", device="cpu")
    assert found.statistics_bytes == lm.arch.inner**2 * 8
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    kept = run_plan(resolve(plan), options)
    (path,) = second_moments.moments_folder().glob("*.safetensors")
    assert path.stat().st_size == pytest.approx(found.statistics_bytes, rel=0.01)
    assert estimate_run(resolve(plan), options).statistics_bytes == 0
    assert found.patch_bytes == 3 * (lm.arch.inner + 256) * 4  # two vectors of each edit
    assert kept.edits["count"] == found.edits == 3


def test_a_line_goes_through_the_last_two_trials() -> None:
    line = _Line((_Spent(1, 5.0, 10), _Spent(4, 2.0, 30), _Spent(16, 8.0, 20)))
    assert line.seconds(16) == 8.0
    assert line.seconds(32) == pytest.approx(16.0)
    assert line.seconds(4) == pytest.approx(2.0)
    assert line.peak == 30
    assert _Line((_Spent(2, 4.0, 0),)).seconds(5) == pytest.approx(10.0)
    assert _Line((_Spent(1, 4.0, 0), _Spent(4, 2.0, 0))).seconds(8) == pytest.approx(4.0)  # it did not take longer


def test_a_model_that_is_elsewhere_is_not_tried(plan: Plan) -> None:
    assert at_hand(resolve(plan))
    assert at_hand(resolve(Plan(num_edits=1)))
    assert not at_hand(resolve(Plan("nobody/such-a-model", num_edits=1)))
