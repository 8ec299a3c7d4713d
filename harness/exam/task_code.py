"""Which files a name of a task stands for, and whether code is among what they hold."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from harness.errors import UsageError
from harness.exam import data

__all__ = ["code_in", "yamls_of"]

_OURS = re.compile(r"harness\.task_kit\.[A-Z]\w*")
"""The classes that a task may name with ``!function`` and that hold no code of its own."""


def yamls_of(name: str) -> list[Path] | None:
    """The YAMLs that a name stands for, a file, a pattern or a folder; None where it is the name of a task.

    Raises:
        UsageError: there is no such file, or the folder has none.
    """
    if name.endswith((".yaml", ".yml")):
        files = sorted(Path(one) for one in glob.glob(name))  # noqa: PTH207  # a pattern may be absolute
        what = "no such file"
    elif "/" in name and Path(name).is_dir():
        files, what = sorted(Path(name).glob("*.yaml")), "the folder has no YAML"
    else:
        return None
    if not files:
        raise UsageError(f"--tasks {name}: {what}; give the YAML of a task, or the name of one")
    return files


def code_in(yamls: Iterable[Path]) -> Path | None:
    """The first file that holds code which runs when the tasks of these YAMLs are built; None where none does.

    Code is a ``functions.py`` beside a YAML, and whatever a YAML, or one that it includes, names with ``!function`` but
    the classes of ``harness.task_kit``.

    Raises:
        DataError: a YAML cannot be read.
    """
    seen: set[Path] = set()
    for path in yamls:
        beside = path.parent / "functions.py"
        if beside.is_file():
            return beside
        found = _naming(path, seen)
        if found is not None:
            return found
    return None


def _naming(path: Path, seen: set[Path]) -> Path | None:
    """The YAML itself, or one that it includes, that names code."""
    if path.resolve() in seen or not path.is_file():
        return None
    seen.add(path.resolve())
    nodes = list(_nodes(data.compose_yaml(path)))
    if any(node.tag == "!function" and not _is_ours(node, path.parent) for node in nodes):
        return path
    more = [Path(os.path.normpath(path.parent / name)) for node in nodes for name in _included(node)]
    return next((found for one in more if (found := _naming(one, seen))), None)


def _is_ours(node: yaml.Node, folder: Path) -> bool:
    """Whether a function is this package's; lm-eval looks for a file of that name beside the YAML first."""
    return bool(_OURS.fullmatch(str(node.value))) and not (folder / "harness" / "task_kit.py").exists()


def _nodes(node: yaml.Node | None) -> Iterator[yaml.Node]:
    """All nodes of a document, each once, though an anchor may stand in many places."""
    waiting, seen = [node] if node is not None else [], set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, yaml.MappingNode):
            waiting += [part for pair in one.value for part in pair]
        elif isinstance(one, yaml.SequenceNode):
            waiting += one.value


def _included(node: yaml.Node) -> Iterator[str]:
    """The files that a mapping includes."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "include":
                listed = value.value if isinstance(value, yaml.SequenceNode) else [value]
                yield from (one.value for one in listed if isinstance(one, yaml.ScalarNode))
