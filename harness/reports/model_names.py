"""The names of models as others write them: developer and model."""

from __future__ import annotations

import re

from harness.models.naming import shipped
from harness.runs.record import Record

__all__ = ["PROJECT", "is_public", "model_parts"]

PROJECT = "lm-edit-harness"
UNKNOWN = "unknown"
_HUB = re.compile(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)(@[\w./-]+)?")


def model_parts(record: Record) -> tuple[str, str]:
    """Developer and model of a record.

    Of a repository on the Hub they are the two parts of its name; of a model that ships with the package the developer
    is this project; of a folder, whose name says nothing of who made it, ``unknown``.
    """
    name = str(record.model.get("name") or "model")
    found = _HUB.fullmatch(name)
    if found and (record.model.get("revision") or record.published):
        return found[1], found[2]
    last = name.rstrip("/").rsplit("/", 1)[-1] or "model"
    return (PROJECT if name in shipped() else UNKNOWN), last


def is_public(record: Record) -> bool:
    """Whether it is known that everybody can get the weights."""
    return model_parts(record)[0] != UNKNOWN
