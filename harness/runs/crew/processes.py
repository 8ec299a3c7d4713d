"""Workers of a crew as processes of this machine; they end with the process that began them, however that ends."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from harness.errors import UsageError
from harness.runs.crew.cells import Crew, Event

__all__ = ["processes"]

_GRACE = 20.0
"""Seconds that workers have to write what they know when the work is stopped."""


@contextmanager
def processes(work: Callable[..., Any], crew: Crew, most: int) -> Iterator[_Processes]:
    """Workers on this machine, which end with the work.

    Args:
        work: what they do.
        crew: how many, and how much of an accelerator each needs.
        most: no more than so many.

    Raises:
        UsageError: there are too few accelerators.
    """
    size, there = min(crew.size, most), torch.accelerator.device_count()
    if crew.gpus * size > there:
        raise UsageError(
            f"{size} workers ask for {crew.gpus * size:g} accelerators, and this machine has {there}; lower --workers, "
            "or 'gpus' of the sweep"
        )
    staff = _Processes(work, size)
    try:
        yield staff
    finally:
        staff.end()


@dataclass(eq=False)
class _Desk:
    """A worker, the line to it, and whether it is at work."""

    process: subprocess.Popen[bytes]
    line: Connection
    busy: bool = False


@dataclass(eq=False)
class _Processes:
    """The workers; each is begun with its first job."""

    work: Callable[..., Any]
    size: int
    desks: dict[int, _Desk] = field(default_factory=dict)
    leaving: list[_Desk] = field(default_factory=list)

    def give(self, worker: int, job: Any) -> None:
        """Let a worker begin a job."""
        if worker not in self.desks:
            self.desks[worker] = _begun(worker, self.size)
            self._send(worker, self.work)
        self._send(worker, job)
        self.desks[worker].busy = True

    def rest(self, worker: int) -> None:
        """There is no more work for a worker, which ends."""
        if worker in self.desks:
            self._send(worker, None)
            self.leaving.append(self.desks.pop(worker))

    def _send(self, worker: int, what: Any) -> None:
        with suppress(OSError):  # of one that has died is heard when it is listened to
            self.desks[worker].line.send(what)

    def next_event(self) -> Event:
        """Wait for what some worker says; a line that ends is a death."""
        by_line: dict[Any, int] = {desk.line: worker for worker, desk in self.desks.items() if desk.busy}
        while True:
            for line in wait(list(by_line)):
                worker = by_line[line]
                try:
                    kind, said = self.desks[worker].line.recv()
                except (EOFError, OSError):
                    return Event(worker, "died", self._buried(worker))
                if kind != "log":
                    self.desks[worker].busy = kind == "report"
                    return Event(worker, kind, said)
                name, level, message = said
                logging.getLogger(name).log(level, "%s", message)

    def _buried(self, worker: int) -> str:
        """How a worker ended, in words."""
        desk = self.desks.pop(worker)
        desk.line.close()
        code = _waited(desk.process, _GRACE)
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def end(self) -> None:
        """Let all workers go; those at work keep what they have measured."""
        for worker, desk in self.desks.items():
            if desk.busy:
                desk.process.terminate()
            else:
                self._send(worker, None)
        last = time.monotonic() + _GRACE
        for desk in (*self.desks.values(), *self.leaving):
            _waited(desk.process, max(0.1, last - time.monotonic()))
            desk.line.close()


def _begun(worker: int, workers: int) -> _Desk:
    """A process that waits for work at the other end of a line."""
    mine, its = socket.socketpair()
    with its:
        # What can be imported here can be imported there: the work is named by its module.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        call = [sys.executable, "-m", "harness.runs.crew.worker", str(its.fileno()), str(worker), str(workers)]
        process = subprocess.Popen(call, env=environment, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL)
    return _Desk(process, Connection(mine.detach()))


def _waited(process: subprocess.Popen[bytes], seconds: float) -> int:
    """The exit code of a process, which is killed where it has not ended by itself."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
