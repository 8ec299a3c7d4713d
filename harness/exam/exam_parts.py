"""The parts of the exam of an edit set, which its YAML names: what is asked by probability, by generation, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import DataError, UsageError, near
from harness.exam import data

__all__ = ["NEUTRAL_TEXT", "OWN", "ExamPart", "asked_parts", "exam_parts", "part_names"]


OWN = "own"
"""The edit set that reads the user's own rows."""
NEUTRAL_TEXT = "neutral_text"
"""What is measured on text that no edit is about, as a record names it."""


@dataclass(frozen=True)
class ExamPart:
    """A part of the exam of an edit set.

    Attributes:
        name: as it is asked for.
        task: lm-eval's name of the task that asks it.
        asks: what it asks about a record, in words.
    """

    name: str
    task: str
    asks: str


def exam_parts(edit_set: str, root: Path = data.TASKS) -> dict[str, ExamPart]:
    """The parts of the exam of an edit set, in the order of its YAML; none where it names none.

    Args:
        edit_set: the name of the set, which is that of its YAML.
        root: the folder of the tasks.

    Raises:
        DataError: the YAML does not say of a part which task asks it, and what it asks.
    """
    for path in sorted(root.rglob(f"{edit_set}.yaml")):
        if path.parent.name == edit_set:
            named = (data.read_yaml(path).get("metadata") or {}).get("exam") or {}
            return {name: _part(path, name, said) for name, said in named.items()}
    return {}


def _part(path: Path, name: str, said: Mapping[str, Any]) -> ExamPart:
    if not isinstance(said, dict) or not all(isinstance(said.get(key), str) for key in ("task", "asks")):
        raise DataError(f"{path}: metadata.exam.{name} is {said!r}, expected {{task: NAME, asks: what it asks}}")
    return ExamPart(name, said["task"], said["asks"])


def part_names(root: Path = data.TASKS) -> list[str]:
    """The names of the parts of any edit set."""
    sets = sorted({path.stem for path in root.rglob("*.yaml") if path.stem == path.parent.name})
    return list(dict.fromkeys(name for edit_set in sets for name in exam_parts(edit_set, root)))


def asked_parts(edit_set: str | None, asked: Sequence[str]) -> tuple[str, ...]:
    """The parts that are asked for, in the order of the set's YAML; none where that is the whole exam.

    Args:
        edit_set: the edit set; None where no edits are examined.
        asked: the names of parts; none for the whole exam.

    Raises:
        UsageError: there is no such part, the set lacks it, or no edits are examined.
    """
    if not asked:
        return ()
    if edit_set is None:
        raise UsageError(f"--exam {','.join(asked)}: no edits are examined; name them with --edits, or leave it out")
    found = exam_parts(edit_set)
    for name in asked:
        if name not in found:
            raise UsageError(_lacking(edit_set, name, list(found)))
    return () if set(asked) == set(found) else tuple(name for name in found if name in asked)


def _lacking(edit_set: str, name: str, found: list[str]) -> str:
    """Why an edit set cannot be asked a part."""
    if not found:
        return f"--exam {name}: the YAML of {edit_set} names no parts of its exam; leave --exam out to ask all of it"
    known = part_names()
    choice = f"the exam of {edit_set} has {', '.join(found)}"
    if name in known:
        return f"--exam {name}: {edit_set} lacks this part; {choice}"
    return f"--exam: part '{name}' does not exist{near(name, known)}; {choice}"
