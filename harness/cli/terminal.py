"""The terminal: what is printed, how an error looks, and progress. Its libraries are imported with the first line."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined]

    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID

    from harness.runs.crew.cells import Cell, Ended, Watcher

__all__ = [
    "Report",
    "Written",
    "be_quiet",
    "cells_watched",
    "output_kept",
    "plain_table",
    "say",
    "say_where",
    "stopped_like_ctrl_c",
    "tell",
    "watched",
    "write_table",
]

Report = Callable[[str, int, int], None]
"""Told what is done, how far it is, and how much there is."""

_PAGE = 110  # columns


def write_table(what: RenderableType) -> None:
    """Print a table or a text."""
    _console().print(what)


def say(text: str) -> None:
    """Print one line, in rich's markup, that no width breaks."""
    _console().print(text, soft_wrap=True)


def say_where(what: str, *paths: Path, then: str = "") -> None:
    """Print what something is, in rich's markup, and where it lies, whatever the characters in its name.

    Args:
        what: what it is.
        paths: where it lies.
        then: what is said after it.
    """
    say(f"{what} {_escape(', '.join(map(str, paths)))}{then}")


def tell(message: str) -> None:
    """An error, in one line."""
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"[bold red]error:[/] {_escape(' '.join(message.split()))}")


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    """A plain table under a title.

    Args:
        title: what stands above it.
        columns: the heading of each column.
        rows: the cells of each line.
    """
    from rich.table import Table

    drawn = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(_escape(cell) for cell in row))
    return drawn


@contextmanager
def watched() -> Iterator[Report]:
    """A bar for the phase under way, with an estimate of the time left; where no terminal is, a line for each phase."""
    from harness.io.progress import progress_console

    if not progress_console().is_terminal:
        yield _Lines().report
        return
    with _bar() as bar:
        phases = _Phases(bar)
        yield phases.report


@contextmanager
def cells_watched(cells: int, side_by_side: bool = False) -> Iterator[Watcher]:
    """A bar for each piece of work under way, and how long all take; where no terminal is, a line for each.

    Args:
        cells: how many pieces of work there are; of a single one its phases are shown.
        side_by_side: whether several are under way at a time, so that their phases would mix.
    """
    from harness.io.progress import progress_console

    with ExitStack() as stack:
        if not progress_console().is_terminal:
            phases = None if side_by_side else _Lines().report
            yield _OneCell(stack, phases) if cells == 1 and phases else _CellLines(phases)
        else:
            yield _OneCell(stack) if cells == 1 else _CellBars(stack)


class _OneCell:
    """The phases of the only cell."""

    def __init__(self, stack: ExitStack, report: Report | None = None) -> None:
        self._stack, self._report = stack, report

    def begun(self, cell: Cell[object]) -> None:  # noqa: ARG002 (as of a watcher)
        """Open what its phases are shown in."""
        self._report = self._report or self._stack.enter_context(watched())

    def report(self, cell: Cell[object], phase: str, *, done: int, total: int) -> None:  # noqa: ARG002 (as of a watcher)
        """Show how far it is."""
        if self._report is not None:
            self._report(phase, done, total)

    def ended(self, one: Ended[object, object], *, left: int, seconds: float) -> None:  # noqa: ARG002 (as of a watcher)
        """Make room for its table."""
        self._stack.close()


class _CellLines:
    """A line for each cell that has ended, with about how long the rest takes; phases where one runs at a time."""

    def __init__(self, report: Report | None) -> None:
        self._report, self._ended = report, 0

    def begun(self, cell: Cell[object]) -> None:
        """Say which one is begun, where its phases are told."""
        if self._report is not None:
            self._report(cell.shown or cell.name, 0, 0)

    def report(self, cell: Cell[object], phase: str, *, done: int, total: int) -> None:  # noqa: ARG002 (as of a watcher)
        """Say which phase it is in."""
        if self._report is not None:
            self._report(phase, done, total)

    def ended(self, one: Ended[object, object], *, left: int, seconds: float) -> None:
        """Say what has ended, and what is left."""
        self._ended += 1
        click.echo(f"[{datetime.now():%H:%M:%S}] {_ended_line(one, self._ended, left, seconds)}", err=True)


class _CellBars:
    """A bar for each cell under way."""

    def __init__(self, stack: ExitStack) -> None:
        self._bar, self._ended = _bar(), 0
        self._shown: dict[str, TaskID] = {}
        stack.callback(self._bar.stop)

    def begun(self, cell: Cell[object]) -> None:
        """Show a bar for it."""
        self._drop(cell)
        self._bar.start()
        self._shown[cell.name] = self._bar.add_task((cell.shown or cell.name)[:44], total=None)

    def report(self, cell: Cell[object], phase: str, *, done: int, total: int) -> None:  # noqa: ARG002 (as of a watcher)
        """Show how far it is."""
        self._bar.update(self._shown[cell.name], completed=done, total=total or None)

    def ended(self, one: Ended[object, object], *, left: int, seconds: float) -> None:
        """Take its bar away, and say what is left."""
        self._ended += 1
        self._drop(one.cell)
        if not self._shown:
            self._bar.stop()  # whoever gets the cell may print
        self._bar.console.print(_escape(_ended_line(one, self._ended, left, seconds)), highlight=False)

    def _drop(self, cell: Cell[object]) -> None:
        if cell.name in self._shown:
            self._bar.remove_task(self._shown.pop(cell.name))


def _ended_line(one: Ended[object, object], ended: int, left: int, seconds: float) -> str:
    """What has become of a cell, and about how long the rest takes."""
    rest = f", {left} left, about {_duration(seconds)}" if left else ""
    state = "failed" if one.error is not None else "done"
    return f"{ended} ended{rest}: {one.cell.shown or one.cell.name}, {state} in {_duration(one.seconds)}"


def _duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class _Phases:
    """A bar that starts anew with each phase."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._name: str | None = None

    def report(self, name: str, done: int, total: int) -> None:
        """Show how far a phase is."""
        if self._name != name:
            for shown in self._bar.task_ids:
                self._bar.remove_task(shown)
            self._bar.add_task(name, total=total or None)
            self._name = name
        self._bar.update(self._bar.task_ids[0], completed=done, total=total or None)


class _Lines:
    """A line with the time for each phase, and for each task with its number, on standard error."""

    def __init__(self) -> None:
        self._name: str | None = None

    def report(self, name: str, done: int, total: int) -> None:  # noqa: ARG002 (as of a bar)
        """Say what is done now, once."""
        if self._name != name:
            click.echo(f"[{datetime.now():%H:%M:%S}] {name}", err=True)
            self._name = name


def _bar() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    from harness.io.progress import progress_console

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<44}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    console = progress_console()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _console() -> Console:
    """The terminal; where there is none, a page wide enough for a table."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _PAGE)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


class Written(io.RawIOBase):
    """Standard output that goes on taking what nobody takes any more, so that the work goes on, and remembers why.

    Attributes:
        error: what went wrong first; None where nothing did.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        """Writes to a descriptor; None for one that is never written to."""
        self._descriptor = descriptor
        self.error: OSError | None = None

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        if self._descriptor is None:
            raise io.UnsupportedOperation("fileno")
        return self._descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._descriptor is not None and os.isatty(self._descriptor)

    def write(self, content: Buffer, /) -> int:
        """Write as much as is taken; all of it where something went wrong before."""
        if self.error is None:
            try:
                return os.write(self.fileno(), content)
            except OSError as error:
                self.error = error
        return memoryview(content).nbytes


@contextmanager
def output_kept() -> Iterator[Written]:
    """Standard output on which nothing that is printed fails.

    A character that its encoding does not have is written as its number, as Python writes it. A pipe that closes, or a
    device that is full, does not end the work; :attr:`Written.error` says afterwards what happened.
    """
    real = sys.stdout
    binary = getattr(real, "buffer", None)
    file = getattr(binary, "raw", binary)  # of an unbuffered one (python -u) they are the same
    if not isinstance(file, io.FileIO):  # somebody collects what is printed
        yield Written()
        return
    written = Written(file.fileno())
    real.flush()
    buffered = io.BufferedWriter(written)
    sys.stdout = io.TextIOWrapper(buffered, real.encoding, errors="backslashreplace", line_buffering=True)
    try:
        yield written
    finally:
        sys.stdout.flush()
        sys.stdout = real


@contextmanager
def stopped_like_ctrl_c() -> Iterator[None]:
    """Let a request to end (SIGTERM, of a batch system) be answered as Ctrl-C is: what was measured is kept."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread, which alone is told of signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def be_quiet() -> None:
    """Keep the libraries' chatter off the terminal; ``HARNESS_VERBOSE=1`` lets it through."""
    if os.environ.get("HARNESS_VERBOSE"):
        logging.basicConfig(level=logging.INFO)
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TQDM_DISABLE", "1")
    for name in ("lm_eval", "datasets", "transformers", "evaluate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.WARNING, format="warning: %(message)s")
