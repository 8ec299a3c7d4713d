"""Several plans: the cells of a crew."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from harness.errors import HarnessError, UsageError
from harness.io.files import require_writable
from harness.io.nobody import tell_nobody
from harness.runs.crew.cells import ALONE, Cell, Crew, Ended, Report, Watcher, require_all
from harness.runs.crew.dispatch import run_cells
from harness.runs.folder import exclusive
from harness.runs.loaded import OneModel
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.portions import count_portions, is_divided, patches_of, remove_portions
from harness.runs.record import Record, record_name
from harness.runs.record_file import read_record
from harness.runs.resolve import Resolved, resolve
from harness.runs.runner import finished, run_plan, run_shard
from harness.runs.writer import remove_leftovers

__all__ = ["Outcome", "PlanJob", "carry_out", "plan_cell", "run_again", "run_each"]


log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a plan.

    Attributes:
        plan: the plan.
        record: its record; None where it failed.
        path: where the record lies.
        error: why it failed.
        known: whether the record was complete before.
    """

    plan: Plan
    record: Record | None = None
    path: Path | None = None
    error: HarnessError | None = None
    known: bool = False


@dataclass(frozen=True)
class PlanJob:
    """A plan that is to be carried out.

    Attributes:
        plan: the plan.
        record: the id of its record.
        options: how it is carried out.
        again: whether it is carried out where its record is complete.
        shard: which of its shards is made, which are put together when the plan itself is carried out.
    """

    plan: Plan
    record: str
    options: RunOptions
    again: bool = False
    shard: int | None = None


def plan_cell(plan: Plan, resolved: Resolved, options: RunOptions, *, again: bool = False) -> Cell[PlanJob]:
    """A plan as a cell of a crew.

    Args:
        plan: the plan.
        resolved: what it names.
        options: how it is carried out.
        again: whether it is carried out where its record is complete.
    """
    edits = plan.edits if plan.num_edits is None else f"{Path(plan.edits).name}:{plan.num_edits}"
    parts = [plan.editor, *(f"{key}={value}" for key, value in plan.settings.items()), Path(plan.model).name, edits]
    shown = " ".join([*parts, resolved.mode, f"seed {plan.seed}"])
    job = PlanJob(plan, resolved.id, replace(options, report=tell_nobody), again)
    return Cell(resolved.id, job, shown, f"{plan.model} {plan.dtype} {plan.model_args}")


def run_each(
    plans: Sequence[Plan], options: RunOptions, *, watcher: Watcher | None = None, crew: Crew = ALONE
) -> Iterator[Outcome]:
    """Run plans, and say of each what became of it.

    Of several, those whose record is complete are not run again, and one that fails does not keep the others from it.

    Args:
        plans: the plans.
        options: how they are carried out.
        watcher: who is told how they come along.
        crew: who carries them out; by default this process, one after the other.

    Raises:
        HarnessError: the only plan fails.
        CheckFailed: some of several have failed, when all are through.
    """
    # A mistake in the last plan is told before the first is run.
    yield from _run_resolved([(plan, resolve(plan)) for plan in plans], options, watcher=watcher, crew=crew)


def _run_resolved(
    plans: Sequence[tuple[Plan, Resolved]], options: RunOptions, *, watcher: Watcher | None, crew: Crew
) -> Iterator[Outcome]:
    """Run plans that are resolved; two of them may turn out to be one."""
    several = len(plans) > 1
    found = {one.id: (plan, one) for plan, one in plans}
    cells = []
    for plan, resolved in found.values():
        complete = finished(resolved, options.output) if several and not options.fresh else None
        if complete is None:
            cells.append(plan_cell(plan, resolved, options, again=options.fresh or not several))
        else:
            yield Outcome(plan, complete, _cleaned(options.output, complete), known=True)
    failed = []
    shards = [shard for cell in cells for shard in _shards(cell, found[cell.name][1])]
    work = functools.partial(_here, {key: one for key, (_, one) in found.items()}) if crew.here else carry_out
    for one in run_cells(shards, work, crew, watcher=watcher):
        if one.error is not None:  # the run of the plan, which comes to it again, says so
            log.warning("%s: %s", one.cell.shown, one.error)
    for one in run_cells(cells, work, crew, watcher=watcher):
        if one.error is not None and not several:
            raise one.error
        failed += [one] if one.error is not None else []
        yield _outcome(one)
    _models().forget()
    require_all(failed, len(found), "plans")


def run_again(
    known: Sequence[Record], options: RunOptions, *, watcher: Watcher | None = None, crew: Crew = ALONE
) -> Iterator[tuple[Record, Record]]:
    """Carry out the plans of records again.

    Args:
        known: the records.
        options: how their plans are carried out; in a folder that holds no record of them.
        watcher: who is told how they come along.
        crew: who carries them out; by default this process, one after the other.

    Yields:
        A record, and that of its plan as it is now.

    Raises:
        HarnessError: the only plan fails.
        CheckFailed: some of several have failed, when all are through.
    """
    plans = [(plan, resolve(plan)) for plan in (Plan.from_json(record.plan) for record in known)]
    asked: dict[str, list[Record]] = {}
    for record, (_, resolved) in zip(known, plans, strict=True):
        asked.setdefault(resolved.id, []).append(record)  # not by its own id: a default may have changed since
    for outcome in _run_resolved(plans, options, watcher=watcher, crew=crew):
        if outcome.record is not None:
            yield from ((old, outcome.record) for old in asked[outcome.record.id])


def _shards(cell: Cell[PlanJob], resolved: Resolved) -> Iterator[Cell[PlanJob]]:
    """The shards of a plan, where it is asked for in some and is divided into portions."""
    options, patches = cell.job.options, patches_of(len(resolved.cases), resolved.plan.cases_at_once)
    if options.shards == 1:
        return
    if not is_divided(patches, resolved.mode):
        log.warning("%s: made as a whole: --shards divides isolated edits, where there are enough of them", cell.shown)
        return
    if options.fresh:
        remove_portions(options.output, resolved.id)
    for shard in range(min(options.shards, count_portions(patches))):
        said = f"shard {shard + 1} of {options.shards}"
        job = replace(cell.job, shard=shard)
        yield Cell(f"{cell.name} {said}", job, f"{cell.shown}, {said}", cell.shares)


def _outcome(one: Ended[PlanJob, tuple[Path, bool]]) -> Outcome:
    if one.done is None:
        return Outcome(one.cell.job.plan, error=one.error)
    path, known = one.done
    return Outcome(one.cell.job.plan, read_record(path, values=True), path, known=known)


def carry_out(job: PlanJob, report: Report) -> tuple[Path, bool]:
    """Carry out a plan, with the model of the one before where that is the same.

    Args:
        job: the plan, and how it is carried out.
        report: told how far it is.

    Returns:
        Where its record lies, and whether it was complete before.

    Raises:
        HarnessError: it fails.
    """
    return _carried_out(resolve(job.plan), job, report)


def _here(found: Mapping[str, Resolved], job: PlanJob, report: Report) -> tuple[Path, bool]:
    """Carry out a plan that is resolved already."""
    return _carried_out(found[job.record], job, report)


def _carried_out(resolved: Resolved, job: PlanJob, report: Report) -> tuple[Path, bool]:
    options = replace(job.options, report=report)
    # Another crew at work on the same folder may have come to it first.
    complete = None if job.again else finished(resolved, options.output)
    if complete is not None:
        return _cleaned(options.output, complete), True
    require_writable(options.output)
    try:
        if job.shard is not None:
            run_shard(resolved, options, job.shard, models=_models())
            return options.output, False
        record = run_plan(resolved, options, _models())
    except BaseException:
        _models().forget()
        raise
    return options.output / f"{record_name(record)}.json", False


@functools.lru_cache(maxsize=1)
def _models() -> OneModel:
    """The model that this process has loaded for its cells."""
    return OneModel()


def _cleaned(folder: Path, record: Record) -> Path:
    """Where a complete record lies, without what a run that was killed at its end left beside it, or is at work on."""
    with suppress(UsageError), exclusive(folder, record.id):
        remove_leftovers(folder, record)
    return folder / f"{record_name(record)}.json"
