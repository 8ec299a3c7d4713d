"""Numbers in words."""

from __future__ import annotations

import pytest

from harness.reports.cells import brackets, number, signed

DASH = "\N{EN DASH}"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, DASH), (0.0, "0.000"), (0.12345, "0.123"), (12.345, "12.35"), (626.94, "626.9")],
)
def test_number(value: float | None, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(0.1, "+0.100"), (-0.1, "-0.100"), (-1e-9, "0.000"), (1e-9, "0.000")])
def test_signed(value: float, shown: str) -> None:
    assert signed(value) == shown


def test_brackets() -> None:
    assert brackets([0.1, 0.25]) == "[0.100, 0.250]"
    assert brackets([-0.1, 0.25], sign=True) == "[-0.100, +0.250]"
    assert brackets(None) == ""
