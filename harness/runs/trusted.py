"""What code a file may run: of an editor, a task or a checkpoint that it names, only where its user says so.

What is typed on the command line, or given in Python, is named by the user; what stands in a configuration, a record or
a patch is named by whoever wrote that file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from harness.editing.patch_file import require_trusted_parts
from harness.editing.registry import require_trusted
from harness.errors import UsageError
from harness.exam import data
from harness.exam.task_code import code_in, yamls_of
from harness.runs.plan import Plan

__all__ = ["require_trusted_model", "require_trusted_plan"]


def require_trusted_plan(plan: Plan, where: str | Path, *, trusted: bool, typed: Collection[str] = ()) -> None:
    """Refuse a plan of a file where carrying it out would run code that the file names.

    Args:
        plan: the plan.
        where: the file.
        trusted: whether the user has said that the code may run.
        typed: the fields that the user gave, whatever the file says.

    Raises:
        UsageError: an editor or a task of one's own, a patch with code, or a checkpoint with modelling code is named.
        DataError: the patch cannot be read.
    """
    if trusted:
        return
    if "editor" not in typed:
        require_trusted(plan.editor, where, trusted)
    if plan.patch:
        require_trusted_parts(Path(plan.patch), trusted)
    named = () if "tasks" in typed else plan.tasks
    folders = () if "include_path" in typed else plan.include_path
    path = code_in([*(path for name in named for path in yamls_of(name) or ()), *data.own_yamls(folders)])
    if path is not None:
        raise UsageError(
            f"{where}: names the task file '{path}', whose code would run; read it, and then give --trust-code or type "
            "--include-path or --tasks"
        )
    if "model_args" not in typed:
        require_trusted_model(plan.model_args, where, trusted=trusted)


def require_trusted_model(args: Mapping[str, Any] | None, where: str | Path, *, trusted: bool) -> None:
    """Refuse a file that asks for the modelling code of a checkpoint.

    Args:
        args: the ``model_args`` that the file holds.
        where: the file.
        trusted: whether the user has said that the code may run.

    Raises:
        UsageError: it asks for it, and is not trusted.
    """
    if (args or {}).get("trust_remote_code") and not trusted:
        raise UsageError(
            f"{where}: asks for trust_remote_code, with which the checkpoint's own code would run; read it, and then "
            "give --trust-code or type --model-args trust_remote_code=true"
        )
