"""The fields of an editor as a user may set them: ranges that stand in a field's type, and values turned into it."""

from __future__ import annotations

import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import Field, dataclass, fields
from typing import Annotated, Any

from harness.errors import UsageError

__all__ = [
    "Count",
    "NotNegative",
    "Positive",
    "Range",
    "Share",
    "cast",
    "hints",
    "plain",
    "require_effect",
    "require_range",
    "require_some",
    "settable",
    "with_newer",
]


@dataclass(frozen=True)
class Range:
    """What a number may be; stands in a field's type: ``lr: Annotated[float, Range(0, open=True)]``.

    Attributes:
        low: the least value.
        high: the greatest value.
        open: whether ``low`` itself is excluded.
    """

    low: float = -math.inf
    high: float = math.inf
    open: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value lies inside."""
        return (self.low < value if self.open else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        least = "" if math.isinf(self.low) else f"{'above' if self.open else 'at least'} {self.low:g}"
        most = "" if math.isinf(self.high) else f"at most {self.high:g}"
        return " and ".join(filter(None, (least, most)))


Positive = Annotated[float, Range(0, open=True)]
"""A number above 0."""
NotNegative = Annotated[float, Range(0)]
"""A number of at least 0."""
Share = Annotated[float, Range(0, 1)]
"""A number from 0 to 1."""
Count = Annotated[int, Range(1)]
"""A whole number of at least 1."""


def settable(cls: type[Any]) -> dict[str, Field[object]]:
    """The hyperparameters of an editor: its fields but for what it wraps or has learned."""
    return {f.name: f for f in fields(cls) if not f.metadata.get("hidden")}


def plain(value: object) -> object:
    """A value as JSON holds it: tuples become lists."""
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def with_newer(cls: type[Any], named: Mapping[str, object]) -> dict[str, object]:
    """The hyperparameters that a record names, and those that its editor has had since, as what it did then.

    That is the default, or where another default was thought better the field's metadata ``before``.

    Args:
        cls: the editor as it is now.
        named: the hyperparameters in the record.
    """
    newer = {n: plain(f.metadata.get("before", f.default)) for n, f in settable(cls).items() if n not in named}
    return {**named, **newer}


@functools.cache
def hints(cls: type[Any]) -> dict[str, object]:
    """The types of the fields of a class, with their ranges."""
    return typing.get_type_hints(cls, include_extras=True)


def _options(wanted: object) -> tuple[object, ...]:
    """The members of a union, or the type itself."""
    return typing.get_args(wanted) if typing.get_origin(wanted) in (types.UnionType, typing.Union) else (wanted,)


def _bare(option: object) -> object:
    """A type without its ranges."""
    return option.__origin__ if hasattr(option, "__metadata__") else option  # type: ignore[attr-defined]


def require_range(editor: str, key: str, value: object, *, wanted: object) -> None:
    """Refuse numbers outside the ranges in a field's type, also inside a tuple.

    Args:
        editor: the editor's name, for the error.
        key: the field's name, for the error.
        value: what it is set to.
        wanted: the field's type.

    Raises:
        UsageError: a number is outside its range.
    """
    for option in _options(wanted):
        if isinstance(value, tuple) and typing.get_origin(option) is tuple:
            for item in value:
                require_range(editor, key, item, wanted=typing.get_args(option)[0])
        for limit in getattr(option, "__metadata__", ()):
            if isinstance(limit, Range) and isinstance(value, int | float) and not limit.holds(value):
                raise UsageError(f"{editor}: '{key}' is {value!r}, expected {limit}")


def require_some(editor: str, key: str, value: object) -> None:
    """Refuse what no default of a field can mean: a number without end, a list of nothing.

    Args:
        editor: the editor's name, for the error.
        key: the field's name, for the error.
        value: what it is set to.

    Raises:
        UsageError: it is not finite, or an empty list.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{editor}: '{key}' is {value!r}, expected a finite number")
    if value == ():
        raise UsageError(f"{editor}: '{key}' is an empty list, expected at least one; leave it out for the default")


def require_effect(editor: Any, names: Iterable[str], *, where: str) -> None:
    """Refuse settings that are without effect beside another one, but for their defaults.

    Args:
        editor: the editor.
        names: the fields that are without effect.
        where: beside what, for the error.

    Raises:
        UsageError: one of them is set.
    """
    for name in names:
        if getattr(editor, name) != settable(type(editor))[name].default:
            raise UsageError(f"{editor.name}: '{name}' has no effect {where}")


def cast(editor: str, key: str, value: object, *, wanted: object) -> object:
    """The value as the field's type; a list becomes a tuple, an int a float, a lone value a tuple of one.

    Args:
        editor: the editor's name, for the error.
        key: the field's name, for the error.
        value: what the user gave.
        wanted: the field's type.

    Raises:
        UsageError: the value cannot be of that type.
    """
    for option in map(_bare, _options(wanted)):
        if option is type(None) and value is None:
            return None
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option in (bool, str, int) and type(value) is option:
            return value
        if typing.get_origin(option) is tuple:
            item = typing.get_args(option)[0]
            values = value if isinstance(value, list | tuple) else [value]
            with suppress(UsageError):  # told of the whole list below
                if all(v is not None for v in values):
                    return tuple(cast(editor, key, v, wanted=item) for v in values)
        if typing.get_origin(option) is typing.Literal and value in typing.get_args(option):
            return value
    expected = " or ".join(map(_said, _options(wanted)))
    form = "[VALUE]" if any(typing.get_origin(_bare(option)) is tuple for option in _options(wanted)) else "VALUE"
    raise UsageError(f"{editor}: '{key}' is {value!r}, expected {expected}; for example --set {key}={form}")


def _said(option: object) -> str:
    """A type, as an error names it."""
    limits = [str(limit) for limit in getattr(option, "__metadata__", ())]
    bare = _bare(option)
    if typing.get_origin(bare) is tuple:
        return f"a list of {_said(typing.get_args(bare)[0])}"
    if typing.get_origin(bare) is typing.Literal:
        return " or ".join(map(str, typing.get_args(bare)))
    return " ".join(["null" if bare is type(None) else getattr(bare, "__name__", str(bare)), *limits])
