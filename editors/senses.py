"""Sense finetuning: the few sense vectors of a Backpack that an example weighs unusually much get a trained change.

Source: Hewitt, Chen, Xie, Adams, Liang, Manning 2024, "Model Editing with Canonical Examples", arXiv 2402.06155,
section 5 and equations 4, 8 and 9, and the authors' code (john-hewitt/model-editing-canonical-examples at 15a1e7b).
Where both differ, ``variant=paper`` follows the paper and ``variant=released`` the code, in which

* only the last example of each full group makes a gradient: the others are cleared before they count;
* the divergence runs from the unedited to the edited model, ``KL(p0 || p)``, and not the other way;
* ``contrast`` chooses by the difference of what both continuations weigh, and not by the sum;
* ``k`` pairs are taken even where fewer are weighed at all.

Both sum the divergence over the positions of a chunk, so its weight for one token is about 500 ``kl``.  Their Adam
keeps its states in 8 bits, this one in 32.  The contextualisation does not see a change of senses: what a text weighs
is computed once, and training runs the output layer alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from harness.editing.directions import DIRECTIONS, losses
from harness.editing.edit import Edit
from harness.editing.editor import Editor, Pass, own_memory
from harness.editing.hyperparameters import Count, NotNegative, Positive
from harness.errors import DataError, NumericalError, UsageError
from harness.methods.descent import TokenisedEdit, cosine_rate, tokenise
from harness.models.activations import at_least_float32
from harness.models.lm import LM
from harness.patches.patch import Part, Patch, Step

__all__ = [
    "SENSES",
    "Background",
    "SenseChange",
    "Senses",
    "background",
    "choose_senses",
    "divergence",
    "gradients",
    "weighed",
]

SENSES = "backpack.sense_network"
"""The module that is hooked: it gives the senses of each token, ``[batch, new, k, d]``."""

_BETAS = (0.9, 0.995)
_ROWS = 8  # chunks of one forward pass

Variant = Literal["paper", "released"]


@dataclass(frozen=True, eq=False)
class SenseChange(Part):
    """What is added to some senses wherever their tokens stand.

    Attributes:
        tokens: ``v [n]``.
        senses: ``l [n]``.
        deltas: ``D [n, d]``.
    """

    tokens: Tensor
    senses: Tensor
    deltas: Tensor

    def __call__(self, hidden: Tensor, step: Step) -> Tensor:
        """A hook (:data:`harness.patches.patch.Hook`) of the sense network."""
        tokens, deltas = self.tokens.to(hidden.device), self.deltas.to(hidden.device, hidden.dtype)
        ids = step.ids[:, -step.new :].reshape(-1).to(hidden.device)
        rows = torch.isin(ids, tokens).nonzero()[:, 0]
        place, pair = (ids[rows, None] == tokens).nonzero(as_tuple=True)
        changed = hidden.reshape(len(ids), -1, deltas.shape[1]).clone()
        changed.index_put_((rows[place], self.senses.to(hidden.device)[pair]), deltas[pair], accumulate=True)
        return changed.reshape(hidden.shape)

    def tensors(self) -> dict[str, Tensor]:
        """The pairs and their changes."""
        return {"tokens": self.tokens, "senses": self.senses, "deltas": self.deltas}

    def settings(self) -> dict[str, Any]:
        """Nothing else."""
        return {}

    @classmethod
    def restore(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SenseChange:  # noqa: ARG003
        """The change again, on the model's device."""
        return cls(*(tensors[name].to(lm.device) for name in ("tokens", "senses", "deltas")))

    def joined(self, later: SenseChange) -> SenseChange:
        """Both changes; those of one pair add."""
        pairs = torch.stack([torch.cat([self.tokens, later.tokens]), torch.cat([self.senses, later.senses])], 1)
        unique, where = torch.unique(pairs, dim=0, return_inverse=True)
        both = torch.cat([self.deltas, later.deltas.to(self.deltas)])
        total = both.new_zeros(len(unique), both.shape[1]).index_add(0, where, both)
        return SenseChange(unique[:, 0].contiguous(), unique[:, 1].contiguous(), total)


@dataclass(frozen=True, eq=False)
class Background:
    """What ordinary text weighs, on the model that was edited first.

    Attributes:
        chunks: the text in tokens, ``[chunks, columns]``.
        weight: ``B [vocabulary, k]``, the mean over chunks of :func:`weighed`.
    """

    chunks: Tensor
    weight: Tensor


def weighed(alpha: Tensor, ids: Tensor, *, positions: Tensor, vocabulary: int) -> Tensor:
    """How much each token's senses are weighed when some positions predict: ``a [vocabulary, k]``.

    ``a(v, l) = sum over t in positions, s with x_s = v of alpha[l, t, s]``.

    Args:
        alpha: ``[k, columns, columns]``.
        ids: the tokens, ``[columns]``.
        positions: the positions ``t``.
        vocabulary: the number of tokens that can be chosen; others are left out.
    """
    mass = at_least_float32(alpha[:, positions]).sum(1).T
    known = ids < vocabulary
    return mass.new_zeros(vocabulary, len(alpha)).index_add(0, ids[known], mass[known])


def choose_senses(
    weight: Tensor, ordinary: Tensor, *, factor: float, k: int, fill: bool = False
) -> list[tuple[int, int]]:
    """The pairs ``(v, l)`` of the greatest ``q(v, l) = a(v, l) - factor B(v, l)`` among those with ``a(v, l) > 0``.

    Args:
        weight: ``a [vocabulary, k]``.
        ordinary: ``B [vocabulary, k]``.
        factor: the weight of what is ordinary.
        k: how many.
        fill: whether pairs with ``a(v, l) <= 0`` make up the number where there are fewer.
    """
    score = weight - factor * ordinary.to(weight)
    positive = weight > 0
    # Equal scores: the lower token, then the lower sense.
    order = score.masked_fill(~positive, -math.inf).flatten().argsort(descending=True, stable=True)
    count = k if fill else min(k, int(positive.sum()))
    return [divmod(int(i), weight.shape[1]) for i in order[:count]]


def divergence(edited: Tensor, unedited: Tensor, variant: Variant = "paper") -> Tensor:
    """The divergence summed over positions, of log-probabilities ``[positions, vocabulary]``.

    ``paper``: ``KL(p || p0)`` (equation 4). ``released``: ``KL(p0 || p)``.

    Args:
        edited: ``log p``.
        unedited: ``log p0``.
        variant: which of the two.

    Returns:
        A scalar, in nats.
    """
    first, second = (edited, unedited) if variant == "paper" else (unedited, edited)
    return (first.exp() * (first - second)).sum()


def gradients(order: Sequence[int], size: int, variant: Variant = "paper") -> list[list[int]]:
    """The examples whose gradient each update of an epoch takes; ``released``: the last one of each full group.

    Args:
        order: the examples in the order of the epoch.
        size: examples of one update.
        variant: ``paper``: all of a group; ``released``: see above.
    """
    groups = [list(order[i : i + size]) for i in range(0, len(order), size)]
    return groups if variant == "paper" else [group[-1:] for group in groups if len(group) == size]


def background(lm: LM, *, chunks: int, columns: int, source: str | None = None) -> Background:
    """What the first chunks of a text weigh; all positions but the last of a chunk count.

    Args:
        lm: a Backpack.
        chunks: at most how many chunks.
        columns: tokens of a chunk, at most the model's context.
        source: a file, a folder or a Hub data set of texts; None for the model's plain text.

    Raises:
        DataError: the text is shorter than one chunk.
    """
    width, place = min(columns, lm.context), source or lm.text
    found = torch.tensor(list(islice(_chunks(lm, width, place), chunks)), device=lm.device)
    if not len(found):
        cure = "--text" if source is None else "--set kl_text=FILE"
        raise DataError(f"{place}: has fewer than {width} tokens; give more plain text with {cure}")
    vocabulary, total = len(lm.tokenizer), None
    for rows in torch.split(found, _ROWS):
        with torch.no_grad():
            alpha = lm.model(input_ids=rows, use_cache=False, logits_to_keep=1).contextualization
        for i, ids in enumerate(rows):
            mass = weighed(alpha[i], ids, positions=torch.arange(width - 1, device=ids.device), vocabulary=vocabulary)
            total = mass if total is None else total + mass
    assert total is not None
    return Background(found, total / len(found))


def _chunks(lm: LM, width: int, place: str) -> Iterator[list[int]]:
    """The documents of a text, each with its end, one after the other, in pieces of equal length."""
    end, held = lm.tokenizer.eos_token_id, []
    for document in lm.documents(place):
        held += [*lm.encode(document), end]
        while len(held) >= width:
            yield held[:width]
            held = held[width:]


@dataclass(frozen=True, eq=False)
class _Read:
    """Some positions of a text as the model reads it without the changes that are trained.

    Attributes:
        output: ``o [p, d]``.
        reach: how much of each change arrives, ``[p, m]``: the sum over ``s`` with ``x_s = v`` of ``alpha[l, t, s]``.
        pairs: which changes, ``[m]``; all others are of tokens that the text does not have.
    """

    output: Tensor
    reach: Tensor
    pairs: Tensor

    def log_p(self, lm: LM, deltas: Tensor | None) -> Tensor:
        """Log-probabilities ``[p, vocabulary]`` with changes ``[n, d]``, or without any."""
        output = self.output if deltas is None else self.output + self.reach @ deltas[self.pairs]
        head = lm.module(lm.arch.head)
        return at_least_float32(head(output.to(lm.parameter(f"{lm.arch.head}.weight").dtype))).log_softmax(-1)


@dataclass(frozen=True)
class Senses(Editor):
    """Adam on the changes of the chosen senses, one example and one chunk of text at a time.

    Attributes:
        k: senses that are chosen for each example.
        unusual: ``Lambda``, how much what ordinary text weighs counts against a sense.
        lr: the learning rate, at first.
        kl: ``lambda``, the weight of the divergence on a chunk, summed over its positions.
        epochs: passes over the examples.
        accumulate: examples of one update.
        chunks: chunks of ordinary text.
        chunk_tokens: tokens of a chunk, at most the model's context.
        variant: what is followed where the paper and its code differ.
        kl_text: the ordinary text: a file, a folder or a Hub data set; by default the model's plain text.
        seed: of the orders of examples and the draws of chunks.
    """

    name = "senses"
    family = "backpack"
    seams = frozenset({"activations"})
    random = True
    directions = DIRECTIONS

    # What won for gender at every tolerance (table 12 of the paper).
    k: Count = 8
    unusual: NotNegative = 1000.0
    lr: Positive = 0.0201
    kl: NotNegative = 0.385
    epochs: Count = 10
    accumulate: Count = 5
    chunks: Count = 3000
    chunk_tokens: Count = 500
    variant: Variant = "paper"
    kl_text: str | None = None
    seed: int = 0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # The shipped model: tuned on the edit set's tuning rows. There few chunks hold few words, so that every word
        # is usual.
        "mini-backpack": {"unusual": 10.0, "lr": 0.3, "kl": 0.1},
    }

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """All edits at once; the memory is what ordinary text weighs."""
        if not edits:
            return Patch(memory=memory)
        return self._edited(lm, edits, self._background(lm, memory))

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        """One edit after the other; ordinary text is read once."""
        if not edits:
            return []
        ordinary = self._background(lm, None)
        return [self._edited(lm, [edit], ordinary) for edit in edits]

    def passes(self, lm: LM, edits: Sequence[Edit]) -> Iterator[Pass]:
        """The change after each epoch."""
        if edits:
            yield from self._passes(lm, edits, self._background(lm, None))

    def label(self) -> str:
        """The name, with the variant where it is not the paper's."""
        return self.name if self.variant == "paper" else f"{self.name}-{self.variant}"

    def _background(self, lm: LM, memory: object) -> Background:
        self.require(lm)
        known = own_memory(memory, Background)
        return known or background(lm, chunks=self.chunks, columns=self.chunk_tokens, source=self.kl_text)

    def _edited(self, lm: LM, edits: Sequence[Edit], ordinary: Background) -> Patch:
        *_, last = self._passes(lm, edits, ordinary)
        return last.patch

    def _passes(self, lm: LM, edits: Sequence[Edit], ordinary: Background) -> Iterator[Pass]:
        if self.variant == "released" and len(edits) < self.accumulate:
            raise UsageError(
                f"the released code learns nothing of {len(edits)} examples where an update takes {self.accumulate}; "
                f"give --set accumulate={len(edits)}, more edits at a time, or --set variant=paper"
            )
        examples = tokenise(lm, edits)
        pairs = sorted({pair for example in examples for pair in self._chosen(lm, example, ordinary)})
        tokens, senses = torch.tensor(pairs, device=lm.device).T.contiguous()
        for deltas, wanted in self._trained(lm, examples, ordinary, tokens, senses):
            change = SenseChange(tokens, senses, deltas)
            yield Pass(Patch(hooks={SENSES: change}, memory=ordinary), fmean(wanted) if wanted else None)

    def _chosen(self, lm: LM, example: TokenisedEdit, ordinary: Background) -> list[tuple[int, int]]:
        """The senses of one example; of two continuations both count."""
        weight = _attended(lm, example, len(ordinary.weight))
        if example.against:
            other = _attended(lm, example.rival, len(ordinary.weight))
            subtract = self.variant == "released" and example.edit.direction == "contrast"
            weight = weight - other if subtract else weight + other
        return choose_senses(weight, ordinary.weight, factor=self.unusual, k=self.k, fill=self.variant == "released")

    def _trained(
        self, lm: LM, examples: Sequence[TokenisedEdit], ordinary: Background, tokens: Tensor, senses: Tensor
    ) -> Iterator[tuple[Tensor, list[float]]]:
        """The changes ``[n, d]`` after each epoch, and what its examples had to lose before their updates."""
        rows = [[_predicting(lm, a, tokens=tokens, senses=senses) for a in (e, e.rival) if a.target] for e in examples]
        start = torch.promote_types(lm.parameter(f"{lm.arch.head}.weight").dtype, torch.float32)
        deltas = torch.zeros(len(tokens), lm.arch.width, dtype=start, device=lm.device, requires_grad=True)
        adam = torch.optim.Adam([deltas], lr=self.lr, betas=_BETAS)
        draw = torch.Generator().manual_seed(self.seed)
        for epoch in range(self.epochs):
            adam.param_groups[0]["lr"] = cosine_rate(self.lr, epoch, self.epochs)
            order = torch.randperm(len(examples), generator=draw).tolist()
            seen: list[float] = []
            for group in gradients(order, self.accumulate, self.variant):
                adam.zero_grad()
                for i in group:
                    chunk = ordinary.chunks[int(torch.randint(len(ordinary.chunks), (), generator=draw))]
                    text = (
                        _read(lm, chunk.tolist(), positions=range(len(chunk)), tokens=tokens, senses=senses)
                        if self.kl
                        else None
                    )
                    with torch.enable_grad():
                        wanted = self._wanted(lm, examples[i], rows[i], deltas)
                        loss = (wanted + self._pull(lm, text, deltas)) / len(group)
                    _require_finite(loss, examples[i], epoch)
                    torch.autograd.backward(loss)
                    seen.append(float(wanted.detach()))
                adam.step()
            yield deltas.detach().clone(), seen

    def _wanted(self, lm: LM, example: TokenisedEdit, rows: Sequence[_Read], deltas: Tensor) -> Tensor:
        """What the example wants, per token."""
        said = [example.target, example.against][: len(rows)]
        each = [
            -row.log_p(lm, deltas).gather(1, torch.tensor(ids, device=deltas.device)[:, None]).mean()
            for row, ids in zip(rows, said, strict=True)
        ]
        return losses([example.edit.direction], each[0][None], each[-1][None])[0]

    def _pull(self, lm: LM, text: _Read | None, deltas: Tensor) -> Tensor | float:
        """The weighted divergence on a chunk of ordinary text."""
        if text is None:
            return 0.0
        with torch.no_grad():
            unedited = text.log_p(lm, None)
        return self.kl * divergence(text.log_p(lm, deltas), unedited, self.variant)


def _attended(lm: LM, answer: TokenisedEdit, vocabulary: int) -> Tensor:
    """``a [vocabulary, k]`` where the tokens of a continuation are predicted."""
    ids = torch.tensor(answer.prompt + answer.target, device=lm.device)
    first = len(answer.prompt) - 1
    with torch.no_grad():
        alpha = lm.model(input_ids=ids[None], use_cache=False, logits_to_keep=1).contextualization[0]
    return weighed(alpha, ids, positions=torch.arange(first, len(ids) - 1, device=ids.device), vocabulary=vocabulary)


def _predicting(lm: LM, answer: TokenisedEdit, *, tokens: Tensor, senses: Tensor) -> _Read:
    """The positions that predict the tokens of a continuation."""
    ids = answer.prompt + answer.target[:-1]
    return _read(lm, ids, positions=range(len(answer.prompt) - 1, len(ids)), tokens=tokens, senses=senses)


def _read(lm: LM, ids: Sequence[int], *, positions: range, tokens: Tensor, senses: Tensor) -> _Read:
    """Some positions of one text, for changes of the pairs of ``tokens [n]`` and ``senses [n]``."""
    row = torch.tensor(ids, device=lm.device)
    at = torch.tensor(list(positions), device=lm.device)
    with torch.no_grad():
        out = lm.model(input_ids=row[None], use_cache=False, logits_to_keep=1)
    pairs = torch.isin(tokens, row).nonzero()[:, 0]
    stands = (row[None] == tokens[pairs, None]).to(at_least_float32(out.hidden).dtype)
    alpha = at_least_float32(out.contextualization[0])[senses[pairs][:, None], at]
    return _Read(at_least_float32(out.hidden[0, at]), torch.einsum("mts,ms->tm", alpha, stands), pairs)


def _require_finite(loss: Tensor, example: TokenisedEdit, epoch: int) -> None:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise NumericalError(f"edit {example.edit.id}: the loss became {value} in epoch {epoch}; lower lr or kl")
