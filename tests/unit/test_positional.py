"""Nobody counts places: a public function takes at most three arguments by their place, the others by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST = 3

EXCEPTIONS = {
    "harness/api.py: edit": "the front door is called as a sentence: model, tokenizer, editor, edits",
    "harness/api.py: run": "the front door is called as a sentence: model, editor, edits, tasks",
    "harness/exam/adapter.py: EditedLM.tok_batch_encode": "lm-eval's signature",
    "harness/models/backpack.py: BackpackForCausalLM.forward": "the signature of models in transformers",
    "harness/models/backpack.py: BackpackModel.forward": "the signature of models in transformers",
}


def functions(source: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The public functions and methods of a module, by their names."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                    yield f"{node.name}.{part.name}", part


def by_place(node: ast.FunctionDef) -> list[str]:
    """The parameters that may be given by their place, without the instance or the class."""
    given = [*node.args.posonlyargs, *node.args.args]
    return [one.arg for one in given if one.arg not in ("self", "cls")]


def too_many(source: str) -> list[str]:
    return [name for name, node in functions(source) if len(by_place(node)) > MOST]


FILES = sorted((ROOT / "harness").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_more_than_three_arguments_go_by_place(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    assert [name for name in too_many(path.read_text(encoding="utf-8")) if f"{place}: {name}" not in EXCEPTIONS] == []


def test_every_exception_is_still_one() -> None:
    found = {f"{p.relative_to(ROOT).as_posix()}: {name}" for p in FILES for name in too_many(p.read_text("utf-8"))}
    assert set(EXCEPTIONS) == found


def test_what_takes_too_many_is_found() -> None:
    functions = "def a(x, y, z, *, w): ...\ndef b(x, y, z, w): ...\n"
    methods = "class C:\n    def c(self, x, y, z): ...\n    def d(self, x, y, /, z, w): ...\n"
    assert too_many(functions + methods) == ["b", "C.d"]
