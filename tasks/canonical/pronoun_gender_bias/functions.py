"""Careers and pronouns (Hewitt et al. 2024): where the rows of the canonical set ``pronoun_gender_bias`` come from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from harness.task_kit import CanonicalSet, read_rows, subjects

_SET = CanonicalSet.at(Path(__file__).parent)

source, edits, examples = _SET.source, _SET.edits, _SET.examples
dataset, results = _SET.dataset, _SET.results


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a published file, each with its subject where that is known."""
    return subjects(read_rows(path), _career)


def _career(row: dict[str, Any]) -> str | None:
    """The career in ``The nurse said``."""
    found = re.fullmatch(r"The (.+) said", row["prefix"])
    return found[1] if found else None
