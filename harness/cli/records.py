"""Commands that read records: ``leaderboard``, ``board``, ``plot``, ``show``, ``compare`` and ``check``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli import options as opt
from harness.cli import terminal

if TYPE_CHECKING:
    from harness.reports.regressions import Moved
    from harness.runs.crew.cells import Crew
    from harness.runs.record import Record

__all__ = ["belief", "board", "check", "compare", "leaderboard", "plot", "show"]


@click.command()
@click.argument("folder", type=opt.PATH)
@opt.FORMAT.but(default="md")
@opt.OUTPUT.but(help="Write to a file instead of the terminal.")
@opt.PUBLISHED.but(
    help="A CSV of values of papers, put beside the rows that they belong to.", kind=opt.PATH, flag=False
)
def leaderboard(folder: Path, *, form: str, output: Path | None, published: Path | None) -> None:
    """Make a table of the records in FOLDER: a row for each editor, a column for each task; of a sweep the paper's.

    Records of a sweep (`harness sweep`) are read from FOLDER, its `runs`, or the `runs` of its folders.
    """
    from harness import api
    from harness.io import files

    text = api.leaderboard(folder, form, published=published)
    if output is None:
        click.echo(text, nl=False)
    else:
        files.write_whole(output, text.encode())


@click.command()
@click.argument("folders", nargs=-1, required=True, type=opt.PATH)
@opt.TO.but(help="The folder of the site: new, or a board that is made again.")
@opt.PUBLISHED.but(
    help="A CSV of values of papers, put beside the rows that they belong to.", kind=opt.PATH, flag=False
)
@opt.WORKERS.but(otherwise="1")
def board(*, folders: Sequence[Path], folder: Path, published: Path | None, workers: int | None) -> None:
    """Make a site of the records in FOLDERS: a page to open from a file or to put on any web server.

    Of a folder the records in it and in its `records` are taken, or the submissions in it. What did not change since
    the last call is kept.
    """
    from harness.reports.board.site import write_board

    with terminal.watched() as report:
        built = write_board(folders, folder, published=published, crew=_crew(workers), report=report)
    terminal.say(f"{built.records} records in {built.sections} tables; {built.read} of them were read")
    terminal.say_where("board:", folder / "index.html")


def _crew(workers: int | None) -> Crew | None:
    """So many workers; None for this process, which has no need of what takes seconds to import."""
    if workers in (None, 1):
        return None
    from harness.runs.crew.cells import Crew

    return Crew(workers or 0)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=opt.PATH)
@opt.OUTPUT.but(help="The figure.", default=Path("curves.png"))
def plot(paths: Sequence[Path], output: Path) -> None:
    """Draw records (files or folders): what is left after so many edits, or what a sweep gained; png, svg or pdf."""
    from harness.reports import curves
    from harness.runs.record_file import read_records
    from harness.studies.sweeps import sweep_figures, trial

    trials = [one for path in paths for one in trial.read_trials(path)]
    if trials:
        sweep_figures.draw_sweep(trials, output)
    else:
        curves.draw_curves([kept for path in paths for kept in read_records(path, values=True)], output)
    terminal.say_where("figure:", output)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=opt.PATH)
@opt.OUTPUT.but(help="A figure: a radar of all records.", otherwise="none is drawn")
def belief(paths: Sequence[Path], output: Path | None) -> None:
    """Show by which questions edits are believed, of records (files or folders); what is not asked is missing."""
    from harness.reports.belief import belief_tables, draw_beliefs
    from harness.runs.record_file import read_records

    kept = [record for path in paths for record in read_records(path) if len(record.points) > 1]
    terminal.write_table(belief_tables(kept))
    if output is not None:
        draw_beliefs(kept, output)
        terminal.say_where("figure:", output)


@click.command()
@click.argument("path", type=opt.PATH)
@opt.SHOW_SAMPLES
@opt.CHANGED
@opt.TASK
@opt.QUESTIONS
@opt.AT
@opt.LIMIT.but(help="With --samples: how many are shown, from the first.", kind=opt.COUNT, otherwise="20")
def show(
    *, path: Path, samples: bool, changed: bool, task: str | None, kind: str | None, at: int | None, limit: int | None
) -> None:
    """Show one record whole: every metric, the plan, hashes and cost; or what was asked and said (--samples)."""
    from harness.errors import UsageError
    from harness.reports import terminal_tables

    if samples:
        _show_samples(path, changed=changed, task=task, kind=kind, at=at, limit=20 if limit is None else limit)
        return
    if changed or any(one is not None for one in (task, kind, at, limit)):
        raise UsageError("--changed, --task, --kind, --at and --limit choose among samples; give --samples too")
    terminal.write_table(terminal_tables.record_table(*_tied(path)))


def _show_samples(path: Path, *, changed: bool, task: str | None, kind: str | None, at: int | None, limit: int) -> None:
    """The first of some samples of a record, of its last stop unless another one is named."""
    from harness.reports.sample_view import sample_view
    from harness.runs.record_file import read_record
    from harness.runs.sample_file import chosen_samples, last_stop

    stop = last_stop(read_record(path)) if at is None else at
    shown, count = [], 0
    for one in chosen_samples(path, changed=changed, task=task, kind=kind, at=stop):
        count += 1
        shown += [one] if count <= limit else []
    terminal.write_table(sample_view(shown, count=count))


@click.command()
@click.argument("first", type=opt.PATH)
@click.argument("second", type=opt.PATH)
def compare(first: Path, second: Path) -> None:
    """Compare two records, document by document."""
    from harness.reports import terminal_tables

    one, other = _tied(first, second)
    terminal.write_table(terminal_tables.comparison_table(one, other))


def _tied(*paths: Path) -> list[Record]:
    """Records whose numbers are those of their documents."""
    from harness.runs.record_file import read_record
    from harness.runs.ties import require_tied

    records = [read_record(path, values=True) for path in paths]
    require_tied(records)
    return records


@click.command()
@opt.BASELINE
@opt.ONLY
@opt.TOLERANCE
@opt.DEVICE
@opt.BATCH_SIZE
@opt.WORKERS
@opt.CLUSTER
@opt.TRUST_CODE.but(help="Run the code that a record names: editors and tasks by their path, a checkpoint's own.")
def check(
    *,
    baseline: Path,
    only: str,
    tolerance: float | None,
    device: str | None,
    batch_size: int | None,
    workers: int | None,
    cluster: str | None,
    trust_code: bool,
) -> None:
    """Run recorded plans again; exit 1, with a table of what moved, when a number leaves its tolerance."""
    from harness.errors import CheckFailed
    from harness.runs.crew.cells import crew_of

    asked = _asked(baseline, only)
    _require_trusted(asked, baseline, trust_code)
    repeated = _repeated(asked, crew_of(workers, cluster), device=device, rows=batch_size)
    moved = _told(repeated, tolerance)
    if any(moved.values()):
        count = sum(map(len, moved.values()))
        raise CheckFailed(f"{count} numbers of {len(moved)} records left their tolerance; the table says which")
    terminal.say(f"[green]ok[/] {len(moved)} records, no number left its tolerance")


def _asked(baseline: Path, only: str) -> list[Record]:
    """The records whose names match a pattern, at least one."""
    from fnmatch import fnmatch

    from harness.errors import DataError
    from harness.runs.record import record_name
    from harness.runs.record_file import read_records
    from harness.runs.ties import require_tied

    found = [kept for kept in read_records(baseline, values=True) if fnmatch(record_name(kept), only)]
    require_tied(found)
    for kept in found:
        if kept.published:
            raise DataError(
                f"{baseline}: {record_name(kept)} is {kept.published['label']}: nothing of it can be run again"
            )
    if not found:
        raise DataError(
            f"{baseline}: no record is named '{only}'; names look like mini--memit--counterfact-50--batch--1a2b3c4d"
        )
    return found


def _require_trusted(records: Sequence[Record], baseline: Path, trusted: bool) -> None:
    """Refuse code that a record names, unless the user trusts it."""
    from harness.runs.plan import Plan
    from harness.runs.record import record_name
    from harness.runs.trusted import require_trusted_plan

    for kept in records:
        where = baseline if baseline.is_file() else baseline / f"{record_name(kept)}.json"
        require_trusted_plan(Plan.from_json(kept.plan), where, trusted=trusted)


def _repeated(
    known: Sequence[Record], crew: Crew, *, device: str | None, rows: int | None
) -> Iterator[tuple[Record, Record]]:
    """Each record, and that of its plan carried out again."""
    from tempfile import TemporaryDirectory

    from harness.runs.options import RunOptions
    from harness.runs.several import run_again

    with TemporaryDirectory() as folder, terminal.cells_watched(len(known), not crew.here) as watcher:
        yield from run_again(known, RunOptions(Path(folder), device=device, rows=rows), watcher=watcher, crew=crew)


def _told(repeated: Iterable[tuple[Record, Record]], tolerance: float | None) -> Mapping[str, Sequence[Moved]]:
    """What moved in each record, a line each, and a table of it; also of those before a plan that failed."""
    from harness.reports.terminal_tables import moved_table
    from harness.runs.record import record_name

    moved: dict[str, Sequence[Moved]] = {}
    try:
        for kept, again in repeated:
            name = record_name(kept)  # of a copy, or of what a run that was stopped left beside it, too
            moved[name] = [*moved.get(name, ()), *_compared(kept, again, tolerance)]
    finally:
        if any(moved.values()):
            terminal.write_table(moved_table(moved))
    return moved


def _compared(kept: Record, again: Record, tolerance: float | None) -> Sequence[Moved]:
    """What moved from a record to its repetition, said in one line."""
    from harness.reports.regressions import regressions
    from harness.runs.record import record_name

    moved = regressions(kept, again) if tolerance is None else regressions(kept, again, tolerance=tolerance)
    terminal.say(f"{f'[red]{len(moved)} moved[/]' if moved else '[green]ok[/]'} {record_name(kept)}")
    return moved
