"""What editors of a block's output share: where a text names a subject, and what a block writes over a part of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.errors import ModelError
from harness.models.activations import at_least_float32, capture_activations, row_portions
from harness.models.lm import LM
from harness.patches.patch import Step

__all__ = ["BlockEditor", "Mentions", "StatedText", "add_vector", "mean_states", "part_states", "written_forms"]

_BUDGET = 8192
"""Tokens of one forward pass, padding included."""
_NOTHING = -1


class BlockEditor(Editor):
    """An editor that adds a vector to what one block writes."""

    @abstractmethod
    def at(self, lm: LM) -> int:
        """The block."""

    def block(self, lm: LM) -> str:
        """Its name."""
        return lm.arch.block(self.at(lm))

    def places(self, lm: LM) -> Sequence[str]:
        """The block whose output is changed."""
        return [self.block(lm)]

    def require(self, lm: LM) -> None:
        """See that the block hands on one vector for each token, to which something can be added.

        Raises:
            ModelError: it hands on several, or there is no such layer.
        """
        super().require(lm)
        _require_state(lm, self.block(lm), self.name)


def _require_state(lm: LM, block: str, asker: str) -> None:
    width = capture_activations(lm, lm.batch([lm.encode("The name of")]), outputs=[block]).outputs[block].shape[-1]
    if width != lm.arch.width:
        raise ModelError(
            f"{lm.name}: '{block}' hands on {width} numbers a token, where its matrices write {lm.arch.width}; "
            f"{asker} adds one vector to the state of a token, so take another editor"
        )


def add_vector(hidden: Tensor, vector: Tensor) -> Tensor:
    """States with a vector added in the finer of both types, ``[..., d]``.

    Args:
        hidden: the states, ``[..., d]``.
        vector: the vector, ``[d]``.
    """
    kind = torch.promote_types(hidden.dtype, vector.dtype)
    return (hidden.to(kind) + vector.to(hidden.device, kind)).to(hidden.dtype)


# --- what a block writes ----------------------------------------------------------------------------------------------


class StatedText(NamedTuple):
    """A text and a part of it: the first token of the part, and one past its last."""

    ids: list[int]
    begin: int
    end: int


def part_states(lm: LM, stated: Sequence[StatedText], layer: int, *, early: bool = False) -> list[Tensor]:
    """What a block writes at the tokens of parts of texts, each ``[tokens, d]``, at least in float32.

    Args:
        lm: the model.
        stated: the texts with their parts.
        layer: the block.
        early: whether they are read before the hooks of a patch make something else of them.
    """
    block = lm.arch.block(layer)
    found: dict[int, Tensor] = {}
    for chunk in row_portions([[len(s.ids)] for s in stated], _BUDGET):
        batch = lm.batch([stated[i].ids for i in chunk])
        hidden = at_least_float32(capture_activations(lm, batch, outputs=[block], early=early).outputs[block])
        found |= {i: hidden[row, stated[i].begin : stated[i].end] for row, i in enumerate(chunk)}
    return [found[i] for i in range(len(stated))]


def mean_states(lm: LM, stated: Sequence[StatedText], layer: int) -> Tensor:
    """The means of :func:`part_states` over the tokens of each part, ``[n, d]``.

    Args:
        lm: the model.
        stated: the texts with their parts.
        layer: the block.
    """
    return torch.stack([states.mean(0) for states in part_states(lm, stated, layer)])


# --- where a text names a subject -------------------------------------------------------------------------------------


def written_forms(lm: LM, edit: Edit) -> tuple[tuple[int, ...], ...]:
    """The tokens of a subject at the start of a text, after a space, and in the edit's own prompt.

    Raises:
        DataError: the edit has no subject.
    """
    subject = str(edit.subject)
    texts = ((subject, 0), (f"a {subject}", 2), (edit.text, edit.begins))
    found = (lm.encode(text)[slice(*lm.span(text, subject, start))] for text, start in texts)
    return tuple(dict.fromkeys(map(tuple, found)))


@dataclass(frozen=True, eq=False)
class Mentions:
    """Finds subjects among tokens.

    Attributes:
        written: for each subject the ways in which tokens write it.
        mention: which mention of a subject counts.
        device: where the tokens are.
    """

    written: tuple[tuple[tuple[int, ...], ...], ...]
    mention: int
    device: torch.device

    def find(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """The row, the column of the last token and the subject of each mention that counts.

        Whether a mention counts depends on the tokens up to its last one, so that every way of computing a text agrees.
        Of two subjects that end at one token the longer is meant.
        """
        ids = step.ids.masked_fill(step.mask == 0, _NOTHING)
        ends = torch.full_like(ids, _NOTHING)
        for tokens, owners in self._table:  # the shortest first
            length = tokens.shape[1]
            if length > ids.shape[1]:
                break
            windows = ids.unfold(1, length, 1)
            rows, starts = torch.isin(_hash(windows), _hash(tokens.to(ids))).nonzero(as_tuple=True)
            same = (windows[rows, starts][:, None] == tokens.to(ids)).all(-1)
            found, which = same.nonzero(as_tuple=True)
            ends[rows[found], starts[found] + length - 1] = owners.to(ids)[which]
        rows, columns = (ends != _NOTHING).nonzero(as_tuple=True)
        who = ends[rows, columns]
        before = (rows[:, None] == rows) & (who[:, None] == who) & (columns[:, None] > columns)
        counted = before.sum(1) + 1 == self.mention
        return rows[counted], columns[counted], who[counted]

    def find_new(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`find`, of the columns that a pass computes alone, counted from the first of them."""
        rows, columns, who = self.find(step)
        first = step.ids.shape[1] - step.new
        new = columns >= first
        return rows[new], columns[new] - first, who[new]

    @cached_property
    def _table(self) -> list[tuple[Tensor, Tensor]]:
        """The ways to write subjects by their number of tokens, ascending: ``[ways, tokens]`` and whose they are."""
        owner = {way: who for who, ways in enumerate(self.written) for way in ways}
        lengths = sorted({len(way) for way in owner})
        grouped = [[way for way in owner if len(way) == length] for length in lengths]
        return [
            (torch.tensor(ways, device=self.device), torch.tensor([owner[way] for way in ways], device=self.device))
            for ways in grouped
        ]


def _hash(tokens: Tensor) -> Tensor:
    """A number for each sequence of tokens ``[..., length]``; equal sequences have equal numbers."""
    powers = torch.tensor([pow(1_000_003, i, 1 << 31) for i in range(tokens.shape[-1])], device=tokens.device)
    return (tokens * powers).sum(-1)
