"""Work done side by side: tasks of Ray (https://www.ray.io), on this machine or on a cluster.

Each task has its resources, and is begun again where its worker dies.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from harness.errors import HarnessError, UsageError

__all__ = ["Cluster", "run_jobs"]

Job = TypeVar("Job")
Done = TypeVar("Done")

_RETRIES = 3
_PATIENCE = 5.0  # seconds that an address may take to answer


@dataclass(frozen=True)
class Cluster:
    """Where trainings run.

    Attributes:
        address: of a Ray cluster; None for this machine.
        workers: trainings at a time on this machine; 1 runs them here, without Ray.
        cpus: of one training.
        gpus: of one training.
    """

    address: str | None = None
    workers: int = 1
    cpus: float = 1
    gpus: float = 0


def run_jobs(jobs: Sequence[Job], work: Callable[[Job], Done], cluster: Cluster) -> Iterator[Done]:
    """Do the jobs, and give each result as soon as it is there.

    Args:
        jobs: what is to be done.
        work: what does one job; with Ray it runs in another process.
        cluster: where, and how many at once.

    Raises:
        UsageError: Ray is not installed, its address does not answer, or this machine has too few accelerators.
        HarnessError: what a job raised.
    """
    if cluster.address is None and cluster.workers == 1:
        yield from map(work, jobs)
        return
    ray = _ray(cluster)
    try:
        remote = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_retries=_RETRIES)(work)
        waiting = [remote.remote(job) for job in jobs]
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1)
            yield _result(ray, ready[0])
    finally:
        ray.shutdown()


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, HarnessError) else HarnessError(f"a training failed: {cause}") from error
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise HarnessError(f"a worker died {_RETRIES + 1} times ({reason}); run again with fewer --workers") from error


def _ray(cluster: Cluster) -> Any:
    """Ray, connected to the cluster, or started on this machine."""
    try:
        import ray
    except ImportError:
        raise UsageError(
            "several trainings at a time need Ray: pip install 'lm-edit-harness[sweep]'; or use --workers 1"
        ) from None
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if cluster.address is not None:
        _require_answer(cluster.address)
    try:
        # As many processors as all trainings together ask for: of fewer, Ray would wait for ever.
        cpus = max(1, math.ceil(cluster.workers * cluster.cpus))
        where = {"address": cluster.address} if cluster.address else {"num_cpus": cpus}
        ray.init(
            **where,
            include_dashboard=None if cluster.address else False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UsageError(f"Ray at {cluster.address or 'this machine'} does not answer ({reason})") from error
    there = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call, unused-ignore]
    if cluster.address is None and cluster.gpus > there:
        ray.shutdown()
        raise UsageError(
            f"a training asks for {cluster.gpus:g} accelerators, and this machine has {there:g}; lower 'gpus' of the "
            "sweep"
        )
    return ray


def _require_answer(address: str) -> None:
    """Knock at the port: Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdecimal():
        raise UsageError(f"--address '{address}': expected HOST:PORT of a Ray cluster, for example 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--address '{address}': no Ray cluster answers ({getattr(error, 'strerror', None) or error}); start one "
            "with `ray start --head`, or leave the address out"
        ) from error
