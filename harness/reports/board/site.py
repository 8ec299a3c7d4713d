"""Folders of records to a site."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.editing.registry import editor_names, find
from harness.errors import DataError, UsageError
from harness.io.files import beside, discard
from harness.reports.board.cards import card_of
from harness.reports.board.family import Family, family_key, make_family
from harness.reports.board.pages import Pages
from harness.reports.cells import CHANCE, LEGEND, VARIANTS
from harness.reports.leaderboard import section_order
from harness.runs.record_file import read_record, record_paths

__all__ = ["Built", "write_board"]

Json = dict[str, Any]
MARK = "board.json"
"""The file that says that a folder is a board, which the next one may replace."""


@dataclass(frozen=True)
class Built:
    """What was made.

    Attributes:
        records: the pages of records.
        sections: the tables.
    """

    records: int
    sections: int


def write_board(folders: Sequence[Path], to: Path) -> Built:
    """Write a site of the records in some folders; it appears whole, or what was there stays.

    Args:
        folders: each with records in it or in its ``records`` folder.
        to: the folder of the site, which is new, empty, or a site that this function made.

    Raises:
        UsageError: the folder holds something else, or cannot be written.
        DataError: a folder holds no record, one of them cannot be read or says something else than its documents, or
            two claim one id.
    """
    paths = _paths(folders)
    _require_free(to)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with beside(to) as temporary:
            built = _build(paths, temporary)
            _put_in_place(temporary, to)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(f"{to}: cannot be written ({reason}); choose another folder with --to") from error
    return built


def _paths(folders: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; give the folder that --output named")
        here = record_paths(folder)
        if not here:
            raise DataError(f"{folder}: holds no record (*.json); make one with: harness run --output {folder}")
        found += here
    return list(dict.fromkeys(found))


def _require_free(to: Path) -> None:
    if to.is_file() or (to.is_dir() and any(to.iterdir()) and not (to / MARK).is_file()):
        raise UsageError(f"{to}: holds something that is no board; give --to a new folder")


def _put_in_place(temporary: Path, to: Path) -> None:
    """The new site where the old one was; a rename each, so that a reader sees one of them whole."""
    with beside(to.with_name(f"{to.name}.old")) as old:
        if to.exists():
            to.rename(old)
        temporary.rename(to)
        discard(old)


def _build(paths: Sequence[Path], folder: Path) -> Built:
    pages = Pages(folder)
    families: dict[str, list[Path]] = {}
    ids: dict[str, Path] = {}
    for path in paths:
        record = read_record(path)
        if record.id in ids:
            _require_same(path, ids[record.id])
            continue
        ids[record.id] = path
        families.setdefault(family_key(record), []).append(path)
    made = [make_family(members, pages) for members in families.values()]
    return _whole(made, pages)


def _require_same(path: Path, other: Path) -> None:
    """Two files may hold one record; two records may not claim one id."""
    if read_record(path).to_json() != read_record(other).to_json():
        raise DataError(f"{path}: claims the id of {other} with other numbers; leave one of them out")


def _whole(made: Iterable[Family], pages: Pages) -> Built:
    """The pages of all families together."""
    families = list(made)
    sections = sorted((s for one in families for s in one.sections), key=lambda s: section_order(s["protocol"]))
    records = sorted((r for one in families for r in one.records), key=lambda r: r["name"])
    rows = [row for one in families for row in one.rows]
    editors, tasks = _by(rows, "editor"), _by_task(rows)
    pages.static()
    links = {"editors": _links(editors), "tasks": _links(tasks)}
    pages.index(sections, records, legend=[*LEGEND, CHANCE, VARIANTS], **links)
    for name, slug in links["editors"].items():
        pages.page(f"editors/{slug}.html", "editor", name=name, rows=editors[name], about=_about(name))
    for name, slug in links["tasks"].items():
        pages.page(
            f"tasks/{slug}.html", "task", name=name, rows=tasks[name], card=card_of(name), editors=links["editors"]
        )
    pages.write(MARK, "{}\n")
    return Built(len(records), len(sections))


def _by(rows: Iterable[Json], key: str) -> dict[str, list[Json]]:
    found: dict[str, list[Json]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return dict(sorted(found.items()))


def _by_task(rows: Iterable[Json]) -> dict[str, list[Json]]:
    found: dict[str, list[Json]] = {}
    for row in rows:
        for task in row["tasks"]:
            found.setdefault(task, []).append(row)
    return dict(sorted(found.items()))


def _links(names: Iterable[str]) -> dict[str, str]:
    """Names, each with a file name of its own."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9+._]+", "-", name).strip("-.")[:80] or "unnamed"
        taken = {slug.lower() for slug in found.values()}
        found[name] = next(
            s for s in (plain, *(f"{plain}-{i}" for i in range(2, len(taken) + 3))) if s.lower() not in taken
        )
    return found


def _about(name: str) -> list[Mapping[str, str]]:
    """What each part of a shipped editor says of itself; nothing of one that is not installed here."""
    known = set(editor_names())
    return [{"name": part, "text": _docs(part)} for part in name.split("+") if part in known]


def _docs(part: str) -> str:
    import inspect
    import sys

    cls = find(part)
    module = sys.modules[cls.__module__]
    return "\n\n".join(text for text in (inspect.getdoc(module), inspect.getdoc(cls)) if text)
