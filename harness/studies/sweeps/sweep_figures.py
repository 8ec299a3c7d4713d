"""Sweeps to figures: what methods gain inside each ball, a panel a task, a group of bars a ball, a bar a method.

Bars are the mean change of the success rate over trainings of the chosen configuration, lines their standard errors; a
0 stands where a bar has no height.  Colours are the Okabe-Ito ones with a hatching each, so that bars are told apart
without colour too.  Epochs are chosen and reported by the plain rule of :mod:`harness.studies.sweeps.ball`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import DataError
from harness.reports.curves import COLOURS, save_figure
from harness.studies.sweeps.ball import TOLERANCES
from harness.studies.sweeps.cells import SweepCell
from harness.studies.sweeps.sweep_tables import cells
from harness.studies.sweeps.trial import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["bars", "draw_sweep"]

_COLUMNS = 3
_HATCHES = ("", "///", "...", "xx", "\\\\\\", "--", "oo")
_GREY = "0.45"

Panel = Mapping[str, Mapping[float, SweepCell]]
"""Method -> ball -> its cell."""


def bars(trials: Sequence[Trial], balls: Sequence[float] = TOLERANCES) -> dict[str, dict[str, dict[float, SweepCell]]]:
    """What is drawn: task -> method -> ball -> the cell, by the plain rule; methods of several models are told apart.

    Raises:
        DataError: no training was on a test pair.
    """
    known = [cell for cell in cells(trials, "plain", balls) if cell.change is not None]
    if not known:
        raise DataError("no training was on a test pair; let `harness sweep` come to its end")
    several = len({cell.model for cell in known}) > 1
    found: dict[str, dict[str, dict[float, SweepCell]]] = {}
    for cell in known:
        label = f"{cell.method} ({cell.model})" if several else cell.method
        found.setdefault(cell.task, {}).setdefault(label, {})[cell.tolerance or 0.0] = cell
    return found


def draw_sweep(trials: Sequence[Trial], path: Path, balls: Sequence[float] = TOLERANCES) -> None:
    """Draw what a sweep gained into a file.

    Args:
        trials: the trainings of a sweep, of both splits.
        path: the file; its ending is the format.
        balls: the sizes of the balls, as shares of the initial loss.

    Raises:
        UsageError: the file's ending is no format, it cannot be written, or matplotlib is not installed.
        DataError: as :func:`bars`.
    """
    save_figure(lambda: _figure(bars(trials, balls), balls), path)


def _figure(found: Mapping[str, Panel], balls: Sequence[float]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = min(_COLUMNS, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(3.6 * columns, 2.5 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    methods = list(dict.fromkeys(method for panel in found.values() for method in panel))
    for axis, (task, panel) in zip(axes, found.items(), strict=False):
        _panel(axis, task, panel, methods, balls)
    for axis in axes[len(found) :]:
        axis.set_axis_off()
    for axis in axes[::columns]:
        axis.set_ylabel("change in success, points", fontsize=8)
    handles = [Patch(label=method, **_look(methods, method)) for method in methods]
    title = "inside the ball of each tolerance; lines: standard errors"
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(5, len(handles)), frameon=False, fontsize=9, title=title
    )
    return figure


def _look(methods: Sequence[str], method: str) -> dict[str, Any]:
    place = methods.index(method)
    hatch = _HATCHES[place % len(_HATCHES)]
    return {"facecolor": COLOURS[place % len(COLOURS)], "hatch": hatch, "edgecolor": "white"}


def _panel(axis: Axes, task: str, panel: Panel, methods: Sequence[str], balls: Sequence[float]) -> None:
    axis.set_title(f"{task.replace('_', ' ')}\n{_unedited(panel)}", fontsize=9, loc="left")
    width = 0.8 / len(methods)
    for place, method in enumerate(methods):
        known = [(i, panel[method][ball]) for i, ball in enumerate(balls) if ball in panel.get(method, {})]
        at = [i - 0.4 + (place + 0.5) * width for i, _ in known]
        changes, errors = [cell.change or 0.0 for _, cell in known], [cell.error or 0.0 for _, cell in known]
        axis.bar(at, changes, width, linewidth=0, **_look(methods, method))
        axis.errorbar(at, changes, errors, fmt="none", ecolor="black", elinewidth=0.9)
        for x in (x for x, change in zip(at, changes, strict=True) if not change):
            axis.text(x, 0, "0", ha="center", va="bottom", fontsize=6, color=_GREY)
    axis.axhline(0, color=_GREY, linewidth=0.8)
    axis.set_xticks(range(len(balls)), [f"{ball:g}" for ball in balls], fontsize=8)
    axis.tick_params(axis="y", labelsize=8)
    axis.grid(axis="y", alpha=0.25, linewidth=0.5)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _unedited(panel: Panel) -> str:
    """The success rate of each unedited model."""
    found = {cell.model: cell.initial for some in panel.values() for cell in some.values()}
    rates = [f"{'' if len(found) == 1 else f'{model} '}{rate:.1f} %" for model, rate in found.items()]
    return f"unedited: {', '.join(rates)}"
