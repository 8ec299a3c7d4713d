"""JSON of others: every number that is read can be written again, and looking for the others costs little."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies

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


# --- long texts, which another parser reads ---------------------------------------------------------------------------

TEXTS = strategies.text(strategies.characters(exclude_categories=["Cs"]), max_size=8)
ANY = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats(allow_nan=False) | TEXTS,
    lambda inner: strategies.lists(inner, max_size=4) | strategies.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def _print(text: str) -> str | None:
    """The print of a value, which tells 0 from -0.0; None where the text is no JSON."""
    try:
        return repr(parsed(text))
    except ValueError:
        return None


def _both(text: str) -> tuple[str | None, str | None]:
    """What a text is read as, and what with so much space behind it that the other parser reads it."""
    return _print(text), _print(text + " " * 100_001)


@given(ANY)
def test_a_long_text_is_read_as_a_short_one(value: object) -> None:
    short, long = _both(json.dumps(value, allow_nan=True))
    assert short == long


@pytest.mark.parametrize(
    ("text", "is_json"),
    [
        *(("-0", True), ("-0.0", True), ("5e-324", True), ("1e22", True), ('{"a":1,"a":2}', True)),
        *(("12345678901234567890123", True), ("[" * 300 + "]" * 300, True), ('"\\ud83d\\ude00"', True)),
        *(("NaN", False), ("-Infinity", False), ("1e999", False), ("1" * 400 + ".0", False), ('"\\ud800"', False)),
        *(("[1,]", False), ("01", False), ('"\t"', False), ('"\\x"', False), ("[" * 100_000 + "]" * 100_000, False)),
    ],
)
def test_what_is_json_does_not_depend_on_its_length(text: str, is_json: bool) -> None:
    short, long = _both(text)
    assert short == long
    assert (short is not None) == is_json
