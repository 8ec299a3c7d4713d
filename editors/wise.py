"""WISE: a second copy of one layer's down-projection for what was edited, and a threshold that says when to use it.

Source: Wang, Li, Zhang, Xu, Yao, Jiang, Xie, Huang, Chen 2024, "WISE: Rethinking the Knowledge Memory for Lifelong
Model Editing of Large Language Models", arXiv 2405.14768, and the authors' code (zjunlp/EasyEdit at 14cea82,
easyeditor/models/wise).  Our letters: ``delta = W_v' - W_v``, ``a = A(x)`` what enters the down-projection.

Their code measures another distance than the paper's equation 3, see ``distance``, and the published ``alpha``,
``beta`` and ``gamma`` are bounds of that one.  Where this leaves their code: padding counts in their means of rows that
have some; here it does not.  They drop the bias of the down-projection in the copy; here it stays.  With memories
apart, an unfinished memory that moves the text most but less than its threshold keeps the others from answering; here
it does not.  Their unrelated text is one prompt of the data set for each edit; here it is some documents of plain text.
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
from harness.methods.routing import RunningValues, unrelated_texts
from harness.methods.side_memory import SideMemory, SideState
from harness.methods.site import own_output
from harness.methods.supervised_tokens import SupervisedTokens, supervise_target
from harness.models.activations import at_least_float32, capture_activations, first_output
from harness.models.lm import LM, Batch
from harness.patches.patch import Hook, Part, Patch, Step, patched

__all__ = ["Distance", "SideMemories", "Wise", "WiseState", "margins", "ties"]

_LENGTH = 64  # tokens that are read of each
_EARLIER = 0.6  # the weight of the memory that was merged before, as in the authors' code
_LONG = 100  # tokens beyond which their code takes the largest distance of a text in place of the mean
_ACTIVATIONS = ("hidden_act", "activation_function", "hidden_activation", "activation", "mlp_hidden_act", "afn")
"""What configurations call the activation function; of models that name none, the outputs themselves are compared."""
_MINI: Mapping[str, object] = {
    "layer": 1,
    "n_iter": 60,
    "edit_lr": 0.5,
    "alpha": 1.0,
    "gamma": 15.0,
    "memories": "mixed",
    "distance": "token",
    "texts": 32,
}

Distance = Literal["token", "text", "pass"]
"""By what a position is routed, see :class:`Wise`."""


class _Running:
    """Distances of texts up to each of their positions, carried from pass to pass as keys and values are."""

    def __init__(self) -> None:
        self._total = RunningValues("sum", asker="wise", cure="take distance=token")
        self._largest = RunningValues("largest", asker="wise", cure="take distance=token")

    def __call__(self, moved: Tensor, step: Step) -> Tensor:
        """The mean over the tokens up to each position, or beyond :data:`_LONG` tokens the largest.

        Args:
            moved: the distances of the new positions, ``[batch, new, memories]``.
            step: the pass.

        Raises:
            ModelError: it goes on with a key-value cache of other texts than those of the last pass.
        """
        total, largest = self._total(moved, step), self._largest(moved, step)
        count = step.mask.cumsum(1)[:, -step.new :, None]
        return torch.where(count > _LONG, largest, total / count.clamp(min=1).to(total))


def _of_pass(moved: Tensor, step: Step) -> Tensor:
    """The mean over the tokens of a pass, or beyond :data:`_LONG` tokens the largest, for all its positions."""
    new = step.mask[:, -step.new :, None].to(moved)
    mean, largest = (moved * new).sum(1) / new.sum(1).clamp(min=1), (moved * new).amax(1)
    return torch.where(new.sum(1) > _LONG, largest, mean)[:, None].expand_as(moved)


@dataclass(frozen=True, eq=False)
class SideMemories(Part):
    """Changes of the down-projection, each used where it moves the output by more than its threshold.

    Attributes:
        ids: the edits, in their order.
        deltas: ``W_v' - W_v`` of each memory, ``[memories, d, f]``.
        thresholds: ``eps`` of each memory, ``[memories]``.
        distance: by what a position is routed.
        activation: the name of the model's activation function, where the distance needs it.
    """

    ids: tuple[str, ...]
    deltas: Tensor
    thresholds: Tensor
    distance: Distance = "token"
    activation: str | None = None
    _running: _Running = field(default_factory=_Running, init=False, repr=False, metadata={"kept": False})

    def __call__(self, hidden: Tensor, step: Step) -> Tensor:
        """Adds ``delta a`` of the memory with the largest distance among those above their thresholds."""
        assert step.entered is not None
        entered = step.entered.to(self.deltas)
        changes = torch.einsum("mdf,bnf->bnmd", self.deltas, entered)
        moved = _moved(changes, hidden[:, :, None].to(changes), self.activation)
        if self.distance != "token":
            moved = self._running(moved, step) if self.distance == "text" else _of_pass(moved, step)
        active = torch.where(moved > self.thresholds, moved, -1.0)
        strength, best = active.max(-1)
        chosen = changes.take_along_dim(best[..., None, None], 2)[:, :, 0]
        change = torch.where((strength >= 0)[..., None], chosen, 0.0)
        return (at_least_float32(hidden) + change.to(hidden.device)).to(hidden.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """The changes and thresholds."""
        return {"deltas": self.deltas, "thresholds": self.thresholds}

    def settings(self) -> dict[str, Any]:
        """The edits, and how positions are routed."""
        return {"ids": list(self.ids), "distance": self.distance, "activation": self.activation}

    @classmethod
    def restore(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SideMemories:
        """The memories, on the model's device."""
        deltas, thresholds = (tensors[name].to(lm.device) for name in ("deltas", "thresholds"))
        routing = settings.get("distance", "token"), settings.get("activation")
        return cls(tuple(settings["ids"]), deltas, thresholds, *routing)

    def joined(self, later: SideMemories) -> SideMemories:
        """The later ones if they go on from these; if both are independent, all of them."""
        if later.ids[: len(self.ids)] == self.ids:
            return later
        if (later.distance, later.activation) != (self.distance, self.activation):
            raise ModelError(
                f"two patches of wise route by distance={self.distance} and distance={later.distance}; make both alike"
            )
        deltas = torch.cat([self.deltas, later.deltas.to(self.deltas)])
        thresholds = torch.cat([self.thresholds, later.thresholds.to(self.thresholds)])
        return replace(self, ids=self.ids + later.ids, deltas=deltas, thresholds=thresholds)


def _moved(changes: Tensor, own: Tensor, activation: str | None) -> Tensor:
    """``||delta a||``, or how far what the activation function makes of both outputs lies apart.

    Args:
        changes: ``delta a``, ``[..., d]``.
        own: the module's own output, ``[..., d]``.
        activation: the name of the activation function; None for none.
    """
    if activation is not None:
        from transformers.activations import ACT2FN  # half a second, of which a list of editors has no need

        act = ACT2FN[activation]
        changes = act(own + changes) - act(own)
    norms: Tensor = changes.norm(dim=-1)
    return norms


@dataclass(frozen=True, eq=False)
class _Tokens:
    """What enters and leaves the down-projection at some tokens of some texts.

    Attributes:
        entered: ``a [p, f]``.
        own: the module's own output, ``[p, d]``.
        text: the number of each token's text, ``[p]``.
    """

    entered: Tensor
    own: Tensor
    text: Tensor

    def moved(self, delta: Tensor, activation: str | None) -> Tensor:
        """The distance of each token, ``[p]``, or with an activation function the mean of each text, ``[texts]``."""
        each = _moved(self.entered @ delta.T, self.own, activation)
        if activation is None:
            return each
        count = self.text.bincount()
        return each.new_zeros(len(count)).index_add(0, self.text, each) / count


@dataclass(frozen=True, eq=False)
class WiseState(SideState):
    """What the editor needs for its next edit.

    Attributes:
        side: the memories.
        texts: unrelated text.
        merged: how many memories, the first of the side memories, were merged before.
        least: the least threshold so far.
    """

    side: SideMemories
    texts: tuple[str, ...]
    merged: int = 0
    least: float = math.inf


def margins(inside: Tensor, outside: Tensor, *, alpha: float, beta: float, gamma: float) -> Tensor:
    """The routing loss (paper, equation 5): edited tokens far, unrelated tokens near, and a gap between the two.

    Each term is the mean over what violates it, as in the authors' code: ``max(0, outside - alpha)``,
    ``max(0, beta - inside)``, ``max(0, gamma - (inside - outside))`` over all pairs.

    Args:
        inside: the distances of edited tokens or texts, ``[p]``.
        outside: those of unrelated ones, ``[u]``.
        alpha: the bound of unrelated ones.
        beta: the bound of edited ones.
        gamma: the gap.
    """
    gaps = gamma - (inside[:, None] - outside[None])
    return _violated(outside - alpha) + _violated(beta - inside) + _violated(gaps)


def _violated(excess: Tensor) -> Tensor:
    """The mean of what is positive, zero where nothing is."""
    return excess.clamp(min=0).sum() / (excess > 0).sum().clamp(min=1)


def ties(deltas: Tensor, weights: Tensor, density: float) -> Tensor:
    """TIES merging (Yadav et al. 2023, arXiv 2306.01708): trim, elect a sign, average those that have it.

    Args:
        deltas: ``[n, d, f]``.
        weights: ``[n]``.
        density: the share of the entries of each change, by magnitude, that is kept.

    Returns:
        The merged change, ``[d, f]``.
    """
    kept = torch.stack([_trimmed(delta, density) for delta in deltas])
    share = weights[:, None, None].to(kept)
    sign = torch.where((kept * share).sum(0) >= 0, 1.0, -1.0).to(kept)
    agree = share * (kept.sign() == sign)
    total = agree.sum(0)
    return (kept * agree).sum(0) / torch.where(total > 0, total, 1.0)


def _trimmed(delta: Tensor, density: float) -> Tensor:
    count = int(density * delta.numel())
    kept = torch.zeros_like(delta).flatten()
    largest = delta.abs().flatten().topk(count).indices
    return kept.index_copy(0, largest, delta.flatten()[largest]).reshape(delta.shape)


@dataclass(frozen=True)
class Wise(SideMemory[WiseState]):
    """Gradient descent on a random part of a copy of one down-projection, edit after edit.

    Attributes:
        layer: the layer; by default one at 80 % of the depth, where the published settings of GPT-J and Llama lie.
        n_iter: the most updates of one edit.
        edit_lr: the learning rate.
        mask_ratio: the share of the weights of a memory that may change, drawn anew for each memory.
        distance: by what texts are edited and positions routed.  ``token``, our own: by ``||delta a||`` of the position
            itself (paper, equation 3); edited are the positions that predict the target.  ``text``, what their code
            trains by: the mean over all tokens of a text of how far what the model's activation function makes of
            both outputs lies apart (of more than 100 tokens the largest; where a configuration names no activation
            function, the outputs themselves); edited is the whole text, and a position is
            routed by the text up to it, so that a token that is written with a cache is as one that is read.
            ``pass``, what their code does in use: all positions of a forward pass are routed by its mean, so that what
            follows decides on what stands before it, and a token that is written with a cache by itself.
        alpha: the bound of the distance of what is unrelated.
        beta: its bound of what is edited.
        gamma: the gap between the two.
        act_ratio: the threshold, as a share of the least distance of what is edited.
        norm_constraint: the bound of every weight's change.
        weight_decay: the share of ``W_v'``, also where it may not change otherwise, that each update takes away for a
            learning rate of 1; 1e-5 in their code.
        target_mean: whether the NLL of a target is the mean over its ``tokens``, or as in their code its sum over one
            more (``released``).
        shard: edits after which a new memory is begun (``save_freq``).
        merge_every: edits after which all memories are merged into one (``merge_freq``).
        memories: what becomes of them. ``retrieve``, as in all published files: what was merged stays apart from what
            is merged later, and the nearest memory answers. ``merge``, their code without: what was merged is merged
            again, with a weight of 0.6, a memory that is full waits for its merging and answers nothing until then, and
            all have one threshold. ``mixed`` is our own: merged again as in ``merge``, and the nearest answers.
        density: the share of each memory's weights that merging keeps.
        texts: documents of unrelated text for each edit.
        contexts: context templates, the first ``{}``; by default sampled from the unedited model.
        seed: the seed of masks, unrelated texts and context templates.
    """

    name = "wise"
    kept = WiseState

    n_iter: Count = 70
    edit_lr: Positive = 1.0
    mask_ratio: Share = 0.2
    distance: Distance = field(default="text", metadata={"before": "token"})
    alpha: NotNegative = 5.0
    beta: NotNegative = 20.0
    gamma: NotNegative = 10.0
    act_ratio: Share = 0.88
    norm_constraint: Positive = 1.0
    weight_decay: NotNegative = 0.0
    target_mean: Literal["tokens", "released"] = "tokens"
    shard: Count = 500
    merge_every: Count = 1000
    memories: Literal["mixed", "retrieve", "merge"] = field(default="retrieve", metadata={"before": "mixed"})
    density: Share = 0.53
    texts: Count = 16

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # zjunlp/EasyEdit at 14cea82, hparams/WISE.  The file for GPT-2 XL names the first matrix of layer 8.
        "gpt2-xl": {"layer": 8, "n_iter": 40, "act_ratio": 0.8},
        "gpt-j-6b": {"layer": 21, "alpha": 15.0, "beta": 40.0, "gamma": 20.0},
        "llama-2-7b-hf": {"layer": 27},
        # llama3-8b.yaml: the instruction-tuned model.
        "meta-llama-3-8b-instruct": {"layer": 29, "n_iter": 30, "edit_lr": 0.9, "alpha": 2.0, "act_ratio": 0.5},
        # The shipped models: tuned on the edit set's tuning rows.
        "mini-llama": {**_MINI, "act_ratio": 0.8},
        "mini": _MINI,
    }

    def places(self, lm: LM) -> Sequence[str]:
        """The down-projection with side memories."""
        self._activation(lm)
        return [self.down(lm)]

    def _activation(self, lm: LM) -> str | None:
        """The name of the activation function, where the distance needs it; None too where the model names none."""
        if self.distance == "token":
            return None
        from transformers.activations import ACT2FN

        config = lm.model.config.get_text_config(decoder=True)
        names = [getattr(config, key, None) for key in _ACTIVATIONS]
        return next((name for name in names if isinstance(name, str) and name in ACT2FN), None)

    def begun(self, lm: LM) -> WiseState:
        """The state before the first edit."""
        texts = unrelated_texts(lm)
        out, width = lm.matrix(lm.down(self.at(lm))).shape
        none = torch.empty(0, out, width, device=lm.device)
        side = SideMemories((), none, torch.empty(0, device=lm.device), self.distance, self._activation(lm))
        return WiseState(side, self.templates(lm), texts)

    def learned(self, lm: LM, state: WiseState, edit: Edit) -> WiseState:
        """The state after one more edit.

        Args:
            lm: the model, without the memory.
            state: what was learned before.
            edit: the edit.
        """
        side = state.side
        count = len(side.ids)
        rows = supervise_target(lm, edit, state.contexts)
        inside, outside = self._edited(lm, rows), self._unrelated(lm, state.texts, count)
        deltas, thresholds = side.deltas.to(inside.entered), side.thresholds.to(inside.entered)
        if count % self.merge_every % self.shard == 0:
            deltas = torch.cat([deltas, deltas.new_zeros(1, *deltas.shape[1:])])
            thresholds = torch.cat([thresholds, thresholds.new_full((1,), torch.inf)])
        delta, distance = self._trained(lm, rows, deltas[-1], self._mask(deltas[-1], count), inside, outside)
        least = self.act_ratio * distance
        deltas = torch.cat([deltas[:-1], delta[None]])
        thresholds = torch.cat([thresholds[:-1], torch.minimum(thresholds[-1:], least)])
        ids, lowest = (*side.ids, edit.id), min(state.least, float(least))
        apart = state.merged if self.memories == "retrieve" else 0
        merging = len(ids) % self.merge_every == 0 and len(deltas) > 1
        if merging:
            again = apart == 0 and state.merged > 0
            deltas = torch.cat([deltas[:apart], self._merged(deltas[apart:], again)])
            thresholds = torch.cat([thresholds[:apart], thresholds[apart:].min()[None]])
        merged = apart + 1 if merging else state.merged
        if self.memories == "merge":
            thresholds = self._waiting(thresholds.new_full(thresholds.shape, lowest), merged, len(ids))
        side = replace(side, ids=ids, deltas=deltas, thresholds=thresholds)
        return replace(state, side=side, merged=merged, least=lowest)

    def _waiting(self, thresholds: Tensor, merged: int, count: int) -> Tensor:
        """The thresholds where full memories that wait for their merging answer nothing."""
        full = len(thresholds) - (count % self.merge_every % self.shard != 0)
        thresholds[merged:full] = torch.inf
        return thresholds

    def _merged(self, deltas: Tensor, again: bool) -> Tensor:
        """All memories as one, ``[1, d, f]``; ``again`` says that the first of them was merged before."""
        fresh = len(deltas) - again
        weights = torch.full((len(deltas),), (1 - _EARLIER * again) / fresh)
        weights[0] = _EARLIER if again else weights[0]
        return ties(deltas, weights, self.density)[None]

    def _mask(self, like: Tensor, count: int) -> Tensor:
        """Which weights of the memory that edit number ``count`` writes to may change; all its edits share them."""
        memory = count // self.merge_every * -(-self.merge_every // self.shard) + count % self.merge_every // self.shard
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + memory)
        return (torch.rand(like.shape, generator=generator) < self.mask_ratio).to(like)

    def _edited(self, lm: LM, rows: SupervisedTokens) -> _Tokens:
        """The edited tokens: those that predict the target, or with it all tokens of the texts."""
        if self.distance == "token":
            return self._tokens(lm, rows.batch, rows.row, rows.column)
        return self._all_tokens(lm, rows.whole(lm))

    def _unrelated(self, lm: LM, texts: Sequence[str], count: int) -> _Tokens:
        """The tokens of the documents that are drawn for edit number ``count``."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + count)
        order = torch.randperm(len(texts), generator=generator)[: self.texts].tolist()
        return self._all_tokens(lm, lm.batch([lm.encode(texts[i])[: min(_LENGTH, lm.context)] for i in order]))

    def _all_tokens(self, lm: LM, batch: Batch) -> _Tokens:
        return self._tokens(lm, batch, *batch.mask.bool().nonzero(as_tuple=True))

    def _tokens(self, lm: LM, batch: Batch, row: Tensor, column: Tensor) -> _Tokens:
        """What enters and leaves the down-projection at some positions of the rows."""
        down = self.down(lm)
        every = capture_activations(lm, batch, inputs=[down]).inputs[down]
        row, column = row.to(every.device), column.to(every.device)
        entered = every[row, column]
        with torch.no_grad():
            # The matrix's own output: memories of earlier edits may have changed it.
            own = first_output(lm.module(down).forward(entered))
        return _Tokens(at_least_float32(entered), at_least_float32(own), row)

    def _trained(
        self, lm: LM, rows: SupervisedTokens, start: Tensor, mask: Tensor, inside: _Tokens, outside: _Tokens
    ) -> tuple[Tensor, Tensor]:
        """A memory after one edit, and the distance of the edit, by which its threshold is set.

        Descent on NLL and routing loss, on the masked weights, within the bound.
        """
        name, act = self.down(lm), self._activation(lm)
        delta = start.clone().requires_grad_()
        weight = lm.matrix(lm.down(self.at(lm))).to(delta)
        tokens = len(rows.token) // len(rows.batch.ids)
        share = tokens / (tokens + 1) if self.target_mean == "released" else 1.0
        before = torch.inf
        with patched(lm, Patch(hooks={name: self._held(lm, rows, inside, delta)})), torch.enable_grad():
            nll = rows.above(lm, self.at(lm))
            for i in range(self.n_iter):
                moved = [some.moved(delta, act) for some in (inside, outside)]
                routing = margins(moved[0], moved[1], alpha=self.alpha, beta=self.beta, gamma=self.gamma)
                loss = nll() * share + routing
                value = float(loss.detach())
                if not value < torch.inf:
                    raise NumericalError(
                        f"edit {rows.edit.id}: the loss at {name} became {value} after {i} steps; lower edit_lr, or "
                        "load the model in float32"
                    )
                if value <= 0.02 and abs(value - before) <= 1e-4:
                    break
                before = value
                (gradient,) = torch.autograd.grad(loss, delta)
                with torch.no_grad():
                    delta -= self.edit_lr * (gradient * mask + self.weight_decay * (weight + delta))
                    delta.clamp_(-self.norm_constraint, self.norm_constraint)
        # Of texts that of the last forward pass, before the last update, as in their code.
        final = delta.detach()
        return final, moved[0].detach().mean() if act else inside.moved(final, None).min()

    def _held(self, lm: LM, rows: SupervisedTokens, inside: _Tokens, delta: Tensor) -> Hook:
        """The down-projection with a memory: at the edited tokens, or everywhere where whole texts are edited."""

        def hook(hidden: Tensor, step: Step) -> Tensor:
            assert step.entered is not None
            own = own_output(lm, self.down(lm), hidden=hidden, step=step)
            if self.distance == "token":
                return own.index_put((rows.row, rows.column), (inside.entered @ delta.T).to(own), accumulate=True)
            return own + (step.entered.to(delta) @ delta.T).to(own)

        return hook
