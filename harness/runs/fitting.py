"""Lets an editor learn what it needs before its first edit, and keeps it where a run looks for it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from harness.editing import learned_file
from harness.editing.edit import Example
from harness.editing.editor import Editor, Learned
from harness.editing.registry import compose
from harness.errors import UsageError
from harness.exam import tasks
from harness.models.dequantised import dequantised
from harness.models.guard import unchanged
from harness.models.lm import LM
from harness.runs.plan import parse_edits

__all__ = ["Fitted", "Training", "fit_editor", "read_training", "require_fittable", "require_learner"]


@dataclass(frozen=True, eq=False)
class Training:
    """What an editor learns from.

    Attributes:
        examples: the edits with their probes.
        about: where they come from, for whoever reads the file.
    """

    examples: list[Example]
    about: Mapping[str, object]


@dataclass(frozen=True, eq=False)
class Fitted:
    """An editor that has learned, and where that is kept."""

    editor: Learned
    path: Path
    examples: int


def read_training(edits: str, data_dir: str, split: str) -> Training:
    """The rows of an edit set, ``NAME``, ``NAME:N`` or a file, to learn from.

    Args:
        edits: ``NAME``, ``NAME:N`` or a file.
        data_dir: where the rows are, as :func:`harness.exam.data.load` takes it.
        split: which rows of the set.

    Raises:
        UsageError: there is no such set, or it has fewer rows than asked for.
        DataError: a row cannot be used.
    """
    name, count = parse_edits(edits)
    found = tasks.read_examples(name, data_dir=data_dir, split=split, count=count)
    return Training(found, {"edits": name, "split": split, "count": len(found), "data_dir": data_dir})


def require_learner(editor: str | Editor) -> None:
    """See that an editor learns before its first edit.

    Raises:
        UsageError: it does not exist, or learns nothing.
    """
    learns = issubclass(compose(editor).cls, Learned) if isinstance(editor, str) else isinstance(editor.root, Learned)
    if not learns:
        name = editor if isinstance(editor, str) else editor.name
        raise UsageError(f"{name} learns nothing before its first edit; run it at once with `harness run`")


def require_fittable(
    editor: str | Editor, model: str, *, settings: Mapping[str, object], seed: int, path: Path | None
) -> None:
    """See, before a model is loaded, that an editor learns, has these hyperparameters, and has a place to keep it.

    Args:
        editor: the editor, by name or configured.
        model: the name of the model, for presets.
        settings: hyperparameters of an editor that is named.
        seed: of an editor that is named.
        path: the file; None for that of the cache.

    Raises:
        UsageError: it does not exist or learns nothing, a setting does not exist, or the file cannot be written.
    """
    require_learner(editor)
    if isinstance(editor, str):
        compose(editor).configured(model, settings, seed=seed)
    if path is not None:
        learned_file.require_writable_file(path)


def fit_editor(
    editor: str | Editor,
    lm: LM,
    train: Training,
    *,
    settings: Mapping[str, object],
    seed: int,
    path: Path | None,
    dequantise: bool = False,
) -> Fitted:
    """Let an editor learn, and write down what it learned.

    Args:
        editor: an editor that learns, by name or configured; what wraps it learns nothing.
        lm: the model.
        train: what it learns from.
        settings: hyperparameters of an editor that is named.
        seed: of an editor that is named.
        path: the file; None for that where a run with the same settings looks.
        dequantise: whether quantised matrices that it will edit are plain numbers meanwhile, as in such a run.

    Raises:
        UsageError: it learns nothing, a setting does not exist, or the file cannot be written.
        RestoreError: it left something behind in the model; nothing is written down.
    """
    require_learner(editor)
    method = compose(editor).build(lm, settings, seed=seed).root if isinstance(editor, str) else editor.root
    with dequantised(lm, method.edited_modules(lm), method.name) if dequantise else nullcontext():
        path = path or learned_file.default_path(method, lm)
        learned_file.require_writable_file(path)
        with unchanged(lm):
            learned = method.fit(lm, train.examples).root
        assert isinstance(learned, Learned)
        learned_file.save_learned(learned, lm, path, trained=train.about)
    return Fitted(learned, path, len(train.examples))
