"""GRACE: a codebook beside one layer, whose values replace the layer's output where its keys are near.

Source: Hartvigsen, Sankaranarayanan, Palangi, Kim, Ghassemi 2023, "Aging with GRACE: Lifelong Model Editing with
Discrete Key-Value Adaptors", arXiv 2211.11031, section 2, and the authors' code (Thartvigsen/GRACE at 457f3b7,
grace/editors/grace.py).  There one token of each input is compared, whose place the caller sets; here every position
is, each for itself, so that scoring and generation agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.hyperparameters import Count, NotNegative, Positive
from harness.errors import ModelError, NumericalError, UsageError
from harness.methods.descent import first_matrix
from harness.methods.keys import layer_at_depth
from harness.methods.supervised_tokens import SupervisedTokens, supervise_target
from harness.models.activations import at_least_float32, capture_activations, first_output
from harness.models.lm import LM
from harness.patches.delta import double
from harness.patches.patch import Part, Patch, Step, patched

__all__ = ["Cell", "Codebook", "Grace"]

_GAP = 1e-5  # by which two split radii miss each other, as in the authors' code
_ROUNDING = 1e-5  # of a key's norm: as far as one prompt's keys in two forward passes may lie apart


@dataclass(frozen=True)
class Cell:
    """One key.

    Attributes:
        maker: the position of the edit whose query is the key ``K_i``.
        last: the position of the edit whose label and value ``V_i`` it has; the maker, or a later one that joined.
        radius: ``eps_i``.
    """

    maker: int
    last: int
    radius: float


@dataclass(frozen=True, eq=False)
class Codebook(Part):
    """The edits in their order, and the keys that follow from them.

    Whatever belongs to one edit stands at one position, so that labels, queries and values cannot come apart; keys and
    radii are a function of the edits in their order, so that any of them can be taken back.

    Attributes:
        ids: the edits.
        labels: their targets.
        queries: what entered the layer at the last token of each edit's prompt, ``[edits, k]``.
        values: what shall leave it, ``[edits, d]``.
        eps: the radius of a new key, ``eps_init``.
        cells: the keys.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    queries: Tensor
    values: Tensor
    eps: float
    cells: tuple[Cell, ...]

    @classmethod
    def empty(cls, key: int, width: int, eps: float, device: torch.device) -> Codebook:
        """A codebook without edits, for queries of size ``key`` and values of size ``width``.

        Args:
            key: numbers of a query.
            width: numbers of a value.
            eps: the radius of a new key, ``eps_init``.
            device: where its tensors are.
        """
        return cls((), (), torch.empty(0, key, device=device), torch.empty(0, width, device=device), eps, ())

    def added(self, name: str, *, label: str, query: Tensor, value: Tensor) -> Codebook:
        """The codebook with one more edit: its id, its target, ``query [k]`` and ``value [d]``.

        Args:
            name: the edit's id.
            label: its target.
            query: what entered the layer at the last token of its prompt, ``[k]``.
            value: what shall leave it, ``[d]``.
        """
        queries = torch.cat([self.queries, query[None].to(self.queries)])
        values = torch.cat([self.values, value[None].to(self.values)])
        labels = (*self.labels, label)
        cells = _grown(self.cells, queries=queries, labels=labels, eps=self.eps)
        return Codebook((*self.ids, name), labels, queries, values, self.eps, cells)

    def without(self, name: str) -> Codebook:
        """The codebook as if one edit had never been made.

        Raises:
            UsageError: there is no such edit.
        """
        if name not in self.ids:
            raise UsageError(f"the codebook holds no edit '{name}'; it holds {', '.join(self.ids) or 'none'}")
        kept = [i for i, other in enumerate(self.ids) if other != name]
        return self._replayed(kept)

    def valued(self, value: Tensor) -> Codebook:
        """The codebook with another value ``[d]`` for its last edit."""
        values = torch.cat([self.values[:-1], value[None]])
        return Codebook(self.ids, self.labels, self.queries, values, self.eps, self.cells)

    @cached_property
    def keys(self) -> Tensor:
        """``K [keys, k]``."""
        return self.queries[[cell.maker for cell in self.cells]]

    @cached_property
    def radii(self) -> Tensor:
        """``eps [keys]``."""
        return torch.tensor([cell.radius for cell in self.cells], dtype=self.keys.dtype, device=self.keys.device)

    @cached_property
    def table(self) -> Tensor:
        """``V [keys, d]``."""
        return self.values[[cell.last for cell in self.cells]]

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest key of each query ``[..., k]``, and whether it is within that key's radius."""
        flat = queries.reshape(-1, queries.shape[-1]).to(self.keys)
        # Not by ||a||^2 - 2ab + ||b||^2, in which a small distance drowns.
        far = torch.cdist(flat, self.keys, compute_mode="donot_use_mm_for_euclid_dist")
        distance, index = far.min(1)
        shape = queries.shape[:-1]
        return index.reshape(shape), (distance <= self.radii[index]).reshape(shape)

    def replaced(self, hidden: Tensor, entered: Tensor, table: Tensor) -> Tensor:
        """The layer's output ``[batch, new, d]`` where it stays, the nearest key's row of ``table [keys, d]`` else.

        Args:
            hidden: the layer's output, ``[batch, new, d]``.
            entered: what entered the layer, ``[batch, new, k]``.
            table: a value for each key, ``[keys, d]``.
        """
        index, inside = self.nearest(entered.detach())
        values = table[index].to(hidden.device, hidden.dtype)
        return torch.where(inside[..., None].to(hidden.device), values, hidden)

    def __call__(self, hidden: Tensor, step: Step) -> Tensor:
        """A hook (:data:`harness.patches.patch.Hook`)."""
        assert step.entered is not None
        return self.replaced(hidden, step.entered, self.table) if self.cells else hidden

    def tensors(self) -> dict[str, Tensor]:
        """The queries and values."""
        return {"queries": self.queries, "values": self.values}

    def settings(self) -> dict[str, Any]:
        """The edits, their targets, and the radius of a new key."""
        return {"ids": list(self.ids), "labels": list(self.labels), "eps": self.eps}

    @classmethod
    def restore(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Codebook:
        """The codebook, its keys found anew."""
        queries, values = (tensors[name].to(lm.device) for name in ("queries", "values"))
        read = cls(tuple(settings["ids"]), tuple(settings["labels"]), queries, values, settings["eps"], ())
        return read._replayed(range(len(read.ids)))

    def joined(self, later: Codebook) -> Codebook:
        """The later codebook if it goes on from this one; if both are independent, its edits after these."""
        count = len(self.ids)
        if later.ids[:count] == self.ids and torch.equal(later.queries[:count].to(self.queries), self.queries):
            return later
        grown = self
        for i, name in enumerate(later.ids):
            grown = grown.added(name, label=later.labels[i], query=later.queries[i], value=later.values[i])
        return grown

    def _replayed(self, kept: Sequence[int]) -> Codebook:
        """Some of the edits, made again in their order."""
        queries, values = self.queries[list(kept)], self.values[list(kept)]
        labels = tuple(self.labels[i] for i in kept)
        cells: tuple[Cell, ...] = ()
        for i in range(len(kept)):
            cells = _grown(cells, queries=queries[: i + 1], labels=labels[: i + 1], eps=self.eps)
        return Codebook(tuple(self.ids[i] for i in kept), labels, queries, values, self.eps, cells)


def _grown(cells: tuple[Cell, ...], *, queries: Tensor, labels: Sequence[str], eps: float) -> tuple[Cell, ...]:
    """The keys after the last of some edits (algorithm 1 of the paper, radii as in the authors' code).

    With the nearest key at distance ``d``: beyond ``eps_init + eps_i`` a new key; else with the same target ``eps_i``
    becomes at least ``d``; with another one a new key of radius ``d / 2``, and ``eps_i`` becomes ``d / 2`` less a gap.
    Two targets for one query: the later edit takes the key, as no radius can tell them apart.
    """
    edit = len(labels) - 1
    if not cells:
        return (Cell(edit, edit, eps),)
    query = double(queries[-1])
    distances = (double(queries[[cell.maker for cell in cells]]) - query).norm(dim=1)
    distance, i = float(distances.min()), int(distances.argmin())
    near, slack = cells[i], _ROUNDING * float(query.norm())
    if distance > eps + near.radius:
        return (*cells, Cell(edit, edit, eps))
    if labels[near.last] == labels[edit]:
        # A hair beyond d, or rounding would decide whether the edit holds for its own prompt.
        radius = near.radius if distance <= near.radius else distance + slack
        return (*cells[:i], Cell(near.maker, edit, radius), *cells[i + 1 :])
    if distance <= slack:
        return (*cells[:i], Cell(near.maker, edit, near.radius), *cells[i + 1 :])
    halved = Cell(near.maker, near.last, distance / 2 - _GAP)
    return (*cells[:i], halved, *cells[i + 1 :], Cell(edit, edit, distance / 2))


@dataclass(frozen=True)
class Grace(Editor):
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
    seams = frozenset({"activations"})
    batch = False

    layer: int | None = None
    site: Literal["mlp", "down", "first"] = "mlp"
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

    def places(self, lm: LM) -> Sequence[str]:
        """The module whose output is replaced."""
        return [self._module(lm)]

    def require(self, lm: LM) -> None:
        """See that the site's output follows from what enters it, as a value is looked up by that alone.

        Raises:
            ModelError: it does not, or cannot be computed.
        """
        super().require(lm)
        name = self._module(lm)
        seen = capture_activations(lm, lm.batch([lm.encode("The name of")]), inputs=[name], outputs=[name])
        try:
            with torch.no_grad():
                own = first_output(lm.module(name).forward(seen.inputs[name])).reshape(seen.outputs[name].shape)
            same = torch.allclose(own, seen.outputs[name], rtol=1e-2, atol=1e-2 * float(own.abs().max()))
        except (TypeError, AttributeError, IndexError, KeyError, ValueError, RuntimeError):
            same = False
        if not same:
            raise ModelError(
                f"{lm.name}: '{name}' needs more than what enters it, but grace looks a value up by that alone; take "
                "--set site=down, or another editor"
            )

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """One edit after the other; the memory is the codebook."""
        if memory is not None and not isinstance(memory, Codebook):
            raise UsageError(f"the memory is a {type(memory).__name__} of another editor; start again without memory")
        if not edits:
            return Patch(memory=memory)
        book = memory
        for edit in edits:
            book = self._learned(lm, book, edit)
        assert book is not None
        return Patch(hooks={self._module(lm): book}, memory=book)

    def _layer(self, lm: LM) -> int:
        return layer_at_depth(lm, 0.75) if self.layer is None else self.layer

    def _module(self, lm: LM) -> str:
        if self.site == "first":
            return first_matrix(lm, self._layer(lm), asker=self.name)
        part = lm.arch.mlp_of if self.site == "mlp" else lm.arch.down_of
        return part(self._layer(lm))

    def _learned(self, lm: LM, book: Codebook | None, edit: Edit) -> Codebook:
        """The codebook with one more edit, its value trained."""
        rows = supervise_target(lm, edit)
        query, output = self._at_the_end(lm, rows)
        book = book or Codebook.empty(len(query), len(output), self.eps, query.device)
        grown = book.added(edit.id, label=edit.target.strip(), query=query, value=output)
        cell = next(i for i, cell in enumerate(grown.cells) if cell.last == len(grown.ids) - 1)
        # A joined key goes on from the value that it has.
        start = book.table[cell] if cell < len(book.cells) else self._first_value(grown.values[-1], len(book.ids))
        return grown.valued(self._trained(lm, grown, cell, start, rows))

    def _first_value(self, output: Tensor, count: int) -> Tensor:
        """What the value of edit number ``count`` starts from, ``[d]``, where it has a new key."""
        if self.start == "warm":
            return output
        draw = torch.Generator().manual_seed(self.start_seed * 1_000_003 + count)
        return torch.rand(output.shape, generator=draw, dtype=torch.float64).to(output)

    def _at_the_end(self, lm: LM, rows: SupervisedTokens) -> tuple[Tensor, Tensor]:
        """What enters the site at the prompt's last token, ``[k]``, and what the site itself makes of it, ``[d]``."""
        name = self._module(lm)
        at = rows.column[0]
        entered = capture_activations(lm, rows.batch, inputs=[name]).inputs[name][0, at]
        with torch.no_grad():
            # Experts take rows and columns of tokens.
            output = first_output(lm.module(name).forward(entered[None, None])).reshape(-1)
        return at_least_float32(entered), at_least_float32(output)

    def _trained(self, lm: LM, book: Codebook, cell: int, start: Tensor, rows: SupervisedTokens) -> Tensor:
        """The value of one key after Adam on the NLL of the target, all other values as they are."""
        name = self._module(lm)
        value = start.clone().requires_grad_()
        adam = torch.optim.Adam([value], lr=self.edit_lr)
        here = torch.tensor([cell], device=book.table.device)

        def hook(hidden: Tensor, step: Step) -> Tensor:
            assert step.entered is not None
            # The site's own output: a hook of earlier edits, which this codebook holds too, may have replaced it.
            own = first_output(lm.module(name).forward(step.entered)).reshape(hidden.shape)
            return book.replaced(own, step.entered, book.table.index_put((here,), value[None]))

        with patched(lm, Patch(hooks={name: hook})), torch.enable_grad():
            nll = rows.above(lm, self._layer(lm))
            for i in range(self.n_iter):
                loss = nll()
                if not bool(torch.isfinite(loss.detach())):
                    raise NumericalError(
                        f"edit {rows.edit.id}: the loss at {name} became {float(loss.detach())} after {i} steps; "
                        "lower edit_lr, or load the model in float32"
                    )
                adam.zero_grad()
                torch.autograd.backward(loss)
                adam.step()
        return value.detach()
