"""What names a run: the fields of its plan that differ from their defaults, and the number of the schema.

A field that a later version adds with a default renames no record; a default that changes renames the records that
relied on it, as it should: they are runs of another plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["SCHEMA", "differing", "digest", "record_id"]

SCHEMA = 2
"""Of records: what their files hold, and how their ids are made."""


def record_id(plan: DataclassInstance, schema: int = SCHEMA, leave_out: Collection[str] = ()) -> str:
    """The id of the record of a plan, 16 hex digits.

    Args:
        plan: a frozen dataclass.
        schema: the number of the record's schema.
        leave_out: fields that name nothing here.

    Raises:
        UsageError: a number in it is not finite.
    """
    named = {key: value for key, value in _named(plan).items() if key not in leave_out}
    return digest({"schema": schema, "plan": named})


def differing(plan: DataclassInstance) -> dict[str, Any]:
    """The fields that differ from their defaults, as values that JSON can hold; of a dataclass within, likewise."""
    return {
        field.name: _plain(value)
        for field in fields(plan)
        if not _is_default(field, value := getattr(plan, field.name))
    }


def _named(plan: DataclassInstance) -> dict[str, Any]:
    """The same under the names that ids are made with.

    A field that was called otherwise before keeps that word there (``metadata={"named": ...}``), so that its new name
    renames no record.
    """
    words = {field.name: field.metadata.get("named", field.name) for field in fields(plan)}
    return {words[key]: value for key, value in differing(plan).items()}


def digest(content: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the sha256 of some content's canonical JSON.

    Raises:
        UsageError: a number in it is not finite.
    """
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise UsageError("a plan holds a NaN or an infinity, which no record can keep; give finite numbers") from error
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_default(field: Field[Any], value: object) -> bool:
    if field.default is MISSING and field.default_factory is MISSING:
        return False
    default = field.default if field.default_factory is MISSING else field.default_factory()
    # As JSON has them: True is 1 to Python, and a list is no tuple.
    return json.dumps(_plain(value), sort_keys=True) == json.dumps(_plain(default), sort_keys=True)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _named(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
