"""What editors of long answers share: a value of the last token in front of an answer, and blocks trained to give it.

Source: Deng et al. 2024 (UnKE), arXiv 2405.15349; Jiang et al. 2025 (AnyEdit), arXiv 2502.05628.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Annotated

from harness.editing.editor import Editor
from harness.editing.hyperparameters import Count, NotNegative, Positive, Range
from harness.methods.value_rows import Objective

__all__ = ["LongAnswers"]


@dataclass(frozen=True)
class LongAnswers(Editor, ABC):
    """An editor that finds values without a KL term, and trains whole blocks to give them.

    Attributes:
        v_steps: evaluations of the loss of a value.
        v_lr: its learning rate.
        v_loss_layer: the layer whose output is decoded for the loss; None is the last.
        v_weight_decay: weight of ``||delta|| / ||h||^2``.
        clamp: the bound of ``||delta|| / ||h||``.
        steps: updates of a block (``optim_num_step``).
        lr: AdamW's learning rate.
        weight_decay: its weight decay, of all parameters but those of norms.
        texts: texts on which a block shall give what it gave (``ex_data_num``), drawn anew for each operation.
        seed: the seed of the draw.
    """

    random = True

    v_steps: Count = 25
    v_lr: Positive = 0.5
    v_loss_layer: Annotated[int, Range(0)] | None = None
    v_weight_decay: NotNegative = 1e-3
    clamp: Positive = 4.0
    steps: Count = 50
    lr: Positive = 2e-4
    weight_decay: NotNegative = 0.01
    texts: Count = 20
    seed: int = 0

    def value_objective(self, layer: int) -> Objective:
        """The optimisation of the value of what leaves a layer, by default until its loss is small."""
        return Objective(
            layer,
            seam="block",
            fact_token="last",
            steps=self.v_steps,
            lr=self.v_lr,
            kl_factor=0.0,
            weight_decay=self.v_weight_decay,
            clamp=self.clamp,
            loss_layer=self.v_loss_layer,
        )
