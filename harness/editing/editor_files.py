"""The files of the editors that ship, read and not run: what lists them needs no torch."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

__all__ = ["docs_of_file", "shipped_editors"]


def shipped_editors() -> dict[str, Path]:
    """The editors that ship: name -> file."""
    path = list(importlib.import_module("editors").__path__)
    found = (module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))
    return {name: Path(path[0]) / f"{name}.py" for name in found}


def docs_of_file(path: Path, name: str) -> str:
    """What an editor says of itself: the docstrings of its file and of its class.

    Args:
        path: the file.
        name: the editor, as its class names it.
    """
    module = ast.parse(path.read_text(encoding="utf-8"))
    classes = [node for node in module.body if isinstance(node, ast.ClassDef) and _is_named(node, name)]
    said = [ast.get_docstring(module), *(ast.get_docstring(one) for one in classes)]
    return "\n\n".join(text for text in said if text)


def _is_named(node: ast.ClassDef, name: str) -> bool:
    """Whether the body of a class says ``name: ClassVar[str] = "..."``."""
    said = (one for one in node.body if isinstance(one, ast.AnnAssign | ast.Assign))
    named = (one.value for one in said if "name" in (ast.unparse(t) for t in _targets(one)))
    return any(isinstance(value, ast.Constant) and value.value == name for value in named)


def _targets(node: ast.AnnAssign | ast.Assign) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]
