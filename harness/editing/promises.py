"""What every editor promises, and which editors cannot promise what.

The contract tests hold each editor to each promise. One that cannot keep a promise by its nature says so, with the
reason, in ``Editor.exceptions``; :func:`promises_table` shows both.
"""

from __future__ import annotations

import inspect

from harness.editing.directions import DIRECTIONS
from harness.editing.editor import Editor, Learned, Wrapper
from harness.editing.registry import editor_names, find

__all__ = ["PROMISES", "changes", "editor_summary", "keeps_promise", "promises_table"]

PROMISES = {
    "target": "raises the probability of the target",
    "unchanged": "editing leaves the model bitwise as it was",
    "restored": "a patch that is let go leaves the model bitwise as it was, also after an exception",
    "seeded": "the same seed gives the same patch, bit for bit",
    "saved": "a patch read from its file changes the model as before",
    "generation": "greedy generation writes what scoring finds most probable",
    "cache": "generation with and without a key-value cache writes the same",
    "padding": "the side of the padding does not matter",
    "models": "two models in one process do not mix",
    "isolated": "edits made side by side equal edits made one by one",
    "sequential": "a second operation on top of the first keeps working, no edits change nothing, and another editor's "
    "memory is refused",
}

_INTRODUCTION = """\
# Editors

`harness editors --format md` writes this page. One file is one editor, and its name is the name for `--editor`; the
source and the settings of each method stand in its file. The seam is where a model is changed; `harness editors` lists
the hyperparameters. Each editor is held to every promise below by `tests/contract`, on six families of models, but for
what its row says it cannot promise. *Wants* is what an edit may want of its target: that it becomes likelier, or any
direction of `harness/objectives.py` (likelihood, unlikelihood, erasure, balance, contrast).
"""


def keeps_promise(cls: type[Editor], promise: str) -> bool:
    """Whether an editor makes a promise."""
    return promise not in cls.exceptions


def promises_table() -> str:
    """How to read it, the promises, and a row for each editor, as a page of Markdown."""
    promised = [f"* **{name}**: {meaning}" for name, meaning in PROMISES.items()]
    head = [
        "| editor | what it does | seam | modes | needs | wants | cannot promise |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = [_row(name, find(name)) for name in editor_names()]
    return "\n".join([_INTRODUCTION, *promised, "", *head, *rows]) + "\n"


def _row(name: str, cls: type[Editor]) -> str:
    wrapper = issubclass(cls, Wrapper)
    modes = "isolated, batch, sequential" if cls.batch else "isolated, sequential"
    needs = (
        [f"a {cls.family} model"] * bool(cls.family)
        + ["a subject"] * cls.needs_subject
        + ["the old answer"] * cls.needs_old
        + ["`harness fit` first"] * issubclass(cls, Learned)
    )
    cells = (
        f"`{name}`",
        editor_summary(cls),
        changes(cls),
        f"after a `+`: `memit+{name}`" if wrapper else modes,
        ", ".join(needs) or "nothing",
        _wants(cls),
        "; ".join(f"{promise}: {reason}" for promise, reason in cls.exceptions.items()) or "nothing",
    )
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _wants(cls: type[Editor]) -> str:
    """What edits may ask of an editor."""
    if issubclass(cls, Wrapper):
        return "the inner editor's"
    return "any" if cls.directions == DIRECTIONS else ", ".join(sorted(cls.directions))


def changes(cls: type[Editor]) -> str:
    """The seams at which an editor changes a model."""
    return "the inner editor's" if issubclass(cls, Wrapper) else ", ".join(sorted(cls.seams))


def editor_summary(cls: type[Editor]) -> str:
    """The first line of what is written above an editor's file, or above its class; without the method's name."""
    module = inspect.getmodule(cls)
    text = (inspect.getdoc(module) if module else None) or inspect.getdoc(cls) or ""
    first = text.partition("\n")[0]
    return first.partition(": ")[2] or first
