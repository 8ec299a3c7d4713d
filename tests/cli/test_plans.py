"""Many plans, some at a time, as the scripts that make the committed results carry them out."""

from __future__ import annotations

import sys
from pathlib import Path

import lm_eval.utils
import pytest

from harness.exam.tasks import templates_once
from harness.runs.plan import Plan
from harness.runs.record_file import read_records

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import plans  # noqa: E402  (the scripts are no package)


def test_plans_are_run_by_workers_that_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two records from two workers, whose editor learned first; a plan that cannot be run is counted and said."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    wanted = [
        Plan("mini", "ft_l", num_edits=2, settings={"steps": 1}),
        Plan("mini", "ike", num_edits=2),
        Plan("mini", "ft_l", num_edits=2, settings={"steps": -1}),
    ]
    folder = tmp_path / "records"
    folder.mkdir()
    assert plans.run_plans(wanted, folder, "cpu", jobs=2) == 1
    made = read_records(folder)
    assert sorted(one.plan["editor"] for one in made) == ["ft_l", "ike"]
    assert all(one.status == "complete" for one in made)
    assert list((tmp_path / "cache" / "fitted").glob("ike-*"))
    assert not plans._lessons(wanted[:2], "cpu")
    said = capfd.readouterr().out
    assert "fitted ike to mini" in said
    assert "steps" in said


def test_a_template_is_compiled_once() -> None:
    """lm-eval fills the templates of its tasks for every document; its own way is put back afterwards."""
    said = "{{a}} and {{b}}"
    with templates_once():
        assert lm_eval.utils.env.from_string(said) is lm_eval.utils.env.from_string(said)
        assert lm_eval.utils.apply_template(said, {"a": 1, "b": 2}) == "1 and 2"
        assert lm_eval.utils.apply_template(said, {"a": 3, "b": 4}) == "3 and 4"
    assert lm_eval.utils.env.from_string(said) is not lm_eval.utils.env.from_string(said)
