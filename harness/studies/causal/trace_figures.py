"""Tracing studies to figures: effects by layer, by the role of a token, and token by token of one fact.

Lines are the Okabe-Ito colours with a marker each, bands the 95 % intervals; maps run from white to one dark colour a
kind, and share one scale, so that panels can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import DataError, UsageError
from harness.reports.curves import COLOURS, MARKERS, save_figure
from harness.studies.causal.trace import Traced
from harness.studies.causal.tracing import TracingStudy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_traces"]

_NAMES = {"mlp": "feed-forward output", "attn": "attention output", "block": "hidden state"}
_MAPS = {"mlp": "Greens", "attn": "Reds", "block": "Purples"}
_LINES = {
    "fraction": "restored: greatest over tokens",
    "fraction_last_subject": "restored: last subject token",
    "removed": "lost if zero at the subject",
}


def draw_traces(studies: Sequence[TracingStudy], what: str, *, path: Path, fact: str | None = None) -> None:
    """Draw studies of one model into a file.

    Args:
        studies: the studies, a line or a panel each.
        what: ``layers``, the averages by layer; ``roles``, those by the role of a token; ``fact``, one fact.
        path: the file; its ending says the format.
        fact: the id of the fact; by default the first.

    Raises:
        UsageError: the file's ending is no format, it cannot be written, or matplotlib is not installed.
        DataError: the studies are of several models, have different facts of one id, or hold nothing to draw.
    """
    if len({study.record["model"]["sha256"] for study in studies}) > 1:
        raise DataError("the records are of several models; draw those of one")
    for study in studies:
        if not study.traced:
            raise DataError(f"record {study.record['id']}: no fact was traced; there is nothing to draw")
    save_figure(lambda: _figure(studies, what, fact), path)


def _figure(studies: Sequence[TracingStudy], what: str, fact: str | None) -> Figure:
    if what == "fact":
        return _of_fact(studies, fact)
    return _by_layer(studies) if what == "layers" else _by_role(studies)


def _label(study: TracingStudy, studies: Sequence[TracingStudy]) -> str:
    settings = study.record["plan"]["settings"]
    width = settings["window"]
    facts = f", {_facts(study)}" if _several(studies) else ""
    return f"{_NAMES[settings['kind']]}, {'one layer' if width == 1 else f'{width} layers'}{facts}"


def _about(studies: Sequence[TracingStudy]) -> str:
    name = str(studies[0].record["model"]["name"])
    return name if _several(studies) else f"{name}, {_facts(studies[0])}"


def _facts(study: TracingStudy) -> str:
    return f"{study.record['facts']['traced']} facts of {Path(study.record['plan']['edits']).name}"


def _several(studies: Sequence[TracingStudy]) -> bool:
    """Whether they are of several sets of facts."""
    return len({_facts(study) for study in studies}) > 1


def _by_layer(studies: Sequence[TracingStudy]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.3 * len(_LINES), 3.7), layout="constrained")
    for axis, (key, title) in zip(figure.subplots(1, len(_LINES), sharex=True), _LINES.items(), strict=True):
        for place, study in enumerate(studies):
            _line(axis, study.record["layers"][key], place, _label(study, studies))
        axis.axhline(0, color="0.45", linewidth=0.8)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("layer", fontsize=8)
        _ticks(axis, study.record["model"]["layers"])
        axis.tick_params(axis="y", labelsize=7)
        axis.grid(alpha=0.25, linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False, fontsize=8)
    figure.suptitle(f"Causal tracing: {_about(studies)}", fontsize=11)
    return figure


def _line(axis: Axes, estimates: Sequence[dict[str, Any]], place: int, label: str) -> None:
    """A line with its band; layers without a value are left out."""
    rows = [(i, e["value"], *(e["interval"] or (e["value"],) * 2)) for i, e in enumerate(estimates)]
    known = [row for row in rows if row[1] is not None]
    if not known:
        return
    layers, values, lows, highs = zip(*known, strict=True)
    colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
    axis.plot(layers, values, color=colour, marker=marker, markersize=3.5, linewidth=1.4, label=label)
    axis.fill_between(layers, lows, highs, color=colour, alpha=0.13, linewidth=0)


def _ticks(axis: Axes, layers: int) -> None:
    step = max(1, -(-layers // 8))
    axis.set_xticks(range(0, layers, step), [str(layer) for layer in range(0, layers, step)], fontsize=7)


def _by_role(studies: Sequence[TracingStudy]) -> Figure:
    tables = []
    for study in studies:
        rows = [[e["value"] for e in found["effects"]] for found in study.record["roles"].values()]
        tables.append(np.array(rows, dtype=float))
    counts = {role: {study.record["roles"][role]["tokens"] for study in studies} for role in studies[0].record["roles"]}
    names = [f"{role} ({'/'.join(map(str, sorted(found)))})" for role, found in counts.items()]
    return _maps(studies, tables, names, f"Average indirect effect: {_about(studies)}", "p restored - p with noise")


def _of_fact(studies: Sequence[TracingStudy], identity: str | None) -> Figure:
    one = _find(studies[0], identity)
    found = [_find(study, one.fact.id) for study in studies]
    if any((each.fact, each.tokens) != (one.fact, one.tokens) for each in found):
        raise DataError(f"fact '{one.fact.id}' is another one in each record; draw records of one set of facts")
    begin, end = one.span
    names = [(token.strip() or repr(token)) + "*" * (begin <= i < end) for i, token in enumerate(one.tokens)]
    tables = [each.effects.numpy() for each in found]
    title = f"{studies[0].record['model']['name']}: {one.fact.prompt} ->{one.answer}"
    note = f"p = {one.clean:.3f}, with noise {one.low:.3f}"
    return _maps(studies, tables, names, f"{title}\n{note}   (* subject)", "p restored - p with noise")


def _find(study: TracingStudy, identity: str | None) -> Traced:
    for one in study.traced:
        if identity is None or one.fact.id == identity:
            return one
    some = ", ".join(one.fact.id for one in study.traced[:5])
    raise UsageError(f"fact '{identity}' was not traced in record {study.record['id']}; there are {some}, ...")


def _maps(
    studies: Sequence[TracingStudy], tables: Sequence[np.ndarray[Any, Any]], names: Sequence[str], title: str, unit: str
) -> Figure:
    """A map for each study, rows from top to bottom; negative effects are drawn as none, missing ones grey."""
    from matplotlib.figure import Figure

    top = max(float(np.nanmax(table)) for table in tables)
    figure = Figure(figsize=(1.9 + 2.7 * len(tables), 1.5 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
    for axis, study, table in zip(axes, studies, tables, strict=True):
        axis.set_facecolor("0.85")
        kind = study.record["plan"]["settings"]["kind"]
        drawn = axis.imshow(table, aspect="auto", cmap=_MAPS[kind], vmin=0, vmax=max(top, 1e-12), interpolation="none")
        axis.set_title(_label(study, studies).replace(", ", "\n"), fontsize=9)
        axis.set_xlabel("layer", fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        _ticks(axis, table.shape[1])
        figure.colorbar(drawn, ax=axis, fraction=0.06, pad=0.03).ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(unit, fontsize=8)
    return figure
