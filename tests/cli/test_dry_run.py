"""``harness run --dry-run``: what would be run, without a model and without a trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.runs.record_file import read_record


def rows(out: str) -> dict[str, str]:
    """What a table says, by the name in its first column; a line that is folded belongs to the one above."""
    found: dict[str, str] = {}
    name = ""
    for line in out.splitlines()[1:]:
        name = line[:17].strip() or name
        found[name] = f"{found.get(name, '')} {line[17:].strip()}".strip()
    return found


@pytest.mark.usefixtures("no_model")
def test_it_says_what_would_be_run(harness: Callable[..., Any], tmp_path: Path) -> None:
    found = harness(
        "run", "--editor", "memit+rect", "--set", "v_steps=7", "--edits", "counterfact:20", "--mode", "sequential",
        "--edit-batch-size", "5", "--eval-at", "5,final", "--tasks", "NER,NLI", "--limit", "9", "--seed", "3",
        "--dry-run", "--no-probes", "--output", tmp_path / "out",
    )  # fmt: skip
    assert (found.code, found.err) == (0, "")
    assert found.out.splitlines()[0].strip() == "memit+rect on mini"
    said = rows(found.out)
    assert said["editor"] == "memit+rect"
    assert {"v_steps=7", "rect.keep=0.4"} <= {word.strip(",") for word in said["hyperparameters"].split()}
    assert said["edits"] == "20 of counterfact (test), order: file"
    assert said["mode"] == "sequential, 5 at a time"
    assert said["measured after"] == "0, 5, 20 edits"
    assert said["tasks"] == "counterfact, NER, NLI"
    assert said["documents"] == "at most 9 of each task"
    assert said["seed"] == "3"
    assert said["record"].startswith("none yet in ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_model")
def test_what_the_run_refuses_to_keep_is_refused_here_too(harness: Callable[..., Any]) -> None:
    said = ["run", "--tasks", "NLI", "--predict-only", "--no-log-samples"]
    found = harness(*said, "--dry-run", "--no-probes")
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith("error: predict_only keeps the replies alone")


@pytest.mark.usefixtures("no_model")
def test_each_plan_has_its_table_and_a_mistake_in_the_last_is_told_alone(
    harness: Callable[..., Any], tmp_path: Path
) -> None:
    config = tmp_path / "plan.yaml"
    config.write_text("edits: counterfact:2\neditor: [none, memit]\n")
    found = harness("run", "--config", config, "--seeds", "0,1", "--dry-run", "--no-probes")
    titles = [line.strip() for line in found.out.splitlines() if " on mini" in line]
    assert (found.code, titles) == (0, ["none on mini", "none on mini", "memit on mini", "memit on mini"])
    assert found.out.count("order: random") == 4
    config.write_text("edits: counterfact:2\neditor: [none, mmit]\n")
    found = harness("run", "--config", config, "--dry-run")
    assert (found.code, found.out) == (2, "")
    assert "editor 'mmit' does not exist (did you mean memit" in found.err


def test_it_finds_the_record_of_the_same_call(
    harness: Callable[..., Any], arguments: list[str], tmp_path: Path
) -> None:
    """The id is that of the record; a run that was stopped goes on, and is said to."""
    output = ("--output", tmp_path)
    before = rows(harness(*arguments, *output, "--dry-run", "--no-probes").out)
    assert harness(*arguments, *output).code == 0
    (path,) = tmp_path.glob("*[0-9a-f].json")
    after = rows(harness(*arguments, *output, "--dry-run", "--no-probes").out)
    assert before["id"] == after["id"] == read_record(path).id
    assert before["record"].startswith("none yet in ")
    assert after["record"].replace(" ", "") == f"complete:{path}"
    partial = path.with_name(f"{path.stem}.partial.json")
    path.rename(partial)
    begun = rows(harness(*arguments, *output, "--dry-run", "--no-probes").out)
    assert begun["record"].replace(" ", "") == f"begun,goeson:{partial}"


def test_it_says_what_each_phase_will_take(
    harness: Callable[..., Any], arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    found = harness(*arguments, "--dry-run", "--output", tmp_path / "out")
    assert (found.code, found.err) == (0, "")
    lines = [line.split() for line in found.out.splitlines()]
    table = {" ".join(line[:-6]): line[-6:] for line in lines if line[:1] in (["measure"], ["phase"])}
    documents = 2 + 2 + 3  # of each edit its prompt scored and continued, and three of NLI
    assert [table[name][0] for name in ("measure unedited", "measure after 2 edits")] == [str(documents)] * 2
    assert {"own_probability", "own_generation", "NLI"} <= {line[0] for line in lines if line}
    assert "2 edits" in lines[-1] or "2 edits;" in found.out
    assert "bytes of changes" in found.out
    assert not (tmp_path / "out").exists()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
