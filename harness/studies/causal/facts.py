"""Facts that a model is asked for, and those of them that it knows.

Sources: Meng et al. 2022 (ROME, arXiv 2202.05262), appendix B.1; Hase et al. 2023 (arXiv 2301.04213), section 4.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.editing.edit import Edit
from harness.errors import DataError
from harness.exam import data
from harness.exam.knowledge import Known, Report, continuations, says
from harness.models.lm import LM

__all__ = ["FactTokens", "Skipped", "TracedFact", "known_facts", "read_facts", "tokenise_fact"]


@dataclass(frozen=True)
class TracedFact:
    """What is true, and a prompt that asks for it.

    Attributes:
        id: the identifier of the record.
        prompt: the text to continue, with the subject written out.
        subject: whom or what it is about.
        object: the true continuation, without a leading space.
        start: the character at which the subject begins; None for its first occurrence.
    """

    id: str
    prompt: str
    subject: str | None
    object: str | None
    start: int | None = None

    @classmethod
    def of(cls, edit: Edit) -> TracedFact:
        """The fact that an edit changes: its prompt, and what was true before."""
        start = None if edit.subject is None else edit.begins
        return cls(edit.id, edit.text, edit.subject, edit.target_old, start)


@dataclass(frozen=True)
class FactTokens:
    """A fact in tokens.

    Attributes:
        fact: the fact.
        prompt: the tokens of the prompt.
        span: the subject's tokens, the first and one past the last.
        target: the tokens that are explained.
    """

    fact: TracedFact
    prompt: tuple[int, ...]
    span: tuple[int, int]
    target: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """What the model reads: the prompt and all of the target but its last token."""
        return self.prompt + self.target[:-1]


@dataclass(frozen=True)
class Skipped:
    """A fact that is not looked at.

    Attributes:
        fact: the fact.
        reason: one of few short texts, to count by.
        detail: what was found in this one.
    """

    fact: TracedFact
    reason: str
    detail: str


def read_facts(path: Path) -> list[TracedFact]:
    """The facts of a file: a JSON array or JSON lines, such as ROME's ``known_1000.json``.

    Rows hold ``prompt`` (with ``{}`` or the subject written out), ``subject`` and ``attribute`` (or ``target_old``);
    ``known_id`` or ``id`` names them. A row that lacks one is kept: :func:`tokenise_fact` says why it cannot be used.

    Raises:
        DataError: the file cannot be read, holds no rows, or two of one id.
    """
    text = data.read_text(path)
    try:
        rows = json.loads(text) if text.lstrip().startswith("[") else data.read_jsonl(path)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg}); copy the file again") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: holds no facts; expected rows with prompt, subject and attribute")
    found = [_fact(row, i) for i, row in enumerate(rows)]
    twice = [one for one, count in Counter(fact.id for fact in found).items() if count > 1]
    if twice:
        raise DataError(f"{path}: the id {twice[0]} occurs twice; give each row an id of its own")
    return found


def _fact(row: dict[str, Any], place: int) -> TracedFact:
    def text(*names: str) -> str | None:
        return next((row[name] for name in names if isinstance(row.get(name), str) and row[name].strip()), None)

    identity = str(row.get("known_id", row.get("id", row.get("case_id", place))))
    prompt, subject = text("prompt") or "", text("subject")
    answer = text("attribute", "target_old")
    start = prompt.index("{}") if subject and "{}" in prompt else None
    whole = prompt.replace("{}", subject, 1) if subject else prompt
    return TracedFact(identity, whole, subject, answer.strip() if answer else None, start)


def tokenise_fact(lm: LM, fact: TracedFact) -> FactTokens | Skipped:
    """A fact in the model's tokens, prompt and object tokenised apart, or why that cannot be."""
    if not fact.subject:
        return Skipped(fact, "no subject", "the row names no subject")
    if not fact.object:
        return Skipped(fact, "no true object", "the row does not say what is true (target_old, or attribute)")
    try:
        span = lm.span(fact.prompt, fact.subject, fact.start)
        target = lm.continuation(fact.prompt, f" {fact.object}")
    except DataError as error:
        return Skipped(fact, "subject not found", str(error))
    asked = FactTokens(fact, tuple(lm.encode(fact.prompt)), span, tuple(target))
    if len(asked.ids) > lm.context:
        return Skipped(fact, "too long", f"{len(asked.ids)} tokens; the model takes {lm.context}")
    return asked


def known_facts(
    lm: LM, asked: Sequence[FactTokens], *, which: Known, new_tokens: int, report: Report, budget: int = 4096
) -> Iterator[FactTokens | Skipped]:
    """The facts that the model knows, and those that it does not, in their order.

    Args:
        lm: the model.
        asked: the facts.
        which: what counts as knowing.
        new_tokens: the length of the greedy continuation.
        report: told how many facts have been looked at.
        budget: tokens of one forward pass.
    """
    if which == "all":
        yield from asked
        return
    length = new_tokens if which == "continuation" else 1
    for one, text in zip(
        asked,
        continuations(lm, [one.prompt for one in asked], new_tokens=length, report=report, budget=budget),
        strict=True,
    ):
        wanted, said = str(one.fact.object).strip(), text.strip()
        right = says(said, wanted, which)
        yield one if right else Skipped(one.fact, "unknown to the model", f"expected '{wanted}', it says '{said}'")
