"""A worker of a crew on this machine: ``python -m harness.runs.crew.worker LINE NUMBER WORKERS``.

It reads what work it does and then one job after the other from its line, an open socket, and says on it how they come
along. When the line ends, so does the worker, whatever it is doing: what is on disk is whole.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

import torch

from harness.errors import HarnessError
from harness.runs.crew.cells import cores, said_of

__all__ = ["serve", "speak_through"]

_OFTEN = 0.2
"""Seconds between two reports of one phase."""


def serve(line: Connection, worker: int, workers: int) -> None:
    """Do one job after the other, until the line ends or says that there are no more.

    Args:
        line: to the process that gives the jobs.
        worker: the number of this worker, from 0.
        workers: how many there are.
    """
    signal.signal(signal.SIGTERM, _like_ctrl_c)
    say = _Voice(line)
    _take_seat(worker, workers)
    speak_through(say)
    with suppress(KeyboardInterrupt, BrokenPipeError):
        jobs = _listen(line)
        work = jobs.get()
        while (job := jobs.get()) is not None:
            say(*_outcome(work, job, _Reports(say)))


def _listen(line: Connection) -> queue.SimpleQueue[Any]:
    """What comes on the line, one after the other; this process ends with the line."""
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                heard.put(line.recv())
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    return heard


class _Voice:
    """Says something on the line; threads take turns."""

    def __init__(self, line: Connection) -> None:
        self._line, self._turn = line, threading.Lock()

    def __call__(self, kind: str, said: Any) -> None:
        with self._turn:
            self._line.send((kind, said))


def _outcome(work: Callable[..., Any], job: Any, report: Callable[[str, int, int], None]) -> tuple[str, Any]:
    try:
        return "done", work(job, report)
    except HarnessError as error:
        return "failed", (type(error).__name__, str(error))
    except Exception as error:
        logging.getLogger(__name__).info("a job failed", exc_info=True)
        return "failed", (HarnessError.__name__, said_of(error))


class _Reports:
    """Says how far a job is: each phase, and how far it is a few times a second."""

    def __init__(self, say: _Voice) -> None:
        self._say = say
        self._phase, self._last = "", 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if phase != self._phase or now - self._last > _OFTEN:
            self._phase, self._last = phase, now
            self._say("report", (phase, done, total))


def _take_seat(worker: int, workers: int) -> None:
    """Take this worker's part of the machine: its accelerator where there are some, and its part of the cores."""
    there = torch.accelerator.device_count()
    if there:
        torch.accelerator.set_device_index(worker % there)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // workers))


class _Line(logging.Handler):
    """Sends what is logged by us to the process that began this one, which knows how to tell it."""

    def __init__(self, say: Callable[[str, Any], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] in ("harness", "editors"):
            with suppress(OSError):
                self._say("log", (record.name, record.levelno, self.format(record)))


def speak_through(say: Callable[[str, Any], None]) -> None:
    """Keep libraries quiet, and let warnings of ours be told.

    Args:
        say: told ``log`` and the logger's name, the level and the message.
    """
    verbose = bool(os.environ.get("HARNESS_VERBOSE"))
    if not verbose:
        warnings.simplefilter("ignore")
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[_Line(say)], force=True)


def _like_ctrl_c(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
