"""MELO: a block of low-rank adapters for every few edits, switched on by a codebook where a text is near to theirs.

Source: Yu, Chen, Zhou, He 2024, "MELO: Enhancing Model Editing with Neuron-Indexed Dynamic LoRA", AAAI 2024, arXiv
2312.11795, and the authors' code (ECNU-ICALK/MELO at ed097eb, peft_egg/src/peft/tuners/melo.py, melo/algs/lora.py).
What one matrix gives is the query; the clusters of the codebook are those of edits whose queries are near and whose
targets are alike, and the block of the edit nearest within a cluster is added to the matrices of later layers.

There one position decides for all of a pass, the last; here a block stays from the position that is near to a cluster
on, so that scoring and generation agree (``routing``).  Their key of an edit is what is read at the end of its text,
the target included, which a question does not reach; here it is what is read at the end of its prompt.  Targets are
alike there where the sums of their tokens are; and two targets of one and the same query switch both off there, where
here the later one stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.editor import Editor, own_memory
from harness.editing.hyperparameters import Count, NotNegative, Positive
from harness.errors import ModelError, UsageError
from harness.methods.codebook import GAP, CodebookKey, EditBook
from harness.methods.descent import feed_forward_matrices, named_matrices
from harness.methods.keys import layer_at_depth
from harness.methods.routing import RunningValues, last_real
from harness.methods.site import descend_under
from harness.methods.supervised_tokens import SupervisedTokens, supervise_targets
from harness.models.activations import at_least_float32, capture_activations
from harness.models.lm import LM
from harness.patches.delta import double
from harness.patches.patch import Hook, Part, Patch, Step

__all__ = ["Blocks", "Cluster", "Clusters", "Indexed", "Melo", "Routing"]

Routing = Literal["onward", "pass"]
"""Which position decides, see :class:`Melo`."""

_CHOSEN = "melo"  # under which the codebook leaves the block of each position
_NONE = -1
_HALVED = 20  # updates after which the learning rate is halved, in the authors' code


@dataclass(frozen=True)
class Cluster(CodebookKey):
    """One key.

    Attributes:
        centre: the edits of whose queries it is the mean.
        points: the edits whose blocks it can switch on; a split forgets those that it leaves outside.
    """

    centre: tuple[int, ...] = ()
    points: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Clusters(EditBook):
    """Queries of edits in clusters; a value is the number of the edit's block.

    It stands behind the matrix whose output is the query, changes nothing there, and leaves the block of each position
    for the adapters.

    Attributes:
        queries: what left the matrix at the last token of each edit's prompt, ``[edits, k]``.
        values: the block of each edit, ``[edits, 1]``.
        routing: which position decides.
    """

    routing: Routing = "onward"
    _running: RunningValues = field(
        default_factory=lambda: RunningValues("largest", asker="melo", cure="take routing=pass"),
        init=False,
        repr=False,
        metadata={"kept": False},
    )

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return int(self.values.max()) + 1 if len(self.ids) else 0

    def centres(self, cells: Sequence[CodebookKey]) -> Tensor:
        """The mean query of each cluster, ``[cells, k]``."""
        return torch.stack([self.queries[list(_cluster(cell).centre)].mean(0) for cell in cells])

    def made_cell(self, edit: int, radius: float) -> CodebookKey:
        """A new cluster of one edit."""
        return Cluster((edit,), radius, (edit,), (edit,))

    def joined_cell(self, cell: CodebookKey, edit: int, *, distance: float, slack: float) -> CodebookKey:  # noqa: ARG002
        """The cluster about the mean of its edits, as wide as the farthest asks for and no less than ``eps``."""
        points = (*_cluster(cell).points, edit)
        queries = double(self.queries[list(points)])
        farthest = float((queries - queries.mean(0)).norm(dim=1).max())
        return Cluster((*cell.members, edit), max(farthest + slack, self.eps), points, points)

    def taken_cell(self, cell: CodebookKey, edit: int) -> CodebookKey:
        """The cluster of the later edit alone."""
        return Cluster((*cell.members, edit), cell.radius, (edit,), (edit,))

    def split_cells(self, cell: CodebookKey, edit: int, distance: float) -> tuple[CodebookKey, CodebookKey]:
        """Both with half the distance as radius; the first forgets the edits that lie outside."""
        old, radius = _cluster(cell), distance / 2 - GAP
        queries = double(self.queries)
        far = (queries[list(old.points)] - queries[list(old.centre)].mean(0)).norm(dim=1)
        kept = tuple(point for point, d in zip(old.points, far.tolist(), strict=True) if d <= radius)
        return replace(old, radius=radius, points=kept), self.made_cell(edit, distance / 2 + GAP)

    def chosen(self, queries: Tensor) -> Tensor:
        """The block that each query ``[..., k]`` switches on, -1 for none, ``[...]``."""
        index, inside = self.nearest(queries)
        flat, near = queries.reshape(-1, queries.shape[-1]).to(self.queries), index.reshape(-1)
        owners = [(i, point) for i, cell in enumerate(self.cells) for point in _cluster(cell).points]
        cell, point = torch.tensor(owners, device=flat.device).reshape(-1, 2).T
        far = torch.cdist(flat, self.queries[point], compute_mode="donot_use_mm_for_euclid_dist")
        distance, best = far.masked_fill(cell[None] != near[:, None], torch.inf).min(1)
        found = self.values[point[best], 0].long()
        return torch.where(inside.reshape(-1) & distance.isfinite(), found, _NONE).reshape(index.shape)

    def __call__(self, hidden: Tensor, step: Step) -> Tensor:
        """A hook (:data:`harness.patches.patch.Hook`)."""
        if self.cells:
            step.said[_CHOSEN] = self.routed(hidden.detach(), step)
        return hidden

    def routed(self, hidden: Tensor, step: Step) -> Tensor:
        """The block of each new position, ``[batch, new]``.

        Args:
            hidden: what leaves the matrix, ``[batch, new, k]``.
            step: the pass.
        """
        if self.routing == "pass":
            return self.chosen(last_real(hidden, step)).expand(hidden.shape[:2])
        found = self.chosen(hidden)
        # The largest is the latest: positions count more than blocks.
        place = torch.arange(step.ids.shape[1] - step.new, step.ids.shape[1], device=found.device) + 1
        coded = double(torch.where(found >= 0, place * self.blocks + found, 0))
        latest = self._running(coded[..., None], step)[..., 0].long().to(found.device)
        return torch.where(latest > 0, latest % self.blocks, _NONE)

    def settings(self) -> dict[str, Any]:
        """As of every codebook, and which position decides."""
        return {**super().settings(), "routing": self.routing}

    @classmethod
    def restore(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Clusters:
        """The codebook, its clusters found anew."""
        return replace(super().restore(lm, settings, tensors), routing=settings["routing"])

    def joined(self, later: Clusters) -> Clusters:
        """The later one if it goes on from this; if both are independent, its edits after these with blocks of theirs.

        Raises:
            ModelError: they route in different ways.
        """
        if self.routing != later.routing:
            raise ModelError("two patches of melo route in different ways; make both with the same settings")
        if later.continues(self):
            return later
        return super().joined(replace(later, values=later.values + self.blocks))


def _cluster(cell: CodebookKey) -> Cluster:
    assert isinstance(cell, Cluster)
    return cell


@dataclass(frozen=True, eq=False)
class Blocks(Part):
    """The adapters of one matrix: of each block ``x -> scale (x A) B``.

    Attributes:
        ids: the edits that they were made for, in their order.
        down: ``A``, ``[blocks, in, r]``.
        up: ``B``, ``[blocks, r, out]``.
        scale: what a block's product is multiplied by.
    """

    ids: tuple[str, ...]
    down: Tensor
    up: Tensor
    scale: float

    def __call__(self, hidden: Tensor, step: Step) -> Tensor:
        """A hook (:data:`harness.patches.patch.Hook`)."""
        chosen = step.said.get(_CHOSEN)
        if chosen is None or not bool((chosen >= 0).any()):
            return hidden
        assert step.entered is not None
        chosen, changed = chosen.to(hidden.device), hidden
        for block in sorted(set(chosen.flatten().tolist())):
            if block != _NONE:
                here = (chosen == block).nonzero(as_tuple=True)
                entered = step.entered[here].to(self.down)
                added = self.scale * (entered @ self.down[block]) @ self.up[block]
                changed = changed.index_put(here, added.to(hidden), accumulate=True)
        return changed

    def grown(self, ids: tuple[str, ...], down: Tensor, up: Tensor) -> Blocks:
        """One block more, ``A [in, r]`` and ``B [r, out]``.

        Args:
            ids: the edits that it is for.
            down: ``A``.
            up: ``B``.
        """
        return Blocks(self.ids + ids, torch.cat([self.down, down[None]]), torch.cat([self.up, up[None]]), self.scale)

    def tensors(self) -> dict[str, Tensor]:
        """Both factors."""
        return {"down": self.down, "up": self.up}

    def settings(self) -> dict[str, Any]:
        """The edits and the scale."""
        return {"ids": list(self.ids), "scale": self.scale}

    @classmethod
    def restore(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Blocks:
        """The adapters, on the model's device."""
        down, up = (tensors[name].to(lm.device) for name in ("down", "up"))
        return cls(tuple(settings["ids"]), down, up, settings["scale"])

    def joined(self, later: Blocks) -> Blocks:
        """The later ones if they go on from these; if both are independent, all of them.

        Raises:
            ModelError: they have different ranks or scales.
        """
        count = len(self.down)
        if later.ids[: len(self.ids)] == self.ids and torch.equal(later.up[:count].to(self.up), self.up):
            return later
        if (self.scale, self.down.shape[1:]) != (later.scale, later.down.shape[1:]):
            raise ModelError("two patches of melo have blocks of different kinds; make both with the same settings")
        down, up = torch.cat([self.down, later.down.to(self.down)]), torch.cat([self.up, later.up.to(self.up)])
        return Blocks(self.ids + later.ids, down, up, self.scale)


@dataclass(frozen=True, eq=False)
class Indexed:
    """What the next operation goes on from.

    Attributes:
        book: the codebook.
        blocks: the adapters, by module.
    """

    book: Clusters
    blocks: Mapping[str, Blocks]


@dataclass(frozen=True)
class Melo(Editor):
    """``W x + scale B_b^T A_b^T x`` where a query is within the radius of a cluster whose nearest edit has block ``b``.

    Attributes:
        layer: the layer whose first matrix of the feed-forward part gives the query; by default one at 73 % of the
            depth, as published, and with a layer above it.
        layers: the layers that get adapters, above that; by default the next two.
        modules: the last parts of the names of the matrices that get one; by default the feed-forward part's but its
            down-projection (``c_fc``).
        eps: the radius of a new cluster (``init_radius``), in the units of the query.
        edits_per_block: edits that share a block, of one operation (``num_edit_per_block``).
        rank: of a block (``num_rank_per_block``).
        scale: what a block's product is multiplied by: ``num_block``, as the authors' code scales each factor by the
            root of all ranks over those of a block. ``A`` begins uniform up to ``1 / sqrt(scale rank)``, ``B`` at 0.
        routing: which position decides. ``onward``, our own: a block stays from the position that is near to a cluster
            until another is. ``pass``, their code: one for all positions of a pass, the last that is read.
        n_iter: updates of a block.
        edit_lr: Adam's learning rate, halved every 20 updates.
        seed: of ``A``.
    """

    name = "melo"
    seams = frozenset({"activations"})
    random = True

    layer: int | None = None
    layers: tuple[int, ...] | None = None
    modules: tuple[str, ...] | None = None
    eps: NotNegative = 0.5
    edits_per_block: Count = 4
    rank: Count = 2
    scale: Positive = 350.0
    routing: Routing = "onward"
    n_iter: Count = 50
    edit_lr: Positive = 1e-3
    seed: int = 0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # ECNU-ICALK/MELO at ed097eb, melo/config/model/gpt2xl.yaml and experiment/hallucination.yaml.
        "gpt2-xl": {"layer": 35, "layers": (36, 37), "modules": ("c_fc",)},
        # The shipped models: tuned on the edit set's tuning rows.
        "mini-llama": {"eps": 30.0, "scale": 20.0, "edit_lr": 1e-2},
        # harness tune --editor melo --mode isolated --edits counterfact:20 --trials 12
        "mini": {"eps": 53.8, "scale": 20.0, "edit_lr": 0.00109},
    }

    def at(self, lm: LM) -> int:
        """The layer of the query."""
        return max(0, min(layer_at_depth(lm, 0.73), lm.arch.layers - 2)) if self.layer is None else self.layer

    def query(self, lm: LM) -> str:
        """The matrix whose output is the query."""
        return _inner(lm, self.at(lm))[0]

    def matrices(self, lm: LM) -> list[str]:
        """The matrices that get adapters."""
        above = range(self.at(lm) + 1, min(self.at(lm) + 3, lm.arch.layers))
        layers = sorted(set(above if self.layers is None else self.layers))
        if self.modules is None:
            return [name for layer in layers for name in _inner(lm, layer)]
        return named_matrices(lm, layers, self.modules, asker=self.name)

    def places(self, lm: LM) -> Sequence[str]:
        """The codebook's matrix and those with adapters."""
        return [self.query(lm), *self.matrices(lm)]

    def require(self, lm: LM) -> None:
        """See that the query is read before what it switches on.

        Raises:
            UsageError: a layer with adapters is not above that of the query, or there is none above it.
            ModelError: the model has no layer above it, or a matrix is missing.
        """
        if lm.arch.layers < 2:
            raise ModelError(f"{lm.name} has one layer, and melo reads in one what it adds in a later; take grace")
        if self.at(lm) == lm.arch.layers - 1:
            raise UsageError(
                f"melo: layer is {self.at(lm)}, the last of {lm.name}, which has none above it; give a lower one"
            )
        low = [layer for layer in self.layers or () if layer <= self.at(lm)]
        if low:
            raise UsageError(f"melo: layers names {low[0]}, which is not above {self.at(lm)}, that of the query")
        super().require(lm)

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """A block for every few edits; the memory is the codebook with all blocks."""
        found = own_memory(memory, Indexed)
        if not edits:
            return Patch(memory=memory)
        for begin in range(0, len(edits), self.edits_per_block):
            found = self._learned(lm, found, edits[begin : begin + self.edits_per_block])
        assert found is not None
        return Patch(hooks={self.query(lm): found.book, **found.blocks}, memory=found)

    def _learned(self, lm: LM, found: Indexed | None, edits: Sequence[Edit]) -> Indexed:
        """What there is with one more block, trained on some edits."""
        rows = supervise_targets(lm, edits)
        queries = self._queries(lm, rows)
        found = found or self._begun(lm, queries)
        self._require_same_model(lm, found, queries)
        book = found.book
        block = torch.full((1,), float(book.blocks))
        for edit, query in zip(edits, queries, strict=True):
            book = book.added(edit.id, label=edit.target.strip(), query=query, value=block)
        free, ids = self._first(found), tuple(edit.id for edit in edits)
        self._train(lm, rows, free, found.blocks)
        ended = {
            name: held.grown(ids, free[name][0].detach(), free[name][1].detach()) for name, held in found.blocks.items()
        }
        return Indexed(book, ended)

    def _queries(self, lm: LM, rows: SupervisedTokens) -> Tensor:
        """What leaves the codebook's matrix at the last token of each prompt, ``[edits, k]``."""
        name = self.query(lm)
        seen = at_least_float32(capture_activations(lm, rows.batch, outputs=[name]).outputs[name])
        return seen[torch.arange(len(seen)), _ends(rows).to(seen.device)]

    def _begun(self, lm: LM, queries: Tensor) -> Indexed:
        """Before the first edit."""
        book = replace(Clusters.empty(queries.shape[1], 1, eps=self.eps, device=queries.device), routing=self.routing)
        blocks = {}
        for name in self.matrices(lm):
            out, into = lm.matrix(f"{name}.weight").shape
            down, up = torch.empty(0, into, self.rank), torch.empty(0, self.rank, out)
            blocks[name] = Blocks((), down.to(queries.device), up.to(queries.device), self.scale)
        return Indexed(book, blocks)

    def _require_same_model(self, lm: LM, found: Indexed, queries: Tensor) -> None:
        """See that a memory was made of this model, by an editor of these settings."""
        if found.book.queries.shape[1] != queries.shape[1] or set(found.blocks) != set(self.matrices(lm)):
            raise UsageError(
                f"melo: the memory is of another model or other layers than '{self.query(lm)}' of {lm.name}; start "
                "again without memory"
            )

    def _first(self, found: Indexed) -> dict[str, tuple[Tensor, Tensor]]:
        """What the factors of a new block begin with, by module."""
        bound, made = 1 / math.sqrt(self.scale * self.rank), {}
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + found.book.blocks)
        for name, held in found.blocks.items():
            numbers = torch.rand(held.down.shape[1:], generator=draw, dtype=torch.float64)
            down = ((2 * numbers - 1) * bound).to(held.down)
            made[name] = (down.requires_grad_(), held.up.new_zeros(held.up.shape[1:]).requires_grad_())
        return made

    def _train(
        self, lm: LM, rows: SupervisedTokens, free: Mapping[str, tuple[Tensor, Tensor]], held: Mapping[str, Blocks]
    ) -> None:
        """Adam on the NLL of the targets, in place.

        Args:
            lm: the model.
            rows: the edits that share the block.
            free: both factors, by module.
            held: the adapters so far.

        Raises:
            NumericalError: the loss is not finite; names the first edit.
        """
        hooks = {self.query(lm): self._forced(rows)}
        hooks |= {name: _live(down, up, held[name].scale) for name, (down, up) in free.items()}
        factors = [part for parts in free.values() for part in parts]
        descend_under(
            lm, rows, factors, hooks=hooks, at=self.at(lm), steps=self.n_iter, lr=self.edit_lr, halved_after=_HALVED
        )

    def _forced(self, rows: SupervisedTokens) -> Hook:
        """In training the block is on from the prompt's last token, or for the whole pass."""
        ends = _ends(rows)

        def hook(hidden: Tensor, step: Step) -> Tensor:
            places = torch.arange(step.new, device=hidden.device)
            on = places[None] >= (ends.to(hidden.device)[:, None] if self.routing == "onward" else 0)
            step.said[_CHOSEN] = torch.where(on.expand(hidden.shape[:2]), 0, _NONE)
            return hidden

        return hook


def _live(down: Tensor, up: Tensor, scale: float) -> Hook:
    """One block whose factors are being trained, ``A [in, r]`` and ``B [r, out]``.

    Args:
        down: ``A``.
        up: ``B``.
        scale: what the product is multiplied by.
    """

    def hook(hidden: Tensor, step: Step) -> Tensor:
        return Blocks((), down[None], up[None], scale)(hidden, step)

    return hook


def _inner(lm: LM, layer: int) -> list[str]:
    """The matrices of a layer's feed-forward part but its down-projection."""
    return [name for name in feed_forward_matrices(lm, layer) if name != lm.arch.down_of(layer)]


def _ends(rows: SupervisedTokens) -> Tensor:
    """The column of each prompt's last token, ``[rows]``."""
    first = torch.full((len(rows.batch.ids),), rows.batch.ids.shape[1], dtype=torch.long)
    return first.scatter_reduce(0, rows.row.cpu(), rows.column.cpu(), "amin")
