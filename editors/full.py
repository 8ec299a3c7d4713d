"""Full finetuning: all parameters of the model, on the targets alone.

Source: the baseline of Hewitt et al. 2024, "Model Editing with Canonical Examples", arXiv 2402.06155, section 4, and
its code (john-hewitt/model-editing-canonical-examples at 15a1e7b).  What is trained are float32 copies: updates of the
published learning rates, 1e-8 to 1e-4, vanish in bfloat16 weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from harness.editing.directions import DIRECTIONS
from harness.editing.hyperparameters import Positive
from harness.methods.finetuning import FinetuningInPlace
from harness.models.lm import LM

__all__ = ["FullFinetuning"]


@dataclass(frozen=True)
class FullFinetuning(FinetuningInPlace):
    """Adam on every parameter, embeddings and norms included."""

    name = "full"
    random = True
    directions = DIRECTIONS

    lr: Positive = 1e-5

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # The shipped models: tuned on the edit set's tuning rows.
        "mini-llama": {"lr": 3e-4},
        "mini": {"lr": 1e-4},
    }

    def trained(self, lm: LM) -> list[str]:
        """All parameters; of tied ones the first name."""
        return [name for name, _ in lm.model.named_parameters()]
