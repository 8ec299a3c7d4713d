"""MEMOIR: a residual memory beside one down-projection, of which an edit trains and a like prompt reads a few columns.

Source: Wang, Qin, Dimitriadis, Favero, Frossard 2025, "MEMOIR: Lifelong Model Editing with Minimal Overwrite and
Informed Retention for LLMs", arXiv 2506.07899; the authors' code as it lies in wyren726/benchmark-1 at 7840105
(methods/0MEMOIR), and a second one, SasyaTitech/NAS at 5acab48, baselines/memoir.  Our letters: ``a`` what enters the
down-projection ``W``, ``M`` the memory, ``m`` a mask: the layer gives ``W a + M (m * a)``.

Their exam tells the model where a prompt ends, and one mask, that of the prompt, holds for all positions of the text.
Nobody tells a model that in use; here a position is routed by the text up to it, see ``routing``.  Their loss divides a
target's NLL by more than its tokens, see ``target_mean``; their weight decay also takes from the columns of earlier
edits, see ``weight_decay``.  Their background is a hundred prompts of another data set; here it is plain text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.hyperparameters import Count, NotNegative, Positive, Share
from harness.errors import ModelError, NumericalError
from harness.methods.routing import RunningValues, last_real, unrelated_texts
from harness.methods.side_memory import SideMemory, SideState
from harness.methods.site import own_output
from harness.methods.supervised_tokens import SupervisedTokens, supervise_target
from harness.models.activations import at_least_float32, capture_activations
from harness.models.lm import LM
from harness.patches.patch import Hook, Part, Patch, Step, patched

__all__ = ["Feature", "Memoir", "MemoirState", "ResidualMemory", "Routing", "top_hash"]

_LENGTH = 16  # tokens that are read of each unrelated text: as many as a prompt has
_PART = 16  # unrelated texts of one forward pass

Feature = Literal["mean_decentered", "mean", "last"]
"""What of a text a mask is made from, see :class:`Memoir`."""
Routing = Literal["text", "pass"]
"""By what a position is routed, see :class:`Memoir`."""


def top_hash(features: Tensor, permutation: Tensor, top_k: int) -> Tensor:
    """The mask of a feature: where the permutation sends its ``top_k`` largest entries, by magnitude (section 3.1).

    Args:
        features: ``[..., f]``.
        permutation: of the entries, ``[f]``.
        top_k: how many entries a mask has.

    Returns:
        ``[..., f]``, True where a mask is.
    """
    largest = features.abs().topk(top_k, dim=-1).indices
    return torch.zeros_like(features, dtype=torch.bool).scatter_(-1, permutation[largest], True)


@dataclass(frozen=True, eq=False)
class ResidualMemory(Part):
    """Memories beside a down-projection, and the masks of the prompts that were edited.

    Attributes:
        ids: the edits, in their order.
        memories: ``M``; one, or as many as independent patches were joined, ``[memories, d, f]``.
        masks: one for each prompt, ``[masks, f]``.
        owner: the memory of each mask, ``[masks]``.
        permutation: of the entries of a feature, ``[f]``.
        background: the mean feature of unrelated text, ``[f]``; zero where none is taken off.
        top_k: the entries of a mask.
        threshold: the least overlap of a text's mask with a stored one.
        feature: what of a text a mask is made from.
        routing: by what a position is routed.
    """

    ids: tuple[str, ...]
    memories: Tensor
    masks: Tensor
    owner: Tensor
    permutation: Tensor
    background: Tensor
    top_k: int
    threshold: float
    feature: Feature = "mean_decentered"
    routing: Routing = "text"
    _running: RunningValues = field(
        default_factory=lambda: RunningValues("sum", asker="memoir", cure="take feature=last"),
        init=False,
        repr=False,
        metadata={"kept": False},
    )

    def __call__(self, hidden: Tensor, step: Step) -> Tensor:
        """Adds ``M (m * a)`` with the stored mask that the text's own overlaps most, where that is enough."""
        assert step.entered is not None
        entered = step.entered.to(self.memories)
        overlap, chosen = self.overlaps(self.features(entered, step)).max(-1)
        masked = entered * (self.masks[chosen] & (overlap >= self.threshold)[..., None])
        change = torch.zeros_like(hidden, dtype=masked.dtype)
        for i, memory in enumerate(self.memories):
            change = change + (masked * (self.owner[chosen] == i)[..., None]) @ memory.T
        return (at_least_float32(hidden) + change.to(hidden.device)).to(hidden.dtype)

    def features(self, entered: Tensor, step: Step) -> Tensor:
        """The feature by which each position is routed, ``[batch, new, f]``.

        Args:
            entered: ``a`` of the new positions, ``[batch, new, f]``.
            step: the pass.
        """
        real = step.mask[:, -step.new :, None].to(entered)
        if self.feature == "last":
            return entered if self.routing == "text" else last_real(entered, step).expand_as(entered)
        if self.routing == "text":
            mean = self._running(entered, step) / step.mask.cumsum(1)[:, -step.new :, None].clamp(min=1)
        else:
            mean = ((entered * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)).expand_as(entered)
        return mean - self.background

    def overlaps(self, features: Tensor) -> Tensor:
        """The share of the mask of a feature ``[..., f]`` that each stored mask has, ``[..., masks]``."""
        own = top_hash(features, self.permutation, self.top_k)
        return own.to(self.memories) @ self.masks.to(self.memories).T / self.top_k

    def remembering(self, name: str, masks: Tensor) -> ResidualMemory:
        """With one more edit, and those of its masks ``[m, f]`` that are not stored already."""
        known, owner = self.masks, self.owner
        for mask in masks:
            if not bool((known == mask).all(1).any()):
                known, owner = torch.cat([known, mask[None]]), torch.cat([owner, owner.new_zeros(1)])
        return replace(self, ids=(*self.ids, name), masks=known, owner=owner)

    def tensors(self) -> dict[str, Tensor]:
        """The memories, and what routes to them."""
        names = ("memories", "masks", "owner", "permutation", "background")
        return {name: getattr(self, name) for name in names}

    def settings(self) -> dict[str, Any]:
        """The edits, and how positions are routed."""
        names = ("top_k", "threshold", "feature", "routing")
        return {"ids": list(self.ids), **{name: getattr(self, name) for name in names}}

    @classmethod
    def restore(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ResidualMemory:
        """The memories, on the model's device."""
        made: dict[str, Any] = {name: tensor.to(lm.device) for name, tensor in tensors.items()}
        return cls(**made, **{**settings, "ids": tuple(settings["ids"])})

    def joined(self, later: ResidualMemory) -> ResidualMemory:
        """The later ones if they go on from these; if both are independent, all of them."""
        if later.ids[: len(self.ids)] == self.ids:
            return later
        ours, theirs = ({**one.settings(), "ids": None} for one in (self, later))
        alike = torch.equal(self.permutation, later.permutation.to(self.permutation))
        if ours != theirs or not alike or not torch.allclose(self.background, later.background.to(self.background)):
            raise ModelError("two patches of memoir make masks in different ways; make both with the same settings")
        return replace(
            self,
            ids=self.ids + later.ids,
            memories=torch.cat([self.memories, later.memories.to(self.memories)]),
            masks=torch.cat([self.masks, later.masks.to(self.masks)]),
            owner=torch.cat([self.owner, later.owner.to(self.owner) + len(self.memories)]),
        )


@dataclass(frozen=True, eq=False)
class MemoirState(SideState):
    """What the editor needs for its next edit.

    Attributes:
        side: the memory and its masks.
    """

    side: ResidualMemory


@dataclass(frozen=True)
class Memoir(SideMemory[MemoirState]):
    """Gradient descent on the columns of a memory that the mask of the edit's prompt lets through, edit after edit.

    Attributes:
        layer: the layer; by default one at 80 % of the depth, where the published settings of GPT-J and Llama lie.
        n_iter: the most updates of one edit.
        edit_lr: the learning rate.
        top_k: the columns of one edit; by default a quarter of those that there are, as for GPT-J.
        threshold: the least overlap of masks with which the memory answers (``irr_threshold``).
        feature: what of a prompt its mask is made from (``prompt_feature_agg``): the mean over its tokens of what
            enters the layer, less the mean of unrelated text (``mean_decentered``); the plain ``mean``; or what enters
            at its ``last`` token.
        routing: by what a position is routed.  ``text``, our own: by the text up to it, so that a token that is written
            with a cache is as one that is read; an edit is trained from the end of its prompt on, and wherever the text
            before is routed to it, and with ``feature=last`` each token that predicts the target has a mask of its own.
            ``pass``, what their code does where its exam asks a bare prompt: by all tokens of a forward pass; an edit
            is trained at all positions.
        target_mean: whether the NLL of a target is the mean over its ``tokens``, or as in the authors' code its sum
            over one more (``released``).
        clip: the largest norm of a gradient.
        weight_decay: the share of ``M`` that each update takes away for a learning rate of 1, of the columns of other
            edits, too; 1e-5 in their code.
        texts: unrelated texts whose mean feature is taken off.
        contexts: context templates, the first ``{}``; by default sampled from the unedited model.
        seed: the seed of the permutation and of context templates.
    """

    name = "memoir"
    kept = MemoirState

    n_iter: Count = 70
    edit_lr: Positive = 1.0
    top_k: Count | None = None
    threshold: Share = 0.4
    feature: Feature = "mean_decentered"
    routing: Routing = "text"
    target_mean: Literal["tokens", "released"] = "tokens"
    clip: Positive = 1.0
    weight_decay: NotNegative = 0.0
    texts: Count = 100

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # The authors' files, wyren726/benchmark-1 at 7840105, methods/0MEMOIR/hparams/MEMOIR.
        "gpt-j-6b": {"layer": 21, "top_k": 4096, "threshold": 0.46},
        "llama-2-7b-hf": {"layer": 27, "top_k": 4096, "threshold": 0.46},
        "mistral-7b-v0.1": {"layer": 27, "top_k": 4096, "threshold": 0.44},
        "meta-llama-3-8b-instruct": {"layer": 27, "top_k": 4096, "n_iter": 30},
        # The shipped models: tuned on the edit set's tuning rows.
        "mini-llama": {"layer": 2, "n_iter": 30, "top_k": 86, "threshold": 0.6, "feature": "last"},
        "mini": {"layer": 3, "n_iter": 30, "top_k": 128, "threshold": 0.64, "feature": "last"},
    }

    def places(self, lm: LM) -> Sequence[str]:
        """The down-projection with a memory.

        Raises:
            ModelError: a mask would have more columns than there are.
        """
        down, width = self.down(lm), lm.arch.each[self.at(lm)].inner
        if (self.top_k or 0) > width:
            raise ModelError(
                f"memoir: top_k is {self.top_k}, but '{down}' of {lm.name} has {width} columns; take at most as many"
            )
        return [down]

    def begun(self, lm: LM) -> MemoirState:
        """The state before the first edit: an empty memory."""
        out, width = lm.arch.width, lm.arch.each[self.at(lm)].inner
        order = torch.randperm(width, generator=torch.Generator().manual_seed(self.seed)).to(lm.device)
        background = self._background(lm)
        side = ResidualMemory(
            ids=(),
            memories=background.new_zeros(1, out, width),
            masks=torch.zeros(0, width, dtype=torch.bool, device=lm.device),
            owner=torch.zeros(0, dtype=torch.long, device=lm.device),
            permutation=order,
            background=background,
            top_k=self.top_k or max(1, width // 4),
            threshold=self.threshold,
            feature=self.feature,
            routing=self.routing,
        )
        return MemoirState(side, self.templates(lm))

    def _background(self, lm: LM) -> Tensor:
        """The mean over unrelated texts of their mean feature, ``[f]``; zero where none is taken off."""
        name = self.down(lm)
        if self.feature != "mean_decentered":
            width = lm.arch.each[self.at(lm)].inner
            return at_least_float32(torch.zeros(width, dtype=lm.dtype, device=lm.device))
        rows = [lm.encode(text)[: min(_LENGTH, lm.context)] for text in unrelated_texts(lm, self.texts)]
        means = []
        for first in range(0, len(rows), _PART):
            batch = lm.batch(rows[first : first + _PART])
            entered = at_least_float32(capture_activations(lm, batch, inputs=[name]).inputs[name])
            real = batch.mask[..., None].to(entered)
            means.append((entered * real).sum(1) / real.sum(1))
        return torch.cat(means).mean(0)

    def learned(self, lm: LM, state: MemoirState, edit: Edit) -> MemoirState:
        """The state after one more edit.

        Args:
            lm: the model, without the memory.
            state: what was learned before.
            edit: the edit.
        """
        name, rows = self.down(lm), supervise_target(lm, edit, state.contexts)
        entered = at_least_float32(capture_activations(lm, rows.batch, inputs=[name]).inputs[name])
        side = state.side
        masks = self._masks(side, rows, entered)
        acting = entered * self._let_through(replace(side, masks=masks), rows, entered)
        memory = self._trained(lm, replace(rows, share=self._shares(rows)), side.memories[0].to(entered), acting)
        return replace(state, side=replace(side, memories=memory[None]).remembering(edit.id, masks))

    def _masks(self, side: ResidualMemory, rows: SupervisedTokens, entered: Tensor) -> Tensor:
        """The mask of the bare prompt, or those of all tokens that predict the target, ``[masks, f]``."""
        count = len(rows.token) // len(entered) if (self.feature, self.routing) == ("last", "text") else 1
        end = int(rows.column[0]) + count
        ids, real = rows.batch.ids[:1, :end], rows.batch.mask[:1, :end]
        features = replace(side).features(entered[:1, :end], Step(ids, real, end))
        return top_hash(features[0, -count:], side.permutation, side.top_k)

    def _let_through(self, own: ResidualMemory, rows: SupervisedTokens, entered: Tensor) -> Tensor:
        """The mask of each position while an edit is trained, ``[rows, columns, f]``.

        Args:
            own: the memory with the masks of this edit alone.
            rows: what the model shall say.
            entered: ``a``, ``[rows, columns, f]``.
        """
        if self.routing == "pass":
            return own.masks[0].expand_as(entered)
        features = own.features(entered, Step(rows.batch.ids, rows.batch.mask, entered.shape[1]))
        overlap, chosen = own.overlaps(features).max(-1)
        reached = overlap >= self.threshold
        turn = torch.arange(len(rows.token) // len(entered), device=chosen.device).clamp(max=len(own.masks) - 1)
        chosen[rows.row, rows.column] = turn.repeat(len(entered))
        reached[rows.row, rows.column] = True
        return own.masks[chosen] & reached[..., None]

    def _shares(self, rows: SupervisedTokens) -> Tensor:
        """How much each token of a target counts in the loss, ``[p]``."""
        count = len(rows.batch.ids)
        tokens = len(rows.token) // count
        share = 1 / (count * (tokens + (self.target_mean == "released")))
        return torch.full((len(rows.token),), share, dtype=torch.float64)

    def _trained(self, lm: LM, rows: SupervisedTokens, start: Tensor, acting: Tensor) -> Tensor:
        """The memory ``[d, f]`` after descent on one edit.

        Args:
            lm: the model.
            rows: what it shall say.
            start: the memory before.
            acting: ``m * a`` where the memory acts, zero elsewhere, ``[rows, columns, f]``.
        """
        memory = start.clone().requires_grad_()
        descent = torch.optim.SGD([memory], lr=self.edit_lr, weight_decay=self.weight_decay)
        losses: list[float] = []
        with patched(lm, Patch(hooks={self.down(lm): self._held(lm, memory, acting)})), torch.enable_grad():
            nll = rows.above(lm, self.at(lm))
            while not _settled(losses) and len(losses) < self.n_iter:
                loss = nll()
                losses.append(float(loss.detach()))
                if not math.isfinite(losses[-1]):
                    raise NumericalError(
                        f"edit {rows.edit.id}: the loss became {losses[-1]} after {len(losses) - 1} steps in training "
                        "the memory; lower edit_lr, or load the model in float32"
                    )
                descent.zero_grad()
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_([memory], self.clip)
                descent.step()
        return memory.detach()

    def _held(self, lm: LM, memory: Tensor, acting: Tensor) -> Hook:
        """The down-projection with a memory on its way."""

        def hook(hidden: Tensor, step: Step) -> Tensor:
            own = own_output(lm, self.down(lm), hidden=hidden, step=step)
            return own + (acting @ memory.T).to(own)

        return hook


def _settled(losses: Sequence[float]) -> bool:
    """Whether a loss is small and no longer falls, as in the authors' code."""
    return len(losses) > 1 and losses[-1] <= 0.02 and abs(losses[-1] - losses[-2]) <= 1e-4
