"""``harness submit``: a folder for the board, what is said of those that are not in order, and runs made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harness as door
from harness.exam.numbers import summarise
from harness.exam.statistics import Ratio
from harness.reports.submissions import read_submission
from harness.runs.record import record_name
from harness.runs.record_file import read_record, write_record


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of two edits of the shipped model, with samples and saved edits."""
    folder = tmp_path_factory.mktemp("run")
    made = door.run(
        "mini", "ft_m", "counterfact:2", ["NLI"], mode="batch", limit=3, settings={"steps": 2}, output=folder
    )
    return folder / f"{record_name(made)}.json"


def test_a_submission_is_written_checked_and_repeated(
    small_run: Path, harness: Callable[..., Any], tmp_path: Path
) -> None:
    community = tmp_path / "community"
    made = harness("submit", small_run, "--contact", "Ada <ada@example.org>", "--to", community)
    assert (made.code, made.err) == (0, "")
    assert made.out.startswith("checked: ") and "no samples" not in made.out and "no saved edits" not in made.out
    again = harness("submit", small_run, "--contact", "Ada", "--to", community)
    assert again.code == 2 and "is there already" in again.err and len(again.err.splitlines()) == 1
    found = harness("submit", "--check", community, "--rescore", "1")
    assert (found.code, found.err) == (0, "")
    assert found.out.count("re-scored here: ") == 1
    assert r"ft\_m<br>re-scored here" in harness("leaderboard", community).out
    tables = harness("export", "--format", "csv", community, "--to", tmp_path / "tables")
    assert tables.code == 0 and r"ft\_m<br>re-scored here" in harness("leaderboard", tmp_path / "tables").out


def test_numbers_that_were_never_measured_do_not_hold(
    small_run: Path, harness: Callable[..., Any], tmp_path: Path
) -> None:
    """Documents that were made up with the numbers that follow from them pass every check but the run itself."""
    place = tmp_path / "run"
    shutil.copytree(small_run.parent, place)
    made = read_record(place / small_run.name, values=True)
    assert made.values is not None
    edited = {metric: dict(rows) for metric, rows in made.values[2]["counterfact"].items()}
    edited["efficacy"] = {name: Ratio(1.0 - row.num, *row[1:]) for name, row in edited["efficacy"].items()}
    made.values[2]["counterfact"] = edited
    known = made.tasks(2)["counterfact"]
    directions = {metric: numbers["higher_is_better"] for metric, numbers in known.items()}
    made.points[1]["tasks"]["counterfact"] = summarise(
        edited, made.values[0]["counterfact"], directions, seed=0, derived=made.derived["counterfact"]
    )
    write_record(place / small_run.name, made, small=False)
    community = tmp_path / "community"
    assert harness("submit", place / small_run.name, "--contact", "Eve", "--to", community).code == 0
    assert harness("submit", "--check", community).code == 0
    found = harness("submit", "--check", community, "--rescore", "2")
    assert found.code == 1
    first, last = found.err.splitlines()
    assert "carried out again, it is another one in" in first and "counterfact efficacy after 2 edits" in first
    assert last == "error: 1 of 1 submissions are not in order; what is wrong stands above"
    [submission] = community.iterdir()
    assert read_submission(submission).record.standing == "checked"


def test_of_several_each_fault_is_a_line(small_run: Path, harness: Callable[..., Any], tmp_path: Path) -> None:
    community = tmp_path / "community"
    assert harness("submit", small_run, "--contact", "Ada", "--to", community).code == 0
    [good] = community.iterdir()
    bad = shutil.copytree(good, community / "=cmd <b>")
    (community / "notes").mkdir()
    about = json.loads((bad / "submission.json").read_text())
    (bad / "submission.json").write_text(json.dumps({**about, "contact": "\x1b[2J"}))
    found = harness("submit", "--check", community)
    assert found.code == 1 and found.out.startswith("checked: ")
    lines = found.err.splitlines()
    assert len(lines) == 3 and "=cmd <b>" in lines[0] and "contact" in lines[0]
    assert "notes" in lines[1] and lines[2].startswith("error: 2 of 3 submissions are not in order")
    assert harness("leaderboard", community).code == 2


CALLS = [
    (["nothing.json", "--contact", "Ada"], "nothing.json: cannot be read"),
    (["RECORD"], "--contact is missing"),
    (["RECORD", "--contact", "a\nb"], "expected one line"),
    (["RECORD", "--contact", "Ada", "--rescore", "1"], "--rescore goes with --check"),
    (["EMPTY", "--contact", "Ada"], "holds 0 records; name the one"),
    (["SEVERAL", "--contact", "Ada"], "holds 2 records; name the one"),
    (["--check", "nowhere"], "nowhere: no such folder"),
    (["--check", "EMPTY"], "holds no submission"),
    (["RECORD", "--contact", "Ada", "--patch", "OTHER"], "these edits are of another run"),
]


@pytest.mark.parametrize(("arguments", "said"), CALLS)
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments: list[str],
    said: str,
    small_run: Path,
    harness: Callable[..., Any],
    records: dict[str, Path],
    tmp_path: Path,
) -> None:
    (tmp_path / "empty").mkdir()
    other = next((Path(__file__).parents[2] / "results" / "community").glob("*/*.safetensors"))
    named = {"RECORD": small_run, "EMPTY": tmp_path / "empty", "SEVERAL": records["weak"].parent, "OTHER": other}
    found = harness("submit", *(named.get(word, word) for word in arguments), "--to", tmp_path / "community")
    assert found.code == 2 and said in found.err and len(found.err.splitlines()) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
