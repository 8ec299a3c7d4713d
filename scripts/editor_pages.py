"""A page of the site for each editor: what it does, where its settings come from, and what it did here.

Everything is read from where it stands already: the editor's file, the table of published constants that the tests
hold the presets to, the page of architectures, and the committed records.
"""

from __future__ import annotations

import csv
import dataclasses
import inspect
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from architectures import PAGE, committed

from harness import read_records
from harness.editing.editor import Editor, Learned, Wrapper
from harness.editing.hyperparameters import settable
from harness.editing.promises import PROMISES, changes
from harness.editing.registry import find
from harness.runs.record import Record

__all__ = ["described_settings", "editor_page", "finding"]

ROOT = Path(__file__).resolve().parents[1]
BOARDS = ("results/records", "results/smollm2/records")
MODEL = "mini"
"""The model whose rows the finding of a page is about: every editor has been measured on it first."""
EXAM = ("efficacy", "paraphrase", "neighborhood")
_ATTRIBUTE = re.compile(r"^    (\w+(?:, \w+)*): ")


def editor_page(name: str) -> str:
    """The page of an editor, in Markdown.

    Args:
        name: the name for ``--editor``.
    """
    cls = find(name)
    above, meaning = inspect.getdoc(inspect.getmodule(cls)) or "", inspect.getdoc(cls) or ""
    parts = [
        f"# {name}",
        above,
        meaning.partition("\nAttributes:")[0].strip(),
        "\n".join(_facts(name, cls)),
        "## What we found",
        finding(name) or "No record of it is on the boards yet.",
        *_rows(name),
        "## Settings",
        _settings(name, cls),
        "## What it cannot promise",
        _exceptions(cls),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# --- the method -------------------------------------------------------------------------------------------------------


def _facts(name: str, cls: type[Editor]) -> Iterator[str]:
    """What it changes and needs, and on which families of models it goes."""
    wrapper = issubclass(cls, Wrapper)
    needs = [
        *([f"a {cls.family} model"] if cls.family else []),
        *(["a subject"] if cls.needs_subject else []),
        *(["the old answer"] if cls.needs_old else []),
        *([f"`harness fit --editor {name}` first"] if issubclass(cls, Learned) else []),
    ]
    yield f"* File: `editors/{name}.py`"
    yield f"* [Seams](../concepts/seams.md): {changes(cls)}"
    yield f"* Goes behind another editor: `memit+{name}`" if wrapper else f"* Needs: {', '.join(needs) or 'nothing'}"
    families = _families().get(name)
    if families:
        said = ", ".join(f"{word} on {count}" for word, count in families.most_common())
        yield f"* Of {families.total()} [families of models](../reference/architectures.md): {said}"


@cache
def _families() -> Mapping[str, Counter[str]]:
    """Editor -> how many families of models it is exact on, works on, or is refused on."""
    found: dict[str, Counter[str]] = {}
    for outcomes in committed(PAGE.read_text(encoding="utf-8")).values():
        for name, one in outcomes.items():
            found.setdefault(name, Counter())[one.verdict] += 1
    return found


def _exceptions(cls: type[Editor]) -> str:
    if not cls.exceptions:
        return f"Nothing: it keeps all {len(PROMISES)} [promises](README.md)."
    return "\n".join(f"* {PROMISES[promise]}: {reason}" for promise, reason in cls.exceptions.items())


# --- its settings -----------------------------------------------------------------------------------------------------


def _settings(name: str, cls: type[Editor]) -> str:
    """A table of defaults, and one of what is otherwise on some models."""
    described, sources = described_settings(cls), _constants()
    fields = [field for field in dataclasses.fields(cls) if field.name in settable(cls)]
    if not fields:
        return "None."
    rows = [
        f"| `{field.name}` | `{field.default}` | {_cell(described.get(field.name, ''))} |"
        f" {_cell(sources.get((name, 'default', field.name), ''))} |"
        for field in fields
    ]
    table = "\n".join(["| setting | default | what it is | where the default is from |", "|---|---|---|---|", *rows])
    presets = [
        f"| {model} | `{setting}` | `{value}` | {_cell(sources.get((name, model, setting), ''))} |"
        for model, chosen in cls.presets.items()
        for setting, value in chosen.items()
    ]
    if not presets:
        return table
    return "\n".join([f"{table}\n", "| model | setting | value | where it is from |", "|---|---|---|---|", *presets])


def described_settings(cls: type[Editor]) -> dict[str, str]:
    """What an editor and the classes that it stands on say of their settings."""
    found: dict[str, str] = {}
    for kin in reversed(cls.__mro__):
        found |= _attributes(inspect.cleandoc(kin.__doc__ or ""))
    return found


def _attributes(meaning: str) -> dict[str, str]:
    """What the section ``Attributes`` of a docstring without indentation says of each."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in meaning.partition("\nAttributes:\n")[2].splitlines():
        if line and not line.startswith(" "):
            break
        begun = _ATTRIBUTE.match(line)
        if begun:
            names = begun[1].split(", ")
            found.update(dict.fromkeys(names, line[begun.end() :].strip()))
        elif line.strip():
            found.update({each: f"{found[each]} {line.strip()}" for each in names})
    return found


@cache
def _constants() -> Mapping[tuple[str, str, str], str]:
    """Method, model and setting -> where the value is from."""
    with (ROOT / "tests/golden/data/published_constants.csv").open(encoding="utf-8", newline="") as file:
        return {(row["method"], row["model"], row["field"]): row["source"] for row in csv.DictReader(file)}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# --- its rows ---------------------------------------------------------------------------------------------------------


@cache
def _records() -> Sequence[Record]:
    """Those of the boards, of the first seed."""
    found = (record for board in BOARDS for record in read_records(ROOT / board))
    return [record for record in found if record.plan["seed"] == 0 and record.status == "complete"]


def _mine(name: str) -> list[Record]:
    return [record for record in _records() if name in str(record.plan["editor"]).split("+")]


def finding(name: str) -> str:
    """Two sentences from the record of the shipped model: what became of the edits, and of everything else.

    Args:
        name: the editor; a wrapper's records are those of what it wraps.
    """
    asked = [r for r in _mine(name) if r.model["name"] == MODEL and r.plan["edits"] == "counterfact"]
    asked = [r for r in asked if r.points[-1]["edits"] == r.plan["num_edits"]]
    if not asked:
        return ""
    record = min(asked, key=lambda r: (r.plan["editor"] != name, r.plan["mode"] != "batch", r.plan["editor"]))
    count, mode = record.points[-1]["edits"], record.plan["mode"]
    tasks = record.tasks(count)
    edited, paraphrase, near = (tasks["counterfact"][metric] for metric in EXAM)
    own = "" if record.plan["editor"] == name else f" (`{record.plan['editor']}`)"
    first = (
        f"After {count} invented facts of CounterFact on `{MODEL}`{own}, {_MODES[mode]}, the new answer is preferred "
        f"to the old behind {_score(edited)} of the prompts and {_score(paraphrase)} of their paraphrases, and "
        f"neighbours keep their answers in {_score(near)}."
    )
    others = {task: tasks[task][metric] for task, metric in record.headlines.items() if task in tasks}
    moved = [f"{task} ({_change(one)})" for task, one in others.items() if task not in _OWN and _moved(one)]
    left = len([task for task in others if task not in _OWN])
    second = (
        f"Of {left} other tasks {'none' if not moved else ', '.join(moved)} moved, by a 95 % interval without 0."
        if left
        else ""
    )
    return f"{first} {second}".strip()


_MODES = {"batch": "made at once", "isolated": "each alone", "sequential": "one after the other"}
_OWN = ("counterfact", "zsre", "neutral_text")


def _score(one: Mapping[str, Any]) -> str:
    """A score with its change."""
    return f"{one['value']:.3f} ({_change(one)}, n = {one['n']})"


def _change(one: Mapping[str, Any]) -> str:
    change = one.get("difference") or {}
    if change.get("value") is None:
        return "no change measured"
    low, high = change.get("interval") or (None, None)
    return f"{change['value']:+.3f}" + ("" if low is None else f" [{low:+.3f}, {high:+.3f}]")


def _moved(one: Mapping[str, Any]) -> bool:
    low, high = (one.get("difference") or {}).get("interval") or (0.0, 0.0)
    return low > 0 or high < 0


def _rows(name: str) -> Iterator[str]:
    """A table of its records, each by the headline of its edit set, and what plain text lost."""
    rows = [row for record in _mine(name) for row in _row(record)]
    if not rows:
        return
    yield (
        "In brackets the change from the unedited model with its 95 % interval; seconds are those of the phase that "
        "edits, on a machine that did other work, and few where values were taken over from another run."
    )
    head = ["model", "editor", "edits", "mode", "headline", "neutral text, KL", "seconds an edit"]
    yield "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *sorted(dict.fromkeys(rows))])


def _row(record: Record) -> Iterator[str]:
    count, edits = record.points[-1]["edits"], record.plan["edits"]
    tasks = record.tasks(count)
    metric = record.headlines.get(edits)
    if not count or metric is None or edits not in tasks:
        return
    text = tasks.get("neutral_text", {}).get("kl", {})
    spent = sum(phase["seconds"] for phase in record.cost if phase["phase"] == "edit")
    cells = [
        Path(record.model["name"]).name,
        f"`{record.plan['editor']}`",
        f"{edits}, {count}",
        record.plan["mode"],
        f"{metric} {tasks[edits][metric]['value']:.3f} ({_change(tasks[edits][metric])})",
        "" if text.get("value") is None else f"{text['value']:.3f}",
        f"{spent / count:.2f}",
    ]
    yield "| " + " | ".join(cells) + " |"
