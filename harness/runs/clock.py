"""Seconds and peak memory of the phases of a run."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

__all__ = ["Clock"]


class Clock:
    """Seconds and peak memory of each phase."""

    def __init__(self, report: Callable[[str, int, int], None], device: str | None) -> None:
        self.cost: list[dict[str, Any]] = []
        self._report, self._accelerated = report, _accelerated(device)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase; phases of one name add up."""
        self._report(name, 0, 0)
        _reset_peak(self._accelerated)
        started = time.perf_counter()
        try:
            yield
        finally:
            self._add(name, time.perf_counter() - started, _peak_mib(self._accelerated))

    def values(self, name: str, counts: Mapping[str, float]) -> None:
        """Note how many values a phase found in the cache and how many it optimised; what is noted twice adds up."""
        if not counts["found"] + counts["optimised"]:
            return
        row = next(row for row in self.cost if row["phase"] == name)
        before = row.get("values", {})
        row["values"] = {key: round(count + before.get(key, 0), 3) for key, count in counts.items()}

    def take_over(self, rows: Sequence[dict[str, Any]]) -> None:
        """Count what an earlier run that was stopped has spent."""
        for row in rows:
            self._add(row["phase"], row["seconds"], row["peak_memory_mib"])
            if "values" in row:
                self.values(row["phase"], row["values"])

    def _add(self, name: str, seconds: float, peak: float) -> None:
        for row in self.cost:
            if row["phase"] == name:
                row["seconds"] = round(row["seconds"] + seconds, 3)
                row["peak_memory_mib"] = max(row["peak_memory_mib"], round(peak, 1))
                return
        self.cost.append({"phase": name, "seconds": round(seconds, 3), "peak_memory_mib": round(peak, 1)})


def _accelerated(device: str | None) -> bool:
    """Whether a run is on an accelerator that says how much of its memory is taken."""
    if not torch.accelerator.is_available() or (device or "").startswith("cpu"):
        return False
    try:
        torch.accelerator.max_memory_allocated()
    except RuntimeError:  # Apple's, in most versions of torch
        return False
    return True


def _reset_peak(accelerated: bool) -> None:
    if accelerated:
        torch.accelerator.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        # Linux forgets the high-water mark of resident memory; elsewhere the peak is that of the process so far.
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mib(accelerated: bool) -> float:
    """Peak memory: of the accelerator that the run is on, else resident memory of the process."""
    if accelerated:
        return float(torch.accelerator.max_memory_allocated() / 2**20)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
