"""QLoRA: low-rank adapters that are trained beside matrices of four bits.

Source: Dettmers, Pagnoni, Holtzman, Zettlemoyer 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv
2305.14314; as an editor in zjunlp/EasyEdit (at 14cea82, easyeditor/models/qlora), which loads the model in four bits.

Here the model is the one that was given, and every matrix of its blocks is for the time of an edit what four-bit normal
floats leave of it (:mod:`harness.methods.nf4`): numerically what the paper trains on, and slower and larger than it, as
what is kept in memory are floats.  A matrix that is quantised already stays as it is.  By default the adapters are then
added to the given matrices, so that nothing but the edit is measured; ``base=quantised`` leaves the rounding in, as the
paper's and EasyEdit's models have it, and counts what that costs as a cost of the edit.

EasyEdit's loss is not followed: it compares the padded target with what stands at the padded prompt's places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from harness.editing.directions import DIRECTIONS
from harness.editing.edit import Edit
from harness.editing.editor import Pass, own_memory
from harness.methods.adapters import Adapters
from harness.methods.nf4 import nf4_round_trip
from harness.models.arch import is_matrix
from harness.models.dequantised import quantised_as
from harness.models.lm import LM
from harness.patches.delta import Dense
from harness.patches.patch import Patch, patched

__all__ = ["QLora", "Rounded"]


@dataclass(frozen=True, eq=False)
class Rounded:
    """What four bits left out of the unedited model.

    Attributes:
        changes: parameter name -> ``NF4(W) - W``.
    """

    changes: Mapping[str, Tensor]

    @property
    def patch(self) -> Patch:
        """It as a change."""
        return Patch({name: Dense(change) for name, change in self.changes.items()})


@dataclass(frozen=True)
class QLora(Adapters):
    """``W' = W + (alpha / r) B A``, where ``A`` and ``B`` are trained beside ``NF4(W)``.

    Attributes:
        double: whether the magnitudes of blocks of 64 numbers are quantised, too (``double_quant``).
        base: to what the adapters are added: the ``given`` matrices, or the ``quantised`` ones.
    """

    name = "qlora"
    random = True
    directions = DIRECTIONS

    double: bool = True
    base: Literal["given", "quantised"] = "given"

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # zjunlp/EasyEdit at 14cea82, hparams/QLoRA.
        "meta-llama-3-8b": {
            "modules": ("q_proj", "v_proj"),
            "dropout": 0.1,
            "steps": 1,
            "batch_size": 1,
            "threshold": 0.0,
        },
        "llama-3.2-3b-instruct": {
            "modules": ("q_proj", "v_proj"),
            "dropout": 0.1,
            "steps": 2,
            "batch_size": 1,
            "threshold": 0.0,
        },
        "qwen2.5-7b": {"modules": ("q_proj", "v_proj"), "dropout": 0.1, "steps": 1, "batch_size": 1, "threshold": 0.0},
        # As those of lora, so that what the adapters stand beside is all that differs.
        "mini-llama": {"lr": 1e-3},
        "mini": {"lr": 1e-3},
        "mini-backpack": {"lr": 5e-3},
    }

    def places(self, lm: LM) -> Sequence[str]:
        """The matrices that get an adapter; those of all blocks where their rounding stays, too."""
        return super().places(lm) if self.base == "given" else _rounded(lm)

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """All edits at once, in mini-batches, on the model rounded once: adapters of earlier operations are not."""
        before = own_memory(memory, Rounded)
        if not edits:
            return Patch(memory=memory)
        rounding = self.rounding(lm) if before is None else before.patch
        known = before or Rounded({name: delta.dense() for name, delta in rounding.weights.items()})
        if before and self.base == "quantised":  # it is part of what the model carries
            return super().edit(lm, edits).remember(known)
        with patched(lm, rounding):
            return self._kept(rounding, super().edit(lm, edits)).remember(known)

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        """Independent edits, for which the model is rounded once."""
        rounding = self.rounding(lm)
        with patched(lm, rounding):
            return [self._kept(rounding, super(QLora, self).edit(lm, [edit])) for edit in edits]

    def passes(self, lm: LM, edits: Sequence[Edit]) -> Iterator[Pass]:
        """The change after each pass; the model is rounded until the last is made."""
        rounding = self.rounding(lm)
        with patched(lm, rounding):
            done = list(super().passes(lm, edits))
        for one in done:
            yield replace(one, patch=self._kept(rounding, one.patch))

    def rounding(self, lm: LM) -> Patch:
        """What four bits leave out of the matrices of all blocks, as a change of them."""
        changes = {}
        for name in _rounded(lm):
            matrix = lm.matrix(f"{name}.weight").float()
            changes[f"{name}.weight"] = Dense(nf4_round_trip(matrix, double=self.double) - matrix)
        return Patch(changes)

    def _kept(self, rounding: Patch, adapters: Patch) -> Patch:
        return adapters if self.base == "given" else rounding + adapters


def _rounded(lm: LM) -> list[str]:
    """The matrices of the blocks that hold floating-point numbers of their own."""
    blocks = [lm.arch.block(layer) for layer in range(lm.arch.layers)]
    inside = [(f"{at}.{name}", part) for at in blocks for name, part in lm.module(at).named_modules()]
    return [name for name, part in inside if is_matrix(part) and quantised_as(lm.parameter(f"{name}.weight")) is None]
