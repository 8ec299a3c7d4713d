"""The pages of all families together: the overview, comparisons, editors and tasks."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.editing.editor_files import docs_of_file, installed_editors, shipped_editors
from harness.reports.board.cards import card_of
from harness.reports.board.family import Family
from harness.reports.board.pages import Pages
from harness.reports.cells import CHANCE, LEGEND, STANDINGS, VARIANTS
from harness.reports.leaderboard import section_order

__all__ = ["write_shared_pages"]

Json = dict[str, Any]

FIGURES = 40
"""Of one kind on a page."""


def write_shared_pages(families: Sequence[Family], pages: Pages) -> None:
    """Write the pages of all families together.

    Args:
        families: of the site.
        pages: what writes pages.
    """
    sections = sorted((s for one in families for s in one.sections), key=lambda s: section_order(s["protocol"]))
    records = sorted((r for one in families for r in one.records), key=lambda r: r["name"])
    rows = [row for one in families for row in one.rows]
    places = _places(rows)
    records = [record | {"rows": places.get(record["name"], [])} for record in records]
    editors, tasks = _by(rows, "editor"), _by_task(rows)
    pages.static()
    links = {"editors": _links(editors), "tasks": _links(tasks)}
    pages.index(sections, records, legend=[*LEGEND, CHANCE, VARIANTS, STANDINGS], **links)
    figures = sorted((figure for one in families for figure in one.figures), key=lambda f: f["name"])
    drawn = _by(figures, "editor")
    for name, slug in links["editors"].items():
        shown = drawn.get(name, [])
        pages.page(
            f"editors/{slug}.html",
            "editor",
            name=name,
            rows=editors[name],
            about=_about(name),
            beliefs=[one for one in shown if "belief" in one][:FIGURES],
            curves=[one for one in shown if "retention" in one][:FIGURES],
            most=FIGURES,
        )
    for name, slug in links["tasks"].items():
        pages.page(
            f"tasks/{slug}.html", "task", name=name, rows=tasks[name], card=card_of(name), editors=links["editors"]
        )


def _places(rows: Iterable[Json]) -> dict[str, list[tuple[str, int]]]:
    """Record -> the tables in which it stands, and its place there."""
    found: dict[str, list[tuple[str, int]]] = {}
    for row in rows:
        for name in row["records"]:
            found.setdefault(name, []).append((row["section"], row["place"]))
    return found


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
    """What each part of an editor says of itself; nothing of one that is not installed here."""
    shipped, installed = shipped_editors(), {point.name for point in installed_editors()}
    known = [part for part in name.split("+") if part in shipped or part in installed]
    return [
        {"name": part, "text": docs_of_file(shipped[part], part) if part in shipped else _docs_of_installed(part)}
        for part in known
    ]


def _docs_of_installed(part: str) -> str:
    from harness.editing.registry import find

    cls = find(part)
    module = sys.modules[cls.__module__]
    return "\n\n".join(text for text in (inspect.getdoc(module), inspect.getdoc(cls)) if text)
