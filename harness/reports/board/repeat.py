"""A plan as the command that carries it out again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from harness.errors import UsageError
from harness.io.yaml_text import parse_yaml
from harness.runs.defaults import rows_for
from harness.runs.identity import differing
from harness.runs.plan import Plan

__all__ = ["repeat_command"]

Json = dict[str, Any]
_NAMED = {"settings": "--set", "arch": "--arch"}


def repeat_command(plan: Mapping[str, Any]) -> str | None:
    """The ``harness run`` that makes a record of this plan again; None where the plan is none of this version.

    Args:
        plan: the fields of a plan as a record keeps them.
    """
    try:
        found = Plan.from_json(plan)
        named = differing(found)
    except (UsageError, TypeError, ValueError):
        return None
    # Both have a default of the command line that is not the plan's.
    named["edits"] = found.edits if found.num_edits is None else f"{found.edits}:{found.num_edits}"
    if found.data_dir != rows_for(found.model):
        named["data_dir"] = found.data_dir
    named.pop("num_edits", None)
    return shlex.join(["harness", "run", *_options(named)])


def _options(named: Json) -> Iterator[str]:
    for field, value in named.items():
        option = f"--{field.replace('_', '-')}"
        if field in _NAMED:
            for key, one in value.items():
                yield from (_NAMED[field], f"{key}={_said(one)}")
        elif field == "model_args":
            yield from (option, ",".join(f"{key}={_said(one)}" for key, one in value.items()))
        elif field == "gen_kwargs":
            yield from (option, json.dumps(value))
        elif value is True:
            yield option
        else:
            yield from (option, ",".join(map(str, value)) if isinstance(value, list) else str(value))


def _said(value: object) -> str:
    """A value as YAML reads it; a text that YAML would take for something else is in quotes."""
    return value if isinstance(value, str) and _is_plain(value) else json.dumps(value)


def _is_plain(text: str) -> bool:
    try:
        float(text)  # also of "inf", which YAML takes for text
    except ValueError:
        return bool(parse_yaml(text) == text)
    return False
