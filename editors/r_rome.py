"""R-ROME: ROME with one key in both places of its formula, which ends its sudden collapse in sequential editing.

Source: Gupta, Baskaran, Anumanchipalli 2024, "Rebuilding ROME: Resolving Model Collapse during Sequential Model
Editing", arXiv 2403.07175, and the authors' code (scalable-model-editing/rebuilding-rome).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from harness.delta import LowRank
from harness.editor import Edit
from harness.keys import Unedited, inserted, keys
from harness.lm import LM
from harness.rankone import RankOne, direction
from harness.value import optimise

__all__ = ["RRome"]


@dataclass(frozen=True)
class RRome(RankOne):
    """``W' = W + (v* - y) / (k . u) u^T`` with ``u = C^-1 k`` and the same ``k`` everywhere.

    Attributes:
        variant: ``prefix``: ``k`` and ``y`` are means over the context templates, ``v* = v0 + delta``; ``prompt``:
            they are those of the bare prompt, ``v* = y + delta``.
    """

    name = "r_rome"

    variant: Literal["prefix", "prompt"] = "prefix"

    # The authors keep the hyperparameters of ROME (kmeng01/rome, hparams/ROME; Llama: mjy1111/PRUNE, with covariance).
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "gpt2-medium": {"layers": (8,), "clamp": 3.0},
        "gpt2-large": {"layers": (12,), "clamp": 4.0},
        "gpt2-xl": {"layers": (17,), "clamp": 4.0},
        "gpt-j-6b": {"layers": (5,), "clamp": 4.0},
        "gpt-neox-20b": {"layers": (15,), "clamp": 4.0},
        "llama-2-7b-hf": {"layers": (5,), "v_steps": 25, "v_weight_decay": 1e-3, "clamp": 4.0},
        "meta-llama-3-8b": {"layers": (4,), "v_steps": 25, "v_weight_decay": 1e-3, "clamp": 4.0},
        # The shipped models: tuned on the edit set's tuning rows.
        "mini-llama": {"layers": (0,), "v_steps": 40, "v_weight_decay": 1e-3, "clamp": 10.0},
        "mini": {"layers": (0,), "v_steps": 40, "v_lr": 0.2, "v_weight_decay": 1e-3, "clamp": 10.0},
    }

    def changes(self, lm: LM, edits: Sequence[Edit], layer: int, prior: Unedited) -> list[LowRank]:
        """The rank-one change of one layer for each of some independent edits."""
        templates = prior.contexts if self.variant == "prefix" else ("{}",)
        key, output = keys(lm, edits, layer, templates, self.fact_token, outputs=True)
        u = direction(key, self.moment(prior, layer))
        values = optimise(lm, edits, prior.contexts, self.objective(layer))
        wanted = values.value if self.variant == "prefix" else output + values.delta
        return inserted(u, key, output, wanted, [f"edit {edit.id}" for edit in edits])

    def label(self) -> str:
        """The name, with the variant where it is not the default."""
        return super().label() + ("" if self.variant == "prefix" else f"-{self.variant}")
