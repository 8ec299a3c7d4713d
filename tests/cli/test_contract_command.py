"""The command that holds an editor to every promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli import main
from harness.editing.promises import PROMISES

WRONG = """
from harness.editor_kit import Dense, Editor, Patch


class Wrong(Editor):
    \"\"\"Makes nothing likelier.\"\"\"

    name = "wrong"

    def edit(self, lm, edits, memory=None):
        weight = lm.down(1)
        return Patch(weights={weight: Dense(0.0 * lm.matrix(weight))}) if edits else Patch()
"""


def test_an_editor_that_keeps_all(capsys: pytest.CaptureFixture[str]) -> None:
    main(["contract", "--editor", "ft_m", "--set", "steps=10"])
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].strip() == "ft_m on mini"
    assert all(promise in printed for promise in PROMISES)
    assert "BROKEN" not in printed


def test_an_editor_that_breaks_some_ends_with_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(WRONG)
    with pytest.raises(SystemExit) as ended:
        main(["contract", "--editor", str(path)])
    told = capsys.readouterr()
    assert ended.value.code == 1
    assert "breaks 5 of 11 promises: target, restored, saved, models, sequential" in " ".join(told.err.split())
    assert told.out.count("BROKEN") == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--editor", "romme"], "editor 'romme' does not exist (did you mean rome"),
        (["--editor", "rome", "--set", "step=3"], "rome has no hyperparameter 'step'"),
        (["--editor", "rome", "--model", "no/where"], "no/where"),
    ],
)
def test_mistakes_are_told_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["contract", *words])
    assert ended.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in line
