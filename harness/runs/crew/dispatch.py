"""Many pieces of work, by one crew: in this process, in several of this machine, or on a cluster of Ray.

A piece of work is a cell, whose name says what it is. The crew gives cells to workers: those that share a model to one
that has it loaded. A worker that dies is replaced, and its cell begins again, from whatever state it left on disk. A
cell that fails does not keep the others from being done.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic

from harness import errors
from harness.errors import HarnessError
from harness.runs.crew.cells import Cell, Crew, Done, Ended, Event, Job, Report, Staff, Watcher, said_of
from harness.runs.crew.processes import processes
from harness.runs.crew.ray_actors import actors

__all__ = ["named_error", "run_cells", "seconds_left", "standing_crew"]

log = logging.getLogger(__name__)

_TRIES = 3
"""How often a cell is begun whose worker dies."""


class _Nobody:
    """Nobody is told."""

    def begun(self, cell: Cell[Any]) -> None: ...

    def report(self, cell: Cell[Any], phase: str, *, done: int, total: int) -> None: ...

    def ended(self, one: Ended[Any, Any], *, left: int, seconds: float) -> None: ...


def run_cells(
    cells: Sequence[Cell[Job]], work: Callable[[Job, Report], Done], crew: Crew, *, watcher: Watcher | None = None
) -> Iterator[Ended[Job, Done]]:
    """Carry out cells, and give what became of each as soon as it is known.

    Args:
        cells: what is to be done.
        work: carries out one job; where another process does it, it is a function of a module.
        crew: who does it.
        watcher: who is told how it comes along.

    Raises:
        UsageError: the cluster does not answer, a worker of it has other versions, or there are too few accelerators.
    """
    watcher = watcher or _Nobody()
    if not cells:
        return
    if crew.here:
        yield from _here(cells, work, watcher)
        return
    with _staff(work, crew, len(cells)) as staff:
        yield from _Dispatch(list(cells), staff, watcher).all()


@contextmanager
def standing_crew(
    work: Callable[[Job, Report], Done], crew: Crew, most: int
) -> Iterator[Callable[[Sequence[Cell[Job]]], Iterator[Ended[Job, Done]]]]:
    """A crew that stays for one list of cells after the other, with what its workers have loaded.

    Args:
        work: as of :func:`run_cells`.
        crew: who does it.
        most: no more workers than so many.

    Yields:
        What carries out cells, and gives what became of each.

    Raises:
        UsageError: as :func:`run_cells`.
    """
    if crew.here:
        yield lambda cells: _here(cells, work, _Nobody())
        return
    with _staff(work, crew, most) as staff:
        yield lambda cells: _Dispatch(list(cells), _Staying(staff), _Nobody()).all()


@dataclass(frozen=True)
class _Staying:
    """Workers that wait where there is no more work for now."""

    staff: Staff

    @property
    def size(self) -> int:
        """How many there are."""
        return self.staff.size

    def give(self, worker: int, job: Any) -> None:
        """Let a worker begin a job."""
        self.staff.give(worker, job)

    def rest(self, worker: int) -> None:
        """Let a worker wait."""

    def next_event(self) -> Event:
        """Wait for what some worker says."""
        return self.staff.next_event()


def _staff(work: Callable[..., Any], crew: Crew, most: int) -> AbstractContextManager[Staff]:
    """The workers of a crew; no more than there are cells."""
    return processes(work, crew, most) if crew.cluster is None else actors(work, crew, most)


def named_error(kind: str, message: str) -> HarnessError:
    """The error of a name, which another process has raised."""
    found = getattr(errors, kind, HarnessError)
    return found(message) if isinstance(found, type) and issubclass(found, HarnessError) else HarnessError(message)


def seconds_left(taken: Sequence[float], running: Sequence[float], *, left: int, workers: int) -> float:
    """About how long the rest takes: each cell as long as those that ended took on average.

    Args:
        taken: the seconds of the cells that ended.
        running: since how many seconds others are under way.
        left: how many are neither.
        workers: how many work at a time.
    """
    mean = sum(taken) / len(taken) if taken else 0.0
    under_way = sum(max(0.0, mean - since) for since in running)
    return (left * mean + under_way) / max(1, min(workers, left + len(running)))


def _reported(watcher: Watcher, cell: Cell[Any], *said: Any) -> None:
    """Pass on how far a cell is."""
    phase, done, total = said
    watcher.report(cell, phase, done=done, total=total)


def _here(
    cells: Sequence[Cell[Job]], work: Callable[[Job, Report], Done], watcher: Watcher
) -> Iterator[Ended[Job, Done]]:
    """One cell after the other, in this process."""
    taken: list[float] = []
    for number, cell in enumerate(cells, 1):
        watcher.begun(cell)
        began = time.monotonic()
        done, error = None, None
        try:
            done = work(cell.job, functools.partial(_reported, watcher, cell))
        except HarnessError as problem:
            error = problem
        except Exception as problem:
            if len(cells) == 1:  # of one piece of work a fault of ours is shown with all that leads to it
                raise
            log.info("%s", cell.shown or cell.name, exc_info=True)
            error = HarnessError(said_of(problem))
        taken.append(time.monotonic() - began)
        one = Ended(cell, done, error, taken[-1])
        left = len(cells) - number
        watcher.ended(one, left=left, seconds=seconds_left(taken, (), left=left, workers=1))
        yield one


@dataclass(eq=False)
class _Dispatch(Generic[Job]):
    """Cells under way side by side.

    Attributes:
        waiting: the cells that no worker has.
        staff: the workers.
        watcher: who is told.
        at_work: worker -> its cell, and when it was begun.
        has: worker -> what it has loaded.
        tries: cell -> how often it was begun.
        taken: the seconds of the cells that ended.
    """

    waiting: list[Cell[Job]]
    staff: Staff
    watcher: Watcher
    at_work: dict[int, tuple[Cell[Job], float]] = field(default_factory=dict)
    has: dict[int, str] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    taken: list[float] = field(default_factory=list)

    def all(self) -> Iterator[Ended[Job, Any]]:
        """Give cells to idle workers, and listen."""
        while self.waiting or self.at_work:
            for worker in range(self.staff.size):
                if worker not in self.at_work and self.waiting:
                    self._begin(worker, self._choose(worker))
                elif worker not in self.at_work:
                    self.staff.rest(worker)
            event = self.staff.next_event()
            cell, since = self.at_work[event.worker]
            if event.kind == "report":
                _reported(self.watcher, cell, *event.said)
            elif event.kind == "died" and self.tries[cell.name] < _TRIES:
                log.warning("%s: its worker died (%s); it is begun again", cell.shown or cell.name, event.said)
                self._leave(event.worker)
                self.waiting.insert(0, cell)
            else:
                self._leave(event.worker)
                yield self._ended(cell, event, time.monotonic() - since)

    def _begin(self, worker: int, cell: Cell[Job]) -> None:
        self.waiting.remove(cell)
        self.at_work[worker] = cell, time.monotonic()
        self.has[worker] = cell.shares
        self.tries[cell.name] = self.tries.get(cell.name, 0) + 1
        self.staff.give(worker, cell.job)
        self.watcher.begun(cell)

    def _choose(self, worker: int) -> Cell[Job]:
        """A cell of what the worker has loaded; else one of what no other worker has; else the first."""
        mine, others = self.has.get(worker), set(self.has.values())
        same = (cell for cell in self.waiting if cell.shares == mine)
        free = (cell for cell in self.waiting if cell.shares not in others)
        return next(same, None) or next(free, None) or self.waiting[0]

    def _leave(self, worker: int) -> None:
        del self.at_work[worker]

    def _ended(self, cell: Cell[Job], event: Event, seconds: float) -> Ended[Job, Any]:
        if event.kind == "done":
            one: Ended[Job, Any] = Ended(cell, event.said, None, seconds)
        elif event.kind == "failed":
            one = Ended(cell, None, named_error(*event.said), seconds)
        else:
            reason = f"its worker died {self.tries[cell.name]} times ({event.said})"
            one = Ended(cell, None, HarnessError(f"{reason}; run again with fewer --workers"), seconds)
        self.taken.append(seconds)
        running = [time.monotonic() - since for _, since in self.at_work.values()]
        left = seconds_left(self.taken, running, left=len(self.waiting), workers=self.staff.size)
        self.watcher.ended(one, left=len(self.waiting) + len(self.at_work), seconds=left)
        return one
