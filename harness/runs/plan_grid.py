"""A study: many plans, written as one. Lists stand for one plan each, and ``runs`` for plans that share the rest.

model: [openai-community/gpt2-xl, huggyllama/llama-7b]
edits: zsre:20
mode: instance-sequential
runs:
  - {editor: [rome, kn], eval_at: "1,5,10,final"}
  - {editor: rome+rect, settings: [{rect.keep: 0.4}, {rect.keep: 0.2}], eval_at: "5,10,final"}
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from harness.errors import UsageError

__all__ = ["expand"]

_LISTS = ("tasks",)
"""The fields of a plan that are lists themselves."""


def expand(values: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The fields of each plan of a study, in the order of the file; of a single plan its own.

    Args:
        values: fields of a plan, any but ``tasks`` alone or as a list; ``runs`` lists fields that are laid over them.
        where: what an error names.

    Raises:
        UsageError: ``runs`` is no list of fields, or a list is empty.
    """
    shared = {key: value for key, value in values.items() if key != "runs"}
    runs = values.get("runs", [{}])
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
        raise UsageError(f"{where}: 'runs' is {runs!r}, expected a list of fields of a plan such as [editor: rome]")
    return [one for run in runs for one in _each(shared | run, where)]


def _each(values: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """One mapping for each choice out of the lists; the first list changes slowest."""
    axes = {key: value for key, value in values.items() if isinstance(value, list) and key not in _LISTS}
    for key, choices in axes.items():
        if not choices:
            raise UsageError(f"{where}: '{key}' is an empty list; name at least one, or leave it out")
    return [values | dict(zip(axes, choice, strict=True)) for choice in product(*axes.values())]
