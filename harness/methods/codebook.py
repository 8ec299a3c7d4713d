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

_MANY = 64
"""Keys from which on it is quicker to ask first which are near."""
_FEW = 16
"""Keys of a query whose distances are then measured."""
_AT_ONCE = 2**24
"""Numbers of these keys that are in memory at a time."""

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
        room = _Standing(
            list(self.cells),
            torch.cat([self.keys, longer.queries[-1:]]),
            torch.cat([self.squares, self.squares.new_empty(1)]),
        )
        longer._grow(room, len(self.ids))
        return longer._with_keys(room)

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
        room = _Standing([], torch.empty_like(self.queries), self.queries.new_empty(len(self.ids)))
        for edit in range(len(self.ids)):
            self._grow(room, edit)
        return self._with_keys(room)

    @cached_property
    def keys(self) -> Tensor:
        """``K [keys, k]``."""
        return self.centres(self.cells) if self.cells else self.queries[:0]

    @cached_property
    def squares(self) -> Tensor:
        """The square of the norm of each key, ``[keys]``."""
        return self.keys.square().sum(1)

    @cached_property
    def radii(self) -> Tensor:
        """``eps [keys]``."""
        return torch.tensor([cell.radius for cell in self.cells], dtype=self.keys.dtype, device=self.keys.device)

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest key of each query ``[..., k]``, and whether it is within that key's radius."""
        flat, shape = queries.reshape(-1, queries.shape[-1]).to(self.keys), queries.shape[:-1]
        portions = [self._nearest(part) for part in torch.split(flat, max(1, _AT_ONCE // (_FEW * flat.shape[1])))]
        distance, index = (torch.cat(parts) for parts in zip(*portions, strict=True))
        return index.reshape(shape), (distance <= self.radii[index]).reshape(shape)

    def _nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """How far the nearest key of each query ``[n, k]`` is, and which that is."""
        among = _near(queries, self.keys, self.squares)
        if among is None:
            distance, index = _far(queries, self.keys).min(1)
            return distance, index
        distance, place = _far(queries[:, None], self.keys[among])[:, 0].min(1)
        return distance, among.gather(1, place[:, None])[:, 0]

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

    def _grow(self, standing: _Standing, edit: int) -> None:
        """Take one more edit among the keys (algorithm 1 of the paper, radii as in the authors' code).

        With the nearest key at distance ``d``: beyond ``eps_init + eps_i`` a new key; else with the same target it
        joins; with another one a new key, and both radii halved.  Two targets for one query: the later edit takes the
        key, as no radius can tell them apart.
        """
        changed = self._changes(standing, edit) if standing.cells else {0: self.made_cell(edit, self.eps)}
        for at, cell in changed.items():
            standing.put(at, cell, self.centres([cell])[0])

    def _changes(self, standing: _Standing, edit: int) -> dict[int, CodebookKey]:
        """Which keys are other ones with one more edit, or new, by their places."""
        query, new = self.queries[edit], len(standing.cells)
        distance, i = standing.nearest(query)
        near, slack = standing.cells[i], _ROUNDING * float(double(query).norm())
        if distance > self.eps + near.radius:
            return {new: self.made_cell(edit, self.eps)}
        if self.labels[near.last] == self.labels[edit]:
            return {i: self.joined_cell(near, edit, distance=distance, slack=slack)}
        if distance <= slack:
            return {i: self.taken_cell(near, edit)}
        halved, own = self.split_cells(near, edit, distance)
        return {i: halved, new: own}

    def _with_keys(self: Book, standing: _Standing) -> Book:
        """The codebook with other keys, which need not be put together again to be known."""
        book, count = replace(self, cells=tuple(standing.cells)), len(standing.cells)
        vars(book).update(keys=standing.centres[:count], squares=standing.squares[:count])
        return book

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


@dataclass(eq=False)
class _Standing:
    """Keys while they grow.

    Attributes:
        cells: the keys.
        centres: where they stand, one a row, ``[room, k]``, with room for more.
        squares: the square of the norm of each, ``[room]``.
    """

    cells: list[CodebookKey]
    centres: Tensor
    squares: Tensor

    def put(self, at: int, cell: CodebookKey, centre: Tensor) -> None:
        """Another key at a place, or one behind the last.

        Args:
            at: the place.
            cell: the key.
            centre: where it stands, ``[k]``.
        """
        self.cells[at : at + 1] = [cell]
        self.centres[at], self.squares[at] = centre, centre.square().sum()

    def nearest(self, query: Tensor) -> tuple[float, int]:
        """How far the nearest key is from a query ``[k]``, and which that is."""
        count = len(self.cells)
        keys = self.centres[:count]
        among = _near(query[None], keys, self.squares[:count])
        far = (double(keys if among is None else keys[among[0]]) - double(query)).norm(dim=1)
        place = int(far.argmin())
        return float(far[place]), place if among is None else int(among[0, place])


def _far(queries: Tensor, keys: Tensor) -> Tensor:
    """How far queries ``[..., n, k]`` are from keys ``[..., keys, k]``, ``[..., n, keys]``, each measured by itself."""
    return torch.cdist(queries, keys, compute_mode="donot_use_mm_for_euclid_dist")


def _near(queries: Tensor, keys: Tensor, squares: Tensor) -> Tensor | None:
    """Of each query some keys, in their order, one of which is its nearest, ``[n, few]``; None where it may be any.

    In ``||b||^2 - 2ab`` a small distance drowns.  So it says only which keys can be nearest, with sixteen times what
    rounding is expected to move, and how far these are is then measured; that takes a fraction of measuring all.

    Args:
        queries: ``[n, k]``.
        keys: ``[keys, k]``.
        squares: the square of the norm of each key, ``[keys]``.
    """
    if len(keys) < _MANY:
        return None
    least, index = (squares - 2 * queries @ keys.T).topk(_FEW, largest=False)
    moved = 16 * torch.finfo(keys.dtype).eps * keys.shape[1] ** 0.5 * (queries.square().sum(1) + squares.max())
    if bool((least[:, -1] - least[:, 0] <= moved).any()):
        return None
    return index.sort(1).values
