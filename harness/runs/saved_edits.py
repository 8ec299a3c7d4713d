"""The edits of a run as a file, beside its record."""

from __future__ import annotations

import logging
from pathlib import Path

from harness.editing import patch_file, schedule
from harness.editing.schedule import Stop
from harness.errors import ModelError
from harness.runs.prepare import Prepared
from harness.runs.record import Record, record_name

__all__ = ["patch_path", "save_edits"]

log = logging.getLogger(__name__)

_FROM_PLAN = ("edits", "split", "data_dir", "order", "seed", "mode", "model", "dtype")


def patch_path(folder: Path, record: Record, edits: int) -> Path:
    """Where the change after so many edits lies.

    Args:
        folder: where the record lies.
        record: of the run.
        edits: how many edits had been made.
    """
    return folder / f"{record_name(record)}.edits-{edits}.safetensors"


def save_edits(folder: Path, record: Record, *, ready: Prepared, stop: Stop) -> None:
    """Write the change after a stop; an editor whose change cannot be written is told of in the log.

    Args:
        folder: where the record lies.
        record: the record, whose name the file takes.
        ready: the run.
        stop: the edits so far, in one patch.

    Raises:
        UsageError: the file cannot be written.
    """
    plan, cases = ready.resolved.plan, ready.resolved.cases
    known = {key: getattr(plan, key) for key in ("known_only", "model_args") if getattr(plan, key)}
    about = {
        **{key: getattr(plan, key) for key in _FROM_PLAN},
        "num_edits": stop.edits,
        "of": len(schedule.cases_of(ready.asked)),
        **known,
        "ids": list(cases[: stop.edits]),
        "label": ready.editor.label(),
        "hyperparameters": ready.editor.hyperparameters(),
    }
    try:
        patch_file.save_patch(
            stop.patches[0],
            ready.lm,
            patch_path(folder, record, stop.edits),
            editor=ready.resolved.recipe.method,
            about=about,
        )
    except ModelError as error:
        log.warning("%s", error)
