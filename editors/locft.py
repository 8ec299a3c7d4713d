"""LocFT-BF: fine-tuning of one down-projection in shuffled mini-batches over all edits, each target ended.

Source: Yang et al. 2026, "Fine-tuning Done Right in Model Editing", arXiv 2509.22072, and the authors' code
(ICT-STAR/LocFT at 51db785).  Breadth first: a pass takes every edit once before the next pass begins, where earlier
fine-tuning edits one fact to convergence before the next.  The token that ends a text is a part of every target.  The
authors draw the order of each pass unseeded; here the seed decides it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from harness.editing.directions import DIRECTIONS, Normalisation
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.hyperparameters import Count, NotNegative, Positive
from harness.methods.descent import DescentSettings, descend
from harness.methods.keys import layer_at_depth
from harness.models.lm import LM
from harness.patches.patch import Patch

__all__ = ["BreadthFirst"]


@dataclass(frozen=True)
class BreadthFirst(Editor):
    """Adam on the weight of a few layers' down-projections.

    Attributes:
        layers: the layers; by default one at 69 % of the depth, where the published setting of Llama 3 lies.
        trained: ``down``, the weights of the down-projections, or ``block``, every parameter of the layers.
        lr: the learning rate.
        steps: passes over the edits.
        batch_size: edits of one update.
        weight_decay: Adam's L2 penalty.
        threshold: no update where a batch's loss is below, and an end where the mean loss of a pass is.
        normalisation: whether the loss of an edit is a ``mean`` over its target's tokens, or their ``sum`` (Hase et al.
            2023, arXiv 2301.04213).
        seed: the seed of the order of the edits.
    """

    name = "locft"
    random = True
    directions = DIRECTIONS

    layers: tuple[int, ...] | None = None
    trained: Literal["down", "block"] = "down"
    lr: Positive = 5e-4
    steps: Count = 25
    batch_size: Count = 100
    weight_decay: NotNegative = 0.0
    threshold: NotNegative = 1e-2
    normalisation: Normalisation = "mean"
    seed: int = 0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # ICT-STAR/LocFT at 51db785, hparams.
        "meta-llama-3-8b-instruct": {"layers": (22,)},
        "qwen2.5-7b-instruct": {"layers": (6,)},
        # Its rewrite_module is the block, not the down-projection.
        "mistral-7b-v0.1": {"layers": (23,), "trained": "block", "lr": 5e-5},
        # The shipped models: tuned on the edit set's tuning rows.
        "mini-llama": {"layers": (2,), "lr": 3e-3, "batch_size": 10},
        "mini": {"layers": (2,), "lr": 2e-3, "batch_size": 10},
    }

    def places(self, lm: LM) -> Sequence[str]:
        """The down-projections, or the blocks, that are trained."""
        return [self._place(lm, layer) for layer in self._layers(lm)]

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """All edits at once, in mini-batches."""
        if not edits:
            return Patch()
        settings = DescentSettings(
            lr=self.lr,
            steps=self.steps,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            threshold=self.threshold,
            normalisation=self.normalisation,
            end_of_text=True,
            shuffle=self.seed,
        )
        return Patch(descend(lm, edits, self._parameters(lm), settings=settings).deltas)

    def _layers(self, lm: LM) -> list[int]:
        return sorted(set(self.layers or (layer_at_depth(lm, 0.69),)))

    def _place(self, lm: LM, layer: int) -> str:
        return (lm.arch.writer_of if self.trained == "down" else lm.arch.block)(layer)

    def _parameters(self, lm: LM) -> list[str]:
        if self.trained == "down":
            return [lm.down(layer) for layer in self._layers(lm)]
        return [f"{place}.{name}" for place in self.places(lm) for name, _ in lm.module(place).named_parameters()]
