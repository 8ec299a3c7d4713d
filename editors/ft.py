"""FT: plain fine-tuning of one layer's down-projection on the new facts.

Source: the baseline FT of Meng et al. 2022 (ROME), appendix E.1, and 2023 (MEMIT), and its code (kmeng01/memit at
80426fd, baselines/ft).  There all the target's tokens are asked for at the prompt's last position
(``loss=prompt_last``); the default here is the plain likelihood of the target, and any other setting has its own label.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.descent import Loss, Settings, descend, feed_forward
from harness.editor import Edit, Editor
from harness.keys import chosen, depth
from harness.lm import LM
from harness.patch import Patch

__all__ = ["FineTuning"]


@dataclass(frozen=True)
class FineTuning(Editor):
    """Adam on the weight and the bias of a few layers' down-projections, without a bound.

    Attributes:
        layers: the layers; by default one at 66 % of the depth, where the published settings of GPT-J and Llama lie.
        loss: ``target_new`` or ``prompt_last``.
        lr: the learning rate.
        steps: passes over the edits.
        batch_size: edits of one update.
        weight_decay: Adam's L2 penalty.
        wd_power_law: ``(a, b)``: a penalty of ``n^a e^b`` for ``n`` edits instead of ``weight_decay``.
        threshold: the loss at which it stops.
    """

    name = "ft"

    layers: tuple[int, ...] | None = None
    loss: Loss = "target_new"
    lr: float = 5e-4
    steps: int = 25
    batch_size: int = 64
    weight_decay: float = 0.0
    wd_power_law: tuple[float, ...] | None = None
    threshold: float = 1e-2

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # kmeng01/rome, hparams/FT.
        "gpt2-xl": {"layers": (1,)},
        "gpt-j-6b": {"layers": (21,)},
        # zjunlp/EasyEdit, hparams/FT/llama-7b.yaml; the weight only, as Llama has no bias.
        "llama-2-7b-hf": {"layers": (21,)},
        "meta-llama-3-8b": {"layers": (21,)},
        # The shipped models: tuned on the edit set's tuning rows.
        "mini-llama": {"layers": (2,), "lr": 5e-3},
        "mini": {"layers": (2,), "lr": 5e-3},
    }

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """All edits at once, in mini-batches."""
        if not edits:
            return Patch()
        decay = self.weight_decay
        if self.wd_power_law is not None:
            a, b = self.wd_power_law
            decay = len(edits) ** a * math.exp(b)
        settings = Settings(self.loss, self.lr, self.steps, self.batch_size, decay, None, self.threshold)
        layers = chosen(lm, self.layers or (depth(lm, 0.66),))
        return Patch(descend(lm, edits, feed_forward(lm, layers), settings).deltas)

    def label(self) -> str:
        """The name, with the loss where it is not the default."""
        return self.name if self.loss == "target_new" else f"{self.name}-{self.loss}"
