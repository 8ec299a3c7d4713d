"""Runs every promise on one editor, as scikit-learn's ``check_estimator`` does on an estimator."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.editing import learned_file
from harness.editing.edit import Edit, Example
from harness.editing.editor import Editor, Learned, Wrapper
from harness.editing.promises import PROMISES, keeps_promise
from harness.editing.registry import Recipe, compose, find
from harness.errors import HarnessError, UsageError
from harness.exam.tasks import read_examples
from harness.io.cache import in_cache
from harness.models.lm import LM
from harness.studies.contract.checks import CHECKS, BrokenPromiseError, Candidate

__all__ = ["COLUMNS", "Verdict", "recipe_of", "run_contract"]

COLUMNS = ("promise", "what it means", "outcome")
"""Of a table of verdicts."""

_INNER = "memit"
"""What a wrapper that is named alone stands around."""


@dataclass(frozen=True)
class Verdict:
    """What became of one promise.

    Attributes:
        promise: its name.
        meaning: what is promised.
        outcome: ``kept``, ``broken``, or ``excepted`` where the editor says that it cannot promise it.
        reason: what was seen, or why it is excepted; None where it is kept.
    """

    promise: str
    meaning: str
    outcome: Literal["kept", "broken", "excepted"]
    reason: str | None = None

    @property
    def row(self) -> tuple[str, str, str]:
        """As a table shows it, under :data:`COLUMNS`."""
        said = {"kept": "kept", "broken": f"BROKEN: {self.reason}", "excepted": f"not promised: {self.reason}"}
        return self.promise, self.meaning, said[self.outcome]


def recipe_of(name: str) -> Recipe:
    """The editor of a name; a wrapper that is named alone stands around MEMIT.

    Raises:
        UsageError: it does not exist, or cannot be imported.
    """
    alone = "+" not in name or Path(name).is_file()
    return compose(f"{_INNER}+{name}" if alone and issubclass(find(name), Wrapper) else name)


def run_contract(
    recipe: Recipe,
    lm: LM,
    *,
    settings: Mapping[str, object] | None = None,
    edits: str = "counterfact",
    data_dir: str = "mini",
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Verdict]:
    """Holds an editor to every promise.

    Args:
        recipe: the editor.
        lm: the model; unchanged when this returns, unless the editor broke that promise.
        settings: hyperparameters that differ from the preset, as ``field`` or ``part.field``.
        edits: the edit set whose first three rows are edited; a learner learns from its training split.
        data_dir: where the rows come from.
        progress: told the promise under way, how many are done, and how many there are.

    Raises:
        UsageError: a setting does not exist, or the editor cannot take the edits.
        ModelError: the editor is made for another family of models.
    """
    lessons = read_examples(edits, data_dir=data_dir) if issubclass(recipe.cls, Learned) else []
    candidate = Candidate(_builder(recipe, settings or {}, lessons), lm, _edits(edits, data_dir))
    candidate.method.require(lm)
    found = []
    for done, (promise, meaning) in enumerate(PROMISES.items()):
        if progress is not None:
            progress(promise, done, len(PROMISES))
        found.append(_verdict(recipe, candidate, promise, meaning))
    return found


def _edits(edits: str, data_dir: str) -> Sequence[Edit]:
    found: dict[str | None, Edit] = {}
    for example in read_examples(edits, data_dir=data_dir, split="test"):
        found.setdefault(example.edit.subject, example.edit)
    if len(found) < 3:
        raise UsageError(f"{edits}: has edits of {len(found)} subjects, expected three; name another set with --edits")
    return list(found.values())[:3]


def _builder(recipe: Recipe, settings: Mapping[str, object], lessons: Sequence[Example]) -> Callable[[LM], Editor]:
    """What makes the editor for a model; what was learned of a model once is kept for the next time."""
    learned: dict[str, Editor] = {}

    def fitted(method: Editor, lm: LM) -> Editor:
        if not isinstance(method, Learned):
            return method
        path, key = learned_file.default_path(method, lm), lm.fingerprint()
        if key not in learned:
            learned[key] = learned_file.load_learned(method, lm, path) if in_cache(path) else method.fit(lm, lessons)
        return learned[key]

    return lambda lm: recipe.build(lm, settings, seed=0, prepare=lambda method: fitted(method, lm))


def _verdict(recipe: Recipe, candidate: Candidate, promise: str, meaning: str) -> Verdict:
    excepted = next((part for part in recipe.parts if not keeps_promise(part, promise)), None)
    if excepted is not None:
        return Verdict(promise, meaning, "excepted", excepted.exceptions[promise])
    try:
        CHECKS[promise](candidate)
    except BrokenPromiseError as error:
        return Verdict(promise, meaning, "broken", str(error))
    except HarnessError as error:
        return Verdict(promise, meaning, "broken", f"{type(error).__name__}: {error}")
    except Exception as error:  # of the editor's own code: a promise that cannot be tried is not kept
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Verdict(
            promise, meaning, "broken", f"{type(error).__name__} in {where.filename}:{where.lineno}: {error}"
        )
    return Verdict(promise, meaning, "kept")
