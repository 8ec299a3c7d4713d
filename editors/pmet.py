"""PMET: many facts at once, by values optimised together with what attention writes beside them.

Source: Li, Li, Song, Yang, Ma, Yu 2024, "PMET: Precise Model Editing in a Transformer", AAAI 2024, arXiv 2308.08742,
and the authors' code (xpq-tech/PMET at 80643f2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from harness.editing.hyperparameters import Count, NotNegative, Positive
from harness.methods.locate_then_edit import Solver, Spread, SpreadMemory, ridge_solver
from harness.methods.value_rows import Seam

__all__ = ["Pmet"]


@dataclass(frozen=True)
class Pmet(Spread):
    """MEMIT's least squares for values of the feed-forward part alone, ``dW = R K^T (lam C + K K^T)^-1``.

    At the last layer one vector is added to what attention writes and another to what the feed-forward part writes, and
    both are optimised together (section "Optimized TC hidden states"); only the second is written into weights, as
    attention is held to extract relations and not to store facts. Layer ``l`` takes ``(z - m) / sqrt(L - l + 1)`` of
    the residual, where MEMIT takes ``1 / (L - l + 1)``: ``m`` is what the feed-forward part of the last layer ``L``
    writes.

    The authors' code also ends the optimisation of a value where the target is the most probable and the KL term is at
    most 0.01, with a tenth of the weight on the target until then; their text does not. It is ``v_stop="argmax_kl"``.

    Attributes:
        lam: weight of what the layer already knows, ``C`` (``mom2_update_weight``).
    """

    name = "pmet"
    seam: ClassVar[Seam] = "parts"

    v_steps: Count = 30
    v_lr: Positive = 0.2
    kl_factor: NotNegative = 1.0
    lam: Positive = 6000.0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # xpq-tech/PMET at 80643f2, edit/hparams/PMET.
        "gpt-j-6b": {"layers": (3, 4, 5, 6, 7, 8)},
        "gpt-neox-20b": {"layers": (6, 7, 8, 9, 10), "clamp": 0.8, "v_lr": 0.5, "kl_factor": 0.8, "lam": 15000.0},
        # The shipped models: tuned on the edit set's tuning rows. With one layer attention's vector does the work.
        "mini-llama": {
            "layers": (0, 1),
            "v_steps": 40,
            "v_lr": 0.5,
            "kl_factor": 0.0625,
            "v_weight_decay": 1e-3,
            "clamp": 6.0,
            "lam": 3.0,
        },
        "mini": {
            "layers": (0, 1),
            "v_steps": 40,
            "v_lr": 0.5,
            "kl_factor": 0.0625,
            "v_weight_decay": 1e-3,
            "clamp": 10.0,
            "lam": 400.0,
        },
    }

    def divisor(self, left: int) -> float:
        """The square root (section "Editing")."""
        return math.sqrt(left)

    def solver(self, prior: SpreadMemory) -> Solver:
        """Ridge regression against the second moments of the unedited model's keys."""
        return ridge_solver(prior, lam=self.lam)
