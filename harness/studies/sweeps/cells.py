"""Tables of what methods reach inside a ball: a row for each task, a column for each method, and averages.

A cell is one method on one task of one model inside one ball. The numbers may come from a sweep of this harness or from
the published result files (:mod:`harness.studies.sweeps.published`); they are aggregated and printed alike.
"""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Cell", "Format", "Quantity", "average", "averages", "find", "render", "table"]

Quantity = Literal["change", "hard_negative", "success"]
Format = Literal["md", "latex", "csv", "html"]
_DASH = "-"


@dataclass(frozen=True)
class Cell:
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
    cells: Iterable[Cell], value: Callable[[Cell], float | None], empty_as_zero: bool = False
) -> dict[tuple[str, str, float | None], float | None]:
    """The average over tasks of each model, method and ball."""
    groups: dict[tuple[str, str, float | None], list[float | None]] = {}
    for cell in cells:
        groups.setdefault((cell.model, cell.method, cell.tolerance), []).append(value(cell))
    return {key: average(values, empty_as_zero) for key, values in groups.items()}


def find(cells: Iterable[Cell], model: str, task: str, method: str, tolerance: float | None) -> Cell | None:
    """The cell, None where there is none."""
    wanted = (model, task, method, tolerance)
    return next((c for c in cells if (c.model, c.task, c.method, c.tolerance) == wanted), None)


def table(cells: Sequence[Cell], quantity: Quantity = "change", kind: Format = "md") -> str:
    """The cells of each model as a table: tasks and their average down, balls and their methods across.

    Args:
        cells: the cells.
        quantity: the change in success with its standard error, the change of hard negatives, or the success rate.
        kind: Markdown, LaTeX (booktabs), CSV or HTML.
    """
    models = list(dict.fromkeys(cell.model for cell in cells))
    return "\n".join(_one([c for c in cells if c.model == model], model, quantity, kind) for model in models)


def _one(cells: Sequence[Cell], model: str, quantity: Quantity, kind: Format) -> str:
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    columns = sorted({(c.tolerance or 0.0, c.method) for c in cells}, key=lambda key: (-key[0], key[1]))
    head = ["task", "unedited", *(f"{method} {tolerance:g}" for tolerance, method in columns)]
    body, starts = [], []
    for task in tasks:
        mine = [find(cells, model, task, method, tolerance or None) for tolerance, method in columns]
        starts.append(_start(mine, quantity))
        body.append([task, _number(starts[-1], signed=False), *(_shown(cell, quantity) for cell in mine)])
    last = [_mean(starts)]
    for tolerance, method in columns:
        found = [find(cells, model, task, method, tolerance or None) for task in tasks]
        last.append(_mean([_value(cell, quantity) for cell in found], signed=quantity != "success"))
    rows = [*body, ["average", *last]]
    return render(model, head, rows, kind)


def _value(cell: Cell | None, quantity: Quantity) -> float | None:
    if cell is None:
        return None
    return {"change": cell.change, "success": cell.success, "hard_negative": cell.hard_change}[quantity]


def _start_value(cell: Cell | None, quantity: Quantity) -> float | None:
    if cell is None:
        return None
    return cell.hard_initial if quantity == "hard_negative" else cell.initial


def _start(cells: Sequence[Cell | None], quantity: Quantity) -> float | None:
    """What the unedited model has; where runs differ in it by the rounding of their hardware, their mean."""
    return average([value for cell in cells if (value := _start_value(cell, quantity)) is not None])


def _shown(cell: Cell | None, quantity: Quantity) -> str:
    """A value, its standard error, and how many of the repetitions lay in the ball where not all did."""
    text = _number(_value(cell, quantity), signed=quantity != "success")
    if cell is None or text == _DASH:
        return _DASH if cell is None or cell.of is None else f"{_DASH} ({cell.runs}/{cell.of})"
    if quantity == "change" and cell.error is not None:
        text += f" ± {cell.error:.1f}"
    return f"{text} ({cell.runs}/{cell.of})" if cell.of is not None and cell.runs != cell.of else text


def _mean(values: Sequence[float | None], signed: bool = False) -> str:
    return _number(average(values), signed)


def _number(value: float | None, signed: bool) -> str:
    if value is None or math.isnan(value):
        return _DASH
    return f"{value:+.1f}" if signed else f"{value:.1f}"


def render(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], kind: Format = "md") -> str:
    """A table as text.

    Args:
        title: what stands above it; CSV has none.
        head: the names of the columns.
        rows: the rows; the last one sums the others up.
        kind: Markdown, LaTeX (booktabs), CSV or HTML.
    """
    return {"md": _markdown, "latex": _latex, "csv": _csv, "html": _html}[kind](title, head, rows)


def _csv(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:  # noqa: ARG001
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


def _html(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(tag: str, texts: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts) + "</tr>"

    body = [line("td", row) for row in rows]
    return "\n".join([f"<h3>{html.escape(title)}</h3>", "<table>", line("th", head), *body, "</table>", ""])


def _markdown(model: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"### {model}", "", "| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _latex(model: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        escaped = (cell.replace("_", r"\_").replace("±", r"$\pm$") for cell in cells)
        return " & ".join(escaped) + r" \\"

    begin = r"\begin{tabular}{l" + "r" * (len(head) - 1) + "}"
    body = [*(line(row) for row in rows[:-1]), r"\midrule", line(rows[-1])]
    return "\n".join(
        [f"% {model}", begin, r"\toprule", line(head), r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""]
    )
