"""The terminal: what is printed, how an error looks, and progress. Its libraries are imported with the first line."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

__all__ = ["Report", "be_quiet", "fail", "plain_table", "say", "say_where", "tell", "watched", "write_table"]

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


def fail(message: str, code: int) -> NoReturn:
    """Tell an error, and end the program."""
    tell(message)
    sys.exit(code)


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
    """A bar for the phase under way, with an estimate of the time left."""
    with _bar() as bar:
        phases = _Phases(bar)
        yield phases.report


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
