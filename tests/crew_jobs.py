"""Work that tests give to a crew; other processes import it by its name."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path

from harness.errors import DataError
from harness.runs.crew.cells import Report

__all__ = ["noted", "slow"]


def noted(job: tuple[str, str], report: Report) -> tuple[str, int]:
    """Note in a folder who does what, and do what the name says; ``die`` does so once, ``doomed`` always."""
    folder, name = Path(job[0]), job[1]
    tries = len(list(folder.glob(f"{name}.*")))
    (folder / f"{name}.{tries}.{os.getpid()}").touch()
    report("working", 1, 2)
    if name.startswith("doomed") or (name.startswith("die") and not tries):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("warn"):
        logging.getLogger("harness.crew_jobs").warning("%s: nobody knows this fact", name)
    if name.startswith("refuse"):
        raise DataError(f"{name}: cannot be used; use another")
    if name.startswith("break"):
        raise ZeroDivisionError("by nought")
    return name, os.getpid()


def slow(job: tuple[str, float], report: Report) -> None:
    """Be at work for some seconds; whoever is asked to stop has time to write that."""
    folder, seconds = Path(job[0]), job[1]
    (folder / f"begun.{os.getpid()}").touch()
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        (folder / f"stopped.{os.getpid()}").touch()
        raise
