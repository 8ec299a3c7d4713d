"""Records of sweeps on the command line: the paper's tables and their figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.studies.sweeps import trial
from harness.studies.sweeps.ball import Epoch
from harness.studies.sweeps.sweep_tables import format_tables
from harness.studies.sweeps.trial import Job, Trial


@pytest.fixture
def swept(tmp_path: Path) -> tuple[Path, list[Trial]]:
    """A folder as `harness sweep` leaves it: one configuration, and one training of it on the test pair."""
    log = (Epoch(3.0, 0.9, 4.0, 4.0), Epoch(3.0001, 0.7, 4.5, 4.5))
    one = Trial(Job("mini", "temporal", "full", "full", {"lr": 1e-4}), log)
    trials = [one, replace(one, job=replace(one.job, split="test"))]
    for found in trials:
        trial.write_trial(tmp_path / "sweep" / "runs", found)
    return tmp_path / "sweep", trials


def test_a_leaderboard_of_a_sweep(harness: Callable[..., Any], swept: tuple[Path, list[Trial]]) -> None:
    folder, trials = swept
    for place in (folder, folder / "runs", folder.parent):
        found = harness("leaderboard", place)
        assert (found.code, found.err, found.out) == (0, "", format_tables(trials))
    assert "| temporal | 10.0 | +20.0 ± 0.0 | +20.0 ± 0.0 | +0.0 ± 0.0 (0/1) |" in found.out
    assert harness("leaderboard", folder, "--format", "csv").out == format_tables(trials, "csv")
    assert harness("leaderboard", folder, "--format", "latex").out == format_tables(trials, "latex")
    assert harness("leaderboard", folder, "--format", "html").out == format_tables(trials, "html")


def test_runs_and_a_sweep_in_one_folder_are_both_shown(
    harness: Callable[..., Any], swept: tuple[Path, list[Trial]], records: dict[str, Path]
) -> None:
    folder, trials = swept
    board = harness("leaderboard", records["weak"].parent).out
    for path in records["weak"].parent.glob("*.json*"):
        (folder / path.name).write_bytes(path.read_bytes())
    for path in records["weak"].parent.glob("*.xz"):
        (folder / path.name).write_bytes(path.read_bytes())
    assert harness("leaderboard", folder).out == f"{board}\n{format_tables(trials)}"


def test_a_figure_of_a_sweep(harness: Callable[..., Any], swept: tuple[Path, list[Trial]], tmp_path: Path) -> None:
    folder, _ = swept
    for ending in ("png", "svg"):
        found = harness("plot", folder, "--output", tmp_path / f"sweep.{ending}")
        assert (found.code, found.out.split()[0]) == (0, "figure:")
    assert "temporal" in (tmp_path / "sweep.svg").read_text() or (tmp_path / "sweep.svg").stat().st_size > 10_000


def test_a_damaged_record_of_a_sweep_is_one_line(harness: Callable[..., Any], swept: tuple[Path, list[Trial]]) -> None:
    folder, _ = swept
    path = sorted((folder / "runs").glob("*.json"))[0]
    path.write_text('{"job": 3}')
    found = harness("leaderboard", folder)
    assert found.code == 2
    assert f"{path}: a damaged record" in found.err.replace("\n", " ")
