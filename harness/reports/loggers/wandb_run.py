"""Weights & Biases: one run for each record, whose id is that of the record."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.errors import UsageError
from harness.reports.run_log import (
    PROJECT_NAME,
    RunLogger,
    logged_config,
    logged_cost,
    logged_files,
    logged_numbers,
)

if TYPE_CHECKING:
    from harness.runs.record import Record

__all__ = ["WandbRun"]


class WandbRun(RunLogger):
    """Weights & Biases; WANDB_PROJECT, WANDB_MODE (offline) and its other variables say where and how."""

    name: ClassVar[str] = "wandb"
    package: ClassVar[str] = "wandb"

    def log(self, record: Record, path: Path) -> str:
        """One run: the plan as its config, a step for each number of edits, cost in its summary; an artifact."""
        import wandb

        try:
            run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT_NAME),
                dir=os.environ.get("WANDB_DIR", str(path.parent)),
                id=record.id,
                name=path.stem,
                config=logged_config(record),
                resume="allow",
                settings=wandb.Settings(silent=True, console="off"),
            )
            run.define_metric("edits")
            run.define_metric("*", step_metric="edits")
            for edits, numbers in logged_numbers(record).items():
                run.log({"edits": edits, **numbers})
            run.summary.update(logged_cost(record))
            artifact = wandb.Artifact(f"record-{record.id}", type="record")
            for file in logged_files(path):
                artifact.add_file(str(file))
            run.log_artifact(artifact)
            where = str(run.url or run.dir)
            run.finish()
        except (wandb.Error, OSError) as error:
            said = " ".join(str(error).split())
            raise UsageError(f"wandb: {said}; log in with wandb login, or set WANDB_MODE=offline") from error
        return where
