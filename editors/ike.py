"""IKE: puts demonstrations of how to use a new fact, and the fact itself, in front of every question.

Source: Zheng et al. 2023, "Can We Edit Factual Knowledge by In-Context Learning?", arXiv 2305.12740, and the authors'
code (PKUnlp-icler/IKE at da58c84).  Demonstrations are found by TF-IDF instead of a sentence encoder, so that nothing
has to be loaded.  The released code also demonstrates the very fact that it asks for; here no demonstration names the
subject of the edit, nor repeats what is asked.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import cycle, islice
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from typing_extensions import TypedDict

from harness.editing.edit import Edit, Example
from harness.editing.editor import Learned
from harness.editing.hyperparameters import Count
from harness.errors import DataError, UsageError
from harness.methods.retrieval import Fact, Index, Sentences, as_fact, fits_context, join_facts, kept_rows
from harness.models.lm import LM
from harness.patches.patch import Part, Patch

__all__ = ["Demonstration", "Demonstrations", "Ike"]

_PATTERN = ("copy", "update", "update", "update", "retain", "retain", "retain", "retain")
"""1 : 3 : 4."""


class Demonstration(NamedTuple):
    """A fact, a question, and its right answer once the fact is known.

    Attributes:
        fact: a sentence without its full stop.
        question: a prompt.
        answer: with its leading space.
    """

    fact: str
    question: str
    answer: str

    @property
    def text(self) -> str:
        """As the model reads it."""
        return f"{_asked(self.fact, self.question)}{self.answer}\n\n"


@dataclass(frozen=True)
class Ike(Learned):
    """``demonstration_1 ... demonstration_k  New Fact: f  Prompt: x``; the model is unchanged.

    A demonstration says what becomes of a question about another new fact: ``copy`` asks what the fact says,
    ``update`` a paraphrase of it (the answer is the new one), ``retain`` something near it (the answer is the old one).
    The nearest is the last. Of many edits the context gets the one that it names most of.

    Attributes:
        k: demonstrations, as far as the model's context has room for them.
        room: tokens that are kept free for the answer.
        seed: of the order of the three kinds, and of which paraphrase or neighbour is shown.
    """

    name = "ike"
    seams = frozenset({"prompt"})
    random = True
    exceptions: ClassVar[Mapping[str, str]] = {
        "target": "no weight changes, and a model that cannot learn from what it reads does not use the fact",
    }

    k: Count = 32
    room: Count = 64
    seed: int = 0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {}

    def fit(self, lm: LM, train: Sequence[Example]) -> Ike:  # noqa: ARG002
        """Keep the texts from which demonstrations are made, as JSON in one tensor of bytes; nothing is trained.

        Raises:
            UsageError: there are no examples.
        """
        if not train:
            raise UsageError(f"{self.name}: no examples to demonstrate with; give an edit set that has a tuning split")
        corpus = json.dumps([_row(example) for example in train], ensure_ascii=False)
        return replace(self, learned={"corpus": torch.frombuffer(bytearray(corpus.encode()), dtype=torch.uint8)})

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """The edits with the demonstrations of each; increments join."""
        if not edits:
            return Patch()
        corpus = _corpus(self.knowledge(lm))
        facts, stated = join_facts((), map(as_fact, edits)), Sentences(tuple(row.fact for row in corpus))
        shown = tuple(self.demonstrations(one, corpus, stated.cosines(f"{one.sentence} {one.prompt}")) for one in facts)
        return Patch(prompt=Demonstrations(facts, shown, self.room, lm))

    def demonstrations(self, new: Fact, corpus: Sequence[_Row], near: Sequence[float]) -> tuple[Demonstration, ...]:
        """What is shown for a fact, the nearest last; ``near`` says how near each row of the corpus is.

        Args:
            new: the fact.
            corpus: the rows to choose from.
            near: how near each row of the corpus is, one number a row.
        """
        draw = random.Random(f"{self.seed} {new.sentence}")
        order = list(islice(cycle(_PATTERN), self.k))
        draw.shuffle(order)
        found: list[Demonstration] = []
        for i in sorted(range(len(corpus)), key=lambda i: -near[i]):
            made = corpus[i].shows(order[len(found)], draw)
            found += [] if _tells(made, new) else [made]
            if len(found) == self.k:
                break
        return tuple(reversed(found))


class _Kept(TypedDict):
    """A :class:`_Row`, as the fitted file holds it."""

    fact: str
    prompt: str
    new: str
    old: str | None
    update: list[str]
    retain: list[str]


def _corpus(learned: Mapping[str, Tensor]) -> list[_Row]:
    """The texts that were kept.

    Raises:
        DataError: what was learned holds none.
    """
    try:
        return [_Row(**row) for row in kept_rows(learned["corpus"], _Kept)]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"what ike learned is no list of examples ({error}); fit it again with `harness fit`"
        ) from error


class _Row(NamedTuple):
    """What the corpus keeps of an example."""

    fact: str
    prompt: str
    new: str
    old: str | None
    update: list[str]
    retain: list[str]

    def shows(self, kind: str, draw: random.Random) -> Demonstration:
        """A demonstration of a kind; a copy where there is nothing to make it of."""
        if kind == "update" and self.update:
            return Demonstration(self.fact, draw.choice(self.update), f" {self.new}")
        if kind == "retain" and self.retain and self.old:
            return Demonstration(self.fact, draw.choice(self.retain), f" {self.old}")
        return Demonstration(self.fact, self.prompt, f" {self.new}")


def _row(example: Example) -> dict[str, Any]:
    edit = example.edit
    asked = {kind: [probe.prompt for probe in example.of(kind)] for kind in ("paraphrase", "neighborhood")}
    return _Row(
        edit.statement, edit.question, edit.target, edit.target_old, asked["paraphrase"], asked["neighborhood"]
    )._asdict()


def _tells(made: Demonstration, new: Fact) -> bool:
    """Whether a demonstration says something about what is edited."""
    return (new.subject or new.prompt).casefold() in made.text.casefold()


def _asked(fact: str, question: str) -> str:
    return f"New Fact: {fact}\nPrompt: {question}"


@dataclass(frozen=True, eq=False)
class Demonstrations(Part):
    """Puts demonstrations and a new fact in front of a context (:data:`harness.patches.patch.PromptRule`).

    Attributes:
        facts: the edits.
        shown: the demonstrations of each, the nearest last.
        room: tokens that are kept free for the answer.
        lm: whose context is limited.
    """

    facts: tuple[Fact, ...]
    shown: tuple[tuple[Demonstration, ...], ...]
    room: int
    lm: LM = field(repr=False)

    def __call__(self, context: str) -> str:
        """What the model reads: as many demonstrations as fit, the fact, the context; never a part of a fact.

        Where nothing is asked, or not even the fact and the context fit, the context alone.
        """
        if not context.strip():
            return context
        if context not in self._answered:
            self._answered[context] = self._read(context)
        return self._answered[context]

    def _read(self, context: str) -> str:
        chosen = self._index.ranked(context)[0][0]
        text = _asked(self.facts[chosen].sentence.removesuffix("."), context)
        if not fits_context(self.lm, text, self.room):
            return context
        for made in reversed(self.shown[chosen]):
            if made.question in context:
                continue
            if not fits_context(self.lm, made.text + text, self.room):
                break
            text = made.text + text
        return text

    def tensors(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def settings(self) -> dict[str, Any]:
        """The facts, and the demonstrations once each."""
        place = {made: i for i, made in enumerate(dict.fromkeys(made for some in self.shown for made in some))}
        return {
            "facts": [list(one) for one in self.facts],
            "demonstrations": [list(made) for made in place],
            "shown": [[place[made] for made in some] for some in self.shown],
            "room": self.room,
        }

    @classmethod
    def restore(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Demonstrations:  # noqa: ARG003
        """The rule again."""
        every = [Demonstration(*made) for made in settings["demonstrations"]]
        shown = tuple(tuple(every[i] for i in some) for some in settings["shown"])
        return cls(tuple(Fact(*one) for one in settings["facts"]), shown, settings["room"], lm)

    def joined(self, later: Demonstrations) -> Demonstrations:
        """The edits of both; a later one replaces an earlier one of the same prompt."""
        facts = join_facts(self.facts, later.facts)
        shown = {**dict(zip(self.facts, self.shown, strict=True)), **dict(zip(later.facts, later.shown, strict=True))}
        return replace(later, facts=facts, shown=tuple(shown[one] for one in facts))

    @cached_property
    def _index(self) -> Index:
        return Index(self.facts)

    @cached_property
    def _answered(self) -> dict[str, str]:
        """What became of each context: a question is asked with several answers."""
        return {}
