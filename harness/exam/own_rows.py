"""Edits that stand in a list: rows as a file of one's own has them, or edits themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.editing.edit import Edit, require_distinct
from harness.errors import DataError, UsageError
from harness.exam import data
from harness.io.cache import cache_folder
from harness.io.files import write_whole

__all__ = ["edits_of_rows", "keep_rows"]

Row = dict[str, Any]
WHERE = "edits"


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
    functions, numbered = _functions(), [(f"row {i}", str(i), one) for i, one in enumerate(given, start=1)]
    functions.usable([row for row in numbered if not isinstance(row[2], Edit)], WHERE)
    found: list[Edit] = []
    for row in numbered:
        found += [row[2]] if isinstance(row[2], Edit) else functions.edits(functions.usable([row], WHERE))
    cases: dict[str, list[Edit]] = {}
    for edit in found:
        cases.setdefault(edit.belongs_to, []).append(edit)
    found = [edit for members in cases.values() for edit in members]
    require_distinct(found, WHERE)
    return found


def keep_rows(given: Sequence[Edit | Mapping[str, object]]) -> Path:
    """The file of the cache that holds a list of edits; its name is the hash of what it holds.

    Raises:
        UsageError, DataError: as :func:`edits_of_rows`; or an edit asks for something else than a likely target.
    """
    edits_of_rows(given)
    rows = _read(given)
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


def _read(given: Sequence[Edit | Mapping[str, object]]) -> list[Row]:
    """Rows of any shape, and edits, as rows of our own."""
    rows = [_row(one) if isinstance(one, Edit) else one for one in given]
    found: list[Row] = _functions().usable([(f"row {i}", str(i), row) for i, row in enumerate(rows, start=1)], WHERE)
    return found


def _functions() -> Any:
    """What reads the edit set ``own``."""
    return data.module(data.TASKS / "edits" / "own" / "functions.py")


def _row(edit: Edit) -> Row:
    """An edit as a row that reads as the same edit."""
    if edit.direction != "likelihood":
        raise DataError(f"edit {edit.id} wants {edit.direction}, which no row can say; hold it with harness.edit")
    old = {} if edit.target_old is None else {"target_old": edit.target_old}
    old |= {} if edit.join is None else {"join": edit.join}
    old |= {} if edit.case is None else {"case": edit.case}
    if edit.subject is None:
        return {"id": edit.id, "prefix": edit.prompt, "suffix": edit.target, **old}
    prompt = edit.prompt if edit.slot is None else edit.text
    return {"id": edit.id, "prompt": prompt, "subject": edit.subject, "target": edit.target, **old}
