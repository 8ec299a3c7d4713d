"""JSON of others, read with care: whatever is wrong with it is one error of one line.

A format is a ``TypedDict`` of what its files hold; :func:`checked` holds plain data to it with pydantic, strictly (a
text is no number, a truth value is none either), before anything else looks at them.
"""

from __future__ import annotations

import json
import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeAlias

from annotated_types import Ge, Len

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["Count", "Number", "Pair", "checked", "parsed"]

Number: TypeAlias = float | None
"""A finite number, or null where there is none."""
Count: TypeAlias = Annotated[int, Ge(0)]
Pair: TypeAlias = Annotated[list[float], Len(2, 2)]
"""An interval."""

_LONG = 10_000
"""Characters from which on the parser that must be imported first is the quicker one; hundreds of records have more."""
_ZEROS = bytes.maketrans(b"123456789E", b"000000000e")
_EXPONENT = re.compile(rb"e\+?000+")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def parsed(content: bytes | str) -> Any:
    """The value of a JSON text in UTF-8, every number and every text of which can be written again.

    Raises:
        ValueError: it is no such text; says what is wrong in one line.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        huge = _may_be_huge(content if isinstance(content, bytes) else content.encode(errors="replace"))
        value = _value(text, quick=not huge)
        # Bytes that are UTF-8 hold no half of a character, but an escape can name one.
        if (isinstance(content, str) or _escapes(content)) and _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        if huge:
            _require_finite(value)
    except UnicodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason})") from error  # type: ignore[attr-defined]
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON, or it breaks off (line {error.lineno}: {error.msg})") from error
    return value


def _value(text: str, quick: bool) -> Any:
    """The value of a text; of a long one without huge numbers by pydantic's parser, in a third of the time."""
    if quick and len(text) > _LONG:
        from pydantic_core import from_json

        try:
            return from_json(text, allow_inf_nan=False)
        except ValueError:
            pass  # the standard library's parser reads what is nested deeper, and says of all else what is wrong
    return json.loads(text, parse_constant=_no_number)


def checked(kind: Any, value: object) -> None:
    """See that plain data are what a type says.

    Args:
        kind: a ``TypedDict`` or another type.
        value: what :func:`parsed` gave.

    Raises:
        ValueError: they are not; names the first place that differs, and what was expected there.
    """
    from pydantic import ValidationError

    try:
        _adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(_short(f"{place}: {first['msg']}")) from error
    except (OverflowError, RecursionError) as error:
        raise ValueError(f"a value that cannot be used ({type(error).__name__})") from error


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _short(text: str) -> str:
    """One line that a person reads, whatever a file holds."""
    line = " ".join(text.encode("ascii", "backslashreplace").decode().split())
    return line if len(line) <= 200 else f"{line[:197]}..."


def _escapes(content: bytes) -> bool:
    """Whether a character may be named by its number; that there is no backslash at all is seen at once."""
    return b"\\" in content and b"\\u" in content


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _may_be_huge(content: bytes) -> bool:
    """Whether a number of a text may have no end: a long one, or an exponent of three digits behind a digit.

    Most of a file of values are digits, and most hashes hold an ``e`` between digits, so that a single pattern looks at
    every character several times, and nearly always finds something.
    """
    zeros = content.translate(_ZEROS)
    if b"0" * 300 in zeros:
        return True
    found = (one.span() for one in _EXPONENT.finditer(zeros))
    around = ((zeros[start - 1 : start], zeros[end : end + 1]) for start, end in found)
    return any(before in (b"0", b".") and after in b",]} \r\n\t" for before, after in around)


def _require_finite(value: object) -> None:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, int | float) and not _fits(one):
            raise ValueError("a number without end")


def _fits(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number of hundreds of digits
        return False
