"""What a run needs, loaded and checked, before anything is measured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.editing import learned_file, schedule
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.registry import editor_names, find
from harness.editing.replay import replay
from harness.errors import ModelError, UsageError
from harness.exam import data, tasks
from harness.exam.knowledge import Knowledge, known_edits, known_once
from harness.exam.prompting import in_turns, require_roles, require_room_to_think
from harness.io.cache import cache_folder
from harness.io.nobody import tell_nobody
from harness.methods.second_moments import require_room
from harness.models.dequantised import dequantised
from harness.models.guard import Guard
from harness.models.lm import LM, load
from harness.models.placement import Placement, Where
from harness.patches.patch import require_plain
from harness.runs import handed
from harness.runs.defaults import rows_for
from harness.runs.loaded import OneModel
from harness.runs.resolve import Resolved

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["VOID", "Prepared", "prepare_run", "suite_of"]

log = logging.getLogger(__name__)

VOID = "this run's numbers are void"


@dataclass(frozen=True, eq=False)
class Prepared:
    """A plan with its model.

    Attributes:
        resolved: the plan, and what it names; of known facts alone, where the plan says so.
        lm: the unedited model.
        guard: what it was before the editor saw it.
        editor: the configured editor, with what it has learned.
        suite: what is examined; the edits come first.
        warnings: what is said twice or in two ways in the edits.
        spread: the reported tasks of which document ``i`` is scored under edit ``i mod n``, where edits are isolated.
        knowledge: what the model knows of the facts that are edited; None where nothing is edited, or no row says.
        asked: the edits that the plan names, known or not.
        dequantised: the modules that are plain while the run lasts and quantised in the checkpoint.
        loaded: the sha256 of the weights as they were read, where some are dequantised.
    """

    resolved: Resolved
    lm: LM
    guard: Guard
    editor: Editor
    suite: tasks.Suite
    warnings: list[str]
    spread: list[str]
    knowledge: Knowledge | None
    asked: tuple[Edit, ...]
    dequantised: tuple[str, ...] = ()
    loaded: str | None = None


def prepare_run(
    resolved: Resolved,
    device: Where = None,
    report: Callable[[str, int, int], None] = tell_nobody,
    *,
    models: OneModel | None = None,
    held: ExitStack | None = None,
    cache: bool = True,
) -> Prepared:
    """Load the model, and see that the editor and the tasks can be used with it.

    Args:
        resolved: the plan, and what it names.
        device: where the model goes; None for an accelerator where there is one.
        report: told what is done, how far it is, and how much there is.
        models: keeps the model for the next plan; None to load it for this one alone.
        held: what is undone behind the run: quantised modules come back; None for what asks for none.
        cache: whether what the unedited model knows may come from the cache.

    Raises:
        HarnessError: something cannot be used.
        RestoreError: the editor changed the model while it was configured.
    """
    place = device if isinstance(device, Placement) else Placement.of(device)
    plan = resolved.plan
    cache_folder()  # an address that cannot be used is told before a model is loaded

    def read() -> LM:
        return load(
            plan.model, dtype=plan.dtype, device=place, names=plan.arch or None, text=resolved.text,
            args=plan.model_args,
        )  # fmt: skip

    lm = resolved.lm or (read() if models is None else models.of(resolved, read, place=place))
    _warn_of_mini_rows(resolved, lm)
    loaded, plain = _dequantised(resolved, lm, held)
    guard = Guard.of(lm)
    editor = _editor(resolved, lm)
    _require_layers(resolved, lm, editor)
    require_roles(lm.tokenizer, plan.prompting, lm.name)
    require_room_to_think(plan.prompting, lm.context, lm.name)
    if plan.chat_edits:
        resolved = replace(resolved, edits=tuple(in_turns(resolved.edits, lm.tokenizer, plan.prompting, model=lm.name)))
    schedule.require_editable(editor, lm, resolved.edits, mode=resolved.mode)
    suite = suite_of(resolved, lm.tokenizer)  # a mistake in a question is told before the model is asked anything
    asked, knowledge = resolved.edits, _knowledge(resolved, lm, report, cache=cache)
    if knowledge and plan.known_only:
        resolved = _of_known(resolved, knowledge)
        suite = suite_of(resolved, lm.tokenizer)
    spread = suite.spread(resolved.edit_set) if resolved.edits_any and resolved.mode == "isolated" else []
    guard.require(VOID, weights=False, before=f" before {editor.name} was configured")
    said = schedule.duplicates(resolved.edits)
    return Prepared(
        resolved, lm, guard, editor, suite, said, spread, knowledge, asked, dequantised=plain, loaded=loaded
    )


def suite_of(
    resolved: Resolved, tokenizer: PreTrainedTokenizerBase, *, records: Sequence[str] | None = None
) -> tasks.Suite:
    """What a run examines.

    Args:
        resolved: the plan, and what it names.
        tokenizer: of the model.
        records: the ids of the cases that are edited; None for all of the plan.

    Raises:
        UsageError: a task does not exist.
        DataError: its data cannot be had.
    """
    plan = resolved.plan
    return tasks.load_suite(
        plan.tasks,
        edit_set=resolved.edit_set,
        records=resolved.ids_in_order_of_rows() if records is None else records,
        data_dir=plan.data_dir,
        tokenizer=tokenizer,
        own_file=plan.edits if resolved.edit_set == tasks.OWN else None,
        split=plan.split,
        exam=plan.exam,
        include=plan.include_path,
        prompting=plan.prompting,
    )


def _dequantised(resolved: Resolved, lm: LM, held: ExitStack | None) -> tuple[str | None, tuple[str, ...]]:
    """Let the quantised matrices that the editor writes be plain numbers, if the plan says so.

    Returns:
        The sha256 of the weights before, and the names of the modules; None and none where the plan does not.
    """
    plan = resolved.plan
    if not plan.dequantise_edited:
        return None, ()
    if held is None:
        raise UsageError("dequantise_edited: this command has no such option; take `harness run`")
    method = resolved.editor or resolved.recipe.configured(lm.name, plan.settings, seed=plan.seed)
    loaded = lm.fingerprint()
    return loaded, held.enter_context(dequantised(lm, method.root.edited_modules(lm), plan.editor))


def _warn_of_mini_rows(resolved: Resolved, lm: LM) -> None:
    """Say so where a model that does not ship is asked about the invented world of those that do."""
    plan, asked = resolved.plan, [*resolved.plan.tasks]
    if resolved.edit_set not in (None, tasks.OWN):
        asked.append(plan.edits)
    if plan.data_dir == data.MINI and asked and rows_for(plan.model if resolved.lm is None else lm) != data.MINI:
        log.warning(
            "%s: the shipped rows of %s are of an invented world, which only the shipped models have read; "
            "--data-dir FOLDER or hub gives real ones",
            lm.name,
            ", ".join(asked),
        )


def _knowledge(resolved: Resolved, lm: LM, report: Callable[[str, int, int], None], *, cache: bool) -> Knowledge | None:
    """Ask the model for the facts that are to be edited, and tell how many it knows."""
    plan, what = resolved.plan, f"which facts of {Path(resolved.plan.edits).name} the model knows"
    if not resolved.edits_any or plan.patch or not any(edit.target_old for edit in resolved.edits):
        return None
    ask = known_once if cache else known_edits
    found = ask(lm, resolved.edits, lambda done, total: report(what, done, total))
    line = f"{Path(plan.edits).name}: {found.line}"
    if len(found.known) < found.asked and not plan.known_only:
        log.warning("%s; an edit of what it does not know shows less (--known-only leaves those out)", line)
    else:
        report(line, 0, 0)
    return found


def _of_known(resolved: Resolved, knowledge: Knowledge) -> Resolved:
    """The run on the known facts alone; its plan, which names the record, stays.

    Raises:
        UsageError: the model knows none, or a stop lies beyond those that it knows.
    """
    plan = resolved.plan
    cases = zip(schedule.cases_of(resolved.edits), resolved.rows, strict=True)
    kept = [(case, row) for case, row in cases if all(edit.id in knowledge.known for edit in case)]
    if not kept:
        raise UsageError(
            f"{plan.model} knows none of the {knowledge.asked} facts of {plan.edits}, so that known_only leaves "
            "nothing; name more of them or another set, or leave --known-only out"
        )
    stops = schedule.stops(plan.eval_at, len(kept), mode=resolved.mode, batch_size=plan.edit_batch_size)
    edits = tuple(edit for case, _ in kept for edit in case)
    return replace(resolved, edits=edits, rows=tuple(row for _, row in kept), stops=tuple(stops))


def _editor(resolved: Resolved, lm: LM) -> Editor:
    """The editor as the plan configures it, with what it has learned; or one that puts saved edits back."""
    plan = resolved.plan
    if plan.patch:
        return replay(Path(plan.patch), lm)
    if resolved.editor is not None:
        return handed.with_learned(resolved.editor, lm, plan.fitted)
    return resolved.recipe.build(
        lm, plan.settings, seed=plan.seed, prepare=lambda method: learned_file.require_learned(method, lm, plan.fitted)
    )


def _require_layers(resolved: Resolved, lm: LM, editor: Editor) -> None:
    """See that the layers to be edited are there, and that their weights can be edited, before anything is measured."""
    layers = getattr(editor.root, "layers", None)
    for layer in layers or ():
        lm.arch.writer_of(layer)  # tells of a layer that the model does not have
    if resolved.edits_any and not resolved.plan.patch and "weights" in editor.root.seams:
        _require_plain(lm, layers or lm.arch.editable)
    made = resolved.edits_any and not resolved.plan.patch and getattr(editor.root, "cov_tokens", None)
    if made and layers and getattr(editor.root, "covariance", True):
        require_room(lm, layers)


def _require_plain(lm: LM, layers: Sequence[int]) -> None:
    """Refuse a quantised model for an editor of weights, and name the editors that work on one."""
    try:
        for layer in layers:
            require_plain(lm, lm.down(layer))
    except ModelError as error:
        others = ", ".join(n for n in editor_names() if "weights" not in find(n).seams and not find(n).reference)
        raise ModelError(f"{error}: {others}") from error
