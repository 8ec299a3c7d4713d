"""What names a task: what its YAML says, its version among it, and the rows that it asks about.

The Python beside a YAML is no part of it: a comment there renames nothing; nor is the level of chance, which says how
numbers are to be read.  What changes the numbers of a task without
changing its YAML or its rows raises ``metadata.version``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.errors import DataError
from harness.exam import data
from harness.io.files import json_sha256

__all__ = ["definition", "identity", "of_task", "rows_sha256"]

_TOLD = ("chance",)
"""What metadata say of the numbers of a task, and changes none of them."""


def of_task(task: Any, rows: str) -> str:
    """The identity of a task.

    Args:
        task: lm-eval's object.
        rows: the hash of its rows.
    """
    source = Path(str((task.config.metadata or {}).get("config_source") or ""))
    # A task that is a Python class has no YAML; it is known by its name and its version.
    said = definition(source) if source.is_file() else {"class": type(task).__qualname__, "version": task.VERSION}
    return identity(said, rows, task.config.num_fewshot or 0)


def identity(said: Mapping[str, Any], rows: str, num_fewshot: int = 0) -> str:
    """The identity of a task whose YAML says this, asked with so many examples before each question.

    Args:
        said: the normalised YAML.
        rows: the hash of the rows.
        num_fewshot: how many solved examples stand before each question.

    Returns:
        the SHA-256 of the three, in hexadecimal digits.
    """
    return json_sha256({"definition": said, "num_fewshot": num_fewshot, "rows": rows})


def definition(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a task YAML says, with what it includes laid under it, and functions by their names.

    Args:
        path: the YAML.
        above: those that include it.

    Raises:
        DataError: it, or what it includes, cannot be read, or includes itself.
    """
    if path in above:
        raise DataError(f"{path}: includes itself; take one 'include' out")
    said = data.read_yaml(path)
    named = said.pop("include", [])
    found: dict[str, Any] = {}
    for included in named if isinstance(named, list) else [named]:
        found |= definition((path.parent / included).resolve(), (*above, path))
    return _without_told(found | said)


def _without_told(said: dict[str, Any]) -> dict[str, Any]:
    metadata = said.get("metadata")
    if not isinstance(metadata, dict):
        return said
    return said | {"metadata": {key: value for key, value in metadata.items() if key not in _TOLD}}


def rows_sha256(documents: Iterable[Mapping[str, Any]]) -> str:
    """The hash of rows that come from no file of ours."""
    return json_sha256([dict(document) for document in documents])
