"""A damaged file of any format is read, or told in one line; `scripts/fuzz.py` tries more of them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz.py"
FORMATS = ["edits", "arrays", "plans", "records", "values", "patches", "fitted", "networks", "maps", "moments"]
FORMATS += ["state", "unedited"]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("fuzz", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["fuzz"]


@pytest.mark.usefixtures("unchecked_shapes")  # as users have it: annotations alone refuse nothing
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_damaged_is_read_or_told(
    script: ModuleType, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    assert [fault.what for fault in script.fuzz(name, 60, seed=7, keep=tmp_path / "kept")] == []


def test_every_format_is_tried(script: ModuleType) -> None:
    assert list(script.FORMATS) == FORMATS


def test_a_traceback_and_a_message_of_two_lines_are_seen(script: ModuleType, tmp_path: Path) -> None:
    def two(path: Path) -> None:
        raise script.HarnessError("one\ntwo")

    def crash(path: Path) -> None:
        raise KeyError("points")

    for read, said in ((two, "not one line"), (crash, "KeyError: 'points'")):
        kind = script.Format(script._make_record, read, script._plain)
        assert said in script._fault(kind, tmp_path)
