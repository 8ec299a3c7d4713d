"""MEMIT: many facts at once, spread over several layers by one least-squares problem for each.

Source: Meng, Sharma, Andonian, Belinkov, Bau 2023, "Mass-Editing Memory in a Transformer", arXiv 2210.07229, and the
authors' code (kmeng01/memit at 80426fd).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from harness.editing.hyperparameters import NotNegative, Positive
from harness.methods.locate_then_edit import Solver, SpreadHidden, SpreadMemory, ridge_solver

__all__ = ["Memit"]


@dataclass(frozen=True)
class Memit(SpreadHidden):
    """``dW = R K^T (lam C + K K^T)^-1`` at each layer, ascending (equation 14).

    Attributes:
        lam: weight of what the layer already knows, ``C`` (``mom2_update_weight``).
        norm_control: weight of the Frobenius norm of the change, ``norm_control I`` inside the inverse (ENCORE, Gupta
            et al. 2025, arXiv 2502.01636); 0 as published.
        keep_edits: whether ``k k^T`` of the edits of earlier operations stands beside ``lam C`` (ENCORE).
    """

    name = "memit"

    lam: Positive = 15000.0
    norm_control: NotNegative = 0.0
    keep_edits: bool = False

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # kmeng01/memit, hparams/MEMIT.
        "gpt2-xl": {"layers": (13, 14, 15, 16, 17), "v_steps": 20, "lam": 20000.0},
        "gpt-j-6b": {"layers": (3, 4, 5, 6, 7, 8), "v_steps": 25, "lam": 15000.0},
        # zjunlp/EasyEdit, hparams/MEMIT/llama-7b.yaml.
        "llama-2-7b-hf": {"layers": (4, 5, 6, 7, 8), "v_weight_decay": 1e-3, "clamp": 4.0},
        # jianghoucheng/AlphaEdit at f5248d3, hparams/MEMIT/Llama3-8B.json.
        "meta-llama-3-8b": {"layers": (4, 5, 6, 7, 8), "v_lr": 0.1},
        # harness tune: 7 trials of 8 tuning rows of real CounterFact (the bare prompt as context, v_steps=15).
        "smollm2-135m-instruct": {"lam": 402.0},
        # The shipped models: tuned on the edit set's tuning rows.
        "mini-llama": {"layers": (0,), "v_steps": 40, "v_weight_decay": 1e-3, "clamp": 6.0, "lam": 10.0},
        "mini": {"layers": (0,), "v_steps": 40, "v_weight_decay": 1e-3, "clamp": 10.0, "lam": 100.0},
        "mini-backpack": {"layers": (0,), "v_steps": 40, "v_weight_decay": 1e-3, "clamp": 6.0, "lam": 10.0},
    }

    @property
    def remembers(self) -> bool:
        """Whether keys are kept for the next operation."""
        return self.keep_edits

    def solver(self, prior: SpreadMemory) -> Solver:
        """Ridge regression against the second moments of the unedited model's keys."""
        return ridge_solver(
            prior, lam=self.lam, norm_control=self.norm_control, sums=prior.sums if self.keep_edits else None
        )
