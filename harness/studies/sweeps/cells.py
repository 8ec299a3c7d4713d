"""Tables of what methods reach inside a ball: a row for each task, a column for each method, and averages.

A cell is one method on one task of one model inside one ball. The numbers may come from a sweep of this harness or from
the published result files (:mod:`harness.studies.sweeps.published`); they are aggregated and shown alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.reports.table import Table, TableColumn, TableRow
from harness.reports.table import TableCell as Shown

__all__ = ["Quantity", "SweepCell", "average", "averages", "find_cell", "heading", "model_tables"]

Quantity = Literal["change", "hard_negative", "success"]
_DASH = "-"


@dataclass(frozen=True)
class SweepCell:
    """One method on one task of one model inside one ball.

    Attributes:
        model: the model.
        task: the task.
        method: the method.
        tolerance: of the ball; None for the unedited model.
        initial: the success rate of the unedited model, in percent.
        success: that of the edited one; None where nothing lay in the ball and nothing falls back.
        change: the mean change, in percentage points; None as ``success``.
        error: its standard error.
        hard_initial: mean negative log-likelihood of a hard negative before, in nats.
        hard_change: its change.
        runs: repetitions behind the numbers.
        of: repetitions that were tried.
    """

    model: str
    task: str
    method: str
    tolerance: float | None
    initial: float | None = None
    success: float | None = None
    change: float | None = None
    error: float | None = None
    hard_initial: float | None = None
    hard_change: float | None = None
    runs: int | None = None
    of: int | None = None


def average(values: Sequence[float | None], empty_as_zero: bool = False) -> float | None:
    """The unweighted mean over tasks; None where a task has no value, unless that counts as no change."""
    if not values or (not empty_as_zero and any(value is None for value in values)):
        return None
    return math.fsum(value or 0.0 for value in values) / len(values)


def averages(
    cells: Iterable[SweepCell], value: Callable[[SweepCell], float | None], empty_as_zero: bool = False
) -> dict[tuple[str, str, float | None], float | None]:
    """The average over tasks of each model, method and ball.

    Args:
        cells: the cells of a table.
        value: what is averaged of a cell; None is missing.
        empty_as_zero: whether a missing value counts as zero, as in the published tables.

    Returns:
        (model, method, size of the ball) -> average.
    """
    groups: dict[tuple[str, str, float | None], list[float | None]] = {}
    for cell in cells:
        groups.setdefault((cell.model, cell.method, cell.tolerance), []).append(value(cell))
    return {key: average(values, empty_as_zero) for key, values in groups.items()}


def find_cell(
    cells: Iterable[SweepCell], *, model: str, task: str, method: str, tolerance: float | None
) -> SweepCell | None:
    """The cell, None where there is none.

    Args:
        cells: where it is looked for.
        model: the name of the model.
        task: the name of the task.
        method: the name of the method.
        tolerance: the size of the ball; None is the unedited model.
    """
    wanted = (model, task, method, tolerance)
    return next((c for c in cells if (c.model, c.task, c.method, c.tolerance) == wanted), None)


def model_tables(cells: Sequence[SweepCell], quantity: Quantity = "change") -> tuple[Table, ...]:
    """The cells of each model as a table: tasks and their average down, balls and their methods across.

    Args:
        cells: the cells.
        quantity: the change in success with its standard error, the change of hard negatives, or the success rate.
    """
    models = list(dict.fromkeys(cell.model for cell in cells))
    return tuple(_one([c for c in cells if c.model == model], model, quantity) for model in models)


def _one(cells: Sequence[SweepCell], model: str, quantity: Quantity) -> Table:
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    columns = sorted({(c.tolerance or 0.0, c.method) for c in cells}, key=lambda key: (-key[0], key[1]))
    rows, starts = [], []
    for task in tasks:
        mine = [
            find_cell(cells, model=model, task=task, method=method, tolerance=tolerance or None)
            for tolerance, method in columns
        ]
        starts.append(_start(mine, quantity))
        rows.append(TableRow((Shown(task), _shown_mean([starts[-1]]), *(_shown(cell, quantity) for cell in mine))))
    last = [_shown_mean(starts)]
    for tolerance, method in columns:
        found = [find_cell(cells, model=model, task=task, method=method, tolerance=tolerance or None) for task in tasks]
        last.append(_shown_mean([_value(cell, quantity) for cell in found], signed=quantity != "success"))
    heads = heading("task", "unedited", *(f"{method} {tolerance:g}" for tolerance, method in columns))
    return Table(model, heads, (*rows, TableRow((Shown("average"), *last), "total")))


def heading(first: str, *others: str) -> tuple[TableColumn, ...]:
    """The heads of a table whose first column holds words and whose others hold numbers."""
    return (TableColumn((first,), left=True), *(TableColumn((text,)) for text in others))


def _value(cell: SweepCell | None, quantity: Quantity) -> float | None:
    if cell is None:
        return None
    return {"change": cell.change, "success": cell.success, "hard_negative": cell.hard_change}[quantity]


def _start_value(cell: SweepCell | None, quantity: Quantity) -> float | None:
    if cell is None:
        return None
    return cell.hard_initial if quantity == "hard_negative" else cell.initial


def _start(cells: Sequence[SweepCell | None], quantity: Quantity) -> float | None:
    """What the unedited model has; where runs differ in it by the rounding of their hardware, their mean."""
    return average([value for cell in cells if (value := _start_value(cell, quantity)) is not None])


def _shown(cell: SweepCell | None, quantity: Quantity) -> Shown:
    """A value, its standard error, and how many of the repetitions lay in the ball where not all did."""
    value = _value(cell, quantity)
    text = _number(value, signed=quantity != "success")
    if cell is None or text == _DASH:
        return Shown(_DASH if cell is None or cell.of is None else f"{_DASH} ({cell.runs}/{cell.of})")
    if quantity == "change" and cell.error is not None:
        text += f" ± {cell.error:.1f}"
    return Shown(f"{text} ({cell.runs}/{cell.of})" if cell.of is not None and cell.runs != cell.of else text, value)


def _shown_mean(values: Sequence[float | None], signed: bool = False) -> Shown:
    value = average(values)
    return Shown(_number(value, signed), value)


def _number(value: float | None, signed: bool) -> str:
    if value is None or math.isnan(value):
        return _DASH
    return f"{value:+.1f}" if signed else f"{value:.1f}"
