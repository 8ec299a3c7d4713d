"""FT: plain fine-tuning of one layer's down-projection, the baseline of ROME and MEMIT.

Source: the baseline FT of Meng et al. 2022 (ROME), appendix E.1, and 2023 (MEMIT), and its code (kmeng01/memit at
80426fd, baselines/ft), which every later table of FT repeats.  There all the target's tokens are asked for at the
prompt's last position (``loss=prompt_last``), which is the likelihood of the target only where that has one token;
:mod:`editors.ft_m` takes the likelihood itself.  ``loss=target_new`` does so here, under a label of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.editing.directions import DIRECTIONS, Normalisation
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.hyperparameters import Count, NotNegative, Positive, require_effect
from harness.errors import UsageError
from harness.methods.descent import DescentSettings, Loss, descend, down_projection_parameters
from harness.methods.keys import layer_at_depth, require_layers
from harness.models.lm import LM
from harness.patches.patch import Patch

__all__ = ["FineTuning"]


@dataclass(frozen=True)
class FineTuning(Editor):
    """Adam on the weight and the bias of a few layers' down-projections, without a bound.

    Attributes:
        layers: the layers; by default one at 66 % of the depth, where the published settings of GPT-J and Llama lie.
        loss: ``prompt_last`` or ``target_new``.
        lr: the learning rate.
        steps: passes over the edits.
        batch_size: edits of one update.
        weight_decay: Adam's L2 penalty.
        wd_power_law: ``(a, b)``: a penalty of ``n^a e^b`` for ``n`` edits instead of ``weight_decay``.
        threshold: the loss at which it stops.
        normalisation: whether the loss of an edit is a ``mean`` over its target's tokens, or their ``sum`` (Hase et al.
            2023, arXiv 2301.04213).
    """

    name = "ft"
    directions = DIRECTIONS
    exceptions: ClassVar[Mapping[str, str]] = {
        "target": "the published loss asks for all of a target's tokens at one position, so a target of several tokens "
        "can lose probability"
    }

    layers: tuple[int, ...] | None = None
    loss: Loss = "prompt_last"
    lr: Positive = 5e-4
    steps: Count = 25
    batch_size: Count = 64
    weight_decay: NotNegative = 0.0
    wd_power_law: tuple[float, ...] | None = None
    threshold: NotNegative = 1e-2
    normalisation: Normalisation = "mean"

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # kmeng01/rome, hparams/FT.
        "gpt2-xl": {"layers": (1,)},
        "gpt-j-6b": {"layers": (21,)},
        # zjunlp/EasyEdit, hparams/FT/llama-7b.yaml; the weight only, as Llama has no bias.
        "llama-2-7b-hf": {"layers": (21,)},
        "meta-llama-3-8b": {"layers": (21,)},
        # The shipped models: tuned on the edit set's tuning rows.
        "mini-llama": {"layers": (2,), "lr": 5e-3},
        "mini": {"layers": (3,), "lr": 3e-3},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.wd_power_law is None:
            return
        if len(self.wd_power_law) != 2:
            raise UsageError(f"ft: 'wd_power_law' is {self.wd_power_law}, expected two numbers, a and b of n^a e^b")
        require_effect(self, ["weight_decay"], where="beside 'wd_power_law'; leave one of them out")

    def places(self, lm: LM) -> Sequence[str]:
        """The down-projections that are trained."""
        return [
            lm.arch.writer_of(layer)
            for layer in require_layers(lm, self.layers or (layer_at_depth(lm, 0.66),), experts=True)
        ]

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """All edits at once, in mini-batches."""
        if not edits:
            return Patch()
        decay = self.weight_decay
        if self.wd_power_law is not None:
            a, b = self.wd_power_law
            decay = len(edits) ** a * math.exp(b)
        settings = DescentSettings(
            self.loss,
            self.lr,
            self.steps,
            self.batch_size,
            decay,
            threshold=self.threshold,
            normalisation=self.normalisation,
        )
        layers = require_layers(lm, self.layers or (layer_at_depth(lm, 0.66),), experts=True)
        return Patch(descend(lm, edits, down_projection_parameters(lm, layers), settings=settings).deltas)

    def label(self) -> str:
        """The name, with the loss where it is not the published one."""
        return self.name if self.loss == "prompt_last" else f"{self.name}-{self.loss}"
