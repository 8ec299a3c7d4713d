"""The record of a run before anything is measured: what is run, on what, and where its rows come from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness.editing import learned_file
from harness.editing.directions import LIKELIHOOD
from harness.editing.edit import Edit
from harness.editing.schedule import contradicting_cases
from harness.exam import chance, data, tasks
from harness.exam.knowledge import NEW_TOKENS
from harness.exam.measure import configuration_sha256
from harness.exam.prompting import template_sha256
from harness.io.plain_text import text_identity
from harness.models.offload import count_parameters
from harness.runs.identity import differing, digest
from harness.runs.prepare import Prepared
from harness.runs.record import Record
from harness.runs.versions import versions

__all__ = ["edits_sha256", "new_record"]

_PLAIN = ("id", "prompt", "subject", "target", "target_old", "relation")
_DIRECTED = ("direction", "against")  # the fields of an edit that a plain one leaves at their defaults


def new_record(ready: Prepared, weights: str) -> Record:
    """The record of a run that begins.

    Args:
        ready: the run.
        weights: the sha256 of the model's weights.
    """
    plan, lm = ready.resolved.plan, ready.lm
    return Record(
        id=ready.resolved.id,
        plan=plan.to_json(),
        model={
            "name": lm.name,
            "sha256": weights,
            "parameters": count_parameters(lm.model),
            "dtype": str(lm.model.dtype).removeprefix("torch.") if plan.dtype == "auto" else plan.dtype,
            "architecture": type(lm.model).__name__,
            "device": lm.device.type,
            **({"revision": lm.revision} if lm.revision else {}),
            **({"args": dict(plan.model_args)} if plan.model_args else {}),
            **({"dequantised": list(ready.dequantised), "loaded_sha256": ready.loaded} if ready.dequantised else {}),
            **_chat_template(ready),
            "configuration": configuration_sha256(lm),
            **({} if lm.text == "mini" else {"text": text_identity(lm.text)}),
        },
        editor=_editor(ready),
        edits=_edits(ready),
        headlines=_headlines(ready.suite),
        derived=_derived(ready.suite),
        shown=_shown(ready.suite),
        chance=_chance(ready.suite),
        caveats=_caveats(ready.suite),
        data=_sources_of_rows(ready),
        templates=_templates(ready.suite),
        versions=versions() | ({"vllm": version("vllm")} if plan.backend == "vllm" else {}),
        seed=plan.seed,
    )


def _chat_template(ready: Prepared) -> dict[str, str]:
    """The hash of the chat template by which the model is asked or edited, if it is."""
    named, lm = ready.resolved.plan.prompting.template, ready.lm
    return {"chat_template": template_sha256(lm.tokenizer, named, lm.name)} if named else {}


def _editor(ready: Prepared) -> dict[str, Any]:
    editor = ready.editor
    return {
        "name": editor.label(),
        "hyperparameters": editor.hyperparameters(),
        "notes": editor.notes(ready.lm),
        "learned": learned_file.learned_digest(editor.root),
        "sources": ready.resolved.recipe.sources,
    }


def _edits(ready: Prepared) -> dict[str, Any]:
    named, edits, cases = ready.resolved.plan.edits, ready.resolved.edits, ready.resolved.cases
    said = {(edit.text, edit.continuation) for edit in edits}
    divided, at_once = contradicting_cases(edits), ready.resolved.plan.cases_at_once
    joins = {edit.id: found["join"] for edit in edits if (found := _joined(edit))}
    return {
        "dataset": Path(named).name if Path(named).is_file() else named,
        "count": len(cases) if ready.resolved.edits_any else 0,
        "unique": len(said),
        "contradicting": len(said) - len({prompt for prompt, _ in said}),
        **({"contradicting_cases": len(divided)} if divided else {}),
        "ids": list(cases),
        "sha256": edits_sha256(edits),
        **({"joins": joins} if joins else {}),
        **({"spread": ready.spread} if ready.spread else {}),
        **({"mode": f"isolated, {at_once} cases at once"} if at_once else {}),
        "warnings": ready.warnings,
        **_known(ready),
    }


def _known(ready: Prepared) -> dict[str, Any]:
    """How many of the facts the model knows; of a run on those alone also the hash of all that were asked for."""
    if ready.knowledge is None:
        return {}
    asked = {"sha256": edits_sha256(ready.asked)} if ready.resolved.plan.known_only else {}
    rule = f"in the greedy continuation of {NEW_TOKENS} tokens"
    return {"known": {"rule": rule, "asked": ready.knowledge.asked, "count": len(ready.knowledge.known), **asked}}


def edits_sha256(edits: Sequence[Edit]) -> str:
    """The hash that names some edits in their order."""
    return digest({"edits": [_facts(edit) for edit in edits]})


def _bare(edit: Edit) -> Edit:
    """The edit without a chat's turns around it, which the plan and the hash of the template name."""
    return replace(edit, before="", after="")


def _facts(edit: Edit) -> dict[str, Any]:
    """What names an edit: a field that is added with a default renames none."""
    edit = _bare(edit)
    always = _PLAIN if edit.direction in LIKELIHOOD else (*_PLAIN, *_DIRECTED)
    found = {name: getattr(edit, name) for name in always} | differing(edit)
    return {name: value for name, value in found.items() if name != "join"} | _joined(edit)


def _joined(edit: Edit) -> dict[str, str]:
    """What stands between prompt and target, where it is not the one space that is usual."""
    join = _bare(edit).continuation.removesuffix(edit.target)
    return {} if join == ("" if edit.target.startswith(" ") else " ") else {"join": join}


def _headlines(suite: tasks.Suite) -> dict[str, str]:
    """The first member's headline stands for what is reported under one name."""
    found: dict[str, str] = {}
    for task in suite.tasks:
        if task.headline is not None:
            found.setdefault(task.shown, task.headline)
    return found


def _derived(suite: tasks.Suite) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    for task in suite.tasks:
        for score, rule in (task.metadata.get("derived") or {}).items():
            found.setdefault(task.shown, {})[score] = list(rule["harmonic"])
    return found


def _templates(suite: tasks.Suite) -> dict[str, str | None]:
    """What names the tasks; of an edit set all, asked or not, so that its columns are those of other records."""
    return {**{task.name: task.identity for task in suite.tasks}, **suite.left_out}


def _shown(suite: tasks.Suite) -> dict[str, list[str]]:
    """What tables show of a task besides the usual metrics."""
    found: dict[str, list[str]] = {}
    for task in suite.tasks:
        for metric in task.shown_beside:
            found.setdefault(task.shown, []).append(metric)
    return found


def _caveats(suite: tasks.Suite) -> dict[str, str]:
    """What the YAMLs want a reader to know beside the numbers."""
    return {task.shown: str(task.metadata["caveat"]) for task in suite.tasks if task.metadata.get("caveat")}


def _chance(suite: tasks.Suite) -> dict[str, dict[str, float]]:
    """What a model gets that knows nothing, of each task where that is known."""
    found: dict[str, dict[str, float]] = {}
    for task in suite.tasks:
        if levels := chance.task_levels(task):
            found.setdefault(task.shown, {}).update(levels)
    return found


def _sources_of_rows(ready: Prepared) -> dict[str, Any]:
    """Where the rows of each reported name come from, where that is known."""
    plan = ready.resolved.plan
    known = data.find_datasets(include=plan.include_path)
    folders = tasks.own_folders(plan.tasks, plan.include_path)
    found: dict[str, Any] = {}
    files = {task.shown: task.file for task in ready.suite.tasks if task.file is not None}
    sources = {task.shown: task.metadata.get("source") for task in ready.suite.tasks}
    for name in ready.suite.shown:
        if name not in (*known, *files) and (own := data.find_one(name, include=folders)):
            known[name] = own
        source = name if name in known else sources[name]  # a task may read the rows of another one
        if isinstance(source, str) and source in known:
            split = plan.split if name == plan.edits else "test"
            found[name] = asdict(data.provenance_of(known[source], split, plan.data_dir))
        elif name in files:
            found[name] = asdict(files[name])
        elif name == tasks.OWN:
            sha256 = hashlib.sha256(Path(plan.edits).read_bytes()).hexdigest()
            rows = len(ready.resolved.cases)
            found[name] = asdict(data.Provenance("file", Path(plan.edits).name, sha256, rows, False))
    return found
