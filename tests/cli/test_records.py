"""The commands that list what there is and read what a run has written."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import __version__
from harness.editing.registry import editor_names
from harness.exam.data import TASKS


def test_without_arguments_it_shows_help(harness: Callable[..., Any]) -> None:
    bare, asked = harness(), harness("--help")
    assert bare == asked
    assert (bare.code, bare.err) == (0, "")
    for line in ("harness run --editor memit --tasks NER,NLI       the shipped model", "  leaderboard", "  compare"):
        assert line in bare.out
    assert "\\b" not in bare.out
    group = harness("cov")
    assert (group.code, group.err) == (0, "")
    assert "verify" in group.out


def test_editors(harness: Callable[..., Any]) -> None:
    found = harness("editors")
    assert (found.code, found.err) == (0, "")
    listed = [line.split()[0] for line in found.out.splitlines()[2:] if line[:1].strip()]
    assert listed == editor_names()


def test_tasks(harness: Callable[..., Any]) -> None:
    found = harness("tasks")
    assert (found.code, found.err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in found.out.splitlines()[2:] if line[:1].strip()}
    assert rows["NLI"] == ["task", "150"]
    assert rows["general"] == ["group"]
    assert rows["canonical"] == ["group"]
    assert rows["counterfact"][0] == "edits"
    # The general tasks, free and closed, and the canonical ones, with their groups; abilities; belief; the ball;
    # REMEDI's two.
    sets = [path for path in (TASKS / "edits").iterdir() if path.name != "own"]
    assert len(rows) == (8 + 1) + (4 + 1) + (6 + 1) + len(sets) + 1 + 1 + 1 + 2


def test_data(harness: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "general").mkdir()
    (tmp_path / "general" / "test-NLI.tsv").write_text("other bytes")
    found = harness("data", "--data-dir", tmp_path)
    assert (found.code, found.err) == (0, "")
    nli = next(line.split() for line in found.out.splitlines() if line.startswith("NLI") and " test " in line)
    assert nli[:4] == ["NLI", "test", "150", "changed"]
    assert "missing" in found.out
    assert "MIT" in found.out


def test_models(harness: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 2**20)
    monkeypatch.setattr("harness.models.lm.shipped", lambda: {"small": tmp_path})
    found = harness("models")
    assert found.code == 0
    assert ["small", "gpt2", "1.0", "MiB"] in [line.split() for line in found.out.splitlines()]


def test_version(harness: Callable[..., Any]) -> None:
    found = harness("--version")
    assert found.code == 0
    assert __version__ in found.out


def test_show(harness: Callable[..., Any], records: dict[str, Path]) -> None:
    found = harness("show", records["strong"])
    assert (found.code, found.err) == (0, "")
    for word in ("accuracy_released", "efficacy_probability", "nudge", "scale", "transformer.h.1.mlp.c_proj.weight"):
        assert word in found.out


def test_compare(harness: Callable[..., Any], records: dict[str, Path]) -> None:
    found = harness("compare", records["weak"], records["strong"])
    assert (found.code, found.err) == (0, "")
    assert "efficacy_probability" in found.out


def test_leaderboard(harness: Callable[..., Any], records: dict[str, Path], tmp_path: Path) -> None:
    folder = records["weak"].parent
    shown = {kind: harness("leaderboard", folder, "--format", kind) for kind in ("md", "csv", "latex", "html")}
    assert {(one.code, one.err) for one in shown.values()} == {(0, "")}
    assert shown["md"].out == harness("leaderboard", folder).out
    assert "| nudge" in shown["md"].out
    rows = list(csv.DictReader(io.StringIO(shown["csv"].out)))
    assert len(rows) == 3  # unedited, weak, strong
    assert r"\begin{tabular}" in shown["latex"].out
    assert "<table" in shown["html"].out
    written = harness("leaderboard", folder, "--output", tmp_path / "board.md")
    assert (written.code, written.out) == (0, "")
    assert (tmp_path / "board.md").read_text(encoding="utf-8") == shown["md"].out


def test_check_is_content_with_what_did_not_move(harness: Callable[..., Any], records: dict[str, Path]) -> None:
    found = harness("check", "--baseline", records["strong"], "--device", "cpu", "--tolerance", "0", "--trust-code")
    assert (found.code, found.err) == (0, "")
    assert "ok 1 records" in found.out


def test_check_fails_on_a_number_that_moved(
    harness: Callable[..., Any], records: dict[str, Path], tmp_path: Path
) -> None:
    path = Path(shutil.copy(records["strong"], tmp_path))
    content = json.loads(path.read_text())
    content["points"][1]["tasks"]["own"]["efficacy_probability"]["value"] += 5.0
    content["points"][0]["tasks"]["NLI"]["accuracy"]["n"] = 7
    path.write_text(json.dumps(content))
    found = harness("check", "--baseline", tmp_path, "--device", "cpu", "--trust-code")
    assert found.code == 1
    assert found.err.strip().splitlines() == [
        "error: 2 numbers of 1 records left their tolerance; the table says which"
    ]
    assert "efficacy_probability" in found.out
    assert "-5.000" in found.out
    assert "documents" in found.out


@pytest.mark.parametrize("beside", ["copy--{}", "records/{}"])
def test_check_tells_what_moved_in_one_of_two_copies(
    harness: Callable[..., Any], records: dict[str, Path], tmp_path: Path, beside: str
) -> None:
    """Whichever of the two is repeated last."""
    shutil.copy(records["strong"], tmp_path)
    copy = tmp_path / beside.format(records["strong"].name)
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(records["strong"], copy)
    first = min(copy, tmp_path / records["strong"].name)
    content = json.loads(first.read_text())
    content["points"][1]["tasks"]["own"]["efficacy_probability"]["value"] += 5.0
    first.write_text(json.dumps(content))
    found = harness("check", "--baseline", tmp_path, "--device", "cpu", "--trust-code")
    assert (found.code, "-5.000" in found.out) == (1, True)


def test_check_by_two_workers(harness: Callable[..., Any], records: dict[str, Path], tmp_path: Path) -> None:
    """The numbers of one worker; a plan that fails keeps neither the others nor what moved from being told."""
    folder = records["weak"].parent
    call = ("check", "--device", "cpu", "--trust-code", "--workers", 2, "--baseline")
    both = harness(*call, folder)
    assert (both.code, both.out.count("ok ")) == (0, len(list(folder.glob("*.json"))) + 1)
    for path in folder.glob("*.json"):
        shutil.copy(path, tmp_path)
    moved = tmp_path / records["strong"].name
    content = json.loads(moved.read_text())
    content["points"][1]["tasks"]["own"]["efficacy_probability"]["value"] += 5.0
    moved.write_text(json.dumps(content))
    broken = tmp_path / records["weak"].name
    content = json.loads(broken.read_text())
    content["plan"]["settings"]["layer"] = 99
    broken.write_text(json.dumps(content))
    found = harness(*call, tmp_path)
    assert (found.code, "-5.000" in found.out) == (1, True)
    assert "1 of 2 plans failed" in found.err.splitlines()[-1]


def test_check_of_chosen_records(harness: Callable[..., Any], records: dict[str, Path]) -> None:
    folder = records["weak"].parent
    found = harness("check", "--baseline", folder, "--only", "*memit*")
    assert found.code == 2
    assert "no record is named '*memit*'" in found.err
    one = harness("check", "--baseline", folder, "--only", records["weak"].stem, "--device", "cpu", "--trust-code")
    assert (one.code, one.err) == (0, "")
    assert "ok 1 records" in one.out


# --- numbers that were changed by hand --------------------------------------------------------------------------------


@pytest.fixture
def changed(records: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a record in which one value was written by hand."""
    source = records["strong"]
    for path in source.parent.glob(f"{source.stem}*"):
        shutil.copy(path, tmp_path)
    path = tmp_path / source.name
    data = json.loads(path.read_bytes())
    measure = data["points"][1]["tasks"]["NLI"]["accuracy"]
    measure["value"] = 0.999 if measure["value"] != 0.999 else 0.5
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("command", ["show", "compare", "leaderboard", "check"])
def test_a_number_that_was_changed_by_hand_is_told(
    harness: Callable[..., Any], records: dict[str, Path], changed: Path, command: str
) -> None:
    words: dict[str, list[object]] = {
        "show": ["show", changed],
        "compare": ["compare", records["weak"], changed],
        "leaderboard": ["leaderboard", changed.parent],
        "check": ["check", "--baseline", changed.parent],
    }
    found = harness(*words[command])
    assert (found.code, found.out, len(found.err.splitlines())) == (2, "", 1), found.err
    assert "NLI accuracy after 2 edits, the value is 0.999, but its documents give" in found.err
