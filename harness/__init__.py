"""A benchmark harness for language-model editing: change what a model says, and measure what that gains and costs.

with harness.edit("mini", None, "memit", "counterfact:10") as edited:
    print(edited.generate("The home of Ada is"))

record = harness.run("mini", "memit", "counterfact:50", ["NER", "NLI"])
print(record.to_frame())

Nothing heavy is loaded before a function is used, and nothing of the process is changed by the import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.api import (
        durability,
        edit,
        evaluate,
        export,
        fit,
        judge,
        leaderboard,
        load,
        localize,
        read_records,
        read_samples,
        run,
        sweep,
        trace,
    )

__version__ = "0.2.0"
__all__ = [
    "audit",
    "durability",
    "edit",
    "evaluate",
    "export",
    "fit",
    "import_records",
    "judge",
    "leaderboard",
    "load",
    "localize",
    "read_records",
    "read_samples",
    "run",
    "sweep",
    "trace",
]


def __getattr__(name: str) -> object:
    """A function of :mod:`harness.api`, which is imported when the first of them is asked for (PEP 562)."""
    if name in __all__:
        from harness import api

        return getattr(api, name)
    raise AttributeError(f"module 'harness' has no attribute '{name}'")


def __dir__() -> list[str]:
    """What is public."""
    return sorted([*__all__, "__version__"])
