"""MLflow: one run for each record."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

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

__all__ = ["MlflowRun"]

_LONGEST = 6000  # characters of a parameter
_STRANGE = re.compile(r"[^\w\-. /]")


class MlflowRun(RunLogger):
    """MLflow; MLFLOW_TRACKING_URI says where, otherwise the folder mlruns beside the record."""

    name: ClassVar[str] = "mlflow"
    package: ClassVar[str] = "mlflow"

    def log(self, record: Record, path: Path) -> str:
        """One run: the plan as its parameters, a step for each number of edits, cost, and the files as artifacts."""
        import mlflow

        try:
            with _tracked(path.parent), mlflow.start_run(run_name=path.stem) as run:
                mlflow.set_tag("record", record.id)
                mlflow.log_params({_key(key): value for key, value in _flat(logged_config(record))})
                for edits, numbers in logged_numbers(record).items():
                    mlflow.log_metrics({_key(key): value for key, value in numbers.items()}, step=edits)
                mlflow.log_metrics({_key(key): value for key, value in logged_cost(record).items()})
                for file in logged_files(path):
                    mlflow.log_artifact(str(file))
                return f"run {run.info.run_id} of {mlflow.get_tracking_uri()}"
        except (mlflow.MlflowException, OSError) as error:
            said = " ".join(str(error).split())
            raise UsageError(f"mlflow: {said}; set MLFLOW_TRACKING_URI to a place that takes runs") from error


@contextmanager
def _tracked(folder: Path) -> Iterator[None]:
    """The place that MLflow's variables name, or a folder; as it was afterwards."""
    import mlflow

    before = mlflow.get_tracking_uri() if os.environ.get("MLFLOW_TRACKING_URI") else None
    allowed = os.environ.get("MLFLOW_ALLOW_FILE_STORE")
    try:
        if before is None:  # newer versions want to be told that a folder is meant
            os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
            mlflow.set_tracking_uri((folder / "mlruns").resolve().as_uri())
        if not os.environ.get("MLFLOW_EXPERIMENT_NAME"):
            mlflow.set_experiment(PROJECT_NAME)
        yield
    finally:
        if before is None:
            mlflow.set_tracking_uri(None)  # type: ignore[arg-type,unused-ignore]
            if allowed is None:
                os.environ.pop("MLFLOW_ALLOW_FILE_STORE", None)


def _flat(value: Mapping[str, Any], of: str = "") -> Iterator[tuple[str, str]]:
    """Fields within fields as ``plan.model``, each as text."""
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _flat(item, f"{of}{key}.")
        else:
            text = item if isinstance(item, str) else json.dumps(item, default=str)
            yield f"{of}{key}", text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def _key(name: str) -> str:
    """A name in the characters that MLflow takes on every system."""
    return _STRANGE.sub("_", name)
