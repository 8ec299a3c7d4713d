"""UltraEdit: a shift of feed-forward matrices in one step, from what enters them and the gradient of what leaves them.

Source: Gu, Huang, Gu, Zhang 2026, "UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing in Language
Models", arXiv 2505.14679, and the authors' code (XiaojieGu/UltraEdit at 0beb222).

No training: one forward and one backward pass.  The step is scaled by the mean and the standard deviation of all
edits so far, so that it takes many edits at a time, or many operations: a few tokens have no statistics to speak of,
and one token alone no deviation, hence no step.

Where the code leaves the plain meaning there is a setting for each: ``loss``, ``deviation`` and ``last_batch``.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.editor import own_memory
from harness.methods.descent import TokenisedEdit, tokenise
from harness.methods.shifts import (
    LLAMA_3_8B,
    GradientShift,
    Shape,
    Statistics,
    mini_batches,
    read_features,
    shape_of,
    shift,
    shift_values,
)
from harness.models.lm import LM
from harness.patches.delta import Delta
from harness.patches.patch import Patch

__all__ = ["Seen", "UltraEdit"]


@dataclass(frozen=True, eq=False)
class Seen:
    """What the normalisation of the next operation starts from.

    Attributes:
        statistics: shape of a matrix -> statistics of ``[k, g]`` of all matrices of that shape.
    """

    statistics: Mapping[Shape, Statistics] = field(default_factory=dict)


@dataclass(frozen=True)
class UltraEdit(GradientShift):
    """``dW = (solve(K^T K + I, K^T V))^T`` with ``v = -lr ||k^||^2 g^`` for every token of every target.

    ``k`` is what enters a matrix at the position where the token is asked for, ``g`` the gradient of the edit's
    negative log-likelihood at what leaves it there; ``k^`` and ``g^`` are both after normalisation over all operations
    so far, this one included, for all matrices of a shape together; ``K`` holds the plain ``k``.

    Attributes:
        batch_size: edits of one forward and backward pass, the mini-batch; the result does not depend on it where
            ``loss`` is ``edit``, ``deviation`` is ``data`` and ``last_batch`` is ``counted``. Else the edits are taken
            in the order of their lengths, the longest first, as in the authors' code.
        loss: whether the gradient of an ``edit`` is that of its own negative log-likelihood, or that of the mean over
            all answer tokens of the mini-``batch`` that it happens to share, as in the authors' code.
        deviation: whether the standard deviation is that of the ``data``, or as in the authors' code a larger one, to
            which every mini-``batch`` of ``n`` tokens adds ``n / (n - 1)`` of its squares, and one of a lone token (of
            which their code makes a NaN) none.
        last_batch: whether edits that do not fill the last mini-batch are ``counted``, or as in the authors' code are
            given the gradient zero (``released``).
    """

    name = "ultraedit"

    loss: Literal["edit", "batch"] = field(default="batch", metadata={"before": "edit"})
    deviation: Literal["data", "batch"] = field(default="batch", metadata={"before": "data"})
    last_batch: Literal["counted", "released"] = "counted"

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # XiaojieGu/UltraEdit at 0beb222, config/model, the settings of zsRE and UltraEditBench.
        "meta-llama-3-8b-instruct": {"modules": LLAMA_3_8B},
        "qwen2.5-7b-instruct": {"layers": tuple(range(18, 27))},
        "mistral-7b-v0.3": {"modules": ("model.layers.29.mlp.down_proj", "model.layers.30.mlp.down_proj")},
        "gpt-j-6b": {"modules": tuple(f"transformer.h.{i}.mlp.fc_out" for i in range(18, 27))},
        "gemma-3-27b-it": {"layers": tuple(range(52, 61))},
        "phi-4": {"modules": tuple(f"model.layers.{i}.mlp.down_proj" for i in range(30, 39))},
        # harness tune: 5 trials of 8 tuning rows of real CounterFact.
        "smollm2-135m-instruct": {"layers": tuple(range(19, 29)), "lr": 1.24e-4},
        # The shipped models: tuned on the edit set's tuning rows.
        "mini-llama": {"layers": (0, 1, 2, 3), "lr": 2e-3},
        "mini": {"layers": (1, 2, 3), "lr": 4e-3},
    }

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """All edits at once."""
        before = own_memory(memory, Seen)
        if not edits:
            return Patch(memory=memory)
        batches = self._batches(tokenise(lm, edits))
        seen = read_features(lm, batches, names=self.places(lm), mean=self.loss == "batch")
        statistics = dict(before.statistics) if before else {}
        # What has been joined, and then what has been written, is let go of: both at once are twice the memory.
        found = {name: self._joined(*seen.pop(name), statistics) for name in list(seen)}
        lost = self._lost(batches)
        weights = {f"{name}.weight": self._change(*found.pop(name), statistics, lost=lost) for name in list(found)}
        return Patch(weights, memory=Seen(statistics))

    def _joined(
        self, keys: Sequence[Tensor], gradients: Sequence[Tensor], statistics: dict[Shape, Statistics]
    ) -> tuple[Tensor, Tensor]:
        """``k`` and ``g`` of one matrix, of all mini-batches; they are added to the statistics of its shape."""
        key, gradient = torch.cat(list(keys)), torch.cat(list(gradients))
        new, shape = self._statistics(keys, gradients), shape_of(key, gradient)
        statistics[shape] = statistics[shape] + new if shape in statistics else new
        return key, gradient

    def _change(self, key: Tensor, gradient: Tensor, statistics: Mapping[Shape, Statistics], *, lost: int) -> Delta:
        """The shift of one matrix; the last ``lost`` tokens are given the gradient zero."""
        gradient[len(gradient) - lost :] = 0
        both = statistics[shape_of(key, gradient)].normalised(torch.cat([key, gradient], 1))
        return shift(key, shift_values(both, key.shape[1], self.lr))

    def _batches(self, examples: Sequence[TokenisedEdit]) -> list[list[TokenisedEdit]]:
        """The mini-batches."""
        matters = (self.loss, self.deviation, self.last_batch) != ("edit", "data", "counted")
        return mini_batches(examples, self.batch_size, longest_first=matters)

    def _lost(self, batches: Sequence[Sequence[TokenisedEdit]]) -> int:
        """How many tokens of a last, incomplete mini-batch have their gradients taken away."""
        if self.last_batch == "counted" or len(batches[-1]) == self.batch_size:
            return 0
        return sum(len(example.target) for example in batches[-1])

    def _statistics(self, keys: Sequence[Tensor], gradients: Sequence[Tensor]) -> Statistics:
        """Those of ``[k, g]`` of one matrix, from what each mini-batch gives."""
        if self.deviation == "data":
            return Statistics.of(torch.cat([torch.cat(list(keys)), torch.cat(list(gradients))], 1))
        each = (Statistics.of(torch.cat(pair, 1), unbiased=True) for pair in zip(keys, gradients, strict=True))
        return functools.reduce(operator.add, each)
