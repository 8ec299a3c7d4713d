"""Many plans, some at a time, for scripts that carry them out: fitted first, resumable, kept when complete."""

from __future__ import annotations

import functools
import io
import os
import shlex
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import cli
from harness.cli.terminal import cells_watched
from harness.editing import learned_file
from harness.editing.editor import Learned
from harness.editing.registry import compose
from harness.errors import HarnessError
from harness.io.cache import in_cache
from harness.models.lm import load
from harness.runs import plan_grid
from harness.runs.crew.cells import Cell, Crew, Report
from harness.runs.crew.dispatch import run_cells
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.resolve import resolve
from harness.runs.several import PlanJob, carry_out, plan_cell

__all__ = ["call", "identity", "kept", "run_plans", "shown", "study"]


def identity(plan: Plan) -> str:
    """The id of the plan's record."""
    return resolve(plan).id


def study(path: Path) -> list[Plan]:
    """The plans of a file, as ``harness run --config`` reads it."""
    return plan_grid.plans(Plan.read(path), where=str(path))


def kept(plan: Plan, folder: Path) -> list[Path]:
    """The complete record of a plan: one path or none."""
    return list(folder.glob(f"*--{identity(plan)[:8]}.json"))


def shown(plan: Plan) -> str:
    """A plan in one line."""
    settings = " ".join(f"{key}={value}" for key, value in plan.settings.items())
    return f"{plan.editor} {settings}{' ' * bool(settings)}{plan.model} {plan.edits} {plan.mode} {plan.seed}"


def run_plans(plans: Sequence[Plan], folder: Path, device: str, jobs: int) -> int:
    """Run plans, some at a time, each on one thread; their editors learn first.

    Returns:
        How many failed.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    lessons = [Cell(" ".join(words), words) for words in _lessons(plans, device)]
    failed = _run(lessons, _learn, jobs)
    cells = [cell for plan in plans if (cell := _cell(plan, RunOptions(folder, device=device)))]
    return failed + len(plans) - len(cells) + _run(cells, _carry_out, jobs)


def _cell(plan: Plan, options: RunOptions) -> Cell[PlanJob] | None:
    """A plan as a cell; None of one that cannot be carried out, which is said."""
    try:
        return plan_cell(plan, resolve(plan), options, again=True)
    except HarnessError as error:
        print(f"{plan.editor}: {error}", flush=True)
        return None


def _run(cells: Sequence[Cell[Any]], work: Any, jobs: int) -> int:
    """Carry out cells, and say what failed, in how many."""
    with cells_watched(len(cells), jobs > 1) as watcher:
        failed = [one for one in run_cells(cells, work, Crew(jobs), watcher=watcher) if one.error is not None]
    for one in failed:
        print(f"{one.cell.shown or one.cell.name}: {one.error}", flush=True)
    return len(failed)


def _lessons(plans: Sequence[Plan], device: str) -> list[list[str]]:
    """The commands by which editors learn what they have not learned yet, each once."""
    missing: dict[Path, list[str]] = {}
    loaded = functools.lru_cache(maxsize=1)(load)
    for plan in plans:
        recipe = compose(plan.editor)
        if plan.fitted or not issubclass(recipe.cls, Learned):
            continue
        lm = loaded(plan.model, dtype=plan.dtype, device=device)
        method = recipe.build(lm, plan.settings, seed=plan.seed).root
        path = learned_file.default_path(method, lm)
        if not in_cache(path):
            command = shlex.split(learned_file.fit_command(method, lm))[1:]
            missing[path] = [*command, "--edits", plan.edits, "--data-dir", plan.data_dir, "--device", device]
    return list(missing.values())


def _learn(words: Sequence[str], report: Report) -> None:
    """Let an editor learn, by a command."""
    report(words[0], 0, 0)
    if call(words):
        raise HarnessError(f"{' '.join(words)} failed")


def _carry_out(job: PlanJob, report: Report) -> None:
    """Run one plan in a folder of its own; its record appears in the folder of all when it is complete."""
    folder = job.options.output
    workshop = folder / f".{job.record[:8]}"
    workshop.mkdir(exist_ok=True)
    carry_out(replace(job, options=replace(job.options, output=workshop)), report)
    for path in workshop.glob("*.json*"):
        path.replace(folder / path.name)
    for leftover in workshop.iterdir():
        leftover.unlink()
    workshop.rmdir()


def call(options: Sequence[str]) -> int:
    """A command of the harness in this process, which has loaded it already; what it says is printed."""
    said = io.StringIO()
    code: object = 0
    with redirect_stdout(said), redirect_stderr(said):
        try:
            cli.main(options)
        except SystemExit as end:
            code = end.code
    print(f"{' '.join(options)}\n{said.getvalue()}" if code else said.getvalue(), flush=True)
    return int(bool(code))
