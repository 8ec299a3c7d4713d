"""Workers of a crew on a cluster: actors of Ray (https://www.ray.io), each of which keeps what it has loaded.

A cluster is reached by its address, or started on this machine for as long as the work lasts. A worker that dies is
replaced; one with another version of what computes numbers is refused, as no record of one would count for the other.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from harness.errors import HarnessError, UsageError
from harness.runs.crew.cells import Crew, Event, cores, said_of
from harness.runs.crew.worker import speak_through
from harness.runs.versions import versions

__all__ = ["actors"]

LOCAL, AUTO = "local", "auto"
"""Addresses: a cluster that is started on this machine for the work, and the one that runs on it already."""

_ASK = "import sys; from ray._raylet import GcsClient; print(flush=True); GcsClient(address=sys.argv[1])"

_PATIENCE = 4.0  # seconds that an address may take to answer, and then as many again to prove that it is Ray


@contextmanager
def actors(work: Callable[..., Any], crew: Crew, most: int) -> Iterator[_Actors]:
    """Workers on a cluster, which are let go of with the work.

    Args:
        work: what they do.
        crew: where, how many, and what each needs.
        most: no more than so many.

    Raises:
        UsageError: Ray is not installed, its address does not answer, or the cluster has no room for a worker.
    """
    ray = _connected(crew)
    try:
        yield _Actors(ray, work, crew, min(most, _places(ray, crew)))
    finally:
        ray.shutdown()


@dataclass(eq=False)
class _Actors:
    """The workers; each is begun with its first job, and let go of when there is none for it."""

    ray: Any
    work: Callable[..., Any]
    crew: Crew
    size: int
    hands: dict[int, Any] = field(default_factory=dict)
    under_way: dict[Any, int] = field(default_factory=dict)

    def give(self, worker: int, job: Any) -> None:
        """Let a worker begin a job."""
        if worker not in self.hands:
            remote = self.ray.remote(num_cpus=self.crew.cpus, num_gpus=self.crew.gpus, max_restarts=0)(_Hand)
            self.hands[worker] = remote.remote(self.work, versions())
        self.under_way[self.hands[worker].do.remote(job)] = worker

    def rest(self, worker: int) -> None:
        """Let a worker go, so that another one that waits for room gets it."""
        self.hands.pop(worker, None)

    def next_event(self) -> Event:
        """Wait for what some worker says."""
        (ready,), _ = self.ray.wait(list(self.under_way), num_returns=1)
        worker = self.under_way.pop(ready)
        try:
            kind, said, logged = self.ray.get(ready)
        except self.ray.exceptions.RayError as error:
            self.hands.pop(worker, None)
            reason = " ".join(str(error).split())
            if "No module named 'harness" in reason:
                raise UsageError(
                    "a worker of the cluster has no lm-edit-harness; install the same version there"
                ) from error
            return Event(worker, "died", reason[:200])
        for name, level, message in logged:
            logging.getLogger(name).log(level, "%s", message)
        if kind == "refused":
            raise UsageError(said)
        return Event(worker, kind, said)


class _Hand:
    """A worker, in its own process."""

    def __init__(self, work: Callable[..., Any], expected: Mapping[str, str]) -> None:
        self._work, self._refused = work, _differing(expected, versions())
        self._logged: list[tuple[str, int, str]] = []
        speak_through(lambda _, said: self._logged.append(said))

    def do(self, job: Any) -> tuple[str, Any, Sequence[tuple[str, int, str]]]:
        """Do a job, and say what became of it and what was logged."""
        self._logged.clear()
        return *self._outcome(job), list(self._logged)

    def _outcome(self, job: Any) -> tuple[str, Any]:
        if self._refused:
            return "refused", self._refused
        try:
            return "done", self._work(job, _unheard)
        except HarnessError as error:
            return "failed", (type(error).__name__, str(error))
        except Exception as error:
            return "failed", (HarnessError.__name__, said_of(error))


def _unheard(_phase: str, _done: int, _total: int) -> None:
    """Nobody hears how far a job of the cluster is; that it has ended is told."""


def _differing(expected: Mapping[str, str], found: Mapping[str, str]) -> str | None:
    """What to say of a worker that computes with other versions; None of one with the same."""
    other = [name for name in expected if found.get(name) != expected[name]]
    if not other:
        return None
    name = other[0]
    return (
        f"a worker of the cluster, on {socket.gethostname()}, has {name} {found.get(name)} and this process has {name} "
        f"{expected[name]}; install the same versions there, or the records of one would not count for the other"
    )


# --- the cluster ------------------------------------------------------------------------------------------------------


def _connected(crew: Crew) -> Any:
    """Ray, connected to the cluster, or started on this machine."""
    try:
        import ray
    except ImportError:
        raise UsageError(
            "--cluster needs Ray: pip install 'lm-edit-harness[cluster]'; --workers N takes the cores of this machine"
        ) from None
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = str(crew.cluster)
    if address not in (LOCAL, AUTO):
        _require_answer(address)
    # As many processors as all cells together ask for: of fewer, Ray would wait for ever.
    cpus = max(1, math.ceil((crew.workers or cores()) * crew.cpus))
    where = {"num_cpus": cpus, "include_dashboard": False} if address == LOCAL else {"address": address}
    try:
        ray.init(**where, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise UsageError(f"--cluster '{address}': no Ray cluster answers ({_first_line(error)}); {_CURE}") from error
    return ray


_CURE = "start one with `ray start --head`, or use --cluster local, or --workers N without one"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]


def _require_answer(address: str) -> None:
    """Knock at the port, and see that Ray is behind it: Ray itself would try for minutes."""
    scheme, _, place = address.rpartition("://")
    host, colon, port = place.rpartition(":")
    if not colon or not port.isdecimal():
        raise UsageError(
            f"--cluster '{address}': expected HOST:PORT of a Ray cluster such as 10.0.0.1:6379, auto or local"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--cluster '{address}': no Ray cluster answers ({reason}); {_CURE}") from error
    if not scheme and not _is_ray(place):
        raise UsageError(f"--cluster '{address}': no Ray cluster answers (it is no Ray); {_CURE}")


def _is_ray(place: str) -> bool:
    """Whether Ray answers there; asked by another process, as a client that gets no answer ends its own."""
    with subprocess.Popen(
        [sys.executable, "-c", _ASK, place], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as ask:
        assert ask.stdout is not None
        ask.stdout.readline()  # a busy machine may take long to import Ray: the time of the answer runs from here
        try:
            return ask.wait(_PATIENCE) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            ask.kill()


def _places(ray: Any, crew: Crew) -> int:
    """How many workers there are to be: those that were asked for, or as many as there is room for.

    Raises:
        UsageError: there is no room for any.
    """
    there = ray.cluster_resources()
    rooms = [(name, there.get(name, 0.0), need) for name, need in (("CPU", crew.cpus), ("GPU", crew.gpus)) if need]
    for name, found, need in rooms:
        if found < need:
            ray.shutdown()
            raise UsageError(
                f"a worker asks for {need:g} {name}, and the cluster '{crew.cluster}' has {found:g}; lower it"
            )
    fitting = min((int(found / need) for _, found, need in rooms), default=cores())
    return crew.workers or fitting
