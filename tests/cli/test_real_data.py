"""The three published modes on the real edit sets, with the real task files, of a model that is no model of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli_calls import Outcome

from harness.runs.record_file import read_records


@pytest.mark.parametrize(
    ("edits", "editor", "mode", "options", "stops"),
    [
        ("zsre", "rome", "instance-sequential", ("--eval-at", "1,final", "--set", "covariance=false"), [0, 1, 4]),
        ("counterfact", "ft_l", "batch-single", (), [0, 4]),
        ("zsre", "ft_m", "batch-sequential", ("--edit-batch-size", "3", "--eval-at", "3,final"), [0, 3, 4]),
    ],
)
def test_a_baseline_of_each_mode_on_the_real_data(
    harness: Callable[..., Outcome],
    shared: Path,
    tmp_path: Path,
    edits: str,
    editor: str,
    mode: str,
    options: tuple[str, ...],
    stops: list[int],
) -> None:
    model, data = shared / "models" / "stories260K", shared / "data"
    if not model.is_dir():
        pytest.skip("the model stories260K is not there")
    where = [
        "--model",
        model,
        "--data-dir",
        data,
        "--device",
        "cpu",
        "--output",
        tmp_path,
        "--no-save-edits",
        "--text",
        "mini",
    ]
    what = ["--edits", f"{edits}:4", "--editor", editor, "--mode", mode, *options]
    done = harness("run", *where, *what, "--tasks", "NLI", "--limit", 2)
    assert (done.code, done.err) == (0, "")
    (kept,) = read_records(tmp_path)
    assert [point["edits"] for point in kept.points] == stops
    for point in kept.points:
        assert set(point["tasks"]) == {edits, "NLI", "neutral_text"}
        assert point["tasks"][edits]["efficacy"]["n"] == (point["edits"] or 4)  # all edits so far, each time
        assert point["tasks"]["NLI"]["accuracy"]["n"] == 2
    assert kept.data[edits]["source"] == "folder"
    assert kept.data["NLI"]["rows"] == 2489
    assert kept.weights["before"] == kept.weights["restored"] != kept.weights["edited"]
    changed = [point["weights"] for point in kept.points[1:]]
    assert all(row["norm_ratio"] is not None and row["rank"] >= 1 for stop in changed for row in stop.values())
