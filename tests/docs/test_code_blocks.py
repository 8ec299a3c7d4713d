"""Every block of code in README and on the site runs, and prints what stands below it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import click
import pytest
from doc_blocks import ROOT, Block, blocks, commands, parse, same

from harness.cli.group import harness as command
from harness.cli.main import main

PAGES = ["README.md", *(p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "docs").rglob("*.md")))]
RESULTS = [p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "results").glob("*.md"))]
DATA = {"json", "yaml", "toml"}


@pytest.fixture
def quiet() -> Iterator[None]:
    """The command line sets levels of loggers, variables and filters of warnings; afterwards they are as before."""
    names = ("lm_eval", "datasets", "transformers", "evaluate")
    levels = {name: logging.getLogger(name).level for name in names}
    with mock.patch.dict(os.environ), warnings.catch_warnings():
        yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize("page", [page for page in PAGES if any(not block.skip for block in blocks(page))])
def test_the_blocks_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: None) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    printed: str | None = None
    for block in blocks(page):
        if block.skip is not None:
            printed = None
        elif block.language == "text":
            assert printed is not None, f"{block.where}: no block above it was run"
            assert same(block.text, printed), f"{block.where}: printed was\n{printed}"
        else:
            printed = _run(block, names, tmp_path)


def _run(block: Block, names: dict[str, object], folder: Path) -> str | None:
    """Run one block; gives what it printed, None for a file."""
    parse(block)
    if block.title is not None:
        path = folder / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
        return None
    if block.language in DATA:
        return None
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        if block.language == "python":
            exec(compile(block.text, block.where, "exec"), names)
        elif block.info == "clone":
            _in_a_clone(block, folder)
        else:
            assert block.language == "bash", f"{block.where}: {block.language} is not run; say skip and why"
            _type(block)
    return out.getvalue()


def _type(block: Block) -> None:
    """The commands of a block, in this process."""
    for line in commands(block):
        program, *arguments = shlex.split(line)
        assert program == "harness", f"{block.where}: only commands of harness are run; say skip and why"
        try:
            main(arguments)
        except SystemExit as end:
            assert not end.code, f"{block.where}: {line} ended with {end.code}"


def _in_a_clone(block: Block, folder: Path) -> None:
    """The commands of a block in a copy of the repository, beside what the page wrote into ``tasks/``."""
    weights = shutil.ignore_patterns("mini-*", "__pycache__")
    for name in ("harness", "editors", "tasks"):
        shutil.copytree(ROOT / name, folder / name, ignore=weights, dirs_exist_ok=True)
    for line in commands(block):
        called = [sys.executable, "-m", "harness.cli", *shlex.split(line)[1:]]
        env = {**os.environ, "PYTHONPATH": str(folder)}
        done = subprocess.run(called, cwd=folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "colours right" in done.stdout


@pytest.mark.parametrize("page", [*PAGES, *RESULTS])
def test_a_block_that_is_not_run_says_why(page: str) -> None:
    for block in blocks(page):
        assert block.skip is None or len(block.skip) > 10, block.where


@pytest.mark.parametrize("page", [*PAGES, *RESULTS])
def test_every_command_shown_exists_with_its_options(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"(?:^|`|&& )harness ((?:[^`\n#|]|(?<=\w)\|)+)", text, re.MULTILINE):
        node: click.Command = command
        rest, context = line.split(), click.Context(command)
        while rest and isinstance(node, click.Group) and rest[0] in node.list_commands(context):
            node = node.get_command(context, rest.pop(0)) or command
        assert node is not command or not rest or rest[0].startswith("-"), f"{page}: harness {line}"
        known = {option for parameter in node.params for option in parameter.opts} | {"--help"}
        assert {word for word in rest if word.startswith("--")} <= known, f"{page}: harness {line}"


def test_what_is_shown_is_compared_with_what_is_printed() -> None:
    assert same("rome {'efficacy': 0.98}", "rome {'efficacy': 1.0}\n")
    assert not same("rome {'efficacy': 0.98}", "rome {'efficacy': 0.9}\n")
    assert not same("Mofokor.", "Gimemes.")
