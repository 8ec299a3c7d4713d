"""The parts of a crew: cells, workers, what these say, and who is told of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch

from harness.errors import CheckFailed, HarnessError, UsageError

__all__ = [
    "ALONE",
    "Cell",
    "Crew",
    "Done",
    "Ended",
    "Event",
    "Job",
    "Report",
    "Staff",
    "Watcher",
    "cores",
    "crew_of",
    "portions_of",
    "require_all",
    "require_named",
    "said_of",
]

Job = TypeVar("Job")
Done = TypeVar("Done")

Report = Callable[[str, int, int], None]
"""Told what is done, how far it is, and how much there is."""


@dataclass(frozen=True)
class Cell(Generic[Job]):
    """A piece of work.

    Attributes:
        name: what it is, by content: the same work has the same name.
        job: what the work takes; of plain values and frozen dataclasses, as it goes to other processes.
        shown: what a line of progress calls it.
        shares: what it has in common with others and takes long to load, as a rule the model.
    """

    name: str
    job: Job
    shown: str = ""
    shares: str = ""


@dataclass(frozen=True)
class Crew:
    """Who does the work.

    Attributes:
        workers: how many at a time; 0 for as many as there are accelerators, or cores where there are none. One does it
            in this process, but on a cluster.
        cluster: the address of a Ray cluster: ``HOST:PORT``, ``auto`` for the one of this machine, ``local`` for one
            that is started on this machine for the work; None for no Ray.
        cpus: that a cell needs, on a cluster.
        gpus: that a cell needs; parts of one are allowed.
    """

    workers: int = 1
    cluster: str | None = None
    cpus: float = 1
    gpus: float = 0

    @property
    def here(self) -> bool:
        """Whether the work is done in this process."""
        return self.cluster is None and self.size == 1

    @property
    def size(self) -> int:
        """How many work at a time on this machine."""
        return self.workers or torch.accelerator.device_count() or cores()


_EACH = 4
"""Portions for each worker."""

ALONE = Crew()
"""This process."""


def crew_of(workers: int | None, cluster: str | None, *, cpus: float = 1, gpus: float = 0) -> Crew:
    """A crew of so many workers; where nothing says how many, of one, and on a cluster of as many as it has room for.

    Args:
        workers: how many at a time.
        cluster: the address of a Ray cluster.
        cpus: that a cell needs there.
        gpus: that a cell needs.
    """
    return Crew((0 if cluster else 1) if workers is None else workers, cluster, cpus, gpus)


def require_named(lm: object | None, crew: Crew) -> None:
    """See that other processes can load a model.

    Args:
        lm: the model, where it is in memory; None where it is named.
        crew: who works with it.

    Raises:
        UsageError: they cannot.
    """
    if lm is not None and not crew.here:
        raise UsageError(
            "a model in memory cannot go to workers; name it by its folder or repository, or use one worker"
        )


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def portions_of(items: Sequence[Job], crew: Crew) -> list[Sequence[Job]]:
    """Pieces of work in portions: some for each worker, so that none is idle for long at the end.

    Args:
        items: the pieces.
        crew: who does them.
    """
    size = max(1, -(-len(items) // (_EACH * crew.size)))
    return [items[start : start + size] for start in range(0, len(items), size)]


@dataclass(frozen=True, eq=False)
class Ended(Generic[Job, Done]):
    """What became of a cell.

    Attributes:
        cell: the cell.
        done: what the work gave; None where it failed.
        error: why it failed.
        seconds: how long it took.
    """

    cell: Cell[Job]
    done: Done | None = None
    error: HarnessError | None = None
    seconds: float = 0.0


class Watcher(Protocol):
    """Who is told how the cells come along."""

    def begun(self, cell: Cell[Any]) -> None:
        """A cell is begun, or begun again."""

    def report(self, cell: Cell[Any], phase: str, *, done: int, total: int) -> None:
        """How far a cell is.

        Args:
            cell: the cell.
            phase: what is done.
            done: how far it is.
            total: how much there is; 0 where that is not known.
        """

    def ended(self, one: Ended[Any, Any], *, left: int, seconds: float) -> None:
        """A cell has ended.

        Args:
            one: the cell, and what became of it.
            left: how many cells are left.
            seconds: about how long these take.
        """


@dataclass(frozen=True)
class Event:
    """What a worker says.

    Attributes:
        worker: its number.
        kind: ``report``, ``done``, ``failed`` (with the name of the error and its message), or ``died`` (with why).
        said: what comes with it.
    """

    worker: int
    kind: str
    said: Any


class Staff(Protocol):
    """Workers that a crew gives cells to, one at a time."""

    @property
    def size(self) -> int:
        """How many there are."""

    def give(self, worker: int, job: Any) -> None:
        """Let a worker begin a job; one that has died is replaced first."""

    def rest(self, worker: int) -> None:
        """There is no more work for a worker."""

    def next_event(self) -> Event:
        """Wait for what some worker says."""


def require_all(failed: Sequence[Ended[Any, Any]], total: int, what: str) -> None:
    """See that no cell failed.

    Args:
        failed: those that did.
        total: how many there were.
        what: what a cell is called, such as ``plans``.

    Raises:
        CheckFailed: some did; the message says how many, what stands in its lines was told before.
    """
    if failed:
        raise CheckFailed(f"{len(failed)} of {total} {what} failed; the same command runs them again")


def said_of(problem: BaseException) -> str:
    """What is wrong, in one line, where no error of ours says it."""
    return " ".join(f"{type(problem).__name__}: {problem}".split())
