"""Texts that begin alike, in one row: what they share is computed once, and no token sees another text's.

A row is a tree. Every token stands behind the one that it follows, at the position that it has in its own text, and an
attention mask lets it see its own beginning alone: the numbers are those of each text by itself. Canonical examples
repeat their prefixes (pairs of continuations, one article after every sentence), and an editor that puts
demonstrations in front of every prompt repeats nearly all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import numpy as np
import torch

from harness.models.lm import LM

__all__ = ["Pack", "pack_texts", "packed_inputs", "shared_length"]

_ROOM = 64
"""Columns up to which any text joins a row: short texts fill it, and attention costs little."""

_MOST = 1024
"""Columns up to which a text joins a row of which it repeats half or more of its own tokens."""


@dataclass(frozen=True)
class Pack:
    """One row of texts.

    Attributes:
        ids: its tokens.
        depth: the position of each in its text.
        after: the column of the token that each follows; -1 for a text's first one.
        texts: for each text, which of those given it is, and the columns of its tokens in their order.
    """

    ids: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    texts: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, index: int, text: Sequence[int]) -> Pack:
        """A row of one text."""
        return cls(list(text), list(range(len(text))), list(range(-1, len(text) - 1)), {index: list(range(len(text)))})

    def add(self, index: int, text: Sequence[int], path: Sequence[int]) -> list[int]:
        """Add a text whose first tokens are in the row already, and give the columns of all of them.

        Args:
            index: which of the given texts it is.
            text: its tokens.
            path: the columns of its first tokens, which the row has already.
        """
        columns = list(path)
        for depth in range(len(path), len(text)):
            self.after.append(columns[-1] if columns else -1)
            columns.append(len(self.ids))
            self.ids.append(text[depth])
            self.depth.append(depth)
        self.texts[index] = columns
        return columns


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def pack_texts(texts: Sequence[tuple[int, ...]], marks: Sequence[int]) -> list[Pack]:
    """Rows that hold every text once, the longest rows first.

    Args:
        texts: tokens.
        marks: what each text carries besides its tokens; texts of one mark share a row.
    """
    found: list[Pack] = []
    before: tuple[int, ...] = ()
    path: list[int] = []
    mark: int | None = None
    for i in sorted(range(len(texts)), key=lambda i: (marks[i], texts[i])):
        text = texts[i]
        shared = shared_length(text, before)
        width = len(found[-1].ids) + len(text) - shared if found else 0
        if marks[i] != mark or width > (_MOST if 2 * shared >= len(text) else _ROOM):
            found.append(Pack())
            shared = 0
        path, before, mark = found[-1].add(i, text, path[:shared]), text, marks[i]
    return sorted(found, key=lambda pack: -len(pack.ids))


def packed_inputs(lm: LM, rows: Sequence[Pack]) -> dict[str, Any]:
    """The arguments of a forward pass over some rows, padded on the right; padding sees itself.

    Args:
        lm: the model; it takes masks ``[rows, 1, columns, columns]`` and positions ``[rows, columns]``.
        rows: the rows.
    """
    batch = lm.batch([row.ids for row in rows])
    columns = batch.ids.shape[1]
    sees = np.zeros((len(rows), columns, columns), dtype=bool)
    sees[:, range(columns), range(columns)] = True
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
        "use_cache": False,
    }
