"""MEMIT: many facts at once, spread over several layers by one least-squares problem for each.

Source: Meng, Sharma, Andonian, Belinkov, Bau 2023, "Mass-Editing Memory in a Transformer", arXiv 2210.07229, and the
authors' code (kmeng01/memit at 80426fd).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from harness.editing.hyperparameters import NotNegative, Positive
from harness.methods.locate_then_edit import Solver, SpreadHidden, SpreadMemory, ridge_solver
from harness.methods.null_space import NullSpaceMemory, NullSpaceRidge, null_space_memory
from harness.methods.second_moments import require_finite_moment
from harness.models.lm import LM
from harness.patches.delta import double
from harness.patches.patch import Patch

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

    def prior(self, lm: LM, memory: object, layers: Sequence[int]) -> SpreadMemory:
        """Templates, second moments, and the keys of earlier edits with what they are solved by."""
        known = super().prior(lm, memory, layers)
        if not isinstance(memory, NullSpaceMemory):
            return known
        return self._ridge(replace(memory, moments=known.moments)).caught_up(layers)

    def solver(self, prior: SpreadMemory) -> Solver:
        """Ridge regression against the second moments of the unedited model's keys, and against earlier keys."""
        if self.keep_edits and (prior.sums or isinstance(prior, NullSpaceMemory)):
            return self._ridge(prior).solver()
        return ridge_solver(prior, lam=self.lam, norm_control=self.norm_control)

    def after(self, lm: LM, prior: SpreadMemory, *, keys: Mapping[int, Tensor], patch: Patch) -> SpreadMemory:  # noqa: ARG002
        """The memory with the keys of one more operation."""
        return null_space_memory(prior).with_keys(keys)

    def _ridge(self, prior: SpreadMemory) -> NullSpaceRidge:
        """``(lam C + norm_control I + M + K K^T)^-1``, a factor of what does not change and an update for each edit."""

        def known(layer: int) -> Tensor:
            moment = prior.moments[layer]
            require_finite_moment(moment, moment.name)
            return self.lam * double(moment.matrix)

        memory = null_space_memory(prior).under((self.lam, self.norm_control))
        return NullSpaceRidge(memory, lambda _layer: None, self.norm_control, known)
