"""What a run keeps of its documents, and ``harness show --samples``."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.record import record_name
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan
from harness.runs.sample_file import iterate_samples, samples_path


@pytest.fixture(scope="module")
def record(
    checkpoint: Callable[..., Path], nudge: str, own_rows: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A record with its samples."""
    plan = Plan(str(checkpoint("gpt2")), nudge, {"scale": 6.0}, own_rows, mode="batch", tasks=("NLI",), limit=3)
    folder = tmp_path_factory.mktemp("samples")
    kept = run_plan(resolve(plan), RunOptions(folder, device="cpu", log_samples=True))
    return folder / f"{record_name(kept)}.json"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ((), True),
        (("--log-samples",), True),
        (("--no-log-samples",), False),
    ],
)
def test_a_run_keeps_samples_unless_told_not_to(
    harness: Callable[..., Any], arguments: list[str], tmp_path: Path, given: tuple[str, ...], kept: bool
) -> None:
    assert harness(*arguments, *given, "--output", tmp_path).code == 0
    (path,) = tmp_path.glob("*.json")
    assert samples_path(path).is_file() is kept


def test_show_samples(harness: Callable[..., Any], record: Path) -> None:
    kept = list(iterate_samples(record))
    found = harness("show", record, "--samples", "--limit", 1000)
    assert (found.code, found.err) == (0, "")
    assert found.out.count("  prompt ") == len(kept) > 5
    few = harness("show", record, "--samples", "--limit", 2)
    assert few.out.count("  prompt ") == 2 and f"2 of {len(kept)} shown" in few.out
    own = harness("show", record, "--samples", "--task", "own", "--kind", "rewrite", "--changed").out
    wanted = [one for one in kept if one.group == "own" and one.kind == "rewrite" and one.changed]
    assert own.count("  prompt ") == own.count("· changed") == len(wanted) > 0


def test_a_record_without_samples_says_how_to_get_them(
    harness: Callable[..., Any], record: Path, tmp_path: Path
) -> None:
    alone = Path(shutil.copy(record, tmp_path))
    found = harness("show", alone, "--samples")
    assert (found.code, found.out) == (2, "")
    assert "no samples lie beside it" in found.err and "harness run --fresh --log-samples" in found.err
    assert len(found.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--changed"], "give --samples too"),
        (["--limit", "3"], "give --samples too"),
        (["--samples", "--task", "owm"], "no sample has the task 'owm' (did you mean own"),
        (["--samples", "--at", "7"], "no sample has the number of edits '7' (there are: 2)"),
        (["--samples", "--limit", "0"], "limit"),
    ],
)
def test_what_cannot_be_shown(harness: Callable[..., Any], record: Path, given: list[str], told: str) -> None:
    found = harness("show", record, *given)
    assert found.code == 2
    assert told in found.err and len(found.err.splitlines()) == 1


def test_a_damaged_file_is_told(harness: Callable[..., Any], record: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copy(record, tmp_path))
    samples_path(alone).write_bytes(samples_path(record).read_bytes()[:-20])
    found = harness("show", alone, "--samples", "--limit", 1000)
    assert found.code == 2 and "not whole" in found.err
