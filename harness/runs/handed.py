"""Edits and editors that a caller names, or hands over as objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness.editing import learned_file
from harness.editing.edit import Edit
from harness.editing.editor import Editor, Learned, Wrapper
from harness.editing.registry import compose
from harness.errors import UsageError
from harness.exam import own_rows, tasks
from harness.exam.prompting import Prompting, in_turns, require_roles
from harness.models.lm import LM
from harness.models.naming import shipped
from harness.runs.plan import parse_edits

__all__ = [
    "AS_TEXT",
    "configured_editor",
    "edited_modules",
    "editor_fields",
    "editor_name",
    "edits_in_turns",
    "edits_source",
    "given_edits",
    "plain_edits",
    "require_editor",
    "require_editor_first",
    "turns",
    "with_learned",
]


def given_edits(
    given: str | Path | Sequence[Edit | Mapping[str, object]], data_dir: str, split: str = "test"
) -> list[Edit]:
    """The edits of a set (``NAME`` or ``NAME:N``), of a file, or of a list.

    Args:
        given: ``NAME``, ``NAME:N``, a file, or the edits themselves, as :class:`Edit` or as rows.
        data_dir: where the rows of a set are.
        split: which rows of a set.

    Raises:
        UsageError: there is no such set, or it has fewer rows than asked for.
        DataError: a row cannot be used.
    """
    if not isinstance(given, str | Path):
        return own_rows.edits_of_rows(given)
    name, count = parse_edits(str(given))
    return tasks.read_edits(name, data_dir=data_dir, split=split, count=count)


def edits_source(given: str | Path | Sequence[Edit | Mapping[str, object]], data_dir: str) -> dict[str, object]:
    """Where edits come from, as the fields of a plan; nothing where no row can say them."""
    if isinstance(given, str | Path):
        name = parse_edits(str(given))[0]
    elif any(isinstance(one, Edit) and one.direction != "likelihood" for one in given):
        return {}
    else:
        name = str(own_rows.keep_rows(given))
    where = {"data_dir": data_dir} if name in tasks.edit_sets() else {}  # rows of one's own lie in no data folder
    return {"edits": name, "split": "test", **where, "order": "file", "seed": 0}


def turns(chat_edits: bool | str, system_instruction: str | None) -> Prompting | None:
    """How edits are made turns of a chat; None where they are plain text.

    Raises:
        UsageError: there is a system turn, and no chat.
    """
    if chat_edits:
        return Prompting(apply_chat_template=chat_edits, system_instruction=system_instruction, chat_edits=True)
    if system_instruction is not None:
        raise UsageError("system_instruction is a turn of a chat; add chat_edits=True, or leave it out")
    return None


def edits_in_turns(edits: Sequence[Edit], lm: LM, prompting: Prompting | None) -> list[Edit]:
    """Edits as they are made: as turns of a chat, or as they are.

    Args:
        edits: the edits.
        lm: the model, whose tokenizer has the template.
        prompting: how they are made turns; None for plain text.

    Raises:
        UsageError: there is no such template, it has no turn that is needed, or it changes a prompt.
    """
    if prompting is None:
        return list(edits)
    require_roles(lm.tokenizer, prompting, lm.name)
    return in_turns(edits, lm.tokenizer, prompting, model=lm.name)


AS_TEXT = {
    "fit": "an editor learns from edits as plain text, and makes edits in turns by what it learned so",
    "tune": "an editor is tuned on edits as plain text",
    "trace": "facts are traced as plain text",
    "localize": "the study edits and traces facts as plain text",
    "sweep": "canonical examples are plain text",
}
"""What cannot make edits turns of a chat, and why."""


def plain_edits(command: str) -> str:
    """Why a command of :data:`AS_TEXT` takes edits as plain text alone, and what to do."""
    return (
        f"--chat-edits is not for `harness {command}`: {AS_TEXT[command]}; leave it out here (`harness run "
        "--chat-edits` and harness.edit make edits in turns)"
    )


def require_editor(given: str | Editor, settings: Mapping[str, object]) -> None:
    """See that an editor exists, before a model is loaded for it.

    Raises:
        UsageError: it does not, or settings stand beside a configured one.
    """
    if isinstance(given, str):
        compose(given)
    elif not isinstance(given, Editor):
        raise UsageError(f"editor is of type {type(given).__name__}, expected a name such as memit, or an Editor")
    elif settings:
        raise UsageError(
            f"settings name {', '.join(settings)}, but {given.name} is configured already; give the editor's name, or "
            "set them when you make it"
        )


def require_editor_first(editor: object, model: object) -> None:
    """See that an editor and its model have not changed places.

    Raises:
        UsageError: they have, or the editor is none.
    """
    named = isinstance(editor, str) and editor in shipped() and isinstance(model, str)
    if named or not isinstance(editor, str | Editor):
        what = f"'{editor}'" if named else f"of type {type(editor).__name__}"
        raise UsageError(f"editor is {what}; the editor comes first, and then the model: fit('mend', 'mini')")


def editor_name(given: str | Editor) -> str:
    """The name of the method itself, as a file of saved edits names it."""
    return compose(given).method if isinstance(given, str) else given.root.name


def editor_fields(given: str | Editor, settings: Mapping[str, object]) -> dict[str, object]:
    """The fields of a plan that say which editor is meant: its name and its hyperparameters."""
    if isinstance(given, str):
        return {"editor": given, "settings": dict(settings)}
    names, part = [given.name], given
    while isinstance(part, Wrapper):
        part = part.inner
        names.insert(0, part.name)
    return {"editor": "+".join(names), "settings": given.hyperparameters()}


def configured_editor(
    given: str | Editor, lm: LM, *, settings: Mapping[str, object], seed: int, fitted: str | None = None
) -> Editor:
    """The editor, with what it has learned.

    Args:
        given: its name, or itself.
        lm: the model.
        settings: hyperparameters of an editor that is named.
        seed: of an editor that is named.
        fitted: the file of what it has learned; None for that of ``harness fit`` with the same settings.

    Raises:
        UsageError: a setting cannot be used, or it has not learned.
        DataError: what it has learned cannot be used.
    """
    if isinstance(given, str):
        return compose(given).build(
            lm, settings, seed=seed, prepare=lambda method: learned_file.require_learned(method, lm, fitted)
        )
    return with_learned(given, lm, fitted)


def edited_modules(given: str | Editor, lm: LM, *, settings: Mapping[str, object]) -> Sequence[str]:
    """The modules whose weights an editor will write on a model, or those around them.

    Args:
        given: its name, or itself.
        lm: the model.
        settings: hyperparameters of an editor that is named.

    Raises:
        UsageError: a setting cannot be used.
    """
    method = compose(given).configured(lm.name, settings, seed=0) if isinstance(given, str) else given
    return method.root.edited_modules(lm)


def with_learned(editor: Editor, lm: LM, fitted: str | None = None) -> Editor:
    """A configured editor with what it has learned, which it may bring itself.

    Args:
        editor: the editor, also one with wrappers around it.
        lm: the model that is to be edited.
        fitted: the file of what it learned; None where it learned nothing, or brings it.

    Raises:
        UsageError: the editor must learn first, and nothing says what it learned.
    """
    root = editor.root
    if fitted is None and isinstance(root, Learned) and root.learned is not None:
        return editor
    return _with_root(editor, learned_file.require_learned(root, lm, fitted))


def _with_root(editor: Editor, root: Editor) -> Editor:
    """The wrappers of an editor around another method."""
    return replace(editor, inner=_with_root(editor.inner, root)) if isinstance(editor, Wrapper) else root
