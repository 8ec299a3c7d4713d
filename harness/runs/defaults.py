"""What follows from the model where a call leaves it open."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from harness.models.naming import shipped

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.models.lm import LM
    from harness.runs.plan import Plan

__all__ = ["note_rows", "rows_for", "text_for"]

log = logging.getLogger(__name__)


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
    from harness.models.in_memory import require_model, ships
    from harness.models.lm import LM

    require_model(model)
    return "mini" if ships(model.model if isinstance(model, LM) else model) else "hub"


def text_for(model: object, data_dir: str | Path | None, given: str | None = None) -> str | None:
    """Where plain text comes from: what is given, else the folder ``text`` of a data folder.

    Args:
        model: the model, by name or in memory; a shipped one brings its text, and one in memory has it already.
        data_dir: where the rows come from.
        given: what the user has named; None where nothing was.
    """
    if given is not None or data_dir is None or not isinstance(model, str | Path) or str(model) in shipped():
        return given
    folder = Path(data_dir) / "text"
    return str(folder) if folder.is_dir() else None


def note_rows(plan: Plan, rows: int | None) -> None:
    """Tell whoever may mean the edits of one operation, which ``batch_size`` was before it was lm-eval's word.

    Args:
        plan: the plan.
        rows: texts of one forward pass at most, as they were given.
    """
    if rows is not None and plan.edit_batch_size is None and plan.mode == "sequential":
        log.warning(
            "batch size %d is texts of one forward pass, and one edit is made at a time; edits of one operation are "
            "--edit-batch-size",
            rows,
        )
