"""What a model gets that knows nothing of a task: the level below which a score can fall no further and mean something.

It is one over the number of choices where answers are closed, and 0 where they are free text.  A task of this project
says it in its YAML, ``metadata.chance: {metric: level}``; for lm-eval's own it follows from what is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from statistics import fmean
from typing import TYPE_CHECKING, Any

from harness.exam import data

if TYPE_CHECKING:
    from harness.exam.tasks import Task

__all__ = ["at_chance", "named_levels", "task_levels"]

_CHOSEN = ("acc", "acc_norm")
_FREE = ("acc", "exact_match", "f1", "em")


def task_levels(task: Task) -> dict[str, float]:
    """The level of chance of those metrics of a task of which it is known.

    Args:
        task: the task, with its documents.
    """
    said = task.metadata.get("chance")
    if said is not None or task.folder is not None:
        return _levels(said)
    if callable(task.task.config.process_results):  # what its scores mean is written in its code alone
        return {}
    chosen = task.task.OUTPUT_TYPE == "multiple_choice"
    level = _one_in_so_many(task) if chosen else 0.0
    return {metric: level for metric in (_CHOSEN if chosen else _FREE) if metric in task.task.aggregation()}


def _one_in_so_many(task: Task) -> float:
    """One over the number of choices, the mean over documents."""
    from harness.exam.tasks import templates_once  # tables of records need no lm-eval, which takes seconds to import

    with templates_once():
        return fmean(1 / len(task.task.doc_to_choice(document)) for document in task.task.eval_docs)


@lru_cache(maxsize=256)
def named_levels(name: str) -> Mapping[str, float]:
    """What this project's YAML of a task says of its level of chance; nothing where it has no such task."""
    found = next(iter(sorted(data.TASKS.rglob(f"{name}.yaml"))), None)
    metadata = {} if found is None else data.read_yaml(found).get("metadata") or {}
    return _levels(metadata.get("chance"))


def _levels(said: Mapping[str, Any] | None) -> dict[str, float]:
    return {str(metric): float(level) for metric, level in (said or {}).items()}


def at_chance(level: float, value: float | None, low: float | None) -> bool:
    """Whether a score cannot be told from chance: its interval contains the level, or lies below it.

    Args:
        level: what a model gets that knows nothing.
        value: the score of the unedited model; None where there is none.
        low: the lower limit of its 95 % interval; None where it has no interval.
    """
    if value is None:
        return False
    return (value if low is None else low) <= level
