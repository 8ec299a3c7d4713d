"""Low-rank adapters beside matrices, trained as any parameters are and merged into a change of low rank.

Source: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, through the peft
library.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import fmean

import torch
from torch import Tensor, nn

from harness.editing.edit import Edit
from harness.editing.editor import Pass
from harness.editing.hyperparameters import Count, NotNegative, Positive, Share
from harness.methods.descent import (
    DescentSettings,
    TokenMean,
    Trained,
    descend,
    feed_forward_matrices,
    named_matrices,
    passes,
)
from harness.methods.finetuning import Finetuning
from harness.models.arch import stored_transposed
from harness.models.guard import same_modules
from harness.models.lm import LM
from harness.models.offload import resident
from harness.patches.delta import LowRank
from harness.patches.patch import Patch

__all__ = ["Adapters"]

ADAPTER = "edit"


@dataclass(frozen=True)
class Adapters(Finetuning, ABC):
    """``W' = W + (alpha / r) B A`` with ``A [r, in]`` random and ``B [out, r]`` zero at the start.

    Attributes:
        layers: the layers; by default all.
        modules: the last parts of the names of the matrices in a layer (``q_proj``); by default all matrices of the
            feed-forward part.
        rank: ``r``.
        alpha: the factor of an adapter, before it is divided by the rank.
        dropout: the share of an adapter's inputs that is dropped in training.
        token_mean: whether every ``edit`` of a batch counts alike, or as in EasyEdit every token of the ``batch``'s
            targets.

    The seed is also that of ``A`` and of what is dropped.
    """

    layers: tuple[int, ...] | None = None
    modules: tuple[str, ...] | None = None
    rank: Count = 8
    alpha: Count = 32
    dropout: Share = 0.0
    token_mean: TokenMean = field(default="batch", metadata={"before": "edit"})
    lr: Positive = 5e-3
    steps: Count = 60
    batch_size: Count = 64
    threshold: NotNegative = 1e-2

    def places(self, lm: LM) -> Sequence[str]:
        """The matrices that get an adapter."""
        return self._names(lm)

    def settings(self) -> DescentSettings:
        """How to descend."""
        return replace(super().settings(), token_mean=self.token_mean)

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """All edits at once, in mini-batches."""
        if not edits:
            return Patch()
        with self._training(lm) as (parts, start):
            return self._merged(
                parts, start, descend(lm, edits, list(start), settings=self.settings(), prior=self.prior(lm))
            )

    def passes(self, lm: LM, edits: Sequence[Edit]) -> Iterator[Pass]:
        """The change after each pass; all passes are made first, as adapters must not be in the model in between."""
        with self._training(lm) as (parts, start):
            trained = list(passes(lm, edits, list(start), settings=self.settings(), prior=self.prior(lm)))
        for one in trained:
            yield Pass(self._merged(parts, start, one), fmean(one.losses))

    @contextmanager
    def _training(self, lm: LM) -> Iterator[tuple[dict[str, tuple[str, str]], dict[str, Tensor]]]:
        """Adapters in the model, by module, and what their parameters begin with."""
        with torch.random.fork_rng(), self._adapters(lm) as parts:
            names = [name for pair in parts.values() for name in pair]
            yield parts, {name: lm.parameter(name).detach().clone() for name in names}

    def _merged(self, parts: Mapping[str, tuple[str, str]], start: Mapping[str, Tensor], trained: Trained) -> Patch:
        """The change of the matrices that the adapters stand beside."""
        ends = {name: delta.dense() + start[name].to(delta.dense()) for name, delta in trained.deltas.items()}
        scale = self.alpha / self.rank
        return Patch({f"{name}.weight": LowRank(ends[b] * scale, ends[a]) for name, (a, b) in parts.items()})

    @contextmanager
    def _adapters(self, lm: LM) -> Iterator[dict[str, tuple[str, str]]]:
        """Adapters in the model: module -> the names of its ``A`` and ``B``; afterwards every module is the old one."""
        from peft import LoraConfig, inject_adapter_in_model

        before = {name: lm.module(name) for name in self._names(lm)}
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(before),
            fan_in_fan_out=any(stored_transposed(module) for module in before.values()),
        )
        torch.manual_seed(self.seed)
        # Not unload(): that misses modules where the injection itself was interrupted, or wrapped more than was meant.
        with same_modules(lm.model):
            # Of a mixture of experts that it knows by its configuration, peft would wrap all experts instead.
            with resident(lm.model, [f"{name}.weight" for name in before]):  # adapters go where the matrices are
                inject_adapter_in_model(config, nn.ModuleList([lm.model]), ADAPTER)
            for name in before:
                lm.module(f"{name}.lora_dropout").train()
            yield {name: (f"{name}.lora_A.{ADAPTER}.weight", f"{name}.lora_B.{ADAPTER}.weight") for name in before}

    def _names(self, lm: LM) -> list[str]:
        """The modules that get an adapter."""
        layers = sorted(set(range(lm.arch.layers) if self.layers is None else self.layers))
        if self.modules is None:
            return [name for layer in layers for name in feed_forward_matrices(lm, layer)]
        # Matrices that are named need no down-projection beside them: attention above a mixture of experts.
        return named_matrices(lm, layers, self.modules, asker=self.name)
