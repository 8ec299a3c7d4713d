"""Codebooks beside a model: keys made of what was read at the end of edited prompts, each with a radius of deferral.

Source: Hartvigsen, Sankaranarayanan, Palangi, Kim, Ghassemi 2023, "Aging with GRACE: Lifelong Model Editing with
Discrete Key-Value Adaptors", arXiv 2211.11031, algorithm 1, and the authors' code (Thartvigsen/GRACE at 457f3b7).
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from harness.errors import UsageError
from harness.models.lm import LM
from harness.patches.delta import double
from harness.patches.patch import Part

__all__ = ["GAP", "CodebookKey", "EditBook"]

Book = TypeVar("Book", bound="EditBook")

GAP = 1e-5
"""By which two split radii miss each other, as in the authors' code."""

_ROUNDING = 1e-5  # of a key's norm: as far as one prompt's keys in two forward passes may lie apart


@dataclass(frozen=True)
class CodebookKey:
    """One key.

    Attributes:
        members: the positions of the edits that made it, in their order.
        radius: ``eps_i``.
    """

    members: tuple[int, ...]
    radius: float

    @property
    def maker(self) -> int:
        """The position of the edit that was its first."""
        return self.members[0]

    @property
    def last(self) -> int:
        """The position of the edit whose label it has; the maker, or a later one that joined."""
        return self.members[-1]


@dataclass(frozen=True, eq=False)
class EditBook(Part, ABC):
    """The edits in their order, and the keys that follow from them.

    Whatever belongs to one edit stands at one position, so that labels, queries and values cannot come apart; keys and
    radii are a function of the edits in their order, so that any of them can be taken back.  What a key is, and what
    becomes of it when an edit joins it or halves its radius, is a child's; here is what GRACE does.

    Attributes:
        ids: the edits.
        labels: their targets.
        queries: what was read at the last token of each edit's prompt, ``[edits, k]``.
        values: what each edit stores, ``[edits, d]``.
        eps: the radius of a new key, ``eps_init``.
        cells: the keys.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    queries: Tensor
    values: Tensor
    eps: float
    cells: tuple[CodebookKey, ...]

    @classmethod
    def empty(cls: type[Book], key: int, width: int, *, eps: float, device: torch.device) -> Book:
        """A codebook without edits, for queries of size ``key`` and values of size ``width``.

        Args:
            key: numbers of a query.
            width: numbers of a value.
            eps: the radius of a new key, ``eps_init``.
            device: where its tensors are.
        """
        return cls((), (), torch.empty(0, key, device=device), torch.empty(0, width, device=device), eps, ())

    def added(self: Book, name: str, *, label: str, query: Tensor, value: Tensor) -> Book:
        """The codebook with one more edit: its id, its target, ``query [k]`` and ``value [d]``.

        Args:
            name: the edit's id.
            label: its target.
            query: what was read at the last token of its prompt, ``[k]``.
            value: what it stores, ``[d]``.
        """
        longer = replace(
            self,
            ids=(*self.ids, name),
            labels=(*self.labels, label),
            queries=torch.cat([self.queries, query[None].to(self.queries)]),
            values=torch.cat([self.values, value[None].to(self.values)]),
        )
        return replace(longer, cells=longer._grown(self.cells, len(self.ids)))

    def without(self: Book, name: str) -> Book:
        """The codebook as if one edit had never been made.

        Raises:
            UsageError: there is no such edit.
        """
        if name not in self.ids:
            raise UsageError(f"the codebook holds no edit '{name}'; it holds {', '.join(self.ids) or 'none'}")
        kept = [i for i, other in enumerate(self.ids) if other != name]
        return replace(
            self,
            ids=tuple(self.ids[i] for i in kept),
            labels=tuple(self.labels[i] for i in kept),
            queries=self.queries[kept],
            values=self.values[kept],
        ).replayed()

    def replayed(self: Book) -> Book:
        """The keys found anew, one edit after the other."""
        cells: tuple[CodebookKey, ...] = ()
        for edit in range(len(self.ids)):
            cells = self._grown(cells, edit)
        return replace(self, cells=cells)

    @cached_property
    def keys(self) -> Tensor:
        """``K [keys, k]``."""
        return self.centres(self.cells)

    @cached_property
    def radii(self) -> Tensor:
        """``eps [keys]``."""
        return torch.tensor([cell.radius for cell in self.cells], dtype=self.keys.dtype, device=self.keys.device)

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest key of each query ``[..., k]``, and whether it is within that key's radius."""
        flat = queries.reshape(-1, queries.shape[-1]).to(self.keys)
        # Not by ||a||^2 - 2ab + ||b||^2, in which a small distance drowns.
        far = torch.cdist(flat, self.keys, compute_mode="donot_use_mm_for_euclid_dist")
        distance, index = far.min(1)
        shape = queries.shape[:-1]
        return index.reshape(shape), (distance <= self.radii[index]).reshape(shape)

    # --- what a key is ------------------------------------------------------------------------------------------------

    def centres(self, cells: Sequence[CodebookKey]) -> Tensor:
        """Where some keys stand, ``[cells, k]``: at the query of the edit that made each."""
        return self.queries[[cell.maker for cell in cells]]

    def made_cell(self, edit: int, radius: float) -> CodebookKey:
        """A new key of one edit."""
        return CodebookKey((edit,), radius)

    def joined_cell(self, cell: CodebookKey, edit: int, *, distance: float, slack: float) -> CodebookKey:
        """A key that one more edit of its target joins.

        Args:
            cell: the key.
            edit: the edit.
            distance: how far the key is from the edit's query.
            slack: how much of that is rounding.
        """
        # A hair beyond d, or rounding would decide whether the edit holds for its own prompt.
        radius = cell.radius if distance <= cell.radius else distance + slack
        return CodebookKey((*cell.members, edit), radius)

    def taken_cell(self, cell: CodebookKey, edit: int) -> CodebookKey:
        """A key that an edit of another target takes over, as its query is the very same."""
        return CodebookKey((*cell.members, edit), cell.radius)

    def split_cells(self, cell: CodebookKey, edit: int, distance: float) -> tuple[CodebookKey, CodebookKey]:
        """A key whose radius is halved, and that of an edit of another target.

        Args:
            cell: the key.
            edit: the edit.
            distance: how far the key is from the edit's query.
        """
        return replace(cell, radius=distance / 2 - GAP), CodebookKey((edit,), distance / 2)

    def _grown(self, cells: tuple[CodebookKey, ...], edit: int) -> tuple[CodebookKey, ...]:
        """The keys after one more edit (algorithm 1 of the paper, radii as in the authors' code).

        With the nearest key at distance ``d``: beyond ``eps_init + eps_i`` a new key; else with the same target it
        joins; with another one a new key, and both radii halved.  Two targets for one query: the later edit takes the
        key, as no radius can tell them apart.
        """
        if not cells:
            return (self.made_cell(edit, self.eps),)
        query = double(self.queries[edit])
        distances = (double(self.centres(cells)) - query).norm(dim=1)
        distance, i = float(distances.min()), int(distances.argmin())
        near, slack = cells[i], _ROUNDING * float(query.norm())
        if distance > self.eps + near.radius:
            return (*cells, self.made_cell(edit, self.eps))
        if self.labels[near.last] == self.labels[edit]:
            return (*cells[:i], self.joined_cell(near, edit, distance=distance, slack=slack), *cells[i + 1 :])
        if distance <= slack:
            return (*cells[:i], self.taken_cell(near, edit), *cells[i + 1 :])
        halved, own = self.split_cells(near, edit, distance)
        return (*cells[:i], halved, *cells[i + 1 :], own)

    # --- kept on disk -------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """The queries and values."""
        return {"queries": self.queries, "values": self.values}

    def settings(self) -> dict[str, Any]:
        """The edits, their targets, and the radius of a new key."""
        return {"ids": list(self.ids), "labels": list(self.labels), "eps": self.eps}

    @classmethod
    def restore(cls: type[Book], lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Book:
        """The codebook, its keys found anew."""
        queries, values = (tensors[name].to(lm.device) for name in ("queries", "values"))
        read = cls(tuple(settings["ids"]), tuple(settings["labels"]), queries, values, settings["eps"], ())
        return read.replayed()

    def continues(self, earlier: EditBook) -> bool:
        """Whether its first edits are all of an earlier one's."""
        count = len(earlier.ids)
        return self.ids[:count] == earlier.ids and torch.equal(
            self.queries[:count].to(earlier.queries), earlier.queries
        )

    def joined(self: Book, later: Book) -> Book:
        """The later codebook if it goes on from this one; if both are independent, its edits after these."""
        if later.continues(self):
            return later
        grown = self
        for i, name in enumerate(later.ids):
            grown = grown.added(name, label=later.labels[i], query=later.queries[i], value=later.values[i])
        return grown
