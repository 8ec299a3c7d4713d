"""SERAC: a trained classifier says which edit a question is about, and a model that reads this edit answers it.

Source: Mitchell, Lin, Bosselut, Manning, Finn 2022, "Memory-Based Model Editing at Scale", arXiv 2206.06520, section 3;
as an editor in zjunlp/EasyEdit (at 14cea82, easyeditor/trainer/algs/SERAC.py).  Edits are kept as text.  Of a question
``x`` and an edit ``z`` the scope classifier is the paper's by embeddings, ``g(z, x) = exp(-||phi(z) - phi(x)||^2)``,
and where the greatest ``g`` is at least one half the edit is in scope.

Other than there ``phi`` is no language model of its own: it is a linear map, trained by :meth:`Serac.fit`, of what one
block of the edited model writes at a text's last token.  And the counterfactual model is the edited model itself with
the edit in front of the question, as in EasyEdit with ``freeze_cntr``; the paper trains a small one.  So what is
learned here is the scope alone, and a model that does not heed what it reads does not answer with the edit.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from harness.editing.edit import Edit, Example
from harness.editing.editor import Learned
from harness.editing.hyperparameters import Count, Positive, Range, Share
from harness.errors import DataError, NumericalError, UsageError
from harness.methods.in_context import SHIPPED, FactsInFront, InContext
from harness.methods.keys import layer_at_depth
from harness.methods.retrieval import Fact, as_fact, join_facts
from harness.models.activations import at_least_float32, capture_activations, row_portions
from harness.models.lm import LM
from harness.patches.patch import Patch

__all__ = ["Scoped", "Serac", "last_states", "squared_distances"]

_BUDGET = 4096
"""Tokens of one forward pass, padding included."""

_TEXTS, _BEGINNING = 500, 32
"""Documents of plain text that no edit is about, and how many of their tokens are read."""


@dataclass(frozen=True)
class Serac(InContext, Learned):
    """``x`` is answered behind the edit ``z*`` with the greatest ``g(z, x)`` if that is at least ``threshold``.

    ``phi(x) = W h(x)``, with ``h(x)`` what a block writes at the last token, minimises

        - log g(z, x_in) - log(1 - g(z, x_out))

    over other ways to ask for an edit and, with one weight each, over questions about its neighbours, about other
    edits, and beginnings of plain text.

    Attributes:
        layer: the block; by default one at 40 % of the depth.
        width: numbers of ``phi``.
        threshold: the least ``g`` of an edit that is in scope.
        lr: Adam's learning rate.
        steps: updates.
        batch_size: edits of one update.
        holdout: the share of the examples that is kept for validation.
        validate_every: updates between two validations; the best is kept.
        seed: of the first ``W`` and of what is drawn.
    """

    name = "serac"
    random = True

    layer: Annotated[int, Range(0)] | None = None
    width: Count = 16
    threshold: Share = 0.5
    lr: Positive = 3e-3
    steps: Count = 600
    batch_size: Count = 32
    holdout: Share = 0.1
    validate_every: Count = 100
    seed: int = 0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = SHIPPED

    def fit(self, lm: LM, train: Sequence[Example]) -> Serac:
        """Learn ``W``; that of the best validation is kept.

        Raises:
            UsageError: there are fewer than four examples.
            DataError: there is no plain text.
            NumericalError: a loss is not finite.
        """
        if len(train) < 4:
            raise UsageError(
                f"{self.name}: {len(train)} examples to learn from, expected at least 4: an edit is told from others, "
                "and some are kept for validation"
            )
        order = random.Random(self.seed).sample(train, len(train))
        kept = min(max(2, round(self.holdout * len(order))), len(order) - 2)
        texts = _Texts(lm, self.at(lm))
        judged, taught = ([texts.lesson(one) for one in part] for part in (order[:kept], order[kept:]))
        return replace(self, learned={"weight": self._train(lm, texts, taught=taught, judged=judged)})

    def layout(self, lm: LM) -> Mapping[str, Tensor]:
        """``W``."""
        return {"weight": torch.empty(self.width, lm.arch.width, dtype=torch.float32, device="meta")}

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """The edits as facts; increments join."""
        weight = self.knowledge(lm)["weight"].to(lm.device)
        if not edits:
            return Patch()
        facts = join_facts((), map(as_fact, edits))
        return Patch(prompt=Scoped(facts, self.room, lm, self.template, self.at(lm), self.threshold, weight))

    def at(self, lm: LM) -> int:
        """The block."""
        return layer_at_depth(lm, 0.4) if self.layer is None else self.layer

    def _train(self, lm: LM, texts: _Texts, *, taught: Sequence[_Lesson], judged: Sequence[_Lesson]) -> Tensor:
        """``W [width, d]`` of the best validation."""
        plain = texts.plain()
        states = texts.states()
        spread = states.std(0, unbiased=False).clamp(min=1e-6)
        states = states / spread
        draw = torch.Generator().manual_seed(self.seed)
        start = torch.randn(self.width, states.shape[1], generator=draw) / (states.shape[1] * self.width) ** 0.5
        weight = start.to(states).requires_grad_()
        adam = torch.optim.Adam([weight], lr=self.lr)
        orders, best, found = random.Random(self.seed), float("inf"), start.to(states)
        with self.progress(lm, self.steps) as tell:
            for step in range(1, self.steps + 1):
                chosen = _drawn(orders.sample(taught, min(self.batch_size, len(taught))), plain, orders)
                with torch.enable_grad():
                    loss = _loss(states @ weight.T, chosen)
                if not bool(torch.isfinite(loss)):
                    raise NumericalError(f"{self.name}: the loss became {float(loss)} in training; lower lr")
                adam.zero_grad()
                torch.autograd.backward(loss)
                adam.step()
                if step % self.validate_every == 0 or step == self.steps:
                    with torch.no_grad():
                        judge = random.Random(self.seed)  # the same questions at each validation
                        value = float(_loss(states @ weight.T, _drawn(judged, plain, judge)))
                    if value < best:
                        best, found = value, weight.detach().clone()
                tell(step, f"best validation {best:.3f}")
        learned: Tensor = found / spread
        return learned


# --- the memory -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scoped(FactsInFront):
    """Puts the fact in front of a context that is in its scope (:data:`harness.patches.patch.PromptRule`).

    Attributes:
        layer, threshold: as in :class:`Serac`.
        weight: ``W [width, d]``.
    """

    layer: int
    threshold: float
    weight: Tensor

    def chosen(self, context: str) -> list[int]:
        """The position of the fact with the greatest ``g``, if that is enough."""
        if not context:
            return []
        scopes = self.scopes(context)
        best = int(scopes.argmax())
        return [best] if float(scopes[best]) >= self.threshold else []

    def scopes(self, context: str) -> Tensor:
        """``g(z, x)`` of a context and each fact, ``[facts]``."""
        return torch.exp(-squared_distances(self._embedded([context]), self._facts)[0])

    def tensors(self) -> dict[str, Tensor]:
        """``W``."""
        return {"weight": self.weight}

    def settings(self) -> dict[str, Any]:
        """The facts and the hyperparameters."""
        return {name: value for name, value in super().settings().items() if name != "weight"}

    @classmethod
    def restore(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Scoped:
        """The rule again."""
        facts = tuple(Fact(*one) for one in settings["facts"])
        return cls(**{**settings, "facts": facts, "lm": lm, "weight": tensors["weight"].to(lm.device)})

    def _embedded(self, texts: Sequence[str]) -> Tensor:
        return last_states(self.lm, texts, self.layer) @ self.weight.T

    @cached_property
    def _facts(self) -> Tensor:
        """``phi`` of each edit's question, ``[facts, width]``."""
        return self._embedded([fact.prompt for fact in self.facts])


def last_states(lm: LM, texts: Sequence[str], layer: int) -> Tensor:
    """What a block writes at the last token of some texts, ``[texts, d]``; of one that is too long, its end is read.

    Args:
        lm: the model.
        texts: the texts.
        layer: the block.
    """
    rows, block = [lm.encode(text)[-lm.context :] for text in texts], lm.arch.block(layer)
    found: dict[int, Tensor] = {}
    for chunk in row_portions([[len(row)] for row in rows], _BUDGET):
        batch = lm.batch([rows[i] for i in chunk])
        states = capture_activations(lm, batch, outputs=[block]).outputs[block]
        last = states[torch.arange(len(chunk)), batch.lengths.cpu() - 1]
        found |= dict(zip(chunk, at_least_float32(last).to(lm.device), strict=True))
    return torch.stack([found[i] for i in range(len(rows))])


def squared_distances(one: Tensor, other: Tensor) -> Tensor:
    """``||a - b||^2`` of all pairs of rows, ``[n, m]``."""
    return (one[:, None] - other[None]).square().sum(-1)


# --- learning ---------------------------------------------------------------------------------------------------------


class _Lesson(NamedTuple):
    """An example, as positions among the texts that are read.

    Attributes:
        edit: its question.
        wanted: other ways to ask it.
        near: questions about its neighbours.
    """

    edit: int
    wanted: list[int]
    near: list[int]


class _Draw(NamedTuple):
    """What one update is about, ``[n]`` positions each: edits, another way to ask each, a neighbour, plain text.

    An edit without a neighbour has plain text in its place.
    """

    edits: list[int]
    wanted: list[int]
    near: list[int]
    plain: list[int]


class _Texts:
    """Texts that are read once."""

    def __init__(self, lm: LM, layer: int) -> None:
        self.lm, self.layer = lm, layer
        self.places: dict[str, int] = {}

    def place(self, text: str) -> int:
        return self.places.setdefault(text, len(self.places))

    def lesson(self, example: Example) -> _Lesson:
        wanted = [self.place(probe.prompt) for probe in example.of("paraphrase") if probe.prompt]
        near = [self.place(probe.prompt) for probe in example.of("neighborhood") if probe.prompt]
        edit = self.place(example.edit.question)
        return _Lesson(edit, wanted or [edit], near)

    def plain(self) -> list[int]:
        """Beginnings of plain text."""
        rows = (self.lm.encode(text)[:_BEGINNING] for text in islice(self.lm.documents(), _TEXTS) if text)
        found = [self.place(str(self.lm.tokenizer.decode(row, skip_special_tokens=True))) for row in rows]
        if not found:
            raise DataError(f"'{self.lm.text}' holds no text; give plain text with --text FILE")
        return found

    def states(self) -> Tensor:
        return last_states(self.lm, list(self.places), self.layer)


def _drawn(lessons: Sequence[_Lesson], plain: Sequence[int], draw: random.Random) -> _Draw:
    return _Draw(
        [one.edit for one in lessons],
        [draw.choice(one.wanted) for one in lessons],
        [draw.choice(one.near or plain) for one in lessons],
        [draw.choice(plain) for _ in lessons],
    )


def _loss(embedded: Tensor, drawn: _Draw) -> Tensor:
    """``-log g`` of what is in scope and ``-log(1 - g)`` of what is not, means over each kind of question."""
    edits, wanted, near, plain = (embedded[places] for places in drawn)
    apart = squared_distances(edits, wanted)
    same = torch.tensor([[one == other for other in drawn.edits] for one in drawn.edits], device=apart.device)
    outside = [(edits - near).square().sum(1), (edits - plain).square().sum(1), apart[~same]]
    return apart.diagonal().mean() + torch.stack([_out_of_scope(one) for one in outside if len(one)]).sum()


def _out_of_scope(distances: Tensor) -> Tensor:
    """The mean of ``-log(1 - exp(-d))``."""
    return -torch.log(-torch.expm1(-distances.clamp(min=1e-6))).mean()
