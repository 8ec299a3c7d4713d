"""What an editor gives back, seen to be a change of the model that it was given, and told in one line where it is not.

An editor may be a stranger's file: whoever has it edit does so by these functions, so that a mistake in it is told as
one, and not as an error of what comes after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.errors import ModelError, UsageError
from harness.io.torch_process import plain_torch
from harness.models.lm import LM
from harness.patches.delta import Delta
from harness.patches.patch import Patch, require_same_shape

if TYPE_CHECKING:
    from harness.editing.edit import Edit
    from harness.editing.editor import Editor

__all__ = ["finished_patch", "made", "made_each", "require_patch"]


def made(editor: Editor, lm: LM, edits: Sequence[Edit], *, memory: object = None) -> Patch:
    """What :meth:`harness.editing.editor.Editor.edit` gives.

    Args:
        editor: the method.
        lm: the model, which carries the earlier edits.
        edits: the edits of one operation.
        memory: what the editor remembers.

    Raises:
        UsageError: it is no change of this model.
    """
    with plain_torch():
        given: object = editor.edit(lm, edits, memory)
    return require_patch(editor, lm, given, by="edit()")


def made_each(editor: Editor, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
    """What :meth:`harness.editing.editor.Editor.edit_each` gives.

    Args:
        editor: the method.
        lm: the unedited model.
        edits: the edits, each of which is made alone.

    Raises:
        UsageError: it is no list of changes of this model, one for each edit.
    """
    with plain_torch():
        given: object = editor.edit_each(lm, edits)
    if not isinstance(given, list | tuple) or len(given) != len(edits):
        what = f"{len(given)} patches" if isinstance(given, list | tuple) else _kind(given)
        raise UsageError(f"{editor.name}: edit_each() gave {what}, expected a list of {len(edits)}, one for each edit")
    return [require_patch(editor, lm, one, by="edit()") for one in given]


def finished_patch(editor: Editor, lm: LM, total: Patch) -> Patch:
    """What :meth:`harness.editing.editor.Editor.finish` gives.

    Args:
        editor: the method.
        lm: the unedited model.
        total: the sum of all increments.

    Raises:
        UsageError: it is no change of this model.
    """
    with plain_torch():
        given: object = editor.finish(lm, total)
    return require_patch(editor, lm, given, by="finish()")


def require_patch(editor: Editor, lm: LM, given: object, *, by: str) -> Patch:
    """See that what an editor gave is a patch of this model.

    Args:
        editor: the method.
        lm: the model.
        given: what it gave.
        by: the function that gave it.

    Raises:
        UsageError: it is none; names the editor and what it gave.
    """
    if not isinstance(given, Patch):
        cure = "end it with `return Patch(...)`" if given is None else "return Patch(weights={name: LowRank(...)})"
        raise UsageError(f"{editor.name}: {by} gave {_kind(given)}, expected a Patch; {cure}")
    for part in ("weights", "hooks"):
        if not isinstance(getattr(given, part), Mapping):
            held = _kind(getattr(given, part))
            raise UsageError(f"{editor.name}: {by} gave a Patch whose {part} are {held}, expected a dict by name")
    try:
        for name, delta in given.weights.items():
            _require_delta(name, delta)
            require_same_shape(lm, name, delta)
        for name in given.hooks:
            lm.module(name)
    except ModelError as error:
        raise ModelError(f"{editor.name}: {error}") from error
    rules = {**given.hooks, "the prompt": given.prompt, "the logits": given.logits}
    for name, rule in rules.items():
        if rule is not None and not callable(rule):
            raise UsageError(f"{editor.name}: {by} gave {_kind(rule)} for {name}, expected a function")
    return given


def _require_delta(name: object, delta: object) -> None:
    if not isinstance(name, str):
        raise ModelError(f"{name!r} is no name of a parameter; give what lm.down(layer) gives")
    if not isinstance(delta, Delta):
        raise ModelError(f"the change of '{name}' is {_kind(delta)}, expected a LowRank(left, right) or a Dense(value)")


def _kind(given: object) -> str:
    return "None" if given is None else f"a {type(given).__name__}"
