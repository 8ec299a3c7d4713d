"""The errors a user can meet, and the exit code each one ends the program with.

    HarnessError                 exit 2 unless a child says otherwise
    +-- UsageError               a mistake in the call: an unknown name, a value out of range
    |   +-- DataError            a file or a row that cannot be used
    |   +-- ModelError           a model, a module or a weight that cannot be used
    +-- NumericalError           a number that is not finite, or a system without a solution
    +-- CheckFailed              exit 1: a check said no
        +-- RestoreError         the weights are not what they were

Every message is one line: what was found, what was expected, and the cure.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "CheckFailed",
    "DataError",
    "HarnessError",
    "ModelError",
    "NumericalError",
    "RestoreError",
    "UsageError",
    "near",
]


class HarnessError(Exception):
    """The base of every error that the harness raises on purpose."""

    exit_code = 2


class UsageError(HarnessError):
    """A mistake in the call."""


class DataError(UsageError):
    """A file or a row that cannot be used."""


class ModelError(UsageError):
    """A model, a module or a weight that cannot be used."""


class NumericalError(HarnessError):
    """A number that is not finite, or a system that has no solution."""


class CheckFailed(HarnessError):
    """A check that was asked for said no."""

    exit_code = 1


class RestoreError(CheckFailed):
    """A parameter is not bitwise what it was before the edit."""


def near(name: str, choices: Iterable[str]) -> str:
    """The clause that names the choices closest to ``name``, closest first, or all of them where there are few."""
    names = sorted(choices)
    close = get_close_matches(name.lower(), [n.lower() for n in names], n=3, cutoff=0.5)
    matched = [n for lower in dict.fromkeys(close) for n in names if n.lower() == lower]
    if matched:
        return f" (did you mean {', '.join(matched)}?)"
    return f" (there are: {', '.join(names)})" if 0 < len(names) <= 12 else ""
