"""Records in the programs that keep track of runs: every file of ``harness/reports/loggers`` logs to one of them.

A new one is a file there with one subclass of :class:`RunLogger`; ``harness run --log-to NAME`` offers it. Metrics are
named ``TASK/METRIC``, as lm-eval's own logger does, and their steps are numbers of edits; a value that is missing is
not logged, as no such program can tell it from zero.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import UsageError, near
from harness.io.files import values_path
from harness.reports import loggers
from harness.reports.one_a_file import parts_by_name

if TYPE_CHECKING:
    from harness.runs.record import Record

__all__ = [
    "PROJECT_NAME",
    "RunLogger",
    "find_logger",
    "logged_config",
    "logged_cost",
    "logged_files",
    "logged_numbers",
    "logger_names",
]

Json = dict[str, Any]

PROJECT_NAME = "lm-edit-harness"


class RunLogger(ABC):
    """A way to log a record.  The first line of a child's docstring says where to.

    Attributes:
        name: what it is called on the command line, and the extra of this package that installs it.
        package: what is imported.
    """

    name: ClassVar[str]
    package: ClassVar[str]

    @abstractmethod
    def log(self, record: Record, path: Path) -> str:
        """Log a record that is complete.

        Args:
            record: the record.
            path: its JSON, beside which its other files lie.

        Returns:
            Where it is, in words.

        Raises:
            UsageError: the program does not take it.
        """


def logger_names() -> list[str]:
    """The names of all loggers, by the alphabet."""
    return sorted(_loggers())


def find_logger(name: str) -> RunLogger:
    """The logger of a name.

    Raises:
        UsageError: there is none, or what it logs to is not installed.
    """
    known = _loggers()
    if name not in known:
        raise UsageError(f"--log-to {name}: does not exist{near(name, known)}; choose {', '.join(sorted(known))}")
    if importlib.util.find_spec(known[name].package) is None:
        raise UsageError(
            f"--log-to {name}: {known[name].package} is not installed; pip install 'lm-edit-harness[{name}]'"
        )
    return known[name]()


def _loggers() -> dict[str, type[RunLogger]]:
    found: dict[str, type[RunLogger]] = parts_by_name(loggers, RunLogger)
    return found


# --- what is logged ---------------------------------------------------------------------------------------------------


def logged_config(record: Record) -> Json:
    """What the run was: plan, model, editor, edits and versions, without what is long."""
    return {
        "record": record.id,
        "plan": record.plan,
        "model": record.model,
        "editor": {key: record.editor.get(key) for key in ("name", "hyperparameters", "learned")},
        "edits": {key: record.edits.get(key) for key in ("dataset", "count", "sha256")},
        "versions": record.versions,
    }


def logged_numbers(record: Record) -> dict[int, dict[str, float]]:
    """Number of edits -> name -> number: each metric with its interval, its difference, and the p value of that."""
    return {
        int(point["edits"]): {
            name: float(number)
            for task, measures in point["tasks"].items()
            for metric, numbers in measures.items()
            for name, number in _named(f"{task}/{metric}", numbers).items()
            if number is not None
        }
        for point in record.points
    }


def _named(name: str, numbers: Json) -> dict[str, float | None]:
    low, high = numbers["interval"] or (None, None)
    change = numbers["difference"] or {}
    change_low, change_high = change.get("interval") or (None, None)
    return {
        name: numbers["value"],
        f"{name}_low": low,
        f"{name}_high": high,
        f"{name}_difference": change.get("value"),
        f"{name}_difference_low": change_low,
        f"{name}_difference_high": change_high,
        f"{name}_p": change.get("p"),
    }


def logged_cost(record: Record) -> dict[str, float]:
    """What the run took: seconds of each phase and of all, the peak of memory; and where it set off a tripwire."""
    found = {f"cost/{phase['phase']}_seconds": float(phase["seconds"]) for phase in record.cost}
    peaks = [float(phase["peak_memory_mib"]) for phase in record.cost if phase.get("peak_memory_mib") is not None]
    peak = {"cost/peak_memory_mib": max(peaks)} if peaks else {}
    collapse = {f"collapse/{wire}_edits": float(edits) for wire, edits in record.collapse.items()}
    return {**found, "cost/seconds": record.seconds, **peak, **collapse}


def logged_files(path: Path) -> list[Path]:
    """The files of a record: its JSON, and its values and samples where they lie beside it."""
    from harness.runs.sample_file import samples_path

    return [file for file in (path, values_path(path), samples_path(path)) if file.is_file()]
