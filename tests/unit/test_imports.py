"""Who may import whom, what is public, what prints, and what a quick command must not load."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = """
errors
io
models
patches
editing
methods exam
runs
reports
studies
api editor_kit task_kit
cli
"""
"""The rooms of ``harness/``, the lowest first: each imports those of the lines above it, never one beside it."""
EDITORS_IMPORT = {"errors", "models", "patches", "editing", "methods", "editor_kit"}
TASKS_IMPORT = {"task_kit"}
OLD = {"data", "delta", "editor", "lm", "metrics", "objectives", "patch", "tasks"}
"""Old places of what the two doors offer; tests/unit/test_doors.py holds them."""

LEVEL = {room: level for level, line in enumerate(ORDER.split("\n")) for room in line.split()}
FILES = {p: ".".join(p.relative_to(ROOT).with_suffix("").parts) for p in sorted((ROOT / "harness").rglob("[!_]*.py"))}
HARNESS = {name: path for path, name in FILES.items() if name.split(".")[1] not in OLD}
EDITORS = {f"editors.{path.stem}": path for path in sorted((ROOT / "editors").glob("[!_]*.py"))}
TASKS = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "tasks").rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """The modules of this project that a file imports, wherever in the file; for types alone does not count."""
    tree = ast.parse(path.read_text())
    typing_only = {id(n) for node in ast.walk(tree) if _for_types(node) for part in node.body for n in ast.walk(part)}  # type: ignore[attr-defined]
    return {name for node in ast.walk(tree) if id(node) not in typing_only for name in _modules(node)}


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _modules(node: ast.AST) -> Iterator[str]:
    known = {**HARNESS, **EDITORS}
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports name the whole module"
        names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return (name for name in names if name in known)


def test_the_modules_of_the_harness_stand_in_an_order() -> None:
    graph = {name: imports(path) for name, path in HARNESS.items()}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError and names the circle
    assert order.index("harness.errors") < order.index("harness.models.lm") < order.index("harness.patches.patch")
    assert (
        order.index("harness.editing.editor")
        < order.index("harness.runs.runner")
        < order.index("harness.cli.edit_and_measure")
    )
    assert sum(len(found) for found in graph.values()) > 40  # the graph is not empty


def rooms(path: Path) -> set[str]:
    """The rooms that a file imports from, and ``editors.NAME`` for an editor; the version is everybody's."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {room for alias in node.names for room in _room(alias.name)}
        elif isinstance(node, ast.ImportFrom):
            inside = node.module in ("harness", "editors")
            names = [f"{node.module}.{alias.name}" for alias in node.names] if inside else [str(node.module)]
            found |= {room for name in names for room in _room(name)}
    return found


def _room(module: str) -> set[str]:
    first, *rest = module.split(".")
    if first == "editors":
        return {".".join(["editors", *rest[:1]])}
    return {rest[0] if rest else "the front door"} - {"__version__"} if first == "harness" else set()


def above(room: str, imported: set[str]) -> set[str]:
    """What a room may not import: rooms above it or beside it, and all that is no room."""
    return {other for other in imported - {room} if LEVEL.get(other, len(LEVEL)) >= LEVEL[room]}


def test_every_room_has_its_place_in_the_order() -> None:
    assert {name.split(".")[1] for name in FILES.values()} - OLD <= set(LEVEL)


@pytest.mark.parametrize("name", HARNESS)
def test_a_room_imports_what_stands_below_it(name: str) -> None:
    assert not above(name.split(".")[1], rooms(HARNESS[name]))


@pytest.mark.parametrize("name", EDITORS)
def test_an_editor_is_built_from_the_parts_below_and_knows_no_other_editor(name: str) -> None:
    found = rooms(EDITORS[name])
    assert {"editing", "editor_kit"} & found
    assert found <= EDITORS_IMPORT


def test_the_door_of_editors_offers_what_an_editor_may_import() -> None:
    assert rooms(HARNESS["harness.editor_kit"]) <= EDITORS_IMPORT


@pytest.mark.parametrize("name", TASKS)
def test_a_task_comes_through_one_door(name: str) -> None:
    assert rooms(TASKS[name]) <= TASKS_IMPORT


@pytest.mark.parametrize("path", sorted((ROOT / "tasks").rglob("*.yaml")), ids=lambda path: path.stem)
def test_what_a_task_names_comes_through_the_same_door(path: Path) -> None:
    named = re.findall(r"!function\s+(harness|editors)\.(\w+)", path.read_text())
    assert {room for _, room in named} <= TASKS_IMPORT


def test_the_law_is_kept_by_the_order_alone(tmp_path: Path) -> None:
    """A breach of each kind is seen."""
    file = tmp_path / "breach.py"
    file.write_text(
        "from harness import __version__, cli\nimport harness\nfrom harness.exam import data\n"
        "def late():\n    from editors.memit import Memit\n    import harness.attic.old\n"
    )
    assert rooms(file) == {"cli", "the front door", "exam", "editors.memit", "attic"}
    assert above("studies", rooms(file)) == {"cli", "the front door", "editors.memit", "attic"}
    assert above("methods", {"exam", "models", "methods"}) == {"exam"}


@pytest.mark.parametrize("name", [*HARNESS, *EDITORS])
def test_all_is_what_is_public(name: str) -> None:
    """Every function and class without an underscore."""
    module = importlib.import_module(name)
    path = {**HARNESS, **EDITORS}[name]
    defined = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    own = {n.name for n in defined if not n.name.startswith("_")}
    stated = module.__all__
    assert stated == sorted(stated, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert own <= set(stated)
    assert all(hasattr(module, public) and not public.startswith("_") for public in stated)


@pytest.mark.parametrize("name", [n for n in [*HARNESS, *EDITORS] if not n.startswith("harness.cli.")])
def test_only_the_command_line_prints(name: str) -> None:
    for node in ast.walk(ast.parse({**HARNESS, **EDITORS}[name].read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called != "print", node.lineno
            assert not called.endswith((".print", ".echo", "stdout.write", "stderr.write")), node.lineno


QUICK = """
import sys
import harness
heavy = {"torch", "transformers", "lm_eval", "datasets", "sklearn", "scipy"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
from harness import cli
sys.argv = ["harness", "--help"]
cli.main()
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def test_help_loads_no_heavy_library() -> None:
    done = subprocess.run(
        [sys.executable, "-c", QUICK], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ")
