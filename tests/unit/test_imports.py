"""Who may import whom, what is public, what prints, and what a quick command must not load."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HARNESS = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sorted((ROOT / "harness").rglob("[!_]*.py"))}
EDITORS = {f"editors.{path.stem}": path for path in sorted((ROOT / "editors").glob("[!_]*.py"))}
BELOW = {
    "arch", "console", "contexts", "delta", "descent", "editor", "ensemble", "errors", "finetuning", "hypernet", "keys",
    "lm", "locate", "objectives", "patch", "rankone", "retrieval", "saved", "stats", "taps", "targets", "value",
}  # fmt: skip
"""What an editor is built from."""


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
    assert order.index("harness.editing.editor") < order.index("harness.runs.runner") < order.index("harness.cli")
    assert sum(len(found) for found in graph.values()) > 40  # the graph is not empty


def test_the_harness_knows_no_editor_by_name() -> None:
    for name, path in HARNESS.items():
        assert not imports(path) & set(EDITORS), name


@pytest.mark.parametrize("name", EDITORS)
def test_an_editor_is_built_from_the_parts_below_and_knows_no_other_editor(name: str) -> None:
    found = imports(EDITORS[name])
    assert "harness.editing.editor" in found
    assert found <= {f"harness.{part}" for part in BELOW}


def test_nothing_imports_the_command_line() -> None:
    for name, path in {**HARNESS, **EDITORS}.items():
        assert "harness.cli" not in imports(path), name


@pytest.mark.parametrize("name", [*HARNESS, *EDITORS])
def test_all_is_what_is_public(name: str) -> None:
    """Every function and class without an underscore; commands of the command line are called by click alone."""
    module = importlib.import_module(name)
    path = {**HARNESS, **EDITORS}[name]
    defined = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    own = {n.name for n in defined if not n.name.startswith("_") and not (name == "harness.cli" and n.decorator_list)}
    stated = module.__all__
    assert stated == sorted(stated, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert own <= set(stated)
    assert all(hasattr(module, public) and not public.startswith("_") for public in stated)


@pytest.mark.parametrize("name", [n for n in [*HARNESS, *EDITORS] if n != "harness.cli"])
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
