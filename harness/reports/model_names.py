"""The names of models as others write them: developer and model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from harness.models.lm import shipped

__all__ = ["PROJECT", "is_public", "model_parts"]

PROJECT = "lm-edit-harness"
UNKNOWN = "unknown"
_HUB = re.compile(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)(@[\w./-]+)?")


def model_parts(model: Mapping[str, Any]) -> tuple[str, str]:
    """Developer and model, of what a record says of its model.

    Of a repository on the Hub they are the two parts of its name; of a model that ships with the package the developer
    is this project; of a folder, whose name says nothing of who made it, ``unknown``.
    """
    name = str(model.get("name") or "model")
    found = _HUB.fullmatch(name)
    if found and model.get("revision"):
        return found[1], found[2]
    last = name.rstrip("/").rsplit("/", 1)[-1] or "model"
    return (PROJECT if name in shipped() else UNKNOWN), last


def is_public(model: Mapping[str, Any]) -> bool:
    """Whether it is known that everybody can get the weights."""
    return model_parts(model)[0] != UNKNOWN
