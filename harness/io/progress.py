"""The one console on which progress is drawn, so that a bar inside a bar is drawn below it and not across it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["bar", "progress_console"]


@lru_cache(maxsize=1)
def progress_console() -> Console:
    """The console of standard error, the same at every call."""
    return Console(stderr=True)


@contextmanager
def bar(name: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A bar with an estimate of the time left, on a terminal only; tell it how much is done, and a word about it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    console = progress_console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as drawn:
        task = drawn.add_task(name, total=total, note="")
        yield lambda done, note: drawn.update(task, completed=done, note=note)
