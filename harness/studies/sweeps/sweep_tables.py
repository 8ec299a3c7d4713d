"""Trainings of a sweep to the paper's tables: what each ball chooses on validation pairs, and what that gains at test.

Source: Hewitt et al. 2024, "Model Editing with Canonical Examples", arXiv 2402.06155, section 4 and tables 3 to 8.  In
each cell (a model, a task, a method) the configuration that gains most inside a ball is chosen, with its epoch; its
trainings on the test pair are the repetitions.  Both rules of :mod:`harness.studies.sweeps.ball` choose and report;
``released`` measures hard negatives where the published runs did, ``plain`` on the split's own.  Pure: the same trials
give the same tables, in whatever order they come.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import get_args

from harness.exam.canonical import SETS
from harness.reports.registry import find_format
from harness.reports.table import Data, Page, Section, Table, TableRow, text_cells
from harness.studies.sweeps.ball import (
    TOLERANCES,
    Epoch,
    Rule,
    change,
    chosen_epoch,
    in_ball,
    mean_change,
    reported_epoch,
)
from harness.studies.sweeps.cells import Quantity, SweepCell, heading, model_tables
from harness.studies.sweeps.trial import Trial

__all__ = [
    "RULES",
    "best_anywhere",
    "best_configuration",
    "cells",
    "chosen_trials",
    "format_tables",
    "groups",
    "states",
    "sweep_page",
]

RULES: tuple[Rule, ...] = get_args(Rule)

CellKey = tuple[str, str, str]
"""Model, task and method."""

_TITLES: tuple[tuple[Quantity, str], ...] = (
    ("change", "Change in success, percentage points"),
    ("hard_negative", "Hard negatives, nats"),
)
_TITLE = "Model editing with canonical examples"
_LEGEND = (
    "A row is a task, a column a method and the tolerance of its ball; ± is the standard error over repetitions, (1/2) "
    "says that one of two lay in the ball.",
)
_REFUSED = "Epochs inside the ball, of all that were trained on the validation pair; best change with no ball"


def groups(trials: Iterable[Trial]) -> dict[CellKey, list[Trial]]:
    """The trials of each cell: models by name, tasks in the order of the paper, then methods, then configurations."""
    found: dict[CellKey, list[Trial]] = {}
    everything = sorted(trials, key=lambda one: (SETS.index(one.job.task), one.job.method, one.job.configuration))
    models = _models(everything)
    for one in sorted(everything, key=lambda one: models[_source(one)]):
        found.setdefault((models[_source(one)], one.job.task, one.job.method), []).append(one)
    return found


def _source(one: Trial) -> tuple[str, str, str]:
    return one.job.shown, one.job.data_dir, one.job.dtype


def _models(trials: Sequence[Trial]) -> dict[tuple[str, str, str], str]:
    """A model's name, with its rows and its dtype where the name alone says too little, and else with whole paths."""
    sources = list(dict.fromkeys(_source(one) for one in trials))
    ways = [
        [Path(model).name for model, _, _ in sources],
        [f"{Path(model).name} ({Path(rows).name}, {dtype})" for model, rows, dtype in sources],
        [f"{model} ({rows}, {dtype})" for model, rows, dtype in sources],
    ]
    return {source: next(way[i] for way in ways if way.count(way[i]) == 1) for i, source in enumerate(sources)}


# --- choosing ---------------------------------------------------------------------------------------------------------


def best_configuration(trials: Sequence[Trial], tolerance: float, rule: Rule) -> tuple[Trial, int]:
    """The configuration that gains most inside a ball, and its epoch.

    Of equals the one that leaves general text better off, then the one whose hash is smaller.

    Args:
        trials: the configurations of one method on one validation pair.
        tolerance: the size of the ball, as a share of the initial loss.
        rule: how an epoch is chosen, see :func:`harness.studies.sweeps.ball.chosen_epoch`.
    """

    def rank(pair: tuple[Trial, int]) -> tuple[float, float, str]:
        one, epoch = pair
        return one.log[epoch].failure - one.log[0].failure, one.log[epoch].general, one.job.configuration

    return min(((one, chosen_epoch(one.log, tolerance, rule)) for one in trials), key=rank)


def chosen_trials(trials: Sequence[Trial], balls: Sequence[float]) -> list[Trial]:
    """The configurations of one cell that some ball and rule has chosen, each once.

    Where a ball leaves the unedited model, any training reports no change, so that this choice needs none of its own.
    """
    picks = [best_configuration(trials, tolerance, rule) for tolerance in balls for rule in RULES]
    edited = [one for one, epoch in picks if epoch] or [picks[0][0]]
    return list({one.job.configuration: one for one in edited}.values())


# --- cells ------------------------------------------------------------------------------------------------------------


def cells(trials: Iterable[Trial], rule: Rule, balls: Sequence[float] = TOLERANCES) -> list[SweepCell]:
    """A cell for each model, task, method and ball: what the configuration chosen on the validation pair gains at test.

    A cell whose configuration was not trained on the test pair has no values.

    Args:
        trials: the trainings of a sweep, of both splits.
        rule: how an epoch is chosen and reported.
        balls: the sizes of the balls, as shares of the initial loss.
    """
    found = []
    for key, members in groups(trials).items():
        validated = [one for one in members if one.job.split == "val"]
        tested = [one for one in members if one.job.split == "test"]
        for tolerance in balls if validated else ():
            best, epoch = best_configuration(validated, tolerance, rule)
            repetitions = _repetitions(best, epoch, [one for one in tested if one.job.ball in (None, tolerance)])
            found.append(_cell(key, tolerance, repetitions, epoch, rule))
    return found


def _repetitions(best: Trial, epoch: int, tested: Sequence[Trial]) -> list[Trial]:
    """The trainings of the chosen configuration; of the unedited model those of any one, as all report no change."""
    wanted = best.job.configuration if epoch or not tested else tested[0].job.configuration
    return [one for one in tested if one.job.configuration == wanted]


def _cell(key: CellKey, tolerance: float, trials: Sequence[Trial], epoch: int, rule: Rule) -> SweepCell:
    if not trials:
        return SweepCell(*key, tolerance, runs=0, of=0)
    logs = [_up_to(one, epoch) for one in trials]
    reported = [reported_epoch(log, tolerance=tolerance, chosen=epoch, rule=rule) for log in logs]
    ends = [log[i] for log, i in zip(logs, reported, strict=True)]
    starts = [one.log[0] for one in trials]
    moved = change([e.failure for e in starts], [e.failure for e in ends])
    hard = "hard_negative_released" if rule == "released" else "hard_negative"
    before, after = ([float(getattr(e, hard)) for e in some] for some in (starts, ends))
    initial = 100 * (1 - math.fsum(e.failure for e in starts) / len(starts))
    return SweepCell(
        *key,
        tolerance,
        initial=initial,
        success=initial + (moved.value or 0.0),
        change=moved.value,
        error=moved.error,
        hard_initial=math.fsum(before) / len(before),
        hard_change=mean_change(before, after).value,
        runs=sum(i > 0 for i in reported),
        of=len(trials),
    )


def _up_to(one: Trial, epoch: int) -> Sequence[Epoch]:
    """The log of a training up to an epoch, also where it ended before.

    What a training leaves that has learned enough stays as it is; what comes after one that broke down is outside of
    every ball.
    """
    rest = one.log[-1] if one.reason is None else Epoch(math.inf, 1.0)
    return [*one.log, *[rest] * (epoch + 1 - len(one.log))]


# --- what a ball refuses ----------------------------------------------------------------------------------------------


def states(trials: Sequence[Trial], tolerance: float) -> tuple[int, int]:
    """How many epochs of the trainings of one cell lie in a ball, and how many there are; the unedited one is none."""
    within = [in_ball(epoch.general, one.log[0].general, tolerance) for one in trials for epoch in one.log[1:]]
    return sum(within), len(within)


def best_anywhere(trials: Sequence[Trial]) -> float:
    """The largest change of any epoch, in percentage points, wherever its general loss lies; 0 where none gains."""
    return max(100 * (one.log[0].failure - epoch.failure) for one in trials for epoch in one.log)


def _refused(trials: Sequence[Trial], balls: Sequence[float]) -> tuple[Table, ...]:
    """One table a model."""
    found = {key: [one for one in some if one.job.split == "val"] for key, some in groups(trials).items()}
    tables = []
    for model in dict.fromkeys(key[0] for key in found):
        mine = {key[1:]: some for key, some in found.items() if key[0] == model and some}
        methods = sorted({method for _, method in mine})
        tasks = list(dict.fromkeys(task for task, _ in mine))
        heads = heading(
            "task", *(f"{method} {ball:g}" for ball in balls for method in methods), *(f"{m} best" for m in methods)
        )
        rows = [_refused_row(task, mine, tasks=[task], methods=methods, balls=balls) for task in tasks]
        total = _refused_row("all", mine, tasks=tasks, methods=methods, balls=balls)
        tables.append(Table(model, heads, (*rows, TableRow(total.cells, "total"))))
    return tuple(tables)


Trained = Mapping[tuple[str, str], Sequence[Trial]]


def _refused_row(
    label: str, found: Trained, *, tasks: Sequence[str], methods: Sequence[str], balls: Sequence[float]
) -> TableRow:
    return TableRow(text_cells([label, *_inside(found, tasks, methods, balls), *_bests(found, tasks, methods)]))


def _inside(found: Trained, tasks: Sequence[str], methods: Sequence[str], balls: Sequence[float]) -> list[str]:
    pairs = [states(_of(found, tasks, method), tolerance) for tolerance in balls for method in methods]
    return [f"{count}/{total}" for count, total in pairs]


def _bests(found: Trained, tasks: Sequence[str], methods: Sequence[str]) -> list[str]:
    """Of several tasks the mean."""
    known = [[best_anywhere(found[task, method]) for task in tasks if (task, method) in found] for method in methods]
    return [f"{math.fsum(some) / len(some):+.1f}" if len(some) == len(tasks) else "-" for some in known]


def _of(found: Trained, tasks: Sequence[str], method: str) -> list[Trial]:
    return [one for task in tasks for one in found.get((task, method), ())]


# --- tables -----------------------------------------------------------------------------------------------------------


def format_tables(trials: Sequence[Trial], kind: str = "md", balls: Sequence[float] = TOLERANCES) -> str:
    """The paper's tables in a format.

    Args:
        trials: trainings on both pairs, of one or several sweeps.
        kind: a format, such as ``md`` or ``latex``; those that a machine reads have a row for each cell and rule.
        balls: tolerances.

    Raises:
        UsageError: there is no such format.
    """
    return find_format(kind).write([sweep_page(trials, balls)])


def sweep_page(trials: Sequence[Trial], balls: Sequence[float] = TOLERANCES) -> Page:
    """The paper's tables: change in success and hard negatives under both rules, and what the balls refuse."""
    found = {rule: cells(trials, rule, balls) for rule in RULES}
    sections = [
        Section(f"{title} ({rule})", model_tables(found[rule], quantity))
        for rule in RULES
        for quantity, title in _TITLES
    ]
    rows = [(rule, *asdict(cell).values()) for rule in RULES for cell in found[rule]]
    data = Data(("rule", *(f.name for f in fields(SweepCell))), tuple(rows))
    return Page(_TITLE, _LEGEND, (*sections, Section(_REFUSED, _refused(trials, balls))), data=data)
