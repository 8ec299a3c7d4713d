"""An editor for tests: each edit adds a seeded random matrix of rank one to a layer's down-projection.

It stands outside ``editors/``, as a user's own file would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.models.lm import LM
from harness.patches.delta import Delta, Dense, LowRank
from harness.patches.patch import Patch

__all__ = ["Nudge"]


@dataclass(frozen=True)
class Nudge(Editor):
    """Adds random rank-one changes.

    Attributes:
        scale: the Frobenius norm of one change.
        layer: the layer.
        form: how the change is handed over.
        seed: of the change, together with the edit's text.
    """

    name = "nudge"

    scale: float = 1.0
    layer: int = 1
    form: Literal["low", "dense"] = "low"
    seed: int = 0

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """The sum over the edits; the memory counts them."""
        total = Patch()
        for edit in edits:
            total = total + Patch({lm.down(self.layer): self._change(lm, edit)})
        made = memory if isinstance(memory, int) else 0
        return total.remember(made + len(edits))

    def _change(self, lm: LM, edit: Edit) -> Delta:
        weight = lm.matrix(lm.down(self.layer))
        digest = hashlib.sha256(f"{self.seed} {edit.text} {edit.target}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
        left = torch.randn(weight.shape[0], 1, generator=generator)
        right = torch.randn(1, weight.shape[1], generator=generator)
        change = LowRank(self.scale * left / left.norm(), right / right.norm()).to(weight.device, weight.dtype)
        return change if self.form == "low" else Dense(change.dense())
