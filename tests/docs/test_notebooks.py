"""The notebooks run, and the outputs that stand in them are what their code gives."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from doc_blocks import ROOT, same

sys.path.insert(0, str(ROOT / "scripts"))

import make_notebooks

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


def texts(cells: list[dict[str, Any]]) -> list[str]:
    """What the outputs of all cells say, as plain text."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return ["".join(one["text"] if "text" in one else one["data"]["text/plain"]) for one in outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_outputs_are_those_of_the_code(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    shown, found = texts(cells), texts(make_notebooks.executed(cells))
    assert len(shown) == len(found) > 2
    for one, other in zip(shown, found, strict=True):
        assert same(one, other), f"run scripts/make_notebooks.py; printed was\n{other}"


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["compare_editors", "edit_one_fact"]
