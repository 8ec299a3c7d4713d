"""R-ROME: ROME with one key in both places of its formula, which ends its sudden collapse in sequential editing.

Source: Gupta, Baskaran, Anumanchipalli 2024, "Rebuilding ROME: Resolving Model Collapse during Sequential Model
Editing", arXiv 2403.07175, and the authors' code (scalable-model-editing/rebuilding-rome).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.editing.edit import Edit
from harness.methods.keys import Unedited, rank_one_changes
from harness.methods.rank_one import RankOne, update_direction
from harness.methods.value import optimise
from harness.models.lm import LM
from harness.patches.delta import LowRank

__all__ = ["RRome"]


@dataclass(frozen=True)
class RRome(RankOne):
    """``W' = W + (v* - y) / (k . u) u^T`` with ``u = C^-1 k`` and the same ``k`` everywhere.

    Attributes:
        variant: ``prefix``: ``k`` and ``y`` are means over the context templates, ``v* = v0 + delta``; ``prompt``:
            they are those of the bare prompt, ``v* = y + delta``.

    The presets are ROME's: the authors keep its hyperparameters.
    """

    name = "r_rome"

    variant: Literal["prefix", "prompt"] = "prefix"

    def changes(self, lm: LM, edits: Sequence[Edit], layer: int, *, prior: Unedited) -> list[LowRank]:
        """The rank-one change of one layer for each of some independent edits."""
        moment = self.moment(prior, layer)
        values = optimise(lm, edits, prior.contexts, objective=self.objective(layer), keys=True)
        templates = prior.contexts if self.variant == "prefix" else ("{}",)
        key, output = self.seen(lm, edits, layer=layer, templates=templates, values=values)
        wanted = values.value if self.variant == "prefix" else output + values.delta
        return rank_one_changes(
            update_direction(key, moment),
            key=key,
            output=output,
            value=wanted,
            names=[f"edit {edit.id}" for edit in edits],
        )

    def label(self) -> str:
        """The name, with the variant where it is not the default."""
        return super().label() + ("" if self.variant == "prefix" else f"-{self.variant}")
