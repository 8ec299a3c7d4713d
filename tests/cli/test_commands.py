"""Commands are short and typed calls, their options are declared once, and what is not used is not loaded."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from harness import api
from harness.cli.group import COMMANDS, function_name, harness

ROOT = Path(__file__).parents[2]
MODULES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "harness" / "cli").glob("*.py")}
LONGEST = 15  # lines of a command
LOADED = 170  # modules that the help may load, the 33 of a bare interpreter among them
UNUSED = {"torch", "transformers", "lm_eval", "datasets", "rich", "numpy", "yaml"}


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """The functions that are commands, each with its module."""
    for module, tree in MODULES.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and any(map(_makes_a_command, node.decorator_list)):
                yield module, node


def _makes_a_command(decorator: ast.expr) -> bool:
    text = ast.unparse(decorator)
    return ".command(" in text or ".group(" in text


FUNCTIONS = {f"{module}.{node.name}": node for module, node in functions()}


def test_every_command_is_found_and_none_is_left_out() -> None:
    context = click.Context(harness)
    names = [name for found in COMMANDS.values() for name in found]
    assert len(names) == len(set(names)) >= 17
    for name in names:
        command = harness.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.help
    listed = {f"{module}.{function_name(name)}" for module, found in COMMANDS.items() for name in found}
    inside = {f"lists.{node.name}" for node in MODULES["lists"].body if _is_below(node, "cov")}
    assert set(FUNCTIONS) == listed | inside | {"group.harness"}
    assert harness.get_command(context, "rn") is None


def _is_below(node: ast.stmt, group: str) -> bool:
    return isinstance(node, ast.FunctionDef) and any(
        ast.unparse(decorator).startswith(f"{group}.command(") for decorator in node.decorator_list
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_command_is_short(name: str) -> None:
    body = FUNCTIONS[name].body
    assert ast.get_docstring(FUNCTIONS[name])
    lines = body[-1].end_lineno - body[1].lineno + 1 if len(body) > 1 else 0  # type: ignore[operator]
    assert lines <= LONGEST


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_command_is_typed_to_the_end(name: str) -> None:
    arguments = FUNCTIONS[name].args
    assert arguments.vararg is None
    assert arguments.kwarg is None
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        assert argument.annotation is not None, argument.arg
        assert "Any" not in ast.unparse(argument.annotation), argument.arg
        assert ast.unparse(argument.annotation) != "object", argument.arg


# One call of ``run`` may be many plans, on many workers; the API gives the record of one.
@pytest.mark.parametrize("name", sorted({one.split(".")[1] for one in FUNCTIONS} & set(api.__all__) - {"run"}))
def test_a_command_of_the_api_is_a_call_of_it(name: str) -> None:
    (module,) = [one.split(".")[0] for one in FUNCTIONS if one.split(".")[1] == name]
    called = [ast.unparse(node.func) for node in ast.walk(MODULES[module]) if isinstance(node, ast.Call)]
    assert called.count(f"api.{name}") == 1


@pytest.mark.parametrize("name", [n for n in MODULES if n != "options"])
def test_no_field_of_options_is_of_any_type(name: str) -> None:
    for node in ast.walk(MODULES[name]):
        assert not (isinstance(node, ast.Name) and node.id == "Any"), node.lineno
        assert "click.option" not in ast.unparse(node) if isinstance(node, ast.Call) else True, node.lineno


def test_each_option_is_declared_once() -> None:
    """In the module of options, by one call; click's own are the version and the help."""
    declared = Counter(
        str(node.args[0].value).partition("/")[0]  # of a pair such as --log-samples/--no-log-samples the first
        for node in ast.walk(MODULES["options"])
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Option" and isinstance(node.args[0], ast.Constant)
    )
    assert len(declared) > 50
    assert {name: count for name, count in declared.items() if count > 1} == {}
    taken = {option for command in _commands(harness) for option in _options(command)}
    assert taken == set(declared)


def _commands(group: click.Group) -> Iterator[click.Command]:
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from _commands(found)
        yield found


def _options(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield from parameter.opts


def test_the_help_costs_nothing() -> None:
    script = (
        "import sys\n"
        "from harness.cli import main\n"
        "main(['--help'])\n"
        f"print(sorted({UNUSED!r} & set(sys.modules)), len(sys.modules))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("Usage: harness [OPTIONS] COMMAND")
    unused, loaded = run.stdout.splitlines()[-1].rsplit(maxsplit=1)
    # What is loaded is what the help costs; a clock would time the machine.
    assert (unused, int(loaded) < LOADED) == ("[]", True), run.stdout


@pytest.mark.parametrize("name", ["run", "fit", "check", "localize", "editors"])
def test_the_help_of_a_command_loads_no_model_library(name: str) -> None:
    script = (
        f"import sys\nfrom harness.cli import main\nmain([{name!r}, '--help'])\nprint({UNUSED!r} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"Usage: harness {name} ")
    assert done.stdout.splitlines()[-1] == "set()"
