"""What a run needs, loaded and checked, before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.editing import learned_file, schedule
from harness.editing.editor import Editor
from harness.editing.registry import editor_names, find
from harness.editing.replay import replay
from harness.errors import ModelError
from harness.exam import tasks
from harness.models.guard import Guard
from harness.models.lm import LM, load, require_device
from harness.patches.patch import require_plain
from harness.runs import handed
from harness.runs.resolve import Resolved

__all__ = ["VOID", "Prepared", "prepare_run"]

VOID = "this run's numbers are void"


@dataclass(frozen=True, eq=False)
class Prepared:
    """A plan with its model.

    Attributes:
        resolved: the plan, and what it names.
        lm: the unedited model.
        guard: what it was before the editor saw it.
        editor: the configured editor, with what it has learned.
        suite: what is examined; the edits come first.
        warnings: what is said twice or in two ways in the edits.
        spread: the reported tasks of which document ``i`` is scored under edit ``i mod n``, where edits are isolated.
    """

    resolved: Resolved
    lm: LM
    guard: Guard
    editor: Editor
    suite: tasks.Suite
    warnings: list[str]
    spread: list[str]


def prepare_run(resolved: Resolved, device: str | None = None) -> Prepared:
    """Load the model, and see that the editor and the tasks can be used with it.

    Args:
        resolved: the plan, and what it names.
        device: where the model goes; None for an accelerator where there is one.

    Raises:
        HarnessError: something cannot be used.
        RestoreError: the editor changed the model while it was configured.
    """
    require_device(device)
    plan = resolved.plan
    lm = resolved.lm or load(plan.model, dtype=plan.dtype, device=device, names=plan.arch or None, text=resolved.text)
    guard = Guard.of(lm)
    editor = _editor(resolved, lm)
    _require_layers(resolved, lm, editor)
    schedule.require_editable(editor, lm, resolved.edits, mode=resolved.mode)
    suite = tasks.load_suite(
        plan.tasks,
        edit_set=resolved.edit_set,
        records=resolved.ids_in_order_of_rows(),
        data_dir=plan.data_dir,
        tokenizer=lm.tokenizer,
        own_file=plan.edits if resolved.edit_set == tasks.OWN else None,
        split=plan.split,
        exam=plan.exam,
    )
    spread = suite.spread(resolved.edit_set) if resolved.edits_any and resolved.mode == "isolated" else []
    guard.require(VOID, weights=False, before=f" before {editor.name} was configured")
    return Prepared(resolved, lm, guard, editor, suite, schedule.duplicates(resolved.edits), spread)


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
        lm.arch.down_of(layer)  # tells of a layer that the model does not have
    if resolved.edits_any and not resolved.plan.patch and "weights" in editor.root.seams:
        _require_plain(lm, layers or lm.arch.editable)


def _require_plain(lm: LM, layers: Sequence[int]) -> None:
    """Refuse a quantised model for an editor of weights, and name the editors that work on one."""
    try:
        for layer in layers:
            require_plain(lm, lm.down(layer))
    except ModelError as error:
        others = ", ".join(name for name in editor_names() if "weights" not in find(name).seams)
        raise ModelError(f"{error}: {others}") from error
