"""AlphaEdit: many facts at once, written only into directions that the model's own keys hardly use.

Source: Fang, Jiang, Wang, Ma, Shi, Wang, He, Chua 2024, "AlphaEdit: Null-Space Constrained Knowledge Editing for
Language Models", arXiv 2410.02355, and the authors' code (jianghoucheng/AlphaEdit at f5248d3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from harness.editing.hyperparameters import Positive
from harness.methods.null_space import SHIPPED, ProjectedHidden

__all__ = ["AlphaEdit"]


@dataclass(frozen=True)
class AlphaEdit(ProjectedHidden):
    """``dW = R K^T P (P (K K^T + M) P + l2 I)^-1`` at each layer, ascending, where ``P`` projects on the null space of
    ``C`` and ``M`` sums ``k k^T`` over the edits of earlier operations.

    Attributes:
        l2: weight of the Frobenius norm of the change (``L2``).
    """

    name = "alphaedit"

    l2: Positive = 10.0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # jianghoucheng/AlphaEdit at f5248d3, hparams/AlphaEdit.
        "gpt2-xl": {"layers": (13, 14, 15, 16, 17), "v_steps": 20},
        "gpt-j-6b": {"layers": (3, 4, 5, 6, 7, 8)},
        "meta-llama-3-8b": {"layers": (4, 5, 6, 7, 8), "v_lr": 0.1},
        "mini-llama": {**SHIPPED["mini-llama"], "l2": 0.1},
        "mini": {**SHIPPED["mini"], "l2": 1.0},
    }
