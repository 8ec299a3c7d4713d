"""JSON of others: every number that is read can be written again, and looking for the others costs little."""

from __future__ import annotations

import json

import pytest

from harness.io.schema import parsed


@pytest.mark.parametrize("number", ["1e999", "-1E+400", "1.5e0400", "9" * 400, "1.e999", f"0.5E{'9' * 5}"])
@pytest.mark.parametrize("text", ["{}", "[{}]", '{{"a": {}\n}}', "[1,{},2]"])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_a_number_without_end_is_refused(number: str, text: str, as_bytes: bool) -> None:
    said = text.format(number)
    with pytest.raises(ValueError, match=r"without end|not JSON"):
        parsed(said.encode() if as_bytes else said)


@pytest.mark.parametrize(
    "value", [1e308, -1e-320, 10**299, ["3e1234", "e999", "a" * 400], {"sha": "9e1234", "x": [1.5e300]}, "0" * 400]
)
def test_what_looks_like_one_is_kept(value: object) -> None:
    assert parsed(json.dumps(value).encode()) == value


@pytest.mark.parametrize("text", ['"\\ud800"', '["\\uDfff"]'])
def test_half_a_character_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not UTF-8"):
        parsed(text.encode())
    assert parsed(b'"\\ud83d\\ude00"') == "😀"
    with pytest.raises(ValueError, match="not UTF-8"):
        parsed(b'"\xed\xa0\x80"')
