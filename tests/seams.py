"""An editor for tests that changes a model at all four seams, with parts that can be saved and joined.

It stands outside ``editors/``, as a user's own file would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.hyperparameters import NotNegative
from harness.models.lm import LM
from harness.patches.delta import Dense, LowRank
from harness.patches.patch import Part, Patch, Step

__all__ = ["Bonus", "Preface", "Seams", "Shift"]


@dataclass(frozen=True, eq=False)
class Shift(Part):
    """Adds vectors ``[n, dim]`` to the activations at tokens of some kinds, one vector for each kind."""

    amounts: Tensor
    kinds: tuple[int, ...]

    def __call__(self, hidden: Tensor, step: Step) -> Tensor:
        ids = step.ids[:, -step.new :]
        for kind, amount in zip(self.kinds, self.amounts, strict=True):
            hidden = torch.where((ids == kind)[..., None], hidden + amount.to(hidden), hidden)
        return hidden

    def tensors(self) -> dict[str, Tensor]:
        return {"amounts": self.amounts}

    def settings(self) -> dict[str, Any]:
        return {"kinds": list(self.kinds)}

    @classmethod
    def restore(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Shift:
        (amounts,) = tensors.values()  # its own and no other's
        return cls(amounts, tuple(settings["kinds"]))

    def joined(self, later: Shift) -> Shift:
        return Shift(torch.cat([self.amounts, later.amounts]), self.kinds + later.kinds)


@dataclass(frozen=True)
class Preface(Part):
    """Writes texts in front of a context."""

    texts: tuple[str, ...]

    def __call__(self, context: str) -> str:
        return " ".join([*self.texts, context])

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def settings(self) -> dict[str, Any]:
        return {"texts": list(self.texts)}

    @classmethod
    def restore(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Preface:
        return cls(tuple(settings["texts"]))

    def joined(self, later: Preface) -> Preface:
        return Preface(self.texts + later.texts)


@dataclass(frozen=True, eq=False)
class Bonus(Part):
    """Adds a number ``[vocabulary]`` to each logit."""

    bonus: Tensor

    def __call__(self, logits: Tensor, step: Step) -> Tensor:
        return logits + self.bonus.to(logits)

    def tensors(self) -> dict[str, Tensor]:
        return {"bonus": self.bonus}

    def settings(self) -> dict[str, Any]:
        return {}

    @classmethod
    def restore(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Bonus:
        return cls(tensors["bonus"])

    def joined(self, later: Bonus) -> Bonus:
        return Bonus(self.bonus + later.bonus)


@dataclass(frozen=True)
class Seams(Editor):
    """Changes a down-projection, a norm's weight, a block's activations, the prompt and the logits, for each edit.

    Attributes:
        scale: the size of all changes.
    """

    name = "seams"
    seams = frozenset({"weights", "activations", "prompt", "logits"})

    scale: NotNegative = 1.0

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """The sum over the edits."""
        total = Patch()
        for edit in edits:
            total = total + self._one(lm, edit)
        return total

    def _one(self, lm: LM, edit: Edit) -> Patch:
        width, inner, device = lm.arch.width, lm.arch.inner, lm.device
        target = lm.continuation(edit.text, edit.continuation)[0]
        bonus = torch.zeros(lm.model.config.vocab_size, device=device)
        bonus[target] = self.scale
        left = torch.linspace(-1, 1, width, device=device)[:, None] * self.scale
        right = torch.linspace(0, 1, inner, device=device)[None] / (1 + target)
        norm = Dense(torch.full((width,), self.scale / 8, device=device))
        shift = Shift(left.T, (lm.encode(edit.text)[-1],))
        return Patch(
            weights={lm.down(1): LowRank(left, right), f"{lm.arch.norm}.weight": norm},
            hooks={lm.arch.block(0): shift},
            prompt=Preface((f"{edit.text}{edit.continuation}.",)),
            logits=Bonus(bonus),
        )
