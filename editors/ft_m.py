"""FT-M: fine-tuning of one layer's down-projection on the target's tokens, the prompt masked.

Source: Zhang et al. 2024, "A Comprehensive Study of Knowledge Editing for Large Language Models", arXiv 2401.01286, and
its code (zjunlp/EasyEdit at 14cea82, easyeditor/models/ft, ``objective_optimization: target_new``).  It reads the
prompt and the target as one sequence and takes the cross-entropy of the target's tokens alone, each after those
before it: the likelihood of the target, whatever its length.  In this it differs from FT and FT-L
(:mod:`editors.ft`, :mod:`editors.ft_l`), which ask for all of the target's tokens at the prompt's last position; from
FT-L also in that most of its settings have no bound, and from FT in that one edit makes one update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.editing.directions import DIRECTIONS, Normalisation
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.hyperparameters import Count, NotNegative, Positive
from harness.methods.descent import DescentSettings, descend, down_projection_parameters
from harness.methods.keys import layer_at_depth, require_layers
from harness.models.lm import LM
from harness.patches.patch import Patch

__all__ = ["MaskedFineTuning"]


@dataclass(frozen=True)
class MaskedFineTuning(Editor):
    """Adam on the weight and, where there is one, the bias of a few layers' down-projections.

    Attributes:
        layers: the layers; by default one at 66 % of the depth, where the published settings of GPT-J and Llama lie.
        lr: the learning rate.
        steps: passes over the edits.
        batch_size: edits of one update.
        weight_decay: Adam's L2 penalty.
        norm_constraint: the bound of every single weight's change; None for no bound.
        threshold: the loss at which it stops.
        normalisation: whether the loss of an edit is a ``mean`` over its target's tokens, or their ``sum`` (Hase et al.
            2023, arXiv 2301.04213).
    """

    name = "ft_m"
    directions = DIRECTIONS

    layers: tuple[int, ...] | None = None
    lr: Positive = 5e-4
    steps: Count = 25
    batch_size: Count = 1
    weight_decay: NotNegative = 0.0
    norm_constraint: Positive | None = None
    threshold: NotNegative = 1e-2
    normalisation: Normalisation = "mean"

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # zjunlp/EasyEdit at 14cea82, hparams/FT.
        "gpt2-xl": {"layers": (0,), "batch_size": 3, "norm_constraint": 5e-4},
        "gpt-j-6b": {"layers": (21,)},
        "llama-2-7b-hf": {"layers": (21,)},
        "meta-llama-3-8b": {"layers": (21,)},
        "llama-3.2-3b": {"layers": (21,)},
        "mistral-7b-v0.1": {"layers": (21,), "norm_constraint": 5e-5},
        "qwen2-7b": {"layers": (27,)},
        "qwen2.5-7b": {"layers": (27,)},
        # harness tune: 4 trials of 8 tuning rows of real CounterFact.
        "smollm2-135m-instruct": {"layers": (7,)},
        # The shipped models: tuned on the edit set's tuning rows.
        "mini-llama": {"layers": (2,), "lr": 3e-3, "batch_size": 10},
        "mini": {"layers": (2,), "lr": 2e-3, "batch_size": 10},
        "mini-backpack": {"lr": 5e-2},
    }

    def places(self, lm: LM) -> Sequence[str]:
        """The down-projections that are trained."""
        return [lm.arch.writer_of(layer) for layer in self._chosen_layers(lm)]

    def _chosen_layers(self, lm: LM) -> tuple[int, ...]:
        return require_layers(lm, self.layers or (layer_at_depth(lm, 0.66),), experts=True)

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """All edits at once, in mini-batches."""
        if not edits:
            return Patch()
        bound, batch = self.norm_constraint, self.batch_size
        settings = DescentSettings(
            "target_new",
            self.lr,
            self.steps,
            batch,
            self.weight_decay,
            bound,
            self.threshold,
            normalisation=self.normalisation,
        )
        where = down_projection_parameters(lm, self._chosen_layers(lm))
        return Patch(descend(lm, edits, where, settings=settings).deltas)
