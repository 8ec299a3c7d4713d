"""Several plans, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from harness.errors import HarnessError, UsageError
from harness.runs.folder import exclusive
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.record import Record, record_name
from harness.runs.resolve import Resolved, resolve
from harness.runs.runner import finished, run_plan
from harness.runs.writer import remove_leftovers

__all__ = ["Outcome", "run_each"]

Watch = Callable[[], AbstractContextManager[Callable[[str, int, int], None]]]
"""Opens what is told, while a plan is carried out, how far it is."""


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


def run_each(plans: Sequence[Plan], options: RunOptions, watch: Watch) -> Iterator[Outcome]:
    """Run plans one after the other, and say of each what became of it.

    Of several, those whose record is complete are not run again, and one that fails does not keep the others from it.

    Args:
        plans: the plans.
        options: how they are carried out.
        watch: opens what is told how far a plan is.

    Raises:
        HarnessError: the only plan fails; or some of several have failed, when all are through.
    """
    several = len(plans) > 1
    found = [resolve(plan) for plan in plans]  # a mistake in the last one is told before the first one is run
    known = [finished(one, options.output) if several and not options.fresh else None for one in found]
    failed: list[HarnessError] = []
    for plan, resolved, complete in zip(plans, found, known, strict=True):
        try:
            kept = complete or _run(resolved, options, watch)
        except HarnessError as error:
            if not several:
                raise
            failed.append(error)
            yield Outcome(plan, error=error)
            continue
        if complete is not None:
            _clean(options.output, complete)
        yield Outcome(plan, kept, options.output / f"{record_name(kept)}.json", known=complete is not None)
    if failed:
        raise type(failed[0])(f"{len(failed)} of {len(plans)} plans failed; the same command runs them again")


def _clean(folder: Path, record: Record) -> None:
    """Remove what a run that was killed when its record was complete left; another run may be at work on it."""
    with suppress(UsageError), exclusive(folder, record.id):
        remove_leftovers(folder, record)


def _run(resolved: Resolved, options: RunOptions, watch: Watch) -> Record:
    with watch() as report:
        return run_plan(resolved, replace(options, report=report))
