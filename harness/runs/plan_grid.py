"""A study: many plans, written as one. Lists stand for one plan each, and ``runs`` for plans that share the rest.

model: [openai-community/gpt2-xl, huggyllama/llama-7b]
edits: zsre:20
mode: instance-sequential
runs:
  - {editor: [rome, kn], eval_at: "1,5,10,final"}
  - {editor: rome+rect, settings: [{rect.keep: 0.4}, {rect.keep: 0.2}], eval_at: "5,10,final"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from harness.errors import UsageError
from harness.io.files import at_home
from harness.runs.defaults import rows_for
from harness.runs.plan import NO_EDITS, UNEDITED, Plan, current_names, parse_edits

__all__ = ["expand", "plans"]

_EDITS = 50
"""How many edits where a user names neither a set nor a number."""
_OF_EDITS = ("num_edits", "exam")
"""The fields that say something of edits, so that a plan which has one means edits."""

_MAPPINGS = ("settings", "arch", "model_args", "gen_kwargs")

_LISTS = ("tasks", "exam", "include_path")
"""The fields of a plan that are lists themselves."""


def expand(values: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The fields of each plan of a study, in the order of the file; of a single plan its own.

    Args:
        values: fields of a plan, any but ``tasks`` and ``exam`` alone or as a list; ``runs`` lists fields that are laid
            over them.
        where: what an error names.

    Raises:
        UsageError: ``runs`` is no list of fields, or a list is empty.
    """
    shared = current_names({key: value for key, value in values.items() if key != "runs"}, where)
    runs = values.get("runs", [{}])
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
        raise UsageError(f"{where}: 'runs' is {runs!r}, expected a list of fields of a plan such as [editor: rome]")
    return [one for run in runs for one in _each(shared | current_names(run, where), where)]


def _each(values: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """One mapping for each choice out of the lists; the first list changes slowest."""
    axes = {key: value for key, value in values.items() if isinstance(value, list) and key not in _LISTS}
    for key, choices in axes.items():
        if not choices:
            raise UsageError(f"{where}: '{key}' is an empty list; name at least one, or leave it out")
    return [values | dict(zip(axes, choice, strict=True)) for choice in product(*axes.values())]


def plans(
    values: Mapping[str, Any],
    *,
    options: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    where: str = "plan",
) -> list[Plan]:
    """The plans that fields and the options laid over them describe; the same plan stands there once.

    Args:
        values: fields of a plan or of a study, as a configuration file has them.
        options: fields that are laid over each plan; those that are None leave it as it is, and the mappings
            ``settings``, ``arch``, ``model_args`` and ``gen_kwargs`` are laid over those of the plan.
        seeds: a plan for each, with the order of its edits drawn from the seed unless the fields say one.
        where: what an error names.

    Raises:
        UsageError: a field does not exist or has the wrong type, a seed stands there twice, or options give one too.
    """
    if seeds is not None:
        if (options or {}).get("seed") is not None:
            given = ",".join(map(str, seeds))
            raise UsageError(
                f"--seed {(options or {})['seed']} and --seeds {given}: each seed is a run; give one of the two"
            )
        if len(set(seeds)) < len(seeds):
            raise UsageError(f"--seeds '{','.join(map(str, seeds))}': a seed stands there twice; give each once")
        values = {"order": "random", **values}
    found = [_plan(one, options or {}, where) for one in expand(values, where)]
    if seeds is not None:
        found = [replace(plan, seed=seed) for plan in found for seed in seeds]
    # Compared as plans, not by their ids: a number that no id can hold is told later, with the name of its field.
    return [plan for place, plan in enumerate(found) if plan not in found[:place]]


def _plan(values: dict[str, Any], options: Mapping[str, Any], where: str) -> Plan:
    """One plan: options laid over the fields of a configuration."""
    values, options = at_home(values), at_home(dict(options))
    _require_one_count(options, "--edits '{edits}' and --num-edits {num_edits}")
    _require_one_count(values, where + ": edits '{edits}' and num_edits {num_edits}")
    laid = {key: value for key, value in options.items() if value is not None and key not in _MAPPINGS}
    values = _default_edits(values | laid) | values | laid
    if isinstance(values["edits"], str):
        values["edits"], count = parse_edits(values["edits"])
        if count is not None and options.get("num_edits") is None:
            values["num_edits"] = count
    for key in _MAPPINGS:
        known = values.get(key, {})  # what is no mapping is left for the plan to refuse
        values[key] = {**known, **(options.get(key) or {})} if isinstance(known, dict) else known
    if values.get("data_dir") is None and isinstance(values.get("model", ""), str):
        values["data_dir"] = rows_for(values.get("model", Plan.model))
    return Plan.from_json(values, where)


def _require_one_count(values: Mapping[str, Any], said: str) -> None:
    """See that edits and their number, where the same place gives both, are of one mind.

    Args:
        values: what the options, or the file, give.
        said: the beginning of the error.

    Raises:
        UsageError: ``edits`` holds another number than ``num_edits``.
    """
    edits, number = values.get("edits"), values.get("num_edits")
    count = parse_edits(edits)[1] if isinstance(edits, str) else None
    if count and number and count != number:  # a plan says of zero what it says of zero alone
        raise UsageError(f"{said.format(edits=edits, num_edits=number)}: two numbers of edits; give one of them")


def _default_edits(values: Mapping[str, Any]) -> dict[str, Any]:
    """The edits of a plan that names none: fifty, or none where there is no editor and nothing else speaks of edits."""
    if "edits" in values:
        return {}
    if values.get("patch"):  # it says which
        return {"edits": NO_EDITS}
    edited = values.get("editor", UNEDITED) != UNEDITED or any(values.get(key) for key in _OF_EDITS)
    return {"edits": "counterfact", "num_edits": _EDITS} if edited else {"edits": NO_EDITS}
