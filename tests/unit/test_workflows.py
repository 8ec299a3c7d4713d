"""The workflows run what a person would type here, with names that exist."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import click
import yaml

from harness.cli.group import harness as command
from harness.editing.registry import editor_names
from harness.runs.record_file import record_paths

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_every_step_that_runs_a_file_of_ours_finds_it() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "edit-check.yml"]
    steps = [
        step["run"] for path in WORKFLOWS for job in _jobs(path).values() for step in job["steps"] if "run" in step
    ]
    files = [name for step in steps for name in re.findall(r"[\w./-]+\.txt|\.ci/run|scripts/\w+", step)]
    assert files
    assert all((ROOT / name).exists() for name in files)


def test_the_example_to_copy_names_commands_an_editor_and_records_that_exist() -> None:
    text = (ROOT / ".github" / "workflows" / "edit-check.yml").read_text(encoding="utf-8")
    env = yaml.safe_load(text)["env"]
    assert env["EDITOR"] in editor_names()
    assert any(fnmatch(path.stem, env["ONLY"]) for path in record_paths(ROOT / env["BASELINE"]))
    for name, options in re.findall(r"run: harness (\w+)(.*)", text):
        found = command.get_command(click.Context(command), name)
        assert found is not None, name
        known = {option for parameter in found.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", options)) <= known, name


def _jobs(path: Path) -> dict[str, dict[str, list[dict[str, str]]]]:
    found: dict[str, dict[str, list[dict[str, str]]]] = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return found


def test_the_hooks_before_a_commit_are_those_of_the_whole_check() -> None:
    """Each command of a hook stands in scripts/check too, or is one of its tests."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    whole = (ROOT / "scripts" / "check").read_text(encoding="utf-8")
    assert len(hooks) == 4
    for hook in hooks:
        tool = hook["entry"].split()[0]
        assert tool in whole, hook["id"]
