"""Texts that begin alike, in one row: what they share is computed once, and no token sees another text's.

A row is a tree. Every token stands behind the one that it follows, at the position that it has in its own text, and an
attention mask lets it see its own beginning alone: the numbers are those of each text by itself. Where more texts begin
alike than one row holds, their beginning is computed before, and stands in front of every such row as what attention
keeps of it. Questions behind the same five examples, the choices of one dialogue and the targets of one prompt repeat
their beginnings, and an editor that puts demonstrations in front of every prompt repeats nearly all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.models.lm import LM

if TYPE_CHECKING:
    from harness.models.activations import PrefixCache

__all__ = ["Pack", "pack_texts", "packed_inputs", "shared_length", "split_at_fronts"]

_ROOM = 64
"""Columns up to which any text joins a row: short texts fill it, and attention costs little."""

_MOST = 1024
"""Columns up to which a text joins a row of which it repeats half or more of its own tokens."""

_ROW = 512
"""Columns from which on what a row's texts share is better computed before the row."""

_STEM = 32
"""Tokens that a beginning has at least that is computed before its rows: less is not worth a pass."""


@dataclass(frozen=True)
class Pack:
    """One row of texts.

    Attributes:
        ids: its tokens.
        depth: the position of each in its text.
        after: the column of the token that each follows; -1 for a text's first one.
        texts: for each text, which of those given it is, and the columns of its tokens in their order.
        front: the tokens that stand in front of the row, which every text begins with.
    """

    ids: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    texts: dict[int, list[int]] = field(default_factory=dict)
    front: tuple[int, ...] = ()

    @classmethod
    def of(cls, index: int, text: Sequence[int], front: int = 0) -> Pack:
        """A row of one text.

        Args:
            index: which of the given texts it is.
            text: its tokens.
            front: how many of them stand in front of the row.
        """
        made = cls(front=tuple(text[:front]))
        made.add(index, text[front:], ())
        return made

    def add(self, index: int, text: Sequence[int], path: Sequence[int]) -> list[int]:
        """Add a text whose first tokens are in the row already, and give the columns of all of them.

        Args:
            index: which of the given texts it is.
            text: its tokens, without those in front of the row.
            path: the columns of its first tokens, which the row has already.
        """
        columns = list(path)
        for depth in range(len(path), len(text)):
            self.after.append(columns[-1] if columns else -1)
            columns.append(len(self.ids))
            self.ids.append(text[depth])
            self.depth.append(len(self.front) + depth)
        self.texts[index] = columns
        return columns

    def halves(self) -> list[Pack]:
        """Two rows of half the texts each; of one text, itself."""
        parts = np.array_split(np.array(list(self.texts)), 2)
        return [self._only(part.tolist()) for part in parts if len(part)]

    def _only(self, chosen: Sequence[int]) -> Pack:
        made, before, path = Pack(front=self.front), list[int](), list[int]()
        for i in chosen:
            text = [self.ids[column] for column in self.texts[i]]
            path = made.add(i, text, path[: shared_length(text, before)])
            before = text
        return made


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def pack_texts(
    texts: Sequence[tuple[int, ...]],
    marks: Sequence[int],
    free: Sequence[int] = (),
    *,
    most: int = 0,
    widest: int = _MOST,
) -> list[Pack]:
    """Rows that hold every text once, the longest rows first.

    Args:
        texts: tokens.
        marks: what each text carries besides its tokens; texts of one mark share a row.
        free: how many of each text's first tokens may stand in front of its row.
        most: the tokens that may stand in front of a row; none by default.
        widest: columns of a row of several texts at most.
    """
    found: list[Pack] = []
    order = sorted(range(len(texts)), key=lambda i: (marks[i], texts[i]))
    for _, members in groupby(order, key=lambda i: marks[i]):
        tree = _Tree(texts, list(members), free or [0] * len(texts), most)
        for front, some in tree.parts(range(len(tree.order)), 0):
            found += _rows(texts, [tree.order[i] for i in some], front, widest)
    return sorted(found, key=lambda pack: -len(pack.ids))


def split_at_fronts(texts: Sequence[tuple[int, ...]], marks: Sequence[int], most: int) -> list[tuple[int, list[int]]]:
    """Texts that have the same tokens in front, and how many these are; at least one token of each text is left.

    Args:
        texts: tokens.
        marks: what each text carries besides its tokens; texts of one mark share a front.
        most: the tokens that may stand in front.
    """
    found: list[tuple[int, list[int]]] = []
    order = sorted(range(len(texts)), key=lambda i: (marks[i], texts[i]))
    for _, members in groupby(order, key=lambda i: marks[i]):
        tree = _Tree(texts, list(members), [len(text) - 1 for text in texts], most, row=0)
        found += [(front, [tree.order[i] for i in some]) for front, some in tree.parts(range(len(tree.order)), 0)]
    return found


@dataclass(frozen=True)
class _Tree:
    """Texts of one mark in their order, cut into parts that have the same tokens in front."""

    texts: Sequence[tuple[int, ...]]
    order: Sequence[int]
    free: Sequence[int]
    most: int
    row: int | None = None
    """Tokens of a tree that needs no front; by default those of a row."""
    shared: list[int] = field(init=False)
    """Of each text in its order, the tokens that it shares with the one before."""

    def __post_init__(self) -> None:
        known = [self.texts[i] for i in self.order]
        object.__setattr__(self, "shared", [0, *map(shared_length, known, known[1:])])

    @property
    def _enough(self) -> int:
        return _ROW if self.row is None else self.row

    def parts(self, some: range, begun: int) -> Iterator[tuple[int, list[int]]]:
        """The length of a front and places of texts behind it; those in front of a part come before it.

        Args:
            some: places of texts that share their first ``begun`` tokens.
            begun: how long what stands in front of them is.
        """
        if begun + _STEM > self.most or self._size(some, begun) <= self._enough:
            yield begun, list(some)
            return
        loose: list[int] = []
        later: list[tuple[range, int]] = []
        for run in self._runs(some, begun + _STEM):
            if len(run) > 1 and self._size(run, begun) > self._enough:
                stem = min(self.shared[i] for i in run[1:])
                later.append((run, min(stem, self.most, *(self.free[self.order[i]] for i in run))))
            else:
                loose += run
        if loose:
            yield begun, loose
        for run, stem in later:
            yield from self.parts(run, stem)

    def _runs(self, some: range, length: int) -> Iterator[range]:
        """Texts that follow each other and have their first tokens in common, where these may stand in front."""
        start = some.start
        for i in some[1:]:
            room = min(self.free[self.order[i]], self.free[self.order[i - 1]])
            if min(self.shared[i], room) < length:
                yield range(start, i)
                start = i
        if some:
            yield range(start, some.stop)

    def _size(self, some: range, begun: int) -> int:
        """The tokens of a tree of some texts, without those in front of it."""
        first, *others = some
        new = [len(self.texts[self.order[i]]) - max(self.shared[i], begun) for i in others]
        return len(self.texts[self.order[first]]) - begun + sum(new)


def _rows(texts: Sequence[tuple[int, ...]], order: Sequence[int], front: int, widest: int) -> Iterator[Pack]:
    """Rows of sorted texts behind their first ``front`` tokens, which they share."""
    row: Pack | None = None
    before: tuple[int, ...] = ()
    path: list[int] = []
    for i in order:
        text = texts[i][front:]
        shared = shared_length(text, before) if row else 0
        width = len(row.ids) + len(text) - shared if row else 0
        if row is None or width > min(widest, _MOST if 2 * shared >= len(text) else _ROOM):
            if row:
                yield row
            row, shared = Pack(front=texts[i][:front]), 0
        path, before = row.add(i, text, path[:shared]), text
    if row:
        yield row


def packed_inputs(lm: LM, rows: Sequence[Pack], front: PrefixCache | None = None) -> dict[str, Any]:
    """The arguments of a forward pass over some rows, padded on the right; padding sees itself.

    Args:
        lm: the model; it takes masks ``[rows, 1, columns, columns]`` and positions ``[rows, columns]``.
        rows: the rows.
        front: what attention keeps of the tokens in front of them, which are the same for all: one row.
    """
    batch = lm.batch([row.ids for row in rows])
    columns = batch.ids.shape[1]
    begun = len(rows[0].front) if front else 0
    sees = np.zeros((len(rows), columns, begun + columns), dtype=bool)
    sees[:, :, :begun] = True
    sees[:, range(columns), range(begun, begun + columns)] = True
    for row, one in zip(sees, rows, strict=True):
        for column, after in enumerate(one.after):
            if after >= 0:
                row[column] |= row[after]
    dtype = lm.model.dtype
    hidden = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~torch.from_numpy(sees), torch.finfo(dtype).min)
    depth = [one.depth + [0] * (columns - len(one.depth)) for one in rows]
    return {
        "input_ids": batch.ids,
        "attention_mask": hidden[:, None].to(lm.device),
        "position_ids": torch.tensor(depth, device=lm.device),
        **({"past_key_values": front.cache(len(rows)), "use_cache": True} if front else {"use_cache": False}),
    }
