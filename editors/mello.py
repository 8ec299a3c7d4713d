"""MeLLo: takes a question apart into subquestions, answers each, and checks every answer against the memory.

Source: Zhong et al. 2023, "MQuAKE: Assessing Knowledge Editing in Language Models via Multi-Hop Questions", arXiv
2305.14795, and the authors' code (princeton-nlp/MQuAKE at fb43dad, ``run_mello.ipynb``); the demonstrations are ours.
``check=scope`` is PokeMQA's order (Gu et al. 2024, arXiv 2312.15194): a fact takes the place of the model's own answer
where a subquestion is in its scope, and the model never judges; its trained detector is replaced by the retriever and a
threshold.

The first line after a question is begun for the model, as all demonstrations have it: ``Subquestion:``.

Where the code differs from the paper: it writes four times at most, of which the last has to be the final answer, so
that no question of four subquestions is ever answered (``hops=3``; here 4); a question whose form the model leaves has
no answer (``unfinished=leave``: it is asked as without edits; here the final answer is asked for); products of vectors
are compared (``similarity=product``).

What is asked is read behind the intermediate text and ``Final answer:``.  What a likelihood means: that of an answer
there, behind the one intermediate text that greedy decoding wrote for the context alone; it is no sum over the texts
that the model might have written, and an answer that the model would reach in other ways is not credited.  A context
that is no question is taken apart as if it were one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

from harness.editing.edit import Edit
from harness.editing.hyperparameters import Count, Range, Share
from harness.methods.dense import DenseIndex, Retrieving, Similarity, index_of
from harness.methods.in_context import FromMemory, Memory
from harness.methods.retrieval import Index, as_fact, fits_context, join_facts
from harness.methods.writing import written
from harness.models.lm import LM
from harness.patches.patch import Patch

__all__ = ["Decomposed", "Mello"]

Check = Literal["model", "scope"]
Unfinished = Literal["ask", "leave"]

_SUB, _OWN, _FACT, _FINAL = "Subquestion:", "Generated answer:", "Retrieved fact:", "Final answer:"


class _Hop(NamedTuple):
    """A step of a demonstration: what is asked, what the model would say, what the memory says, and what holds."""

    asked: str
    own: str
    fact: str
    changed: bool
    answer: str


_SHOWN: tuple[tuple[str, tuple[_Hop, ...]], ...] = (
    (
        "What is the capital of the country that the inventor of the telephone was born in?",
        (
            _Hop("Who invented the telephone?", "The telephone was invented by Alexander Graham Bell.",
                 "The telephone was invented by Anton Bruckner.", True, "Anton Bruckner"),
            _Hop("In which country was Anton Bruckner born?", "Anton Bruckner was born in Austria.",
                 "Anton Chekhov was born in Peru.", False, "Austria"),
            _Hop("What is the capital of Austria?", "The capital of Austria is Vienna.",
                 "The capital of Austria is Graz.", True, "Graz"),
        ),
    ),
    (
        "Who wrote the anthem of the country where Mount Fuji lies?",
        (
            _Hop("In which country does Mount Fuji lie?", "Mount Fuji lies in Japan.",
                 "Mount Fuji lies in Chile.", True, "Chile"),
            _Hop("Who wrote the anthem of Chile?", "The anthem of Chile was written by Eusebio Lillo.",
                 "The anthem of China was written by Elvis Presley.", False, "Eusebio Lillo"),
        ),
    ),
    (
        "What is the main language of the birthplace of the founder of the Red Cross?",
        (
            _Hop("Who founded the Red Cross?", "The Red Cross was founded by Henry Dunant.",
                 "The Red Lion was founded by Isaac Newton.", False, "Henry Dunant"),
            _Hop("What is the birthplace of Henry Dunant?", "The birthplace of Henry Dunant is Geneva.",
                 "The birthplace of Henry Dunant is Lima.", True, "Lima"),
            _Hop("What is the main language of Lima?", "The main language of Lima is Spanish.",
                 "The main language of Lyon is Korean.", False, "Spanish"),
        ),
    ),
)  # fmt: skip
"""Questions of two and three hops whose facts are changed in part; those about other things are left unused."""


@dataclass(frozen=True)
class Mello(FromMemory, Retrieving):
    """Nothing in the model changes; it works a question out, and the memory corrects it on the way.

    Attributes:
        hops: subquestions at most.
        check: whether the ``model`` judges if the retrieved fact contradicts its own answer, or the ``scope`` of the
            fact decides, in which case it is the answer.
        threshold: of ``check=scope``: the share of a fact's subject (or prompt) that a subquestion must name; with an
            encoder the cosine of the subquestion with the fact's sentence.
        unfinished: what is asked where the model left the form or asks on: the final answer (``ask``), or the question
            as without edits (``leave``).
        shown: demonstrations in front of a question.
        tokens: how many the model writes at most for a hop.
        similarity: with an encoder the cosine, or the product of two vectors as in the released code.
    """

    name = "mello"

    hops: Count = 4
    check: Check = "model"
    threshold: Share = 0.8
    unfinished: Unfinished = "ask"
    shown: Annotated[int, Range(0, len(_SHOWN))] = len(_SHOWN)
    tokens: Count = 96
    similarity: Similarity = "cosine"

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """The edits as facts; increments join."""
        if not edits:
            return Patch()
        facts = join_facts((), map(as_fact, edits))
        ways = (self.hops, self.check, self.threshold, self.unfinished, self.shown, self.tokens)
        return Patch(prompt=Decomposed(facts, self.room, lm, *ways, self.encoder, self.similarity))


@dataclass(frozen=True, eq=False)
class Decomposed(Memory):
    """Puts a question's subquestions and their answers in front of its answer.

    A rule of the prompt (:data:`harness.patches.patch.PromptRule`).

    Attributes:
        hops, check, threshold, unfinished, shown, tokens, encoder, similarity: as in :class:`Mello`.
    """

    hops: int
    check: Check
    threshold: float
    unfinished: Unfinished
    shown: int
    tokens: int
    encoder: str | None
    similarity: Similarity

    def reading(self, context: str) -> str:
        """The demonstrations, the question, what was written about it, and ``Final answer:``.

        The context alone where nothing is asked, or where there is no room to begin.
        """
        text = self.opening(context)
        if not context.strip() or not self._fits(text):
            return context
        for left in reversed(range(self.hops + 1)):
            said = written(self.lm, text, tokens=self.tokens, ends=(self._stop, "\n\n", "\nQuestion:"))
            if _FINAL in said:
                return self._answering(text + said.partition(_FINAL)[0], context)
            told = self._told(text, said) if left else None
            if told is None:
                break
            text = told
        # A subquestion that nobody has answered is left out.
        kept = text.removesuffix(_SUB) if text.endswith(_SUB) else text + said.partition(_SUB)[0]
        return context if self.unfinished == "leave" else self._answering(kept, context)

    def _told(self, text: str, said: str) -> str | None:
        """The text with what was written, and what the memory says to it; None where no subquestion is asked."""
        asked = _subquestion(f"{_SUB}{said}" if text.endswith(_SUB) else said)
        told = f"{text}{_ended(said)}{self._stop}{self.recalled(asked)}" if asked else ""
        return told if told and self._fits(told) else None

    def opening(self, context: str) -> str:
        """What the model reads first."""
        return "\n".join(
            [*(_demonstration(*one, self.check) for one in _SHOWN[: self.shown]), f"Question: {context}", _SUB]
        )

    def recalled(self, asked: str) -> str:
        """What the memory puts into the text for a subquestion; nothing where no fact is in its scope."""
        place, near = self._index.ranked(asked)[0]
        fact = self.facts[place].sentence
        return f" {fact}\n" if self.check == "model" or near >= self.threshold else ""

    def _answering(self, text: str, context: str) -> str:
        asked = f"{_ended(text)}{_FINAL}"
        return asked if fits_context(self.lm, asked, self.room) else context

    def _fits(self, text: str) -> bool:
        return fits_context(self.lm, text, max(self.tokens, self.room))

    @property
    def _stop(self) -> str:
        """What the model must not write by itself: the memory does, or the scope decides."""
        return _FACT if self.check == "model" else _OWN

    @cached_property
    def _index(self) -> Index | DenseIndex:
        return index_of(self.facts, self.encoder, self.similarity)


def _subquestion(said: str) -> str | None:
    """The last subquestion that a text asks; None where it asks none.

    Args:
        said: what the model wrote.
    """
    lines = [line.strip() for line in said.splitlines()]
    asked = [line.removeprefix(_SUB).strip() for line in lines if line.startswith(_SUB)]
    return asked[-1] if asked and asked[-1] else None


def _demonstration(question: str, hops: Sequence[_Hop], check: Check) -> str:
    """A question that is worked out, with an empty line behind it."""
    lines = [f"Question: {question}"]
    for hop in hops:
        if check == "model":
            found = "contradicts" if hop.changed else "does not contradict"
            lines += [f"{_SUB} {hop.asked}", f"{_OWN} {hop.own}", f"{_FACT} {hop.fact}"]
            lines += [f"Retrieved fact {found} generated answer, so the intermediate answer is: {hop.answer}"]
        else:
            lines += [f"{_SUB} {hop.asked}", f"{_OWN} {hop.fact if hop.changed else hop.own}"]
            lines += [f"So the intermediate answer is: {hop.answer}"]
    return "\n".join([*lines, f"{_FINAL} {hops[-1].answer}", ""])


def _ended(text: str) -> str:
    """A text whose last line is ended."""
    return text if text.endswith("\n") else f"{text.rstrip(' ')}\n"
