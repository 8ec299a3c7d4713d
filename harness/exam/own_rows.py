"""Edits that stand in a list: rows as a file of one's own has them, or edits themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.editing.edit import Edit
from harness.errors import DataError, UsageError
from harness.exam import data
from harness.io.cache import cache_folder
from harness.io.files import write_whole

__all__ = ["edits_of_rows", "keep_rows"]

Row = dict[str, Any]


def edits_of_rows(given: Sequence[Edit | Mapping[str, object]]) -> list[Edit]:
    """The edits of a list; a row without an ``id`` is named by its place, from 1.

    Args:
        given: edits, or rows of ``prompt, subject, target`` (the prompt with ``{}`` or the subject written out) or of
            ``prefix, suffix``.

    Raises:
        UsageError: it is no list, or it is empty.
        DataError: a row cannot be used, or an id occurs twice; names the place.
    """
    if isinstance(given, Mapping) or not isinstance(given, Sequence):
        raise UsageError(f"edits is of type {type(given).__name__}, expected a set's name, a file, or a list of rows")
    if not given:
        raise UsageError("edits is empty; give at least one row of prompt, subject and target, or prefix and suffix")
    found = [one if isinstance(one, Edit) else _edit(one, place) for place, one in enumerate(given, start=1)]
    ids = [edit.id for edit in found]
    for name in ids:
        if ids.count(name) > 1:
            raise DataError(f"edits: the id {name} occurs twice; give each row an id of its own")
    return found


def keep_rows(given: Sequence[Edit | Mapping[str, object]]) -> Path:
    """The file of the cache that holds a list of edits; its name is the hash of what it holds.

    Raises:
        UsageError, DataError: as :func:`edits_of_rows`; or an edit asks for something else than a likely target.
    """
    edits_of_rows(given)
    rows = [_row(one) if isinstance(one, Edit) else {"id": str(place), **one} for place, one in enumerate(given, 1)]
    try:
        lines = [json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) for row in rows]
    except (TypeError, ValueError) as error:
        raise DataError(f"edits: a row holds what JSON cannot say ({error}); give texts, numbers and lists") from error
    content = "".join(line + "\n" for line in lines).encode()
    path = cache_folder() / "edits" / f"rows-{hashlib.sha256(content).hexdigest()[:16]}.jsonl"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    return path


def _edit(row: object, place: int) -> Edit:
    """One row as the edit set ``own`` reads it."""
    if not isinstance(row, Mapping):
        raise DataError(
            f"edits, row {place}: is of type {type(row).__name__}, expected an Edit, or prompt, subject ..."
        )
    named = {"id": str(place), **row}
    functions: Any = data.module(data.TASKS / "edits" / "own" / "functions.py")
    try:
        found: Edit = functions.edit(named | {"id": str(named["id"])})
    except DataError as error:
        raise DataError(f"edits, row {place}: {error}") from None
    return found


def _row(edit: Edit) -> Row:
    """An edit as a row that reads as the same edit."""
    if edit.direction != "likelihood":
        raise DataError(f"edit {edit.id} wants {edit.direction}, which no row can say; hold it with harness.edit")
    old = {} if edit.target_old is None else {"target_old": edit.target_old}
    if edit.subject is None:
        return {"id": edit.id, "prefix": edit.prompt, "suffix": edit.target, **old}
    return {"id": edit.id, "prompt": edit.prompt, "subject": edit.subject, "target": edit.target, **old}
