#!/usr/bin/env python3
"""Draws ``docs/images/rooms.svg`` from the imports of the code: which room is built on which.

An arrow that follows from others is left out, so that the picture shows the order and not every import.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs/images/rooms.svg"
ROOMS = {
    "cli": (0, "what a person types"),
    "api": (0, "what a program calls"),
    "tasks": (1, "one data set, one folder"),
    "task_kit": (1, "what a task imports"),
    "studies": (0, "tracing, localisation, sweeps"),
    "reports": (0, "records to tables and curves"),
    "runs": (0, "plan to record"),
    "editors": (-2, "one method, one file"),
    "editor_kit": (-1, "what an editor can import"),
    "exam": (0.5, "tasks, scores, statistics"),
    "methods": (-0.5, "keys, values, second moments"),
    "editing": (0, "Edit, Editor, order of edits"),
    "patches": (0, "changes of a model"),
    "models": (0, "models and their parts"),
    "io": (0, "files, tensors, progress"),
    "errors": (0, "the tree of errors"),
}
"""Each room: its column, 0 in the middle, and what it holds."""
WIDTH, HEIGHT, GAP, RISE = 190, 46, 30, 40
Graph = Mapping[str, set[str]]


def main() -> None:
    """Write the picture."""
    PICTURE.write_text(svg(reduced(imports())), encoding="utf-8")


def imports() -> dict[str, set[str]]:
    """The rooms that each room imports."""
    graph: dict[str, set[str]] = {room: set() for room in ROOMS if any(files(room))}
    for room, found in graph.items():
        found.update(name for path in files(room) for name in _imported(path) if name in graph and name != room)
    return graph


def files(room: str) -> Iterator[Path]:
    """The files of a room."""
    above = ROOT if room in ("editors", "tasks") else ROOT / "harness"
    yield from (above / room).rglob("*.py")
    if (above / f"{room}.py").is_file():
        yield above / f"{room}.py"


def _imported(path: Path) -> Iterator[str]:
    """The rooms that a file imports; what it imports for types alone counts where it hands these names on."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    door = path.stem in ("api", "task_kit")
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not door
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types or not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        module = node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
        if module == "harness":
            yield from (alias.name for alias in node.names)
        elif module.startswith("harness."):
            yield module.split(".")[1]


def reduced(graph: Graph) -> dict[str, set[str]]:
    """The same order with as few arrows as possible (transitive reduction)."""
    below: dict[str, set[str]] = {}
    for room in TopologicalSorter(graph).static_order():
        below[room] = graph[room].union(*(below[lower] for lower in graph[room]))
    return {room: {a for a in low if not any(a in below[b] for b in low)} for room, low in graph.items()}


def floors(graph: Graph) -> dict[str, int]:
    """How many rooms stand below a room, one on top of the other."""
    found: dict[str, int] = {}
    for room in TopologicalSorter(graph).static_order():
        found[room] = 1 + max((found[lower] for lower in graph[room]), default=-1)
    return found


def svg(graph: Graph) -> str:
    """The picture of a graph: a box a room, each above what it imports."""
    floor = floors(graph)
    top = max(floor.values())
    left = min(column for column, _ in ROOMS.values())
    right = max(column for column, _ in ROOMS.values())
    width = (right - left + 1) * (WIDTH + GAP)
    places = {
        room: ((column - left + 0.5) * (WIDTH + GAP), 20 + (top - floor[room]) * (HEIGHT + RISE))
        for room, (column, _) in ROOMS.items()
        if room in floor
    }
    arrows = [_arrow(places[room], places[lower]) for room in places for lower in sorted(graph[room])]
    boxes = [_box(room, *places[room]) for room in places]
    height = (top + 1) * (HEIGHT + RISE)
    return "\n".join([_HEAD.format(width=f"{width:g}", height=height), *arrows, *boxes, "</svg>", ""])


_HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">
<title>The rooms of the project, each above what it imports</title>
<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">
<path d="M0,0 L8,4 L0,8 z" fill="#7986cb"/></marker></defs>"""


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """From the lower edge of a box to the upper one of another; around the boxes where floors lie between them."""
    (x, y), (to_x, to_y) = start, end
    if to_y - y > HEIGHT + RISE:
        side, height = x - WIDTH / 2, y + HEIGHT / 2
        path = f"M{side:g},{height:g} C{to_x:g},{height:g} {to_x:g},{height + RISE:g} {to_x:g},{to_y:g}"
    else:
        y += HEIGHT
        middle = (y + to_y) / 2
        path = f"M{x:g},{y:g} C{x:g},{middle:g} {to_x:g},{middle:g} {to_x:g},{to_y:g}"
    return f'<path d="{path}" fill="none" stroke="#7986cb" stroke-width="1.5" marker-end="url(#tip)"/>'


def _box(room: str, x: float, y: float) -> str:
    fill = "#fff3e0" if room in ("editors", "tasks") else "#e8eaf6"
    return (
        f'<rect x="{x - WIDTH / 2:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" '
        f'fill="{fill}" stroke="#3f51b5"/>'
        f'<text x="{x:g}" y="{y + 19:g}" text-anchor="middle" font-size="14" font-weight="bold">{room}</text>'
        f'<text x="{x:g}" y="{y + 36:g}" text-anchor="middle" font-size="11" fill="#455a64">{ROOMS[room][1]}</text>'
    )


if __name__ == "__main__":
    main()
