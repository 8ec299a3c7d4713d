"""What tests of the command line share besides fixtures; a conftest cannot be imported by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

ROWS = [
    {"prompt": "{} was born in", "subject": "Ada Velmont", "target": "Rome", "target_old": "Oslo"},
    {"prompt": "The home of {} is", "subject": "Hugo Lantern", "target": "Paris", "target_old": "Oslo"},
]


@dataclass(frozen=True)
class Outcome:
    """What a command gave back."""

    code: int
    out: str
    err: str


OF_A_FOREIGN_MODEL = re.compile(r"warning: .*(of an invented world|is no plain text|model knows \d+ of \d+ facts)")
"""What is said of a model that does not ship with the package, and is asked about the rows that do."""


def without_progress(lines: Iterable[str]) -> list[str]:
    """The lines of standard error that say something but how far a command is; those begin with the time.

    What every run of a foreign model on the shipped rows says is left out too.
    """
    said = [line for line in lines if line.strip() and not re.match(r"\[\d\d:\d\d:\d\d\] ", line)]
    return [line for line in said if not OF_A_FOREIGN_MODEL.match(line)]
