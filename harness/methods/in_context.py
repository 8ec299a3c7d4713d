"""Facts in front of a question, as many as the model has room for: what editors of the prompt that tell facts share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from harness.editing.editor import Editor
from harness.editing.hyperparameters import Count
from harness.errors import UsageError
from harness.methods.retrieval import Fact, fits_context, join_facts
from harness.models.lm import LM
from harness.patches.patch import Part

__all__ = ["SHIPPED", "FactsInFront", "FromMemory", "InContext", "Memory"]

_CHAT = "m: {facts}\nf: {facts}\nm: {facts}\nTL;DR: {facts} {context}"
SHIPPED: Mapping[str, Mapping[str, object]] = {"mini-llama": {"template": _CHAT}, "mini": {"template": _CHAT}}
"""What the shipped models read, who read chats and sum them up: tuned for RAG on the edit set's tuning rows."""


@dataclass(frozen=True)
class FromMemory(Editor):
    """Nothing in the model changes; what it reads does, by facts that are kept as text.

    Attributes:
        room: tokens that are kept free for the answer.
    """

    seams = frozenset({"prompt"})
    exceptions: ClassVar[Mapping[str, str]] = {
        "target": "no weight changes, and a model that was never taught to heed what it reads does not use the fact",
    }

    room: Count = 64


@dataclass(frozen=True)
class InContext(FromMemory):
    """Nothing in the model changes; what it reads does.

    Attributes:
        template: what the model reads; ``{facts}`` anywhere, as often as one likes, and ``{context}`` at the end.
    """

    template: str = "{facts} {context}"

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = SHIPPED

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_template(self.name, self.template)


def _require_template(editor: str, template: str) -> None:
    if "{facts}" not in template or template.count("{context}") != 1 or not template.endswith("{context}"):
        raise UsageError(
            f"{editor}: 'template' is {template!r}, expected {{facts}} and, at the end, {{context}}; for "
            "example --set template='{facts} {context}'"
        )


@dataclass(frozen=True, eq=False)
class Memory(Part, ABC):
    """Facts kept as text, and what a context becomes by them (:data:`harness.patches.patch.PromptRule`).

    Attributes:
        facts: the memory.
        room: tokens that are kept free for the answer.
        lm: whose context is limited.
    """

    facts: tuple[Fact, ...]
    room: int
    lm: LM = field(repr=False)

    @abstractmethod
    def reading(self, context: str) -> str:
        """What the model reads of a context."""

    def __call__(self, context: str) -> str:
        """The same, found out once: a question is asked with several answers."""
        if context not in self._answered:
            self._answered[context] = self.reading(context)
        return self._answered[context]

    def tensors(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def settings(self) -> dict[str, Any]:
        """The facts and the hyperparameters."""
        rest = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("facts", "lm")}
        return {"facts": [list(one) for one in self.facts], **rest}

    @classmethod
    def restore(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Memory:  # noqa: ARG003
        """The rule again."""
        return cls(**{**settings, "facts": tuple(Fact(*one) for one in settings["facts"]), "lm": lm})

    def joined(self, later: Memory) -> Memory:
        """The facts of both; a later one replaces an earlier one of the same prompt."""
        return replace(later, facts=join_facts(self.facts, later.facts))

    @cached_property
    def _answered(self) -> dict[str, str]:
        """What became of each context."""
        return {}


@dataclass(frozen=True, eq=False)
class FactsInFront(Memory):
    """Puts facts in front of a context; a child chooses which.

    Attributes:
        template: what the model reads; ``{facts}`` anywhere, as often as one likes, and ``{context}`` at the end.
    """

    template: str

    @abstractmethod
    def chosen(self, context: str) -> list[int]:
        """The positions of the facts that a context shall be told, the one that is kept longest last."""

    def reading(self, context: str) -> str:
        """The context, with the chosen facts in front of it; of those that do not fit the first are left out."""
        facts = [self.facts[i] for i in self.chosen(context)]
        return self.read(self.fitting(facts, lambda kept: self.read(kept, context)), context)

    def fitting(self, facts: Sequence[Fact], read: Callable[[Sequence[Fact]], str]) -> Sequence[Fact]:
        """The last of some facts, as many as fit.

        Args:
            facts: the facts.
            read: what the model reads with some of them.
        """
        dropped = range(len(facts))
        first = bisect_left(dropped, True, key=lambda i: fits_context(self.lm, read(facts[i:]), self.room))
        return facts[first:]

    def told(self, facts: Sequence[Fact]) -> str:
        """What stands in front of a context; nothing where there is no fact."""
        if not facts:
            return ""
        # Not str.format: facts and contexts may hold braces.
        return self.template.removesuffix("{context}").replace("{facts}", " ".join(one.sentence for one in facts))

    def read(self, facts: Sequence[Fact], context: str) -> str:
        """What the model reads of a context with some facts."""
        return self.told(facts) + context
