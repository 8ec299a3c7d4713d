"""``harness judge``: a model or a server marks the texts of a record, in one command."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge_server import serving

from harness.runs.judged_file import judged_path
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.record import record_name
from harness.runs.record_file import read_record
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan
from harness.runs.sample_file import samples_path


@pytest.fixture(scope="module")
def made(checkpoint: Callable[..., Path], nudge: str, own_rows: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record with its samples."""
    plan = Plan(str(checkpoint("gpt2")), nudge, {"scale": 6.0}, own_rows, mode="batch", tasks=("NLI",), limit=3)
    folder = tmp_path_factory.mktemp("judged")
    kept = run_plan(resolve(plan), RunOptions(folder, device="cpu", log_samples=True))
    return folder / f"{record_name(kept)}.json"


@pytest.fixture
def record(made: Path, tmp_path: Path) -> Path:
    """A copy of it, in a folder of its own."""
    for file in made.parent.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path / made.name


def test_a_model_judges(harness: Callable[..., Any], record: Path, checkpoint: Callable[..., Path]) -> None:
    called = ("judge", record, "--judge", checkpoint("gpt2"), "--device", "cpu", "--task", "own")
    found = harness(*called)
    assert (found.code, found.err) == (0, "")
    for said in ("rewrite_judged@", "agreement with exact match: Cohen's kappa", "verdicts: "):
        assert said in found.out
    assert "labelled claims" not in found.out
    again = harness(*called)
    assert "asked 0" in again.out
    for command in (("show", record), ("leaderboard", record.parent)):
        assert "rewrite_judged@" in harness(*command).out.replace("\\", "")


def test_a_server_judges_and_its_key_is_not_kept(
    harness: Callable[..., Any], record: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    (tmp_path / "data").mkdir()
    with serving(lambda number, body: (200, "A" if number % 2 else "B")) as server:
        options = (
            "--judge-model",
            "grader",
            "--judge-key",
            "MY_KEY",
            "--parallel",
            "1",
            "--data-dir",
            tmp_path / "data",
        )
        found = harness("judge", record, "--judge", server.address, *options)
        assert (found.code, found.err) == (0, "")
        asked = len(server.seen)
        assert f"asked {asked}" in found.out
        assert {headers["Authorization"] for headers in server.headers} == {"Bearer sk-very-secret"}
        assert harness("judge", record, "--judge", server.address, *options).code == 0
        assert len(server.seen) == asked, "asked again"
        assert harness("judge", record, "--judge", server.address, *options, "--fresh").code == 0
        assert len(server.seen) == 2 * asked
    import lzma

    assert b"sk-very-secret" not in lzma.decompress(judged_path(record).read_bytes())
    judged = read_record(record, values=True).judged
    assert judged is not None
    assert judged[0]["judge"]["name"] == "grader"
    assert {row["task"] for row in judged[0]["rows"]} == {"own_generation", "NLI"}


def test_a_server_that_is_not_there_leaves_verdicts_missing(harness: Callable[..., Any], record: Path) -> None:
    with serving(lambda *_: (200, "A")) as server:
        pass
    found = harness("judge", record, "--judge", server.address, "--judge-model", "m", "--retries", "0")
    assert found.code == 0
    assert "texts have no verdict" in found.out and "Traceback" not in found.out
    assert "agreement with exact match: no verdict" in found.out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--judge", "http://127.0.0.1:9/v1"], "name one with --judge-model"),
        (["--judge", "mini", "--judge-model", "m"], "give one such as http://localhost:8000/v1"),
        (["--judge", "http://a:b@127.0.0.1:9", "--judge-model", "m"], "holds a user or a password"),
        (["--judge", "nowhere"], "nowhere"),
        (["--judge", "mini", "--task", "owm"], "no sample has the task 'owm' (did you mean own"),
        (["--judge", "mini", "--task", "own_probability"], "none of these samples is a text with a right answer"),
        (["--judge", "mini", "--retries", "-1"], "retries"),
        ([], "--judge"),
    ],
)
def test_what_cannot_be_asked(harness: Callable[..., Any], record: Path, given: list[str], told: str) -> None:
    found = harness("judge", record, *given)
    assert (found.code, found.out) == (2, "")
    assert told in found.err and len(found.err.splitlines()) == 1
    assert not judged_path(record).exists()


def test_a_server_that_refuses_is_told_in_one_line(harness: Callable[..., Any], record: Path) -> None:
    with serving(lambda *_: (401, "no")) as server:
        found = harness("judge", record, "--judge", server.address, "--judge-model", "m")
    assert found.code == 2 and len(found.err.splitlines()) == 1
    assert (
        "refuses to judge (401 Unauthorized); give a key that it takes in the environment variable OPENAI_API_KEY"
        in (found.err)
    )


def test_a_record_without_samples(harness: Callable[..., Any], record: Path, no_model: None) -> None:
    samples_path(record).unlink()
    found = harness("judge", record, "--judge", "mini")
    assert found.code == 2 and "no samples lie beside it" in found.err
