"""What follows from the model where a call leaves it open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.models.lm import LM, shipped

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["rows_for"]


def rows_for(model: str | Path | PreTrainedModel | LM, given: str | Path | None = None) -> str:
    """Where rows come from: what is given, else ``mini`` for a shipped model and ``hub`` for every other.

    The shipped rows are facts of an invented world, which only the shipped models have read.

    Args:
        model: the model, by name or in memory.
        given: what the user has named; None where nothing was.
    """
    if given is not None:
        return str(given)
    if isinstance(model, str | Path):
        return "mini" if str(model) in shipped() else "hub"
    from harness.models.in_memory import ships

    return "mini" if ships(model.model if isinstance(model, LM) else model) else "hub"
