"""BLUE: AlphaEdit at the first and the last of its layers alone, each with a value and a residual of its own.

Source: Li, Wang, Li, Song, Ji, Ma, Yu 2025, "Rethinking Residual Distribution in Locate-then-Edit Model Editing",
NeurIPS 2025, arXiv 2502.03748, and the authors' code (xpq-tech/BLUE at 311b076).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.editing.hyperparameters import Positive
from harness.methods.null_space import SHIPPED, ProjectedHidden
from harness.models.lm import LM

__all__ = ["Blue"]


@dataclass(frozen=True)
class Blue(ProjectedHidden):
    """``dW = R K^T P (P (K K^T + M) P + l2 I)^-1`` at the first layer and then at the last, as in AlphaEdit.

    The residual is whole: ``R = z - h`` of a value ``z`` that is optimised at the layer itself, at the last one on the
    model that carries the change of the first. ``P`` projects on the null space of ``C``, and ``M`` sums ``k k^T`` over
    the edits of earlier operations.

    Attributes:
        l2: weight of the Frobenius norm of the change (``L2``), which the authors choose for each model.
    """

    name = "blue"

    l2: Positive = 10.0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # xpq-tech/BLUE at 311b076, hparams/AlphaEdit, the files with blue.
        "gpt2-xl": {"layers": (13, 17), "v_steps": 20, "l2": 80.0},
        "gpt-j-6b": {"layers": (3, 8), "l2": 95.0},
        "meta-llama-3-8b": {"layers": (4, 8), "v_lr": 0.1, "l2": 1.0},
        # The shipped models: the values and the null space as tuned for AlphaEdit, at two layers.
        "mini-llama": {**SHIPPED["mini-llama"], "layers": (0, 1), "l2": 0.1},
        "mini": {**SHIPPED["mini"], "layers": (0, 1), "l2": 1.0},
    }

    def edited_layers(self, lm: LM) -> tuple[int, ...]:
        """The first and the last of the layers."""
        layers = super().edited_layers(lm)
        return tuple(dict.fromkeys((layers[0], layers[-1])))

    def rounds(self, lm: LM) -> Sequence[tuple[int, ...]]:
        """One layer after the other, each with its own value."""
        return [(layer,) for layer in self.edited_layers(lm)]
