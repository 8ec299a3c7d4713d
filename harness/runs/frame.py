"""The numbers of a record as a table: a row for each metric of each task after each number of edits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

    from harness.runs.record import Record

__all__ = ["COLUMNS", "frame", "number_row"]

COLUMNS = (
    "record", "model", "editor", "edit_set", "mode", "seed", "edits", "task", "metric", "value", "n", "low", "high",
    "unedited", "difference", "difference_low", "difference_high", "p", "detectable", "higher_is_better", "reason",
)  # fmt: skip
"""``low`` and ``high`` are the 95 % interval of the value; ``difference`` is edited minus unedited, paired by document;
``reason`` says why there is no value."""


def frame(record: Record) -> pandas.DataFrame:
    """The table of a record; what does not apply is missing, never zero."""
    import pandas

    rows = [
        number_row(record, int(point["edits"]), task=task, metric=metric, numbers=numbers)
        for point in record.points
        for task, metrics in point["tasks"].items()
        for metric, numbers in metrics.items()
    ]
    table = pandas.DataFrame(rows, columns=list(COLUMNS))
    numbers = ["value", "low", "high", "unedited", "difference", "difference_low", "difference_high", "p", "detectable"]
    whole = {"edits": "int64", "seed": "int64" if record.seed is not None else "Int64"}
    return table.astype({**dict.fromkeys(numbers, "float64"), **whole})


def number_row(record: Record, edits: int, *, task: str, metric: str, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of one metric, by the names of :data:`COLUMNS`.

    Args:
        record: the record.
        edits: after so many edits.
        task: one of its tasks.
        metric: one of the metrics of the task.
        numbers: the metric's value, n, interval, reason and difference.
    """
    low, high = numbers.get("interval") or (None, None)
    change = numbers.get("difference") or {}
    change_low, change_high = change.get("interval") or (None, None)
    return {
        "record": record.id,
        "model": record.model.get("name"),
        "editor": record.editor.get("name"),
        "edit_set": record.edits.get("dataset"),
        "mode": record.plan.get("mode"),
        "seed": record.seed,
        "edits": edits,
        "task": task,
        "metric": metric,
        "value": numbers.get("value"),
        "n": numbers.get("n"),
        "low": low,
        "high": high,
        "unedited": record.tasks(0).get(task, {}).get(metric, {}).get("value"),
        "difference": change.get("value"),
        "difference_low": change_low,
        "difference_high": change_high,
        "p": change.get("p"),
        "detectable": change.get("detectable"),
        "higher_is_better": numbers.get("higher_is_better"),
        "reason": numbers.get("reason"),
    }
