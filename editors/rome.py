"""ROME: a rank-one change that inserts one fact into one layer's feed-forward memory.

Source: Meng, Bau, Andonian, Belinkov 2022, "Locating and Editing Factual Associations in GPT", arXiv 2202.05262, and
the authors' code (kmeng01/rome at 0874014).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.delta import LowRank
from harness.editor import Edit
from harness.keys import Unedited, inserted, keys
from harness.lm import LM
from harness.rankone import RankOne, direction
from harness.value import optimise

__all__ = ["Rome"]


@dataclass(frozen=True)
class Rome(RankOne):
    """``W' = W + (v* - W k0) / (k0 . u) u^T`` with ``u = C^-1 k`` (equation 2).

    ``k``, in ``u``, is the mean key over context templates; ``k0`` is the key of the bare prompt, as in the authors'
    code. (:mod:`editors.r_rome` uses one key in both places.)
    """

    name = "rome"

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # kmeng01/rome, hparams/ROME.
        "gpt2-medium": {"layers": (8,), "clamp": 3.0},
        "gpt2-large": {"layers": (12,), "clamp": 4.0},
        "gpt2-xl": {"layers": (17,), "clamp": 4.0},
        "gpt-j-6b": {"layers": (5,), "clamp": 4.0},
        # kmeng01/memit, hparams/ROME.
        "gpt-neox-20b": {"layers": (15,), "clamp": 4.0},
        # mjy1111/PRUNE at 046c2a6: the settings with covariance (zjunlp/EasyEdit publishes these models without it).
        "llama-2-7b-hf": {"layers": (5,), "v_steps": 25, "v_weight_decay": 1e-3, "clamp": 4.0},
        "meta-llama-3-8b": {"layers": (4,), "v_steps": 25, "v_weight_decay": 1e-3, "clamp": 4.0},
        # The shipped models: tuned on the edit set's tuning rows.
        "mini-llama": {"layers": (0,), "v_steps": 40, "v_weight_decay": 1e-3, "clamp": 10.0},
        "mini": {"layers": (0,), "v_steps": 40, "v_lr": 0.2, "v_weight_decay": 1e-3, "clamp": 10.0},
    }

    def changes(self, lm: LM, edits: Sequence[Edit], layer: int, prior: Unedited) -> list[LowRank]:
        """The rank-one change of one layer for each of some independent edits."""
        mean, _ = keys(lm, edits, layer, prior.contexts, self.fact_token)
        u = direction(mean, self.moment(prior, layer))
        values = optimise(lm, edits, prior.contexts, self.objective(layer))
        key, output = keys(lm, edits, layer, ("{}",), self.fact_token, outputs=True)
        return inserted(u, key, output, values.value, [f"edit {edit.id}" for edit in edits])
