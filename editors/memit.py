"""MEMIT: many facts at once, spread over several layers by one least-squares problem for each.

Source: Meng, Sharma, Andonian, Belinkov, Bau 2023, "Mass-Editing Memory in a Transformer", arXiv 2210.07229, and the
authors' code (kmeng01/memit at 80426fd).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness.editor import Edit, Editor
from harness.keys import FactToken, Unedited, chosen, depth, spread, templates, unedited
from harness.lm import LM
from harness.patch import Patch
from harness.stats import Moment, double
from harness.value import Objective, optimise

__all__ = ["Memit", "adjoint"]


@dataclass(frozen=True)
class Memit(Editor):
    """``dW = R K^T (lam C + K K^T)^-1`` at each layer, ascending (equation 14).

    Attributes:
        layers: the layers that share the change; by default up to five that end at 27 % of the depth, as published
            for Llama.
        fact_token: the token whose keys and values are edited.
        v_steps: evaluations of the loss of a value.
        v_lr: its learning rate.
        v_loss_layer: the layer whose output is decoded for the loss; None is the last.
        v_weight_decay: weight of ``||delta|| / ||h0||^2``.
        clamp: the bound of ``||delta|| / ||h0||``.
        kl_factor: weight of the KL term.
        lam: weight of what the layer already knows, ``C`` (``mom2_update_weight``).
        cov_tokens: tokens of text for ``C``.
        contexts: context templates, the first ``{}``; by default sampled from the unedited model.
        seed: the seed of the context templates.
    """

    name = "memit"
    needs_subject = True

    layers: tuple[int, ...] | None = None
    fact_token: FactToken = "subject_last"
    v_steps: int = 25
    v_lr: float = 0.5
    v_loss_layer: int | None = None
    v_weight_decay: float = 0.5
    clamp: float = 0.75
    kl_factor: float = 0.0625
    lam: float = 15000.0
    cov_tokens: int = 100_000
    contexts: tuple[str, ...] | None = None
    seed: int = 0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # kmeng01/memit, hparams/MEMIT.
        "gpt2-xl": {"layers": (13, 14, 15, 16, 17), "v_steps": 20, "lam": 20000.0},
        "gpt-j-6b": {"layers": (3, 4, 5, 6, 7, 8), "v_steps": 25, "lam": 15000.0},
        # zjunlp/EasyEdit, hparams/MEMIT/llama-7b.yaml.
        "llama-2-7b-hf": {"layers": (4, 5, 6, 7, 8), "v_weight_decay": 1e-3, "clamp": 4.0},
        # jianghoucheng/AlphaEdit at f5248d3, hparams/MEMIT/Llama3-8B.json.
        "meta-llama-3-8b": {"layers": (4, 5, 6, 7, 8), "v_lr": 0.1},
        # The shipped models: tuned on the edit set's tuning rows.
        "mini-llama": {"layers": (0,), "v_steps": 40, "v_weight_decay": 1e-3, "clamp": 6.0, "lam": 10.0},
        "mini": {"layers": (0, 1, 2), "v_steps": 40, "v_weight_decay": 1e-3, "clamp": 10.0, "lam": 30.0},
    }

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """All edits at once."""
        if not edits:
            return Patch(memory=memory)
        return self._edit_groups(lm, [list(edits)], memory)[0]

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        """Independent edits side by side, each on its own copy of the layers it has changed."""
        return self._edit_groups(lm, [[edit] for edit in edits], None) if edits else []

    def notes(self, lm: LM) -> Mapping[str, object]:
        """The context templates."""
        return templates(lm, "memit", self.seed, self.contexts)

    def _edit_groups(self, lm: LM, groups: list[list[Edit]], memory: object) -> list[Patch]:
        last = max(depth(lm, 0.27), 1 if lm.arch.layers > 1 else 0)
        layers = chosen(lm, self.layers or range(max(0, last - 4), last + 1))
        prior = unedited(lm, memory, "memit", layers, self.seed, self.cov_tokens, self.contexts)
        objective = self._objective(layers[-1])
        values = optimise(lm, [edit for group in groups for edit in group], prior.contexts, objective)
        solve = self._solver(prior)
        patches = spread(lm, groups, values.value, layers, prior.contexts, self.fact_token, solve)
        return [patch.remember(prior) for patch in patches]

    def _objective(self, layer: int) -> Objective:
        weights = (self.kl_factor, self.v_weight_decay, self.clamp)
        return Objective(layer, "block", self.fact_token, self.v_steps, self.v_lr, *weights, self.v_loss_layer)

    def _solver(self, prior: Unedited) -> Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]:
        def solve(layer: int, key: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
            return residual.T, adjoint(prior.moments[layer], key, self.lam).T.to(key)

        return solve


def adjoint(moment: Moment, keys: Tensor, lam: float) -> Tensor:
    """``(lam C + K K^T)^-1 K`` in float64, ``[f, n]``, from one factor of ``C`` for all batches (Woodbury).

    Args:
        moment: the second moment ``C [f, f]`` of the layer.
        keys: ``K^T [n, f]``.
        lam: the weight of ``C``.
    """
    key = double(keys.T)
    whitened = moment.solve(key) / lam
    inner = key.T.to(whitened) @ whitened
    eye = torch.eye(len(inner), dtype=inner.dtype, device=inner.device)
    # X (I + K^T X)^-1 with X = (lam C)^-1 K; the inner matrix is symmetric.
    adjoint_of: Tensor = torch.linalg.solve(eye + inner, whitened.T)
    return adjoint_of.T
