"""The editors that ship and those of installed packages, read and not run: what lists them needs no torch."""

from __future__ import annotations

import ast
import functools
import importlib
import pkgutil
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

__all__ = ["docs_of_file", "installed_editors", "shipped_editors"]


def shipped_editors() -> dict[str, Path]:
    """The editors that ship: name -> file."""
    folder = importlib.import_module("editors").__path__[0]
    return dict(_files(folder, _changed(folder)))


@functools.lru_cache(maxsize=1)
def _files(folder: str, changed: int) -> dict[str, Path]:  # noqa: ARG001  (what is kept is kept until it changes)
    found = (module.name for module in pkgutil.iter_modules([folder]) if not module.name.startswith("_"))
    return {name: Path(folder) / f"{name}.py" for name in found}


def installed_editors() -> tuple[EntryPoint, ...]:
    """The entry points of the editors of installed packages.

    To find them, the metadata of every installed package is read: some 30 ms, which whoever asks for editors by the
    thousand need not spend each time. They are read again where a package was installed or removed since.
    """
    return _points(tuple((place, _changed(place)) for place in sys.path))


@functools.lru_cache(maxsize=1)
def _points(places: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:  # noqa: ARG001  (as above)
    return tuple(entry_points(group="harness.editors"))


def _changed(folder: str) -> int:
    """When something was last added to a folder or taken from it, in nanoseconds; 0 where it is not there."""
    try:
        return Path(folder or ".").stat().st_mtime_ns
    except OSError:
        return 0


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
