"""ReFT: a learned low-rank map of what one block writes, at the last token of a subject's mention.

Source: Wu et al. 2024, "ReFT: Representation Finetuning for Language Models", arXiv 2404.03592, equation 2 (LoReFT),
and its code (stanfordnlp/pyreft, pyreft/interventions.py).  There the first and the last tokens of a prompt are
changed, in several layers; a text that is scored does not show where its prompt ends, so here it is the last token of
the subject, or every one.  There ``W`` and ``b`` begin at random (``start=released``); here the map begins as identity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from harness.editing import directions
from harness.editing.edit import Edit
from harness.editing.hyperparameters import Count, NotNegative, Positive, Range
from harness.errors import ModelError, NumericalError, UsageError
from harness.methods.descent import TokenisedEdit, log_likelihood, tokenise
from harness.methods.keys import layer_at_depth
from harness.methods.steering import BlockEditor, Mentions, written_forms
from harness.models.lm import LM
from harness.patches.patch import Part, Patch, Step, patched

__all__ = ["Intervention", "Interventions", "Reft"]

Positions = Literal["subject", "all"]


@dataclass(frozen=True)
class Reft(BlockEditor):
    """``h <- h + R^T (W h + b - R h)`` after one block, by Adam on the likelihood of the targets.

    ``R [r, d]`` has orthonormal rows, ``W [r, d]`` and ``b [r]`` are free. All edits of an operation share one map.

    Attributes:
        layer: the block; by default one at 20 % of the depth, where the published settings of ROME lie.
        rank: ``r``.
        positions: the last token of the ``subject``'s first mention, or ``all`` tokens.
        start: the map begins as ``identity`` (``W = R``, ``b = 0``), or as ``released``, with a random ``W`` and ``b``.
        lr: the learning rate.
        steps: passes over the edits.
        batch_size: edits of one update.
        threshold: an end where the mean loss of a pass is below.
        seed: of the first ``R``, of ``W`` and ``b``.
    """

    name = "reft"
    seams = frozenset({"activations"})
    needs_subject = True
    random = True

    layer: Annotated[int, Range(0)] | None = None
    rank: Count = 4
    positions: Positions = "subject"
    start: Literal["identity", "released"] = "identity"
    lr: Positive = 1e-2
    steps: Count = 60
    batch_size: Count = 64
    threshold: NotNegative = 1e-2
    seed: int = 0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # The shipped models: tuned on the edit set's tuning rows; from layer 1 on the subject has been read already.
        "mini-llama": {"layer": 0},
        "mini": {"layer": 0},
    }

    def require(self, lm: LM) -> None:
        """See that the block hands on one vector for each token, of at least as many numbers as the map has ranks.

        Raises:
            ModelError: it hands on several, or fewer numbers; or there is no such layer.
        """
        super().require(lm)
        if self.rank > lm.arch.width:
            raise ModelError(
                f"reft: 'rank' is {self.rank}, but {lm.name} has states of {lm.arch.width} numbers; give at most that"
            )

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """One map for all edits; that of a later operation acts on what an earlier one has made."""
        if not edits:
            return Patch()
        written = {_subject(edit): written_forms(lm, edit) for edit in edits}
        begun = Intervention(tuple(written), tuple(written.values()), *_begin(self, lm))
        return Patch(hooks={self.block(lm): Interventions((_trained(self, lm, edits, begun),), self.positions)})

    def at(self, lm: LM) -> int:
        """The block."""
        return layer_at_depth(lm, 0.2) if self.layer is None else self.layer


def _subject(edit: Edit) -> str:
    if edit.subject is None:
        raise UsageError(f"edit {edit.id}: reft needs a subject; give rows of prompt, subject and target")
    return edit.subject


# --- the hook ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Intervention:
    """One map, and whom it is about.

    Attributes:
        subjects: whose mentions it acts at.
        written: for each the ways in which tokens write it.
        rotation: ``R``, ``[r, d]``.
        weight: ``W``, ``[r, d]``.
        bias: ``b``, ``[r]``.
    """

    subjects: tuple[str, ...]
    written: tuple[tuple[tuple[int, ...], ...], ...]
    rotation: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, hidden: Tensor) -> Tensor:
        """``h + R^T (W h + b - R h)`` of ``hidden [..., d]``."""
        kind = torch.promote_types(hidden.dtype, self.rotation.dtype)
        rotation, weight, bias = (t.to(hidden.device, kind) for t in (self.rotation, self.weight, self.bias))
        h = hidden.to(kind)
        return (h + nn.functional.linear(h, weight - rotation, bias) @ rotation).to(hidden.dtype)


@dataclass(frozen=True, eq=False)
class Interventions(Part):
    """Maps what a block writes (:data:`harness.patches.patch.Hook`), one map after the other.

    Attributes:
        maps: the maps, in the order of the operations.
        positions: where they act.
    """

    maps: tuple[Intervention, ...]
    positions: Positions

    def __call__(self, hidden: Tensor, step: Step) -> Tensor:
        """What the block writes, changed at the chosen positions; elsewhere it stays bitwise what it is."""
        if self.positions == "all":
            for one in self.maps:
                hidden = one(hidden)
            return hidden
        rows, columns, who = (found.to(hidden.device) for found in self._mentions.find_new(step))
        acting = sorted({number for found in set(who.tolist()) for number in self._acting[found]})
        for number in acting:
            mine = torch.isin(who, torch.tensor(self._members[number], device=who.device))
            at = (rows[mine], columns[mine])
            hidden = hidden.index_put(at, self.maps[number](hidden[at]))
        return hidden

    def tensors(self) -> dict[str, Tensor]:
        """The three tensors of each map."""
        kinds = ("rotation", "weight", "bias")
        return {f"{i}.{kind}": getattr(one, kind) for i, one in enumerate(self.maps) for kind in kinds}

    def settings(self) -> dict[str, Any]:
        """Where the maps act."""
        maps = [
            {"subjects": list(one.subjects), "written": [[list(way) for way in ways] for ways in one.written]}
            for one in self.maps
        ]
        return {"positions": self.positions, "maps": maps}

    @classmethod
    def restore(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Interventions:
        """The maps again."""
        maps = tuple(
            Intervention(
                tuple(one["subjects"]),
                tuple(tuple(map(tuple, ways)) for ways in one["written"]),
                *(tensors[f"{i}.{kind}"].to(lm.device) for kind in ("rotation", "weight", "bias")),
            )
            for i, one in enumerate(settings["maps"])
        )
        return cls(maps, settings["positions"])

    def joined(self, later: Interventions) -> Interventions:
        """The maps of both, the later ones behind."""
        return replace(later, maps=self.maps + later.maps)

    @cached_property
    def _place(self) -> dict[str, int]:
        """A number for each subject."""
        return {subject: i for i, subject in enumerate(dict.fromkeys(s for one in self.maps for s in one.subjects))}

    @cached_property
    def _members(self) -> list[list[int]]:
        """The numbers of the subjects of each map."""
        return [[self._place[subject] for subject in one.subjects] for one in self.maps]

    @cached_property
    def _acting(self) -> list[list[int]]:
        """The maps that act at each subject."""
        found: list[list[int]] = [[] for _ in self._place]
        for number, members in enumerate(self._members):
            for who in members:
                found[who].append(number)
        return found

    @cached_property
    def _mentions(self) -> Mentions:
        ways: list[dict[tuple[int, ...], None]] = [{} for _ in self._place]
        for one in self.maps:
            for subject, written in zip(one.subjects, one.written, strict=True):
                ways[self._place[subject]].update(dict.fromkeys(written))
        return Mentions(tuple(map(tuple, ways)), 1, self.maps[0].rotation.device)


# --- learning ---------------------------------------------------------------------------------------------------------


class _Rotation(nn.Module):
    """Orthonormal rows ``[r, d]`` that can be trained."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        nn.utils.parametrizations.orthogonal(self)


def _begin(method: Reft, lm: LM) -> tuple[Tensor, Tensor, Tensor]:
    """The first ``R``, ``W`` and ``b``, drawn on the processor."""
    width = lm.arch.width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(method.seed)
        rotation = nn.init.orthogonal_(torch.empty(method.rank, width))
        drawn = nn.Linear(width, method.rank)
    free = method.start == "released"
    weight = drawn.weight.detach() if free else rotation.clone()
    bias = drawn.bias.detach() if free else torch.zeros(method.rank)
    kind = torch.promote_types(lm.dtype, torch.float32)
    return rotation.to(lm.device, kind), weight.to(lm.device, kind), bias.to(lm.device, kind)


def _turning(rotation: Tensor, seed: int) -> _Rotation:
    """Rows that can be turned; torch completes them to a basis at random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _Rotation(rotation.cpu().clone()).to(rotation.device)


def _trained(method: Reft, lm: LM, edits: Sequence[Edit], begun: Intervention) -> Intervention:
    """The map after Adam on the mean negative log-likelihood of the targets."""
    examples, place = tokenise(lm, edits), method.block(lm)
    turned, weight, bias = _turning(begun.rotation, method.seed), begun.weight.clone(), begun.bias.clone()
    adam = torch.optim.Adam([*turned.parameters(), weight.requires_grad_(), bias.requires_grad_()], lr=method.lr)

    def now() -> Intervention:
        return replace(begun, rotation=turned.weight, weight=weight, bias=bias)

    def hook(hidden: Tensor, step: Step) -> Tensor:
        return Interventions((now(),), method.positions)(hidden, step)

    batches = [examples[i : i + method.batch_size] for i in range(0, len(examples), method.batch_size)]
    with patched(lm, Patch(hooks={place: hook})), torch.enable_grad():
        for _ in range(method.steps):
            losses = [_update(lm, batch, adam, place) * len(batch) for batch in batches]
            if math.fsum(losses) < method.threshold * len(examples):
                break
    done = now()
    return replace(done, rotation=done.rotation.detach().contiguous(), weight=weight.detach(), bias=bias.detach())


def _update(lm: LM, batch: Sequence[TokenisedEdit], adam: torch.optim.Optimizer, place: str) -> float:
    """One step of Adam; the mean loss before it."""
    log_p = log_likelihood(lm, batch)
    owner = torch.tensor([i for i, one in enumerate(batch) for _ in one.target], device=log_p.device)
    loss = directions.nll(log_p, owner, len(batch)).mean()
    value = float(loss.detach())
    if not math.isfinite(value):
        ids = ", ".join(one.edit.id for one in batch[:3])
        raise NumericalError(f"the loss of edits {ids} became {value} in training a map of {place}; lower lr")
    adam.zero_grad()
    torch.autograd.backward(loss)
    adam.step()
    return value
