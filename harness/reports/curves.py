"""Records to curves: what is left of edits and abilities after so many edits, a panel a task, a line an editor.

Lines are the Okabe-Ito colours with a marker each, so that they are told apart without colour too.  They stand a little
beside one another, so that none hides another.  Bands are the 95 % intervals of the values, bars where there are more
lines than bands can be told apart; the dashed line is the unedited model.  An arrow says which way is better.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import DataError, UsageError
from harness.exam.exam_parts import NEUTRAL_TEXT
from harness.io.files import write_whole
from harness.reports.cells import EDIT_METRICS
from harness.reports.seeds import pool
from harness.runs.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "FORMATS", "MARKERS", "curves", "draw_curves", "save_figure"]

FORMATS = (".png", ".svg", ".pdf")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*"
_LINES = ("-", "--", ":", "-.")
_COLUMNS = 5
_BANDS = 4  # lines whose bands can be told apart
_STEP = 1.6  # points between two lines
_ARROWS = {True: " \N{UPWARDS ARROW}", False: " \N{DOWNWARDS ARROW}", None: ""}
_EXAM = ("efficacy", "paraphrase", "neighborhood", "locality_accuracy", "locality_agreement")

_UNKNOWN = ("efficacy", "paraphrase")
"""Metrics of edits, of which there are none before the first."""
_GREY, _DASHED = "0.45", (0, (4, 3))

Panel = tuple[str, str]
"""A task and one of its metrics."""
Row = tuple[int, float, float, float]
"""Edits, value, and the ends of its interval."""


def curves(records: Sequence[Record]) -> dict[Panel, dict[str, list[Row]]]:
    """What is drawn: panel -> editor -> (edits, value, low, high); a value without an interval has itself.

    Raises:
        DataError: the records are of several models or edit sets, or hold nothing to draw.
    """
    whole = pool([record for record in records if record.status == "complete"])
    for what in ("model", "edits"):
        key = "sha256" if what == "model" else "dataset"
        if len({str(getattr(record, what).get(key)) for record in whole}) > 1:
            raise DataError(f"the records are of several {what}; draw those of one")
    found: dict[Panel, dict[str, list[Row]]] = {}
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


def _rows(record: Record, point: dict[str, Any]) -> list[tuple[Panel, Row]]:
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
    return (2 if task == NEUTRAL_TEXT else 1, 0, task.lower())


def draw_curves(records: Sequence[Record], path: Path) -> None:
    """Draw the curves of some records into a file.

    Raises:
        UsageError: the file's ending is no format, it cannot be written, or matplotlib is not installed.
        DataError: as :func:`curves`.
    """
    save_figure(lambda: _figure(curves(records), records[0]), path)


def save_figure(make: Callable[[], Figure], path: Path) -> None:
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
    write_whole(path, _drawn(make(), path.suffix))


def _drawn(figure: Figure, suffix: str) -> bytes:
    """The same records give the same file: no dates, no random ids.

    A PNG of 256 colours has a third of the size. With fewer, the lines of two editors may become one colour.
    """
    content, small = io.BytesIO(), io.BytesIO()
    if suffix != ".png":
        figure.savefig(content, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else {})
        return content.getvalue()
    from PIL import Image

    figure.savefig(content, dpi=90)
    Image.open(content).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def _figure(found: dict[Panel, dict[str, list[Row]]], record: Record) -> Figure:
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(3.1 * columns, 2.4 * rows + 1.1), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    editors = list(dict.fromkeys(editor for lines in found.values() for editor in lines))
    for axis, (panel, lines) in zip(axes, found.items(), strict=False):
        _panel(axis, panel, lines, editors)
        axis.set_title(f"{axis.get_title('left')}{_ARROWS[_better(record, panel)]}", fontsize=9, loc="left")
    for axis in axes[max(0, len(found) - columns) : len(found)]:
        axis.set_xlabel("edits", fontsize=8)
        axis.tick_params(axis="x", labelbottom=True)
    for axis in axes[len(found) :]:
        axis.set_axis_off()
    _legend(figure, list(axes[len(found) :]), editors)
    edits = record.edits.get("dataset", "")
    figure.suptitle(
        f"{record.model.get('name')} after sequential edits of {edits} (arrows: the better way)", fontsize=12
    )
    return figure


def _better(record: Record, panel: Panel) -> bool | None:
    """Whether more is better; None where neither way is, or the record does not have the panel."""
    measures = (point["tasks"].get(panel[0], {}).get(panel[1]) for point in record.points)
    better: bool | None = next((one.get("higher_is_better") for one in measures if one), None)
    return better


def _legend(figure: Figure, free: Sequence[Axes], editors: Sequence[str]) -> None:
    """What lines, bands and the dashed line are: in the place of a panel where one is free, else below."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], linewidth=1.6, markersize=5, label=editor, **_look(editors, editor)) for editor in editors]
    lines.append(Line2D([], [], color=_GREY, linewidth=1, linestyle=_DASHED, label="unedited"))
    title = f"{'bands' if len(editors) <= _BANDS else 'bars'}: 95 % intervals"
    if len(free):
        columns = 1 if len(lines) <= 9 else 2
        free[0].legend(handles=lines, loc="upper left", frameon=False, fontsize=9, title=title, ncols=columns)
    else:
        columns = min(6, len(lines))
        figure.legend(handles=lines, loc="outside lower center", ncols=columns, frameon=False, title=title)


def _look(editors: Sequence[str], editor: str) -> dict[str, Any]:
    """Colour, marker and dashes of a line, so that no two of 28 are alike."""
    place = editors.index(editor)
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": _LINES[place // len(COLOURS) % len(_LINES)],
    }


def _panel(axis: Axes, panel: Panel, lines: dict[str, list[Row]], editors: Sequence[str]) -> None:
    task, metric = panel
    axis.set_title(f"{task}\n{metric.replace('_', ' ')}", fontsize=9, loc="left")
    base = next((row[1] for line in lines.values() for row in line if row[0] == 0), None)
    if base is not None:
        axis.axhline(base, color=_GREY, linewidth=1, linestyle=_DASHED, zorder=1)
    for editor, line in lines.items():
        known = [row for row in sorted(line) if row[0] > 0 or metric not in _UNKNOWN]
        place = editors.index(editor) - (len(editors) - 1) / 2
        _line(axis, known, _look(editors, editor), aside=place * _STEP, bars=len(editors) > _BANDS)
    axis.set_xscale("symlog", linthresh=1, linscale=0.4)
    ticks = sorted({row[0] for line in lines.values() for row in line})
    axis.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=7)
    axis.minorticks_off()
    axis.tick_params(axis="y", labelsize=7)
    axis.grid(alpha=0.25, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    if task == NEUTRAL_TEXT:
        axis.set_yscale("symlog", linthresh=0.01, linscale=0.4)
        axis.set_ylim(bottom=0)
    elif all(0 <= end <= 1 for line in lines.values() for row in line for end in row[2:]):
        axis.set_ylim(-0.03, 1.03)


def _line(axis: Axes, rows: Sequence[Row], look: dict[str, Any], *, aside: float, bars: bool) -> None:
    """One editor: its values, and its intervals; the unedited model's own interval is every editor's.

    Args:
        axis: where it is drawn.
        rows: what is drawn.
        look: of the line.
        aside: points to the right of its place, where another line would hide it.
        bars: whether intervals are bars; bands otherwise.
    """
    from matplotlib.transforms import ScaledTranslation

    moved = axis.transData + ScaledTranslation(aside / 72, 0, axis.figure.dpi_scale_trans)
    points = [row[0] for row in rows], [row[1] for row in rows]
    axis.plot(*points, markersize=3.5, linewidth=1.4, transform=moved, **look)
    edited = [row for row in rows if row[0] > 0]
    edits, lows, highs = ([row[i] for row in edited] for i in (0, 2, 3))
    if bars:
        axis.vlines(edits, lows, highs, color=look["color"], linewidth=0.9, alpha=0.7, transform=moved)
    else:
        axis.fill_between(edits, lows, highs, color=look["color"], alpha=0.13, linewidth=0)
    axis.update_datalim([(row[0], end) for row in rows for end in row[1:]])
    axis.autoscale_view()
