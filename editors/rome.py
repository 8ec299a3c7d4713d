"""ROME: a rank-one change that inserts one fact into one layer's feed-forward memory.

Source: Meng, Bau, Andonian, Belinkov 2022, "Locating and Editing Factual Associations in GPT", arXiv 2202.05262, and
the authors' code (kmeng01/rome at 0874014).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.editing.edit import Edit
from harness.methods.keys import Unedited, rank_one_changes
from harness.methods.rank_one import RankOne, update_direction
from harness.methods.value import optimise
from harness.models.lm import LM
from harness.patches.delta import LowRank

__all__ = ["Rome"]


@dataclass(frozen=True)
class Rome(RankOne):
    """``W' = W + (v* - W k0) / (k0 . u) u^T`` with ``u = C^-1 k`` (equation 2).

    ``k``, in ``u``, is the mean key over context templates; ``k0`` is the key of the bare prompt, as in the authors'
    code. (:mod:`editors.r_rome` uses one key in both places.)
    """

    name = "rome"

    def changes(self, lm: LM, edits: Sequence[Edit], layer: int, *, prior: Unedited) -> list[LowRank]:
        """The rank-one change of one layer for each of some independent edits."""
        moment = self.moment(prior, layer)
        values = optimise(lm, edits, prior.contexts, objective=self.objective(layer), keys=True)
        mean, _ = self.seen(lm, edits, layer=layer, templates=prior.contexts, values=values)
        key, output = self.seen(lm, edits, layer=layer, templates=("{}",), values=values)
        return rank_one_changes(
            update_direction(mean, moment),
            key=key,
            output=output,
            value=values.value,
            names=[f"edit {edit.id}" for edit in edits],
        )
