"""Prompt: all edits stand as sentences in front of every question, in the system turn where there is a chat.

Source: the baseline that later methods of in-context editing start from (Zheng et al. 2023, arXiv 2305.12740, and
Cohen et al. 2023, arXiv 2307.12976, section 5, who put the new fact in front of the question).  Nothing is retrieved
and nothing is demonstrated: what :mod:`editors.rag` and :mod:`editors.ike` add to it is their distance from its row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, takewhile

from harness.editing.edit import Edit
from harness.methods.in_context import FactsInFront, InContext
from harness.methods.retrieval import Fact, as_fact, join_facts
from harness.models.lm import LM
from harness.patches.patch import ChatRule, Patch

__all__ = ["AllFacts", "Prompt"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt(InContext):
    """Nothing in the model changes; what it reads does. Of edits that do not all fit the latest are told.

    Attributes:
        template: what the model reads; ``{facts}`` anywhere, as often as one likes, and ``{context}`` at the end. In
            a chat what stands in front of ``{context}`` is the end of the system turn, if the template has one.
        room: tokens that are kept free for the answer.
    """

    name = "prompt"

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """The edits as facts; increments join."""
        facts = join_facts((), map(as_fact, edits))
        return Patch(prompt=AllFacts(facts, self.room, lm, self.template)) if facts else Patch()


@dataclass(frozen=True, eq=False)
class AllFacts(FactsInFront, ChatRule):
    """Puts all facts in front of a context, or the latest of them (:data:`harness.patches.patch.PromptRule`)."""

    def chosen(self, context: str) -> list[int]:
        """All, but for the earliest of which not even the tokens fit."""
        return self._possible if context.strip() else []

    def in_chat(self, context: str, chat: Callable[[str], str]) -> str:
        """The whole text with the facts at the end of its system turn, or in front of the context."""

        def read(kept: Sequence[Fact]) -> str:
            return chat(self.told(kept))

        return read(self.fitting([self.facts[i] for i in self.chosen(context)], read))

    def fitting(self, facts: Sequence[Fact], read: Callable[[Sequence[Fact]], str]) -> Sequence[Fact]:
        """The latest, as many as fit; the first time that some do not, a line says how many do.

        Args:
            facts: the facts.
            read: what the model reads with some of them.
        """
        kept = super().fitting(facts, read)
        if len(kept) < len(self.facts) and facts and not self._warned:
            self._warned.append(True)
            log.warning(
                "prompt: %d of %d edits, the latest, fit in front of a question (%s takes %d tokens, %d are kept free)",
                len(kept),
                len(self.facts),
                self.lm.name,
                self.lm.context,
                self.room,
            )
        return kept

    @cached_property
    def _possible(self) -> list[int]:
        """The positions of the latest facts whose tokens alone could fit."""
        # In one text a fact may take a token less than alone, besides the one that begins a sequence.
        sizes = [max(len(self.lm.encode(one.sentence)) - 2, 1) for one in reversed(self.facts)]
        count = len(list(takewhile(lambda total: total <= self.lm.context, accumulate(sizes))))
        return list(range(len(self.facts) - count, len(self.facts)))

    @cached_property
    def _warned(self) -> list[bool]:
        """Holds something once it was said that not all fit."""
        return []
