"""What the documents tell a newcomer to type works as written."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from harness.cli.group import harness as command
from harness.runs.record_file import read_records

ROOT = Path(__file__).parents[2]


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of a document in one language; those marked ``skip`` need a network."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(document: str) -> list[list[str]]:
    """Every ``harness ...`` that a document shows, in blocks or in a line, as arguments."""
    text = (ROOT / document).read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"(?:^|`|&& )harness ((?:[^`\n#|]|(?<=\w)\|)+)", text, re.MULTILINE)
    return [line.split() for line in found]


def test_every_command_shown_exists_with_its_options() -> None:
    pages = ["README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
    shown = [words for page in pages for words in commands(page)]
    assert len(shown) > 30
    for words in shown:
        node: click.Command = command
        rest, context = list(words), click.Context(command)
        while rest and isinstance(node, click.Group) and rest[0] in node.list_commands(context):
            node = node.get_command(context, rest.pop(0)) or command
        assert node is not command, words
        known = {option for parameter in node.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known, words


def test_the_editor_of_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (recipe,) = blocks("CONTRIBUTING.md", "python")
    path = tmp_path / "mymethod.py"
    path.write_text(recipe, encoding="utf-8")
    output = str(tmp_path / "out")
    command(
        [
            "run",
            "--editor",
            str(path),
            "--edits",
            "counterfact:2",
            "--tasks",
            "NLI",
            "--limit",
            "4",
            "--output",
            output,
        ],
        standalone_mode=False,
    )
    (kept,) = read_records(output)
    assert kept.editor["name"] == "mymethod"
    assert kept.status == "complete"
    assert "NLI" in capsys.readouterr().out


def test_the_two_commands_are_marked_for_ci() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for mark in ("run", "tests"):
        assert re.search(rf"<!-- {mark} -->\n```bash\npip install .*\n```", text)
