"""Curves: what is drawn, from which numbers, and what cannot be."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from synthetic import record

from harness.errors import DataError, UsageError
from harness.reports import curves
from harness.runs.record import Record

COUNTS = (0, 1, 10, 100)


def runs() -> list[Record]:
    return [record("memit", 0.9, mode="sequential", counts=COUNTS), record("kn", 0.2, mode="sequential", counts=COUNTS)]


def test_the_numbers_that_are_drawn_are_those_of_the_records() -> None:
    made = runs()
    found = curves.curves(made)
    assert next(iter(found)) == ("counterfact", "efficacy")
    for (task, metric), lines in found.items():
        assert list(lines) == ["memit", "kn"]
        for kept, line in zip(made, lines.values(), strict=True):
            assert [row[0] for row in line] == list(COUNTS)
            for edits, value, low, high in line:
                measure = kept.tasks(edits)[task][metric]
                assert (value, [low, high]) == (measure["value"], measure["interval"])


def test_runs_that_differ_in_the_seed_alone_are_one_line() -> None:
    made = [record("memit", 0.9, mode="sequential", counts=COUNTS, seed=seed) for seed in (0, 1)]
    (lines,) = {tuple(lines) for lines in curves.curves(made).values()}
    assert lines == ("memit",)


def test_two_models_do_not_share_a_figure() -> None:
    first, second = runs()
    other = replace(second, model={**second.model, "sha256": "0" * 64})
    with pytest.raises(DataError, match="of several model"):
        curves.curves([first, other])


def test_a_record_without_a_curve_is_told() -> None:
    with pytest.raises(DataError, match="no record holds a curve"):
        curves.curves([replace(record("memit", 0.9, counts=(0,)), values=None)])


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_the_same_records_give_the_same_file(tmp_path: Path, ending: str) -> None:
    for name in ("a", "b"):
        curves.draw_curves(runs(), tmp_path / f"{name}{ending}")
    first, second = ((tmp_path / f"{name}{ending}").read_bytes() for name in ("a", "b"))
    assert first == second
    assert len(first) > 10_000


def test_every_editor_is_told_apart_without_colour(tmp_path: Path) -> None:
    names = [f"editor{i}" for i in range(12)]
    made = [record(name, 0.5, mode="sequential", counts=COUNTS, tasks=("NLI",)) for name in names]
    figure = curves._figure(curves.curves(made), made[0])
    lines = figure.axes[0].get_lines()[1:]
    styles = {(line.get_marker(), line.get_linestyle(), str(line.get_color())) for line in lines}
    assert len(lines) == len(styles) == 12
    (legend,) = [axis.get_legend() for axis in figure.axes if axis.get_legend()] or figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*names, "unedited"]
    assert legend.get_title().get_text() == "bars: 95 % intervals"


def test_bands_are_the_intervals_and_panels_show_what_there_was_before_the_first_edit() -> None:
    made = runs()
    found = curves.curves(made)
    figure = curves._figure(found, made[0])
    for axis, ((task, metric), lines) in zip(figure.axes, found.items(), strict=False):
        better = made[0].tasks(COUNTS[-1])[task][metric]["higher_is_better"]
        arrow = {True: " ↑", False: " ↓", None: ""}[better]
        assert axis.get_title("left") == f"{task}\n{metric.replace('_', ' ')}{arrow}"
        dashed, *drawn = axis.get_lines()
        assert list(dashed.get_ydata()) == [lines["memit"][0][1]] * 2
        for line, band, rows in zip(drawn, axis.collections, lines.values(), strict=True):
            known = rows[1:] if metric in {"efficacy", "paraphrase"} else rows
            assert [tuple(point) for point in line.get_xydata()] == [(row[0], row[1]) for row in known]
            corners = {tuple(corner) for path in band.get_paths() for corner in path.vertices}
            assert corners == {(row[0], end) for row in rows[1:] for end in row[2:]}


def test_lines_that_would_hide_each_other_stand_beside_one_another() -> None:
    made = [record(f"editor{i}", 0.5, mode="sequential", counts=COUNTS, tasks=("NLI",)) for i in range(6)]
    figure = curves._figure(curves.curves(made), made[0])
    figure.canvas.draw()
    axis = figure.axes[0]
    lines = axis.get_lines()[1:]
    assert len({tuple(map(tuple, line.get_xydata())) for line in lines}) == 1
    shown = [line.get_transform().transform(line.get_xydata())[0, 0] for line in lines]
    assert all(b - a == pytest.approx(1.6 * figure.dpi / 72) for a, b in itertools.pairwise(shown))
    assert len(axis.collections) == 6
    for bars in axis.collections:
        ends = {tuple(end) for path in bars.get_paths() for end in path.vertices}
        (line,) = {tuple(rows) for rows in curves.curves(made)[axis_panel(axis)].values()}
        assert ends == {(row[0], end) for row in line if row[0] for end in row[2:]}


def axis_panel(axis: Axes) -> tuple[str, str]:
    task, metric = axis.get_title("left").rstrip(" ↑↓").split("\n")
    return task, metric.replace(" ", "_")


def test_the_unedited_model_beside_others_has_a_point_and_no_line(tmp_path: Path) -> None:
    curves.draw_curves([*runs(), record("none", 0.5, mode="batch", counts=(0,))], tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").stat().st_size > 10_000


def test_what_is_no_share_is_drawn_where_it_is() -> None:
    rows = [(0, 30.0, 29.0, 31.0), (1, 60.0, 55.0, 65.0)]
    figure = curves._figure({("wikitext", "word_perplexity"): {"memit": rows}}, runs()[0])
    low, high = figure.axes[0].get_ylim()
    assert low < 30
    assert high > 60


def test_a_file_that_is_no_figure_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'\.gif' is no format of figures"):
        curves.draw_curves(runs(), tmp_path / "curves.gif")
    with pytest.raises(UsageError, match="cannot be written"):
        curves.draw_curves(runs(), tmp_path / "none" / "curves.png")
