"""The page of editors: what each promises, and what it says that it cannot."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from harness.editing import promises, registry
from harness.editing.directions import DIRECTIONS
from harness.editing.edit import Edit
from harness.editing.editor import Editor, Learned, Wrapper
from harness.editing.registry import editor_names, find
from harness.models.lm import LM
from harness.patches.patch import Patch

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Bare(Editor):
    """One line of the class: with a colon. And no more.

    Attributes: none.
    """

    name = "bare"
    seams = frozenset({"prompt", "activations"})
    needs_subject = True
    batch = False
    exceptions: ClassVar[Mapping[str, str]] = {"isolated": "it | remembers", "cache": "it forgets at once"}

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        return Patch()


@dataclass(frozen=True)
class Pupil(Bare, Learned):
    """Learns."""

    name = "pupil"
    directions = DIRECTIONS
    seams = frozenset({"weights"})
    batch = True
    needs_subject = False
    exceptions: ClassVar[Mapping[str, str]] = {}


@dataclass(frozen=True)
class Coat(Wrapper):
    """Wraps."""

    name = "coat"


def rows(page: str) -> dict[str, list[str]]:
    """The cells of each editor's row."""
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    return {(cells := re.split(r"(?<!\\)\|", line))[1].strip(" `"): [c.strip() for c in cells[2:-1]] for line in lines}


def test_a_row_says_where_how_and_what_not(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {cls.name: cls for cls in (Bare, Pupil, Coat)}
    monkeypatch.setattr(promises, "editor_names", lambda: sorted(made))
    monkeypatch.setattr(promises, "find", made.get)
    monkeypatch.setattr(promises.inspect, "getmodule", lambda cls: None)
    assert rows(promises.promises_table()) == {
        "bare": [
            "with a colon. And no more.", "activations, prompt", "isolated, sequential", "a subject", "likelihood",
            r"isolated: it \| remembers; cache: it forgets at once",
        ],
        "coat": [
            "Wraps.", "the inner editor's", "after a `+`: `memit+coat`", "nothing", "the inner editor's", "nothing",
        ],
        "pupil": ["Learns.", "weights", "isolated, batch, sequential", "`harness fit` first", "any", "nothing"],
    }  # fmt: skip
    assert (promises.keeps_promise(Bare, "isolated"), promises.keeps_promise(Bare, "saved")) == (False, True)


def test_the_page_lists_every_promise_and_every_editor() -> None:
    page = promises.promises_table()
    assert list(rows(page)) == editor_names()
    for name, meaning in promises.PROMISES.items():
        assert f"* **{name}**: {meaning}\n" in page
    assert page.endswith(" |\n")
    columns = {line.count("|") - line.count(r"\|") for line in page.splitlines() if line.startswith("|")}
    assert columns == {8}


@pytest.mark.parametrize("name", editor_names())
def test_the_first_line_of_an_editors_file_says_what_it_does(name: str) -> None:
    line = promises.editor_summary(find(name))
    assert line.endswith(".")
    assert len(line) < 110
    assert find(name).seams <= {"weights", "activations", "prompt", "logits"}


def test_the_committed_page_is_the_generated_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "installed_editors", lambda: [])  # what others installed is not ours to list
    committed = (ROOT / "editors" / "README.md").read_text(encoding="utf-8")
    assert committed == promises.promises_table(), "write `harness editors --format md > editors/README.md`"
