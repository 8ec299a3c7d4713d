"""Full finetuning: all parameters of the model, on the targets alone.

Source: the baseline of Hewitt et al. 2024, "Model Editing with Canonical Examples", arXiv 2402.06155, section 4, and
its code (john-hewitt/model-editing-canonical-examples at 15a1e7b).  What is trained are float32 copies: updates of the
published learning rates, 1e-8 to 1e-4, vanish in bfloat16 weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

from harness.editing.directions import DIRECTIONS
from harness.editing.edit import Edit
from harness.editing.editor import Pass
from harness.editing.hyperparameters import Positive
from harness.methods.descent import descend, passes
from harness.methods.finetuning import Finetuning
from harness.models.lm import LM
from harness.patches.patch import Patch

__all__ = ["FullFinetuning"]


@dataclass(frozen=True)
class FullFinetuning(Finetuning):
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

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """All edits, in mini-batches."""
        if not edits:
            return Patch()
        return Patch(descend(lm, edits, _parameters(lm), settings=self.settings(), prior=self.prior(lm)).deltas)

    def passes(self, lm: LM, edits: Sequence[Edit]) -> Iterator[Pass]:
        """The change after each pass."""
        for trained in passes(lm, edits, _parameters(lm), settings=self.settings(), prior=self.prior(lm)):
            yield Pass(Patch(trained.deltas), fmean(trained.losses))


def _parameters(lm: LM) -> list[str]:
    """All parameters; of tied ones the first name."""
    return [name for name, _ in lm.model.named_parameters()]
