"""Editors of others: a file, a wrapper in a file, and an installed package, from the guide's own text."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_calls import without_progress

from harness.editing import patch_file
from harness.models.lm import load
from harness.runs.record import Record
from harness.runs.record_file import read_record

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SEAMS = str(ROOT / "tests" / "seams.py")
DOUBLE = '''
"""Double: every increment twice."""
from dataclasses import dataclass, replace
from harness.editing.editor import Wrapper
from harness.editing.hyperparameters import Positive

@dataclass(frozen=True)
class Double(Wrapper):
    name = "double"
    factor: Positive = 2.0

    def increment(self, lm, patch):
        return replace(patch, weights={name: delta * self.factor for name, delta in patch.weights.items()})
'''


def block(language: str) -> str:
    """The guide's block in one language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    return str(found)


def install(site: Path) -> Path:
    """The guide's editor as a package on disk: what ``pip install`` leaves of its module and its entry point."""
    (site / "mymethod.py").write_text(block("python"), encoding="utf-8")
    about = site / "mymethod-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mymethod\nVersion: 1.0\n")
    group = re.search(r'\[project\.entry-points\."(.+)"\]\n(.+) = "(.+)"\n', block("toml"))
    assert group is not None
    (about / "entry_points.txt").write_text("[{}]\n{} = {}\n".format(*group.groups()))
    return site


def process(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line with a folder of packages, as a process."""
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=3000, check=False,
    )  # fmt: skip


@pytest.fixture
def command(arguments: list[str], text: str) -> Callable[[str], list[str]]:
    """The arguments of a small run of some editor."""

    def of(editor: str) -> list[str]:
        at, plain = arguments.index("--editor"), [a for a in arguments if a not in ("--set", "scale=6.0")]
        return [*plain[: at + 1], editor, *plain[at + 2 :], "--text", text]

    return of


@pytest.fixture
def run(harness: Callable[..., Any], command: Callable[[str], list[str]], tmp_path: Path) -> Callable[..., Record]:
    """A small run of some editor, and its record."""

    def go(editor: str, *options: str) -> Record:
        found = harness(*command(editor), *options, "--output", tmp_path / "out")
        assert (found.code, found.err) == (0, "")
        (path,) = (tmp_path / "out").glob("*.json")
        return read_record(path)

    return go


def size(kept: Record) -> float:
    """The norm of the change of the edited weight."""
    (row,) = kept.delta.values()
    return float(row["frobenius"])


# --- a file -----------------------------------------------------------------------------------------------------------


def test_the_guides_editor_runs_from_a_file(run: Callable[..., Record], tmp_path: Path) -> None:
    path = tmp_path / "mymethod.py"
    path.write_text(block("python"), encoding="utf-8")
    kept = run(str(path), "--set", "strength=0.2")
    assert (kept.status, kept.editor["name"], kept.editor["hyperparameters"]) == (
        "complete", "mymethod", {"strength": 0.2},
    )  # fmt: skip
    assert size(kept) == pytest.approx(0.2 * (32 * 64) ** 0.5, rel=1e-5)  # a matrix of 0.2


def test_a_file_and_a_wrapper_in_a_file_compose(run: Callable[..., Record], tmp_path: Path) -> None:
    method, wrapper = tmp_path / "mymethod.py", tmp_path / "double.py"
    method.write_text(block("python"), encoding="utf-8")
    wrapper.write_text(DOUBLE)
    kept = run(f"{method}+{wrapper}", "--set", "factor=3")
    assert kept.editor["name"] == "mymethod+double"
    assert kept.editor["hyperparameters"] == {"strength": 0.1, "double.factor": 3.0}
    assert size(kept) == pytest.approx(0.3 * (32 * 64) ** 0.5, rel=1e-5)


def test_a_file_composes_with_a_wrapper_that_ships(run: Callable[..., Record], tmp_path: Path) -> None:
    """RECT keeps the largest entries of a change, relative to the weight; 40 % of them by default."""
    path = tmp_path / "mymethod.py"
    path.write_text(block("python"), encoding="utf-8")
    kept = run(f"{path}+rect")
    assert kept.editor["name"] == "mymethod+rect"
    assert 0 < size(kept) < 0.1 * (32 * 64) ** 0.5


def test_an_editor_of_every_seam_runs_and_its_patch_can_be_kept(
    run: Callable[..., Record], arguments: list[str], tmp_path: Path
) -> None:
    kept = run(SEAMS)
    assert set(kept.delta) == {"transformer.h.1.mlp.c_proj.weight", "transformer.ln_f.weight"}
    before, after = (kept.tasks(edits)["own"]["efficacy_probability"]["value"] for edits in (0, 2))
    assert after != before
    lm = load(arguments[arguments.index("--model") + 1], device="cpu")
    (path,) = (tmp_path / "out").glob("*.safetensors")
    patch = patch_file.load_patch(path, lm)
    assert patch.prompt is not None
    assert "Ada Velmont" in patch.prompt("")
    assert torch.equal(patch.hooks["transformer.h.0"].amounts[0], torch.linspace(-1, 1, 32))  # type: ignore[attr-defined]


# --- an installed package ---------------------------------------------------------------------------------------------


def test_an_installed_package_is_listed_and_runs_by_its_name(
    command: Callable[[str], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    site = install(tmp_path / "site")
    listed = process(site, "editors")
    assert (listed.returncode, listed.stderr) == (0, "")
    (line,) = (line for line in listed.stdout.splitlines() if line.startswith("mymethod"))
    assert line.split()[1:] == ["One", "line", "that", "says", "what", "it", "does.", "weights", "strength=0.1"]
    done = process(site, *command("mymethod"), "--output", tmp_path / "out")
    assert (done.returncode, without_progress(done.stderr.splitlines())) == (0, [])
    (path,) = (tmp_path / "out").glob("*.json")
    kept = read_record(path)
    assert (kept.status, kept.editor["name"], path.name.split("--")[1]) == ("complete", "mymethod", "mymethod")
    assert size(kept) == pytest.approx(0.1 * (32 * 64) ** 0.5, rel=1e-5)


def test_a_package_cannot_take_the_name_of_an_editor_that_ships(tmp_path: Path) -> None:
    """Else a board's row called ROME would be another's."""
    entry = tmp_path / "mymethod-1.0.dist-info" / "entry_points.txt"
    install(tmp_path)
    entry.write_text("[harness.editors]\nrome = mymethod:MyMethod\n")
    done = process(tmp_path, "run", "--editor", "rome", "--output", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: there are two editors 'rome', one of mymethod; uninstall it or give it another name"
    )
