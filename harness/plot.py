"""Records to curves: what is left of edits and abilities after so many edits, a panel a task, a line an editor.

Lines are the Okabe-Ito colours with a marker each, so that they are told apart without colour too; bands are the 95 %
intervals of the values; the dashed line is the unedited model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import DataError, UsageError
from harness.leaderboard import EDIT_METRICS
from harness.pooled import pool
from harness.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "FORMATS", "MARKERS", "curves", "draw", "save"]

FORMATS = (".png", ".svg", ".pdf")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*"
_LINES = ("-", "--", ":", "-.")
_COLUMNS = 4
_EXAM = ("efficacy", "paraphrase", "neighborhood", "locality_accuracy", "locality_agreement")

Panel = tuple[str, str]
"""A task and one of its metrics."""


def curves(records: Sequence[Record]) -> dict[Panel, dict[str, list[tuple[int, float, float, float]]]]:
    """What is drawn: panel -> editor -> (edits, value, low, high); a value without an interval has itself.

    Raises:
        DataError: the records are of several models or edit sets, or hold nothing to draw.
    """
    whole = pool([record for record in records if record.status == "complete"])
    for what in ("model", "edits"):
        key = "sha256" if what == "model" else "dataset"
        if len({str(getattr(record, what).get(key)) for record in whole}) > 1:
            raise DataError(f"the records are of several {what}; draw those of one")
    found: dict[Panel, dict[str, list[tuple[int, float, float, float]]]] = {}
    for record, label in zip(whole, _labels(whole), strict=True):
        for point in record.points:
            for panel, row in _rows(record, point):
                found.setdefault(panel, {}).setdefault(label, []).append(row)
    if not any(len(line) > 1 for lines in found.values() for line in lines.values()):
        raise DataError("no record holds a curve; run with --mode sequential --eval-at 1,10,100,final")
    return dict(sorted(found.items(), key=lambda item: _place(item[0])))


def _labels(records: Sequence[Record]) -> list[str]:
    """The editors; those of one name are told apart by their mode or record."""
    names = [str(record.editor.get("name")) for record in records]
    return [n if names.count(n) == 1 else f"{n} ({r.id[:6]})" for n, r in zip(names, records, strict=True)]


def _rows(record: Record, point: dict[str, Any]) -> list[tuple[Panel, tuple[int, float, float, float]]]:
    rows = []
    for task, table in point["tasks"].items():
        exam = "efficacy" in table
        for metric in _EXAM if exam else (record.headlines.get(task, ""),):
            measure = table.get(metric) or {}
            value = measure.get("value")
            if value is not None:
                low, high = measure.get("interval") or (value, value)
                rows.append(((task, metric), (int(point["edits"]), float(value), float(low), float(high))))
    return rows


def _place(panel: Panel) -> tuple[int, int, str]:
    """Edits first, then abilities by name, then neutral text."""
    task, metric = panel
    if metric in EDIT_METRICS:
        return (0, EDIT_METRICS.index(metric), task)
    return (2 if task == "neutral_text" else 1, 0, task.lower())


def draw(records: Sequence[Record], path: Path) -> None:
    """Draw the curves of some records into a file.

    Raises:
        UsageError: the file's ending is no format, it cannot be written, or matplotlib is not installed.
        DataError: as :func:`curves`.
    """
    save(lambda: _figure(curves(records), records[0]), path)


def save(make: Callable[[], Figure], path: Path) -> None:
    """Make a figure and write it to a file.

    Raises:
        UsageError: the file's ending is no format, it cannot be written, or matplotlib is not installed.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"{path}: '{path.suffix}' is no format of figures; end it in {', '.join(FORMATS)}")
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError("figures need matplotlib; install it with pip install 'lm-edit-harness[plot]'") from error
    matplotlib.rcParams["svg.hashsalt"] = "lm-edit-harness"
    figure = make()
    # Without dates and random ids the same records give the same file.
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    try:
        figure.savefig(path, dpi=150, metadata=metadata)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def _figure(found: dict[Panel, dict[str, list[tuple[int, float, float, float]]]], record: Record) -> Figure:
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(3.1 * columns, 2.5 * rows + 1.0), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    editors = list(dict.fromkeys(editor for lines in found.values() for editor in lines))
    for axis, (panel, lines) in zip(axes, found.items(), strict=False):
        _panel(axis, panel, lines, editors)
    for axis in axes[len(found) :]:
        axis.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(editors)), frameon=False)
    edits = record.edits.get("dataset", "")
    figure.suptitle(f"{record.model.get('name')}: after so many sequential edits of {edits}", fontsize=11)
    return figure


def _panel(
    axis: Axes, panel: Panel, lines: dict[str, list[tuple[int, float, float, float]]], editors: Sequence[str]
) -> None:
    task, metric = panel
    axis.set_title(f"{task}\n{metric}", fontsize=9)
    base = next((row[1] for line in lines.values() for row in line if row[0] == 0), None)
    if base is not None:
        axis.axhline(base, color="0.45", linewidth=1, linestyle=(0, (4, 3)))
    for editor, line in lines.items():
        place = editors.index(editor)
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        style = _LINES[place // len(COLOURS) % len(_LINES)]
        edits, values, lows, highs = zip(
            *sorted(row for row in line if row[0] > 0 or metric not in _EXAM[:2]), strict=True
        )
        axis.plot(
            edits, values, color=colour, marker=marker, markersize=3.5, linewidth=1.4, linestyle=style, label=editor
        )
        axis.fill_between(edits, lows, highs, color=colour, alpha=0.13, linewidth=0)
    axis.set_xscale("symlog", linthresh=1)
    ticks = sorted({row[0] for line in lines.values() for row in line})
    axis.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=7)
    axis.minorticks_off()
    axis.tick_params(axis="y", labelsize=7)
    axis.grid(alpha=0.25, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    if task == "neutral_text":
        axis.set_yscale("symlog", linthresh=0.01)
    else:
        axis.set_ylim(-0.03, 1.03)
