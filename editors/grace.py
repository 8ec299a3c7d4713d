"""GRACE: a codebook beside one layer, whose values replace the layer's output where its keys are near.

Source: Hartvigsen, Sankaranarayanan, Palangi, Kim, Ghassemi 2023, "Aging with GRACE: Lifelong Model Editing with
Discrete Key-Value Adaptors", arXiv 2211.11031, section 2, and the authors' code (Thartvigsen/GRACE at 457f3b7,
grace/editors/grace.py).  There one token of each input is compared, whose place the caller sets; here every position
is, each for itself, so that scoring and generation agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.editor import own_memory
from harness.editing.hyperparameters import Count, NotNegative, Positive
from harness.methods.codebook import EditBook
from harness.methods.site import Site, SiteEditor, own_output
from harness.methods.supervised_tokens import SupervisedTokens, supervise_target
from harness.models.lm import LM
from harness.patches.patch import Patch, Step

__all__ = ["Codebook", "Grace"]


@dataclass(frozen=True, eq=False)
class Codebook(EditBook):
    """Keys, and for each the value of the edit that joined it last.

    Attributes:
        queries: what entered the layer at the last token of each edit's prompt, ``[edits, k]``.
        values: what shall leave it, ``[edits, d]``.
    """

    def valued(self, value: Tensor) -> Codebook:
        """The codebook with another value ``[d]`` for its last edit."""
        book = replace(self, values=torch.cat([self.values[:-1], value[None]]))
        vars(book).update(keys=self.keys, squares=self.squares)
        return book

    @cached_property
    def latest(self) -> Tensor:
        """The edit whose value each key has, ``[keys]``."""
        return torch.tensor([cell.last for cell in self.cells], device=self.values.device)

    @cached_property
    def _read(self) -> list[tuple[Tensor, tuple[Tensor, Tensor]]]:
        return []

    def __call__(self, hidden: Tensor, step: Step) -> Tensor:
        """A hook (:data:`harness.patches.patch.Hook`)."""
        assert step.entered is not None
        return _replaced(hidden, *self._found(step.entered.detach())) if self.cells else hidden

    def _found(self, entered: Tensor) -> tuple[Tensor, Tensor]:
        """Where a key is near, and its value there.

        While another value is trained the same enters at every step, and what was found is kept.
        """
        if torch.is_grad_enabled() and self._read and torch.equal(self._read[0][0], entered):
            return self._read[0][1]
        index, inside = self.nearest(entered)
        found = inside, self.values[self.latest[index]]
        self._read[:] = [(entered, found)] if torch.is_grad_enabled() else []
        return found


def _replaced(hidden: Tensor, inside: Tensor, values: Tensor) -> Tensor:
    """The layer's output ``[batch, new, d]`` where it stays, a key's value else.

    Args:
        hidden: the layer's output, ``[batch, new, d]``.
        inside: which positions are within the radius of their nearest key, ``[batch, new]``.
        values: the values of these keys, ``[batch, new, d]``.
    """
    return torch.where(inside[..., None].to(hidden.device), values.to(hidden.device, hidden.dtype), hidden)


@dataclass(frozen=True)
class Grace(SiteEditor):
    """Adam on a value that replaces the output of one layer's module for queries near the edit's own.

    Attributes:
        layer: the layer; by default one at 75 % of the depth, where the published settings lie (73 to 89 %).
        site: whose output is replaced and what enters as query: the feed-forward module ``mlp``, its down-projection
            ``down``, or its ``first`` matrix, before the activation function (their file for GPT-2 XL).
        start: what a new value starts from: the site's own output (``warm``), or uniform random numbers (``cold``).
        start_seed: the seed of these.
        eps: the radius of a new key, ``eps_init``, in the units of what enters the site.
        n_iter: updates of a value.
        edit_lr: Adam's learning rate.
    """

    name = "grace"
    batch = False

    layer: int | None = None
    site: Site = "mlp"
    start: Literal["warm", "cold"] = "warm"
    start_seed: int = 0
    eps: NotNegative = 1.0
    n_iter: Count = 100
    edit_lr: Positive = 1.0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # Thartvigsen/GRACE at a1d8c8a, grace/config: keys as there, what enters the feed-forward part; there the value
        # stands after its first matrix (site=first).
        "gpt2-xl": {"layer": 35, "n_iter": 100},
        # zjunlp/EasyEdit at 14cea82, hparams/GRACE.
        "gpt-j-6b": {"layer": 25, "site": "down", "n_iter": 200},
        "llama-2-7b-hf": {"layer": 27, "site": "down", "n_iter": 50},
        # The shipped models: tuned on the edit set's tuning rows.
        "mini-llama": {"layer": 2, "eps": 6.5, "n_iter": 30, "edit_lr": 0.5},
        "mini": {"layer": 2, "eps": 10.5, "n_iter": 30, "edit_lr": 0.5},
    }

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """One edit after the other; the memory is the codebook."""
        book = own_memory(memory, Codebook)
        if not edits:
            return Patch(memory=memory)
        for edit in edits:
            book = self._learned(lm, book, edit)
        assert book is not None
        return Patch(hooks={self.module(lm): book}, memory=book)

    def _learned(self, lm: LM, book: Codebook | None, edit: Edit) -> Codebook:
        """The codebook with one more edit, its value trained."""
        rows = supervise_target(lm, edit)
        query, output = self.at_the_end(lm, rows)
        book = book or Codebook.empty(len(query), len(output), eps=self.eps, device=query.device)
        held = (book.queries.shape[1], book.values.shape[1])
        self.require_widths(lm, "codebook", held=held, here=(len(query), len(output)))
        grown = book.added(edit.id, label=edit.target.strip(), query=query, value=output)
        cell = next(i for i, cell in enumerate(grown.cells) if cell.last == len(grown.ids) - 1)
        # A joined key goes on from the value that it has.
        joined = cell < len(book.cells)
        start = book.values[book.cells[cell].last] if joined else self._first_value(grown.values[-1], len(book.ids))
        return grown.valued(self._trained(lm, grown, cell, start, rows))

    def _first_value(self, output: Tensor, count: int) -> Tensor:
        """What the value of edit number ``count`` starts from, ``[d]``, where it has a new key."""
        if self.start == "warm":
            return output
        draw = torch.Generator().manual_seed(self.start_seed * 1_000_003 + count)
        return torch.rand(output.shape, generator=draw, dtype=torch.float64).to(output)

    def _trained(self, lm: LM, book: Codebook, cell: int, start: Tensor, rows: SupervisedTokens) -> Tensor:
        """The value of one key after Adam on the NLL of the target, all other values as they are."""
        value = start.clone().requires_grad_()
        known: list[tuple[Tensor, tuple[Tensor, Tensor, Tensor]]] = []

        def read(entered: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Where a key is near, where it is this one, and what the codebook says there.

            What enters the module does not depend on the value, so that all steps share one reading of a codebook that
            may be long.
            """
            if not known or not torch.equal(known[0][0], entered):
                index, inside = book.nearest(entered)
                known[:] = [(entered, (inside, (index == cell)[..., None], book.values[book.latest[index]]))]
            return known[0][1]

        def hook(hidden: Tensor, step: Step) -> Tensor:
            assert step.entered is not None
            own = own_output(lm, self.module(lm), hidden=hidden, step=step)
            inside, here, values = read(step.entered.detach())
            return _replaced(own, inside, torch.where(here, value, values))

        self.descend(lm, rows, [value], hook=hook, steps=self.n_iter, lr=self.edit_lr)
        return value.detach()
