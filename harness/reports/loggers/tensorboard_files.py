"""TensorBoard: a folder of event files for each record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.errors import UsageError
from harness.reports.run_log import RunLogger, logged_config, logged_cost, logged_files, logged_numbers

if TYPE_CHECKING:
    from harness.runs.record import Record

__all__ = ["TensorboardFiles"]


class TensorboardFiles(RunLogger):
    """TensorBoard; files in the folder tensorboard beside the record, a folder for each."""

    name: ClassVar[str] = "tensorboard"
    package: ClassVar[str] = "tensorboard"

    def log(self, record: Record, path: Path) -> str:
        """Scalars with a step for each number of edits, the plan as text, and copies of the files beside them."""
        from torch.utils.tensorboard import SummaryWriter

        folder = path.parent / "tensorboard" / path.stem
        try:
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier run of the plan, whose scalars would be mixed in
            with SummaryWriter(str(folder)) as writer:
                config = json.dumps(logged_config(record), indent=1, default=str)
                writer.add_text("plan", "\n".join(f"    {line}" for line in config.splitlines()))
                for edits, numbers in logged_numbers(record).items():
                    for name, number in numbers.items():
                        writer.add_scalar(name, number, edits)
                for name, number in logged_cost(record).items():
                    writer.add_scalar(name, number, 0)
            for file in logged_files(path):
                shutil.copy(file, folder)
        except OSError as error:
            raise UsageError(f"tensorboard: {folder}: cannot be written ({error.strerror}); make room") from error
        return str(folder)
