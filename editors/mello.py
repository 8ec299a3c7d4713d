"""MeLLo: takes a question apart into subquestions, answers each, and checks every answer against the memory.

Source: Zhong et al. 2023, "MQuAKE: Assessing Knowledge Editing in Language Models via Multi-Hop Questions", arXiv
2305.14795, and the authors' code (princeton-nlp/MQuAKE at fb43dad, ``run_mello.ipynb``); the demonstrations are ours.
``check=scope`` is PokeMQA's order (Gu et al. 2024, arXiv 2312.15194): a fact takes the place of the model's own answer
where a subquestion is in its scope, and the model never judges; its trained detector is replaced by the retriever and a
threshold.

The first line after a question is begun for the model, as all demonstrations have it: ``Subquestion:``.

Where the code differs from the paper: it writes four times at most, of which the last has to be the final answer, so
that no question of four subquestions is ever answered (``hops=3``; here 4); a question whose form the model leaves has
no answer and counts as wrong (``unfinished=leave``: it is asked as without edits; here the final answer is asked for);
products of vectors are compared (``similarity=product``).  How it reads what was written is ``loop=released``: by the
place of a line alone, so that a text that goes on behind its final answer has none, and a subquestion without a
generated answer is none; the question stands behind ``Qustion:``, misspelt, with nothing begun; a fact is looked up
without its full stop, and no line is ended for the model.  All of the released form: ``loop=released``, ``hops=3``,
``unfinished=leave``, ``shown=4``, ``tokens=256``, ``similarity=product`` and a copy of Contriever as ``encoder``.

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
from harness.errors import UsageError
from harness.methods.dense import DenseIndex, Retrieving, Similarity, index_of
from harness.methods.in_context import FromMemory, Memory
from harness.methods.retrieval import Index, as_fact, fits_context, join_facts
from harness.methods.writing import written
from harness.models.lm import LM
from harness.patches.patch import Patch

__all__ = ["Decomposed", "Mello"]

Check = Literal["model", "scope"]
Loop = Literal["plain", "released"]
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
    (
        "On which continent is the headquarters of the employer of the author of The Silent Harbour?",
        (
            _Hop("Who is the author of The Silent Harbour?", "The author of The Silent Harbour is Clara Voss.",
                 "The author of The Silent Harbour is Tomas Reyes.", True, "Tomas Reyes"),
            _Hop("Who is the employer of Tomas Reyes?", "The employer of Tomas Reyes is Nokia.",
                 "The employer of Thomas Edison is Pepsi.", False, "Nokia"),
            _Hop("In which city is the headquarters of Nokia?", "The headquarters of Nokia is in Espoo.",
                 "The headquarters of Nokia is in Nairobi.", True, "Nairobi"),
            _Hop("On which continent is Nairobi?", "Nairobi is in Africa.",
                 "Nauru is in the continent of Europe.", False, "Africa"),
        ),
    ),
)  # fmt: skip
"""Questions of two to four hops whose facts are changed in part; those about other things are left unused."""


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
        shown: demonstrations in front of a question; the last one of four takes a question into four.
        tokens: how many the model writes at most for a hop.
        similarity: with an encoder the cosine, or the product of two vectors as in the released code.
        loop: ``plain`` finds a subquestion wherever a line begins with one, and a final answer anywhere; ``released``
            takes them from the last but one line and from the last one, as the released code does.
    """

    name = "mello"

    hops: Count = 4
    check: Check = "model"
    threshold: Share = 0.8
    unfinished: Unfinished = "ask"
    shown: Annotated[int, Range(0, len(_SHOWN))] = 3
    tokens: Count = 96
    similarity: Similarity = "cosine"
    loop: Loop = "plain"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loop == "released" and self.check == "scope":
            raise UsageError(
                f"{self.name}: 'loop' is 'released', which lets the model judge; leave out check=scope or loop=released"
            )

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """The edits as facts; increments join."""
        if not edits:
            return Patch()
        facts = join_facts((), map(as_fact, edits))
        ways = (self.hops, self.check, self.threshold, self.unfinished, self.shown, self.tokens)
        return Patch(prompt=Decomposed(facts, self.room, lm, *ways, self.encoder, self.similarity, self.loop))


@dataclass(frozen=True, eq=False)
class Decomposed(Memory):
    """Puts a question's subquestions and their answers in front of its answer.

    A rule of the prompt (:data:`harness.patches.patch.PromptRule`).

    Attributes:
        hops, check, threshold, unfinished, shown, tokens, encoder, similarity, loop: as in :class:`Mello`.
    """

    hops: int
    check: Check
    threshold: float
    unfinished: Unfinished
    shown: int
    tokens: int
    encoder: str | None
    similarity: Similarity
    loop: Loop = "plain"

    def reading(self, context: str) -> str:
        """The demonstrations, the question, what was written about it, and ``Final answer:``.

        The context alone where nothing is asked, or where there is no room to begin.
        """
        text = self.opening(context)
        if not context.strip() or not self._fits(text):
            return context
        for left in reversed(range(self.hops + 1)):
            said = written(self.lm, text, tokens=self.tokens, ends=self._ends)
            worked_out = self._before_final(said)
            if worked_out is not None:
                return self._answering(self._line(text + worked_out), context)
            told = self._told(text, said) if left else None
            if told is None:
                break
            text = told
        # A subquestion that nobody has answered is left out.
        kept = text.removesuffix(_SUB) if text.endswith(_SUB) else text + said.partition(_SUB)[0]
        return context if self.unfinished == "leave" else self._answering(_ended(kept), context)

    def _before_final(self, said: str) -> str | None:
        """What was written in front of the final answer; None where there is none."""
        if self.loop == "released":
            last = said.strip().split("\n")[-1]
            return said.rstrip().removesuffix(last) if last.startswith(f"{_FINAL} ") else None
        return said.partition(_FINAL)[0] if _FINAL in said else None

    def _told(self, text: str, said: str) -> str | None:
        """The text with what was written, and what the memory says to it; None where no subquestion is asked."""
        asked = self._asked(f"{_SUB}{said}" if text.endswith(_SUB) else said)
        if asked is None:
            return None
        told = f"{text}{self._line(said)}{self._stop}{self.recalled(asked)}"
        return told if self._fits(told) else None

    def _asked(self, said: str) -> str | None:
        """The subquestion that a text asks; None where it asks none."""
        return _last_but_one(said) if self.loop == "released" else _subquestion(said)

    def opening(self, context: str) -> str:
        """What the model reads first."""
        begun = [f"Qustion: {context}"] if self.loop == "released" else [f"Question: {context}", _SUB]
        return "\n".join([*(_demonstration(*one, self.check) for one in _SHOWN[: self.shown]), *begun])

    def recalled(self, asked: str) -> str:
        """What the memory puts into the text for a subquestion; nothing where no fact is in its scope."""
        place, near = self._index.ranked(asked)[0]
        fact = self._line(self.facts[place].sentence)
        return f" {fact}" if self.check == "model" or near >= self.threshold else ""

    def _answering(self, text: str, context: str) -> str:
        asked = f"{text}{_FINAL}"
        return asked if fits_context(self.lm, asked, self.room) else context

    def _fits(self, text: str) -> bool:
        return fits_context(self.lm, text, max(self.tokens, self.room))

    def _line(self, text: str) -> str:
        """The text with its last line ended, unless that is left to the model."""
        return text if self.loop == "released" else _ended(text)

    @property
    def _stop(self) -> str:
        """What the model must not write by itself: the memory does, or the scope decides."""
        return _FACT if self.check == "model" else _OWN

    @property
    def _ends(self) -> tuple[str, ...]:
        """What ends the model's writing: its turn is over, or it begins a question of its own."""
        return (self._stop,) if self.loop == "released" else (self._stop, "\n\n", "\nQuestion:")

    @cached_property
    def _index(self) -> Index | DenseIndex:
        facts = self.facts
        if self.loop == "released":
            facts = tuple(one._replace(sentence=one.sentence.removesuffix(".")) for one in facts)
        return index_of(facts, self.encoder, self.similarity)


def _last_but_one(said: str) -> str | None:
    """The subquestion that stands in the last line but one of a text; None where no such line does.

    Args:
        said: what the model wrote.
    """
    _, _, line = said.strip().rpartition("\n")[0].rpartition("\n")
    return line.removeprefix(f"{_SUB} ") if line.startswith(f"{_SUB} ") else None


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
