"""A trained steering vector (RePS): one block writes it at every token, and the new answers are preferred to the old.

Source: Wu, Yu, Arora, Manning, Potts 2025, "Improved Representation Steering for Language Models" (reference-free
preference steering), arXiv 2505.20809, section 3, and its code in zjunlp/EasyEdit (at 14cea82, steer/trainer and
steer/models/interventions.py).  There the vector is trained to steer by many factors, and to be taken out again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from harness.editing.edit import Edit
from harness.editing.hyperparameters import Count, Positive, Range
from harness.errors import NumericalError
from harness.methods.contrast import answer_log_likelihoods, as_contrast
from harness.methods.descent import TokenisedEdit, tokenise
from harness.methods.keys import layer_at_depth
from harness.methods.steering import BlockEditor, add_vector
from harness.models.lm import LM
from harness.patches.patch import Part, Patch, Step, patched

__all__ = ["Added", "Steer", "preference_loss", "taken_out"]

Variant = Literal["paper", "released"]


def preference_loss(winning: Tensor, losing: Tensor, reluctance: Tensor, lengths: Tensor) -> Tensor:
    """``-log sigmoid(max(r, 1) log p(y_w) / |y_w| - log p(y_l) / |y_l|)``, ``[edits]``.

    Args:
        winning: the log-probability of the answer that shall win, by the steered model, ``[edits]``.
        losing: that of the other answer, ``[edits]``.
        reluctance: ``r``, by how much the model as it is prefers the other answer, in nats, ``[edits]``.
        lengths: the tokens of the two answers, ``[edits, 2]``.
    """
    return -nn.functional.logsigmoid(reluctance.clamp(min=1) * winning / lengths[:, 0] - losing / lengths[:, 1])


def taken_out(hidden: Tensor, vector: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """States without what points along the vector, ``h - max(h w + b, 0) w / |w|^2``, ``[..., d]``.

    Args:
        hidden: the states ``h``, ``[..., d]``.
        vector: ``w``, ``[d]``.
        bias: ``b``.
    """
    latent = torch.relu(hidden @ vector + bias)
    return hidden - latent[..., None] / vector.dot(vector) * vector


@dataclass(frozen=True)
class Steer(BlockEditor):
    """``h <- h + strength w`` after one block, at every token; ``w`` by AdamW on the losses of two directions.

    Steered by ``f w`` the new answers shall win, with a factor ``f`` drawn anew for each edit of each update; with
    ``w`` taken out of the states (:func:`taken_out`) the old ones shall.

    Attributes:
        layer: the block; by default one at 40 % of the depth.
        strength: the factor of the vector; by default the mean of ``factors``, below 0 it steers away.
        factors: those that the vector is trained for.
        variant: ``paper``; or ``released``, where an answer's length counts its prompt, each answer has a factor of its
            own, and a number that is trained with the vector is added to the factors.
        lr: the learning rate, which falls to 0 in a straight line.
        steps: passes over the edits.
        batch_size: edits of one update.
        seed: of the first vector, and of the factors.
    """

    name = "steer"
    seams = frozenset({"activations"})
    needs_old = True
    random = True
    directions = frozenset({"likelihood", "contrast"})
    exceptions: ClassVar[Mapping[str, str]] = {
        "target": "the loss compares two answers, and falls also where both become less likely, the old one more so"
    }

    layer: Annotated[int, Range(0)] | None = None
    strength: float | None = None
    factors: tuple[Positive, ...] = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0)
    variant: Variant = "paper"
    lr: Positive = 0.08
    steps: Count = 18
    batch_size: Count = 4
    seed: int = 0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # harness tune --editor steer --mode isolated --edits counterfact:20 --trials 8
        "mini": {"layer": 3, "lr": 0.0161},
    }

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """One vector for all edits; those of later operations are added to it.

        Raises:
            DataError: an edit does not name the old answer.
            NumericalError: a loss is not finite.
        """
        if not edits:
            return Patch()
        vector, bias = _trained(self, lm, tokenise(lm, [as_contrast(edit) for edit in edits]))
        strength = math.fsum(self.factors) / len(self.factors) if self.strength is None else self.strength
        return Patch(hooks={self.block(lm): Added((strength + bias) * vector)})

    def at(self, lm: LM) -> int:
        """The block."""
        return layer_at_depth(lm, 0.4) if self.layer is None else self.layer

    def label(self) -> str:
        """The name, with the variant where it is the released one."""
        return self.name if self.variant == "paper" else f"{self.name}-{self.variant}"


@dataclass(frozen=True, eq=False)
class Added(Part):
    """Adds one vector at every token (:data:`harness.patches.patch.Hook`).

    Attributes:
        vector: the vector, ``[d]``.
    """

    vector: Tensor

    def __call__(self, hidden: Tensor, step: Step) -> Tensor:  # noqa: ARG002
        """What the block writes, and the vector."""
        return add_vector(hidden, self.vector)

    def tensors(self) -> dict[str, Tensor]:
        """The vector."""
        return {"vector": self.vector}

    def settings(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    @classmethod
    def restore(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Added:  # noqa: ARG003
        """The vector again."""
        return cls(tensors["vector"].to(lm.device))

    def joined(self, later: Added) -> Added:
        """The sum of both."""
        return replace(later, vector=self.vector + later.vector.to(self.vector))


# --- learning ---------------------------------------------------------------------------------------------------------


def _trained(method: Steer, lm: LM, examples: Sequence[TokenisedEdit]) -> tuple[Tensor, Tensor]:
    """The vector ``[d]``, and the number that is added to factors (0 but in the released variant)."""
    draw = torch.Generator().manual_seed(method.seed)
    vector, bias = _begin(lm, draw), torch.zeros((), device=lm.device)
    before = _reluctance(lm, examples, method.batch_size)
    free = [vector, bias] if method.variant == "released" else [vector]
    adam = torch.optim.AdamW([each.requires_grad_() for each in free], lr=method.lr, weight_decay=0.0)
    starts = range(0, len(examples), method.batch_size)
    falling = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, total_iters=method.steps * len(starts))
    for _ in range(method.steps):
        for first in starts:
            chosen = slice(first, first + method.batch_size)
            with torch.enable_grad():
                loss = _loss(method, lm, examples[chosen], before[chosen], (vector, bias, draw))
            if not math.isfinite(value := float(loss.detach())):
                ids = ", ".join(one.edit.id for one in examples[chosen][:3])
                raise NumericalError(f"the loss of edits {ids} became {value} in training a vector; lower lr")
            adam.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(free, 1.0)
            adam.step()
            falling.step()
    return vector.detach(), bias.detach()


def _begin(lm: LM, draw: torch.Generator) -> Tensor:
    """A vector drawn on the processor, each number within ``1 / sqrt(d)``, as a linear layer begins."""
    drawn = (torch.rand(lm.arch.width, generator=draw) * 2 - 1) / math.sqrt(lm.arch.width)
    return drawn.to(lm.device, torch.promote_types(lm.dtype, drawn.dtype))


def _reluctance(lm: LM, examples: Sequence[TokenisedEdit], rows: int) -> Tensor:
    """``log p(old) - log p(new)`` of each edit by the model as it is, ``[edits]``."""
    with torch.no_grad():
        chunks = [answer_log_likelihoods(lm, examples[i : i + rows]) for i in range(0, len(examples), rows)]
    found = torch.cat(chunks)
    return found[:, 1] - found[:, 0]


def _loss(
    method: Steer,
    lm: LM,
    examples: Sequence[TokenisedEdit],
    reluctance: Tensor,
    free: tuple[Tensor, Tensor, torch.Generator],
) -> Tensor:
    """The mean loss of both directions."""
    vector, bias, draw = free
    released = method.variant == "released"
    answers = [[len(one.target), len(one.against)] for one in examples]
    prompts = [len(one.prompt) if released else 0 for one in examples]
    lengths = torch.tensor(answers, device=lm.device) + torch.tensor(prompts, device=lm.device)[:, None]
    drawn = torch.randint(len(method.factors), ((2 if released else 1) * len(examples),), generator=draw)
    factor = torch.tensor(method.factors)[drawn].to(vector).repeat(1 if released else 2)[:, None, None] + bias

    def score(change: Callable[[Tensor], Tensor]) -> Tensor:
        hook = {method.block(lm): lambda hidden, _step: change(hidden.to(vector)).to(hidden.dtype)}
        with patched(lm, Patch(hooks=hook)):
            return answer_log_likelihoods(lm, examples)

    steered = score(lambda hidden: hidden + factor * vector)
    without = score(lambda hidden: taken_out(hidden, vector, bias))
    won = preference_loss(steered[:, 0], steered[:, 1], reluctance, lengths)
    undone = preference_loss(without[:, 1], without[:, 0], -reluctance, lengths.flip(1))
    return (won + undone).mean()
