"""The tree of errors, their exit codes, and the clause that names what is near."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from harness import errors
from harness.errors import (
    CheckFailed,
    DataError,
    HarnessError,
    ModelError,
    NumericalError,
    RestoreError,
    UsageError,
    near,
)

SOURCES = sorted((Path(__file__).parents[2] / "harness").rglob("*.py"))
KINDS = [HarnessError, UsageError, DataError, ModelError, NumericalError, CheckFailed, RestoreError]


def test_a_failed_check_ends_with_1_and_everything_else_with_2() -> None:
    assert {kind.__name__: kind.exit_code for kind in KINDS} == {
        "HarnessError": 2, "UsageError": 2, "DataError": 2, "ModelError": 2, "NumericalError": 2, "CheckFailed": 1,
        "RestoreError": 1,
    }  # fmt: skip


def test_the_drawn_tree_is_the_real_one() -> None:
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, HarnessError)]
    assert set(classes) == set(KINDS)
    stack: list[str] = []
    for line in (inspect.getdoc(errors) or "").splitlines():
        drawn = re.match(r"^( *(?:[|+\- ]*))(\w+Error|CheckFailed)\b", line)
        if drawn:
            depth = (len(drawn[1]) - 4) // 4
            stack[depth:] = [drawn[2]]
            if depth:
                assert getattr(errors, drawn[2]).__bases__[0].__name__ == stack[depth - 1]
            classes.remove(getattr(errors, drawn[2]))
    assert classes == []  # every error is drawn


@pytest.mark.parametrize(
    ("name", "choices", "clause"),
    [
        ("memt", ["memit", "ft"], " (did you mean memit?)"),
        ("MEMIT", ["memit", "rome"], " (did you mean memit?)"),
        ("nli", ["NLI", "NER"], " (did you mean NLI?)"),
        ("zzz", ["b", "a"], " (there are: a, b)"),
        ("zzz", [f"name{i}" for i in range(13)], ""),
        ("zzz", [], ""),
    ],
)
def test_near(name: str, choices: list[str], clause: str) -> None:
    assert near(name, choices) == clause


def test_near_names_at_most_three() -> None:
    assert near("layer", [f"layer{i}" for i in range(9)]).count("layer") == 3


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_message_is_written_over_several_lines(path: Path) -> None:
    names = {kind.__name__ for kind in KINDS}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            assert not any(isinstance(text, str) and text != "\n" and "\n" in text for text in texts), node.lineno
