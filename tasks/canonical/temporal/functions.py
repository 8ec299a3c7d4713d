"""Entities that are new to a model (Hewitt et al. 2024): where the rows of the canonical set ``temporal`` come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote

from harness.task_kit import CanonicalSet, read_rows, subjects

_SET = CanonicalSet.at(Path(__file__).parent)

source, edits, examples = _SET.source, _SET.edits, _SET.examples
dataset, results = _SET.dataset, _SET.results


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a published file, each with its subject where that is known."""
    return subjects(read_rows(path), _entity)


def _entity(row: dict[str, Any]) -> str | None:
    """The title of the page that a row comes from."""
    address = row.get("entity_url")
    return unquote(address.rpartition("/")[2]).replace("_", " ") if address else None
