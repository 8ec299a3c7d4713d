"""Texts of others as a terminal may show them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.io.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("The home of Ada é 中文 🙂 [bold]", "The home of Ada é 中文 🙂 [bold]"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\nb\tc\rd\x00\x07", r"a\nb\tc\rd\x00\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("left\u202eright\u200b", r"left\u202eright\u200b"),
        ("line\u2028end\u2029", r"line\u2028end\u2029"),
        ("\ud83d", r"\ud83d"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_commands_a_terminal_is_written_as_its_number(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text())
def test_what_is_shown_is_one_line_that_can_be_printed(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable() or all(one.isprintable() or one.isspace() for one in shown)
    assert len(shown.splitlines()) <= 1
    assert "\x1b" not in shown and "\x9b" not in shown
