"""A plan with everything that it names looked up, once: the one object that a run, a check and a dry run share.

Nothing here loads a model. What a plan names and what cannot go together is told here, before hours are spent.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from harness.editing import learned_file, patch_file, schedule
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.registry import Recipe, compose
from harness.errors import UsageError
from harness.exam import tasks
from harness.exam.exam_parts import asked_parts
from harness.exam.vllm_texts import BACKENDS, require_vllm
from harness.io import plain_text
from harness.models.lm import LM, require_dtype
from harness.models.reading import require_args
from harness.runs.defaults import rows_for, text_for
from harness.runs.plan import NO_EDITS, UNEDITED, Plan

__all__ = ["Resolved", "resolve"]


@dataclass(frozen=True, eq=False)
class Resolved:
    """What a plan stands for.

    Attributes:
        plan: the plan, with what it left open filled in.
        recipe: the classes that the editor's name stands for.
        edits: the edits, in the order in which they are made.
        rows: the place of each case among the rows of the edit set; as a rule a case is one edit.
        stops: the numbers of cases at which a run measures; 0 is always among them.
        text: where plain text for second moments comes from; None for the model's default.
        about: what the file of saved edits says of itself; empty where edits are made.
        lm: the model, where it is in memory already.
        editor: the configured editor, where it was given as one.
    """

    plan: Plan
    recipe: Recipe
    edits: tuple[Edit, ...]
    rows: tuple[int, ...]
    stops: tuple[int, ...]
    text: str | None
    about: Mapping[str, Any]
    lm: LM | None = None
    editor: Editor | None = None

    @property
    def id(self) -> str:
        """The id of the plan's record."""
        return self.plan.id

    @property
    def mode(self) -> str:
        """How the edits are made: isolated, batch or sequential."""
        return str(self.plan.mode)

    @property
    def edits_any(self) -> bool:
        """Whether the run edits at all, rather than measure the unedited model alone."""
        return max(self.stops) > 0

    @property
    def edit_set(self) -> str | None:
        """The task that examines the edits; None where there are none."""
        return _edit_set(self.plan)

    @cached_property
    def cases(self) -> tuple[str, ...]:
        """The ids of the cases, in the order in which they are made; of a case of one edit it is that edit's."""
        return tuple(case[0].belongs_to for case in schedule.cases_of(self.edits))

    def made(self, count: int) -> tuple[str, ...]:
        """The ids of the cases that have been made at a stop."""
        return self.cases[:count]

    def ids_in_order_of_rows(self) -> list[str]:
        """The ids of the cases as their rows stand, so that a document is the same one in whatever order edits come."""
        return [case for _, case in sorted(zip(self.rows, self.cases, strict=True), key=lambda pair: pair[0])]


def resolve(plan: Plan, *, lm: LM | None = None, editor: Editor | None = None) -> Resolved:
    """Look up all that a plan names, cheap mistakes first.

    Args:
        plan: the plan.
        lm: the model, where it is in memory already; the plan's own name for it is kept.
        editor: the configured editor, where it is at hand; the plan's ``editor`` and ``settings`` describe it then.

    Raises:
        UsageError: the editor, a hyperparameter, an edit set, a file, a task, the mode or a stop does not exist, or
            two of them do not go together.
        DataError: a file or a row cannot be used.
    """
    require_dtype(plan.dtype)
    require_args(plan.model_args)
    if plan.text is not None:
        plain_text.require_text(plan.text)
    about = patch_file.patch_manifest(Path(plan.patch))["about"] if plan.patch else {}
    plan = _replayed(plan, about) if plan.patch else plan
    recipe = Recipe.of(editor) if editor else compose(plan.editor)
    method = editor or recipe.configured(plan.model, plan.settings, seed=plan.seed)
    tasks.require_names(plan.tasks, plan.data_dir, plan.include_path)
    exam = asked_parts(_edit_set(plan), plan.exam)
    learned_file.require_usable(method.root, plan.fitted)
    usual = schedule.default_mode(recipe.cls) if plan.cases_at_once is None else "isolated"
    mode, size = schedule.plain_mode(plan.mode or usual, plan.edit_batch_size)
    assert mode is not None
    schedule.require_at_once(plan.cases_at_once, mode)
    at_once = None if plan.cases_at_once == 1 else plan.cases_at_once
    schedule.operations(0, mode, size)  # tells of a mode that does not exist before any row is read
    # The order of saved edits was drawn of all rows of their run; a file of an earlier version does not say how many.
    rows = _rows(plan, about.get("of", plan.num_edits))
    drawn = _ordered(rows, plan)
    if about.get("known_only"):  # the patch was made of some of its rows alone
        drawn = [(row, case) for row, case in drawn if case[0].belongs_to in about["ids"]]
    drawn = drawn[: plan.num_edits]
    unedited = plan.editor == UNEDITED and editor is None and not plan.patch
    if not rows and not plan.tasks and unedited:
        raise UsageError("nothing is asked of the model; name tasks with --tasks, or edits with --edits")
    if not (unedited or rows):
        raise UsageError(
            f"edits is '{NO_EDITS}', so there is nothing to edit or to put back; name an edit set or a file"
        )
    edits = tuple(chain.from_iterable(case for _, case in drawn))
    if plan.known_only and not any((edit.target_old or "").strip() for edit in edits):
        raise UsageError(
            f"known_only: no row of {plan.edits} says what is true before the edit (target_old), so that no fact can "
            "be known; give rows that do, or leave --known-only out"
        )
    if not unedited and not plan.patch:
        schedule.require_able(method, edits, mode)
    if plan.dequantise_edited and (unedited or plan.patch or "weights" not in method.root.seams):
        said = "saved edits are put back" if plan.patch else f"{plan.editor} writes no weights"
        raise UsageError(f"dequantise_edited: {said}, so that no edited matrix is known; leave --dequantise-edited out")
    _require_backend(plan, unedited=unedited, in_memory=lm is not None)
    found = Resolved(
        plan=replace(
            plan, mode=mode, edit_batch_size=size, num_edits=len(drawn) or None, exam=exam, cases_at_once=at_once
        ),
        recipe=recipe,
        edits=edits,
        rows=tuple(row for row, _ in drawn),
        stops=(0,) if unedited else tuple(schedule.stops(plan.eval_at, len(drawn), mode=mode, batch_size=size)),
        text=text_for(plan.model, plan.data_dir, plan.text),
        about=about,
        lm=lm,
        editor=editor,
    )
    if found.edits_any and mode == "isolated":
        tasks.require_own_documents(
            plan.tasks, edit_set=found.edit_set, data_dir=plan.data_dir, include=plan.include_path
        )
    return found


def _require_backend(plan: Plan, *, unedited: bool, in_memory: bool) -> None:
    """See that what writes texts can have the model of a plan.

    Raises:
        UsageError: it cannot.
    """
    if plan.backend not in BACKENDS:
        raise UsageError(f"backend is '{plan.backend}', expected {' or '.join(BACKENDS)}")
    if plan.backend == "hf":
        return
    if not unedited:
        what = f"saved edits ({plan.patch})" if plan.patch else plan.editor
        raise UsageError(
            f"backend vllm: {what} would change the model in this process, where vLLM does not see it; write weights "
            "with `harness apply` and measure that folder with --editor none, or leave --backend out"
        )
    if in_memory or plan.model_args:
        what = "model_args go to transformers alone" if plan.model_args else "it reads no model in memory"
        raise UsageError(f"backend vllm: {what}; give a folder that `harness apply` wrote, or leave --backend out")
    require_vllm(plan.model)


def _edit_set(plan: Plan) -> str | None:
    """The task that examines the edits of a plan; None where it names none."""
    if plan.edits == NO_EDITS:
        return None
    return plan.edits if plan.edits in tasks.edit_sets(plan.include_path) else tasks.OWN


def _rows(plan: Plan, count: int | None) -> list[Edit]:
    """The edits that a plan names, in the order of the rows."""
    return (
        []
        if plan.edits == NO_EDITS
        else tasks.read_edits(
            plan.edits, data_dir=plan.data_dir, split=plan.split, count=count, include=plan.include_path
        )
    )


def _replayed(plan: Plan, about: Mapping[str, Any]) -> Plan:
    """The plan that examines a saved patch: on the edits that the patch holds, in one operation.

    Raises:
        UsageError: the plan also names an editor, or says otherwise how its edits were made.
    """
    if plan.editor != UNEDITED:
        raise UsageError(f"--patch puts saved edits back and --editor {plan.editor} makes new ones; give one of them")
    _require_as_saved(plan, about)
    known = {key: about[key] for key in ("edits", "split", "num_edits", "data_dir", "order", "seed") if key in about}
    return replace(plan, mode="batch", edit_batch_size=None, cases_at_once=None, eval_at="final", **known)


def _require_as_saved(plan: Plan, about: Mapping[str, Any]) -> None:
    """See that a plan says of the edits that a patch holds what the patch says, or leaves it at its default.

    Raises:
        UsageError: it says something else, which would have no effect.
    """
    usual = {key: getattr(Plan, key) for key in _OF_EDITS} | {"edits": NO_EDITS, "data_dir": rows_for(plan.model)}
    held = {"eval_at": usual["eval_at"], "edit_batch_size": None, "cases_at_once": None, "known_only": False, **about}
    told = {key: getattr(plan, key) for key in _OF_EDITS if key in held}
    if told.get("mode") == "batch":  # as which saved edits are put back, and as a record of them has it
        told["mode"] = None
    if "edits" in told and _one_file(plan.edits, str(about["edits"])):
        told["edits"] = about["edits"]
    other = [key for key, value in told.items() if value not in (usual[key], held[key])]
    if other:
        made = _typed({key: held[key] for key in other})
        raise UsageError(
            f"--patch puts back the edits of its file{made and f', made with {made}'}; leave "
            f"{_typed({key: told[key] for key in other})} out"
        )


_OF_EDITS = (
    *("edits", "num_edits", "split", "data_dir", "order", "seed", "mode"),
    *("edit_batch_size", "cases_at_once", "eval_at", "known_only"),
)
"""The fields of a plan that say which edits are made, and how; saved edits have been made."""


def _typed(values: Mapping[str, object]) -> str:
    """Fields of a plan as they are typed."""
    names = {f"--{key.replace('_', '-')}": value for key, value in values.items()}
    said = {name: value for name, value in names.items() if value is not None and value is not False}
    return " ".join(name if value is True else f"{name} {value}" for name, value in said.items())


def _one_file(a: str, b: str) -> bool:
    """Whether two paths lead to one file."""
    return Path(a).is_file() and Path(a).resolve() == Path(b).resolve()


def _ordered(edits: Sequence[Edit], plan: Plan) -> list[tuple[int, list[Edit]]]:
    """The cases in the order of the plan, each with its place among the rows."""
    rows = list(enumerate(schedule.cases_of(edits)))
    return random.Random(plan.seed).sample(rows, len(rows)) if plan.order == "random" else rows
