"""RAG: keeps the edits as sentences and puts those that a question is about in front of it, or none.

Source: He et al. 2025, "Knowledge Updating? No More Model Editing! Just Selective Contextual Reasoning", arXiv
2503.05212 (SCR, which is :mod:`editors.scr`): a memory of sentences, and a retriever that proposes some.  By default
that goes by words alone and works offline (:mod:`harness.methods.retrieval`); ``encoder`` retrieves by meaning, with an
encoder of one's own (:mod:`harness.methods.dense`); ``choose=model`` asks any language model by its likelihoods.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from harness.editing.edit import Edit
from harness.editing.hyperparameters import Count, Share
from harness.methods.dense import DenseIndex, Retrieving, index_of
from harness.methods.in_context import FactsInFront, InContext
from harness.methods.retrieval import Index, as_fact, join_facts
from harness.models.activations import at_least_float32
from harness.models.lm import LM
from harness.patches.patch import Patch

__all__ = ["Rag", "Recall"]

Choice = Literal["similarity", "model"]


@dataclass(frozen=True)
class Rag(InContext, Retrieving):
    """Nothing in the model changes; what it reads does.

    Attributes:
        k: facts that are proposed for a context.
        threshold: the share of a fact's subject (or prompt) that a context must name for the fact to be proposed; with
            an encoder the cosine of the context with the fact's sentence.
        choose: ``similarity`` uses all that are proposed; ``model`` the one after which the context's last sentence
            is likeliest, and none where each makes it less likely than it is alone.
        template: what the model reads; ``{facts}`` anywhere, as often as one likes, and ``{context}`` at the end.
        room: tokens that are kept free for the answer; of facts that do not fit, the less relevant are left out.
    """

    name = "rag"

    k: Count = 3
    threshold: Share = 0.8
    choose: Choice = "similarity"

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """The edits as facts; increments join."""
        if not edits:
            return Patch()
        facts = join_facts((), map(as_fact, edits))
        rule = Recall(facts, self.room, lm, self.template, self.k, self.threshold, self.choose, self.encoder)
        return Patch(prompt=rule)


@dataclass(frozen=True, eq=False)
class Recall(FactsInFront):
    """Puts the facts that a context is about in front of it (:data:`harness.patches.patch.PromptRule`).

    Attributes:
        k, threshold, choose, encoder: as in :class:`Rag`.
    """

    k: int
    threshold: float
    choose: Choice
    encoder: str | None = None

    def chosen(self, context: str) -> list[int]:
        """The positions of the facts that are used, the most relevant one last, next to the context."""
        proposed = [i for i, share in self._index.ranked(context)[: self.k] if share >= self.threshold]
        if self.choose == "similarity" or not context:
            return proposed[::-1]
        gains = self.gains(proposed, context) if proposed else []
        return [i for i, gain in zip(proposed, gains, strict=True) if gain == max(gains) and gain > 0][:1]

    def gains(self, proposed: Sequence[int], context: str) -> list[float]:
        """How much likelier the context's last sentence, which asks, is after each fact than without it, in nats."""
        begins = _last_sentence(context)
        fronts = [context[:begins], *(self.read([self.facts[i]], context[:begins]) for i in proposed)]
        alone, *after = _log_likelihoods(self.lm, fronts, context[begins:])
        return [value - alone for value in after]

    @cached_property
    def _index(self) -> Index | DenseIndex:
        return index_of(self.facts, self.encoder)


def _last_sentence(text: str) -> int:
    """Where the last sentence of a text begins; the text ends with it, finished or not."""
    ends = [found.end() for found in re.finditer(r"[.!?]\s+|\n\s*", text.rstrip())]
    return ends[-1] if ends else 0


def _log_likelihoods(lm: LM, fronts: Sequence[str], text: str) -> list[float]:
    """The log-probability of a text after each of some others, in nats; an empty one is the start of a sequence."""
    rows = [_row(lm, front, text) for front in fronts]
    batch = lm.batch([(head + tail)[-lm.context :] for head, tail in rows])
    with torch.no_grad():
        logits = lm.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    log_p = at_least_float32(logits).log_softmax(-1)
    each = log_p[:, :-1].gather(2, batch.ids[:, 1:, None].to(log_p.device))[..., 0]
    spans = [
        (max(end - 1 - len(tail), 0), end - 1) for end, (_, tail) in zip(batch.lengths.tolist(), rows, strict=True)
    ]
    return [float(row[first:last].sum()) for row, (first, last) in zip(each, spans, strict=True)]


def _row(lm: LM, front: str, text: str) -> tuple[list[int], list[int]]:
    """The tokens in front of a text, from the start of a sequence on, and those of the text."""
    first, ids = lm.start, lm.encode(text)
    before = front.rstrip()  # the space belongs to the text
    head = lm.encode(before) if front else []
    tail = lm.continuation(before, front[len(before) :] + text) if front else ids[ids[:1] == [first] :]
    return head if head[:1] == [first] else [first, *head], tail
