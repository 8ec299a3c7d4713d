"""Published runs on the command line: brought in, shown, kept apart, refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Harness = Callable[..., Any]
QUESTIONS = ("edit", "rephrase", "yes", "no", "mc", "reversed")


def row(editor: str, case: int, right: int) -> dict[str, Any]:
    post = dict.fromkeys([*QUESTIONS, "locality"], right)
    return {"topic": "art", "editor": editor, "case_id": case, "pre": dict.fromkeys(QUESTIONS, 0), "post": post}


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "halluedit_percase_meta_llama_3_8b_instruct.jsonl"
    rows = [row("ROME", case, 1) for case in range(8)] + [row("MEMIT", case, int(case > 5)) for case in range(8)]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


@pytest.fixture
def board(answers: Path, tmp_path: Path, harness: Harness) -> Path:
    done = harness("import", "halluedit", answers, "--output", tmp_path / "board", "--commit", "a07439e")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("2 records of halluedit in")
    return tmp_path / "board"


def test_what_was_brought_in_is_shown_and_compared(board: Path, harness: Harness) -> None:
    memit, rome = sorted(board.glob("*.json"))
    shown = harness("show", rome)
    assert shown.code == 0
    assert "published, not run here" in shown.out and "seed 0" not in shown.out
    compared = harness("compare", memit, rome)
    assert compared.code == 0 and "+0.750" in compared.out
    page = harness("leaderboard", board)
    assert page.code == 0 and "llm-editing/HalluEditBench@a07439e" in page.out
    rows = json.loads(harness("leaderboard", board, "--format", "json").out)["Leaderboard"]
    assert [one["published"] for one in rows] == ["published, not run here: llm-editing/HalluEditBench@a07439e"] * 3
    assert [one["seed"] for one in rows] == [None] * 3


def test_check_does_not_run_what_was_not_run_here(board: Path, harness: Harness) -> None:
    done = harness("check", "--baseline", board)
    assert done.code == 2 and len(done.err.splitlines()) == 1
    assert "is published, not run here: nothing of it can be run again" in done.err


def test_two_records_of_one_id_with_other_numbers_make_no_leaderboard(board: Path, harness: Harness) -> None:
    first = min(board.glob("*.json"))
    copy = board / "records" / first.name
    copy.parent.mkdir()
    shutil.copy(first, copy)
    shutil.copy(first.with_name(first.stem + ".values.json.xz"), copy.parent)
    assert harness("leaderboard", board).code == 0  # a copy is no second claim
    other = json.loads(copy.read_text())
    other["points"][-1]["tasks"]["HalluEditBench"]["efficacy"]["n"] = 7
    copy.write_text(json.dumps(other))
    done = harness("leaderboard", board)
    assert done.code == 2 and len(done.err.splitlines()) == 1
    assert f"two records claim the id {other['id']}" in done.err


@pytest.mark.parametrize("spoil", ["cut", "version", "mixed"])
def test_a_bad_file_is_one_line_and_writes_nothing(spoil: str, answers: Path, tmp_path: Path, harness: Harness) -> None:
    text = answers.read_text()
    answers.write_text(
        {"cut": text[:-20], "version": text.replace('"post"', '"after"'), "mixed": text + text.splitlines()[3]}[spoil]
    )
    done = harness("import", "halluedit", answers, "--output", tmp_path / "out")
    assert done.code == 2 and len(done.err.splitlines()) == 1
    assert {"cut": "line 16", "version": "row 1", "mixed": "runs are mixed"}[spoil] in done.err
    assert not (tmp_path / "out").exists()


def test_a_format_or_a_place_that_is_none(answers: Path, tmp_path: Path, harness: Harness) -> None:
    done = harness("import", "wild", answers, "--output", tmp_path / "out")
    assert done.code == 2 and "'wild' is not" in done.err
    done = harness("import", "halluedit", tmp_path / "none", "--output", tmp_path / "out")
    assert done.code == 2 and "no such file or folder" in done.err


VALUES = """paper,model,data,method,metric,value,certainty
A,Llama-3-8B-Instruct,HalluEditBench,ROME,efficacy,79.22,read in the paper
"""


def test_published_values_stand_beside_the_rows(board: Path, tmp_path: Path, harness: Harness) -> None:
    path = tmp_path / "values.csv"
    path.write_text(VALUES)
    page = harness("leaderboard", board, "--published", path)
    assert page.code == 0 and "published<br>efficacy [a]" in page.out
    assert next(line for line in page.out.splitlines() if line.startswith("| ROME")).endswith("| 79.22 |")
    assert "[a] A: how it was measured is not told. Certainty: read in the paper." in page.out
    path.write_text(VALUES.replace("79.22", "much"))
    done = harness("leaderboard", board, "--published", path)
    assert (
        done.code == 2 and done.err == f"error: {path}, line 2: value 'much' is no number; 0.26, >21000 and 12.29 h are"
    )


def test_an_audit_is_one_line_a_finding_and_exit_1(
    answers: Path, board: Path, tmp_path: Path, harness: Harness
) -> None:
    done = harness("audit", answers, "--commit", "a07439e")
    assert done.code == 1 and done.err == f"error: {answers}: {len(done.out.splitlines())} findings"
    assert "covariance: edited without the covariance of keys" in done.out
    again = harness("audit", board)
    assert again.code == 1 and again.out == done.out
    answers.write_text(answers.read_text()[:-20])
    cut = harness("audit", answers)
    assert cut.code == 1 and len(cut.out.splitlines()) == 1 and "unreadable" in cut.out and "line 16" in cut.out
    nothing = harness("audit", tmp_path / "none")
    assert nothing.code == 2 and len(nothing.err.splitlines()) == 1


def test_an_audit_that_finds_nothing_is_exit_0(tmp_path: Path, harness: Harness) -> None:
    path = tmp_path / "values.csv"
    path.write_text(
        "paper,model,data,method,metric,value,sd,n_edits,certainty\nA,m,d,ROME,es,1.0,0.1,5,read in the paper\n"
    )
    done = harness("audit", path)
    assert (done.code, done.err) == (0, "") and done.out.startswith("ok nothing found in")
