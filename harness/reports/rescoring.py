"""Carries out the plan of a submission again, where everything that it names ships with the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.exam.tasks import catalogue
from harness.io.nobody import tell_nobody
from harness.models.lm import shipped
from harness.reports.regressions import Moved, regressions
from harness.runs.options import RunOptions
from harness.runs.plan import NO_EDITS, Plan
from harness.runs.record import Record
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan

__all__ = ["counted_numbers", "rescore", "why_not_here"]

Report = Callable[[str, int, int], None]


def why_not_here(record: Record) -> str | None:
    """Why the plan of a record is not carried out again here; None where it can be.

    Only what ships is run: a stranger's plan names no code, file or address that this machine would open.
    """
    plan = record.plan
    if plan.get("model") not in shipped() or plan.get("model_args") or plan.get("arch"):
        return "its model does not ship with the package"
    if ".py" in str(plan.get("editor")) or "/" in str(plan.get("editor")):
        return "its editor is a file"
    if plan.get("data_dir", "mini") != "mini" or plan.get("text") not in (None, "mini"):
        return "its rows or texts do not ship with the package"
    for key in ("patch", "fitted", "include_path"):
        if plan.get(key):
            return f"its plan names files ({key})"
    known = catalogue()
    odd = [name for name in [*plan.get("tasks", ()), plan.get("edits")] if name not in known and name != NO_EDITS]
    return f"its plan names {odd[0]}, which is no task of this project" if odd else None


def rescore(record: Record, report: Report = tell_nobody) -> list[str]:
    """What is otherwise where the plan of a record is carried out again: numbers beyond their tolerance, or its inputs.

    Args:
        record: a record of which :func:`why_not_here` is None.
        report: told what is done.

    Raises:
        HarnessError: the plan cannot be carried out.
    """
    with TemporaryDirectory(prefix="harness-") as folder:
        again = run_plan(resolve(Plan.from_json(record.plan)), RunOptions(Path(folder), cache=False, report=report))
    inputs = [key for key in ("model", "edits", "data") if _named(record, key) != _named(again, key)]
    return [*(f"{key} of another sha256" for key in inputs), *map(_said, regressions(record, again))]


def _said(one: Moved) -> str:
    return f"{one.task} {one.metric} after {one.edits} edits, whose {one.what} was {one.before} and is {one.after}"


def _named(record: Record, key: str) -> object:
    """The hashes of the model, of the edits, or of the rows of each task."""
    if key == "data":
        return {task: source.get("sha256") for task, source in record.data.items()}
    found: dict[str, object] = getattr(record, key)
    return found.get("sha256")


def counted_numbers(record: Record) -> int:
    """How many numbers a record has, which are compared where its plan is carried out again."""
    return sum(len(measures) for point in record.points for measures in point["tasks"].values())
