"""Commands that give records to others: ``export`` and ``submit``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli import options as opt
from harness.cli import terminal, values

if TYPE_CHECKING:
    from harness.reports.submissions import Submission

__all__ = ["export", "submit"]


@click.command()
@click.argument("paths", nargs=-1, required=True, type=opt.PATH, metavar="RECORD...")
@opt.EXPORT
@opt.TO.but(help="The folder of the files.")
@opt.DOCUMENTS
@opt.HUB_DATASET
def export(*, paths: Sequence[Path], form: str, folder: Path, documents: str, hub: Sequence[str]) -> None:
    r"""Write records (files, folders, or exported tables) for others' tools.

    \b
    csv, parquet   three tidy tables; `harness leaderboard DIR` reads them again
    eee            Every Eval Ever 0.3.0
    lm-eval        the result files of lm-evaluation-harness
    hf             .eval_results of the page of a model on the Hub
    """
    from harness import api

    written = api.export(paths, folder, format=form, documents=documents, hub=values.hub_datasets(hub))
    terminal.say_where(f"[green]{len(written)} file{'s' * (len(written) != 1)} written to[/]", folder)


@click.command()
@click.argument("path", type=opt.PATH, metavar="RECORD|FOLDER")
@opt.CONTACT
@opt.HARDWARE
@opt.PATCH.but(help="The file of saved edits.", otherwise="that beside the record", kind=opt.PATH)
@opt.COMMUNITY
@opt.CHECK
@opt.RESCORE
def submit(
    *,
    path: Path,
    contact: str | None,
    hardware: str | None,
    patch: Path | None,
    folder: Path,
    check: bool,
    rescore: int | None,
) -> None:
    """Write the folder that adds the record of a run to the board; with --check, see that submissions are in order."""
    from harness.errors import UsageError
    from harness.reports.submissions import make_submission

    if check:
        _check_submissions(path, rescore or 0)
        return
    if rescore:
        raise UsageError("--rescore goes with --check; submit the record first")
    if contact is None:
        raise UsageError("--contact is missing; say who can be asked about the record")
    made = make_submission(path, folder, contact=contact, hardware=hardware, patch=patch)
    _say_submission(made)


def _say_submission(found: Submission) -> None:
    terminal.say_where(f"[green]{found.record.standing}:[/]", found.folder)
    for note in found.notes:
        click.echo(f"  note: {note}")


def _check_submissions(folder: Path, count: int) -> None:
    """Look at every submission in a folder, and carry out some plans again.

    Raises:
        DataError: there is none.
        CheckFailed: one is not in order.
    """
    from harness.errors import CheckFailed
    from harness.reports.submissions import folders_of_submissions

    places = folders_of_submissions(folder)
    found = [one for place in places if (one := _in_order(place)) is not None]
    wrong = len(places) - len(found) + sum(not _holds(one) for one in _chosen(found, count))
    if wrong:
        raise CheckFailed(f"{wrong} of {len(places)} submissions are not in order; what is wrong stands above")


def _in_order(place: Path) -> Submission | None:
    """The submission of a folder; None where something is wrong with it, which is told."""
    from harness.errors import DataError
    from harness.reports.submissions import read_submission

    try:
        found = read_submission(place)
    except DataError as error:
        terminal.tell(str(error))
        return None
    _say_submission(found)
    return found


def _chosen(found: Sequence[Submission], count: int) -> Sequence[Submission]:
    """Those whose plans are carried out again: of what can be, first what never was."""
    from harness.reports.cells import RESCORED
    from harness.reports.rescoring import why_not_here

    can = [one for one in found if count and why_not_here(one.record) is None]
    return sorted(can, key=lambda one: (one.record.standing == RESCORED, one.record.id))[:count]


def _holds(one: Submission) -> bool:
    """Whether the plan of a submission, carried out again, gives its numbers; that it does is written down."""
    from datetime import date

    from harness.reports.rescoring import counted_numbers, rescore
    from harness.reports.submissions import note_rescored
    from harness.runs.versions import versions

    with terminal.watched() as report:
        moved = rescore(one.record, report)
    if moved:
        terminal.tell(
            f"{one.folder}: carried out again, it is another one in {len(moved)} places; the first: {moved[0]}"
        )
        return False
    again = note_rescored(one, numbers=counted_numbers(one.record), date=date.today().isoformat(), versions=versions())
    _say_submission(again)
    return True
