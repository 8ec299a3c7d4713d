"""SCR: retrieves facts, lets the model itself pick the one that a question is about, or none, and tells it that one.

Source: He et al. 2025, "Knowledge Updating? No More Model Editing! Just Selective Contextual Reasoning", arXiv
2503.05212, and the authors' code (ECNU-Text-Computing/Knowledge-Updating at 836ff52).  The instruction is in our words.
The plain meaning is the default: what the model writes picks a fact of the list, and whatever else it writes is none.
The released code tells whatever was written, whether or not it is a fact (``pick=released``), and asks for an answer in
a form of its own (``template``, ``cue``).

What a likelihood means: that of an answer behind the fact that was picked, once, by greedy decoding, for the context
alone.  Neither picks the model might have made otherwise, nor the answer, have a part in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from harness.editing.edit import Edit
from harness.editing.hyperparameters import Count
from harness.errors import UsageError
from harness.methods.dense import DenseIndex, Retrieving, Similarity, index_of
from harness.methods.in_context import FactsInFront, InContext
from harness.methods.retrieval import Fact, Index, as_fact, fits_context, join_facts, words_of
from harness.methods.writing import written
from harness.models.lm import LM
from harness.patches.patch import Patch

__all__ = ["Pick", "Picked", "Scr"]

Pick = Literal["listed", "released"]

_NONE = "no relevant fact"
_ASK = (
    "Copy, word for word, the one fact that the question is about. "
    f"If no fact helps to answer the question, write: {_NONE}.\n\nFacts:\n{{facts}}\nQuestion: {{context}}\nFact:"
)
_REPLY = r"The fact that best matches the (?:question|core knowledge(?: asked)? in the question) is[:\s]*\"?"
"""What an instructed model likes to begin with, which the released code leaves out."""


@dataclass(frozen=True)
class Scr(InContext, Retrieving):
    r"""Nothing in the model changes; what it reads does, by its own choice.

    Attributes:
        k: facts that the model picks from; those that do not fit beside the question are left out, the farthest first.
        similarity: with an encoder the cosine, or the product of two vectors as in the released code.
        ask: what the model reads to pick one; ``{facts}``, one a line, and ``{context}``.
        pick: ``listed`` takes the fact of the list that the model wrote first, whole, and none where it wrote no such;
            ``released`` takes what it wrote, unless that says that there is none, and of a list of one the fact.
        tokens: how many it writes at most to pick one.
        template: what the model reads with a fact; ``{facts}`` anywhere, and ``{context}`` at the end.
        cue: what stands behind the context where a fact is told (released: ``\nAnswer:``).
    """

    name = "scr"

    k: Count = 3
    similarity: Similarity = "cosine"
    ask: str = _ASK
    pick: Pick = "listed"
    tokens: Count = 50
    cue: str = ""

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ask.count("{facts}") != 1 or self.ask.count("{context}") != 1:
            raise UsageError(
                f"{self.name}: 'ask' is {self.ask!r}, expected {{facts}} and {{context}}, once each; leave it out for "
                "the default"
            )

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """The edits as facts; increments join."""
        if not edits:
            return Patch()
        facts = join_facts((), map(as_fact, edits))
        ways = (self.k, self.ask, self.pick, self.tokens, self.cue, self.encoder, self.similarity)
        return Patch(prompt=Picked(facts, self.room, lm, self.template, *ways))


@dataclass(frozen=True, eq=False)
class Picked(FactsInFront):
    """Puts the fact that the model picked in front of a context (:data:`harness.patches.patch.PromptRule`).

    Attributes:
        k, ask, pick, tokens, cue, encoder, similarity: as in :class:`Scr`.
    """

    k: int
    ask: str
    pick: Pick
    tokens: int
    cue: str
    encoder: str | None
    similarity: Similarity

    def reading(self, context: str) -> str:
        """The context, with the fact that was picked, and the cue behind both; alone where none was, or none fits."""
        facts = self.picked(context)
        return self.read(self.fitting(facts, lambda kept: self.read(kept, context)), context)

    def read(self, facts: Sequence[Fact], context: str) -> str:
        """What the model reads of a context with some facts."""
        return super().read(facts, context) + (self.cue if facts else "")

    def chosen(self, context: str) -> list[int]:
        """The positions of the facts that the model picks from, the nearest first."""
        if not context.strip():
            return []
        near = [i for i, _ in self._index.ranked(context)[: self.k]]
        while near and not fits_context(self.lm, self._asked(near, context), self.tokens):
            near.pop()
        return near

    def picked(self, context: str) -> list[Fact]:
        """The fact that the model picks, or none."""
        offered = self.chosen(context)
        if not offered:
            return []
        ends = () if self.pick == "released" else ("\n\n", "\nQuestion:")
        said = written(self.lm, self._asked(offered, context), tokens=self.tokens, ends=ends)
        facts = [self.facts[i] for i in offered]
        return _named_first(said, facts) if self.pick == "listed" else _as_released(said, facts)

    def _asked(self, offered: Sequence[int], context: str) -> str:
        # Not str.format: facts and contexts may hold braces.
        before, after = self.ask.split("{facts}")
        listed = "\n".join(self.facts[i].sentence for i in offered)
        return before.replace("{context}", context) + listed + after.replace("{context}", context)

    @cached_property
    def _index(self) -> Index | DenseIndex:
        return index_of(self.facts, self.encoder, self.similarity)


def _named_first(said: str, facts: Sequence[Fact]) -> list[Fact]:
    """The fact that a text says, whole, up to its full stop; the first of several, none where it says none.

    Args:
        said: the text.
        facts: the facts.
    """
    text = words_of(said)
    places = {one: text.find(words_of(one.sentence.rstrip(".!?"))) for one in facts}
    found = [one for one in facts if places[one] >= 0]
    return sorted(found, key=lambda one: (places[one], -len(one.sentence)))[:1]


def _as_released(said: str, facts: Sequence[Fact]) -> list[Fact]:
    """What the authors' code takes: what was written, unless it says that there is none; of one fact that fact.

    Args:
        said: the text.
        facts: the facts, of which only the number counts.
    """
    low = said.lower()
    if any(word in low for word in ("no relevant information", _NONE, "false")):
        return []
    if len(facts) == 1:
        return [facts[0]]
    text = said if not said or said.endswith(".") else f"{said}."
    found = re.search(_REPLY, text)
    if found is None:
        return [Fact("", text, None)]
    fact = re.split(r'["\n.]', text[found.end() :], maxsplit=1)[0].strip()
    return [Fact("", f"{fact}." if fact else "", None)]
