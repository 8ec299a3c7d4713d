"""Every public function of three or more parameters says what each of them is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from harness.cli.group import harness

ROOT = Path(__file__).parents[2]

ROOMS = ("harness", "editors")

FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def functions(source: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The public functions and methods of a module, by their names."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                    yield f"{node.name}.{part.name}", part


def parameters(node: ast.FunctionDef) -> list[str]:
    """The names of its parameters, without the instance or the class."""
    given = node.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, [given.vararg, given.kwarg])]
    return [one.arg for one in named if one.arg not in ("self", "cls") and not one.arg.startswith("_")]


def documented(text: str) -> set[str]:
    """The names that the section ``Args:`` explains."""
    section = re.search(r"^( *)Args:\n((?:\1 +.*\n|\n)*)", text + "\n", re.MULTILINE)
    if section is None:
        return set()
    indent = re.escape(section.group(1)) + " {4}"
    lines = re.findall(rf"^{indent}([\w*, ]+):\s", section.group(2), re.MULTILINE)
    return {name.strip().lstrip("*") for line in lines for name in line.split(",")}


def classes() -> dict[str, ast.ClassDef]:
    """All classes of the project by name."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def inherited(name: str, known: dict[str, ast.ClassDef]) -> set[str]:
    """What the classes above ``Class.method`` say of that method's parameters."""
    cls, dot, method = name.rpartition(".")
    bases = [base.id for base in known[cls].bases if isinstance(base, ast.Name) and base.id in known] if dot else []
    said: set[str] = set()
    for base in bases:
        own = [part for part in known[base].body if isinstance(part, ast.FunctionDef) and part.name == method]
        said |= {one for part in own for one in documented(ast.get_docstring(part) or "")}
        said |= inherited(f"{base}.{method}", known)
    return said


def is_command(node: ast.FunctionDef) -> bool:
    """Whether it is a command of the command line: the help of its options says what it takes."""
    made = [part.func for part in node.decorator_list if isinstance(part, ast.Call)]
    return any(isinstance(one, ast.Attribute) and one.attr == "command" for one in made)


def undocumented(source: str, known: dict[str, ast.ClassDef]) -> list[str]:
    """Each public function of three or more parameters, with those that no docstring explains.

    What an overriding method takes is said where the method is first declared.
    """
    found = []
    for name, node in functions(source):
        wanted = parameters(node)
        said = documented(ast.get_docstring(node) or "") | inherited(name, known)
        missing = [one for one in wanted if one not in said]
        if len(wanted) >= 3 and missing and not is_command(node):
            found.append(f"{name}: {', '.join(missing)}")
    return found


@pytest.fixture(scope="module")
def known() -> dict[str, ast.ClassDef]:
    return classes()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_parameter_is_explained(path: Path, known: dict[str, ast.ClassDef]) -> None:
    assert undocumented(path.read_text(encoding="utf-8"), known) == []


EXAMPLE = '''
class Parent:
    def edit(self, lm, edits, memory):
        """Edit.

        Args:
            lm: the model.
            edits: what shall hold,
                in any order.
            memory: what an earlier call left.
        """

class Child(Parent):
    def edit(self, lm, edits, memory):
        """Inherited."""

    def other(self, lm, edits, *, memory):
        """Two are named.

        Args:
            lm, edits: the model and the edits.

        Raises:
            memory: this is no section of parameters.
        """

def few(lm, edits):
    """Two need no list."""

def none(a, b, *rest):
    """One line."""

def _private(a, b, c):
    """Nobody sees it."""
'''


def test_what_is_left_out_is_found() -> None:
    known = {node.name: node for node in ast.parse(EXAMPLE).body if isinstance(node, ast.ClassDef)}
    assert undocumented(EXAMPLE, known) == ["Child.other: memory", "none: a, b, rest"]


def test_no_file_is_left_out() -> None:
    assert len(FILES) > 150


def commands(group: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command below a group, with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        one = group.get_command(context, name)
        assert one is not None
        if isinstance(one, click.Group):
            yield from commands(one, f"{above}{name} ")
        else:
            yield f"{above}{name}", one


def test_every_option_of_the_command_line_is_explained() -> None:
    made = dict(commands(harness))
    options = [(name, part) for name, one in made.items() for part in one.params if isinstance(part, click.Option)]
    assert len(made) > 15 and len(options) > 100
    assert [f"{name} {part.opts[0]}" for name, part in options if not part.help] == []
