"""DEFER: a linear map answers in place of one module where a trained deferral says so.

Source: Hartvigsen, Sankaranarayanan, Palangi, Kim, Ghassemi 2023, "Aging with GRACE: Lifelong Model Editing with
Discrete Key-Value Adaptors", arXiv 2211.11031, section 3.1 (the baseline "Defer", after SERAC), and the authors' code
(Thartvigsen/GRACE at f674183, grace/editors/defer.py).  Our letters: ``x`` what enters the module ``f``; the deferral
is ``s(x) = sigmoid(w x + b)``, the answer ``V x + c``.  Training mixes them, ``s (V x + c) + (1 - s) f(x)``; in use the
answer stands where ``s`` reaches the threshold, and the module's own output elsewhere.

Nothing in training says where not to defer: on the small world's CounterFact every neighbour is answered by the edit.
There one token of a pass decides for all its positions; here each position does, see ``routing``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.editor import own_memory
from harness.editing.hyperparameters import Count, Positive, Share
from harness.errors import ModelError
from harness.methods.routing import last_real
from harness.methods.site import Site, SiteEditor, own_output
from harness.methods.supervised_tokens import SupervisedTokens, supervise_target
from harness.models.activations import at_least_float32
from harness.models.lm import LM
from harness.patches.patch import Part, Patch, Step

__all__ = ["Defer", "Deferral", "Routing"]

Routing = Literal["token", "pass"]
"""Which position decides, see :class:`Defer`."""


@dataclass(frozen=True, eq=False)
class Deferral(Part):
    """Deferrals beside a module, one, or as many as independent patches were joined.

    Attributes:
        ids: the edits, in their order.
        weight: ``w``, ``[heads, k]``.
        bias: ``b``, ``[heads]``.
        answer: ``V``, ``[heads, d, k]``.
        shift: ``c``, ``[heads, d]``.
        threshold: the least ``s`` at which the answer stands.
        routing: which position decides.
    """

    ids: tuple[str, ...]
    weight: Tensor
    bias: Tensor
    answer: Tensor
    shift: Tensor
    threshold: float
    routing: Routing = "token"

    def holding(self, ids: tuple[str, ...], maps: Mapping[str, Tensor]) -> Deferral:
        """Other maps, of more edits."""
        return Deferral(ids=ids, threshold=self.threshold, routing=self.routing, **maps)

    def deferring(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """``s [..., 1]`` and ``V x + c`` ``[..., d]`` of the head that defers most, for queries ``[..., k]``."""
        query = query.to(self.weight)
        strength, head = torch.sigmoid(query @ self.weight.T + self.bias).max(-1, keepdim=True)
        every = torch.einsum("hdk,...k->...hd", self.answer, query) + self.shift
        return strength, every.take_along_dim(head[..., None], -2)[..., 0, :]

    def __call__(self, hidden: Tensor, step: Step) -> Tensor:
        """A hook (:data:`harness.patches.patch.Hook`)."""
        assert step.entered is not None
        query = step.entered if self.routing == "token" else last_real(step.entered, step)
        strength, answer = self.deferring(query)
        answer = answer.to(hidden.device, hidden.dtype)
        return torch.where((strength >= self.threshold).to(hidden.device), answer, hidden)

    def mixed(self, own: Tensor, query: Tensor) -> Tensor:
        """``s (V x + c) + (1 - s) f(x)``, as in training.

        Args:
            own: ``f(x)``, ``[batch, new, d]``.
            query: ``x``, of each position or of the one that decides for all.
        """
        strength, answer = self.deferring(query)
        return (strength * answer + (1 - strength) * at_least_float32(own)).to(own.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """The maps."""
        return {"weight": self.weight, "bias": self.bias, "answer": self.answer, "shift": self.shift}

    def settings(self) -> dict[str, Any]:
        """The edits, and when the answer stands."""
        return {"ids": list(self.ids), "threshold": self.threshold, "routing": self.routing}

    @classmethod
    def restore(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Deferral:
        """The maps, on the model's device."""
        made: dict[str, Any] = {name: tensor.to(lm.device) for name, tensor in tensors.items()}
        return cls(**made, **{**settings, "ids": tuple(settings["ids"])})

    def joined(self, later: Deferral) -> Deferral:
        """The later one if it goes on from this; if both are independent, the heads of both."""
        if later.ids[: len(self.ids)] == self.ids:
            return later
        if (self.threshold, self.routing) != (later.threshold, later.routing):
            raise ModelError("two patches of defer route in different ways; make both with the same settings")
        both = {name: torch.cat([mine, later.tensors()[name].to(mine)]) for name, mine in self.tensors().items()}
        return self.holding(self.ids + later.ids, both)


@dataclass(frozen=True)
class Defer(SiteEditor):
    """Adam on the deferral and the answer of one module, edit after edit; earlier edits are not looked at again.

    Attributes:
        layer: the layer; by default one at 75 % of the depth, as for GRACE.
        site: whose output is replaced, and what enters as ``x``: the feed-forward module ``mlp``, its down-projection
            ``down``, or its ``first`` matrix, before the activation function (their file for GPT-2 XL).
        routing: which position decides.  ``token``, our own: each for itself, so that scoring and generation agree.
            ``pass``, their code: one for all positions of a pass, in training the prompt's last token (in EasyEdit the
            target's), in use the last that is read.
        threshold: the least ``s`` at which the answer stands.
        n_iter: updates of an edit.
        edit_lr: Adam's learning rate.
        seed: of what both maps start from, the uniform numbers of a linear layer.
    """

    name = "defer"
    batch = False
    random = True

    layer: int | None = None
    site: Site = "mlp"
    routing: Routing = "token"
    threshold: Share = 0.5
    n_iter: Count = 100
    edit_lr: Positive = 0.1
    seed: int = 0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # Thartvigsen/GRACE at f674183, grace/config: what enters is as there; there the answer stands after the first
        # matrix (site=first).
        "gpt2-xl": {"layer": 35},
        # zjunlp/EasyEdit at 14cea82, hparams/DEFER.
        "gpt-j-6b": {"layer": 25, "site": "down", "edit_lr": 7e-5},
        "llama-2-7b-hf": {"layer": 27, "site": "down", "edit_lr": 7e-5},
        # The shipped models: tuned on the edit set's tuning rows of mini.
        "mini-llama": {"layer": 2, "edit_lr": 0.0109},
        "mini": {"layer": 2, "edit_lr": 0.0109},
    }

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """One edit after the other; the memory is what was trained so far."""
        found = own_memory(memory, Deferral)
        if not edits:
            return Patch(memory=memory)
        for edit in edits:
            found = self._learned(lm, found, edit)
        assert found is not None
        return Patch(hooks={self.module(lm): found}, memory=found)

    def begun(self, width: int, out: int, like: Tensor) -> Deferral:
        """The maps before the first edit.

        Args:
            width: numbers that enter.
            out: numbers that leave.
            like: whose type and device they have.
        """
        draw = torch.Generator().manual_seed(self.seed)

        def uniform(*shape: int) -> Tensor:
            numbers = torch.rand(shape, generator=draw, dtype=torch.float64)
            return ((2 * numbers - 1) / math.sqrt(width)).to(like)

        maps = uniform(1, width), uniform(1), uniform(1, out, width), uniform(1, out)
        return Deferral((), *maps, threshold=self.threshold, routing=self.routing)

    def _learned(self, lm: LM, found: Deferral | None, edit: Edit) -> Deferral:
        """What is trained after one more edit."""
        rows = supervise_target(lm, edit)
        query, output = self.at_the_end(lm, rows)
        found = found or self.begun(len(query), len(output), query)
        held = found.answer.shape
        self.require_widths(lm, "deferral", held=(held[2], held[1]), here=(len(query), len(output)))
        if held[0] > 1:
            raise ModelError("defer: the memory is joined from independent patches; start again without memory")
        free = {name: tensor.to(query).clone().requires_grad_() for name, tensor in found.tensors().items()}
        training = found.holding((*found.ids, edit.id), free)

        def hook(hidden: Tensor, step: Step) -> Tensor:
            return training.mixed(own_output(lm, self.module(lm), hidden=hidden, step=step), self._deciding(rows, step))

        self.descend(lm, rows, list(free.values()), hook=hook, steps=self.n_iter, lr=self.edit_lr)
        return training.holding(training.ids, {name: tensor.detach() for name, tensor in free.items()})

    def _deciding(self, rows: SupervisedTokens, step: Step) -> Tensor:
        """What enters where it is decided, ``[batch, new or 1, k]``."""
        assert step.entered is not None
        entered = at_least_float32(step.entered.detach())
        if self.routing == "token":
            return entered
        return entered[:, rows.column[0], None]
