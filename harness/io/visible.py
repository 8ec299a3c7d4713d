"""Texts of others as a terminal may show them."""

from __future__ import annotations

import unicodedata

__all__ = ["visible"]

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode's categories of what a terminal obeys, or does not show: controls, marks of direction, ends of lines."""


def visible(text: str) -> str:
    r"""The text on one line, with all that commands a terminal or is not seen as its number: ``\n``, ``\x1b``."""
    return "".join(_escaped(one) if unicodedata.category(one) in _UNSEEN else one for one in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
