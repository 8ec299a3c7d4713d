"""Formats by name: every file of ``harness/reports/formats`` is one, and nothing lists them.

A new format is a file there with one subclass of :class:`Format`; ``harness leaderboard --format NAME`` offers it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from harness.errors import UsageError, near
from harness.reports import formats
from harness.reports.one_a_file import parts_by_name
from harness.reports.table import Page

__all__ = ["Format", "find_format", "format_names"]


class Format(ABC):
    """A way to write pages of tables.  The first line of a child's docstring says what it is.

    Attributes:
        name: what it is called on the command line.
        ending: of its files, with the dot.
    """

    name: ClassVar[str]
    ending: ClassVar[str]

    @abstractmethod
    def write(self, pages: Sequence[Page]) -> str:
        """The pages, one below the other, as the text of one file; what would be markup in their text is escaped."""


def format_names() -> list[str]:
    """The names of all formats, by the alphabet."""
    return sorted(_found())


def find_format(name: str) -> Format:
    """The format of a name.

    Raises:
        UsageError: there is none.
    """
    known = _found()
    if name not in known:
        raise UsageError(f"format '{name}' does not exist{near(name, known)}; choose {', '.join(sorted(known))}")
    return known[name]()


def _found() -> dict[str, type[Format]]:
    found: dict[str, type[Format]] = parts_by_name(formats, Format)
    return found
