"""RECT: keeps, of every change, the entries that are largest relative to the weights that they change.

Source: Gu, Xu, Ma, Lu, Ling, Chang, Peng 2024, "Model Editing Harms General Abilities of Large Language Models:
Regularization to the Rescue", arXiv 2401.04700. In the authors' code (JasonForJoy/Model-Editing-Hurt at 8f8d4dc) the
rule is disabled, and its function returns nothing; here it is as the paper says it. The code's PCA baseline adds
principal scores, which do not approximate the change; here they are mapped back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.editor import Pass, Wrapper
from harness.editing.hyperparameters import Share
from harness.editing.made import made, made_each
from harness.models.lm import LM
from harness.patches.delta import Delta, Dense, LowRank
from harness.patches.patch import Patch

__all__ = ["Rect", "keep_largest", "keep_principal", "keep_random"]


def keep_largest(change: Tensor, weight: Tensor, count: int) -> Tensor:
    """A change in which all but the entries of largest ``|dW / W|`` are zero.

    A change of a weight that is zero counts as infinite, no change as none, whatever its weight.

    Args:
        change: ``dW``.
        weight: ``W``, of the same shape, as it is just before the change.
        count: how many entries are kept.
    """
    kind = torch.promote_types(torch.promote_types(change.dtype, weight.dtype), torch.float32)
    relative = (change.to(kind) / weight.to(change.device, kind)).abs()
    return _only(change, torch.where(change == 0, 0.0, relative).flatten().topk(count, sorted=False).indices)


def keep_random(change: Tensor, count: int, seed: int) -> Tensor:
    """A change in which all but ``count`` entries, drawn uniformly, are zero (the paper's Random).

    Args:
        change: ``[out, in]``.
        count: how many entries stay.
        seed: the seed of the draw.
    """
    order = torch.randperm(change.numel(), generator=torch.Generator().manual_seed(seed))
    return _only(change, order[:count].to(change.device))


def _only(change: Tensor, indices: Tensor) -> Tensor:
    flat = torch.zeros(change.numel(), dtype=change.dtype, device=change.device)
    flat[indices] = change.flatten()[indices]
    return flat.reshape(change.shape)


def keep_principal(delta: Delta, count: int) -> Delta:
    """The best approximation of a change by its mean and ``count`` principal components (the paper's PCA).

    Each input of the matrix is an observation, each output a variable, as in the paper's example. A change whose rank
    is at most ``count``, such as ROME's of rank one, stays as it is; so does a bias.
    """
    if len(delta.shape) < 2 or (isinstance(delta, LowRank) and delta.left.shape[1] <= count):
        return delta
    change = delta.dense()
    mean = change.mean(1, keepdim=True)
    left, values, right = Dense(change - mean).svd()
    components = LowRank(left[:, :count] * values[:count], right[:count]).to(change.device, change.dtype)
    return components + LowRank(mean, torch.ones_like(change[:1]))


@dataclass(frozen=True)
class Rect(Wrapper):
    """Sets the rest of every increment to zero, once for each matrix, when the inner editor has made it.

    Attributes:
        keep: the share of the entries that stay, to the nearest whole number (k %; the paper recommends 40 %; its code
            rounds so that one more may stay), of the principal components with ``pca``.
        choose: ``relative`` by ``|dW / W|``, ``W`` with all earlier edits; or the paper's controls ``random`` and
            ``pca``.
        seed: of ``random``, together with the edits and the parameter's name.

    Raises:
        UsageError: the inner editor changes no weights.
    """

    name = "rect"

    keep: Share = 0.4
    choose: Literal["relative", "random", "pca"] = "relative"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_weights("keeps a share of", "memit")

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """What is kept of the inner increment."""
        return self._reduced(lm, edits, made(self.inner, lm, edits, memory=memory))

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        """What is kept of each inner patch."""
        patches = made_each(self.inner, lm, edits)
        return [self._reduced(lm, [edit], patch) for edit, patch in zip(edits, patches, strict=True)]

    def passes(self, lm: LM, edits: Sequence[Edit]) -> Iterator[Pass]:
        """What is kept of the inner change after each pass."""
        for done in self.inner.passes(lm, edits):
            yield replace(done, patch=self._reduced(lm, edits, done.patch))

    def label(self) -> str:
        """The names, with k and the control where one is not the default."""
        if self.keep == Rect.keep and self.choose == Rect.choose:
            return super().label()
        return f"{super().label()}{100 * self.keep:g}" + ("" if self.choose == "relative" else f"-{self.choose}")

    def _reduced(self, lm: LM, edits: Sequence[Edit], patch: Patch) -> Patch:
        return replace(patch, weights={n: self._part(lm, edits, n, delta) for n, delta in patch.weights.items()})

    def _part(self, lm: LM, edits: Sequence[Edit], name: str, delta: Delta) -> Delta:
        """What is kept of the change of one parameter; a change that is kept whole stays low rank."""
        count = round(self.keep * delta.shape.numel())
        if count == delta.shape.numel():
            return delta
        if self.choose == "pca":
            return keep_principal(delta, round(self.keep * min(delta.shape)))
        if self.choose == "random":
            return Dense(keep_random(delta.dense(), count, self._draw(edits, name)))
        return Dense(keep_largest(delta.dense(), lm.matrix(name), count))

    def _draw(self, edits: Sequence[Edit], name: str) -> int:
        """A seed of its own for each parameter of each increment, the same side by side and one by one."""
        said = [self.seed, name, *(text for edit in edits for text in (edit.text, edit.target))]
        return int.from_bytes(hashlib.sha256(repr(said).encode()).digest()[:6], "big")
