"""LoRA: low-rank adapters beside the feed-forward matrices, trained on the targets and merged.

Source: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, through the peft
library; as an editor in zjunlp/EasyEdit (at 14cea82, easyeditor/models/lora), whose rank, alpha, learning rate,
number of passes and loss are the defaults here.  Its other settings differ (the preset ``qwen2.5-7b-instruct`` has
them): two matrices of attention there, here those of the feed-forward part, as in Hewitt et al. 2024, "Model Editing
with Canonical Examples", arXiv 2402.06155; a dropout of 0.1, none here; one edit a batch, 64 here; no threshold, 0.01
here.  The loss is that of the target's tokens alone.  Adam without weight decay, as there, is AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from harness.editing.directions import DIRECTIONS
from harness.methods.adapters import Adapters

__all__ = ["Lora"]


@dataclass(frozen=True)
class Lora(Adapters):
    """``W' = W + (alpha / r) B A`` with ``A [r, in]`` random and ``B [out, r]`` zero at the start."""

    name = "lora"
    random = True
    directions = DIRECTIONS

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # zjunlp/EasyEdit at 14cea82, hparams/LoRA/qwen2.5-7b.yaml; its other files are of AdaLoRA.
        "qwen2.5-7b-instruct": {
            "modules": ("q_proj", "v_proj"),
            "dropout": 0.1,
            "batch_size": 1,
            "threshold": 0.0,
        },
        # The shipped models: tuned on the edit set's tuning rows.
        "mini-llama": {"lr": 1e-3},
        "mini": {"lr": 1e-3},
        "mini-backpack": {"lr": 5e-3},
    }
