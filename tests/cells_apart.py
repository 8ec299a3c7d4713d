"""Cells of a crew as another process would do them, without one: jobs and what comes of them go through pickle."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from harness.errors import HarnessError
from harness.io.nobody import tell_nobody
from harness.runs.crew.cells import Cell, Ended

__all__ = ["Apart"]

Work = Callable[[Any, Any], Any]


class Apart:
    """Takes the place of ``run_cells`` and ``standing_crew``; the last cell is done first.

    Attributes:
        failing: whether a cell fails.
        made: the names of the cells that were done.
        lists: how many cells each list had.
    """

    def __init__(self) -> None:
        self.failing: Callable[[Cell[Any]], bool] = lambda _: False
        self.made: list[str] = []
        self.lists: list[int] = []

    def run_cells(self, cells: Sequence[Cell[Any]], work: Work, _crew: object) -> Iterator[Ended[Any, Any]]:
        """What became of each cell."""
        self.lists.append(len(cells))
        assert len({cell.name for cell in cells}) == len(cells)
        for cell in reversed(cells):
            if self.failing(cell):
                yield Ended(cell, error=HarnessError("its worker died 3 times"))
                continue
            job = pickle.loads(pickle.dumps(cell.job))
            self.made.append(cell.name)
            yield Ended(cell, pickle.loads(pickle.dumps(work(job, tell_nobody))))

    @contextmanager
    def standing_crew(self, work: Work, crew: object, _most: int) -> Iterator[Any]:
        """The same for one list after the other."""
        yield lambda cells: self.run_cells(cells, work, crew)
