"""A file with lists is several runs: what is complete is kept, and one that fails keeps none of the others from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cli_calls import Outcome

from harness.runs.record_file import read_record, read_records


@pytest.fixture
def study(checkpoint: Callable[..., Path], nudge: str, own_rows: str, tmp_path: Path) -> Path:
    """Two strengths of one editor and two seeds, over two edits."""
    path = tmp_path / "study.yaml"
    fields = {"model": str(checkpoint("gpt2")), "editor": nudge, "edits": own_rows, "mode": "sequential"}
    runs = [{"settings": [{"scale": 2.0}, {"scale": 4.0}], "seed": [0, 1]}]
    path.write_text(yaml.safe_dump({**fields, "eval_at": "1,final", "runs": runs}))
    return path


def test_a_study_is_run_and_when_it_is_given_again_what_is_complete_stays(
    harness: Callable[..., Outcome], study: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = harness("run", "--config", study, "--trust-code", "--output", out, "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    kept = read_records(out)
    assert sorted((one.plan["settings"]["scale"], one.seed) for one in kept) == [(2, 0), (2, 1), (4, 0), (4, 1)]
    assert done.out.count("record: ") == 4
    (gone,) = [path for path in out.glob("*--*[0-9a-f].json") if read_record(path).id == kept[0].id]
    times = {path: path.stat().st_mtime_ns for path in out.glob("*--*[0-9a-f].json") if path != gone}
    gone.unlink()
    again = harness("run", "--config", study, "--trust-code", "--output", out, "--device", "cpu")
    assert again.out.count("complete: ") == 3
    assert again.out.count("record: ") == 1
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert gone.is_file()


def test_a_mistake_is_told_before_anything_runs_and_a_failure_keeps_none_from_running(
    harness: Callable[..., Outcome], study: Path, tmp_path: Path
) -> None:
    fields = yaml.safe_load(study.read_text())
    for runs, message in (
        ([*fields["runs"], {"editor": "rmoe"}], "editor 'rmoe' does not exist"),
        ([*fields["runs"], {"eval_at": "9"}], "there are only 2 edits"),
    ):
        study.write_text(yaml.safe_dump({**fields, "runs": runs}))
        refused = harness("run", "--config", study, "--trust-code", "--output", tmp_path / "out", "--device", "cpu")
        assert refused.code == 2
        assert message in refused.err
        assert not (tmp_path / "out").exists()
    study.write_text(yaml.safe_dump({**fields, "runs": [{"settings": [{"layer": 9}, {"layer": 1}]}]}))
    done = harness("run", "--config", study, "--trust-code", "--output", tmp_path / "out", "--device", "cpu")
    assert done.code != 0
    assert "1 of 2 plans failed; the same command runs them again" in done.err
    assert [one.plan["settings"] for one in read_records(tmp_path / "out") if one.status == "complete"] == [
        {"layer": 1}
    ]


def test_two_workers_give_the_records_of_one(harness: Callable[..., Outcome], study: Path, tmp_path: Path) -> None:
    fields = yaml.safe_load(study.read_text())
    fields["runs"][0]["settings"].append({"layer": 9})  # fails, twice
    study.write_text(yaml.safe_dump(fields))
    call = ["run", "--config", study, "--trust-code", "--device", "cpu", "--output"]
    alone, both = harness(*call, tmp_path / "alone"), harness(*call, tmp_path / "both", "--workers", 2)
    assert (alone.code, both.code) == (1, 1)
    assert alone.out.count("record: ") == both.out.count("record: ") == 4
    for done in (alone, both):
        told = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert len(told) == 3
        assert told[-1].endswith("2 of 6 plans failed; the same command runs them again")
    one, two = (read_records(tmp_path / name, values=True) for name in ("alone", "both"))
    assert [record.id for record in one] == [record.id for record in two]
    for a, b in zip(one, two, strict=True):
        if a.status == "complete":
            assert {**a.to_json(), "cost": []} == {**b.to_json(), "cost": []}
            assert a.values == b.values
