"""The ``.eval_results`` of a model's repository on the Hub, which its page and the page of the data set show.

See https://huggingface.co/docs/hub/eval-results. A file names a data set on the Hub that is registered as a benchmark;
this project's rows are not on the Hub, so that the caller says which one a task is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from harness.errors import UsageError
from harness.reports.cells import brackets, number
from harness.reports.export import Export, ExportRequest
from harness.runs.record import Record, record_name

__all__ = ["HubResults"]

Json = dict[str, Any]

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?")


class HubResults(Export):
    """Hugging Face model pages: RECORD.edits-N/.eval_results/TASK.yaml, the headline of each task of --hub-dataset."""

    name: ClassVar[str] = "hf"

    def write(self, records: Sequence[Record], folder: Path, asked: ExportRequest) -> None:
        """The files; a headline without a value has none."""
        _require_repositories(asked)
        for record in records:
            _require_one_model(record)
            for point in record.points:
                _write_point(record, int(point["edits"]), folder=folder, asked=asked)
        if not any(folder.rglob("*.yaml")):
            raise UsageError(
                f"hf: no record has a headline of {', '.join(sorted(asked.hub))}; name tasks of the records"
            )


def _require_repositories(asked: ExportRequest) -> None:
    if not asked.hub:
        raise UsageError("hf: a page shows results of data sets on the Hub; say --hub-dataset TASK=OWNER/NAME")
    for task, repository in asked.hub.items():
        if not _REPOSITORY.fullmatch(repository):
            raise UsageError(
                f"--hub-dataset {task}={repository}: expected OWNER/NAME or OWNER/NAME:TASK of the data set"
            )


def _require_one_model(record: Record) -> None:
    if record.plan.get("mode") == "isolated" and any(point["edits"] for point in record.points):
        raise UsageError(
            f"{record_name(record)}: isolated edits make as many models, of which none has a page; leave the record out"
        )


def _write_point(record: Record, edits: int, *, folder: Path, asked: ExportRequest) -> None:
    for task, repository in asked.hub.items():
        entry = _entry(record, edits, task=task, repository=repository)
        if entry is not None:
            place = folder / f"{record_name(record)}.edits-{edits}" / ".eval_results"
            place.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump([entry], sort_keys=False, allow_unicode=True)
            (place / f"{_file_name(task)}.yaml").write_text(text, encoding="utf-8")


def _entry(record: Record, edits: int, *, task: str, repository: str) -> Json | None:
    metric = record.headlines.get(task, "")
    numbers = record.tasks(edits).get(task, {}).get(metric)
    if numbers is None or numbers["value"] is None:
        return None
    dataset, _, part = repository.partition(":")
    return {
        "dataset": {"id": dataset, "task_id": part or task},
        "value": numbers["value"],
        "notes": _notes(record, edits, metric=metric, numbers=numbers),
    }


def _notes(record: Record, edits: int, *, metric: str, numbers: Json) -> str:
    """What a reader of the page must know: how the model was edited, what the number is, and where it comes from."""
    how = f"{edits} edits of {record.edits.get('dataset')} by {record.editor.get('name')}, {record.plan.get('mode')}"
    parts = [how if edits else "unedited", f"{metric}, n = {numbers['n']}"]
    if numbers["interval"] is not None:
        parts.append(f"95 % interval {brackets(numbers['interval'])}")
    if (numbers["difference"] or {}).get("value") is not None:
        parts.append(f"edited minus unedited {number(numbers['difference']['value'])}")
    return " ".join("; ".join([*parts, f"lm-edit-harness record {record.id}"]).split())


def _file_name(task: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", task).strip("-.") or "task"
