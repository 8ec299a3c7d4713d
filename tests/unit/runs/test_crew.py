"""A crew: each cell is done once, a worker that dies is replaced, a failure stops nothing, and no worker outlives."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from crew_jobs import noted, slow

from harness.errors import CheckFailed, DataError, HarnessError, UsageError
from harness.runs.crew.cells import Cell, Crew, Ended, portions_of, require_all
from harness.runs.crew.dispatch import run_cells, seconds_left, standing_crew

TESTS = Path(__file__).parents[2]


def cells(folder: Path, *names: str) -> list[Cell[tuple[str, str]]]:
    """A cell for each name; what stands behind its colon is shared with others."""
    parts = [name.partition(":") for name in names]
    return [Cell(name, (str(folder), name), shares=shared) for name, _, shared in parts]


class Told:
    """What a watcher is told."""

    def __init__(self) -> None:
        self.begun_: list[str] = []
        self.phases: set[tuple[str, str]] = set()
        self.left: list[int] = []

    def begun(self, cell: Cell[Any]) -> None:
        self.begun_.append(cell.name)

    def report(self, cell: Cell[Any], phase: str, *, done: int, total: int) -> None:
        self.phases.add((cell.name, phase))
        assert (done, total) == (1, 2)

    def ended(self, one: Ended[Any, Any], *, left: int, seconds: float) -> None:
        self.left.append(left)
        assert seconds >= 0


# --- in this process --------------------------------------------------------------------------------------------------


def test_a_cell_that_fails_keeps_none_from_being_done(tmp_path: Path) -> None:
    told = Told()
    found = list(run_cells(cells(tmp_path, "a", "refuse", "break", "b"), noted, Crew(), watcher=told))
    assert [one.cell.name for one in found] == ["a", "refuse", "break", "b"] == told.begun_
    assert [one.done and one.done[0] for one in found] == ["a", None, None, "b"]
    assert found[0].done == ("a", os.getpid())
    assert isinstance(found[1].error, DataError)
    assert str(found[2].error) == "ZeroDivisionError: by nought"
    assert told.left == [3, 2, 1, 0]
    assert ("a", "working") in told.phases
    with pytest.raises(CheckFailed, match="2 of 4 plans failed; the same command runs them again") as raised:
        require_all([one for one in found if one.error], 4, "plans")
    assert raised.value.exit_code == 1


def test_a_fault_of_the_only_cell_is_shown_with_all_that_leads_to_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        list(run_cells(cells(tmp_path, "break"), noted, Crew()))


@pytest.mark.parametrize(
    ("taken", "running", "left", "workers", "wanted"),
    [
        ([], [3.0], 5, 2, 0.0),
        ([4.0, 8.0], [], 3, 1, 18.0),
        ([4.0, 8.0], [2.0, 9.0], 3, 2, (3 * 6 + 4) / 2),
        ([6.0], [1.0], 0, 4, 5.0),
    ],
)
def test_what_is_left_takes_as_long_as_what_was_done(
    taken: list[float], running: list[float], left: int, workers: int, wanted: float
) -> None:
    assert seconds_left(taken, running, left=left, workers=workers) == pytest.approx(wanted)


# --- processes --------------------------------------------------------------------------------------------------------


def test_two_workers_do_each_cell_once_and_a_dead_one_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["a:x", "b:y", "die:x", "c:y", "refuse:x", "break:y", "d:x", "e:y", "doomed:z", "warn:x"]
    told = Told()
    with caplog.at_level(logging.WARNING):
        found = {one.cell.name: one for one in run_cells(cells(tmp_path, *names), noted, Crew(workers=2), watcher=told)}
    done = {path.name.partition(".")[0]: 0 for path in tmp_path.iterdir()}
    for path in tmp_path.iterdir():
        done[path.name.partition(".")[0]] += 1
    assert done == {**dict.fromkeys(["a", "b", "c", "d", "e", "refuse", "break", "warn"], 1), "die": 2, "doomed": 3}
    assert {name: one.done[0] for name, one in found.items() if one.done} == {
        n: n for n in ("a", "b", "c", "d", "e", "die", "warn")
    }
    assert isinstance(found["refuse"].error, DataError)
    assert str(found["refuse"].error) == "refuse: cannot be used; use another"
    assert str(found["break"].error) == "ZeroDivisionError: by nought"
    assert "died 3 times (signal SIGKILL)" in str(found["doomed"].error)
    assert "die: its worker died (signal SIGKILL); it is begun again" in caplog.text
    assert ("harness.crew_jobs", logging.WARNING, "warn: nobody knows this fact") in caplog.record_tuples
    assert told.left[-1] == 0
    assert ("a", "working") in told.phases


def test_cells_that_share_a_model_go_to_the_worker_that_has_it(tmp_path: Path) -> None:
    names = [f"{name}:{model}" for name, model in zip("abcdefgh", "xyxyxyxy", strict=True)]
    workers = defaultdict(set)
    for one in run_cells(cells(tmp_path, *names), noted, Crew(workers=2)):
        assert one.done is not None
        workers[one.cell.shares].add(one.done[1])
    assert os.getpid() not in workers["x"] | workers["y"]
    assert len(workers["x"] | workers["y"]) == 2
    # One may help the other out at the end; without a choice both would have done both from the first.
    assert len(workers["x"]) + len(workers["y"]) <= 3


def test_too_few_accelerators_are_told() -> None:
    with pytest.raises(UsageError, match=r"2 workers ask for 2 accelerators, and this machine has 0"):
        list(run_cells(cells(Path(), "a", "b"), noted, Crew(workers=2, gpus=1)))


CREW = """
import sys
from crew_jobs import slow
from harness.runs.crew.cells import Cell, Crew
from harness.runs.crew.dispatch import run_cells
list(run_cells([Cell(str(i), (sys.argv[1], 60.0)) for i in range(2)], slow, Crew(workers=2)))
"""


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_that_began_them(tmp_path: Path, blow: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    crew = subprocess.Popen([sys.executable, "-c", CREW, str(tmp_path)], env=environment, stderr=subprocess.DEVNULL)
    try:
        workers = _waited_for(lambda: [int(p.suffix[1:]) for p in tmp_path.glob("begun.*")], 2)
        crew.send_signal(blow)
        crew.wait(30)
        _waited_for(lambda: [pid for pid in workers if not _lives(pid)], 2)
    finally:
        crew.kill()
    stopped = {int(path.suffix[1:]) for path in tmp_path.glob("stopped.*")}
    assert stopped == (set() if blow == signal.SIGKILL else set(workers))  # whoever is asked to stop has time to write


def _waited_for(found: Any, count: int, seconds: float = 600) -> list[int]:
    last = time.monotonic() + seconds
    while len(found()) < count:
        assert time.monotonic() < last, f"{found()}, expected {count}"
        time.sleep(0.1)
    return list(found())


def _lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_work_of_tests_is_what_it_says(tmp_path: Path) -> None:
    slow((str(tmp_path), 0.0), lambda *_: None)
    assert [path.name for path in tmp_path.iterdir()] == [f"begun.{os.getpid()}"]
    assert issubclass(DataError, HarnessError)


def test_a_standing_crew_keeps_its_workers_from_one_list_to_the_next(tmp_path: Path) -> None:
    with standing_crew(noted, Crew(2), 2) as carry_out:
        first = [one.done for one in carry_out(cells(tmp_path, "a", "refuse", "b"))]
        second = [one.done for one in carry_out(cells(tmp_path, "c", "d"))]
    pids = {done[1] for done in (*first, *second) if done}
    assert len([done for done in first if done]) == 2 and len(second) == 2
    assert len(pids) <= 2 and os.getpid() not in pids
    with standing_crew(noted, Crew(), 2) as carry_out:
        assert [one.done for one in carry_out(cells(tmp_path, "e"))] == [("e", os.getpid())]


@pytest.mark.parametrize(
    ("count", "workers", "sizes"), [(3, 2, [1, 1, 1]), (16, 2, [2] * 8), (17, 2, [3] * 5 + [2]), (0, 2, [])]
)
def test_portions_are_some_for_each_worker(count: int, workers: int, sizes: list[int]) -> None:
    found = portions_of(range(count), Crew(workers))
    assert [len(one) for one in found] == sizes and [i for one in found for i in one] == list(range(count))
