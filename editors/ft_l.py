"""FT+L: fine-tuning of one layer's down-projection under an L-infinity bound.

Source: Zhu et al. 2020, "Modifying Memories in Transformer Models", arXiv 2012.00363; as the baseline FT+L of Meng et
al. 2022 (ROME), appendix E.1, and its code (kmeng01/rome), and as FT-L in later tables.  There all the target's tokens
are asked for at the prompt's last position (``loss=prompt_last``), which is the likelihood of the target only where
that has one token; ``loss=target_new``, the likelihood itself, has a label of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.editing.directions import DIRECTIONS, Normalisation
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.hyperparameters import Count, NotNegative, Positive
from harness.methods.descent import DescentSettings, Loss, descend, down_projection_parameters
from harness.methods.keys import require_layers
from harness.models.lm import LM
from harness.patches.patch import Patch

__all__ = ["BoundedFineTuning"]


@dataclass(frozen=True)
class BoundedFineTuning(Editor):
    """Adam on the weight and the bias of a few layers' down-projections; after each step no number is further than
    the bound.

    Attributes:
        layers: the layers; by default the first, as published.
        norm_constraint: the bound.
        loss: ``prompt_last`` or ``target_new``.
        lr: the learning rate.
        steps: passes over the edits.
        batch_size: edits of one update.
        weight_decay: Adam's L2 penalty.
        threshold: the loss at which it stops.
        normalisation: whether the loss of an edit is a ``mean`` over its target's tokens, or their ``sum`` (Hase et al.
            2023, arXiv 2301.04213).
    """

    name = "ft_l"
    directions = DIRECTIONS
    exceptions: ClassVar[Mapping[str, str]] = {
        "target": "the published loss asks for all of a target's tokens at one position, so a target of several tokens "
        "can lose probability"
    }

    layers: tuple[int, ...] = (0,)
    norm_constraint: Positive = 5e-4
    loss: Loss = "prompt_last"
    lr: Positive = 5e-4
    steps: Count = 25
    batch_size: Count = 64
    weight_decay: NotNegative = 0.0
    threshold: NotNegative = 1e-2
    normalisation: Normalisation = "mean"

    # kmeng01/rome, hparams/FT, the settings with a constraint.
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "gpt2-medium": {"norm_constraint": 2e-3},
        "gpt2-large": {"norm_constraint": 1e-3},
        "gpt2-xl": {"norm_constraint": 5e-4},
        "gpt-j-6b": {"norm_constraint": 5e-5},
        # The shipped models: tuned on the edit set's tuning rows.
        "mini-llama": {"layers": (3,), "lr": 5e-3, "norm_constraint": 4e-2},
        "mini": {"layers": (2,), "lr": 5e-3, "norm_constraint": 4e-2},
    }

    def places(self, lm: LM) -> Sequence[str]:
        """The down-projections that are trained."""
        return [lm.arch.writer_of(layer) for layer in require_layers(lm, self.layers, experts=True)]

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """All edits at once, in mini-batches."""
        if not edits:
            return Patch()
        bound, batch = self.norm_constraint, self.batch_size
        settings = DescentSettings(
            self.loss,
            self.lr,
            self.steps,
            batch,
            self.weight_decay,
            bound,
            self.threshold,
            normalisation=self.normalisation,
        )
        return Patch(
            descend(
                lm,
                edits,
                down_projection_parameters(lm, require_layers(lm, self.layers, experts=True)),
                settings=settings,
            ).deltas
        )

    def label(self) -> str:
        """The name, with the loss where it is not the published one."""
        return self.name if self.loss == "prompt_last" else f"{self.name}-{self.loss}"
